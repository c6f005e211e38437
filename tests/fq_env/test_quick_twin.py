"""The engine's level 1 against its twin written for speed: all that a step gives, exactly."""

from __future__ import annotations

import random

import pytest

import pit.layout as L
from fq_env.engine import Engine
from fq_env.level import load_level
from pit.state import PIT
from tests.twin.quick import quick_game

EPISODES = 100


def compare(engine: Engine, rng: random.Random, illegal: float, limit: int | None = None) -> tuple[int, int]:
    """One episode of the engine and its twin in lockstep: (steps, status at the end)."""
    engine.reset()
    game, steps = quick_game(engine, 0, limit), 0
    seen = game.observation, game.mask, 0.0, False, False
    while True:
        where = f"instance {engine.instance_seeds[0]}, step {steps}"
        observation, mask, reward, terminated, truncated = seen
        wrong = [name for (name, _), a, b in zip(L.columns(), observation, engine.obs[0], strict=True) if a != b]
        assert observation.tobytes() == engine.obs[0].tobytes(), f"{where}: {wrong}"
        assert mask == engine.masks[0].tolist(), where
        assert reward == engine.rewards[0], where
        assert (terminated, truncated) == (engine.terminated[0], engine.truncated[0]), where
        if terminated or truncated:
            return steps, int(engine.memory[0, : PIT.itemsize].view(PIT)["status"][0])
        legal = [a for a, allowed in enumerate(mask) if allowed]
        action = rng.randint(-2, L.N_ACTIONS + 2) if rng.random() < illegal else rng.choice(legal)
        seen = game.step(action)
        engine.step_one(action)
        steps += 1


@pytest.mark.parametrize("illegal", (0.0, 0.1))
def test_the_engine_follows_it(illegal: float) -> None:
    """Episodes of different instances, under legal actions alone or with some that are not."""
    for seed in range(EPISODES):
        engine = Engine(1, 1, autoreset="disabled", seed=seed)
        compare(engine, random.Random(seed), illegal)
