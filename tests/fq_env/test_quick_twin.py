"""The engine's level 1 against its twin written for speed: all that a step gives, exactly."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

import pit.layout as L
from fq_env.engine import Engine
from fq_env.level import load_level
from tests.twin.quick import quick_game

EPISODES = 100
WAYS = ("legal", "some illegal", "stubborn")


def choose(rng: random.Random, mask: list[bool], way: str) -> int:
    """A random legal action; now and then any number at all; or, mostly, the last legal one: what has failed stands there."""
    legal = [action for action, allowed in enumerate(mask) if allowed]
    if way == "some illegal" and rng.random() < 0.1:
        return rng.randint(-2, L.N_ACTIONS + 2)
    return legal[-1] if way == "stubborn" and rng.random() < 0.999 else rng.choice(legal)


def compare(engine: Engine, rng: random.Random, way: str, limit: int | None = None) -> tuple[int, int]:
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
        assert reward == engine.rewards[0], f"{where}: {reward!r}, engine {engine.rewards[0]!r}"
        assert (terminated, truncated) == (engine.terminated[0], engine.truncated[0]), where
        if terminated or truncated:
            return steps, int(engine.block.hot(engine.memory[0])["status"][0])
        action = choose(rng, mask, way)
        seen = game.step(action)
        engine.step_one(action)
        steps += 1


def test_the_engine_follows_it() -> None:
    """Episodes of different seeds, played in every way; they end in every way that there is."""
    ends: Counter[str] = Counter()
    for seed in range(EPISODES):
        engine = Engine(1, 1, autoreset="disabled", seed=seed)
        for way in WAYS:
            _, status = compare(engine, random.Random(seed), way)
            ends[L.STATUSES[status]] += 1
    assert ends.keys() == {"solved", "expired", "running"}, ends


@pytest.mark.parametrize("limit", (1, 2, 5))
def test_it_follows_it_to_the_step_limit(limit: int) -> None:
    for seed in range(10):
        compare(Engine(1, 1, autoreset="disabled", max_episode_steps=limit, seed=seed), random.Random(seed), "legal", limit)


def test_it_plays_nothing_else() -> None:
    level = load_level(1)
    for other in (2, level.model_copy(update={"horizon": 2.0})):
        engine = Engine(other, 1, autoreset="disabled", seed=0)
        engine.reset()
        with pytest.raises(ValueError, match="level 1 alone"):
            quick_game(engine)
    engine = Engine(1, 1, exposure="full", autoreset="disabled", seed=0)
    engine.reset()
    with pytest.raises(ValueError, match="hidden"):
        quick_game(engine)


def test_its_observation_is_live() -> None:
    """As the engine's is: a step writes over it."""
    engine = Engine(1, 1, autoreset="disabled", seed=0)
    engine.reset()
    game = quick_game(engine)
    before = game.observation.copy()
    after = game.step(int(np.flatnonzero(game.mask)[0]))[0]
    assert after is game.observation and not np.array_equal(before, after)
