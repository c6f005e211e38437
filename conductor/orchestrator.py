"""The event loop of a run: drain what happened, decide until nothing is to be decided, record, then let it happen.

One tick is one commit. An intent is durable before its call is executed; a result is durable, with its output's digest, before
anything that follows from it. The promise: every recorded result exactly once; every side effect at least once, with a stable
idempotency key; never lost, never reordered within a workflow.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from conductor.bundle import Bundle, load_bundle
from conductor.decision_maker import STRATEGIES, DecisionMaker
from conductor.errors import ConductorError
from conductor.files import digest
from conductor.journal import Journal, journal_path, read_journal
from conductor.model_manager import ModelManager, Report
from conductor.pit_interface import STUCK, PitInterface, array_digest, event_payload, fold
from conductor.shapes import Shapes
from conductor.tiers import Outputs
from conductor.workflow import Workflow, check_workflow
from pit import layout
from pit.handle import Command, Event
from pit.spec import WorkflowSpec

Observer = Callable[[str, int, str], None]  # what happened (`start`, `finished`, `failed`, `load`, ...), when (us), in words
_EVENT_KINDS = {
    "loaded": layout.LOADED,
    "load_failed": layout.LOAD_FAILED,
    "unloaded": layout.UNLOADED,
    "finished": layout.FINISHED,
    "started": layout.STARTED,
    "config_changed": layout.CONFIG_CHANGED,
}


class RunResult(NamedTuple):
    """A run that ended: its folder, `solved`, `failed` or `expired`, who decided how often, and the Pit's summary."""

    folder: Path
    status: str
    decisions: dict[str, int]
    summary: dict[str, Any]


def begin(
    workflow: Workflow,
    runs: str | os.PathLike[str],
    *,
    bundle: Bundle | None = None,
    strategy: str = "adaptive",
    observer: Observer | None = None,
) -> RunResult:
    """Run a workflow to its end in a new folder under `runs`.

    Raises:
        ConductorError: unknown strategy, no bundle for `adaptive`, instruments that cannot be made, a folder that cannot be
            written. Nothing was run then. Also if the disk is full; then `resume` goes on.
    """
    if strategy not in STRATEGIES:
        raise ConductorError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
    if strategy == "adaptive" and bundle is None:
        raise ConductorError(
            "strategy adaptive needs a bundle (`--bundle DIR`); without one choose critical_path or sequential"
        )
    exposure = bundle.manifest.exposure if bundle is not None and strategy == "adaptive" else "full"
    view = PitInterface(workflow.spec, exposure)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = workflow.spec.name.replace(" ", "_")
    folder = Path(runs).absolute() / f"{name}-{strategy}-{stamp}-{secrets.token_hex(2)}"
    journal = Journal(folder, new=True)
    spec = workflow.spec.model_dump(mode="json")
    try:
        if bundle is not None:
            shutil.copytree(bundle.path, folder / "bundle")
        run = {
            "id": folder.name,
            "workflow": spec,
            "workflow_digest": digest(spec),
            "base": str(workflow.base),
            "bundle": bundle.digest if bundle is not None else "",
            "strategy": strategy,
            "exposure": exposure,
            "tables": layout.table_hashes(),
        }
        orchestrator = Orchestrator(workflow, view, journal, run, bundle, observer, 0)
        run["sandbox"] = orchestrator.check()
    except BaseException:
        journal.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    journal.add("run", 0, run)
    orchestrator.note(Event(layout.ARRIVE, 0), 0)
    if observer is not None:
        observer("begin", 0, str(folder))
    return orchestrator.run()


def resume(place: str | os.PathLike[str], observer: Observer | None = None) -> RunResult:
    """Go on with a run after its conductor died: the journal is verified and folded, lost calls are called again.

    The clock goes on from the last recorded moment. Copies that were loaded are loaded again before they serve. A lost call
    ends with the error `cancelled`, which counts towards its task's `max_attempts`.

    Raises:
        ConductorError: no journal, a journal that is not whole, one that another conductor writes, or a run that has ended.
    """
    path = journal_path(place)
    journal = Journal(path.parent, new=False)
    try:
        folded = fold(read_journal(path))
        run = folded.run
        if folded.ended:
            raise ConductorError(f"{path}: this run has ended already ({folded.view.status()}); `show` prints it")
        bundle = load_bundle(path.parent / "bundle") if run["bundle"] else None
        if bundle is not None and bundle.digest != run["bundle"]:
            raise ConductorError(f"{path.parent}/bundle: is not the bundle that the run began with")
        workflow = check_workflow(WorkflowSpec.model_validate(run["workflow"]), Path(run["base"]), str(path))
        orchestrator = Orchestrator(workflow, folded.view, journal, run, bundle, observer, folded.time)
        levels = orchestrator.check()
    except BaseException:
        journal.close()
        raise
    orchestrator.recover(folded.time, levels)
    return orchestrator.run()


class Orchestrator:
    """One run. Owns the clock, the order of everything, and the only connection that writes the journal."""

    def __init__(
        self,
        workflow: Workflow,
        view: PitInterface,
        journal: Journal,
        run: dict[str, Any],
        bundle: Bundle | None,
        observer: Observer | None,
        since: int,
    ) -> None:
        """`since`: microseconds that the run has lasted already."""
        self._workflow, self._view, self._pit, self._journal, self._run = workflow, view, view.pit, journal, run
        self._observe = observer or (lambda kind, time, text: None)
        self._decider = DecisionMaker(
            run["strategy"], bundle.policy if bundle else None, bundle.manifest.rule if bundle else None
        )
        serves = {name: model.serves for name, model in workflow.spec.system.models.items()}
        self._manager = ModelManager(workflow.plan, serves, workflow.base, journal.folder, workflow.limits)
        self._outputs = Outputs(journal, workflow.spec.system.store)
        self._fetched: dict[int, int] = {}  # call -> us that fetching its inputs took
        self._since, self._origin = since, time.monotonic_ns()
        self._shapes = Shapes()
        self._points: Counter[str] = Counter()
        self._kill_at = os.environ.get("FQ_KILL_AT", "")

    def check(self) -> dict[str, str]:
        """Make every instrument that a task may need once; the sandbox that each function gets. Raises ConductorError for the
        first that cannot be made."""
        try:
            system = self._workflow.spec.system
            functions = {task.function: system.usable(task.function) for task in self._workflow.spec.tasks}
            return self._manager.check(functions, list(self._workflow.plan.models), self._workflow.spec.name)
        except BaseException:
            self._manager.close()
            raise

    def run(self) -> RunResult:
        """Tick until the Pit says that the run has ended."""
        self._origin = time.monotonic_ns()
        try:
            reports: list[Report] = []
            while True:
                status = self._tick(reports)
                if status != "running":
                    return RunResult(self._journal.folder, status, dict(self._decider.counts), self._pit.summary())
                reports = self._manager.poll(self._patience())
        finally:
            self._manager.close()
            self._journal.close()

    def note(self, event: Event, at: int, output: str = "", text: str = "") -> None:
        """Tell the Pit of an event and the journal of both."""
        applied = self._view.event(at, event, output)
        self._journal.add("event", at, event_payload(event, applied, output, text))

    def recover(self, at: int, levels: dict[str, str]) -> None:
        """What a restart must settle: calls whose workers died, copies whose processes are gone, unloads that never ended.

        `levels`: the sandboxes of functions from now on."""
        lost = list(self._view.calls.values())
        self._journal.add("resume", at, {"lost": [call.call for call in lost], "sandbox": levels})
        self._observe("resume", at, f"{len(lost)} calls were under way and begin again")
        copies = [(i, int(row["state"]), int(row["model"])) for i, row in enumerate(self._pit.copies())]
        for call in lost:
            # Not `lost`, which says that an input is gone and makes the Pit call its producer again.
            event = Event(layout.FINISHED, call.call, layout.ERR_CANCELLED)
            self.note(event, at, text="the conductor ended while the call ran")
        for i, state, model in copies:
            if state == layout.LOADING:
                self._manager.load(i, self._pit.model_names[model])
            elif state in (layout.WARM, layout.ACTIVE):
                self._manager.reload(i, self._pit.model_names[model], "the conductor was started again")
            elif state == layout.COOLDOWN:
                self._manager.unload(i)
        for row in self._pit.variants()["mending"].nonzero()[0]:
            self._configure(int(row))

    # ------------------------------------------------------------------ one tick
    def _now(self) -> int:
        return self._since + (time.monotonic_ns() - self._origin) // 1000

    def _tick(self, reports: list[Report]) -> str:
        """One commit and what follows from it; the run's status."""
        now = self._now()
        self._view.advance(now)
        for report in reports:
            self._happened(report, now)
        self._decide(now)
        commands, begun = self._view.commands(), self._view.begun()
        for call in begun:
            self._journal.add("intent", now, self._view.intent(call, self._run["id"]))
        status = self._view.status()
        if status != "running":
            self._journal.add("end", now, {"status": status, "state": self._pit.state_hash()})
            self._observe("end", now, f"{status}: {STUCK}" if self._view.stuck() else status)
        finished = any(report.kind == "finished" for report in reports)
        cancelled = any(command.kind == layout.CMD_CANCEL for command in commands)
        self._point("before_done", finished)
        self._point("before_intent", bool(begun))
        self._journal.commit()
        self._point("after_done", finished)
        self._point("after_intent", bool(begun))
        self._point("before_cancel", cancelled)
        if status == "running":
            for command in commands:
                self._execute(command, now)
        self._point("mid_effect", bool(begun))
        self._point("after_cancel", cancelled)
        return status

    def _happened(self, report: Report, now: int) -> None:
        if report.kind == "reload":
            self._journal.add("reload", now, {"copy": report.subject, "model": report.value, "reason": report.text})
            self._observe("load", now, f"{report.value} again, copy {report.subject}: {report.text}")
            return
        if report.kind == "finished":  # with a store, the Pit's estimates of calls contain the fetching of their inputs
            report = report._replace(elapsed=report.elapsed + self._fetched.pop(report.subject, 0))
        error = report.error if report.error in layout.ERRORS else "error"
        output, size, text = "", 0, report.text
        brief = text.strip().split("\n")[0]
        call = self._view.calls.get(report.subject) if self._pit.status == layout.ON else None  # None: ended or cancelled
        if report.kind == "finished" and error == "ok" and call is not None:
            output, size = self._outputs.keep(report.value)
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
            self._observe(
                "finished" if error == "ok" else "failed", now, words if error == "ok" else f"{words}: {error}: {brief}"
            )
        elif report.kind == "config_changed":
            self._observe("configured", now, self._view.variant_name(report.subject) + (f": {brief}" if brief else ""))
        elif report.kind not in ("finished", "started"):
            self._observe(report.kind, now, f"copy {report.subject}" + (f": {brief}" if brief else ""))
        self.note(event, now, output, text)
        if output and call is not None and self._workflow.spec.system.heal:
            row = 3 * call.function + call.variant
            if self._shapes.changed(row, report.value) and self._pit.status == layout.ON:
                self._observe("output", now, f"{self._view.variant_name(row)}: its outputs have another shape than before")
                self.note(Event(layout.OUTPUT_CHANGED, row), now)

    def _configure(self, row: int) -> None:
        function, variant = self._pit.function_names[row // 3], layout.VERBS[row % 3]
        plan = getattr(self._workflow.spec.system.functions[function], variant)
        self._manager.configure(row, function, variant, plan.model)

    def _price(self, report: Report) -> int:
        """Micro-units: seconds x price of the variant or model (units a second x microseconds)."""
        system = self._workflow.spec.system
        if report.kind == "finished" and report.subject in self._view.calls:
            call = self._view.calls[report.subject]
            function = system.functions[self._pit.function_names[call.function]]
            return round(getattr(function, layout.VERBS[call.variant]).price * report.elapsed)
        if report.kind in ("loaded", "load_failed"):
            model = self._pit.model_names[int(self._pit.copies()[report.subject]["model"])]
            return round(system.models[model].price * report.elapsed)
        return 0

    def _decide(self, now: int) -> None:
        while self._pit.status == layout.ON and self._pit.decision_due():
            observation, mask = self._pit.observe(), self._pit.mask()
            decision = self._decider.choose(self._pit, observation, mask)
            self._journal.add("action", now, {
                "action": decision.action,
                "observation": array_digest(observation),
                "mask": array_digest(mask),
                "by": decision.by,
                "note": decision.note,
            })  # fmt: skip
            self._view.act(now, decision.action)

    def _execute(self, command: Command, now: int) -> None:
        if command.kind == layout.CMD_START:
            call = self._view.calls.get(command.call)
            if call is None:  # cancelled in the same tick
                return
            intent = self._view.intent(call, self._run["id"])
            place = f", copy {call.copy}" if call.copy >= 0 else ""
            self._observe(
                "start", now, f"{intent['task']} ({intent['function']}, {intent['variant']}, attempt {call.attempt}{place})"
            )
            before = time.monotonic_ns()
            job = self._job(intent, call.task)
            if self._workflow.spec.system.store is not None:
                self._fetched[command.call] = (time.monotonic_ns() - before) // 1000
            self._manager.start(command.call, command.copy, job)
        elif command.kind == layout.CMD_CANCEL:
            self._observe("cancel", now, f"{self._pit.task_ids[command.task]}, call {command.call}")
            self._manager.cancel(command.call)
            self._fetched.pop(command.call, None)
        elif command.kind == layout.CMD_CONFIGURE:
            row = 3 * command.function + command.variant
            self._observe("configure", now, f"{self._view.variant_name(row)}: its API seems to have changed")
            self._configure(row)
        elif command.kind == layout.CMD_FETCH:
            self._observe("reuse", now, f"{self._pit.task_ids[command.task]} is {self._pit.task_ids[command.copy]}'s output")
        elif command.kind == layout.CMD_STORE:
            task, tier = self._pit.task_ids[command.task], layout.TIERS[command.copy]
            self._observe("store", now, f"{task}'s output to {tier}")
            if task in self._view.outputs:  # else it was deleted in the same tick
                self._outputs.move(self._view.outputs[task], command.copy)
        elif command.kind == layout.CMD_DELETE:
            self._observe("delete", now, f"{self._pit.task_ids[command.task]}'s output")
            for output in self._view.deleted:
                self._outputs.delete(output)
        elif command.kind == layout.CMD_LOAD:
            model = self._pit.model_names[command.model]
            self._observe("load", now, f"{model}, copy {command.copy}")
            self._manager.load(command.copy, model)
        elif command.kind == layout.CMD_UNLOAD:
            self._observe("unload", now, f"{self._pit.model_names[command.model]}, copy {command.copy}")
            self._manager.unload(command.copy)

    def _job(self, intent: dict[str, Any], index: int) -> dict[str, Any]:
        task = self._workflow.spec.tasks[index]
        outputs = self._view.outputs
        inputs = {name: self._outputs.fetch(outputs[name]) if name in outputs else None for name in task.inputs}
        if task.join == "any":
            inputs = {name: value for name, value in inputs.items() if name in outputs}
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

    def _patience(self) -> float | None:
        """Seconds until the Pit's next timer; None if only an event can come."""
        timer = self._pit.next_timer()
        return max(0.0, (timer - self._now()) / 1e6) if timer < layout.NEVER else None

    def _point(self, name: str, reached: bool) -> None:
        """Crash tests: `FQ_KILL_AT=after_intent:2` ends this process like `kill -9` when it gets there for the second time."""
        if reached and self._kill_at:
            self._points[name] += 1
            if self._kill_at == f"{name}:{self._points[name]}":
                time.sleep(0.1)  # what was begun is in its middle by then
                os.kill(os.getpid(), signal.SIGKILL)
