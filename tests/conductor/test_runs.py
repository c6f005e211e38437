"""Whole runs over real processes: strategies, failures of every kind, and the replay of each run bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.__main__ import main
from conductor.audit import verify as verify_audit
from conductor.bundle import Bundle, write_bundle
from conductor.errors import ConductorError
from conductor.journal import Row, read_journal
from conductor.orchestrator import begin
from conductor.pit_interface import fold
from conductor.report import RunReport, report_run
from conductor.workflow import load_workflow
from tests.conductor.helpers import bundle_parts, output_of, small_workflow

Write = Callable[[dict[str, Any]], Path]


def run(path: Path, strategy: str = "parallel", bundle: Bundle | None = None) -> RunReport:
    return report_run(begin(load_workflow(path), path.parent / "runs", strategy=strategy, bundle=bundle).folder)


def python(call: str, **more: Any) -> dict[str, Any]:
    return {"kind": "python", "call": f"work:{call}", "seconds": 20, **more}


@pytest.mark.parametrize("strategy", ["adaptive", "parallel", "sequential"])
def test_a_run_under_every_strategy(write_workflow: Write, bundle: Bundle, strategy: str) -> None:
    report = run(write_workflow(small_workflow()), strategy, bundle)
    assert report.status == "solved" and report.done == report.tasks == 4
    assert output_of(Path(report.folder), report.outputs["c"]) == 123
    assert {c.task: c.result for c in report.calls} == dict.fromkeys(("a1", "a2", "b", "c"), "ok")
    assert report.score["base"] == pytest.approx(0.9) and 0 < report.score["total"] <= 1
    assert report.events["unloaded"] >= 1  # A had to make room for B
    by = {"adaptive": "policy", "parallel": "rule", "sequential": "sequential"}[strategy]
    assert set(report.decisions) == {by}
    assert report.spent == pytest.approx(sum(c.price for c in report.calls) + loading_price(report), abs=1e-5)
    assert next(c for c in report.calls if c.task == "a1").run >= 0.05
    if strategy == "sequential":
        ends = 0
        for row in read_journal(report.folder):
            if row.kind == "intent":
                assert row.time >= ends
            elif row.kind == "event" and row.data["kind"] == "finished":
                ends = row.time


def loading_price(report: RunReport) -> float:
    return sum(r.data["price"] for r in read_journal(report.folder) if r.kind == "event" and r.data["kind"] == "loaded") / 1e6


def test_replay_gives_every_observation_and_mask_again(write_workflow: Write, bundle: Bundle) -> None:
    report = run(write_workflow(small_workflow(plain=python("fail_once"))), "adaptive", bundle)
    rows = list(read_journal(report.folder))
    folded = fold(rows)
    assert folded.ended and folded.last == rows[-1].hash
    assert folded.view.pit.state_hash() == rows[-1].data["state"]
    answers: list[tuple[int, int]] = []

    def decide(row: Row, view: Any) -> None:
        """What the policy would do now is what it did: decisions replay too."""
        if row.seq + 1 < len(rows) and rows[row.seq + 1].kind == "action" and rows[row.seq + 1].time == row.time:
            answers.append((bundle.policy.act(view.pit.observe(), view.pit.mask()), rows[row.seq + 1].data["action"]))

    fold(rows, decide)
    assert len(answers) > 3 and all(would == did for would, did in answers)
    for position, (key, value) in {i: ("observation", "0" * 64) for i, r in enumerate(rows) if r.kind == "action"}.items():
        forged = [*rows[:position], rows[position]._replace(data={**rows[position].data, key: value}), *rows[position + 1 :]]
        with pytest.raises(ConductorError, match="observation in the replay is not the recorded one"):
            fold(forged)


@pytest.mark.parametrize("drop", ["action", "event", "intent"])
def test_replay_notices_what_is_not_there(write_workflow: Write, drop: str) -> None:
    rows = list(read_journal(run(write_workflow(small_workflow())).folder))
    position = next(i for i, r in enumerate(rows) if r.kind == drop)
    with pytest.raises(ConductorError, match="row"):
        fold(rows[:position] + rows[position + 1 :])


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (python("fail_once"), "throttled", "not yet"),
        (python("hang_once", seconds=3.0), "timeout", "did not end within its time limit"),
        (python("die_once"), "error", "the worker process ended unasked (signal 9, SIGKILL)"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "fa"])
def test_a_failed_call_is_called_again(
    write_workflow: Write, name: str, function: dict[str, Any], error: str, words: str
) -> None:
    """Also when it takes its worker, and with it a loaded model, along: the copy is loaded again before it serves."""
    report = run(write_workflow(small_workflow(**{name: function})))
    assert report.status == "solved" and output_of(Path(report.folder), report.outputs["c"]) == 123
    failed = [c for c in report.calls if c.result != "ok"]
    assert failed and {c.result for c in failed} <= {error, "lost"} and words in failed[0].text
    assert report.events["reload"] == (len(failed) if name == "fa" and error != "throttled" else 0)
    keys = [row.data for row in read_journal(report.folder) if row.kind == "intent" and row.data["task"] == failed[0].task]
    assert [k["attempt"] for k in keys] == [1, 2] and len({k["key"] for k in keys}) == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"plain": python("fail")}, "error", "ValueError: never"),
        ({"plain": python("returns_a_set")}, "invalid", "the output is no JSON value"),
        ({"plain": {"kind": "command", "argv": ["sleep", "60"], "seconds": 0.2}}, "timeout", "sleep did not end within 0.2 s"),
        ({"plain": {"kind": "command", "argv": ["false"]}}, "error", "false ended with status 1"),
    ],
)
def test_a_function_that_always_fails_ends_the_run(
    write_workflow: Write, change: dict[str, Any], error: str, words: str
) -> None:
    workflow = small_workflow(**change)
    workflow["system"]["max_attempts"] = 2
    report = run(write_workflow(workflow))
    assert report.status == "failed" and report.done == 3
    assert [(c.attempt, c.result) for c in report.calls if c.task == "c"] == [(1, error), (2, error)]
    assert words in report.calls[-1].text
    assert report.reason == "c used its 2 attempts (system.max_attempts)"


def test_a_run_that_fails_says_which_task_failed(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if another one failed for the want of it: `run`, `show` and `journal show` say the same."""
    workflow = small_workflow(plain=python("fail"))
    workflow["system"]["max_attempts"] = 1
    workflow["tasks"] = [{"id": name, "function": "plain", "optional": True} for name in ("x", "y")]
    workflow["tasks"].append({"id": "c", "function": "fa", "after": ["x", "y"], "join": "any"})
    file = write_workflow(workflow)
    why = "x used its 1 attempt (system.max_attempts), and c has none of its inputs"
    assert main(["run", str(file), "--runs", str(file.parent / "runs")]) == 1
    out = capsys.readouterr().out
    assert f"failed: {why}" in out and out.count(why) == 2
    (folder,) = (file.parent / "runs").iterdir()
    for command in (["show"], ["journal", "show"]):
        assert main([*command, str(folder)]) == 0
        assert why in capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_ends_the_run(write_workflow: Write) -> None:
    workflow = small_workflow()
    workflow["system"]["max_attempts"] = 2
    workflow["instruments"]["models"]["B"] = {"load": "work:broken_load"}
    report = run(write_workflow(workflow))
    assert report.status == "failed" and report.events["load_failed"] == 2
    failed = [r.data for r in read_journal(report.folder) if r.kind == "event" and r.data["kind"] == "load_failed"]
    assert "no such weights" in failed[0]["text"]
    assert "used its 2 attempts (system.max_attempts), none of which came to run: its model was not loaded" in report.reason


def test_the_horizon_ends_a_run_that_hangs(write_workflow: Write) -> None:
    workflow = small_workflow(plain=python("hang_once"))
    workflow["system"]["horizon_seconds"] = 5.0  # enough for the other three, also where much else is going on
    report = run(write_workflow(workflow))
    assert report.status == "expired" and report.makespan >= 5.0 and report.done < 4
    assert report.reason == "the run's time was up (system.horizon_seconds: 5)"
    assert report.calls[-1].result == "running" or len(report.calls) < 4  # on a slow machine it ends before it hangs


def test_a_check_runs_nothing(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_workflow(small_workflow())
    assert main(["check", str(path)]) == 0
    made = f"{path}: 4 tasks, 3 functions and 2 models, which can all be made"
    assert capsys.readouterr().out == f"{made}; sandbox none: fa (standard), fb (standard), plain (standard)\n"
    path = write_workflow(small_workflow(plain={"kind": "command", "argv": ["echo"]}))
    assert main(["check", str(path)]) == 0
    assert ": plain (standard)" in capsys.readouterr().out
    assert main(["check", str(write_workflow(small_workflow(plain=python("addd"))))]) == 2
    assert "addd" in capsys.readouterr().err
    assert sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("__")) == [
        "work.py",
        "workflow.yaml",
    ]


def test_what_a_task_gave_can_be_read(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_workflow(small_workflow())
    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    assert [result.output(task) for task in ("a1", "c")] == [11, 123]
    assert main(["output", str(result.folder), "c"]) == 0 and capsys.readouterr().out == "123\n"
    assert main(["output", str(result.folder), "d"]) == 2
    assert "no output of a task 'd'; there are those of a1, a2, b, c" in capsys.readouterr().err
    (result.folder / "outputs" / result.outputs["c"]).write_text("124")
    with pytest.raises(ConductorError, match="this output was changed after it was recorded"):
        result.output("c")


@pytest.mark.parametrize(("seconds", "is_late"), [(0.01, True), (1000.0, False)])
def test_a_missed_deadline_is_told(write_workflow: Write, seconds: float, is_late: bool) -> None:
    workflow = small_workflow()
    workflow["system"]["deadline_seconds"] = seconds
    report = run(write_workflow(workflow))
    late = f"{report.makespan - seconds:.2f} s after its deadline (system.deadline_seconds: {seconds:g})"
    assert report.status == "solved" and report.reason == (late if is_late else "")


def test_what_the_end_of_a_run_ended_is_told(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """An optional task that still runs when all that is required is done."""
    workflow = small_workflow()
    workflow["tasks"].append({"id": "d", "function": "plain", "optional": True, "args": {"sleep": 30}})
    report = run(write_workflow(workflow))
    assert report.status == "solved" and next(call for call in report.calls if call.task == "d").result == "running"
    assert main(["show", report.folder]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["d", "plain"]]
    assert row.rstrip().endswith("ended with the run")


def test_calls_share_a_copy_that_serves_several(write_workflow: Write) -> None:
    workflow = small_workflow()
    workflow["system"]["models"]["A"]["serves"] = 2
    for task in workflow["tasks"][1:3]:
        task["args"]["sleep"] = 0.5
    report = run(write_workflow(workflow))
    assert report.status == "solved" and report.events["loaded"] == 2
    assert {
        row.data["copy"] for row in read_journal(report.folder) if row.kind == "intent" and row.data["function"] == "fa"
    } == {0}


def test_an_output_larger_than_a_pipe(write_workflow: Write) -> None:
    workflow = small_workflow(plain={"kind": "command", "argv": ["seq", "1", "100000"]})
    workflow["tasks"].append({"id": "d", "function": "plain", "after": ["c"]})
    report = run(write_workflow(workflow))
    assert report.status == "solved"
    assert output_of(Path(report.folder), report.outputs["d"])["stdout"].endswith("99999\n100000\n")


def test_a_run_where_the_learners_libraries_cannot_be_imported(write_workflow: Write, bundle: Bundle, root: Path) -> None:
    path = write_workflow(small_workflow())
    code = f"""
import sys
for name in ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "hydra", "fq_env", "experiments"):
    sys.modules[name] = None
from conductor.__main__ import main
sys.exit(main(["run", {str(path)!r}, "--bundle", {str(bundle.path)!r}, "--runs", {str(path.parent / "runs")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "solved: 4 of 4 tasks" in done.stdout


def test_the_rule_of_a_bundle_may_decide_alone(write_workflow: Write, tmp_path: Path) -> None:
    """The strategy `calibrated`: the fitted rule, with everything in sight; the audit makes each decision again."""
    bundle = write_bundle(tmp_path / "ruled", **bundle_parts(), rule={"name": "smallest_remaining", "params": {}})
    path = write_workflow(small_workflow())
    report = run(path, "calibrated", bundle)
    assert report.status == "solved" and set(report.decisions) == {"rule"}
    assert report.run["rule"]["name"] == "smallest_remaining" and report.run["exposure"] == "full"
    assert verify_audit(report.folder).made_again["rule"] == sum(report.decisions.values())
    with pytest.raises(ConductorError, match="strategy calibrated needs a bundle"):
        run(path, "calibrated")
