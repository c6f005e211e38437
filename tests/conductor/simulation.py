"""Whole histories of a conductor in virtual time: scripted workers, a disk and a clock that one seed decides about.

Calls fail, hang, straggle, answer twice, too late or for somebody else; copies do not load; the disk is full for a while; the
process dies at any moment, with what it had not committed, or is told to stop. The orchestrator, its journal (a real file),
snapshots, the fold and the Pit are those of production. What must hold is checked on the way (`simulated`) and at the
end (`check_end`). `python -m tests.conductor.simulation --histories 20000` runs many, `--seed 123` one, and tells it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from conductor.advice import Advice
from conductor.errors import Stopped
from conductor.files import canonical, digest
from conductor.instruments.sandbox import Limits
from conductor.journal import Journal, run_folder
from conductor.orchestrator import first_row, fold_runs
from conductor.pit_interface import Folded, PitInterface
from conductor.report import verify_journal
from conductor.run import Run
from conductor.tiers import read_output
from conductor.workflow import Plan, Workflow
from pit.layout import EXPOSURES
from pit.spec import WorkflowSpec, order_tasks
from tests.conductor.simulated import (
    Crash,
    SimulatedJournal,
    SimulatedOrchestrator,
    Whim,
    Workers,
    World,
    must,
)
from tests.twin.driver import random_workflow


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
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(dir=shared) as scratch, worlds_disk() as disk, patch.dict(os.environ):
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
