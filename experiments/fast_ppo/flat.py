"""Weights of an SB3 policy as one flat float32 vector, with the gradient and Adam's two moments beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.fast_ppo import kernels


@dataclass
class Layer:
    """Views of one affine layer in the flat vectors: weight (out, in) and bias (out,), and their gradients."""

    weight: Tensor
    bias: Tensor
    d_weight: Tensor
    d_bias: Tensor


@dataclass
class Link:
    """Where a part of a parameter of the policy lies: `view` is its `parameter[rows]` or `parameter[:, columns]`."""

    parameter: Tensor
    view: Tensor
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def part(self, of: Tensor) -> Tensor:
        """That part of the parameter, or of a tensor of its shape."""
        if self.rows is not None:
            return of[torch.from_numpy(self.rows)]
        return of if self.columns is None else of[:, torch.from_numpy(self.columns)]

    def put(self, into: Tensor, values: Tensor) -> None:
        """Writes `values` into that part of `into`."""
        if self.rows is not None:
            into[torch.from_numpy(self.rows)] = values
        elif self.columns is not None:
            into[:, torch.from_numpy(self.columns)] = values
        else:
            into.copy_(values)


class FlatWeights:
    """Layers of the given shapes (out, in) one behind the other; `links` says what of the policy they are."""

    def __init__(self, policy: Any, shapes: list[tuple[int, int]]) -> None:
        self.policy = policy
        size = sum(n * (m + 1) for n, m in shapes)
        self.weights, self.gradient, self.first, self.second = (torch.zeros(size) for _ in range(4))
        self.layers, position = [], 0
        for n, m in shapes:
            views = []
            for flat in (self.weights, self.gradient):
                views += [flat[position : position + n * m].view(n, m), flat[position + n * m : position + n * (m + 1)]]
            self.layers.append(Layer(*views))
            position += n * (m + 1)
        self.links: list[Link] = []
        self.steps = 0
        self._written: list[tuple[int, int]] = []

    def _versions(self) -> list[tuple[int, int]]:
        """What changes when somebody writes into the policy or its optimiser: torch counts the writes of each tensor."""
        state = self.policy.optimizer.state
        tensors = [*self.policy.parameters(), *(t for kept in state.values() for t in kept.values())]
        return [(id(t), t._version) for t in tensors]

    def same(self, view: Tensor, flat: Tensor) -> Tensor:
        """The view of another flat vector that lies where `view` lies in the weights."""
        return flat.as_strided(view.size(), view.stride(), view.storage_offset())

    @torch.no_grad()
    def read(self) -> None:
        """Takes weights and Adam's state from the policy, if somebody has changed them since the last `write`."""
        if self._written == self._versions():
            return
        state = self.policy.optimizer.state
        for link in self.links:
            kept = state.get(link.parameter, {})
            self.steps = int(kept.get("step", 0))
            link.view.copy_(link.part(link.parameter))
            for flat, name in ((self.first, "exp_avg"), (self.second, "exp_avg_sq")):
                target = self.same(link.view, flat)
                target.copy_(link.part(kept[name])) if name in kept else target.zero_()

    @torch.no_grad()
    def write(self) -> None:
        """Gives weights and Adam's state to the policy; what has no link stays as it is, as zero gradients would leave it."""
        state = self.policy.optimizer.state
        for link in self.links:
            parameter, kept = link.parameter, state[link.parameter]
            if not kept:
                kept.update(step=torch.tensor(0.0), **{m: torch.zeros_like(parameter) for m in ("exp_avg", "exp_avg_sq")})
            kept["step"].fill_(self.steps)
            link.put(parameter, link.view)
            link.put(kept["exp_avg"], self.same(link.view, self.first))
            link.put(kept["exp_avg_sq"], self.same(link.view, self.second))
        self._written = self._versions()

    def step(self, rate: float, max_norm: float) -> float:
        """One step of Adam on the gradient, scaled down to `max_norm`, if its norm is finite; that norm."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if not np.isfinite(norm):
            return norm
        self.steps += 1
        group = self.policy.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        kernels.adam(
            self.weights.numpy(), self.gradient.numpy(), self.first.numpy(), self.second.numpy(),
            min(1.0, max_norm / (norm + 1e-6)), rate, beta1, beta2, group["eps"], self.steps,
        )  # fmt: skip
        return norm


def plain_adam(policy: Any) -> bool:
    """Whether the policy's optimiser is Adam as `FlatWeights.step` takes it."""
    group = policy.optimizer.param_groups[0]
    return type(policy.optimizer) is torch.optim.Adam and not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
