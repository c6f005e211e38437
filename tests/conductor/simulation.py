"""Whole histories of a conductor in virtual time: scripted workers, a disk and a clock that one seed decides about.

Calls fail, hang, straggle, answer twice, too late or for somebody else; copies do not load; the disk is full for a while; the
process dies at any moment, with what it had not committed, or is told to stop. The orchestrator, its journal (a real file),
snapshots, the fold and the Pit are those of production. What must hold is checked on the way (`World`, `Workers`) and at the
end (`check_end`). `python -m tests.conductor.simulation --histories 20000` runs many, `--seed 123` one, and tells it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from conductor.advice import Advice
from conductor.clock import Clock
from conductor.decision_maker import Decision
from conductor.errors import DiskFull, Stopped
from conductor.files import canonical, digest
from conductor.instruments.sandbox import Limits
from conductor.journal import Journal, run_folder
from conductor.model_manager import Report
from conductor.orchestrator import Orchestrator, first_row, fold_runs
from conductor.pit_interface import Folded, PitInterface
from conductor.report import verify_journal
from conductor.run import Run
from conductor.tiers import read_output
from conductor.workflow import Plan, Workflow
from pit.handle import Pit
from pit.layout import EXPOSURES, WAIT
from pit.spec import WorkflowSpec, order_tasks
from tests.twin.driver import random_workflow

WILD = 300  # ticks with faults; what is left then must end in peace
TAME = 30_000  # a pool that was backed off from again and again may be closed for hours
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

    def choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray) -> Decision:
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


def specs_of(rng: random.Random) -> list[WorkflowSpec]:
    """One to three random workflows that come to an end."""
    specs = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        workflow = random_workflow(rng)
        system = workflow["system"]
        system["max_attempts"] = system["max_attempts"] or rng.randint(2, 9)
        if rng.random() < 0.3:  # an output has some 80 bytes
            tiers = {"hot": rng.choice((80, 200)), "warm": rng.choice((None, 200)), "cold": rng.choice((None, 100))}
            system["store"] = {**tiers, "fetch_seconds": {"warm": 0.1, "cold": rng.choice((0.5, 3.0))}}
        system["order_hidden"], system["deny"] = False, [name for name in system["deny"] if "." in name]
        spec = order_tasks(WorkflowSpec.model_validate(workflow))
        specs.append(WorkflowSpec.model_validate_json(canonical(spec.model_dump())))  # as `conductor.workflow` does
    return specs


def make(world: World, number: int, view: PitInterface, journal: Journal, record: dict[str, Any], loud: bool) -> Run:
    """A run with scripted workers."""
    spec = view.workflow
    limit = world.rng.choice((1.0, 10.0, 100.0))
    plan = Plan.model_validate({"functions": {name: {"kind": "x", "seconds": limit} for name in spec.system.functions}})
    workflow = Workflow(spec, plan, Limits(), Path("/"))

    def observer(kind: str, at: int, text: str) -> None:
        world.told[kind] += 1
        if loud:
            print(f"{at / 1e6:9.3f} s  run {number}  {kind:<12} {text}")

    return Run(number, workflow, view, journal, record, Whim(world), Workers(world, number, spec), observer)


def first_time(world: World, specs: list[WorkflowSpec], loud: bool) -> None:
    """The conductor that begins all runs."""
    journal = SimulatedJournal(world, new=True)
    orchestrator = SimulatedOrchestrator(world, journal)
    try:
        for number, spec in enumerate(specs):
            folder = "." if len(specs) == 1 else f"{number:03}"
            (world.folder / folder).mkdir(exist_ok=True)
            exposure = world.rng.choice(EXPOSURES)
            view = PitInterface(spec, exposure, f"run {number}")
            workflow = Workflow(spec, Plan(), Limits(), Path("/"))
            record = first_row(workflow, f"run {number}", folder, Advice("sequential", None, None))
            orchestrator.begin(make(world, number, view, journal, {**record, "began": "", "exposure": exposure}, loud))
    except BaseException:
        orchestrator.close()
        raise
    orchestrator.serve()


def next_time(world: World, loud: bool) -> None:
    """A conductor that goes on where the last one died."""
    journal = SimulatedJournal(world, new=False)
    orchestrator = SimulatedOrchestrator(world, journal)
    try:
        folds = fold_runs(journal.path)
        for number, folded in enumerate(folds):
            if not folded.ended:
                orchestrator.go_on(make(world, number, folded.view, journal, folded.run, loud), folded.time)
    except BaseException:
        orchestrator.close()
        raise
    orchestrator.serve()


def history(seed: int, loud: bool = False) -> tuple[str, Counter[str]]:
    """One history; the journal's last hash and what happened how often. Raises Violation."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch, worlds_disk() as disk:
        world = World(seed, Path(scratch) / "run")
        disk.append(world)
        os.environ["FQ_SNAPSHOT_EVERY"] = str(world.rng.choice((4, 15, 60)))
        specs = specs_of(world.rng)
        ended = False
        while not ended:
            before = len(world.rows)
            try:
                if before:
                    next_time(world, loud)
                else:
                    shutil.rmtree(world.folder, ignore_errors=True)
                    first_time(world, specs, loud)
                ended = True
            except (Crash, Stopped) as reason:
                if loud:
                    print(f"--- {type(reason).__name__} {reason}")
                world.now += int(1e6 * world.rng.uniform(0.0, 3.0))
            if world.rows:
                with contextlib.closing(sqlite3.connect(world.folder / "journal.sqlite")) as file:
                    found = [row_hash for (row_hash,) in file.execute("SELECT hash FROM rows ORDER BY seq")]
                must(found == [row[-1] for row in world.rows], "what is in the journal is not what was committed")
        check_end(world)
        return world.rows[-1][-1], world.told


@contextlib.contextmanager
def worlds_disk() -> Iterator[list[World]]:
    """Files are written by the world that is put into the list."""
    world: list[World] = []

    def write_once(path: Path, content: bytes) -> None:
        world[0].write_once(path, content)

    with patch("conductor.tiers.write_once", write_once), patch("conductor.snapshot.write_once", write_once):
        yield world


def check_end(world: World) -> None:
    """Every run ended, replays from its first row as from its snapshots, and has the outputs that were given."""
    verified = verify_journal(world.folder)
    shortened = fold_runs(world.folder / "journal.sqlite")
    for number, (folded, short) in enumerate(zip(verified.runs, shortened)):
        must(folded.ended and short.ended, "has not ended")
        must(folded.view.pit.state_hash() == short.view.pit.state_hash(), "a snapshot leads to another state")
        check_run(world, number, folded)
    for (run, call), intent in world.intents.items():
        must(intent["key"] == f"run {run}/{intent['task']}", "a task has another key")
        must(call >= 0, "no call")


def check_run(world: World, number: int, folded: Folded) -> None:
    """Outputs and attempts of one run."""
    folder = run_folder(world.folder, folded.run)
    for task, name in folded.view.outputs.items():
        if name in folded.view.deleted:
            continue
        value = read_output(folder, name)
        must(value["run"] == number and digest(value) == name, f"{task} has an output of another run")
        must(name in world.outputs[number, value["task"]], f"{task} has an output that was never recorded")
    attempts: dict[str, list[int]] = {}
    for (run, _), intent in world.intents.items():
        if run == number:
            attempts.setdefault(intent["task"], []).append(intent["attempt"])
    for task, numbers in attempts.items():
        must(numbers == list(range(1, len(numbers) + 1)), f"{task} was called as attempts {numbers}")


def main() -> int:
    """The command line; 1 if any history was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.conductor.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="one history, told as it happens")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(*history(arguments.seed, loud=True))
        return 0
    began, total, faults = time.monotonic(), Counter[str](), 0
    for seed in range(arguments.first, arguments.first + arguments.histories):
        try:
            total.update(history(seed)[1])
            if seed % 1000 == 999:
                print(f"up to seed {seed}: {faults} not as they must be", flush=True)
        except Exception:
            faults += 1
            print(f"seed {seed}: {traceback.format_exc()}", flush=True)
    print(f"{arguments.histories} histories in {time.monotonic() - began:.0f} s, {faults} not as they must be; {dict(total)}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
