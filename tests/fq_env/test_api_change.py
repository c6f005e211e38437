"""API change: calls of a variant are invalid from some moment on, until the world has carried out a configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.level import Level
from fq_env.players import PLAYERS, lookahead, play
from fq_env.recorder import chooser, record_episode
from fq_env.state import DUE, TRUTH
from pit.layout import CONFIG_CHANGED, ERR_INVALID, FINISHED, NEVER, OK, ON, SOLVED, WAIT
from tests.fq_env.workflow_levels import level_of

CHANGE: dict[str, Any] = {
    "api_change": {"bench": 1.0}, "change_onset": [0.0, 0.0], "change_after": 0.1, "config_seconds": 5.0,
}  # fmt: skip


def level_with(tasks: int = 12, heal: bool = True, **draw: Any) -> Level:
    """A chain of calls of ten seconds: standard on a bench, lite, which takes longer, in a yard."""
    variants = {"standard": {"pool": "bench", "seconds": 10.0, "price": 1.0}, "lite": {"pool": "yard", "seconds": 12.0}}
    system = {
        "verbs": ["lite", "standard"], "heal": heal, "pools": {"bench": {"places": 2}, "yard": {"places": 1}},
        "functions": {"carve": variants, "polish": variants},
    }  # fmt: skip
    chain = [
        {"id": str(i), "function": "carve" if i % 3 else "polish", "after": [str(i - 1)] if i else []} for i in range(tasks)
    ]
    return level_of({"given": {"tasks": chain}}, system=system, draw=CHANGE | draw)


def engine_of(level: Level) -> Engine:
    engine = Engine(level, 1, split="train", autoreset="disabled")
    engine.reset(instances=[0])
    return engine


def to_come(engine: Engine) -> list[tuple[float, int, int]]:
    """(when, kind, error) of what comes, in order."""
    rows = engine.block.rows(engine.memory[0], "due_at", DUE, int(engine._worlds["n_due"][0]))
    return [(d["when"] / 1e6, int(d["event"]["kind"]), int(d["event"]["error"])) for d in rows[::-1]]


def changes(engine: Engine) -> np.ndarray:
    """When the variants change, us: rows lite, standard, premium of each function."""
    return engine.block.rows(engine.memory[0], "truth_at", TRUTH, 6)["change"]


def test_a_changed_variant_is_invalid_until_it_is_configured() -> None:
    engine = engine_of(level_with())
    assert changes(engine).tolist() == [NEVER, 0, NEVER] * 2
    standard = engine.masks[0].argmax() + 1
    engine.step(np.array([standard]))
    assert engine.pit_view(0)["now"] == 1.0 and engine._worlds["changed_calls"][0] == 1
    assert engine.pit_view(0)["spent"] == pytest.approx(1.0)
    engine.step(np.array([standard]))  # the second error: configured five seconds after it
    assert to_come(engine) == [(7.0, CONFIG_CHANGED, OK)] and engine.pit_view(0)["now"] == 2.0
    engine.step(np.array([standard]))
    assert (3.0, FINISHED, ERR_INVALID) not in to_come(engine) and engine._worlds["changed_calls"][0] == 3
    while engine.pit_view(0)["now"] < 7.0:
        engine.step(np.array([WAIT]))
    assert engine.pit_view(0)["now"] == 7.0 and changes(engine)[4] > NEVER and changes(engine)[1] == 0
    engine.step(np.array([standard]))
    assert engine.pit_view(0)["now"] == 17.0 and engine._worlds["changed_calls"][0] == 3


def test_without_healing_it_stays_so() -> None:
    """First come, first served, calls the standard variant again and again; with healing it comes to an end."""
    ended = {heal: play(level_with(heal=heal), "fifo", split="train", n=1, variant=1)[0] for heal in (False, True)}
    assert ended[True]["status"] == SOLVED and ended[True]["changed_calls"] < ended[False]["changed_calls"]


def test_levels_draw_who_changes_and_when() -> None:
    engine = Engine(level_with(api_change={"bench": 0.5, "yard": 0.25}, change_onset=[0.2, 0.6]), 400, autoreset="disabled")
    engine.reset(split="train", instances=np.arange(400))  # type: ignore[arg-type]
    rows = np.array([engine.block.rows(memory, "truth_at", TRUTH, 6)["change"] for memory in engine.memory])
    bounds = engine._worlds["lb"][:, None]
    drawn = rows != NEVER
    assert abs(drawn[:, [1, 4]].mean() - 0.5) < 0.06 and abs(drawn[:, [0, 3]].mean() - 0.25) < 0.06
    assert not drawn[:, [2, 5]].any()  # premium does not exist
    shares = (rows / bounds)[drawn]
    assert shares.min() >= 0.199 and shares.max() <= 0.6 and shares.std() > 0.08


def test_lookahead_does_not_know_when_a_variant_will_change() -> None:
    """What it decides is the same whether a change will come or not; a change that has come, it knows."""
    level = level_with(change_onset=[0.3, 0.6], api_change={"bench": 0.6, "yard": 0.3})
    engine, player, differing = engine_of(level), lookahead(PLAYERS["critical_path"], 4), 0
    while engine._hots["status"][0] == ON:
        before = engine.clone(0)
        action = int(engine.advise(player)[0])
        engine.restore(0, before)
        future = changes(engine) > engine._hots["now"][0]
        changes(engine)[future] = np.where(changes(engine)[future] < NEVER, NEVER, engine._hots["now"][0] + 1)
        differing += future.sum()
        assert int(engine.advise(player)[0]) == action
        engine.restore(0, before)
        engine.step(np.array([action]))
    assert differing > 20


def test_a_configured_variant_does_not_change_again_in_any_future() -> None:
    engine = engine_of(level_with(tasks=4, change_onset=[0.0, 5.0]))
    changes(engine)[:] = NEVER + 1
    copies = Engine(level_with(tasks=4, change_onset=[0.0, 5.0]), 64, autoreset="disabled")
    copies.fork(engine, np.zeros(64, np.int64), np.arange(64))
    futures = np.array([copies.block.rows(memory, "truth_at", TRUTH, 6)["change"] for memory in copies.memory])
    assert (futures == NEVER + 1).all()
    changes(engine)[:] = NEVER
    copies.fork(engine, np.zeros(64, np.int64), np.arange(64))
    futures = np.array([copies.block.rows(memory, "truth_at", TRUTH, 6)["change"] for memory in copies.memory])
    assert (futures[:, [1, 4]] < NEVER).all() and (futures[:, [0, 2, 3, 5]] == NEVER).all()


def test_a_recorder_tells_configurations() -> None:
    engine = engine_of(level_with(tasks=6))
    rows = list(record_episode(engine, chooser(PLAYERS["fifo"], 0), player="fifo", by="rule"))
    told = [operation for row in rows for operation in row["operations"] if operation["kind"] == "configure"]
    assert told and all(o["variant"] == "standard" and o["pool"] == "bench" and o["call"] is None for o in told)
