"""Rewards in units of the returns' own spread, so that one learning rate and one value weight suit levels of any scale."""

from __future__ import annotations

from typing import Any

import numpy as np


class RewardScale:
    """Divides rewards by the running standard deviation of discounted returns, as stable-baselines3's `VecNormalize` does.

    Means are not taken off: what is better stays better.
    """

    def __init__(self, n: int, gamma: float) -> None:
        self.gamma, self.returns = gamma, np.zeros(n)
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    @property
    def deviation(self) -> float:
        """What rewards are divided by; 1 before there was any."""
        return float(np.sqrt(self.squares / self.count + 1e-8)) if self.count else 1.0

    def take(self, returns: np.ndarray) -> None:
        """Adds returns (k,) to the running moments (Chan, Golub and LeVeque 1983)."""
        if not len(returns):
            return
        mean, total = float(returns.mean()), self.count + len(returns)
        between = (mean - self.mean) ** 2 * self.count * len(returns) / total
        self.squares += float(np.square(returns - mean).sum()) + between
        self.mean += (mean - self.mean) * len(returns) / total
        self.count = total

    def __call__(self, rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """Rewards (n,) of one step of all environments, scaled, float64; `dones` (n,) bool says where an episode ended."""
        self.returns = self.returns * self.gamma + rewards
        self.take(self.returns)
        self.returns[dones] = 0.0
        return rewards / self.deviation

    def memory(self) -> dict[str, Any]:
        """All that the next call depends on, as JSON."""
        return {"returns": self.returns.tolist(), "count": self.count, "mean": self.mean, "squares": self.squares}

    def remember(self, memory: dict[str, Any]) -> None:
        """Puts a `memory` back."""
        self.returns = np.array(memory["returns"])
        self.count, self.mean, self.squares = memory["count"], memory["mean"], memory["squares"]
