"""The kernel against its plain-Python twin: every observation, mask and command of random histories, bit for bit."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pit.layout as L
from pit.handle import Pit
from pit.spec import WorkflowSpec
from tests.twin.driver import conserve, differences, do, drive, look, random_history, random_workflow
from tests.twin.pit_twin import TwinPit

HISTORIES = int(os.environ.get("FQ_TWIN_HISTORIES", "60"))
STEPS = 600


def pair(seed: int) -> tuple[TwinPit, Pit, dict[str, Any]]:
    """(twin, kernel, workflow) of one random system and workflow."""
    rng = random.Random(seed)
    workflow = random_workflow(rng)
    history, exposure = random_history(rng, workflow), rng.choice((*L.EXPOSURES, "full", "full"))
    spec = WorkflowSpec.model_validate(workflow)
    return TwinPit.from_workflow(spec, exposure, history), Pit(spec, exposure=exposure, history=history), workflow


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_kernel_follows_the_rule_book(seed: int) -> None:
    twin, kernel, workflow = pair(seed)
    drive(twin, kernel, seed, STEPS, workflow, conserve)


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
