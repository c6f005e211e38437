"""Whole runs in which the Pit hedges, cancels, queues, skips, times out and loads by itself, over real processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.__main__ import main
from conductor.bundle import Bundle, write_bundle
from conductor.errors import ConductorError
from conductor.journal import read_journal
from conductor.model_manager import ModelManager
from conductor.orchestrator import begin, resume
from conductor.pit_interface import STUCK, Rule, fold
from conductor.places import Report
from conductor.record import decisions
from conductor.report import CallReport, RunReport, report_run, verify_run
from conductor.run import Observer
from conductor.workflow import load_workflow
from pit import rules
from pit.handle import Event, Pit
from pit.layout import ARRIVE, N_VERBS, VERBS, WAIT
from pit.spec import WorkflowSpec
from tests.conductor.helpers import output_of, preferring, small_workflow, whole_workflow
from tests.conductor.test_crash import effects, finished, killed_run
from tests.conductor.test_record import check_against_journal

Write = Callable[[dict[str, Any]], Path]


def policy(folder: Path, *names: str) -> Bundle:
    return write_bundle(folder / "-".join(names), **preferring(*names))


def run(path: Path, *names: str, strategy: str = "parallel", observer: Observer | None = None) -> RunReport:
    """A run by a policy that prefers these verbs, or by a rule; its journal gives the same bits again."""
    bundle = policy(path.parent, *names) if names else None
    strategy = "adaptive" if names else strategy
    result = begin(load_workflow(path), path.parent / "runs", strategy=strategy, bundle=bundle, observer=observer)
    assert verify_run(result.folder).ended
    check_against_journal(result.folder, decisions(result.folder))
    return report_run(result.folder)


def of(report: RunReport, task: str) -> list[CallReport]:
    return [call for call in report.calls if call.task == task]


def verbs(report: RunReport) -> Counter[str]:
    """How often each verb was decided."""
    actions = [row.data["action"] for row in read_journal(report.folder) if row.kind == "action"]
    return Counter(VERBS[action % N_VERBS] if action < WAIT else f"global {action - WAIT}" for action in actions)


def end(report: RunReport) -> Any:
    return output_of(Path(report.folder), report.outputs["end"])


def python(call: str, **more: Any) -> dict[str, Any]:
    return {"kind": "python", "call": f"work:{call}", "seconds": 20, **more}


EXPECTED = {"first": {"q1": 3}, "s": 4, "a": 11, "workers": False}


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_a_time_out_ends_what_hangs(write_workflow: Write, strategy: str) -> None:
    """Nobody decides it, and nothing else happens then: the conductor wakes for the Pit's timer."""
    workflow = whole_workflow()
    workflow["system"]["time_out"] = 6.0  # and so long has the second call, whose worker begins first
    if strategy == "sequential":  # q1 is not called beside alt, and may come after it
        workflow["tasks"][6]["after"] = ["q1"]
        workflow["tasks"] = [task for task in workflow["tasks"] if task["id"] != "alt"]
    report = run(write_workflow(workflow), strategy=strategy)
    assert report.status == "solved" and end(report) == {**EXPECTED, "o": 7, "q2": 0}
    assert [call.result for call in of(report, "s")] == ["cancelled", "ok"] and of(report, "s")[0].run > 5.9
    assert verbs(report)["cancel"] == 0


def test_a_hedge_wins_and_the_straggler_is_ended(write_workflow: Write) -> None:
    """Also: what is skipped is null, an alternative takes what is there, an unused model leaves memory by itself."""
    report = run(write_workflow(whole_workflow()), "skip", "hedge", "standard", "queue", "wait")
    assert report.status == "solved" and end(report) == {**EXPECTED, "o": None, "q2": None}
    assert [call.result for call in of(report, "s")] == ["cancelled", "ok"]
    assert verbs(report)["hedge"] >= 1 and verbs(report)["global 3"] == 2
    assert not of(report, "o")
    rows = list(read_journal(report.folder))
    events = [row for row in rows if row.kind == "event"]
    call = next(row.data["call"] for row in rows if row.kind == "intent" and row.data["task"] == "a")
    used = next(row.time for row in events if row.data["kind"] == "finished" and row.data["subject"] == call)
    unloaded = [row.time for row in events if row.data["kind"] == "unloaded"]
    assert unloaded or rows[-1].time < used + 1_000_000  # it is kept alive for 0.2 s; nothing else wanted its memory
    starts = {row.data["task"]: row.time for row in rows if row.kind == "intent"}
    assert starts["s"] > 500_000


def test_a_cancelled_task_begins_again(write_workflow: Write) -> None:
    workflow = whole_workflow()
    workflow["system"]["functions"]["slow"]["standard"]["seconds"] = 3.0  # 6 for the second call, whose worker begins first
    report = run(write_workflow(workflow), "cancel", "standard", "wait")
    assert report.status == "solved" and end(report) == {**EXPECTED, "o": 7, "q2": 0}
    assert [call.result for call in of(report, "s")] == ["cancelled", "ok"] and verbs(report)["cancel"] >= 1
    assert of(report, "s")[0].run < 20.0  # not by the time-out


def test_of_two_outputs_at_once_only_the_first_is_kept(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both calls of a hedged task end between two looks of the conductor."""
    workflow = whole_workflow()
    workflow["tasks"] = [{"id": "end", "function": "slow"}]
    workflow["instruments"]["functions"]["slow"] = python("together")
    poll = ModelManager.poll

    def seldom(manager: ModelManager, seconds: float | None) -> list[Report]:
        reports, until = poll(manager, seconds), time.monotonic() + 60
        while sum(report.kind == "finished" for report in reports) == 1 and time.monotonic() < until:
            time.sleep(0.01)
            reports += poll(manager, 0.0)
        return reports

    monkeypatch.setattr(ModelManager, "poll", seldom)
    report = run(write_workflow(workflow), "hedge", "standard", "wait")
    assert report.status == "solved" and sorted(call.result for call in report.calls) == ["cancelled", "ok"]
    told = [row.data for row in read_journal(report.folder) if row.kind == "event" and row.data["kind"] == "finished"]
    assert [(e["applied"], bool(e["output"])) for e in told] == [(True, True), (False, False)]
    assert [file.name for file in (Path(report.folder) / "outputs").iterdir()] == [report.outputs["end"]]


def test_a_cancel_spares_the_other_calls_of_a_copy(write_workflow: Write) -> None:
    """The process ends; what else ran there begins again where the model was loaded again, as the same attempt."""
    workflow = small_workflow(fa=python("straggle_once"))
    workflow["system"]["verbs"] = ["standard", "cancel"]
    workflow["system"]["models"]["A"]["serves"] = 2
    workflow["system"]["functions"]["fc"] = {"standard": {"pool": "cpu", "model": "A", "seconds": 30}}
    workflow["instruments"]["functions"]["fc"] = python("begun_twice")
    workflow["system"]["functions"]["fa"]["standard"]["seconds"] = 1.5  # overrun at 3: later than a copy is loaded again
    workflow["tasks"][2].update(function="fc")
    report = run(write_workflow(workflow), "cancel", "standard", "wait")
    assert report.status == "solved" and output_of(Path(report.folder), report.outputs["c"]) == 123
    assert [call.result for call in of(report, "a1")] == ["cancelled", "ok"]
    assert [call.result for call in of(report, "a2")] == ["ok"] and report.events["reload"] == 1
    assert report.events["started"] >= 1  # the Pit knows that they began later than it had said
    a2 = [(what, process) for what, task, _, process in effects(Path(report.folder)) if task == "a2"]
    assert [what for what, _ in a2] == ["begin", "begin", "end"] and a2[0][1] != a2[1][1] == a2[2][1]


def test_the_pit_begins_what_is_queued(write_workflow: Write) -> None:
    workflow = small_workflow()
    workflow["system"]["verbs"] = ["standard", "queue"]
    workflow["system"]["pools"] = {"cpu": {"places": 1, "memory": "ram"}, "side": {"places": 1}}
    workflow["system"]["functions"]["other"] = {"standard": {"pool": "side", "seconds": 0.01}}
    workflow["instruments"]["functions"]["other"] = python("add")
    workflow["tasks"] = [{"id": name, "function": "plain", "priority": p} for name, p in (("x", 0), ("y", 1), ("z", 2))]
    workflow["tasks"].append({"id": "w", "function": "other"})  # as long as it can start, there is something to decide
    report = run(write_workflow(workflow), "queue", "standard", "wait")
    assert report.status == "solved" and verbs(report)["queue"] == 2 and verbs(report)["standard"] == 2
    assert [call.task for call in report.calls] == ["x", "w", "z", "y"]  # by priority
    assert report.calls[3].wait > report.calls[2].run


def test_the_pit_falls_back_on_another_variant(write_workflow: Write) -> None:
    workflow = small_workflow(plain=python("fail_once"))
    workflow["system"]["fallback"] = True
    workflow["system"]["functions"]["plain"]["lite"] = {"pool": "cpu", "seconds": 0.05}
    workflow["tasks"] = [{"id": "c", "function": "plain"}]
    report = run(write_workflow(workflow), "lite", "standard", "wait")
    assert [(call.variant, call.result) for call in report.calls] == [("lite", "throttled"), ("standard", "ok")]
    assert report.status == "solved" and verbs(report) == {"lite": 1}


def test_the_pit_loads_ahead(write_workflow: Write) -> None:
    """While a1 and a2 still run, the model of what follows is loaded, and no call has asked for it."""
    workflow = small_workflow(fa=python("until_told"))
    workflow["system"].update(rebalance=True, memory={"ram": 4}, max_attempts=1)
    path, kinds = write_workflow(workflow), Counter[str]()

    def tell(kind: str, at: int, text: str) -> None:
        kinds[kind] += 1
        if kinds["loaded"] == 3:  # a1 and a2 end after that, and fail if it does not come to it
            next((path.parent / "runs").glob("*/files")).joinpath("told").touch()

    report = run(path, observer=tell)
    assert report.status == "solved" and report.events["loaded"] == 3  # A twice: two places, one call each
    rows = list(read_journal(report.folder))
    loaded = [row.time for row in rows if row.kind == "event" and row.data["kind"] == "loaded"]
    ended = [row.time for row in rows if row.kind == "event" and row.data["kind"] == "finished"]
    assert loaded[2] < ended[0] and of(report, "b")[0].load == 0


def test_an_input_that_is_gone_is_made_again(write_workflow: Write) -> None:
    workflow = small_workflow(plain=python("lose_once"))
    report = run(write_workflow(workflow))
    assert report.status == "solved" and output_of(Path(report.folder), report.outputs["c"]) == 123
    assert [call.result for call in of(report, "c")] == ["lost", "ok"]
    assert [call.result for call in of(report, "b")] == ["ok", "ok"]


def test_a_twin_takes_over_the_output(write_workflow: Write) -> None:
    """One place, so that the second of two equal tasks is ready when the first is done: it is not called at all."""
    workflow = small_workflow()
    workflow["system"]["pools"]["cpu"]["places"] = 1
    for task in workflow["tasks"][1:3]:
        task |= {"content": 1, "args": {"number": 1}}
    report = run(write_workflow(workflow))
    assert report.status == "solved" and output_of(Path(report.folder), report.outputs["c"]) == 100 + 2 * (10 + 1)
    assert len(of(report, "a1")) + len(of(report, "a2")) == 1


@pytest.mark.parametrize("horizon", [None, 1000.0])
def test_a_run_that_cannot_go_on_fails_at_once(
    write_workflow: Write, capsys: pytest.CaptureFixture[str], horizon: float | None
) -> None:
    workflow = whole_workflow()
    workflow["system"].update(money=0.35, horizon_seconds=horizon)
    workflow["system"]["functions"]["ask"]["standard"]["seconds"] = 0.2
    workflow["tasks"] = [{"id": name, "function": "ask", "args": {"sleep": 0.3}} for name in ("x", "y")]
    workflow["system"]["pools"]["api"]["places"] = 1
    report = run(path := write_workflow(workflow))
    assert (report.status, report.reason, report.done) == ("failed", STUCK, 1)
    assert main(["show", report.folder]) == 0 and STUCK in capsys.readouterr().out
    assert main(["run", str(path), "--runs", str(path.parent / "runs")]) == 1 and STUCK in capsys.readouterr().out
    with pytest.raises(ConductorError, match=r"has ended already \(failed\)"):
        resume(report.folder)
    rows = list(read_journal(report.folder))
    with pytest.raises(ConductorError, match="ends in another state"):
        fold([*rows[:-1], rows[-1]._replace(data={**rows[-1].data, "status": "solved"})])


@pytest.mark.parametrize("at", ["before_cancel:1", "after_cancel:1"])
def test_killed_around_a_cancel(write_workflow: Write, at: str) -> None:
    path = write_workflow(whole_workflow())
    folder = killed_run(path, at, "--bundle", policy(path.parent, "skip", "hedge", "standard", "queue", "wait").path)
    before = finished(folder)
    again = {row.data["task"] for row in read_journal(folder) if row.kind == "intent" and row.data["attempt"] == 2}
    assert any(before[task] for task in again)  # one of two calls is cancelled because the other has ended: most often of `s`
    result = resume(folder)
    report = report_run(folder)
    assert result.status == "solved" and verify_run(folder).ended
    assert end(report) == {**EXPECTED, "o": None, "q2": None}
    after = finished(folder)
    assert set(after.values()) == {1} and before.keys() <= after.keys()
    check_against_journal(folder, decisions(folder))


def test_a_calibrated_rule_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides as the Pit's own, and its table is not read again."""
    workflow = whole_workflow()
    workflow["tasks"] = workflow["tasks"][1:3]
    table = {"standard": {"duration": -1.0}, "wait": {"bias": -5.0}}
    rule = Rule("calibrated", {"weights": table})
    pit = Pit(WorkflowSpec.model_validate(workflow))
    pit.apply(Event(ARRIVE, 0))
    action = pit.rule("calibrated", weights=table)
    assert action != pit.rule("calibrated", weights={"standard": {"duration": 1.0}})
    monkeypatch.delattr(rules, "weights_of")
    assert rule.choose(pit) == action
