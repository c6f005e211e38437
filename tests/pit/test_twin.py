"""The kernel against its plain-Python twin: every observation, mask and command of random histories, bit for bit."""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pit.layout as L
from pit.handle import Pit
from pit.spec import WorkflowSpec, order_tasks
from tests.twin.conservation import conserve
from tests.twin.driver import (
    MakeWorld,
    World,
    differences,
    do,
    drive,
    look,
    random_history,
    random_stream,
    random_workflow,
    roam,
)
from tests.twin.moods import MoodyWorld, moody_workflow
from tests.twin.pit_twin import TIMERS, TwinPit

HISTORIES = int(os.environ.get("FQ_TWIN_HISTORIES", "60"))
STEPS = 600
RARE = (69, 105, 128, 129, 146, 179, 294, 389, 398)  # histories in which what is rare happens
# What the histories must reach, or the comparison would say nothing about it (`reached` of the twin).
BRANCHES = (
    "alternative released", "alternative released: input of one", "alternative released: running", "back_off", "back_off_long",
    "back_off: at most", "back_off: jitter",
    "begun from a queue", "begun from a queue: not the oldest", "cancel: nothing new since it was queued", "cancel: queued",
    "cancel: running",
    "cancelled while it waited for its load", "denied", "fallback", "falls: all", "falls: any",
    "hard input given up while it ran", "hedge",
    "hedge: an error leaves the other call", "hedge: the first call wins", "hedge: the second call wins",
    "joined an automatic load", "load failed: nobody waits", "loaded: nobody waits", "lost by its driver",
    "needed: fewer than required",
    "partial re-execution", "prewarm: load",
    "priority: finished above 0", "queue", "rebalance: evicted", "rebalance: load", "refused: no money", "refused: no token",
    "skip: blocked", "skip: ready", "soft input given up", "throttled: credit gone",
    "refused: for tenants alone", "refused: for tenants alone, no call in flight",
    "tenants: crowd calls in flight", "tenants: leave", "tenants: want more than all",
    "gang: a claim keeps others out", "gang: begun", "gang: refused by its second pool alone",
    "refresh", "stale inputs: quality lost",
    "reuse", "reuse: of the latest of several", "reuse: of what was reused", 
    "reuse: refused to a queued task", "reuse: refused, all are stale", "reuse: solves the run",
    "reuse: where it had run before", "slots: an echo has its own",
    "run again: a fetched task", "run again: it is blocked", "run again: several use it",
    *(f"run again: successor is {state}" for state in L.TASK_STATES),
    *(f"timer: {name}" for name in TIMERS),
)  # fmt: skip
# ... and those in which workflows follow one another and outputs lie in tiers, or in which health matters.
RARE_STREAMS = (24, 28, 40, 41, 43, 47, 65, 72, 132, 165)
STREAM_BRANCHES = (
    "defer", "defer: a second one", "defer: over", "stream: a workflow arrives", "stream: a workflow ends",
    "stream: a call goes on after the end", "stream: a call fails after the end", "stream: closed with none left",
    "stream: given up at the end, blocked", "stream: given up at the end, ready",
    "reuse: refused, it is gone", "run again: it was gone", "store: cold is fuller than it may be", "store: cold to gone",
    "store: fetched from cold", "store: fetched from warm", "store: hot to cold", "store: hot to warm", "store: warm to cold",
    *(f"store: stored as {tier}" for tier in L.TIERS[:3]),
)  # fmt: skip
MOODY = (12, 13, 16, 18, 19, 24, 29, 30, 48, 101, 117, 133)
MOODY_BRANCHES = (
    "a rise of failures passes", "a suspicion freezes calm", "adaptation drifts", "adapted", "adapted back", "an action ends",
    "an ok ends api_change", "api_change", "changed again while it is mended", "configured unasked", "degradation",
    "degradation, a pool", "failing", "failing no more", "in trouble for too long to resonate",
    "no adaptation in a slow pool", "output changed, known already", "recovery", "recovery, a pool", "resonance, a pool",
    "slow", "slow no more",
)  # fmt: skip


def pair(seed: int) -> tuple[TwinPit, Pit, dict[str, Any]]:
    """(twin, kernel, workflow) of one random system and workflow."""
    rng = random.Random(seed)
    workflow = random_workflow(rng)
    history, exposure = random_history(rng, workflow), rng.choice((*L.EXPOSURES, "full", "full"))
    spec = WorkflowSpec.model_validate(workflow)
    return TwinPit.from_workflow(spec, exposure, history), Pit(spec, exposure=exposure, history=history), workflow


def moody_pair(seed: int) -> tuple[TwinPit, Pit, dict[str, Any]]:
    """(twin, kernel, workflow) for a history in which health matters."""
    rng = random.Random(seed)
    workflow = moody_workflow(rng)
    history, exposure = random_history(rng, workflow), rng.choice(("partial", "full", "full"))
    spec = WorkflowSpec.model_validate(workflow)
    return TwinPit.from_workflow(spec, exposure, history), Pit(spec, exposure=exposure, history=history), workflow


def stream_pair(seed: int) -> tuple[TwinPit, Pit, dict[str, Any], MakeWorld]:
    """(twin, kernel, first workflow, world) of one random system and stream."""
    rng = random.Random(seed)
    workflow = random_workflow(rng)
    then = random_stream(rng, workflow)
    history, exposure = random_history(rng, workflow), rng.choice((*L.EXPOSURES, "full", "full"))
    spec, *others = (WorkflowSpec.model_validate(w) for w in (workflow, *then))
    twin = TwinPit.from_workflow(spec, exposure, history, others)
    return twin, Pit(spec, exposure=exposure, history=history, then=others), workflow, partial(World, more=len(then))


@pytest.mark.parametrize("seed", (*range(HISTORIES // 2), *(seed for seed in RARE_STREAMS if seed >= HISTORIES // 2)))
def test_the_kernel_follows_the_rule_book_in_streams(seed: int) -> None:
    twin, kernel, workflow, world = stream_pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve, world)
    for i, task in enumerate(twin.tasks):
        if task["state"] == L.DONE:
            assert [tuple(x)[1:] for x in kernel.lineage(i)] == twin.lineage(i)


@pytest.mark.parametrize("seed", (*range(HISTORIES // 3), *(seed for seed in MOODY if seed >= HISTORIES // 3)))
def test_the_kernel_follows_the_rule_book_of_health(seed: int) -> None:
    twin, kernel, workflow = moody_pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve, MoodyWorld)


@pytest.mark.parametrize("seed", (*range(HISTORIES), *(seed for seed in RARE if seed >= HISTORIES)))
def test_the_kernel_follows_the_rule_book(seed: int) -> None:
    twin, kernel, workflow = pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve)


@pytest.mark.parametrize("end", ("cancel", "ok", "error", "lost"))
def test_a_call_goes_on_after_the_end_of_its_workflow(end: str) -> None:
    """An optional task runs, and has overrun, when the last required one of its workflow is done."""
    system: dict[str, Any] = {
        "verbs": ["standard", "cancel"], "pools": {"p": {"places": 3}}, "max_attempts": 5,
        "functions": {f: {"standard": {"pool": "p", "seconds": s}} for f, s in (("a", 1.0), ("b", 2.0))},
    }  # fmt: skip
    first: list[dict[str, Any]] = [
        {"id": "must", "function": "a"},
        {"id": "may", "function": "b", "optional": True, "after": ["must"]},
        {"id": "end", "function": "a", "after": ["must"]},
        {"id": "later", "function": "a", "optional": True, "soft": ["may"]},
    ]
    specs = [WorkflowSpec.model_validate({"system": system, "tasks": tasks}) for tasks in (first, first[:1])]
    twin, kernel = TwinPit.from_workflow(specs[0], then=specs[1:]), Pit(specs[0], then=specs[1:])
    names = [t.id for t in order_tasks(specs[0]).tasks]
    at = {name: i for i, name in enumerate(names)}

    def both(operation: tuple[str, Any]) -> None:
        do(twin, operation), do(kernel, operation)
        assert not differences(look(twin), look(kernel)), operation

    def begin(name: str) -> None:
        both(("act", next(s for s, group in enumerate(twin.slots()[0]) if group[0] == at[name]) * L.N_VERBS + L.STANDARD))

    both(("apply", (L.ARRIVE, 0, 0, 0, -1.0, 0, 0)))
    begin("must")
    both(("advance", 1_000_000))
    both(("apply", (L.FINISHED, 0, 0, 1_000_000, -1.0, 0, 0)))
    begin("may")
    begin("end")
    both(("advance", 8_000_000))
    both(("apply", (L.FINISHED, 2, 0, 7_000_000, -1.0, 0, 0)))
    states = [twin.tasks[at[name]]["state"] for name in ("end", "may", "later")]
    assert states == [L.DONE, L.RUNNING, L.GIVEN_UP] and twin.status == L.ON
    if end == "cancel":
        assert twin.mask()[L.CANCEL]
        both(("act", L.CANCEL))
    else:
        both(("apply", (L.FINISHED, 1, {"ok": L.OK, "error": L.ERR_ERROR, "lost": L.ERR_LOST}[end], 7_000_000, -1.0, 0, 0)))
    assert twin.tasks[at["may"]]["state"] == (L.DONE if end == "ok" else L.GIVEN_UP)
    assert twin.tasks[at["must"]]["state"] == L.DONE
    both(("apply", (L.ARRIVE, 1, 0, 0, -1.0, 0, 0)))
    both(("act", L.STANDARD))
    both(("apply", (L.FINISHED, 3, 0, 1_000_000, -1.0, 0, 0)))
    both(("apply", (L.STREAM_CLOSED, 0, 0, 0, -1.0, 0, 0)))
    assert twin.status == L.SOLVED


def test_the_histories_reach_every_rule() -> None:
    reached: Counter[str] = Counter()
    for seed in (*range(60), *RARE):
        rng = random.Random(seed)
        workflow = random_workflow(rng)
        twin = TwinPit.from_workflow(WorkflowSpec.model_validate(workflow), history=random_history(rng, workflow))
        roam(twin, seed, STEPS, workflow)
        reached += twin.reached
    assert not [name for name in BRANCHES if reached[name] == 0]
    asked = {*BRANCHES, *STREAM_BRANCHES, *(f"health: {name}" for name in MOODY_BRANCHES)}
    assert not set(reached) - asked  # what is counted is also asked for


def test_the_streams_reach_every_rule() -> None:
    reached: Counter[str] = Counter()
    for seed in RARE_STREAMS:
        twin, _, workflow, world = stream_pair(seed)
        roam(twin, seed, STEPS, workflow, world)
        reached += twin.reached
    assert not [name for name in STREAM_BRANCHES if reached[name] == 0]


def test_the_moody_histories_reach_every_rule_of_health() -> None:
    reached: Counter[str] = Counter()
    for seed in MOODY:
        twin, _, workflow = moody_pair(seed)
        roam(twin, seed, STEPS, workflow, MoodyWorld)
        reached += twin.reached
    assert not [name for name in MOODY_BRANCHES if reached[f"health: {name}"] == 0]


@settings(max_examples=HISTORIES // 3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(min_value=HISTORIES, max_value=2**40))
def test_it_follows_it_from_any_seed(seed: int) -> None:
    twin, kernel, workflow = pair(seed)
    drive(twin, kernel, seed, STEPS, workflow)


@pytest.mark.parametrize("seed", range(max(4, HISTORIES // 6)))
def test_two_advances_equal_one(seed: int) -> None:
    twin, kernel, workflow = pair(seed)
    operations = drive(twin, kernel, seed, STEPS, workflow)
    rng = random.Random(seed)
    for _ in range(5):
        part = operations[: rng.randint(0, len(operations))]
        once, twice = pair(seed), pair(seed)
        for pit in (*once[:2], *twice[:2]):
            for operation in part:
                do(pit, operation)
                pit.commands()
        until = twin.now if not part else once[0].now + rng.choice((0, 1, 500_000, 20_000_000))
        between = rng.randint(min(once[0].now, until), until)
        for k in (0, 1):
            a, b = once[k], twice[k]
            do(a, ("advance", until))
            do(b, ("advance", between))
            do(b, ("advance", until))
            assert not differences(look(a), look(b))
        assert once[0].state() == twice[0].state()
        assert once[1].state_hash() == twice[1].state_hash()
