"""Learners of others, unchanged, run on an id and get better: stable-baselines3's PPO and a single-file PPO without masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fq_env  # noqa: F401  (registers the ids)
from tests.experiments.clients import plain_ppo

LEVEL = "FunctionQuest/Level-01-v0"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def improved(returns: np.ndarray) -> bool:
    """Whether the last tenth of episodes is better than the first by more than three standard errors."""
    k = len(returns) // 10
    first, last = returns[:k], returns[-k:]
    error = np.sqrt(first.var() / k + last.var() / k)
    return bool(last.mean() - first.mean() > 3 * error)


def test_stock_stable_baselines3_learns_through_make_vec_env() -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(LEVEL, n_envs=16, seed=0)
    returns: list[float] = []

    def note(local: dict, _: dict) -> bool:
        returns.extend(info["episode"]["r"] for info in local["infos"] if "episode" in info)
        return True

    model = PPO("MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=8, learning_rate=2e-3, gamma=1.0, seed=0, device="cpu")
    model.learn(30_000, callback=note)
    env.close()
    assert improved(np.array(returns))


def test_a_single_file_ppo_without_masks_learns() -> None:
    assert improved(plain_ppo.train(LEVEL, frames=60_000))
