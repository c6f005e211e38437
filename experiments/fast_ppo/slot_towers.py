"""The `slots` network with forward and backward pass by hand: only slots in use are computed, without a single index.

Frames come sorted by their number of slots in use, and their members stand one behind the other: pooling is a loop over
neighbours, and what a frame's context adds to its members is read once. Formulas: `experiments.networks`, by its names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.fast_ppo import slot_kernels
from experiments.fast_ppo.flat import FlatWeights, Layer, Link, plain_adam
from experiments.fast_ppo.ladder import Ladder
from experiments.networks import SlotsExtractor
from pit.layout import N_SLOT_FEATURES, N_SLOTS, N_VERBS, POOL_OFFSET, WAIT


def fits(policy: Any) -> bool:
    """Whether `SlotTowers` can compute this SB3 policy: the `slots` network with ReLU and plain Adam."""
    extractor = policy.mlp_extractor
    return type(extractor) is SlotsExtractor and type(extractor.actor.activation) is nn.ReLU and plain_adam(policy)


class SlotTowers(FlatWeights):
    """The networks of `policy`, computed for up to `rows` frames at once. Not for several threads.

    Per tower (0 policy, 1 value) `e` are encoded slots, `s` summaries. What reads the same input is one matrix: the first
    layers of both towers at the slots' features, and all that reads the context.
    """

    def __init__(self, policy: Any, ladder: Ladder, rows: int) -> None:
        self.ladder, self.rows = ladder, rows
        actor, critic, head = policy.mlp_extractor.actor, policy.mlp_extractor.critic, policy.action_net
        e, s = self.e, self.s = actor.encoder.out_features, actor.summary.out_features
        c, g = int(ladder.widths[0]), int(ladder.heights[0])
        d, v = int(ladder.widths[1]) - c, int(ladder.heights[1]) - g
        wide = e + s  # of one tower's share of the context layer
        super().__init__(
            policy, [(2 * e, d), (2 * wide, c), (e, e), (e, e), (s, 2 * e), (s, 2 * e), (e, e), (e + g, s), (v, e), (1, s)]
        )
        self.slot, self.context, *pairs, self.own, self.shared, self.verbs, self.value = self.layers
        self.encoder, self.pooled = pairs[:2], pairs[2:]
        self._link(actor, critic, head, policy.value_net)
        m = rows * N_SLOTS
        self.logits, self.values = torch.zeros(rows, g + N_SLOTS * v), torch.zeros(rows, 1)
        self.d_logits, self.d_values = torch.zeros_like(self.logits), torch.zeros(rows, 1)
        self._x, self._g = torch.zeros(m, d), torch.zeros(rows, c)
        self._counts, self._which = np.zeros(rows, np.int64), [np.zeros((rows, e), np.int32) for _ in range(2)]
        self._h, self._dh = torch.zeros(m, 2 * e), torch.zeros(m, 2 * e)
        self._c, self._dc = torch.zeros(rows, 2 * wide), torch.zeros(rows, 2 * wide)
        self._e, self._de = ([torch.zeros(m, e) for _ in range(2)] for _ in range(2))
        self._p, self._s = ([torch.zeros(rows, n) for _ in range(2)] for n in (2 * e, s))
        self._dp, self._ds = torch.zeros(rows, 2 * e), torch.zeros(rows, s)
        self._o, self._do = torch.zeros(rows, e + g), torch.zeros(rows, e + g)
        self._members, self._d_members = torch.zeros(m, e), torch.zeros(m, e)
        self._verbs, self._d_verbs = torch.zeros(m, v), torch.zeros(m, v)

    def _link(self, actor: Any, critic: Any, head: Any, value: Any) -> None:
        ladder, e, wide = self.ladder, self.e, self.e + self.s
        c, g = int(ladder.widths[0]), int(ladder.heights[0])
        in_context = ladder.columns[:c] - POOL_OFFSET
        features = ladder.columns[c : int(ladder.widths[1])] % N_SLOT_FEATURES
        verbs = ladder.actions[g : int(ladder.heights[1])] % N_VERBS
        for t, tower in enumerate((actor, critic)):
            here = slice(t * wide, t * wide + e), slice(t * wide + e, (t + 1) * wide)
            context, encoder, pooled = self.context, self.encoder[t], self.pooled[t]
            self.links += [
                Link(tower.slot.weight, self.slot.weight[t * e : (t + 1) * e], columns=features),
                Link(tower.context.weight, context.weight[here[0]], columns=in_context),
                Link(tower.context.bias, context.bias[here[0]]),
                Link(tower.summary.weight, context.weight[here[1]], columns=2 * e + in_context),
                Link(tower.summary.bias, context.bias[here[1]]),
                Link(tower.summary.weight, pooled.weight, columns=np.arange(2 * e)),
                Link(tower.encoder.weight, encoder.weight),
                Link(tower.encoder.bias, encoder.bias),
            ]
        self.links += [
            Link(actor.own.weight, self.own.weight),
            Link(actor.shared.weight, self.shared.weight[:e]),
            Link(actor.shared.bias, self.shared.bias[:e]),
            Link(head.globals.weight, self.shared.weight[e:], ladder.actions[:g] - WAIT),
            Link(head.globals.bias, self.shared.bias[e:], ladder.actions[:g] - WAIT),
            Link(head.verbs.weight, self.verbs.weight, verbs),
            Link(head.verbs.bias, self.verbs.bias, verbs),
            Link(value.weight, self.value.weight),
            Link(value.bias, self.value.bias),
        ]

    def load(self, flat: np.ndarray, offsets: np.ndarray, frames: np.ndarray, ends: np.ndarray) -> None:
        """Takes the stored `frames` (b,), sorted by rung, as input of the next passes; rung r ends at `ends[r]`."""
        self._n = len(frames)
        self._m = slot_kernels.unpack(flat, offsets, frames, ends, self._g.numpy(), self._x.numpy(), self._counts)

    def multiplications(self) -> int:
        """Multiplications of one forward and backward pass over the loaded frames; empty slots are not counted."""
        of_members = [*self.encoder, self.own, self.verbs]
        of_frames = [*self.pooled, self.shared, self.value]
        deep = sum(self._m * layer.weight.numel() for layer in of_members)
        deep += sum(self._n * layer.weight.numel() for layer in of_frames)
        return 3 * deep + 2 * (self._m * self.slot.weight.numel() + self._n * self.context.weight.numel())

    @torch.no_grad()
    def forward(self, policy: bool = True, value: bool = True) -> None:
        """From the loaded frames to `logits` and `values`, row by row."""
        n, m, e, wide = self._n, self._m, self.e, self.e + self.s
        counts = self._counts[:n]
        first, last = (0 if policy else 1), (2 if value else 1)
        both = slice(first * e, last * e)
        torch.mm(self._x[:m], self.slot.weight[both].t(), out=self._h[:m, both])
        part = slice(first * wide, last * wide)
        torch.addmm(self.context.bias[part], self._g[:n], self.context.weight[part].t(), out=self._c[:n, part])
        for t in range(first, last):
            here = slice(t * e, (t + 1) * e)
            slot_kernels.add_and_clip(self._h.numpy(), t * e, self._c.numpy(), t * wide, e, counts)
            encoder, members = self.encoder[t], self._e[t][:m]
            torch.addmm(encoder.bias, self._h[:m, here], encoder.weight.t(), out=members)
            members.relu_()
            slot_kernels.pool(members.numpy(), counts, self._p[t].numpy(), self._which[t])
            of_context = self._c[:n, t * wide + e : (t + 1) * wide]
            torch.addmm(of_context, self._p[t][:n], self.pooled[t].weight.t(), out=self._s[t][:n])
            self._s[t][:n].relu_()
        if policy:
            torch.addmm(self.shared.bias, self._s[0][:n], self.shared.weight.t(), out=self._o[:n])
            torch.mm(self._e[0][:m], self.own.weight.t(), out=self._members[:m])
            slot_kernels.add_and_clip(self._members.numpy(), 0, self._o.numpy(), 0, e, counts)
            torch.addmm(self.verbs.bias, self._members[:m], self.verbs.weight.t(), out=self._verbs[:m])
            slot_kernels.spread(self._o.numpy(), e, self._verbs.numpy(), counts, self.logits.numpy())
        if value:
            torch.addmm(self.value.bias, self._s[1][:n], self.value.weight.t(), out=self.values[:n])

    @torch.no_grad()
    def backward(self) -> None:
        """From `d_logits` and `d_values` to `gradient`, after a `forward` of both towers."""
        n, m, e, wide = self._n, self._m, self.e, self.e + self.s
        counts = self._counts[:n]
        self.gradient.zero_()
        slot_kernels.collect(self.d_logits.numpy(), counts, self._do.numpy(), e, self._d_verbs.numpy())
        _down(self.verbs, self._d_verbs[:m], self._members[:m], self._d_members[:m])
        slot_kernels.clip_and_sum(self._d_members.numpy(), self._members.numpy(), 0, counts, self._do.numpy(), 0, e)
        torch.mm(self._d_members[:m].t(), self._e[0][:m], out=self.own.d_weight)
        torch.mm(self._d_members[:m], self.own.weight, out=self._de[0][:m])
        for t in range(2):
            above, layer = (self._do[:n], self.shared) if t == 0 else (self.d_values[:n], self.value)
            ds, s, p = self._ds[:n], self._s[t][:n], self._p[t][:n]
            _down(layer, above, s, ds)
            torch.ops.aten.threshold_backward.grad_input(ds, s, 0.0, grad_input=ds)
            self._dc[:n, t * wide + e : (t + 1) * wide] = ds
            torch.mm(ds.t(), p, out=self.pooled[t].d_weight)
            torch.mm(ds, self.pooled[t].weight, out=self._dp[:n])
            de, here = self._de[t][:m], slice(t * e, (t + 1) * e)
            slot_kernels.unpool(self._dp.numpy(), counts, self._which[t], self._e[t].numpy(), t == 0, de.numpy())
            _down(self.encoder[t], de, self._h[:m, here], self._dh[:m, here])
            slot_kernels.clip_and_sum(self._dh.numpy(), self._h.numpy(), t * e, counts, self._dc.numpy(), t * wide, e)
        torch.mm(self._dh[:m].t(), self._x[:m], out=self.slot.d_weight)
        torch.mm(self._dc[:n].t(), self._g[:n], out=self.context.d_weight)
        torch.sum(self._dc[:n], 0, out=self.context.d_bias)


def _down(layer: Layer, above: Tensor, below: Tensor, d_below: Tensor) -> None:
    """The gradients of an affine layer and at its input."""
    torch.mm(above.t(), below, out=layer.d_weight)
    torch.sum(above, 0, out=layer.d_bias)
    torch.mm(above, layer.weight, out=d_below)
