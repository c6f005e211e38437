"""Any SB3 actor-critic policy behind the interface of `Towers`, through torch's autograd and the policy's own optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.fast_ppo import kernels
from experiments.fast_ppo.ladder import Ladder


class Autograd:
    """The networks of `policy` for up to `rows` frames at once; gradients arrive at its logits and values by hand."""

    def __init__(self, policy: Any, ladder: Ladder, rows: int) -> None:
        self.policy, self.ladder, self.rows = policy, ladder, rows
        outputs = len(ladder.actions)
        self._x, self._n = torch.zeros(rows, len(ladder.columns)), 0
        self.logits, self.values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self.d_logits, self.d_values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self._outputs: list[Tensor] = []

    def read(self) -> None:
        """The policy is computed itself: nothing to take."""

    def write(self) -> None:
        """The policy is computed itself: nothing to give."""

    def load(self, flat: np.ndarray, offsets: np.ndarray, frames: np.ndarray, ends: np.ndarray) -> None:
        """Takes the stored `frames` (b,) as input of the next passes."""
        self._n = len(frames)
        kernels.gather(flat, offsets, frames, ends, self.ladder.widths, self._x.numpy())

    def forward(self, policy: bool = True, value: bool = True) -> None:
        """From the loaded frames to `logits` and `values`, row by row; with both, `backward` may follow."""
        n = self._n
        with torch.set_grad_enabled(policy and value):
            features = self.policy.extract_features(self._x[:n])
            actor, critic = (features, features) if self.policy.share_features_extractor else features
            self._outputs = []
            if policy:
                self._outputs.append(self.policy.action_net(self.policy.mlp_extractor.forward_actor(actor)))
                self.logits[:n] = self._outputs[-1].detach()
            if value:
                self._outputs.append(self.policy.value_net(self.policy.mlp_extractor.forward_critic(critic)))
                self.values[:n] = self._outputs[-1].detach()

    def backward(self) -> None:
        """From `d_logits` and `d_values` to the gradients of the policy's parameters."""
        n = self._n
        self.policy.optimizer.zero_grad()
        torch.autograd.backward(self._outputs, [self.d_logits[:n], self.d_values[:n]])

    def step(self, rate: float, max_norm: float) -> float:
        """One step of the policy's optimiser (which holds `rate` already); the gradient's norm before it was scaled down."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm))
        if np.isfinite(norm):
            self.policy.optimizer.step()
        return norm
