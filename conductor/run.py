"""One workflow under way: drain what happened, decide until nothing is to be decided, record; then let it happen.

Who drives a run owns the clock and commits between `step` and `carry_out`: an intent is durable before its call is executed, a
result is durable, with its output's digest, before anything that follows from it.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from conductor.decision_maker import Decision
from conductor.errors import ConductorError
from conductor.files import clear_scratch
from conductor.journal import Journal
from conductor.pit_interface import PitInterface, array_digest, event_payload, look
from conductor.places import Report
from conductor.points import Points
from conductor.shapes import Shapes
from conductor.snapshot import EVERY, KEEP, prune_snapshots, write_snapshot
from conductor.snapshot import FOLDER as SNAPSHOTS
from conductor.tiers import Outputs, read_output
from conductor.workflow import Workflow
from pit import layout
from pit.handle import Command, Event, Pit

T = TypeVar("T")
DECISIONS = 1000  # of one tick at most: who decides without end must not keep others, or the order to stop, waiting
Observer = Callable[[str, int, str], None]  # what happened (`start`, `finished`, `failed`, `load`, ...), when (us), in words
_EVENT_KINDS = {
    "loaded": layout.LOADED,
    "load_failed": layout.LOAD_FAILED,
    "unloaded": layout.UNLOADED,
    "finished": layout.FINISHED,
    "started": layout.STARTED,
    "config_changed": layout.CONFIG_CHANGED,
}


class Patient(Protocol):
    """Does something durable, and waits for room while the disk is full."""

    def __call__(self, act: Callable[[], T], /) -> T:
        """What `act` returns."""
        ...


class Decider(Protocol):
    """Who chooses actions; `conductor.decision_maker.DecisionMaker` is the one of production."""

    counts: Any

    def choose(self, pit: Pit, observation: Any, mask: Any, failed_again: bool) -> Decision:
        """A legal action; `failed_again` as `PitInterface` says."""
        ...


class Manager(Protocol):
    """Who works; `conductor.model_manager.ModelManager` has the words of each method."""

    def check(self, functions: dict[str, list[str]], models: list[str], where: str) -> dict[str, str]: ...
    def load(self, copy: int, model: str) -> None: ...
    def reload(self, copy: int, model: str, reason: str) -> None: ...
    def unload(self, copy: int) -> None: ...
    def start(self, call: int, copy: int, job: dict[str, Any]) -> None: ...
    def configure(self, row: int, function: str, variant: str, model: str | None) -> None: ...
    def cancel(self, call: int) -> None: ...
    def fileno(self) -> int: ...
    def pending(self) -> bool: ...
    def deadline(self) -> int | None: ...
    def poll(self, seconds: float | None) -> list[Report]: ...
    def close(self) -> None: ...


class RunResult(NamedTuple):
    """A run that ended: its folder, `solved`, `failed` or `expired`, who decided how often, the Pit's summary, and the digests
    of what its tasks gave."""

    folder: Path
    status: str
    decisions: dict[str, int]
    summary: dict[str, Any]
    outputs: dict[str, str]

    def output(self, task: str) -> Any:
        """What a task gave, from its file. Raises ConductorError if it gave nothing, or it was deleted or changed."""
        return output_of(self.folder, self.outputs, task)


def output_of(folder: Path, outputs: dict[str, str], task: str) -> Any:
    """What a task of the run in this folder gave, by the digests of all; raises as `RunResult.output`."""
    if task not in outputs:
        raise ConductorError(
            f"{folder}: no output of a task {task!r}; there are those of {', '.join(sorted(outputs)) or 'none'}"
        )
    return read_output(folder, outputs[task])


def instruments_of(workflow: Workflow) -> tuple[dict[str, list[str]], list[str]]:
    """The functions that a workflow's tasks may need, with their variants, and its models."""
    system = workflow.spec.system
    return {task.function: system.usable(task.function) for task in workflow.spec.tasks}, list(workflow.plan.models)


def _careful(observer: Observer) -> Observer:
    """An observer whose faults end no run: the first one is told as a warning, and it is asked no more."""
    asked = True

    def observe(kind: str, time: int, text: str) -> None:
        nonlocal asked
        if asked:
            try:
                observer(kind, time, text)
            except Exception as error:
                asked = False
                warnings.warn(f"an observer failed and is asked no more: {error!r}", RuntimeWarning, stacklevel=2)

    return observe


class Run:
    """One run. It writes rows, and leaves committing them to who drives it."""

    def __init__(
        self,
        number: int,
        workflow: Workflow,
        view: PitInterface,
        journal: Journal,
        record: dict[str, Any],
        decider: Decider,
        manager: Manager,
        observer: Observer | None = None,
    ) -> None:
        """`number`: of the run in its journal; `record`: the payload of its first row."""
        self.number, self.view, self.manager, self.record = number, view, manager, record
        self.folder = journal.folder / str(record["folder"])
        self.now: Callable[[], int] = lambda: 0  # the driver's clock, us, and when by it the run began; the driver sets both
        self.origin = 0
        self.observe = _careful(observer) if observer else lambda kind, time, text: None
        self.sandbox: dict[str, str] = {}  # what each variant runs in, once that was looked at
        self.parked: tuple[str, int] | None = None  # why nothing could be recorded, and since when
        self._workflow, self._pit, self._journal, self._decider = workflow, view.pit, journal, decider
        clear_scratch(self.folder / SNAPSHOTS)
        self._outputs = Outputs(self.folder, workflow.spec.system.store)
        self._fetched: dict[int, int] = {}  # call -> us that fetching its inputs took
        self._lost: list[Report] = []  # of calls that could not begin, since an input cannot be read
        self._shapes = Shapes()
        self._commands: list[Command] = []
        self._dropped: list[str] = []  # digests of outputs that are to be deleted
        self.snapshots: deque[str] = deque(maxlen=KEEP)  # files of the newest
        self._rows = 0  # since the last snapshot
        self._every = int(os.environ.get("FQ_SNAPSHOT_EVERY", EVERY))  # tests want more of them
        self._fresh = False  # a snapshot is among the rows of this tick
        self.undecided = False  # whether the next tick is due at once
        self.finished = self.began = self.cancelled = False  # whether this tick did so, for crash tests

    def check(self) -> None:
        """Make every instrument that a task may need once. Raises ConductorError for the first that cannot be made."""
        self.sandbox = self.manager.check(*instruments_of(self._workflow), self._workflow.where)

    def add(self, kind: str, at: int, data: dict[str, Any]) -> None:
        """A row of this run."""
        self._journal.add(kind, at, data, self.number)
        self._rows += 1

    def note(self, event: Event, at: int, output: str = "", text: str = "") -> None:
        """Tell the Pit of an event and the journal of both."""
        applied = self.view.event(at, event, output)
        self.add("event", at, event_payload(event, applied, output, text))

    def result(self) -> RunResult:
        """The run as it is."""
        return RunResult(
            self.folder, self.view.status(), dict(self._decider.counts), self._pit.summary(), dict(self.view.outputs)
        )

    def recover(self, at: int) -> None:
        """What a restart must settle: calls whose workers died, copies whose processes are gone, unloads that never ended, and
        outputs that should be gone."""
        self._dropped = list(self.view.deleted)
        lost = list(self.view.calls.values())
        since = {int(call["id"]): int(call["start"]) for call in self._pit.calls()}
        self.add("resume", at, {"lost": [call.call for call in lost], "sandbox": self.sandbox})
        self.observe("resume", at, f"calls that were under way and begin again: {len(lost)}")
        copies = [(i, int(row["state"]), int(row["model"])) for i, row in enumerate(self._pit.copies())]
        for call in lost:
            # Not `lost`, which says that an input is gone and makes the Pit call its producer again. It has cost money so far.
            report = Report("finished", call.call, "cancelled", at - since[call.call])
            event = Event(layout.FINISHED, call.call, layout.ERR_CANCELLED, report.elapsed, price=self._price(report))
            self.note(event, at, text="the conductor ended while the call ran")
        for i, state, model in copies:
            if state == layout.LOADING:
                self.manager.load(i, self._pit.model_names[model])
            elif state in (layout.WARM, layout.ACTIVE):
                self.manager.reload(i, self._pit.model_names[model], "the conductor was started again")
            elif state == layout.COOLDOWN:
                self.manager.unload(i)
        for row in self._pit.variants()["mending"].nonzero()[0]:
            self._configure(int(row))

    def next_timer(self) -> int | None:
        """us of the Pit's next timer; None if only an event can come."""
        timer = self._pit.next_timer()
        return timer if timer < layout.NEVER else None

    # ------------------------------------------------------------------ one tick
    def step(self, reports: list[Report], now: int, patient: Patient, points: Points) -> bool:
        """All of a tick that comes before its commit; whether the run has ended. `patient` waits while the disk is full."""
        self.view.advance(now)
        if self.parked is not None:
            self.add("parked", now, dict(zip(("reason", "since"), self.parked)))
            self.parked = None
        reports, self._lost = self._lost + reports, []
        for report in reports:
            self._happened(report, now, patient)
        self._decide(now)
        self._commands, begun = self.view.commands(), self.view.begun()
        self._dropped += self.view.dropped()
        for call in begun:
            self.add("intent", now, self.view.intent(call, self.record["id"]))
        self.finished = any(report.kind == "finished" for report in reports)
        self.cancelled = any(command.kind == layout.CMD_CANCEL for command in self._commands)
        self.began = bool(begun)
        status = self.view.status()
        if status != "running":
            self.add("end", now, {"status": status, "state": self._pit.state_hash()})
            why = self.view.reason()
            self.observe("end", now, f"{status}: {why}" if why else status)
        elif self._rows >= self._every:
            self._snapshot(now, points)
        return status != "running"

    def carry_out(self, now: int) -> None:
        """Execute what the tick that was committed asks for."""
        for command in self._commands:
            self._execute(command, now)
        self._delete(now)
        self._commands, self._dropped = [], []
        self.undecided |= bool(self._lost)
        if self._fresh:
            self._fresh = False
            prune_snapshots(self.folder, self.snapshots)

    def _delete(self, now: int) -> None:
        for output in self._dropped:
            if output in self.view.deleted:
                try:
                    self._outputs.delete(output)
                except ConductorError as error:
                    self.observe("delete", now, str(error))

    def _snapshot(self, now: int, points: Points) -> None:
        points.passed("before_snapshot")
        try:
            name = write_snapshot(self.folder, self.view)
        except ConductorError as error:  # it can do without
            self.observe("snapshot", now, str(error))
            self._rows = 0
            return
        points.passed("in_snapshot")
        self.add("snapshot", now, {"file": name, "state": self._pit.state_hash()})
        self.snapshots.append(name)
        self._rows, self._fresh = 0, True

    def _happened(self, report: Report, now: int, patient: Patient) -> None:
        if report.kind == "reload":
            self.add("reload", now, {"copy": report.subject, "model": report.value, "reason": report.text})
            self.observe("load", now, f"{report.value} again, copy {report.subject}: {report.text}")
            return
        if report.kind == "finished":  # with a store, the Pit's estimates of calls contain the fetching of their inputs
            report = report._replace(elapsed=report.elapsed + self._fetched.pop(report.subject, 0))
        error = report.error if report.error in layout.ERRORS else "error"
        output, size, text = "", 0, report.text
        brief = text.strip().split("\n")[0]
        call = self.view.calls.get(report.subject) if self._pit.status == layout.ON else None  # None: ended or cancelled
        if report.kind == "finished" and error == "ok" and call is not None:
            output, size = patient(lambda: self._outputs.keep(report.value))
        event = Event(
            _EVENT_KINDS[report.kind],
            report.subject,
            layout.ERRORS.index(error),
            report.elapsed,
            -1.0 if report.quality is None else report.quality,
            size,
            self._price(report),
        )
        if report.kind == "finished" and call is not None:
            words = f"{self._pit.task_ids[call.task]} after {report.elapsed / 1e6:.2f} s"
            self.observe(
                "finished" if error == "ok" else "failed", now, words if error == "ok" else f"{words}: {error}: {brief}"
            )
        elif report.kind == "config_changed":
            self.observe("configured", now, self.view.variant_name(report.subject) + (f": {brief}" if brief else ""))
        elif report.kind not in ("finished", "started"):
            self.observe(report.kind, now, f"copy {report.subject}" + (f": {brief}" if brief else ""))
        self.note(event, now, output, text)
        if output and call is not None and self._workflow.spec.system.heal:
            row = 3 * call.function + call.variant
            if self._shapes.changed(row, report.value) and self._pit.status == layout.ON:
                self.observe("output", now, f"{self.view.variant_name(row)}: its outputs have another shape than before")
                self.note(Event(layout.OUTPUT_CHANGED, row), now)

    def _configure(self, row: int) -> None:
        function, variant = self._pit.function_names[row // 3], layout.VERBS[row % 3]
        plan = getattr(self._workflow.spec.system.functions[function], variant)
        self.manager.configure(row, function, variant, plan.model)

    def _price(self, report: Report) -> int:
        """Micro-units: seconds x price of the variant or model (units a second x microseconds)."""
        system = self._workflow.spec.system
        if report.kind == "finished" and report.subject in self.view.calls:
            call = self.view.calls[report.subject]
            function = system.functions[self._pit.function_names[call.function]]
            return round(getattr(function, layout.VERBS[call.variant]).price * report.elapsed)
        if report.kind in ("loaded", "load_failed"):
            model = self._pit.model_names[int(self._pit.copies()[report.subject]["model"])]
            return round(system.models[model].price * report.elapsed)
        return 0

    def _decide(self, now: int) -> None:
        self.undecided = True
        for _ in range(DECISIONS):
            self.view.advance(now)  # an action may make a timer due at once: a fold lets it fire before the next row, too
            if self._pit.status != layout.ON or not self._pit.decision_due():
                self.undecided = False
                return
            observation, mask = look(self._pit)
            decision = self._decider.choose(self._pit, observation, mask, self.view.failed_again())
            seen = {"observation": array_digest(observation), "mask": array_digest(mask)}
            bundle = self.record["bundle"] if decision.by == "policy" else ""
            self.add("action", now, {**decision.payload(), **seen, "bundle": bundle})
            if decision.said:
                self.observe("guard", now, decision.said)
            self.view.act(now, decision.action)
        self.view.advance(now)

    def _execute(self, command: Command, now: int) -> None:
        if command.kind == layout.CMD_START:
            call = self.view.calls.get(command.call)
            if call is None:  # cancelled in the same tick
                return
            intent = self.view.intent(call, self.record["id"])
            place = f", copy {call.copy}" if call.copy >= 0 else ""
            self.observe(
                "start", now, f"{intent['task']} ({intent['function']}, {intent['variant']}, attempt {call.attempt}{place})"
            )
            before = self.now()
            try:
                job = self._job(intent, call.task)
            except ConductorError as error:  # the Pit has inputs made again, the oldest first, as often as it has attempts
                self._lost.append(Report("finished", command.call, "lost", text=str(error)))
                return
            if self._workflow.spec.system.store is not None:
                self._fetched[command.call] = self.now() - before
            self.manager.start(command.call, command.copy, job)
        elif command.kind == layout.CMD_CANCEL:
            self.observe("cancel", now, f"{self._pit.task_ids[command.task]}, call {command.call}")
            self.manager.cancel(command.call)
            self._fetched.pop(command.call, None)
        elif command.kind == layout.CMD_CONFIGURE:
            row = 3 * command.function + command.variant
            self.observe("configure", now, f"{self.view.variant_name(row)}: its API seems to have changed")
            self._configure(row)
        elif command.kind == layout.CMD_FETCH:
            self.observe("reuse", now, f"{self._pit.task_ids[command.task]} is {self._pit.task_ids[command.copy]}'s output")
        elif command.kind == layout.CMD_STORE:
            task, tier = self._pit.task_ids[command.task], layout.TIERS[command.copy]
            self.observe("store", now, f"{task}'s output to {tier}")
            if task in self.view.outputs:  # else it was deleted in the same tick
                try:
                    self._outputs.move(self.view.outputs[task], command.copy)
                except ConductorError as error:  # a call that needs it will find it lost
                    self.observe("store", now, str(error))
        elif command.kind == layout.CMD_DELETE:
            self.observe("delete", now, f"{self._pit.task_ids[command.task]}'s output")
        elif command.kind == layout.CMD_LOAD:
            model = self._pit.model_names[command.model]
            self.observe("load", now, f"{model}, copy {command.copy}")
            self.manager.load(command.copy, model)
        elif command.kind == layout.CMD_UNLOAD:
            self.observe("unload", now, f"{self._pit.model_names[command.model]}, copy {command.copy}")
            self.manager.unload(command.copy)

    def _job(self, intent: dict[str, Any], index: int) -> dict[str, Any]:
        """Raises ConductorError if an input cannot be read."""
        task = self._workflow.spec.tasks[index]
        inputs: dict[str, Any] = {} if task.join == "any" else dict.fromkeys(task.inputs)
        for name in task.inputs:
            if name in self.view.outputs:
                try:
                    inputs[name] = self._outputs.fetch(self.view.outputs[name])
                except ConductorError:
                    if self._pit.tasks()["state"][self._pit.task_ids.index(name)] == layout.DONE:
                        raise  # else it is not made again for this call: it is made again already, or was given up
        return {
            "key": intent["key"],
            "task": task.id,
            "function": task.function,
            "variant": intent["variant"],
            "attempt": intent["attempt"],
            "args": task.args,
            "inputs": inputs,
            "seconds": self._workflow.plan.functions[task.function].seconds,
        }
