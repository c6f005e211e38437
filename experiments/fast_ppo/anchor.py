"""A policy that a learner is held to: a weight on the divergence from it, which is steered towards a target."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.fast_ppo.frames import Frames

LARGEST_ERROR = 0.2  # one update changes the coefficient by `rate` times so much at most


class Anchor:
    """The KL controller of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.

    Args:
        net: the network of the policy that is held on to (an interface of `Towers`), which stays as it is.
        frames: how many frames a rollout has.
        coefficient: weight of the mean divergence KL(policy, anchor) in the loss, at the beginning.
        target: of that divergence, nats per decision; None: the coefficient stays.
        rate: how strongly the coefficient follows; K_beta in the paper.
    """

    def __init__(self, net: Any, frames: int, coefficient: float, target: float | None, rate: float) -> None:
        self.net, self.coefficient, self.target, self.rate = net, coefficient, target, rate
        self.logits = np.zeros((frames, net.logits.shape[1]), np.float32)  # of each frame of the rollout
        net.read()

    def look(self, frames: Frames) -> None:
        """Notes the anchor's logits in all stored frames."""
        numbers, block = np.arange(frames.size), self.net.rows
        for start in range(0, frames.size, block):
            order, _ = frames.batch(numbers[start : start + block], self.net)
            self.net.forward(value=False)
            self.logits[order] = self.net.logits.numpy()[: len(order)]

    def adapt(self, kl: float) -> None:
        """After an update whose frames were `kl` away on average: more weight if that is above the target, else less."""
        if self.target is not None:
            error = np.clip(kl / self.target - 1.0, -LARGEST_ERROR, LARGEST_ERROR)
            self.coefficient *= 1.0 + self.rate * float(error)
