"""Histories in virtual time; `FQ_SIMULATIONS=20000` for more, `python -m tests.conductor.simulation --seed N` tells one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.pit_interface import PitInterface
from conductor.run import Run
from tests.conductor import simulation
from tests.conductor.simulation import Violation, history

HISTORIES = int(os.environ.get("FQ_SIMULATIONS", "30"))
# What the histories must reach, or they would say nothing about it.
REACHED = {
    "crash", "stop", "disk full", "parked", "unparked", "resume", "snapshot", "start", "finished", "failed", "cancel", "load",
    "loaded", "unload", "unloaded", "load_failed", "reuse", "store", "delete", "end",
}  # fmt: skip


def test_histories() -> None:
    told: Counter[str] = Counter()
    for seed in range(HISTORIES):
        try:
            told.update(history(seed)[1])
        except Exception as error:
            raise AssertionError(f"replay it: python -m tests.conductor.simulation --seed {seed}") from error
    assert told.keys() >= REACHED, REACHED - told.keys()


def test_a_seed_replays() -> None:
    for seed in (7, 16):
        assert history(seed) == history(seed)


def no_intent(patch: pytest.MonkeyPatch) -> None:
    """Calls are executed before the commit."""
    step = Run.step

    def early(run: Run, reports: Any, now: int, *more: Any) -> bool:
        ended = step(run, reports, now, *more)
        if not ended:
            run.carry_out(now)
        return ended

    patch.setattr(Run, "step", early)


def forgets(patch: pytest.MonkeyPatch) -> None:
    """After a full disk the rows of that tick are gone."""
    commit = simulation.SimulatedJournal.commit

    def drop(journal: Any) -> None:
        try:
            commit(journal)
        except simulation.DiskFull:
            journal._pending.clear()

    patch.setattr(simulation.SimulatedJournal, "commit", drop)


def twice(patch: pytest.MonkeyPatch) -> None:
    """A call whose worker died is started again as if nothing had been."""
    patch.setattr(Run, "recover", lambda run, at: [run._commands.clear(), run.add("resume", at, {"lost": [], "sandbox": {}})])


def hasty(patch: pytest.MonkeyPatch) -> None:
    """What an action makes due at once waits for the next tick, and a fold does not wait."""
    decide, advance, deciding = Run._decide, PitInterface.advance, [False]

    def remember(run: Run, now: int) -> None:
        deciding[0] = True
        decide(run, now)
        deciding[0] = False

    patch.setattr(Run, "_decide", remember)
    patch.setattr(PitInterface, "advance", lambda view, time: None if deciding[0] else advance(view, time))


@pytest.mark.parametrize("sabotage", [no_intent, forgets, twice, hasty])
def test_a_conductor_that_errs_is_found_out(
    monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    sabotage(monkeypatch)
    with pytest.raises((Violation, ConductorError)):
        for seed in range(200):
            history(seed)
