"""Two towers (policy and value) of a stock SB3 MLP policy, with forward and backward pass by hand on flat float32 vectors.

Both first layers are one matrix, so that they read the observation once. A frame takes part in the columns and outputs of
its rung only (see `ladder`). Autograd, its graph and its copies are not needed: a test holds the gradients to autograd's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.fast_ppo import kernels
from experiments.fast_ppo.ladder import Ladder


@dataclass
class _Layer:
    """Views of one affine layer in the flat vectors: weight (out, in) and bias (out,), and their gradients."""

    weight: Tensor
    bias: Tensor
    d_weight: Tensor
    d_bias: Tensor


def fits(policy: Any) -> bool:
    """Whether `Towers` can compute this SB3 policy: a flattened observation, ReLU or tanh towers, plain Adam."""
    from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

    if type(policy.mlp_extractor) is not MlpExtractor or type(policy.features_extractor) is not FlattenExtractor:
        return False
    towers = [list(tower) for tower in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)]
    kinds = {type(module) for tower in towers for module in tower[1::2]}
    group = policy.optimizer.param_groups[0]
    plain = type(policy.optimizer) is torch.optim.Adam and not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
    return all(towers) and kinds in ({nn.ReLU}, {nn.Tanh}) and plain


class Towers:
    """The networks of `policy`, computed for up to `rows` frames at once. Not for several threads."""

    def __init__(self, policy: Any, ladder: Ladder, rows: int) -> None:
        self.policy, self.ladder = policy, ladder
        self.relu = isinstance(policy.mlp_extractor.policy_net[1], nn.ReLU)
        hidden = [
            [layer.out_features for layer in tower if isinstance(layer, nn.Linear)]
            for tower in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
        ]
        self.split = hidden[0][0]
        inputs, outputs = len(ladder.columns), len(ladder.actions)
        shapes = [(self.split + hidden[1][0], inputs)]
        for widths, last in zip(hidden, (outputs, 1), strict=True):
            shapes += list(zip([*widths[1:], last], widths, strict=True))
        size = sum(n * (m + 1) for n, m in shapes)
        self.weights, self.gradient, self.first, self.second = (torch.zeros(size) for _ in range(4))
        layers, position = [], 0
        for n, m in shapes:
            parts = []
            for flat in (self.weights, self.gradient):
                parts += [flat[position : position + n * m].view(n, m), flat[position + n * m : position + n * (m + 1)]]
            layers.append(_Layer(*parts))
            position += n * (m + 1)
        self.shared, self.towers = layers[0], (layers[1 : len(hidden[0]) + 1], layers[len(hidden[0]) + 1 :])
        self.steps = 0
        self._written: list[tuple[int, int]] = []
        self.x = torch.zeros(rows, inputs)
        self.logits, self.values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self.d_logits, self.d_values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self._h1, self._d1 = torch.zeros(rows, shapes[0][0]), torch.zeros(rows, shapes[0][0])
        self._h, self._d = ([[torch.zeros(rows, w) for w in widths[1:]] for widths in hidden] for _ in range(2))

    # ------------------------------------------------------------------ policy <-> flat vectors
    def _named(self) -> list[tuple[Tensor, Tensor, np.ndarray | None, np.ndarray | None]]:
        """(parameter of the policy, its view in the weights, the rows and columns of it that are computed; None: all)."""
        policy, columns, actions = self.policy, self.ladder.columns, self.ladder.actions
        modules = [
            [layer for layer in tower if isinstance(layer, nn.Linear)] + [head]
            for tower, head in (
                (policy.mlp_extractor.policy_net, policy.action_net),
                (policy.mlp_extractor.value_net, policy.value_net),
            )
        ]
        pairs: list[tuple[Tensor, Tensor, np.ndarray | None, np.ndarray | None]] = []
        bounds = (slice(0, self.split), slice(self.split, None))
        for part, tower, linear in zip(bounds, self.towers, modules, strict=True):
            pairs.append((linear[0].weight, self.shared.weight[part], None, columns))
            pairs.append((linear[0].bias, self.shared.bias[part], None, None))
            for layer, module in zip(tower, linear[1:], strict=True):
                rows = actions if module is policy.action_net else None
                pairs.append((module.weight, layer.weight, rows, None))
                pairs.append((module.bias, layer.bias, rows, None))
        return pairs

    def _same(self, view: Tensor, flat: Tensor) -> Tensor:
        """The view of another flat vector that lies where `view` lies in the weights."""
        return flat.as_strided(view.size(), view.stride(), view.storage_offset())

    @torch.no_grad()
    def read(self) -> None:
        """Takes weights and Adam's state from the policy, if somebody has changed them since the last `write`."""
        if self._written == self._versions():
            return
        state = self.policy.optimizer.state
        for parameter, view, rows, columns in self._named():
            kept = state.get(parameter, {})
            self.steps = int(kept.get("step", 0))
            sources = (parameter, kept.get("exp_avg"), kept.get("exp_avg_sq"))
            for flat, source in zip((self.weights, self.first, self.second), sources, strict=True):
                target = self._same(view, flat)
                if source is None:
                    target.zero_()
                else:
                    target.copy_(_part(source, rows, columns))

    @torch.no_grad()
    def write(self) -> None:
        """Gives weights and Adam's state to the policy; what is dead stays as it is, as zero gradients would leave it."""
        state = self.policy.optimizer.state
        for parameter, view, rows, columns in self._named():
            kept = state[parameter]
            if not kept:
                kept.update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
                )
            kept["step"].fill_(self.steps)
            targets = (parameter, kept["exp_avg"], kept["exp_avg_sq"])
            for flat, target in zip((self.weights, self.first, self.second), targets, strict=True):
                source = self._same(view, flat)
                if rows is not None:
                    target[rows] = source
                elif columns is not None:
                    target[:, columns] = source
                else:
                    target.copy_(source)
        self._written = self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        """What changes when somebody writes into the policy or its optimiser: torch counts the writes of each tensor."""
        optimizer = self.policy.optimizer
        tensors = [*self.policy.parameters(), *(t for kept in optimizer.state.values() for t in kept.values())]
        return [(id(t), t._version) for t in tensors]

    # ------------------------------------------------------------------ passes
    def _rungs(self, ends: np.ndarray) -> list[tuple[int, int, int, int]]:
        """(first row, end, width, height) of the rungs that have rows."""
        starts = (0, *ends.tolist()[:-1])
        rungs = zip(starts, ends.tolist(), self.ladder.widths.tolist(), self.ladder.heights.tolist(), strict=True)
        return [rung for rung in rungs if rung[0] < rung[1]]

    def _activate(self, h: Tensor) -> Tensor:
        return h.relu_() if self.relu else h.tanh_()

    def _slopes(self, d: Tensor, h: Tensor) -> None:
        """d *= the activation's slope where it gave h."""
        if self.relu:
            torch.ops.aten.threshold_backward.grad_input(d, h, 0.0, grad_input=d)
        else:
            torch.ops.aten.tanh_backward.grad_input(d, h, grad_input=d)

    @torch.no_grad()
    def forward(self, ends: np.ndarray, policy: bool = True, value: bool = True) -> None:
        """From the rows of `x`, sorted by rung with these `ends` (r,), to `logits` and `values`."""
        n, rungs = int(ends[-1]), self._rungs(ends)
        part = slice(0 if policy else self.split, None if value else self.split)
        weight, bias, h1 = self.shared.weight[part], self.shared.bias[part], self._h1[:, part]
        for start, end, width, _ in rungs:
            torch.addmm(bias, self.x[start:end, :width], weight[:, :width].t(), out=h1[start:end])
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
            for start, end, _, height in rungs:
                to = self.logits[start:end, :height]
                torch.addmm(head.bias[:height], h[start:end], head.weight[:height].t(), out=to)

    @torch.no_grad()
    def backward(self, ends: np.ndarray) -> None:
        """From `d_logits` and `d_values` to `gradient`, after a `forward` of both towers over the same rows."""
        n, rungs = int(ends[-1]), self._rungs(ends)
        self.gradient.zero_()
        for tower, (layers, hidden, slopes) in enumerate(zip(self.towers, self._h, self._d, strict=True)):
            first = slice(0, self.split) if tower == 0 else slice(self.split, None)
            below = [self._h1[:n, first], *(h[:n] for h in hidden)]
            deltas = [self._d1[:n, first], *(d[:n] for d in slopes)]
            head, h, d = layers[-1], below[-1], deltas[-1]
            for start, end, _, height in rungs if tower == 0 else [(0, n, 0, 1)]:
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
        for start, end, width, _ in rungs:
            self.shared.d_weight[:, :width].addmm_(self._d1[start:end].t(), self.x[start:end, :width])

    def step(self, rate: float, max_norm: float) -> float:
        """One step of Adam on the gradient, scaled down to `max_norm`; the norm before."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if norm != norm or norm == float("inf"):
            return norm
        self.steps += 1
        group = self.policy.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        kernels.adam(
            self.weights.numpy(), self.gradient.numpy(), self.first.numpy(), self.second.numpy(),
            min(1.0, max_norm / (norm + 1e-6)), rate, beta1, beta2, group["eps"], self.steps,
        )  # fmt: skip
        return norm


def _part(source: Tensor, rows: np.ndarray | None, columns: np.ndarray | None) -> Tensor:
    if rows is not None:
        return source[torch.from_numpy(rows)]
    return source if columns is None else source[:, torch.from_numpy(columns)]
