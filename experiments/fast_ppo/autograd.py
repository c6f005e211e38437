"""Any SB3 actor-critic policy behind the interface of `Towers`, through torch's autograd and the policy's own optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.fast_ppo.ladder import Ladder


class Autograd:
    """The networks of `policy` for up to `rows` frames at once; gradients arrive at its logits and values by hand."""

    def __init__(self, policy: Any, ladder: Ladder, rows: int) -> None:
        self.policy, self.ladder = policy, ladder
        outputs = len(ladder.actions)
        self.x = torch.zeros(rows, len(ladder.columns))
        self.logits, self.values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self.d_logits, self.d_values = torch.zeros(rows, outputs), torch.zeros(rows, 1)
        self._outputs: list[Tensor] = []

    def read(self) -> None:
        """The policy is computed itself: nothing to take."""

    def write(self) -> None:
        """The policy is computed itself: nothing to give."""

    def forward(self, ends: np.ndarray, policy: bool = True, value: bool = True) -> None:
        """From the rows of `x` (as many as the last of `ends`) to `logits` and `values`; with both, `backward` may follow."""
        n = int(ends[-1])
        with torch.set_grad_enabled(policy and value):
            features = self.policy.extract_features(self.x[:n])
            actor, critic = (features, features) if self.policy.share_features_extractor else features
            self._outputs = []
            if policy:
                self._outputs.append(self.policy.action_net(self.policy.mlp_extractor.forward_actor(actor)))
                self.logits[:n] = self._outputs[-1].detach()
            if value:
                self._outputs.append(self.policy.value_net(self.policy.mlp_extractor.forward_critic(critic)))
                self.values[:n] = self._outputs[-1].detach()

    def backward(self, ends: np.ndarray) -> None:
        """From `d_logits` and `d_values` to the gradients of the policy's parameters."""
        n = int(ends[-1])
        self.policy.optimizer.zero_grad()
        torch.autograd.backward(self._outputs, [self.d_logits[:n], self.d_values[:n]])

    def step(self, rate: float, max_norm: float) -> float:
        """One step of the policy's optimiser (which holds `rate` already); the gradient's norm before it was scaled down."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm))
        if np.isfinite(norm):
            self.policy.optimizer.step()
        return norm
