"""Environments that change their level and their exposure: from the next reset on, and as if they had never played another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.errors import FQError

LEVELS = (1, 6, 11)
N, STEPS = 6, 400


@dataclass
class Played:
    """One whole episode of environment `i`: the number of its instance in the train stream, and what was seen and done."""

    level: int
    i: int
    episode: int
    seen: list[bytes] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


def mixture(exposure: str = "full") -> Engine:
    engine = Engine([LEVELS[i % len(LEVELS)] for i in range(N)], N, seed=3, exposure=exposure)
    engine.reset()
    return engine


def look(engine: Engine, i: int) -> bytes:
    return engine.obs[i].tobytes() + engine.masks[i].tobytes()


def legal(engine: Engine, rng: np.random.Generator) -> np.ndarray:
    return np.where(engine.masks, rng.random(engine.masks.shape), -1.0).argmax(axis=1)


def changing(engine: Engine) -> Iterator[Played]:
    """Whole episodes under random legal actions, while every seventh step gives all environments another level."""
    rng = np.random.default_rng(0)

    def begun(i: int) -> Played:
        return Played(int(engine.playing[i]), i, int(engine._worlds["instance"][i]))

    running = [begun(i) for i in range(N)]
    for step in range(STEPS):
        actions = legal(engine, rng)
        for i, episode in enumerate(running):
            episode.seen.append(look(engine, i))
            episode.actions.append(int(actions[i]))
        if step % 7 == 0:
            engine.assign(rng.integers(0, len(LEVELS), N))
        engine.step(actions)
        for i in range(N):
            running[i].rewards.append(float(engine.rewards[i]))
            if engine.terminated[i] or engine.truncated[i]:
                assert engine.unique[engine.episodes["level"][i]].number == LEVELS[running[i].level]
                yield running[i]
                running[i] = begun(i)


def test_a_mixture_plays_as_engines_of_one_level_do() -> None:
    engine = mixture()
    assert [level.number for level in engine.unique] == list(LEVELS)
    episodes = list(changing(engine))
    assert {episode.level for episode in episodes} == {0, 1, 2}
    changes = {(a.level, b.level) for a in episodes for b in episodes if (b.i, b.episode) == (a.i, a.episode + 1)}
    assert {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)} <= changes, "each level followed each other one"
    for k, number in enumerate(LEVELS):
        alone = Engine(number, N, seed=3, exposure="full", autoreset="disabled")
        for episode in (e for e in episodes if e.level == k):
            alone._worlds["episode"][episode.i] = episode.episode
            alone.reset([episode.i])
            for seen, action, reward in zip(episode.seen, episode.actions, episode.rewards, strict=True):
                assert look(alone, episode.i) == seen
                actions = np.zeros(N, np.int64)
                actions[episode.i] = action
                alone.step(np.where(np.arange(N) == episode.i, actions, alone.masks.argmax(axis=1)))
                assert alone.rewards[episode.i] == reward


@pytest.mark.parametrize("change", ["level", "exposure"])
def test_a_change_waits_for_the_reset(change: str) -> None:
    engine, other = mixture(), mixture()
    rng = np.random.default_rng(1)
    before = engine.playing
    if change == "level":
        engine.assign((before + 1) % len(LEVELS))
    else:
        engine.expose("hidden")
    running = np.ones(N, bool)
    while running.any():
        actions = legal(engine, rng)
        engine.step(actions)
        other.step(np.where(running, actions, other.masks.argmax(axis=1)))
        np.testing.assert_array_equal(engine.rewards[running], other.rewards[running])
        ended = running & (engine.terminated | engine.truncated)
        running &= ~ended
        np.testing.assert_array_equal(engine.obs[running], other.obs[running])
        np.testing.assert_array_equal(engine.playing[running], before[running])
        for i in np.flatnonzero(ended):
            if change == "level":
                assert engine.playing[i] == (before[i] + 1) % len(LEVELS)
            else:
                assert engine.playing[i] == before[i]
                assert (engine.obs[i] != other.obs[i]).any(), "fewer columns are shown"


@pytest.mark.parametrize("wrong", [[0, 1], [0, 1, 2, 0, 1, 3], [-1, 0, 0, 0, 0, 0], [0.0] * N])
def test_what_cannot_be_assigned_is_refused(wrong: list[float]) -> None:
    with pytest.raises(FQError, match="6 whole numbers between 0 and 2"):
        mixture().assign(np.array(wrong))
    with pytest.raises(FQError, match="choose one of hidden, partial, full"):
        mixture().expose("all")
