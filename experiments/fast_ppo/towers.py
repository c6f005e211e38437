"""Two towers (policy and value) of a stock SB3 MLP policy, with forward and backward pass by hand.

Both first layers are one matrix, so that they read the observation once. A frame takes part in the columns and outputs of
its rung only (see `ladder`). Autograd, its graph and its copies are not needed: a test holds the gradients to autograd's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from experiments.fast_ppo import kernels
from experiments.fast_ppo.flat import FlatWeights, Link, plain_adam
from experiments.fast_ppo.ladder import Ladder


def fits(policy: Any) -> bool:
    """Whether `Towers` can compute this SB3 policy: a flattened observation, ReLU or tanh towers, plain Adam."""
    if type(policy.mlp_extractor) is not MlpExtractor or type(policy.features_extractor) is not FlattenExtractor:
        return False
    towers = [list(tower) for tower in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)]
    kinds = {type(module) for tower in towers for module in tower[1::2]}
    return all(towers) and kinds in ({nn.ReLU}, {nn.Tanh}) and plain_adam(policy)


class Towers(FlatWeights):
    """The networks of `policy`, computed for up to `rows` frames at once. Not for several threads."""

    def __init__(self, policy: Any, ladder: Ladder, rows: int) -> None:
        self.ladder = ladder
        self.relu = isinstance(policy.mlp_extractor.policy_net[1], nn.ReLU)
        nets = (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
        linear = [[module for module in net if isinstance(module, nn.Linear)] for net in nets]
        hidden = [[layer.out_features for layer in tower] for tower in linear]
        inputs, outputs = len(ladder.columns), len(ladder.actions)
        self.split = hidden[0][0]
        shapes = [(self.split + hidden[1][0], inputs)]
        for widths, last in zip(hidden, (outputs, 1), strict=True):
            shapes += list(zip([*widths[1:], last], widths, strict=True))
        super().__init__(policy, shapes)
        self.shared, self.towers = self.layers[0], (self.layers[1 : len(hidden[0]) + 1], self.layers[len(hidden[0]) + 1 :])
        for part, modules in zip((slice(0, self.split), slice(self.split, None)), linear, strict=True):
            self.links.append(Link(modules[0].weight, self.shared.weight[part], columns=ladder.columns))
            self.links.append(Link(modules[0].bias, self.shared.bias[part]))
        for tower, modules, head in zip(self.towers, linear, (policy.action_net, policy.value_net), strict=True):
            for layer, module in zip(tower, [*modules[1:], head], strict=True):
                chosen = ladder.actions if module is policy.action_net else None
                self.links += [Link(module.weight, layer.weight, chosen), Link(module.bias, layer.bias, chosen)]
        self.rows = rows
        self.logits, self.values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self.d_logits, self.d_values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self._x = torch.zeros(rows, inputs)
        self._h1, self._d1 = torch.zeros(rows, shapes[0][0]), torch.zeros(rows, shapes[0][0])
        self._h, self._d = ([[torch.zeros(rows, w) for w in widths[1:]] for widths in hidden] for _ in range(2))

    def load(self, flat: np.ndarray, offsets: np.ndarray, frames: np.ndarray, ends: np.ndarray) -> None:
        """Takes the stored `frames` (b,), sorted by rung, as input of the next passes; rung r ends at `ends[r]`."""
        kernels.gather(flat, offsets, frames, ends, self.ladder.widths, self._x.numpy())
        spans = zip(
            (0, *ends.tolist()[:-1]), ends.tolist(), self.ladder.widths.tolist(), self.ladder.heights.tolist(), strict=True
        )
        self._n, self._rungs = len(frames), [span for span in spans if span[0] < span[1]]

    def multiplications(self) -> int:
        """Multiplications of one forward and backward pass over the loaded frames; what a rung leaves out is not counted."""
        heads = [(self._n, self.towers[1][-1].weight.numel())]
        heads += [(end - start, height * self.towers[0][-1].weight.shape[1]) for start, end, _, height in self._rungs]
        hidden = [(self._n, layer.weight.numel()) for tower in self.towers for layer in tower[:-1]]
        first = [(end - start, width * len(self.shared.bias)) for start, end, width, _ in self._rungs]
        return 3 * sum(rows * size for rows, size in heads + hidden) + 2 * sum(rows * size for rows, size in first)

    def _activate(self, h: Tensor) -> Tensor:
        return h.relu_() if self.relu else h.tanh_()

    def _slopes(self, d: Tensor, h: Tensor) -> None:
        """d *= the activation's slope where it gave h."""
        if self.relu:
            torch.ops.aten.threshold_backward.grad_input(d, h, 0.0, grad_input=d)
        else:
            torch.ops.aten.tanh_backward.grad_input(d, h, grad_input=d)

    @torch.no_grad()
    def forward(self, policy: bool = True, value: bool = True) -> None:
        """From the loaded frames to `logits` and `values`, row by row."""
        n = self._n
        part = slice(0 if policy else self.split, None if value else self.split)
        weight, bias, h1 = self.shared.weight[part], self.shared.bias[part], self._h1[:, part]
        for start, end, width, _ in self._rungs:
            torch.addmm(bias, self._x[start:end, :width], weight[:, :width].t(), out=h1[start:end])
        self._activate(h1[:n])
        for tower, wanted in enumerate((policy, value)):
            if not wanted:
                continue
            h = self._h1[:n, : self.split] if tower == 0 else self._h1[:n, self.split :]
            for layer, out in zip(self.towers[tower], self._h[tower], strict=False):
                torch.addmm(layer.bias, h, layer.weight.t(), out=out[:n])
                h = self._activate(out[:n])
            head = self.towers[tower][-1]
            if tower == 1:
                torch.addmm(head.bias, h, head.weight.t(), out=self.values[:n])
                continue
            for start, end, _, height in self._rungs:
                to = self.logits[start:end, :height]
                torch.addmm(head.bias[:height], h[start:end], head.weight[:height].t(), out=to)

    @torch.no_grad()
    def backward(self) -> None:
        """From `d_logits` and `d_values` to `gradient`, after a `forward` of both towers."""
        n = self._n
        self.gradient.zero_()
        for tower, (layers, hidden, slopes) in enumerate(zip(self.towers, self._h, self._d, strict=True)):
            first = slice(0, self.split) if tower == 0 else slice(self.split, None)
            below = [self._h1[:n, first], *(h[:n] for h in hidden)]
            deltas = [self._d1[:n, first], *(d[:n] for d in slopes)]
            head, h, d = layers[-1], below[-1], deltas[-1]
            for start, end, _, height in self._rungs if tower == 0 else [(0, n, 0, 1)]:
                above = (self.d_logits if tower == 0 else self.d_values)[start:end, :height]
                head.d_weight[:height].addmm_(above.t(), h[start:end])
                head.d_bias[:height] += above.sum(0)
                torch.mm(above, head.weight[:height], out=d[start:end])
            for i in range(len(hidden) - 1, -1, -1):
                self._slopes(deltas[i + 1], below[i + 1])
                torch.mm(deltas[i + 1].t(), below[i], out=layers[i].d_weight)
                torch.sum(deltas[i + 1], 0, out=layers[i].d_bias)
                torch.mm(deltas[i + 1], layers[i].weight, out=deltas[i])
        self._slopes(self._d1[:n], self._h1[:n])
        torch.sum(self._d1[:n], 0, out=self.shared.d_bias)
        for start, end, width, _ in self._rungs:
            self.shared.d_weight[:, :width].addmm_(self._d1[start:end].t(), self._x[start:end, :width])
