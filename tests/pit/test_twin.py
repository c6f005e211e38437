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
from pit.spec import WorkflowSpec
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
    "begun from a queue", "begun from a queue: not the oldest", "cancel: queued", "cancel: running",
    "cancelled while it waited for its load", "denied", "fallback", "falls: all", "falls: any",
    "hard input given up while it ran", "hedge",
    "hedge: an error leaves the other call", "hedge: the first call wins", "hedge: the second call wins",
    "joined an automatic load", "load failed: nobody waits", "loaded: nobody waits", "needed: fewer than required",
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
STREAM_BRANCHES = (
    "defer", "defer: a second one", "defer: over", "stream: a workflow arrives", "stream: a workflow ends",
    "stream: a call goes on after the end", "stream: a call fails after the end", "stream: a call is cancelled after the end",
    "stream: closed with none left", "stream: given up at the end, blocked", "stream: given up at the end, ready",
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


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_kernel_follows_the_rule_book_in_streams(seed: int) -> None:
    twin, kernel, workflow, world = stream_pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve, world)


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_kernel_follows_the_rule_book_of_health(seed: int) -> None:
    twin, kernel, workflow = moody_pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve, MoodyWorld)


@pytest.mark.parametrize("seed", (*range(HISTORIES), *(seed for seed in RARE if seed >= HISTORIES)))
def test_the_kernel_follows_the_rule_book(seed: int) -> None:
    twin, kernel, workflow = pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve)


def test_the_histories_reach_every_rule() -> None:
    reached: Counter[str] = Counter()
    for seed in (*range(60), *RARE):
        rng = random.Random(seed)
        workflow = random_workflow(rng)
        twin = TwinPit.from_workflow(WorkflowSpec.model_validate(workflow), history=random_history(rng, workflow))
        roam(twin, seed, STEPS, workflow)
        reached += twin.reached
    assert not [name for name in BRANCHES if reached[name] == 0]
    assert not set(reached) - set(BRANCHES) - set(STREAM_BRANCHES)  # what is counted is also asked for


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
