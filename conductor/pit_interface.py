"""The Pit as a run sees it: names instead of codes, the calls in flight, and the fold of a journal's rows back into a Pit.

Live and on resume the same methods are called in the same order: a fold gives every observation and mask again, bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from conductor.errors import ConductorError
from conductor.files import canonical, digest, parse_canonical
from conductor.journal import Row
from pit import layout, rules
from pit.build import microseconds
from pit.errors import PitError
from pit.handle import Command, Event, Pit
from pit.interface import RULE
from pit.spec import WorkflowSpec

# Why a run ends as failed although the Pit has not ended it.
STUCK = (
    "the run cannot go on: nothing is under way, and no task that is left can start; give it more (system.money, memory, "
    "places) or allow it more (system.verbs, deny)"
)
IDLE = 200  # moments at which something was decided or loaded, and between which no call was under way
ASTRAY = (
    f"the run goes round: {IDLE} times it decided or loaded something, and no call came of it; give it more (system.money) or "
    "a longer keep_alive_seconds"
)
AGAIN = 1000  # outputs made again since the last task was done that had never been done
ANEW = (
    f"the run goes round: {AGAIN} outputs were made again, and no task was done that had not been; give it more "
    "(system.money, memory, places, store) or a longer fresh_seconds"
)


tables = functools.cache(layout.table_hashes)  # of this runtime


class Call(NamedTuple):
    """A call that was started: indices of the Pit, and the number of its attempt (1, 2, ...), hedges included."""

    call: int
    task: int
    function: int
    variant: int
    copy: int
    attempt: int


def array_digest(array: np.ndarray) -> str:
    """The sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def look(pit: Pit) -> tuple[np.ndarray, np.ndarray]:
    """The observation, float32 (512,), and the mask, bool (128,), encoded once: `observe` and `mask` would do it twice."""
    pit._encode()
    return pit._observation.copy(), pit._mask.view(bool).copy()


def _failures_in_row(pit: Pit) -> list[int]:
    """How many calls of each pool have failed in a row."""
    return [int(x) for x in pit._hot["pools"]["in_row"][0]]


def calls_so_far(pit: Pit) -> tuple[int, int]:
    """How many calls have begun, and how many of them are in flight."""
    return int(pit._hot["next_call"][0]), int(pit._hot["n_calls"][0])


class Rule:
    """A rule player with its parameters, which are read once: a decision by `calibrated` would cost a table otherwise."""

    def __init__(self, name: str, params: Mapping[str, Any]) -> None:
        """Raises PitError for an unknown name or parameter."""
        self._code, self._theta, self._variant, self._weights = rules.parameters(name, params)

    def choose(self, pit: Pit) -> int:
        """The action that the rule takes now: `Pit.rule` without its reading of parameters."""
        weights = 0 if self._weights is None else self._weights.ctypes.data
        return pit._call(RULE, self._code, *pit._seen_at, event=self._variant, theta=self._theta, weights=weights)


class PitInterface:
    """One run's Pit and the little that the conductor must know besides."""

    def __init__(self, workflow: WorkflowSpec, exposure: str, run: str) -> None:
        """`run`: its id, which its jitter comes from. Raises ConductorError for what the Pit refuses."""
        salt = int.from_bytes(hashlib.sha256(run.encode()).digest()[:8], "little")
        try:
            self.pit = Pit(workflow, exposure=exposure, salt=salt)
        except PitError as error:
            raise ConductorError(str(error)) from error
        self.workflow = workflow
        self.calls: dict[int, Call] = {}  # started, and neither finished nor cancelled
        self.starts = [0] * len(workflow.tasks)  # calls of each task so far
        self.outputs: dict[str, str] = {}  # task id -> digest of its output, unless it was deleted
        self.deleted: set[str] = set()  # digests of outputs that no task has any more, where there is a store
        self._holders: Counter[str] = Counter()  # digest -> how many tasks have that output
        self._dropped: list[str] = []  # what came to `deleted`
        self._idle, self._idle_at = 0, -1  # moments that led nowhere in a row, and when the last one was (us)
        self._ever: set[int] = set()  # tasks that have been done, whatever has become of their outputs
        self._again = 0  # outputs made again since the last that was new
        self._failures = [0] * len(self.pit.pool_names)  # calls of each pool that had failed in a row at the last action
        self._commands: list[Command] = []
        self._begun: list[Call] = []
        horizon = workflow.system.horizon_seconds
        self._horizon = layout.NEVER if horizon is None else microseconds(horizon)  # the arrival is at 0
        if list(self.pit.task_ids) != [task.id for task in workflow.tasks]:
            raise ConductorError(f"workflow {workflow.name}: the tasks are not in the Pit's order")

    def advance(self, time: int) -> None:
        """The clock goes to `time`; timers up to it fire, and what each of them brings about is looked at as of its time."""
        while (timer := self.pit.next_timer()) < time:
            self.pit.advance(timer)
            self._take()
        self.pit.advance(time)
        self._take()

    def event(self, time: int, event: Event, output: str = "") -> bool:
        """The clock goes to `time` and something happened; `output` is the digest of a finished call's output."""
        self.advance(time)
        applied = self.pit.apply(event)
        if applied and event.kind == layout.FINISHED:
            call = self.calls.pop(event.subject)
            self._idle = 0
            if event.error == layout.OK:
                self._hold(call.task, output)
                self._again = self._again + 1 if call.task in self._ever else 0
                self._ever.add(call.task)
        self._take()
        return applied

    def act(self, time: int, action: int) -> None:
        """The clock goes to `time` and an action is taken."""
        self.advance(time)
        self._failures = _failures_in_row(self.pit)
        self.pit.act(action)
        self._take()
        self._count_idle(backed_off=action in (layout.BACK_OFF, layout.BACK_OFF_LONG))

    def failed_again(self) -> bool:
        """Whether a pool's calls have failed once more in a row since the last action: the time to back off from it, once."""
        return any(now > before for now, before in zip(_failures_in_row(self.pit), self._failures))

    def freeze(self) -> bytes:
        """Everything that a fold of the rows so far would bring about; commands and begun calls must have been taken."""
        if self._commands or self._begun:
            raise RuntimeError("a snapshot between a command and its execution would lose the command")
        known = {
            "calls": [list(call) for call in self.calls.values()],
            "starts": self.starts,
            "outputs": self.outputs,
            "deleted": sorted(self.deleted),
            "idle": [self._idle, self._idle_at],
            "again": [self._again, *sorted(self._ever)],
            "failures": self._failures,
        }
        return canonical(known) + self.pit.snapshot()

    def thaw(self, content: bytes) -> None:
        """Puts back what `freeze` gave for the same workflow. Raises ConductorError for anything else, also for what another
        version gave; nothing is changed then."""
        head, newline, memory = content.partition(b"\n")
        known = parse_canonical(head + newline, "a snapshot")
        try:
            calls = {call[0]: Call(*call) for call in known["calls"]}
            starts, outputs, deleted = list(known["starts"]), dict(known["outputs"]), set(known["deleted"])
            holders = Counter(outputs.values())
            idle, idle_at = known["idle"]
            again, *ever = known["again"]
            failures = known["failures"]
            self.pit.restore(memory)
        except (PitError, KeyError, TypeError, ValueError) as error:
            raise ConductorError(f"a snapshot: is none of this workflow and version: {error!r}") from error
        self.calls, self.starts, self.outputs, self.deleted, self._holders = calls, starts, outputs, deleted, holders
        self._idle, self._idle_at, self._again, self._ever = idle, idle_at, again, set(ever)
        self._failures = failures

    def commands(self) -> list[Command]:
        """The commands since the last call, in order."""
        commands, self._commands = self._commands, []
        return commands

    def begun(self) -> list[Call]:
        """The calls that were started since the last call, in order, also one that was cancelled at once."""
        begun, self._begun = self._begun, []
        return begun

    def dropped(self) -> list[str]:
        """What came to `deleted` since the last call; it may have left it again."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def status(self) -> str:
        """`running`, `solved`, `failed` or `expired`; a run that cannot go on has failed."""
        return "failed" if self.stuck() else layout.STATUSES[self.pit.status]

    def reason(self) -> str:
        """Why a run that has ended was not solved, by how much it missed its deadline if it was, or ""."""
        spec, status, most = self.workflow, self.pit.status, self.workflow.system.max_attempts
        deadline = spec.system.deadline_seconds
        if status == layout.SOLVED and deadline is not None and (late := self.pit.now / 1e6 - deadline) > 0:
            return f"{late:.2f} s after its deadline (system.deadline_seconds: {deadline:g})"
        if status == layout.EXPIRED:
            return f"the run's time was up (system.horizon_seconds: {spec.system.horizon_seconds:g})"
        if status != layout.FAILED:
            return self.stuck()
        tasks = zip(spec.tasks, self.pit.tasks())
        given_up = {task.id: (task, row) for task, row in tasks if row["state"] == layout.GIVEN_UP}
        needed = next(task.id for task, row in given_up.values() if row["required"])  # its end was the run's
        task, row = given_up[needed]
        while not 0 < most <= row["attempts"] and (lacks := [name for name in task.after if name in given_up]):
            task, row = given_up[lacks[0]]
        count = int(row["attempts"])
        why = f"{task.id} used its {count} attempt{'s' if count > 1 else ''} (system.max_attempts)"
        if not 0 < most <= count:
            why = f"{task.id} was skipped"
        elif not self.starts[self.pit.task_ids.index(task.id)]:
            why += ", none of which came to run: its model was not loaded"
        return why if task.id == needed else f"{why}, and {needed} has none of its inputs"

    def stuck(self) -> str:
        """Why a run that is on cannot go on, or "": nothing is under way, no action is due, no timer but the horizon runs
        (`STUCK`); or it goes round for ever (`ASTRAY`, `ANEW`)."""
        pit = self.pit
        if pit.status != layout.ON:
            return ""
        if self._again >= AGAIN:  # also with calls under way: there may always be some
            return ANEW
        if self.calls:
            return ""
        if self._idle >= IDLE:
            return ASTRAY
        if pit.next_timer() < self._horizon or pit.decision_due():
            return ""
        under_way = len(pit.calls()) > 0 or bool(np.isin(pit.copies()["state"], (layout.LOADING, layout.COOLDOWN)).any())
        return "" if under_way or pit.variants()["mending"].any() else STUCK

    def _count_idle(self, backed_off: bool = False) -> None:
        """One more moment at which something was decided or loaded, unless a call runs, or there is something to wait for: a
        load that a call wants, a pool that opens again (unless that is what was decided) or gets tokens, a variant that is
        being configured."""
        pit = self.pit
        if self.calls or pit.now == self._idle_at or pit.status != layout.ON or len(pit.calls()):
            return
        pools, copies, now = pit._hot["pools"][0], pit.copies(), pit.now
        filling = pools["credit"] + (now - pools["credited"]) < pools["full"]
        wanted = (copies["state"] == layout.LOADING) & (copies["auto"] == 0)
        closed = (pools["closed_until"] > now).any() and not backed_off
        if closed or filling.any() or wanted.any() or pit.variants()["mending"].any():
            return
        self._idle, self._idle_at = self._idle + 1, now

    def _take(self) -> None:
        for command in self.pit.commands():
            if command.kind == layout.CMD_START:
                self.starts[command.task] += 1
                attempt = self.starts[command.task]
                call = Call(command.call, command.task, command.function, command.variant, command.copy, attempt)
                self.calls[command.call] = call
                self._begun.append(call)
                self._idle = 0
            elif command.kind == layout.CMD_CANCEL:
                self.calls.pop(command.call, None)
            elif command.kind == layout.CMD_FETCH:  # the field `copy` names the task whose output it is
                self._hold(command.task, self.outputs[self.pit.task_ids[command.copy]])
            elif command.kind == layout.CMD_DELETE:
                self._release(self.outputs.pop(self.pit.task_ids[command.task]))
            elif command.kind == layout.CMD_LOAD:
                self._count_idle()
            self._commands.append(command)

    def _hold(self, task: int, output: str) -> None:
        """The task has this output now, in the place of an older one."""
        name = self.pit.task_ids[task]
        before = self.outputs.get(name)
        self.outputs[name] = output
        self._holders[output] += 1
        self.deleted.discard(output)
        if before is not None:
            self._release(before)

    def _release(self, output: str) -> None:
        """A task has this output no more. A store has room for those of tasks only; without one every output is kept."""
        self._holders[output] -= 1
        if not self._holders[output]:
            del self._holders[output]
            if self.workflow.system.store is not None:
                self.deleted.add(output)
                self._dropped.append(output)

    def variant_name(self, row: int) -> str:
        """`function.variant` of row function * 3 + variant."""
        return f"{self.pit.function_names[row // 3]}.{layout.VERBS[row % 3]}"

    def intent(self, call: Call, run: str) -> dict[str, Any]:
        """The journal's payload for the start of a call. The key is the same in every attempt."""
        task = self.pit.task_ids[call.task]
        return {
            "call": call.call,
            "task": task,
            "function": self.pit.function_names[call.function],
            "variant": layout.VERBS[call.variant],
            "key": f"{run}/{task}",
            "attempt": call.attempt,
            "copy": call.copy,
        }


def event_payload(event: Event, applied: bool, output: str, text: str) -> dict[str, Any]:
    """The journal's payload for an event."""
    fields = event._asdict()
    fields.update(kind=layout.EVENTS[event.kind], error=layout.ERRORS[event.error], applied=applied, output=output, text=text)
    return fields


def _event(data: dict[str, Any], where: str) -> Event:
    try:
        return Event(
            layout.EVENTS.index(data["kind"]), int(data["subject"]), layout.ERRORS.index(data["error"]), int(data["elapsed"]),
            float(data["quality"]), int(data["size"]), int(data["price"]),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise ConductorError(f"{where}: is no event of this Pit: {error}") from error


class Folded(NamedTuple):
    """A run as its journal tells it."""

    view: PitInterface
    run: dict[str, Any]  # payload of the first row
    time: int  # of the last row, microseconds
    ended: bool
    last: str  # hash of the last row
    recent: tuple[dict[str, Any], ...] = ()  # payloads of its latest decisions, where they were asked for
    snapshots: tuple[str, ...] = ()  # files of its latest snapshots, likewise
    counts: Mapping[str, int] = {}  # as `conductor.decision_maker.DecisionMaker` has them, where they were asked for


class Fold:
    """A run that is being rebuilt from its rows; every observation, mask, command and state is compared with the record."""

    def __init__(self, first: Row, watch: Callable[[Row, PitInterface], None] | None = None) -> None:
        """`first` is the run's first row; `watch` is called after every row with the view as it is then.

        Raises:
            ConductorError: another Pit's tables, or a workflow that is not valid or not the recorded one.
        """
        self.run = run = first.data
        self.row, self.ended, self._watch = first, False, watch
        self._begun: list[Call] = []
        where = f"row {first.seq}"
        if run["tables"] != tables():
            raise ConductorError(
                f"{where}: the run was recorded over a Pit with other tables; use the version of the conductor that wrote it"
            )
        if digest(run["workflow"]) != run["workflow_digest"]:
            raise ConductorError(f"{where}: the workflow is not the one whose digest was recorded")
        try:
            self.view = PitInterface(WorkflowSpec.model_validate(run["workflow"]), run["exposure"], run["id"])
        except ValidationError as error:
            raise ConductorError(f"{where}: the recorded workflow is not valid: {error.errors()[0]['msg']}") from error
        if watch is not None:
            watch(first, self.view)

    def restored(self, row: Row, put: Callable[[PitInterface], bool]) -> bool:
        """Begin behind a snapshot's row, if `put` can put its file into the view. Raises ConductorError for another state."""
        if not put(self.view):
            return False
        self.row = row
        self._snapshot(f"row {row.seq} ({row.kind})")
        return True

    def _snapshot(self, where: str) -> None:
        if self.view.pit.state_hash() != self.row.data["state"]:
            raise ConductorError(f"{where}: the state in the replay is not the one of the snapshot")

    def take(self, row: Row) -> None:
        """The next row. Raises ConductorError if its replay differs from the record."""
        view, where = self.view, f"row {row.seq} ({row.kind})"
        if self.ended or row.time < view.pit.now:
            raise ConductorError(f"{where}: stands after the end of the run, or before the row in front of it")
        self.row = row
        view.advance(row.time)
        self._begun += view.begun()
        if row.kind == "snapshot":
            self._snapshot(where)
        else:
            _replay(row, view, where, self.run["id"], self._begun)
        self._begun += view.begun()
        view.commands(), view.dropped()  # they were carried out, or died with the conductor
        self.ended = row.kind == "end"
        if self._watch is not None:
            self._watch(row, view)

    def result(self) -> Folded:
        """The run as it is behind its last row. Raises ConductorError if an intent is missing."""
        if self._begun:
            number = self._begun[0].call
            raise ConductorError(f"row {self.row.seq}: the Pit started call {number}, and no intent of it was recorded")
        return Folded(self.view, self.run, self.row.time, self.ended, self.row.hash)


def fold(rows: Iterable[Row], watch: Callable[[Row, PitInterface], None] | None = None) -> Folded:
    """Rebuild a run from all its rows; `watch` is called after every one.

    Raises:
        ConductorError: another Pit's tables, or the first row whose replay differs from the record.
    """
    iterator = iter(rows)
    folding = Fold(next(iterator), watch)
    for row in iterator:
        folding.take(row)
    return folding.result()


def _replay(row: Row, view: PitInterface, where: str, run: str, begun: list[Call]) -> None:
    data, pit = row.data, view.pit
    if row.kind == "event":
        event = _event(data, where)
        if view.event(row.time, event, data["output"]) != data["applied"]:
            raise ConductorError(
                f"{where}: the Pit {'ignores' if data['applied'] else 'takes'} it, and the record says otherwise"
            )
    elif row.kind == "action":
        if not pit.decision_due() or pit.status != layout.ON:
            raise ConductorError(f"{where}: no decision is due in the replay")
        for name, array in zip(("observation", "mask"), look(pit)):
            if array_digest(array) != data[name]:
                raise ConductorError(f"{where}: the {name} in the replay is not the recorded one")
        view.act(row.time, data["action"])
    elif row.kind == "intent":
        if not begun or view.intent(begun.pop(0), run) != data:
            raise ConductorError(f"{where}: the Pit did not start this call next")
    elif row.kind == "end":
        if view.status() != data["status"] or pit.state_hash() != data["state"]:
            raise ConductorError(f"{where}: the replay ends in another state than the run did")
