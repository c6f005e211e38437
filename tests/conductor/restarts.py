"""A conductor that forgets everything after every tick, and knows it again from its journal.

Workers go on, as they would for another process that takes over; the Pit, what is known of calls and outputs, and the writer
of the journal are thrown away and made anew, from the last snapshot. What comes out must be what was thrown away, bit for bit,
and also what comes out of the whole journal without a snapshot.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from conductor.errors import ConductorError
from conductor.journal import Journal
from conductor.orchestrator import Orchestrator, fold_runs
from conductor.pit_interface import Folded, PitInterface
from conductor.run import Run
from conductor.tiers import Outputs

TICK = Orchestrator.tick


def known(view: PitInterface) -> tuple[object, ...]:
    """All that a view knows, without what the Pit can compute anew."""
    return (
        view.pit.state_hash(),
        list(view.calls.values()),
        view.starts,
        view.outputs,
        view.deleted,
        view._holders,
        view._idle,
        view._again,
        view._ever,
        view._failures,
    )


def take_over(run: Run, folded: Folded, journal: Journal) -> None:
    """The run goes on over what was folded, which is compared with what it had."""
    folded.view.advance(run.view.pit.now)  # since its last row timers may have fired that asked for no call
    folded.view.commands()
    assert not folded.view.begun() and known(folded.view) == known(run.view)
    run.view, run._pit, run._journal = folded.view, folded.view.pit, journal
    run._outputs = Outputs(run.folder, folded.view.workflow.system.store)


def opened(path: Path) -> Journal:
    """The journal once more. A worker that another thread is just starting has the old one's lock until it becomes another
    program, in which no real restart would find it."""
    until = time.monotonic() + 60
    while True:
        try:
            return Journal(path.parent, new=False)
        except ConductorError as error:
            if "another conductor is writing" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.005)


def install(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Every orchestrator restarts after every tick from now on; counts restarts and those from a snapshot."""
    counts: Counter[str] = Counter()

    def tick(orchestrator: Orchestrator) -> None:
        TICK(orchestrator)
        path = orchestrator.journal.path
        orchestrator.journal.close()
        orchestrator.journal = opened(path)
        folds, wholes = fold_runs(path), fold_runs(path, whole=True)
        for run in orchestrator.live.values():
            take_over(run, wholes[run.number], orchestrator.journal)
            take_over(run, folds[run.number], orchestrator.journal)
            counts["restarts"] += 1
            counts["from a snapshot"] += (run.folder / "snapshots").exists()

    monkeypatch.setattr(Orchestrator, "tick", tick)
    monkeypatch.setenv("FQ_SNAPSHOT_EVERY", "7")
    return counts
