"""Many workflows at once: a journal for all of them, a loop in one thread, workers that they share.

`Conductor.load("bundle").run(workflow)` from any thread, `await conductor.run_async(workflow)` from any event loop: all that
is under way is ticked together, and a tick is one commit.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from conductor.advice import Advice
from conductor.bundle import Bundle, load_bundle
from conductor.errors import ConductorError
from conductor.files import make_folder
from conductor.journal import Journal
from conductor.orchestrator import WORKERS, Orchestrator, first_row, make_manager, make_run, serve_until_stopped, warn
from conductor.pit_interface import PitInterface
from conductor.run import Observer, Run, RunResult, instruments_of
from conductor.workflow import Workflow, load_workflow
from conductor.workshop import Workshop, checked_key, shared_key


class Session:
    """Workflows that enter one journal. What it does, it does in the thread of its loop."""

    def __init__(
        self, advice: Advice, runs: str | os.PathLike[str], workers: int = WORKERS, heads: Path | None = None
    ) -> None:
        """A new folder under `runs`, with a folder in it for each run. Raises ConductorError."""
        self._advice = advice.check()
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.folder = Path(runs).absolute() / f"many-{advice.strategy}-{stamp}-{secrets.token_hex(2)}"
        journal = Journal(self.folder, new=True, heads=heads)
        try:
            advice.save(self.folder)
            self.loop = Orchestrator(journal, workshop=Workshop(self.folder, workers))
        except BaseException:
            journal.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._begun = 0

    def check(self, workflow: Workflow) -> None:
        """Make its instruments once, so that `enter` need not, for which all that is under way would have to wait; in a thread
        of its own. Raises ConductorError for the first that cannot be made."""
        assert self.loop.workshop is not None
        functions, models = instruments_of(workflow)
        key = checked_key(shared_key(workflow.plan, workflow.base, workflow.limits), functions, models)
        if key in self.loop.workshop.checked:
            return
        folder = self.folder / "check"
        folder.mkdir()
        try:
            manager = make_manager(workflow, folder, self.loop.workshop)
            try:
                manager.check(functions, models, workflow.where)
            finally:
                manager.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def enter(self, workflow: Workflow, observer: Observer | None = None) -> Run:
        """One more workflow begins. Raises ConductorError if it cannot; then nothing of it is left."""
        name = f"{self._begun:03}-{workflow.spec.name.replace(' ', '_')}"
        record = first_row(workflow, f"{self.folder.name}/{name}", name, self._advice)
        view = PitInterface(workflow.spec, record["exposure"], record["id"])
        make_folder(self.folder / name)
        try:
            run = make_run(
                self._begun, workflow, view, self.loop.journal, record, self._advice, observer, workshop=self.loop.workshop
            )
            try:
                self.loop.begin(run)
            except BaseException:
                run.manager.close()
                raise
        except BaseException:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise
        warn(run, self._advice)
        self._begun += 1
        return run


def begin_all(
    workflows: Sequence[Workflow],
    runs: str | os.PathLike[str],
    advice: Advice,
    *,
    observers: Sequence[Observer | None] = (),
    heads: str | os.PathLike[str] | None = None,
    workers: int = WORKERS,
) -> list[RunResult]:
    """Run several workflows at once to their ends, in the order given; `observers`: one for each, or none.

    Raises:
        ConductorError: as `conductor.orchestrator.begin`, for the first that cannot begin; none was run then.
    """
    session = Session(advice, runs, workers, None if heads is None else Path(heads))
    try:
        entered = [
            session.enter(workflow, observer) for workflow, observer in zip(workflows, observers or (None,) * len(workflows))
        ]
    except BaseException:
        session.loop.close()
        shutil.rmtree(session.folder, ignore_errors=True)
        raise
    results = {result.folder: result for result in serve_until_stopped(session.loop)}
    return [results[run.folder] for run in entered]


class Conductor:
    """Takes workflows from any thread. Close it, or use it as a context: then what is under way comes to its end first."""

    def __init__(
        self,
        bundle: Bundle | None = None,
        *,
        strategy: str = "",
        runs: str | os.PathLike[str] = "runs",
        workers: int = WORKERS,
        observer: Observer | None = None,
    ) -> None:
        """`strategy`: `adaptive` where there is a bundle, else `parallel`, unless named. Raises ConductorError."""
        self._advice = Advice(strategy or ("adaptive" if bundle is not None else "parallel"), bundle).check()
        self._options, self._observer = (runs, workers), observer
        self._guard = threading.Lock()
        self._session: Session | None = None  # from the first workflow on
        self._loop = threading.Thread(target=self._serve, name="conductor", daemon=True)
        self._checks = threading.Thread(target=self._check, name="conductor-checks", daemon=True)
        self._unchecked: SimpleQueue[tuple[Workflow, Future[RunResult]] | None] = SimpleQueue()  # None: no more will come
        self._futures: dict[Run, Future[RunResult]] = {}
        self._over: BaseException | None = None  # why nothing more is taken
        self._ended = False  # whether the loop is

    @classmethod
    def load(cls, place: str | os.PathLike[str], **options: object) -> Conductor:
        """With the bundle in a folder; `options` as the constructor's. Raises ConductorError."""
        return cls(load_bundle(place), **options)  # type: ignore[arg-type]

    def submit(self, workflow: Workflow | str | os.PathLike[str]) -> Future[RunResult]:
        """A workflow, or its file, begins soon. Raises ConductorError for a file that is wrong; a workflow that cannot begin,
        or a conductor that was stopped, is the future's exception. One that is cancelled before it has begun does not begin;
        afterwards it cannot be cancelled."""
        known = workflow if isinstance(workflow, Workflow) else load_workflow(Path(workflow))
        future: Future[RunResult] = Future()
        with self._guard:
            if self._over is not None:
                raise ConductorError(f"this conductor takes no more workflows: {self._over}")
            if self._session is None:
                self._session = Session(self._advice, *self._options)
                self._session.loop.open = True
                self._session.loop.ended = lambda run, result: self._futures.pop(run).set_result(result)
                self._checks.start()
            self._unchecked.put((known, future))
        return future

    def run(self, workflow: Workflow | str | os.PathLike[str]) -> RunResult:
        """A workflow, or its file, to its end. Raises ConductorError."""
        return self.submit(workflow).result()

    async def run_async(self, workflow: Workflow | str | os.PathLike[str]) -> RunResult:
        """As `run`, for an event loop. Cancelled, it waits no longer; a workflow that has begun goes on."""
        return await asyncio.wrap_future(self.submit(workflow))

    def close(self) -> None:
        """Wait for what is under way; nothing more is taken."""
        with self._guard:
            if self._over is None:
                self._over = ConductorError("it was closed")
        if self._session is not None:
            self._unchecked.put(None)
            self._checks.join()
            self._session.loop.open = False
            self._session.loop.clock.wake()
            self._loop.join()

    def stop(self) -> None:
        """End the loop between two ticks: what is under way ends with `Stopped`, and `resume` goes on with it."""
        if self._session is not None:
            self._session.loop.stop("asked to")

    def _check(self) -> None:
        """Checks what was submitted, one after the other, beside the loop, and hands it on."""
        assert self._session is not None
        for workflow, future in iter(self._unchecked.get, None):
            error: BaseException | None = None
            try:
                self._session.check(workflow)
            except BaseException as reason:  # whatever it was: who waits must know
                error = reason
            with self._guard:
                if not self._ended:
                    self._session.loop.inbox.append(partial(self._enter, workflow, future, error))
                    if self._loop.ident is None:  # not before there is something to do
                        self._loop.start()
                    self._session.loop.clock.wake()
                    continue
            self._enter(workflow, future, error)

    def _serve(self) -> None:
        assert self._session is not None
        loop = self._session.loop
        error: BaseException = ConductorError("it was closed")
        try:
            loop.serve()
        except BaseException as reason:  # whatever it was: those who wait must know
            error = reason
        with self._guard:
            self._over, self._ended = error, True
        while loop.inbox:  # nothing comes to it any more; what a future calls back may want the guard
            loop.inbox.popleft()()
        for future in self._futures.values():
            future.set_exception(error)

    def _enter(self, workflow: Workflow, future: Future[RunResult], error: BaseException | None) -> None:
        """A workflow that was checked begins, unless `error` is why it cannot, or nobody waits for it any more."""
        assert self._session is not None
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._ended:
                raise ConductorError(f"this conductor takes no more workflows: {self._over}")
            if error is not None:
                raise error
            self._futures[self._session.enter(workflow, self._observer)] = future
        except Exception as reason:
            future.set_exception(reason)

    def __enter__(self) -> Conductor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
