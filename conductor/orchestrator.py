"""The event loop: all runs of one journal are ticked together, and one tick is one commit, however many runs it concerns.

The promise: every recorded result exactly once; every side effect at least once, with a stable idempotency key; never lost,
never reordered within a workflow. When the disk is full the loop waits for room, with its rows in memory and its workers at
work; the clocks of its runs stand still as long, as over a restart, so that what came meanwhile is not late. Time is
monotonic: no step of the time of day is noticed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, TypeVar

from conductor.advice import Advice, decider, recalled, unlike
from conductor.bundle import Bundle
from conductor.clock import Clock
from conductor.decision_maker import NEED_BUNDLE
from conductor.errors import ConductorError, DiskFull, Stopped
from conductor.files import digest
from conductor.guard import WINDOW
from conductor.journal import Journal, Row, journal_path, peek, read_journal, run_folder
from conductor.model_manager import ModelManager
from conductor.pit_interface import Fold, Folded, PitInterface, tables
from conductor.places import Report
from conductor.points import Points
from conductor.run import Observer, Run, RunResult
from conductor.snapshot import KEEP, read_snapshot
from conductor.workflow import Workflow, check_workflow
from conductor.workshop import Workshop
from pit import layout
from pit.handle import Event
from pit.spec import WorkflowSpec

T = TypeVar("T")
WORKERS = 4 * (os.cpu_count() or 1)  # plain workers of one plan that runs share, unless asked otherwise
VOID = 64  # timers of the heap that may be void, besides as many as are not
FULL_PAUSE = (100_000, 5_000_000)  # us: the first and the longest wait for room on the disk


def begin(
    workflow: Workflow,
    runs: str | os.PathLike[str],
    *,
    bundle: Bundle | None = None,
    strategy: str = "adaptive",
    shadow: Bundle | None = None,
    observer: Observer | None = None,
    heads: str | os.PathLike[str] | None = None,
) -> RunResult:
    """Run a workflow to its end in a new folder under `runs`; `heads` as `conductor.journal.Journal`.

    `shadow` is asked at every decision, and not obeyed.

    Raises:
        ConductorError: unknown strategy, no bundle for `adaptive`, instruments that cannot be made, a folder that cannot be
            written. Nothing was run then. Also if the disk is gone; then `resume` goes on.
        Stopped: this process got SIGTERM; `resume` goes on.
    """
    advice = Advice(strategy, bundle, shadow).check()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = workflow.spec.name.replace(" ", "_")
    folder = Path(runs).absolute() / f"{name}-{strategy}-{stamp}-{secrets.token_hex(2)}"
    view = PitInterface(workflow.spec, advice.record()["exposure"], folder.name)
    journal = Journal(folder, new=True, heads=None if heads is None else Path(heads))
    orchestrator = Orchestrator(journal)
    try:
        advice.save(folder)
        record = first_row(workflow, folder.name, ".", advice)
        run = make_run(0, workflow, view, journal, record, advice, observer)
    except BaseException:
        orchestrator.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    orchestrator.begin(run)
    run.observe("begin", 0, str(folder))
    warn(run, advice)
    return serve_until_stopped(orchestrator)[0]


def resume(
    place: str | os.PathLike[str], observer: Observer | None = None, heads: str | os.PathLike[str] | None = None
) -> RunResult:
    """As `resume_all`, for the journal of a single run."""
    return resume_all(place, observer, heads)[0]


def resume_all(
    place: str | os.PathLike[str], observer: Observer | None = None, heads: str | os.PathLike[str] | None = None
) -> list[RunResult]:
    """Go on with the runs of a journal after their conductor ended: it is verified and folded, lost calls are called again.

    The clock goes on from the last recorded moment. Copies that were loaded are loaded again before they serve. A lost call
    ends with the error `cancelled`: it is paid for until that moment, is no failure of anything, and counts towards no
    `max_attempts`.

    Raises:
        ConductorError: no journal, a journal that is not whole, one that another conductor writes, or whose runs have ended.
        Stopped: this process got SIGTERM; `resume` goes on.
    """
    path = journal_path(place)
    journal = Journal(path.parent, new=False, heads=None if heads is None else Path(heads))
    orchestrator = Orchestrator(journal)
    try:
        found = fold_runs(path)
        if all(folded.ended for folded in found):
            raise ConductorError(f"{path}: this run has ended already ({found[0].view.status()}); `show` prints it")
        if len(found) > 1:
            orchestrator.workshop = Workshop(path.parent, WORKERS)
        for number, folded in enumerate(found):
            if not folded.ended:
                orchestrator.go_on(_revive(path, number, folded, journal, observer, orchestrator.workshop), folded.time)
    except BaseException:
        orchestrator.close()
        raise
    return serve_until_stopped(orchestrator)


def first_row(workflow: Workflow, name: str, folder: str, advice: Advice) -> dict[str, Any]:
    """The payload of a run's first row, but for `sandbox`."""
    spec = workflow.spec.model_dump(mode="json")
    return {
        "id": name,
        "folder": folder,
        "began": datetime.now(UTC).isoformat(timespec="microseconds"),
        "workflow": spec,
        "workflow_digest": digest(spec),
        "base": str(workflow.base),
        "tables": tables(),
        **advice.record(),
    }


def warn(run: Run, advice: Advice) -> None:
    """Tells people that the bundle which decides was trained for another system than the run's."""
    if advice.bundle is not None and advice.strategy in NEED_BUNDLE:
        if text := unlike(advice.bundle.system_yaml, run.view.workflow.system):
            run.observe("guard", 0, f"the bundle was trained for another system: {text}")


def make_manager(workflow: Workflow, folder: Path, workshop: Workshop | None) -> ModelManager:
    """Real workers for a workflow, in a run's folder."""
    serves = {name: model.serves for name, model in workflow.spec.system.models.items()}
    return ModelManager(workflow.plan, serves, workflow.base, folder, workflow.limits, workshop)


def make_run(
    number: int,
    workflow: Workflow,
    view: PitInterface,
    journal: Journal,
    record: dict[str, Any],
    advice: Advice,
    observer: Observer | None,
    past: Folded | None = None,
    workshop: Workshop | None = None,
) -> Run:
    """A run with real workers, whose instruments were all made once; `past` as `conductor.advice.decider` has it; with a
    `workshop` its plain workers are those of others, too.

    Raises ConductorError for the first instrument that cannot be made.
    """
    folder = journal.folder / str(record["folder"])
    decides = decider(advice, record, folder, past)
    manager = make_manager(workflow, folder, workshop)
    try:
        run = Run(number, workflow, view, journal, record, decides, manager, observer)
        run.check()
    except BaseException:
        manager.close()
        raise
    return run


def fold_runs(path: Path, whole: bool = False) -> list[Folded]:
    """Every run of a journal as its rows tell it, each folded from its last good snapshot on (`whole`: from its first row).

    Raises:
        ConductorError: the journal is not whole, or replays differently.
    """
    snapshots = [] if whole else peek(path, "snapshot")[::-1]
    folds: list[Fold] = []
    relied: dict[int, Row] = {}  # on which snapshot, by run
    recent: dict[int, deque[dict[str, Any]]] = defaultdict(lambda: deque(maxlen=WINDOW))
    kept: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=KEEP))
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for row in read_journal(path):
        if row.kind == "run":
            folding = Fold(row)
            folds.append(folding)
            folder = run_folder(path, row.data)
            for snapshot in (found for found in snapshots if found.run == row.run):
                if folding.restored(snapshot, partial(read_snapshot, folder, str(snapshot.data.get("file")))):
                    relied[row.run] = snapshot
                    break
        elif row.seq > folds[row.run].row.seq:
            folds[row.run].take(row)
        elif row.run in relied and row.seq == relied[row.run].seq and row != relied[row.run]:
            raise ConductorError(f"{path}: row {row.seq}: was changed while it was read")
        if row.kind == "action":
            recent[row.run].append(row.data)
            counts[row.run].update(word for word in (row.data["by"], row.data["note"]) if word)
        elif row.kind == "snapshot":
            kept[row.run].append(row.data["file"])
    return [
        folding.result()._replace(recent=tuple(recent[run]), snapshots=tuple(kept[run]), counts=counts[run])
        for run, folding in enumerate(folds)
    ]


def _revive(
    path: Path, number: int, folded: Folded, journal: Journal, observer: Observer | None, workshop: Workshop | None
) -> Run:
    record = folded.run
    advice = recalled(path.parent, record)
    if observer is not None:
        for text in advice.missing:
            observer("guard", folded.time, text)
    workflow = check_workflow(WorkflowSpec.model_validate(record["workflow"]), Path(record["base"]), str(path))
    run = make_run(number, workflow, folded.view, journal, record, advice, observer, folded, workshop)
    run.snapshots.extend(folded.snapshots)
    return run


def serve_until_stopped(orchestrator: Orchestrator) -> list[RunResult]:
    """Serve until every run has ended; SIGTERM stops it between two ticks, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return orchestrator.serve()
    before = signal.signal(signal.SIGTERM, lambda *_: orchestrator.stop("SIGTERM"))
    try:
        return orchestrator.serve()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(orchestrator.journal.folder)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


class Orchestrator:
    """The loop over the runs of a journal. Owns the clock, the order of everything, and the only writer of the journal."""

    def __init__(self, journal: Journal, clock: Clock | None = None, workshop: Workshop | None = None) -> None:
        self.workshop = workshop
        self.inbox: deque[Callable[[], None]] = deque()  # what others want done between two ticks, with `clock.wake`
        self.open = False  # whether to wait for more when nothing is under way
        self.ended: Callable[[Run, RunResult], None] = lambda run, result: None
        self.journal, self.clock = journal, clock if clock is not None else Clock()
        self.live: dict[Any, Run] = {}  # by their managers
        self._results: list[RunResult] = []
        self._due: dict[Run, None] = {}  # runs that the next tick concerns, in order
        self._timers: list[tuple[int, int]] = []  # a heap: when, number of the run; one that is not in `_wake_at` is void
        self._wake_at: dict[int, tuple[int, Run]] = {}  # by the run's number
        self._reason = ""  # why to stop
        self._points = Points()

    def begin(self, run: Run) -> None:
        """A run that begins now. One that cannot be waited for has written nothing."""
        self.clock.watch(run.manager)
        run.add("run", 0, {**run.record, "sandbox": run.sandbox})
        run.note(Event(layout.ARRIVE, 0), 0)
        self._enter(run, 0)

    def go_on(self, run: Run, since: int) -> None:
        """A run that has lasted `since` us before its conductor ended."""
        self.clock.watch(run.manager)
        run.recover(since)
        self._enter(run, since)

    def _enter(self, run: Run, since: int) -> None:
        run.now, run.origin = self.clock.now, self.clock.now() - since
        self.live[run.manager] = run
        self._due[run] = None

    def stop(self, reason: str) -> None:
        """End the loop between two ticks; from any thread or signal handler."""
        self._reason = reason
        self.clock.wake()

    def serve(self) -> list[RunResult]:
        """Tick until every run has ended; their results in the order in which they ended.

        Raises:
            ConductorError: the journal cannot be written any more. Stopped: as `stop` asked. Workers are ended then, too.
        """
        try:
            while self.live or self.inbox or self.open:  # where all has ended, there is nothing to stop
                if self._reason:
                    self._stop()
                while self.inbox:
                    self.inbox.popleft()()
                self.tick()
                if self.live or self.open:
                    self._wait()
            return self._results
        finally:
            self.close()

    def close(self) -> None:
        """End every worker and let go of the journal."""
        for manager in self.live:
            manager.close()
        self.live = {}
        if self.workshop is not None:
            self.workshop.close()
        self.journal.close()
        self.clock.close()

    def tick(self) -> None:
        """One commit for every run that something happened to, and what follows from it."""
        due, self._due = list(self._due), {}
        times, ended = {}, set()
        for run in due:
            reports: list[Report] = run.manager.poll(0)
            times[run] = self.clock.now() - run.origin
            if run.step(reports, times[run], self._patient, self._points):
                ended.add(run)
        finished, began = any(run.finished for run in due), any(run.began for run in due)
        cancelled = any(run.cancelled for run in due)
        self._points.passed("before_done", finished)
        self._points.passed("before_intent", began)
        self._patient(self.journal.commit)
        self._points.passed("after_done", finished)
        self._points.passed("after_intent", began)
        self._points.passed("before_cancel", cancelled)
        for run in due:
            if run in ended:
                self._leave(run)
            else:
                run.carry_out(times[run])
                self._set_timer(run)
        if self.workshop is not None:  # not before: a run that leaves in this tick begins nothing any more
            self._due.update((self.live[who], None) for who in self.workshop.hand_out())
        self._points.passed("mid_effect", began)
        self._points.passed("after_cancel", cancelled)

    def _leave(self, run: Run) -> None:
        result = run.result()
        if not self.open:  # else they are for `ended` alone, and there may be any number
            self._results.append(result)
        self.ended(run, result)
        self.clock.forget(run.manager)
        run.manager.close()
        del self.live[run.manager]
        self._wake_at.pop(run.number, None)

    def _set_timer(self, run: Run) -> None:
        if run.undecided or run.manager.pending():
            self._due[run] = None
        timer, deadline = run.next_timer(), run.manager.deadline()
        times = [] if timer is None else [run.origin + timer]
        wake = min(times if deadline is None else [*times, deadline], default=None)
        if wake is None:
            self._wake_at.pop(run.number, None)
        elif self._wake_at.get(run.number) != (wake, run):
            self._wake_at[run.number] = (wake, run)
            heappush(self._timers, (wake, run.number))
            if len(self._timers) > 2 * len(self._wake_at) + VOID:
                self._timers = [(at, number) for number, (at, _) in self._wake_at.items()]
                heapify(self._timers)

    def _next_timer(self) -> tuple[int, Run] | None:
        """When the nearest timer is due, and whose it is; void ones are dropped on the way to it."""
        while self._timers:
            wake, number = self._timers[0]
            found = self._wake_at.get(number)
            if found is not None and found[0] == wake:
                return found
            heappop(self._timers)
        return None

    def _wait(self) -> None:
        """Until there is something to tick about. Runs that are due already keep no other one waiting: all that has happened
        is taken in."""
        while not (self._reason or self.inbox) and (self.live or self.open):
            timer = self._next_timer()
            pause = None if timer is None else timer[0] - self.clock.now()
            self._due.update((self.live[manager], None) for manager in self.clock.wait(0 if self._due else pause))
            now = self.clock.now()
            while (timer := self._next_timer()) is not None and timer[0] <= now:
                del self._wake_at[timer[1].number]
                self._due[timer[1]] = None
            if self._due:
                break

    def _patient(self, act: Callable[[], T]) -> T:
        """What `act` returns; while the disk is full, it is tried again and again, and the runs' clocks stand still."""
        pause, longest = FULL_PAUSE
        since: dict[Run, int] = {}
        begin = 0
        while True:
            try:
                result = act()
                break
            except DiskFull as error:
                if self._reason:
                    raise Stopped(f"{self.journal.folder}: stopped ({self._reason}) while its disk is full") from error
                reason = str(error)
                begin = begin if since else self.clock.now()
                for run in self.live.values() if not since else ():
                    since[run] = begin - run.origin
                    run.observe("parked", since[run], f"{reason}; waiting for room")
                self.clock.pause(pause)
                pause = min(2 * pause, longest)
        waited = self.clock.now() - begin
        for run, at in since.items():
            run.origin += waited
            run.parked = run.parked or (f"{reason}; for {waited / 1e6:.1f} s", at)
            run.observe("unparked", at, f"there is room again, after {waited / 1e6:.1f} s")
        return result

    def _stop(self) -> None:
        for run in self.live.values():
            run.add("stop", run.view.pit.now, {"reason": self._reason})  # later, a timer could start a call without an intent
        with contextlib.suppress(DiskFull):
            self.journal.commit()
        raise Stopped(f"stopped ({self._reason}); nothing recorded is lost, `conductor resume {self.journal.folder}` goes on")
