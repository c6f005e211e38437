"""`kill -9` at random moments, again and again: `python -m tests.conductor.kills --kills 500 --seed 1`.

Each run of an example is killed several times and then left to end. After every kill the journal must begin with all rows that
were there before; at the end no result may be lost or stand twice, and the outputs must be those of a run that nobody
disturbed. Calls that began again are counted: their side effects may have happened more than once, under the same key.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conductor.errors import ConductorError
from conductor.journal import Row, read_journal
from conductor.orchestrator import begin, resume
from conductor.report import report_run, verify_run
from conductor.tiers import read_output
from conductor.workflow import load_workflow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PER_RUN = 10  # kills of one run
SECONDS = (0.05, 2.5)  # between the begin of a conductor and its end


@dataclass
class Tally:
    """What was counted over all runs of one workflow."""

    runs: int = 0
    kills: int = 0
    rows: int = 0
    results: int = 0
    again: int = 0  # calls that were under way in a kill
    snapshots: int = 0
    faults: list[str] = field(default_factory=list)


def child(work: Any) -> int:
    """A process that does `work` and ends: its number."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def killed(process: int, seconds: float) -> bool:
    """Whether a child still ran after so long and was killed. Raises ChildProcessError if it ended otherwise than well."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            break
        if time.monotonic() >= until:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            break
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise ChildProcessError(f"the conductor ended with status {os.waitstatus_to_exitcode(status)}")
    return False


def rows_of(folder: Path) -> list[Row]:
    """What a journal holds; nothing, if its run never began."""
    try:
        return list(read_journal(folder))
    except ConductorError as error:
        if "its run never began" in str(error) or "there is no journal" in str(error) or "journal schema 0" in str(error):
            return []
        raise


def outputs_of(folder: Path) -> dict[str, Any]:
    """Every task's output in the end, but for what a clock said: two runs may well agree on that by chance."""
    view = verify_run(folder).view
    found = {task: read_output(folder, name) for task, name in view.outputs.items() if name not in view.deleted}
    return {
        task: {k: v for k, v in output.items() if k != "microseconds"} if isinstance(output, dict) else output
        for task, output in found.items()
    }


def disturbed(file: Path, runs: Path, rng: random.Random, kills: int, tally: Tally, expected: dict[str, Any]) -> None:
    """One run with at most so many kills, and what must be true of it."""
    workflow = load_workflow(file)
    known: list[Row] = []
    folder: Path | None = None
    limit = [*(rng.uniform(*SECONDS) for _ in range(kills)), float("inf")]
    for seconds in limit:
        if folder is None or not known:
            place = runs / str(rng.getrandbits(40))
            process = child(lambda place=place: begin(workflow, place, strategy="parallel"))
        else:
            process = child(lambda folder=folder: resume(folder))
        was_killed = killed(process, seconds)
        tally.kills += was_killed
        if not known:
            (folder,) = list(place.iterdir()) if place.exists() else (None,)
        found = rows_of(folder) if folder is not None else []
        if found[: len(known)] != known:
            tally.faults.append(f"{folder}: rows that were recorded are not there any more")
        known = found
        if not was_killed or (known and known[-1].kind == "end"):  # killed after its end: there is nothing to go on with
            break
    assert folder is not None
    tally.runs += 1
    tally.rows += len(known)
    check(folder, known, tally, expected)


def check(folder: Path, rows: list[Row], tally: Tally, expected: dict[str, Any]) -> None:
    """Results, outputs and the replay of a run that ended."""
    report = report_run(folder)
    if report.status != "solved":
        tally.faults.append(f"{folder}: {report.status}: {[c for c in report.calls if c.result != 'ok'][-3:]}")
    tasks = {row.data["call"]: row.data["task"] for row in rows if row.kind == "intent"}
    ends = [row.data for row in rows if row.kind == "event" and row.data["kind"] == "finished" and row.data["applied"]]
    good = Counter(tasks[end["subject"]] for end in ends if end["error"] == "ok")
    tally.results += good.total()
    tally.snapshots += sum(row.kind == "snapshot" for row in rows)
    tally.again += sum(len(row.data["lost"]) for row in rows if row.kind == "resume")
    for what, count in (("call", Counter(end["subject"] for end in ends)), ("task", good)):
        if twice := [name for name, times in count.items() if times > 1]:
            tally.faults.append(f"{folder}: results recorded twice: {what}s {twice}")
    keys = {(row.data["task"], row.data["key"]) for row in rows if row.kind == "intent"}
    if len(keys) != len({task for task, _ in keys}):
        tally.faults.append(f"{folder}: a task has two keys")
    for task, value in outputs_of(folder).items():
        if task in expected and expected[task] != value:
            tally.faults.append(f"{folder}: {task} came to {value!r:.200}, not {expected[task]!r:.200}")


def undisturbed(file: Path, runs: Path) -> dict[str, Any]:
    """The outputs that two runs which nobody disturbed agree on: others hold times, or what is natural noise."""
    first, second = (outputs_of(begin(load_workflow(file), runs / name, strategy="parallel").folder) for name in "ab")
    return {task: value for task, value in first.items() if task in second and second[task] == value}


def kill_all(files: Iterable[Path], kills: int, seed: int) -> Iterator[tuple[str, int, Tally]]:
    """Name, number of outputs that are compared, and tally of each workflow; `kills` of every one."""
    for file in files:
        rng, tally = random.Random(f"{seed} {file.parent.name}"), Tally()
        with TemporaryDirectory() as scratch:
            place = Path(scratch)
            expected = undisturbed(file, place / "runs")
            while tally.kills < kills and not tally.faults:
                disturbed(file, place / "runs", rng, min(PER_RUN, kills - tally.kills), tally, expected)
            yield file.parent.name, len(expected), tally


def main() -> int:
    """The command line; 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.conductor.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="of all workflows together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", nargs="*", type=Path, help="workflow files (default: those of the examples)")
    arguments = parser.parse_args()
    files = arguments.files or sorted(EXAMPLES.glob("*/workflow.yaml"))
    os.environ.setdefault("FQ_SNAPSHOT_EVERY", "40")
    faults = 0
    for name, compared, tally in kill_all(files, -(-arguments.kills // len(files)), arguments.seed):
        told = f"{name}: {tally.kills} kills in {tally.runs} runs, {tally.rows} rows, {tally.snapshots} snapshots; "
        told += f"{tally.results} results, {tally.again} calls began again, {compared} outputs of each run compared; "
        print(told + ("; ".join(tally.faults) or "0 lost, 0 twice, all right"), flush=True)
        faults += len(tally.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
