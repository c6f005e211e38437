"""Sweeps: one study by several processes, killed and gone on with; what comes out, and that it trains."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy.stats import ttest_1samp

from experiments import train
from experiments.sweep import __main__ as command
from experiments.sweep import report, settings, space, worker
from experiments.sweep.study import DEFAULT, Study, alone

TINY = (
    *("level=1", "total_timesteps=2048", "n_envs=32", "batch_size=256", "network=mlp", "net_arch=[32]", "looks=4"),
    *("evaluation.validation=16", "evaluation.fit=16", "confirm=2", "top=1", "instances=32"),
)


def begun(folder: Path, *arguments: str) -> Study:
    return Study(command.begin(settings.sort_arguments([*TINY, f"folder={folder}", *arguments])))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def looks(run: Path) -> list[dict[str, float]]:
    found = json.loads((run / "results.json").read_text())["validation"]
    assert len(found) > 1
    return list(found)


# ------------------------------------------------------------------ the queue
def drain(folder: str, seconds: float) -> None:
    """A worker whose trainings take `seconds` and score their learning rate."""
    study = Study(Path(folder))
    study.join()
    while (taken := study.take()) is not None:
        queue, trial = taken
        time.sleep(seconds)
        queue.tell(trial, trial.params["learning_rate"])
    study.leave()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.02)


def test_killed_processes_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    study = begun(tmp_path / "sweep", "trials=12")
    spawn = multiprocessing.get_context("spawn")

    def running() -> list[Any]:
        return study.search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    first = [spawn.Process(target=drain, args=(str(study.folder), 60.0)) for _ in range(2)]
    for process in first:
        process.start()
    wait_for(lambda: len(running()) == 2 and all("worker" in t.user_attrs for t in running()))
    left = [(t.number, t.params) for t in running()]
    for process in first:
        process.kill()
        process.join()
    with open(study.folder / "journal.log", "a") as file:
        file.write('{"op_code":6,"trial_id":0,"sta')  # what a process killed while it writes leaves

    second = [spawn.Process(target=drain, args=(str(study.folder), 0.01)) for _ in range(2)]
    for process in second:
        process.start()
    for process in second:
        process.join()
        assert process.exitcode == 0

    trials = study.search.get_trials()
    assert [t.number for t in trials] == list(range(14))
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 12, TrialState.FAIL: 2}
    again = {t.user_attrs["retry_of"]: t for t in trials if "retry_of" in t.user_attrs}
    assert [(n, again[n].params) for n, _ in left] == left
    assert [t.params for t in study.finished() if "default" in t.user_attrs] == [study.default]
    best, _ = study.best()[:2]
    confirmed = study.confirmation.get_trials()
    wanted = {DEFAULT, best.number} if best.params != study.default else {DEFAULT, study.best()[1].number}
    assert Counter(t.user_attrs["of"] for t in confirmed) == dict.fromkeys(wanted, 2)
    assert {t.user_attrs["seed"] for t in confirmed} == {1, 2}
    assert not list((study.folder / "workers").glob(f"*{second[0].pid}*"))


def test_a_trial_that_kills_its_process_is_given_up(tmp_path: Path) -> None:
    folder = begun(tmp_path / "sweep", "trials=1", "confirm=0").folder
    for attempt in range(1, 4):
        study = Study(folder)
        study.join()
        taken = study.take()
        assert taken is not None
        assert taken[1].user_attrs.get("attempt", 1) == attempt
        assert taken[1].params == study.default
        os.close(study._membership)  # as the end of the process does
    drain(str(folder), 0.0)
    assert [t.state for t in study.search.get_trials()] == [TrialState.FAIL] * 3 + [TrialState.COMPLETE]
    assert study.search.get_trials()[3].params != study.default


def test_one_process_at_a_time_decides(tmp_path: Path) -> None:
    code = "import sys, pathlib, experiments.sweep.study as s\nprint(1, flush=True)\n"
    code += "with s.alone(pathlib.Path(sys.argv[1])): print(2)"
    with alone(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.communicate(timeout=60)[0] == "2\n"


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    folder = begun(tmp_path / "sweep").folder
    journal = folder / "journal.log"
    first, _, rest = journal.read_text().partition("\n")
    journal.write_text(f"{first[:20]}\n{rest}")
    with pytest.raises(command.ExperimentError, match=re.escape(str(journal))):
        Study(folder)


# ------------------------------------------------------------------ what comes out
def test_margin() -> None:
    leads = np.array([0.01, 0.02, 0.06])
    ends = ttest_1samp(leads, 0.0).confidence_interval(0.95)
    found = report.margin(np.repeat(leads[:, None], 5, axis=1), 1)
    assert found == pytest.approx((ends.high - ends.low) / 2)
    assert report.margin(np.repeat(leads[:, None], 5, axis=1), 3) > found
    between = np.repeat(np.array([[0.0, 0.02, 0.04, 0.06]]), 3, axis=0)  # all seeds agree: what is left is the instances
    assert report.margin(between, 1) == pytest.approx(3.1824 * np.sqrt(between[0].var(ddof=1) / 4), rel=1e-4)


def test_report_of_a_study(tmp_path: Path) -> None:
    study = begun(tmp_path / "sweep", "trials=20", "confirm=2")
    assert "no trial was completed" in report.write_report(study, False, "again")
    for _ in range(20):
        trial = study.search.ask(study.distributions)
        trial.report(0.25, 1)
        if trial.number % 5 == 4:
            study.search.tell(trial, state=TrialState.PRUNED)
        else:
            study.search.tell(trial, 1 - abs(np.log(trial.params["learning_rate"] / 5e-3)) / 10)
    best = study.best()[0].number
    for of, seed, totals in [(DEFAULT, 1, 0.5), (DEFAULT, 2, 0.4), (best, 1, 0.9), (best, 2, 0.8)]:
        study.confirmation.enqueue_trial({}, user_attrs={"of": of, "seed": seed})
        trial = study.confirmation.ask(study.distributions)
        study.confirmation.tell(trial, totals)
        folder = worker.confirmed_in(study.folder, trial.number)
        folder.mkdir(parents=True)
        np.save(folder / "totals.npy", np.full(32, totals))
    said = report.write_report(study, True, "again")
    assert f"trial {best} is better than the configuration as given by 0.4000" in said
    assert Counter(row["state"] for row in rows(study.folder)) == {"complete": 16, "pruned": 4}
    for name in ("report.md", "best.yaml", "history.png", "importance.png"):
        assert (study.folder / name).stat().st_size > 300, name
    found = [report.Confirmed(DEFAULT, 0.8), report.Confirmed(best, 0.7, -0.1, 0.01)]
    assert report.verdict(study, found)[0] == DEFAULT
    assert "is confirmed" in report.verdict(study, found)[1]
    found = [report.Confirmed(best, 0.8, 0.1, 0.2), report.Confirmed(DEFAULT, 0.7)]
    assert report.verdict(study, found)[0] == best
    assert "within chance" in report.verdict(study, found)[1]


def test_a_sweep_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that are complete, pruned and refused; the best again by `train`, with the score that the sweep found."""
    sizes = ("space.batch_size=[128,256,512]", "space.n_steps=[8,16]")
    study = begun(tmp_path / "sweep", "trials=8", "startup=1", "warmup=0.2", *sizes)
    worker._work(study)
    said = capsys.readouterr().out
    report.write_report(study, True, "again")
    found = rows(study.folder)
    assert [row["number"] for row in found] == [str(n) for n in range(8)]
    assert len(re.findall(r"^\[\d/8\] trial \d: ", said, re.MULTILINE)) == 8
    assert found[0]["state"] == "complete"
    assert {row["state"] for row in found} == {"complete", "pruned"}
    wrong = [row for row in found if 32 * int(row["n_steps"]) < int(row["batch_size"])]
    assert wrong
    assert [row for row in found if row["refused"]] == wrong
    assert all("must divide" in row["refused"] and not row["score"] for row in wrong)
    assert any(row["state"] == "pruned" and row["score"] for row in found)
    assert not list(study.folder.rglob("bundle")), "no test instance was played"

    (run,) = (study.folder / "trials" / "0000").glob("seed-0")
    assert max(look["total"] for look in looks(run)) == float(found[0]["score"])
    text = (study.folder / "report.md").read_text()
    (again,) = re.findall(r"^python -m experiments.train (.*)$", text, re.MULTILINE)
    (confirmed,) = (study.folder / "confirmation" / "0003").glob("seed-2")
    number = study.confirmation.get_trials()[3].user_attrs["of"]
    report.write_best(study, study.candidates()[number], "", "")
    monkeypatch.setattr(
        sys, "argv", ["train", *shlex.split(again), "seed=2", f"folder={tmp_path / 'run'}", "evaluation.test=32"]
    )
    train.main()
    assert looks(tmp_path / "run") == looks(confirmed)
    assert (tmp_path / "run" / "bundle" / "manifest.json").exists()


def test_only_what_the_parameters_did_counts_against_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that diverges is a result, a folder that is in the way is none."""
    deep = [64] * 8
    wild = ("learning_rate=1", "learning_rate_end=1", "max_grad_norm=1e6", "vf_coef=100", f"space.net_arch=[[32],{deep}]")
    study = begun(tmp_path / "sweep", "trials=2", "confirm=0", *wild)
    study.search.enqueue_trial({**study.default, "net_arch": space.label(deep)})
    (study.folder / "trials" / "0001" / "seed-0").mkdir(parents=True)
    with pytest.raises(command.ExperimentError, match="exists already"):
        worker._work(study)
    assert [t.state for t in study.search.get_trials()] == [TrialState.COMPLETE, TrialState.RUNNING]
    os.close(study._membership)
    worker._work(Study(study.folder))
    assert [t.state for t in study.search.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    assert "refused: a gradient was not finite" in capsys.readouterr().out


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.mark.slow
def test_the_command_is_stopped_killed_and_gone_on_with(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "sweep"
    start = [sys.executable, "-m", "experiments.sweep", *TINY, f"folder={folder}", "trials=7", "jobs=2"]

    def begin(arguments: list[str]) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(arguments, text=True, cwd=tmp_path, env=environment(root), **pipes)  # type: ignore[call-overload,no-any-return]

    def until_a_trial_is_done(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert any(line.startswith("[") for line in process.stdout)

    stopped = begin(start)
    until_a_trial_is_done(stopped)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 143
    assert len(err.strip().splitlines()) == 1
    (again,) = re.findall(r"to go on: python -m (.*)$", err, re.MULTILINE)

    killed = begin([sys.executable, "-m", *shlex.split(again)])
    until_a_trial_is_done(killed)
    killed.kill()
    killed.communicate(timeout=60)  # its pipes are closed by its workers: they ended with it

    ended = begin([sys.executable, "-m", *shlex.split(again)])
    out, err = ended.communicate(timeout=120)
    assert (ended.returncode, err) == (0, "")
    assert "train:  python -m experiments.train --config-dir" in out

    found = rows(folder)
    done = [row for row in found if row["state"] != "fail"]
    assert [row["number"] for row in found] == [str(n) for n in range(len(found))]
    assert len(done) == 7
    assert {row["state"] for row in done} <= {"complete", "pruned"}
    failed = {row["number"] for row in found if row["state"] == "fail"}
    assert failed == {row["retry_of"] for row in found if row["retry_of"]}
    parameters = [tuple(row[key] for key in Study(folder).definition.space) for row in done]
    assert len(set(parameters)) == 7, "none was tried twice"
    assert len(Study(folder).confirmations()) == 4
    ended = begin([sys.executable, "-m", *shlex.split(again)])  # a finished sweep has nothing to do
    out, err = ended.communicate(timeout=120)
    assert (ended.returncode, err) == (0, "")
    assert rows(folder) == found


@pytest.mark.slow
def test_a_grid_by_joblib(tmp_path: Path, root: Path) -> None:
    """The other way to train many: Hydra's multirun by several processes."""
    tiny = [a for a in TINY[1:] if not a.startswith(("looks", "confirm", "top", "instances"))]
    arguments = [
        "-m",
        "level=1,11",
        "seed=0,1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "recipe=plain",
        "evaluation.test=8",
        *tiny,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(root),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [path.parent for path in (tmp_path / "runs").glob("level-*/*-seed*/bundle")]
    assert sorted((path.parent.name, path.name[-1]) for path in found) == [  # whichever began first
        ("level-01", "0"),
        ("level-01", "1"),
        ("level-11", "0"),
        ("level-11", "1"),
    ]
