"""What a run did, from its journal: every call with its times, quality and price, and the score as the Pit estimates it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conductor.decision_maker import NEED_BUNDLE, ROUND_NOTE
from conductor.errors import printable
from conductor.guard import SHARE
from conductor.journal import Row, journal_path, read_journal, read_run, run_folder
from conductor.pit_interface import Fold, Folded, PitInterface, fold
from conductor.tiers import read_output
from pit.handle import Healing, Signature


@dataclass
class CallReport:
    """One call: seconds that it waited for its turn, for its model, and ran; `result`: `ok`, an error or `running`."""

    task: str
    function: str
    variant: str
    attempt: int
    wait: float
    load: float
    run: float = 0.0
    quality: float | None = None
    price: float = 0.0
    result: str = "running"
    text: str = ""


@dataclass
class RunReport:
    """One run. `score` holds `base`, `efficiency`, `stability`, `optimization`, `total`; seconds and units."""

    folder: str
    run: dict[str, Any]
    status: str = ""
    reason: str = ""  # why it was not solved, or how late it was
    makespan: float = 0.0
    spent: float = 0.0
    score: dict[str, float] = field(default_factory=dict)
    calls: list[CallReport] = field(default_factory=list)
    decisions: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, str] = field(default_factory=dict)  # of the tasks that nothing follows: id -> digest
    tasks: int = 0
    done: int = 0
    health: list[Signature] = field(default_factory=list)  # of variants and pools in which something was found
    healings: list[Healing] = field(default_factory=list)  # the last ones
    agreed: int = 0  # decisions in which the shadow would have done the same, of `shadowed`
    shadowed: int = 0
    far: int = 0  # decisions far from what the policy was trained on, of `measured`
    measured: int = 0


class _Watch:
    """Collects calls while the journal is folded."""

    def __init__(self) -> None:
        self.calls: dict[int, CallReport] = {}
        self._allotted: dict[int, tuple[int, int]] = {}  # call -> when it was decided and since when its task was ready, us
        self._started: dict[int, int] = {}  # call that runs -> us
        self.decisions: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.agreed = self.shadowed = self.far = self.measured = 0

    def __call__(self, row: Row, view: PitInterface) -> None:
        data = row.data
        self._look(row.time, view)
        if row.kind == "action":
            why = f" ({'' if data['note'] == ROUND_NOTE else 'policy '}{data['note']})" if data["note"] else ""
            self.decisions[data["by"] + why] += 1
            self.shadowed += data["shadow"] is not None
            self.agreed += data["shadow"] == data["action"]
            self.measured += data["distance"] is not None
            self.far += data["distance"] is not None and data["distance"] > SHARE
        elif row.kind == "intent":
            allotted, ready_at = self._allotted.get(data["call"], (row.time, row.time))
            self._started[data["call"]] = row.time
            self.calls[data["call"]] = CallReport(
                data["task"],
                data["function"],
                data["variant"],
                data["attempt"],
                (allotted - ready_at) / 1e6,
                (row.time - allotted) / 1e6,
            )
        elif row.kind in ("reload", "resume"):
            self.events[row.kind] += 1
        elif row.kind == "event" and data["applied"]:
            self.events[data["kind"]] += 1
            if data["kind"] == "finished" and data["subject"] in self.calls:
                call = self.calls[data["subject"]]
                self._started.pop(data["subject"], None)
                call.run, call.price = data["elapsed"] / 1e6, data["price"] / 1e6
                call.result, call.text = data["error"], data["text"]
                index = view.pit.task_ids.index(call.task)
                call.quality = float(view.pit.tasks()["quality"][index]) if data["error"] == "ok" else None

    def _look(self, time: int, view: PitInterface) -> None:
        """Notes calls that have begun to wait or run, and ends those that the Pit has cancelled."""
        ready = view.pit.tasks()["ready_time"]
        for call in view.pit.calls():
            self._allotted.setdefault(int(call["id"]), (time, int(ready[call["task"]])))
        for number in [number for number in self._started if number not in view.calls]:
            self.calls[number].run = (time - self._started.pop(number)) / 1e6
            self.calls[number].result = "cancelled"


def report_run(place: str | os.PathLike[str]) -> RunReport:
    """Fold a run's journal and report. Raises ConductorError if the journal is not whole or replays differently."""
    watch = _Watch()
    folded = fold(read_run(place), watch)
    summary = folded.view.pit.summary()
    followed = {name for task in folded.view.workflow.tasks for name in task.inputs}
    return RunReport(
        folder=str(run_folder(place, folded.run)),
        run=folded.run,
        status=folded.view.status() if folded.ended else "not ended",
        reason=folded.view.reason() if folded.ended else "",
        makespan=folded.time / 1e6,
        spent=summary["spent"],
        score={name: summary[name] for name in ("base", "efficiency", "stability", "optimization", "total")},
        calls=list(watch.calls.values()),
        decisions=watch.decisions,
        events=watch.events,
        outputs={name: digest for name, digest in folded.view.outputs.items() if name not in followed},
        tasks=summary["tasks"],
        done=summary["done"],
        health=[s for s in folded.view.pit.signatures() if s.pattern != "none"],
        healings=folded.view.pit.healings(),
        agreed=watch.agreed,
        shadowed=watch.shadowed,
        far=watch.far,
        measured=watch.measured,
    )


class Verified(NamedTuple):
    """A journal that is whole: its runs, and its last row."""

    runs: list[Folded]
    last: Row


def verify_journal(place: str | os.PathLike[str]) -> Verified:
    """Check a journal's hash chain and every output, and replay all its runs. Raises ConductorError for what fails."""
    path, folds, outputs, last = journal_path(place), list[Fold](), list[dict[str, None]](), None
    for row in read_journal(path):
        if row.kind == "run":
            folds.append(Fold(row))
            outputs.append({})
        else:
            folds[row.run].take(row)
        if row.kind == "event" and row.data["output"]:
            outputs[row.run][row.data["output"]] = None
        last = row
    assert last is not None  # an empty journal is refused
    runs = [folding.result() for folding in folds]
    for folded, names in zip(runs, outputs):
        for name in names:
            if name not in folded.view.deleted:  # the store had no room for it, and nobody needed it any more
                read_output(run_folder(path, folded.run), name)
    return Verified(runs, last)


def verify_run(place: str | os.PathLike[str]) -> Folded:
    """As `verify_journal`, for the journal of a single run."""
    return verify_journal(place).runs[0]


def _lines(report: RunReport) -> Iterator[str]:
    """What a run came to, in words."""
    counts = ", ".join(
        f"{count} by {'' if name == 'sequential' else 'the '}{name}" for name, count in report.decisions.items()
    )
    yield (
        f"{report.status}: {report.done} of {report.tasks} tasks in {report.makespan:.2f} s, cost {report.spent:.3f}; "
        f"{report.events['loaded']} loads, {report.events['unloaded']} unloads, {report.events['reload']} reloads; "
        f"decisions: {counts}"
    )
    if report.run["bundle"] and report.run["strategy"] in NEED_BUNDLE:
        yield f"bundle: {report.run['bundle']}, {report.run['signature']}"
    if report.measured:
        yield f"far from what the policy was trained on: {report.far} of {report.measured} decisions"
    if report.shadowed:
        agreed = f"agreed in {report.agreed} of {report.shadowed} decisions"
        yield f"shadow {report.run['shadow']}, {report.run['shadow_signature']}: {agreed}"
    if report.reason:
        yield report.reason
    yield "score: " + ", ".join(f"{name} {value:.3f}" for name, value in report.score.items())
    for sign in report.health:
        yield (
            f"health of {sign.name}: {sign.pattern} since {sign.since / 1e6:.2f} s; chance of failure {sign.chance:.2f}, "
            f"durations {sign.level:.2f} of what was calm, quality {sign.coherence:.2f} of what was expected"
        )
    for healing in report.healings:
        after = "nothing known yet" if healing.after is None else f"{healing.before:.2f} -> {healing.after:.2f}"
        yield f"healing at {healing.time / 1e6:.2f} s: {healing.action} of {healing.subject}: {after}"


def print_run(report: RunReport, console: Console) -> None:
    """The calls of a run and what they came to."""
    table = Table("task", "function", "variant", box=box.SIMPLE_HEAD, title=escape(report.run["id"]))
    for name in ("attempt", "wait s", "load s", "run s", "quality"):
        table.add_column(name, justify="right")
    table.add_column("result", overflow="fold")
    for call in report.calls:
        quality = "" if call.quality is None else f"{call.quality:.2f}"
        result = f"{call.result}: {call.text.splitlines()[0] if call.text else ''}"
        if call.result in ("ok", "running"):
            result = "ended with the run" if call.result == "running" and report.status != "not ended" else call.result
        table.add_row(
            call.task, call.function, call.variant, str(call.attempt), f"{call.wait:.2f}", f"{call.load:.2f}",
            f"{call.run:.2f}", quality, escape(printable(result[:240])),
        )  # fmt: skip
    console.print(table)
    for line in _lines(report):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
    for name, digest in report.outputs.items():
        console.print(f"output of {name}: outputs/{digest}", markup=False)
    console.print(f"files, logs and journal: {report.folder}", soft_wrap=True, markup=False)


def print_comparison(reports: list[RunReport], console: Console) -> None:
    """Runs of one workflow under several strategies, side by side."""
    table = Table("strategy", "status", box=box.SIMPLE_HEAD, title="strategies, each really run")
    for name in ("makespan s", "cost", "calls", "loads", "base", "efficiency", "stability", "optimization", "total"):
        table.add_column(name, justify="right")
    for report in reports:
        table.add_row(
            report.run["strategy"], report.status, f"{report.makespan:.2f}", f"{report.spent:.3f}", str(len(report.calls)),
            str(report.events["loaded"]), *(f"{report.score[name]:.3f}" for name in report.score),
        )  # fmt: skip
    console.print(table)
