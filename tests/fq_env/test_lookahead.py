"""Lookahead: it improves on its rule, leaves the world as it is, and never knows what will be drawn."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.calibrate import fitted_weights
from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.players import PLAYERS, calibrated, lookahead, play
from fq_env.state import DUE
from pit.layout import ON
from pit.rules import weights_of

BASE = PLAYERS["critical_path"]


@pytest.mark.parametrize("level", [11, 12, 14])
def test_it_improves_on_its_rule(level: int) -> None:
    here = play(level, BASE, split="validation", n=24)["total"]
    ahead = play(level, lookahead(BASE, 4), split="validation", n=24)["total"]
    assert (ahead - here).mean() > 0.03


def test_it_is_the_same_every_time() -> None:
    twice = [play(14, lookahead(BASE, 3), split="validation", n=6) for _ in range(2)]
    assert twice[0].tobytes() == twice[1].tobytes()


@pytest.mark.parametrize("level", [11, 14, 16])
def test_it_leaves_the_world_as_it_is_and_does_not_know_what_will_be_drawn(level: int) -> None:
    """With other seeds of everything that is still to come, and other ends of what is under way, it decides the same."""
    engine = Engine(level, 1, split="train", autoreset="disabled")
    player, decided, flying = lookahead(BASE, 3), 0, 0
    for instance in range(3):
        engine.reset(instances=[instance])
        while engine._hots["status"][0] == ON and decided < 60:
            before = engine.clone(0)
            action = int(engine.advise(player)[0])
            after = engine.clone(0)
            engine.restore(0, before)
            stream = engine._worlds["player"][0]
            rest = np.frombuffer(after, np.uint8).copy()
            engine.memory[0], kept = rest, engine.memory[0].copy()
            engine._worlds["player"][0] = stream  # the only thing that may have moved
            clean = engine.memory[0].copy()
            engine.memory[0] = kept
            caches = np.flatnonzero(clean != kept)
            assert (caches < engine.block.pit_size).all()  # slots that were looked up; the world is untouched
            flying += poison(engine)
            assert int(engine.advise(player)[0]) == action
            engine.restore(0, before)
            engine.step(np.array([action]))
            decided += 1
    assert decided > 20 and flying > 20


def poison(engine: Engine) -> int:
    """Gives the world other seeds, and what is under way other ends (it began when it did); how many were changed."""
    world = engine._worlds
    for name in ("durations", "failures", "loads", "stragglers"):
        world[name][0] ^= np.uint64(0x5DEECE66D)
    n = int(world["n_due"][0])
    due = engine.block.rows(engine.memory[0], "due_at", DUE, n)
    for d in due:
        d["when"] += 7_000_000
        d["event"]["elapsed"] += 7_000_000
    return n


@pytest.mark.parametrize("level", [11, 14])
def test_forks_meet_the_same_future_if_it_has_the_same_number(level: int) -> None:
    """Copies of a running environment go on in futures of their own; what they were copied from stays as it is."""
    engine, copies = Engine(level, 2, autoreset="disabled"), Engine(level, 8, autoreset="disabled")
    engine.reset(split="train", instances=[3, 4])
    for _ in range(5):
        engine.step(engine.masks.argmax(axis=1))
    before = engine.memory.copy()
    copies.fork(engine, np.array([0, 0, 0, 1, 1, 1]), np.array([7, 7, 8, 7, 8, 7]))
    np.testing.assert_array_equal(copies.obs[:6], engine.obs[[0, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(copies.masks[:6], engine.masks[[0, 0, 0, 1, 1, 1]])
    steps = 0
    while (copies._hots["status"][:6] == ON).any():
        copies.step(copies.masks.argmax(axis=1))
        steps += 1
    assert steps > 5
    totals = copies.episodes["total"]
    assert totals[0] == totals[1] != totals[2]
    assert totals[3] == totals[5] != totals[4]
    assert (copies.episodes["steps"][6:] == 0).all()  # those that were not forked have ended
    np.testing.assert_array_equal(engine.memory, before)


def test_a_shortlist_holds_what_the_fitted_rule_likes_best() -> None:
    """Only the three actions of the largest linear scores are tried; the others count as the worst of them."""
    whole = load_level(11)
    table = fitted_weights(whole)
    assert table is not None
    rule, seen = calibrated(weights_of(table)), 0
    engines = [Engine(whole.model_copy(update={"lookahead_width": width}), 1, autoreset="disabled") for width in (3, 0)]
    for engine in engines:
        engine.reset(split="train", instances=[0])
    while seen < 20:
        legal, liked = engines[0].masks[0].copy(), int(engines[0].advise(rule)[0])
        actions = engines[0].advise(lookahead(rule, 2))
        engines[1].advise(lookahead(rule, 2))
        means, free = (engine.means[0] for engine in engines)
        if legal.sum() > 4:
            tried = np.flatnonzero(legal & (means == free))
            assert {liked, int(actions[0])} <= set(tried) and actions[0] == np.where(legal, means, -1.0).argmax()
            assert tried.size >= 3 and (means[legal] == means[legal].min()).sum() >= legal.sum() - 2
            seen += 1
        for engine in engines:
            engine.step(actions[:1])
        if engines[0].terminated[0] or engines[0].truncated[0]:
            for engine in engines:
                engine.reset(split="train", instances=[seen])
