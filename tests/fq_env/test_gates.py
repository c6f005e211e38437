"""Gates: calls of a variant fail while the infrastructure is not in the state that the gate asks for, and nobody says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.level import Level, load_level
from fq_env.oracle import Search, carry_out
from fq_env.players import PLAYERS, lookahead, play
from fq_env.state import DUE
from pit.layout import ERR_PRECONDITION, LITE, LOADED, N_VERBS, OK, SOLVED, STANDARD, WAIT
from tests.fq_env.workflow_levels import level_of

ROOM = {"verb": "standard", "pool": "bench", "free": 1}
WARM = {"verb": "lite", "model": "saw", "after": 0.5}


def level_with(*gates: dict[str, Any], **draw: Any) -> Level:
    """Four tasks of one function: standard on a bench of three places with a model, lite in a yard of two."""
    system = {
        "verbs": ["lite", "standard"], "warning_weight": 0.1, "models": {"saw": {"size": 1, "load_seconds": 2.0}},
        "pools": {"bench": {"places": 3}, "yard": {"places": 2}},
        "functions": {
            "carve": {
                "standard": {"pool": "bench", "seconds": 10.0, "price": 1.0}, "lite": {"pool": "yard", "seconds": 8.0},
            },
            "haul": {"standard": {"pool": "yard", "seconds": 6.0}},
            "saw_up": {"standard": {"pool": "bench", "seconds": 4.0, "model": "saw"}},
        },
    }  # fmt: skip
    tasks = [{"id": str(i), "function": "carve"} for i in range(4)] + [{"id": f, "function": f} for f in ("saw_up", "haul")]
    return level_of({"given": {"tasks": tasks}}, system=system, gates=list(gates), draw=draw)


def started(level: Level, actions: list[tuple[str, int]]) -> tuple[Engine, list[tuple[float, int, int]]]:
    """The engine after these calls (function, variant) have been started, and (when, kind, error) of what comes, in order."""
    engine = Engine(level, 1, split="train", autoreset="disabled")
    engine.reset(instances=[0])
    for function, verb in actions:
        engine.step(np.array([slot_of(engine, function) * N_VERBS + verb]))
    return engine, to_come(engine)


def slot_of(engine: Engine, function: str) -> int:
    slots = engine.pit_view(0)["slots"]
    return next(s["slot"] for s in slots if s["function"] == function)


def to_come(engine: Engine) -> list[tuple[float, int, int]]:
    rows = engine.block.rows(engine.memory[0], "due_at", DUE, int(engine._worlds["n_due"][0]))
    return [(d["when"] / 1e6, int(d["event"]["kind"]), int(d["event"]["error"])) for d in rows[::-1]]


def test_a_call_that_finds_its_gate_closed_fails_before_its_time() -> None:
    """The third of three calls leaves no place of the bench: a share of its duration later it has failed."""
    carve = ("carve", STANDARD)
    engine, coming = started(level_with(ROOM), [carve, carve])
    assert [error for _, _, error in coming] == [OK, OK]
    engine, coming = started(level_with(ROOM), [carve, carve, carve])
    assert [(when, error) for when, _, error in coming] == [(3.0, ERR_PRECONDITION), (10.0, OK), (10.0, OK)]
    engine.step(np.array([WAIT]))
    view = engine.pit_view(0)
    assert view["now"] == 3.0 and view["warnings"] == 1 and view["spent"] == 3.0 and view["tasks"][2]["attempts"] == 1
    assert engine._worlds["gated_calls"][0] == 1 and view["tasks"][2]["state"] == "ready"


def test_a_gate_asks_for_a_loaded_model() -> None:
    """Closed before the first load and while it lasts; open from then on, whether the copy works or waits."""
    lite = ("carve", LITE)
    _, coming = started(level_with(WARM), [("saw_up", STANDARD), lite])
    assert [(when, error) for when, kind, error in coming if kind != LOADED] == [(4.0, ERR_PRECONDITION)]
    engine, _ = started(level_with(WARM), [("saw_up", STANDARD)])
    for later in ("active", "warm"):
        engine.step(np.array([WAIT]))
        assert engine.pit_view(0)["pools"][0]["copies"][0]["state"] == later
        before = len(to_come(engine))
        engine.step(np.array([slot_of(engine, "carve") * N_VERBS + LITE]))
        assert {error for _, _, error in to_come(engine)} == {OK} and len(to_come(engine)) == before + 1


def test_a_gate_guards_its_variant_in_its_pool_alone() -> None:
    calls, lite = [("carve", STANDARD)] * 3 + [("carve", LITE)], ROOM | {"verb": "lite"}
    for gate in (ROOM | {"at": "bench"}, lite, lite | {"at": "yard"}):
        engine, _ = started(level_with(gate), calls)
        assert engine._worlds["gated_calls"][0] == 1, gate
    engine, _ = started(level_with(lite | {"pool": "yard"}), calls)
    assert engine._worlds["gated_calls"][0] == 0
    engine, coming = started(level_with(ROOM | {"at": "yard"}), [*calls[:3], ("haul", STANDARD)])
    assert [(when, error) for when, _, error in coming[:2]] == [(1.8, ERR_PRECONDITION), (10.0, OK)]


def test_nothing_shows_a_gate_until_a_call_meets_it() -> None:
    """Observations, masks and potentials are those of the level without it up to the first closed gate."""
    pair = [Engine(level, 1, split="train", autoreset="disabled") for level in (level_with(ROOM), level_with())]
    for engine in pair:
        engine.reset(instances=[0])
    for _ in range(3):
        assert pair[0].obs.tobytes() == pair[1].obs.tobytes() and pair[0].masks.tobytes() == pair[1].masks.tobytes()
        action = np.array([slot_of(pair[0], "carve") * N_VERBS + STANDARD])
        for engine in pair:
            engine.step(action)
        assert pair[0].rewards[0] == pair[1].rewards[0]
    assert pair[0].obs.tobytes() == pair[1].obs.tobytes() and pair[0].masks.tobytes() == pair[1].masks.tobytes()


def test_another_future_keeps_a_call_at_its_closed_gate() -> None:
    """Without noise its end cannot move; with noise it still fails, after its share of another duration."""
    for cv in (0.0, 0.5):
        engine, _ = started(level_with(ROOM, noise_cv=[cv, cv]), [("carve", STANDARD)] * 3)
        fork = Engine(engine.unique[0], 1, autoreset="disabled")
        ends = set()
        for future in range(20):
            fork.fork(engine, np.array([0]), np.array([future]))
            (failed,) = [when for when, _, error in to_come(fork) if error == ERR_PRECONDITION]
            ends.add(failed)
            assert 0.5 < failed < 12.0
        assert ends == {3.0} if cv == 0.0 else len(ends) == 20 and 2.0 < np.mean(list(ends)) < 4.0


def test_lookahead_stays_clear_of_closed_gates() -> None:
    base = PLAYERS["critical_path"]
    here, ahead = (play(16, player, split="validation", n=12) for player in (base, lookahead(base, 4)))
    assert ahead["gated_calls"].sum() < 0.6 * here["gated_calls"].sum()
    assert (ahead["total"] - here["total"]).mean() > 0.02


def test_the_proven_optimum_knows_the_gate() -> None:
    """Two hands, of which standard calls may use one at a time: the plan is carried out without a closed gate."""
    level = load_level(5)
    gate = {"verb": "standard", "pool": "hands", "free": 1}
    guarded = Level.model_validate(level.model_dump() | {"gates": [gate]})
    totals = []
    for chosen in (level, guarded):
        engine = Engine(chosen, 1, autoreset="disabled")
        engine.reset(split="train", instances=[3])
        bound, path = Search(engine, chosen).best()
        carry_out(engine, path)
        assert engine.episodes["status"][0] == SOLVED and engine.episodes["gated_calls"][0] == 0
        assert abs(float(engine.episodes["total"][0]) - bound) < 1e-9
        totals.append(bound)
    assert totals[1] < totals[0] - 0.01
    tried = play(guarded, "fifo", split="train", n=8)
    assert tried["gated_calls"].sum() > 0


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ({"verb": "standard"}, "gates.0 must name either a pool"),
        (ROOM | {"model": "saw"}, "gates.0 must name either a pool"),
        ({"verb": "premium", "pool": "bench"}, "gates.0.verb is 'premium', which no function can use; name another"),
        ({"verb": "lite", "at": "bench", "pool": "bench"}, "'lite', which no function can use in pool 'bench'"),
        (ROOM | {"pool": "desk"}, "gates.0 names the pool 'desk'; known are bench, yard"),
        (ROOM | {"free": 3}, "gates.0.free is 3, but of 3 places of 'bench' such a call leaves 2: it would never open"),
        (WARM | {"model": "pen"}, "gates.0 names the model 'pen', which nothing loads; name one of saw"),
        (ROOM | {"after": 0.0}, "greater than 0"),
    ],
)
def test_a_gate_that_guards_nothing_or_never_opens_is_refused(gate: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        level_with(gate)
