"""The lifecycle of real workers: one process per copy of a model, and plain ones for functions without a model.

It carries out the Pit's commands and reports what really happened, in the order in which it happened. It knows processes and
clocks, and nothing of tasks, journals or decisions. A copy whose process dies while the Pit holds it for loaded is loaded
again, and its calls wait for that: the Pit stays true. A worker is ended for the sake of one call; what else it did begins
again in the next one.
"""

from __future__ import annotations

import selectors
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conductor.check import CANNOT, call_name, levels_of
from conductor.clock import LONGEST
from conductor.errors import ConductorError
from conductor.instruments.process import Worker
from conductor.instruments.sandbox import Limits
from conductor.places import GRACE, Call, Place, Report
from conductor.workflow import ModelPlan, Plan
from conductor.workshop import Workshop, checked_key, shared_key

DEATHS = 3  # of a copy, with no answer in between: it is not loaded again before a call wants it


def _lacking(error: OSError) -> str:
    """That a worker could not be made, and what there was too little of."""
    return f"a worker process could not be started: {error}"


class ModelManager:
    """Workers of one run. `serves` says how many calls at once a copy of each model takes."""

    def __init__(
        self,
        plan: Plan,
        serves: dict[str, int],
        base: Path,
        folder: Path,
        limits: Limits,
        workshop: Workshop | None = None,
    ) -> None:
        """`base`: where modules are found; `folder`: of the run, gets `files/` (where all calls work) and `logs/`; `limits` of
        each worker; `workshop`: where plain workers come from that other runs of this plan use, too. Raises ConductorError."""
        self._workshop = workshop
        self._key = "" if workshop is None else shared_key(plan, base, limits)
        self._queue: dict[int, Call] = {}  # calls that wait in the workshop, by their numbers
        self._plan, self._serves, self._base, self._may_take = plan, serves, base, limits
        self._files, self._logs = folder / "files", folder / "logs"
        try:
            self._files.mkdir(exist_ok=True)
            self._logs.mkdir(exist_ok=True)
            self._selector = selectors.DefaultSelector()
        except OSError as error:
            raise ConductorError(f"{folder}: no worker can be had here: {error}") from error
        self._copies: dict[int, Place] = {}
        self._broken: dict[int, tuple[str, str]] = {}  # copies that the Pit holds for loaded and are not: model, and why
        self._deaths: Counter[int] = Counter()  # of each copy since it last answered a call
        self._plain: list[Place] = []
        self._reports: deque[Report] = deque()
        self._spawned = 0
        self._levels: dict[str, str] = {}  # the sandbox that `check` found for each variant; with a lower one a call fails

    def check(self, functions: dict[str, list[str]], models: list[str], where: str) -> dict[str, str]:
        """Make every instrument once in a worker, which then serves; the level of the sandbox that each function gets.

        `functions`: the variants of each. Raises ConductorError with the first fault's sentence."""
        if self._workshop is not None and (known := self._workshop.checked.get(checked_key(self._key, functions, models))):
            self._levels = known
            return known
        try:
            worker = self._new_worker(1)
            try:
                self._levels = levels_of(worker, self._plan, functions, models)
                if self._workshop is None:
                    self._plain.append(self._watch(worker))
            except BaseException:
                worker.end()
                raise
        except ConductorError as error:
            raise ConductorError(f"{where}: {error}") from error
        except OSError as error:
            raise ConductorError(f"{where}: {CANNOT}: {_lacking(error)}") from error
        if self._workshop is not None:
            worker.end()
            self._workshop.checked[checked_key(self._key, functions, models)] = self._levels
        return self._levels

    def load(self, copy: int, model: str) -> None:
        """Start a process for a copy and load its model; `loaded` or `load_failed` follows."""
        self._deaths.pop(copy, None)
        try:
            self._copies[copy] = self._load(copy, model, "loading")
        except OSError as error:
            self._reports.append(Report("load_failed", copy, "error", text=_lacking(error)))

    def reload(self, copy: int, model: str, reason: str, waiting: Sequence[Call] = ()) -> None:
        """Load a copy that the Pit holds for loaded; a `reload` report says so, calls wait until it is ready."""
        try:
            place = self._load(copy, model, "reloading")
        except OSError as error:
            self._copies.pop(copy, None)
            self._break(copy, model, _lacking(error), waiting)
            return
        place.waiting = list(waiting)
        self._copies[copy] = place
        self._reports.append(Report("reload", copy, text=reason, value=model))

    def _break(self, copy: int, model: str, text: str, waiting: Sequence[Call]) -> None:
        """A copy that the Pit holds for loaded cannot be: the calls that wait for it fail, and the next one tries again."""
        brief = text.strip().split("\n")[0]
        self._broken[copy] = model, f"the last reload failed: {brief}"
        for call in waiting:
            self._reports.append(Report("finished", call.number, "load", text=text))

    def unload(self, copy: int) -> None:
        """End a copy's process; its memory is free on return, and `unloaded` follows."""
        self._broken.pop(copy, None)
        place = self._copies.pop(copy, None)
        if place is not None:
            self._end(place)
        self._reports.append(Report("unloaded", copy))

    def start(self, call: int, copy: int, job: dict[str, Any]) -> None:
        """Begin a call on its copy (-1: on a plain worker); `finished` follows. `job`: the fields of a Job that are JSON."""
        name = call_name(job["function"], job["variant"])
        request = {"do": "call", "job": job, "name": name, **self._plan.functions[job["function"]].request(job["variant"])}
        request["level"] = self._levels.get(name, "none")
        begun = Call(call, request, job["seconds"])
        if copy < 0:
            try:
                self._begin(begun)
            except OSError as error:
                self._reports.append(Report("finished", call, "error", text=_lacking(error)))
            return
        if copy in self._copies and not self._copies[copy].calls:
            self._receive(self._copies[copy])  # it may have died since it was last listened to
        if copy in self._broken:
            self.reload(copy, *self._broken.pop(copy), [begun])
            return
        place = self._copies[copy]
        if place.state == "ready":
            self._send(place, begun)
        else:
            place.waiting.append(begun)

    def _begin(self, call: Call) -> None:
        """Send a call to a plain worker. Raises OSError if there is none and none can be made."""
        if self._workshop is not None:
            if not (self._workshop.free(self._key) and self._lease(self._workshop, call)):
                self._queue[call.number] = call
                self._workshop.wait(self._key, self, call.number)
            return
        for old in [p for p in self._plain if p.state == "old" and not p.calls]:
            self._retire(old)
        idle = (p for p in self._plain if not p.calls and p.state == "ready" and p.worker.quiet())
        place = next(idle, None) or self._spawn(1)
        if place not in self._plain:
            self._plain.append(place)
        self._send(place, call)

    def _lease(self, workshop: Workshop, call: Call) -> bool:
        """Send a call to a shared worker; whether one could be had. Raises OSError if none can be made, and nobody works whom
        it could wait for."""
        found = workshop.take(self._key, self._make)
        if found is None:
            return False
        place = self._watch(*found)
        self._plain.append(place)
        self._send(place, call._replace(request={**call.request, "folder": str(self._files)}))
        return True

    def take_turn(self, call: int) -> bool:
        """A shared worker can be had for a call that waits in the workshop: it begins, or fails if none can be made after all;
        False if it waits on."""
        if self._workshop is not None:
            try:
                if not self._lease(self._workshop, self._queue[call]):
                    return False
                self._reports.append(Report("started", call))
            except OSError as error:
                self._reports.append(Report("finished", call, "error", text=_lacking(error)))
            del self._queue[call]
        return True

    def _leave_queue(self, calls: Sequence[int]) -> None:
        """Those of these calls that wait in the workshop do not wait any more."""
        for call in calls:
            if self._queue.pop(call, None) is not None and self._workshop is not None:
                self._workshop.leave(self._key, self, call)

    def _give_back(self, workshop: Workshop, place: Place) -> None:
        self._selector.unregister(place.worker)
        self._plain.remove(place)
        place.alive = False
        workshop.give(self._key, place.worker, place.age)

    def _make(self, log: Path) -> Worker:
        return Worker(self._base, self._files, log, 1, self._may_take, self._plan.environment)

    def configure(self, row: int, function: str, variant: str, model: str | None) -> None:
        """Bring the calls of a variant up to date; `config_changed` follows. Its workers begin anew, as code and settings may
        have changed (a call under way on a copy begins again), after what its plan says under `configure` has been done."""
        plan = self._plan.functions[function]
        if plan.configure is None:
            self._renew(model)
            self._reports.append(Report("config_changed", row))
            return
        try:
            place = self._spawn(1)
        except OSError as error:
            self._renew(model)
            self._reports.append(Report("config_changed", row, "error", text=_lacking(error)))
            return
        self._plain.append(place)
        place.row, place.model, place.state, place.begun = row, model or "", "configuring", time.monotonic()
        place.load_until = place.begun + plan.seconds
        what = {"call": plan.configure, "function": function, "variant": variant}
        place.load = self._request(place, {"do": "configure", **what})

    def cancel(self, call: int) -> None:
        """End a call and its worker, as at its time limit, and report nothing of it. A copy is loaded again."""
        self._leave_queue([call])
        for place in self._places():
            place.waiting = [waiting for waiting in place.waiting if waiting.number != call]
            if any(running.number == call for running, _ in place.calls.values()):
                self._hear_out(place)  # it may just have ended by itself, and so may what else runs there
            if any(running.number == call for running, _ in place.calls.values()):
                self._gone(place, "its call was cancelled", "", [call])

    def poll(self, seconds: float | None) -> list[Report]:
        """What happened since the last poll, in order; waits up to `seconds` (None: as long as it takes) if nothing has."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self._reports:
            now = time.monotonic()
            limits = [limit for place in self._places() for limit in place.limits()]
            wake = min([*limits, *([until] if until is not None else [])], default=None)
            self._look(None if wake is None else min(max(0.0, wake - now), LONGEST))
            self._expire(time.monotonic())
            if until is not None and time.monotonic() >= until:
                break
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def fileno(self) -> int:
        """A descriptor that becomes readable when a worker has said something."""
        return self._selector.fileno()

    def pending(self) -> bool:
        """Whether `poll` would report at once, whatever the workers do."""
        return bool(self._reports)

    def deadline(self) -> int | None:
        """Monotonic microseconds of the nearest time limit of a call or load, when `poll` is due; None if there is none."""
        limits = [limit for place in self._places() for limit in place.limits()]
        return int(1e6 * min(limits)) + 1 if limits else None

    def close(self) -> None:
        """End every worker."""
        self._leave_queue(list(self._queue))
        for place in self._places():
            self._end(place)
        self._copies.clear()
        self._plain.clear()
        self._selector.close()

    # ------------------------------------------------------------------ workers
    def _places(self) -> list[Place]:
        return [*self._copies.values(), *self._plain]

    def _spawn(self, threads: int) -> Place:
        """A new worker, which is heard. Raises OSError if there is too little of something for one."""
        return self._watch(self._new_worker(threads))

    def _new_worker(self, threads: int) -> Worker:
        self._spawned += 1
        log = self._logs / f"worker-{self._spawned}.log"
        return Worker(self._base, self._files, log, threads, self._may_take, self._plan.environment)

    def _watch(self, worker: Worker, age: int = -1) -> Place:
        """What a worker says is heard from now on. Raises OSError, and the worker is ended, if the kernel has no room."""
        place = Place(worker, age=age)
        try:
            self._selector.register(worker, selectors.EVENT_READ, place)
        except OSError:
            worker.end()
            if self._workshop is not None and age >= 0:
                self._workshop.gone(self._key)
            raise
        return place

    def _load(self, copy: int, model: str, state: str) -> Place:
        plan: ModelPlan = self._plan.models[model]
        place = self._spawn(self._serves[model])
        place.copy, place.model, place.state = copy, model, state
        place.begun = time.monotonic()
        place.load_until = place.begun + plan.seconds
        place.load = self._request(place, {"do": "load", "load": plan.load, "args": plan.args})
        return place

    def _send(self, place: Place, call: Call) -> None:
        place.calls[self._request(place, call.request)] = (call, time.monotonic())

    def _end(self, place: Place) -> None:
        if not place.alive:
            return
        place.alive = False
        self._selector.unregister(place.worker)
        if place.writing:
            self._selector.unregister(place.worker.request_file())
        place.worker.end()
        if self._workshop is not None and place.age >= 0:
            self._workshop.gone(self._key)

    def _retire(self, place: Place) -> None:
        """A plain worker is not needed any more."""
        self._end(place)
        self._plain.remove(place)

    def _renew(self, model: str | None) -> None:
        """Workers that a configuration concerns begin anew: plain ones (model None or empty), or the copies of a model."""
        if model:
            for place in [p for p in self._copies.values() if p.model == model and p.state == "ready"]:
                self._gone(place, "its function was configured anew", "", [-1])
            return
        if self._workshop is not None:
            self._workshop.renew(self._key)
            return
        for place in list(self._plain):
            if place.state == "ready" and place.calls:
                place.state = "old"
            elif place.state == "ready":
                self._retire(place)

    def _request(self, place: Place, request: dict[str, Any]) -> int:
        number = place.worker.send(request)
        self._flush(place)
        return number

    def _flush(self, place: Place) -> None:
        """Hand on what a worker was too busy to take, as soon as it takes it."""
        writing = not place.worker.flush()
        if writing and not place.writing:
            self._selector.register(place.worker.request_file(), selectors.EVENT_WRITE, place)
        elif place.writing and not writing:
            self._selector.unregister(place.worker.request_file())
        place.writing = writing

    def _look(self, seconds: float | None) -> None:
        """Takes what workers say, and hands on what they take; waits up to `seconds`."""
        for key, events in self._selector.select(seconds):
            if events & selectors.EVENT_READ:
                self._receive(key.data)
            elif key.data.alive:
                self._flush(key.data)

    # ------------------------------------------------------------------ what happens
    def _receive(self, place: Place) -> None:
        if not place.alive:  # ended since the selector saw it
            return
        replies = place.worker.receive()
        for reply in replies or ():
            if reply["id"] == place.load and place.row >= 0:
                self._configured(place, reply["error"], reply["text"])
            elif reply["id"] == place.load:
                self._load_ended(place, reply["error"], reply["text"])
            elif reply["id"] in place.calls:
                call = place.calls.pop(reply["id"])[0].number
                self._deaths.pop(place.copy, None)
                self._reports.append(
                    Report("finished", call, reply["error"], reply["elapsed"], reply["value"], reply["quality"], reply["text"])
                )
        if replies is None:
            fault = place.worker.fault
            self._gone(
                place, f"the worker process wrote what is no reply ({fault}); see {place.worker.log}" if fault else "", "error"
            )
        elif self._workshop is not None and place.age >= 0 and not place.calls and not place.writing:
            self._give_back(self._workshop, place)

    def _hear_out(self, place: Place) -> None:
        """Take what a worker has said, and of a reply that it has begun the rest, which may be more than is read at once."""
        until = time.monotonic() + GRACE
        self._receive(place)
        while place.alive and (left := until - time.monotonic()) > 0 and place.worker.speaking(left):
            self._receive(place)

    def _load_ended(self, place: Place, error: str, text: str) -> None:
        place.load = -1
        elapsed = max(1, int(1e6 * (time.monotonic() - place.begun)))
        waiting, place.waiting = place.waiting, []
        pit_waits = place.state == "loading"
        if error == "ok":
            place.state = "ready"
            if pit_waits:
                self._reports.append(Report("loaded", place.copy, elapsed=elapsed))
            for call in waiting:
                self._send(place, call)
                self._reports.append(Report("started", call.number))
            return
        self._end(place)
        del self._copies[place.copy]
        if pit_waits:
            self._reports.append(Report("load_failed", place.copy, error, elapsed, text=text))
        else:
            self._break(place.copy, place.model, text, waiting)

    def _configured(self, place: Place, error: str, text: str) -> None:
        """A configuration has ended, well or not: if calls go on to fail, the Pit asks again."""
        row, model, elapsed = place.row, place.model, max(1, int(1e6 * (time.monotonic() - place.begun)))
        self._retire(place)
        self._renew(model)
        self._reports.append(Report("config_changed", row, error, elapsed, text=text))

    def _gone(self, place: Place, why: str, error: str, because: Sequence[int] = ()) -> None:
        """The worker ended, or is ended now because of some calls: these are over (reported, if there is an `error`), as are
        all of a worker that ended by itself; the others wait for the copy, which is loaded again; a load failed."""
        self._end(place)
        text = why or f"the worker process ended unasked ({place.worker.ending()}); see {place.worker.log}"
        if place.worker.outcome is not None and place.worker.outcome.left:
            text += f"; {place.worker.outcome.left} processes beneath it could not be ended"
        now = time.monotonic()
        for call, since in place.calls.values():
            if because and call.number not in because:
                place.waiting.append(call)
            elif error:
                self._reports.append(Report("finished", call.number, error, max(1, int(1e6 * (now - since))), text=text))
        place.calls.clear()
        if place.row >= 0:
            self._configured(place, error, text)
        elif place.copy < 0:
            self._plain.remove(place)
        elif place.load >= 0:
            self._load_ended(place, error, text)
        else:
            self._deaths[place.copy] += not because
            if because or (deaths := self._deaths[place.copy]) < DEATHS:
                self.reload(place.copy, place.model, text, place.waiting)
                return
            del self._copies[place.copy]
            self._broken[place.copy] = place.model, f"{text}; so it did {deaths} times, with no call answered in between"

    def _expire(self, now: float) -> None:
        for place in self._places():
            if place.late(now):
                self._hear_out(place)
            if late := place.late(now):
                self._gone(place, "the call did not end within its time limit", "timeout", late)
            elif place.load >= 0 and place.load_until <= now:
                what = "the configuration did not end" if place.row >= 0 else f"model {place.model} did not load"
                self._gone(place, f"{what} within its time limit", "timeout")
