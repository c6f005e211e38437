"""Nothing goes on for ever: back-offs have an end and do not end together, and who goes round is not asked any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor import decision_maker
from conductor.audit import explain
from conductor.audit import verify as verify_audit
from conductor.bundle import write_bundle
from conductor.decision_maker import LONG_ROUND, ROUND, ROUND_NOTE, DecisionMaker
from conductor.journal import read_run
from conductor.manifest import RuleSpec
from conductor.orchestrator import begin
from conductor.pit_interface import AGAIN, ANEW, ASTRAY, IDLE, PitInterface, look
from conductor.policy import MlpSpec, make_policy
from conductor.report import verify_run
from conductor.workflow import BACK_OFF_JITTER, BACK_OFF_MOST, load_workflow
from pit.handle import Command, Event
from pit.layout import (
    ARRIVE,
    BACK_OFF,
    CMD_LOAD,
    CMD_START,
    CMD_UNLOAD,
    ERR_ERROR,
    FINISHED,
    LOADED,
    OK,
    REFRESH,
    STANDARD,
    UNLOADED,
)
from pit.spec import WorkflowSpec
from tests.conductor.helpers import preferring, small_workflow

Write = Callable[[dict[str, Any]], Path]
NAMES = {BACK_OFF: "back_off", REFRESH: "refresh"}


def failing(last: str = "f", **system: Any) -> WorkflowSpec:
    """One function in one pool with one place: two calls, and a third, of function `last`, that reads what they gave."""
    return WorkflowSpec.model_validate({
        "system": {
            "pools": {"api": {"places": 1}},
            "functions": {"f": {"standard": {"pool": "api", "seconds": 1.0}}},
            "verbs": ["standard", "back_off", "refresh"],
            "back_off_seconds": 10.0,
            **system,
        },
        "tasks": [
            {"id": "t0", "function": "f"},
            {"id": "t1", "function": "f"},
            {"id": "end", "function": last, "after": ["t0", "t1"]},
        ],
    })  # fmt: skip


def failed(view: PitInterface, times: int) -> None:
    """The first call fails, again and again, a second each."""
    view.event(0, Event(ARRIVE, 0))
    for _ in range(times):
        view.act(view.pit.now, STANDARD)
        view.event(view.pit.now + 1_000_000, Event(FINISHED, view.begun()[-1].call, ERR_ERROR, 1_000_000))


def pause(view: PitInterface) -> float:
    """Seconds of a back-off that is decided now."""
    view.act(view.pit.now, BACK_OFF)
    return (view.pit.next_timer() - view.pit.now) / 1e6


def test_a_back_off_doubles_up_to_its_most() -> None:
    found = []
    for times in (1, 2, 3, 4, 20):
        view = PitInterface(failing(back_off_most_seconds=45.0), "full", "a")
        failed(view, times)
        found.append(pause(view))
    assert found == [10.0, 20.0, 40.0, 45.0, 45.0]


def test_runs_that_failed_together_come_back_apart_and_replay() -> None:
    found = {}
    for run in ("a", "b", "c", "a"):
        view = PitInterface(failing(back_off_jitter=0.5), "full", run)
        failed(view, 2)
        seconds = pause(view)
        assert found.setdefault(run, seconds) == seconds and 10.0 < seconds <= 20.0
    assert len(set(found.values())) == 3
    view = PitInterface(failing(), "full", "a")
    failed(view, 2)
    assert pause(view) == 20.0, "only where it is asked for"


def test_what_runs_is_restrained_unless_its_file_says_otherwise(write_workflow: Write) -> None:
    workflow = small_workflow()
    assert load_workflow(write_workflow(workflow)).spec.system.back_off_jitter is None, "it does not back off"
    workflow["system"]["back_off_seconds"] = 2.0
    system = load_workflow(write_workflow(workflow)).spec.system
    assert (system.back_off_most_seconds, system.back_off_jitter) == (BACK_OFF_MOST, BACK_OFF_JITTER)
    workflow["system"] |= {"back_off_jitter": 0.0, "back_off_most_seconds": 3.0}
    system = load_workflow(write_workflow(workflow)).spec.system
    assert (system.back_off_most_seconds, system.back_off_jitter) == (3.0, 0.0)


# ------------------------------------------------------------------ who decides
def maker_of(strategy: str, action: int) -> DecisionMaker:
    """A policy, or a rule, that wants one thing above all."""
    if strategy == "calibrated":
        table = {NAMES[action]: {"bias": 100.0}, "standard": {"bias": 1.0}, "wait": {"bias": 0.5}}
        return DecisionMaker(strategy, None, RuleSpec(name="calibrated", params={"weights": table}))
    parts = preferring(NAMES[action], "standard", "wait")
    policy = make_policy(MlpSpec.model_validate(parts["network"]), parts["tensors"])
    return DecisionMaker(strategy, policy, RuleSpec(name="smallest_remaining"))


def decisions(view: PitInterface, maker: DecisionMaker, works: Callable[[], int]) -> Iterator[Any]:
    """Decides until nothing is left, or for far too long; calls take a second and end as `works` says."""
    left = 6 * LONG_ROUND
    while view.status() == "running" and left:
        view.advance(view.pit.now)
        if view.pit.decision_due():
            decision = maker.choose(view.pit, *look(view.pit))
            left -= 1
            yield decision
            view.act(view.pit.now, decision.action)
        elif view.calls:
            call = next(iter(view.calls))
            view.event(view.pit.now + 1_000_000, Event(FINISHED, call, works(), 1_000_000, size=1), "x")
        else:
            view.advance(view.pit.next_timer())


@pytest.mark.parametrize("strategy", ["adaptive", "calibrated"])
def test_who_backs_off_for_ever_is_not_asked(strategy: str) -> None:
    view = PitInterface(failing(), "full", "a")
    failed(view, 1)
    found = list(decisions(view, maker_of(strategy, BACK_OFF), lambda: OK))
    assert view.status() == "solved"
    assert [d.action for d in found[:ROUND]] == [BACK_OFF] * ROUND and not any(d.note for d in found[:ROUND])
    assert (found[ROUND].action, found[ROUND].note) == (STANDARD, ROUND_NOTE)
    assert found[ROUND].said == "nothing has come of many decisions; critical_path decides instead"
    assert not any(d.note for d in found[ROUND + 1 :]), "a call has begun, and it is asked again"


@pytest.mark.parametrize("strategy", ["adaptive", "calibrated"])
def test_who_makes_outputs_again_for_ever_is_not_asked(strategy: str) -> None:
    """Of two outputs one is always stale."""
    spec = failing(functions={"f": {"standard": {"pool": "api", "seconds": 1.0}, "fresh_seconds": 0.5}})
    view = PitInterface(spec, "full", "a")
    view.event(0, Event(ARRIVE, 0))
    found = list(decisions(view, maker_of(strategy, REFRESH), lambda: OK))
    assert view.status() == "solved"
    assert LONG_ROUND < len(found) < 4 * LONG_ROUND and found[-1].note == ROUND_NOTE
    assert sum(d.action == REFRESH for d in found) > LONG_ROUND / 4


# ------------------------------------------------------------------ when nothing else can be done
def first_legal(view: PitInterface, most: int) -> None:
    """Whatever is legal is done, and calls end well after a second, until the run is over; `most` times at most. As in a tick
    of the conductor, all decisions that are due are taken before one asks whether it is over."""
    for _ in range(most):
        while view.pit.decision_due():
            view.act(view.pit.now, int(view.pit.mask().nonzero()[0][0]))
        if view.status() != "running":
            return
        if view.calls:
            view.event(view.pit.now + 1_000_000, Event(FINISHED, next(iter(view.calls)), OK, 1_000_000, size=1), "x")
        else:
            view.advance(view.pit.next_timer())
    raise AssertionError("does not end")


def test_a_run_that_can_only_back_off_is_ended() -> None:
    """Its money went into a call that failed, so nothing can begin however often the pool opens again."""
    view = PitInterface(
        failing(money=1.5, functions={"f": {"standard": {"pool": "api", "seconds": 1.0, "price": 1.0}}}), "full", "a"
    )
    view.event(0, Event(ARRIVE, 0))
    view.act(0, STANDARD)
    view.event(1_000_000, Event(FINISHED, view.begun()[-1].call, ERR_ERROR, 1_000_000, price=1_000_000))
    first_legal(view, 4 * IDLE)
    assert view.stuck() == ASTRAY


def test_a_run_that_can_only_make_outputs_again_is_ended() -> None:
    """The last call costs more than there is, and what it would read is soon stale and costs nothing."""
    free, dear = ({"standard": {"pool": "api", "seconds": 1.0, "price": price}} for price in (0.0, 1000.0))
    view = PitInterface(failing("g", money=1.0, functions={"f": {**free, "fresh_seconds": 0.5}, "g": dear}), "full", "a")
    view.event(0, Event(ARRIVE, 0))
    first_legal(view, 8 * AGAIN)
    assert view.stuck() == ANEW and view.pit.summary()["done"] >= 1
    assert len(view.calls) == 1, "one was under way each time that the run was looked at"


# ------------------------------------------------------------------ what loads by itself
def test_a_run_that_only_loads_is_ended() -> None:
    """Its money is spent, its model is kept alive for a moment only, and loaded ahead because tasks want it."""
    view = PitInterface(loading(money=1.5), "full", "a")
    view.event(0, Event(ARRIVE, 0))
    view.act(0, STANDARD)
    loads = 0
    while view.status() == "running":
        loads += sum(command.kind == CMD_LOAD for command in carried_out(view))
        assert loads < 2 * IDLE
    assert view.status() == "failed" and view.stuck() == ASTRAY and loads >= IDLE


def test_loads_beside_something_to_wait_for_are_no_round() -> None:
    """A pool that is closed for an hour opens again."""
    view = PitInterface(loading(back_off_seconds=3600.0), "full", "a")
    view.event(0, Event(ARRIVE, 0))
    view.act(0, STANDARD)
    for command in carried_out(view):
        assert command.kind in (CMD_LOAD, CMD_START)
    carried_out(view)
    (call,) = view.calls
    view.event(view.pit.now + 1, Event(FINISHED, call, ERR_ERROR, 1))
    view.act(view.pit.now, BACK_OFF)
    loads = 0
    while loads < 3 * IDLE:
        loads += sum(command.kind == CMD_LOAD for command in carried_out(view))
    assert view.status() == "running" and view.pit.now < 3600 * 10**6


def loading(**system: Any) -> WorkflowSpec:
    """Calls with a model that leaves memory soon."""
    return WorkflowSpec.model_validate({
        "system": {
            "pools": {"gpu": {"places": 1}},
            "models": {"m": {"size": 1, "load_seconds": 0.1, "keep_alive_seconds": 0.05}},
            "functions": {"f": {"standard": {"pool": "gpu", "model": "m", "seconds": 1.0, "price": 1.0}}},
            "verbs": ["standard", "back_off"],
            "rebalance": True,
            **system,
        },
        "tasks": [{"id": f"t{i}", "function": "f"} for i in range(3)],
    })  # fmt: skip


def carried_out(view: PitInterface) -> list[Command]:
    """Carries out what is asked for; where that is nothing, the clock goes to the next timer or a call ends well."""
    commands = view.commands()
    for command in commands:
        if command.kind == CMD_LOAD:
            view.event(view.pit.now + 100_000, Event(LOADED, command.copy, elapsed=100_000))
        elif command.kind == CMD_UNLOAD:
            view.event(view.pit.now, Event(UNLOADED, command.copy))
    if not commands and view.calls and view.pit.decision_due() is False:
        view.event(view.pit.now + 1_000_000, Event(FINISHED, next(iter(view.calls)), OK, 1_000_000, price=1_000_000), "x")
    elif not commands:
        view.advance(view.pit.next_timer())
    return commands


# ------------------------------------------------------------------ whole runs
def test_a_run_that_goes_round_is_told_audited_and_folded(
    write_workflow: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_maker, "ROUND", 3)
    workflow = small_workflow(plain={"kind": "python", "call": "work:fail_once"})
    workflow["system"] |= {"verbs": ["standard", "back_off"], "back_off_seconds": 0.05}
    rule = {"name": "calibrated", "params": {"weights": {"back_off": {"bias": 9.0}}}}  # it would go on like that
    bundle = write_bundle(tmp_path / "bundle", **preferring("back_off", "standard"), rule=rule)
    told: list[str] = []
    result = begin(
        load_workflow(write_workflow(workflow)),
        tmp_path / "runs",
        bundle=bundle,
        observer=lambda kind, at, text: told.append(text),
    )
    assert result.status == "solved" and result.decisions[ROUND_NOTE] >= 1
    assert "nothing has come of many decisions; critical_path decides instead" in told
    assert verify_run(result.folder).ended and verify_audit(result.folder).made_again["rule"] == result.decisions["rule"]
    notes = [row.data["note"] for row in read_run(result.folder) if row.kind == "action"]
    maker = explain(result.folder, notes.index(ROUND_NOTE) + 1).maker
    assert maker.startswith("the rule critical_path, because nothing has come of many decisions")
