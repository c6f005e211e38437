"""The world of a simulated history: workers, a disk, a clock and a decider that one seed decides about.

What must hold at any time is checked here (`must`); what must hold at the end, in `tests.conductor.simulation`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np

from conductor.clock import Clock
from conductor.decision_maker import Decision
from conductor.errors import DiskFull
from conductor.files import digest
from conductor.journal import Journal
from conductor.orchestrator import Orchestrator
from conductor.places import Report
from pit.handle import Pit
from pit.layout import WAIT
from pit.spec import WorkflowSpec

WILD = 300  # ticks with faults; what is left then must end in peace
TAME = 200_000  # a pool that was backed off from again and again may be closed for hours, while copies come and go
CRASHES = 6
FAILURES = ("error", "timeout", "throttled", "precondition", "access", "invalid", "lost", "nonsense")


class Crash(BaseException):
    """The process dies here."""


class Violation(Exception):
    """Something that must never be."""


def must(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


class World:
    """Time, the disk and chance; and what is known to be on the disk."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder, self.now, self.ticks, self.crashes = folder, 0, 0, 0
        self.wild = True
        self.crashing = self.rng.choice((0.0, 0.002, 0.01, 0.03))
        self.filling = self.rng.choice((0.0, 0.0, 0.05, 0.3))
        self.failing = self.rng.choice((0.0, 0.1, 0.3))
        self.lying = self.rng.choice((0.0, 0.0, 0.1, 0.3))  # answers out of turn
        self.pace = self.rng.choice((0.3, 1.0, 3.0))
        self.rows: list[tuple[Any, ...]] = []  # committed, as in the file
        self.intents: dict[tuple[int, int], dict[str, Any]] = {}  # (run, call) -> what was recorded before it was executed
        self.recorded: Counter[tuple[int, int]] = Counter()  # (run, call) -> how often its end was taken
        self.outputs: dict[tuple[int, str], set[str]] = {}  # (run, task) -> digests of its recorded results
        self.answers: dict[tuple[int, int], str] = {}  # (run, call) -> digest of what it gave
        self.told: Counter[str] = Counter()

    def chance(self, share: float) -> bool:
        return self.wild and self.rng.random() < share

    def perhaps_crash(self) -> None:
        if self.crashes < CRASHES and self.chance(self.crashing):
            self.crashes += 1
            self.told["crash"] += 1
            raise Crash

    def perhaps_full(self) -> None:
        if self.chance(self.filling):
            self.told["disk full"] += 1
            raise DiskFull("the disk is full")

    def write_once(self, path: Path, content: bytes) -> None:
        """As `conductor.files.write_once`, on a disk that may be full, without forcing anything."""
        self.perhaps_crash()
        self.perhaps_full()
        if not path.exists():
            path.write_bytes(content)
        self.perhaps_crash()

    def committed(self, rows: list[tuple[Any, ...]]) -> None:
        """Rows became durable."""
        self.rows += rows
        for _, run, kind, _, payload, _ in rows:
            data = json.loads(payload)
            if kind == "intent":
                must((run, data["call"]) not in self.intents, f"two intents of call {data['call']}")
                self.intents[run, data["call"]] = data
            elif kind == "event" and data["kind"] == "finished" and data["applied"]:
                call = (run, data["subject"])
                self.recorded[call] += 1
                must(self.recorded[call] == 1, f"the end of call {call} was recorded twice")
                must(call in self.intents, f"call {call} ended, and no intent was recorded")
                if data["error"] == "ok":
                    must(data["output"] == self.answers.get(call), f"call {call}: not the output that it gave")
                    self.outputs.setdefault((run, self.intents[call]["task"]), set()).add(data["output"])


class SimulatedJournal(Journal):
    """The real one, whose process may die around a commit and whose disk may be full."""

    def __init__(self, world: World, *, new: bool) -> None:
        self._world = world
        super().__init__(world.folder, new=new)

    def commit(self) -> None:
        self._world.perhaps_crash()
        if self._pending:
            self._world.perhaps_full()
        rows = list(self._pending)
        super().commit()
        self._world.committed(rows)
        self._world.perhaps_crash()


class SimulatedClock(Clock):
    """Virtual time that goes on while one waits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._watched: list[Any] = []

    def now(self) -> int:
        return self._world.now

    def watch(self, thing: Any) -> None:
        self._watched.append(thing)

    def forget(self, thing: Any) -> None:
        self._watched.remove(thing)

    def wait(self, microseconds: int | None) -> list[Any]:
        if microseconds is None or microseconds > 0:  # a look takes no time in which the process could die
            self._world.perhaps_crash()
        times = [deadline for thing in self._watched if (deadline := thing.deadline()) is not None]
        if microseconds is not None:
            times.append(self._world.now + max(0, microseconds))
        must(times, "waits for ever: nothing is under way and no timer runs")
        self._world.now = max(self._world.now, min(times))
        return [thing for thing in self._watched if thing.pending()]

    def pause(self, microseconds: int) -> None:
        self._world.perhaps_crash()
        self._world.now += microseconds

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class Workers:
    """A model manager whose workers follow a script; checks that what it is asked to do may be done."""

    def __init__(self, world: World, run: int, spec: WorkflowSpec) -> None:
        self._world, self._run, self._spec = world, run, spec
        self._queue: list[tuple[int, int, Report]] = []
        self._count = 0
        self._busy: dict[int, tuple[int, dict[str, int]]] = {}  # call -> (when its work ends, places that it takes by pool)
        self._copies: dict[int, str] = {}  # copy -> model, in memory or on its way
        self._ready_at: dict[int, int] = {}
        tasks = {task.id: task for task in spec.tasks}
        self._content = {name: task.content for name, task in tasks.items()}
        self._budget: dict[str, str] = {}
        for function in spec.system.functions.values():
            for _, variant in function.variants():
                if variant.model is not None and (memory := spec.system.pools[variant.pool].memory) is not None:
                    self._budget[variant.model] = memory

    def _say(self, delay: float, report: Report) -> None:
        self._count += 1
        heappush(self._queue, (self._world.now + int(1e6 * delay), self._count, report))
        if report.kind == "finished" and self._world.chance(self._world.lying):  # once more, perhaps much later
            self._count += 1
            late = delay + self._world.rng.choice((0.0, 0.1, 5.0))
            heappush(self._queue, (self._world.now + int(1e6 * late), self._count, report))
        if self._world.chance(self._world.lying / 4):
            kind = self._world.rng.choice(("finished", "started"))
            self._count += 1
            heappush(self._queue, (self._world.now, self._count, Report(kind, 10_000 + self._count, value=1)))

    # ------------------------------------------------------------------ what an orchestrator asks for
    def check(self, functions: dict[str, list[str]], models: list[str], where: str) -> dict[str, str]:
        return {}

    def load(self, copy: int, model: str) -> None:
        self._world.perhaps_crash()
        must(copy not in self._copies, f"copy {copy} is loaded twice")
        self._copies[copy] = model
        self._check_memory()
        seconds = self._world.pace * self._spec.system.models[model].load_seconds * self._world.rng.uniform(0.5, 2.0)
        if self._world.chance(self._world.failing / 2):
            del self._copies[copy]
            self._say(seconds, Report("load_failed", copy, "load", max(1, int(1e6 * seconds)), text="no weights"))
        else:
            self._say(seconds, Report("loaded", copy, elapsed=max(1, int(1e6 * seconds))))
            self._ready_at[copy] = self._world.now + int(1e6 * seconds)

    def reload(self, copy: int, model: str, reason: str) -> None:
        self._copies[copy] = model
        self._check_memory()
        self._ready_at[copy] = self._world.now + int(1e6 * self._spec.system.models[model].load_seconds)
        self._say(0.0, Report("reload", copy, text=reason, value=model))

    def unload(self, copy: int) -> None:
        self._world.perhaps_crash()
        self._copies.pop(copy, None)
        self._say(self._world.rng.choice((0.0, 0.0, 0.2)), Report("unloaded", copy))

    def start(self, call: int, copy: int, job: dict[str, Any]) -> None:
        self._world.perhaps_crash()
        world, run = self._world, self._run
        intent = world.intents.get((run, call))
        must(intent is not None, f"call {call} is executed before its intent is durable")
        assert intent is not None
        same = all(intent[key] == job[key] for key in ("task", "function", "variant", "key", "attempt"))
        must(same and intent["copy"] == copy, f"call {call} is executed as {job}, and was recorded as {intent}")
        must(call not in self._busy and (run, call) not in world.answers, f"call {call} is executed twice")
        for name, value in job["inputs"].items():
            twins = [t for t, content in self._content.items() if t == name or (content and content == self._content[name])]
            known = set().union(*(world.outputs.get((run, twin), set()) for twin in twins))
            must(value is None or digest(value) in known, f"call {call}: input {name} is no recorded output")
        variant = getattr(self._spec.system.functions[job["function"]], job["variant"])
        if variant.model is not None:
            must(self._copies.get(copy) == variant.model, f"call {call} on copy {copy}, which does not hold {variant.model}")
        self._begin(call, copy, job, {variant.pool: variant.units, **variant.also}, variant.seconds)

    def _begin(self, call: int, copy: int, job: dict[str, Any], places: dict[str, int], seconds: float) -> None:
        world = self._world
        wait = max(0, self._ready_at.get(copy, 0) - world.now) / 1e6 if copy >= 0 else 0.0
        seconds *= world.pace * world.rng.uniform(0.3, 2.0) * (30.0 if world.chance(0.05) else 1.0)
        error = "ok"
        if world.chance(world.failing):
            error = world.rng.choice(FAILURES)
        if seconds > job["seconds"]:
            seconds, error = job["seconds"], "timeout"
        if wait:
            self._say(wait, Report("started", call))
        value = {"task": job["task"], "call": call, "of": digest(job["inputs"])[:8], "run": self._run}
        quality = world.rng.choice((None, world.rng.random()))
        world.answers[self._run, call] = digest(value) if error == "ok" else ""
        elapsed = max(1, int(1e6 * seconds))
        self._say(wait + seconds, Report("finished", call, error, elapsed, value if error == "ok" else None, quality, "why"))
        self._busy[call] = (world.now + int(1e6 * (wait + seconds)), places)
        taken: Counter[str] = Counter()
        for end, units in self._busy.values():
            if end > world.now:
                taken.update(units)
        for pool, count in taken.items():
            must(count <= self._spec.system.pools[pool].places, f"{count} places of pool {pool} are taken")

    def configure(self, row: int, function: str, variant: str, model: str | None) -> None:
        error = "error" if self._world.chance(self._world.failing) else "ok"
        self._say(self._world.rng.uniform(0.0, 2.0), Report("config_changed", row, error, 1))

    def cancel(self, call: int) -> None:
        self._world.perhaps_crash()
        self._busy.pop(call, None)
        if not self._world.chance(self._world.lying):  # else it answers all the same
            self._queue = [entry for entry in self._queue if entry[2].kind != "finished" or entry[2].subject != call]
            self._queue.sort()

    def _check_memory(self) -> None:
        taken: Counter[str] = Counter()
        for model in self._copies.values():
            if model in self._budget:
                taken[self._budget[model]] += self._spec.system.models[model].size
        for memory, size in taken.items():
            must(size <= self._spec.system.memory[memory], f"{size} units of {memory} are in use")

    # ------------------------------------------------------------------ what an orchestrator waits for
    def fileno(self) -> int:
        return -1

    def pending(self) -> bool:
        return bool(self._queue) and self._queue[0][0] <= self._world.now

    def deadline(self) -> int | None:
        return self._queue[0][0] if self._queue else None

    def poll(self, seconds: float | None) -> list[Report]:
        reports = []
        while self.pending():
            reports.append(heappop(self._queue)[2])
        return reports

    def close(self) -> None:
        self._queue.clear()


class Whim:
    """Decides by chance, and by a rule where it must come to an end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()

    def choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray, failed_again: bool) -> Decision:
        self._world.perhaps_crash()
        legal = np.flatnonzero(mask)
        action = int(self._world.rng.choice(legal)) if self._world.wild else pit.rule("critical_path")
        if action not in legal:
            action = WAIT if mask[WAIT] else int(legal[0])
        return Decision(action, "sequential", "")


class SimulatedOrchestrator(Orchestrator):
    """Counts ticks; one may be the last."""

    def __init__(self, world: World, journal: Journal) -> None:
        super().__init__(journal, SimulatedClock(world))
        self._world = world

    def tick(self) -> None:
        world = self._world
        world.ticks += 1
        world.wild = world.ticks < WILD
        must(world.ticks < TAME, "does not end")
        if world.crashes < CRASHES and world.chance(world.crashing):
            world.crashes += 1
            world.told["stop"] += 1
            self.stop("chance")
        world.perhaps_crash()
        super().tick()
        world.perhaps_crash()
