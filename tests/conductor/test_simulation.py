"""Histories in virtual time; `FQ_SIMULATIONS=20000` for more, `python -m tests.conductor.simulation --seed N` tells one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError, DiskFull
from conductor.journal import Row, read_journal
from conductor.pit_interface import IDLE, PitInterface
from conductor.run import Run
from pit.spec import WorkflowSpec
from tests.conductor import simulated
from tests.conductor.simulated import SimulatedJournal, Violation, World
from tests.conductor.simulation import first_time, history, worlds_disk

HISTORIES = int(os.environ.get("FQ_SIMULATIONS", "30"))
LONG = {"f": {"standard": {"pool": "p", "seconds": 1e4}}}
COSTLY = {"f": {"standard": {"pool": "p", "seconds": 1.0, "price": 0.9}}}
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


def test_what_goes_round_is_ended() -> None:
    """A model that is loaded ahead and leaves again, for ever, because no call can be paid."""
    assert history(512)[1]["load"] > IDLE


def in_peace(seed: int, folder: Path, patch: pytest.MonkeyPatch, tasks: list[dict[str, Any]], **system: Any) -> list[Row]:
    """The rows of a run in virtual time in which nothing unforeseen happens; a call takes a tenth to twice what is expected of
    it, and at most 1, 10 or 100 s."""
    patch.setattr(simulated, "WILD", 0)
    plain = {
        "pools": {"p": {"places": 1}},
        "functions": {"f": {"standard": {"pool": "p", "seconds": 1.0}}},
        "max_attempts": 99,
    }
    spec = WorkflowSpec.model_validate({"system": {**plain, **system}, "tasks": [{"function": "f", **task} for task in tasks]})
    world = World(seed, folder / str(seed))
    with worlds_disk() as disk:
        disk.append(world)
        first_time(world, [spec], loud=False)
    return list(read_journal(world.folder))


def test_moments_are_kept_to_the_microsecond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clock is a real one, the machine's haste comes on top of these."""
    apart, poor = set(), 0
    for seed in range(12):
        rows = in_peace(seed, tmp_path / "horizon", monkeypatch, [{"id": "t"}], horizon_seconds=5.0, functions=LONG)
        assert rows[-1].data["status"] == "expired" and rows[-1].time == 5_000_000
        rows = in_peace(seed, tmp_path / "money", monkeypatch, [{"id": "s"}, {"id": "t"}], money=1.0, functions=COSTLY)
        if rows[-1].data["status"] == "failed":
            poor += 1
            assert rows[-1].time == max(row.time for row in rows if row.kind == "event"), "it fails as soon as it is stuck"
        rows = in_peace(seed, tmp_path / "time_out", monkeypatch, [{"id": "t", "seconds": 0.4}], time_out=1.0)
        begun = [row.time for row in rows if row.kind == "intent"]
        apart |= {then - now for now, then in pairwise(begun[:2])}
    assert poor > 2
    assert apart == {400_000}, "a call that takes longer than is expected of it is called again at that very moment"


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
    commit = SimulatedJournal.commit

    def drop(journal: Any) -> None:
        try:
            commit(journal)
        except DiskFull:
            journal._pending.clear()

    patch.setattr(SimulatedJournal, "commit", drop)


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
