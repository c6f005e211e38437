"""A user's mistake ends in one sentence and exit code 2, before anything heavy is imported or anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import calibrate, compare, evaluate, export, headroom, recorded, results, train, watch
from experiments.benchmark import __main__ as benchmark

LIGHT = "import sys; sys.modules['torch'] = sys.modules['stable_baselines3'] = None; "
START = LIGHT + "import experiments.train as t; sys.argv = ['train', *sys.argv[1:]]; t.main()"


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: object, *arguments: str) -> str:
    """Runs a command's `main`; its one sentence."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()  # type: ignore[attr-defined]
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("learning_rat=1", ("learning_rat", "learning_rate")),
        ("evaluation.evry=1", ("evaluation.evry", "evaluation.every")),
        ("+nonsense_key=1", ("nonsense_key",)),
        ("level=abc", ("abc",)),
        ("level=99", ("99",)),
        ("n_envs=abc", ("n_envs", "abc")),
        ("n_envs=0", ("n_envs=0", "between 1")),
        ("batch_size=1000", ("batch_size=1000", "4096", "1024")),
        ("net_arch=[]", ("net_arch",)),
        ("algo=dqn", ("algo=dqn", "maskable_ppo")),
        ("exposure=some", ("exposure=some", "partial")),
        ("reward=points", ("reward=points", "sparse")),
        ("wandb.mode=on", ("wandb.mode", "offline")),
        ("seed=-1", ("seed=-1",)),
        ("level", ("level",)),
        ("11", ("did you mean `level=11`?",)),
        ("level=1,,2", ("did you mean `level=1,2`?",)),
        ("level=1,", ("did you mean `level=1`?",)),
        ("wandb=offline", ("wandb=offline: is a section; give one of its keys: wandb.mode=",)),
        ("folder=/proc/no/such", ("folder=/proc/no/such",)),
    ],
)
def test_train_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, argument: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(monkeypatch, capsys, train, argument)
    for part in parts:
        assert part in sentence
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_folder_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "not overwritten" in refused(monkeypatch, capsys, train, "level=1", "folder=mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "arguments", "part"),
    [
        (evaluate, (), "level=null: no policy names one"),
        (evaluate, ("run=nowhere",), "runs=nowhere"),
        (evaluate, ("run=no*where",), "runs=no*where"),
        (evaluate, ("bundles=[nowhere",), "bundles=[nowhere"),
        (evaluate, ("run=nowhere", "splitt=test"), "did you mean `split`"),
        (evaluate, ("run=nowhere", "split=exam"), "split=exam"),
        (evaluate, ("level=1", "players=[fifo,nobody]"), "players=nobody"),
        (evaluate, ("level=1", "n=1"), "n=1"),
        (evaluate, ("level=1", "out=."), "out=.: exists"),
        (compare, (), "a=null"),
        (compare, ("fifo",), "b=null"),
        (compare, ("fifo", "random"), "level=null"),
        (compare, ("fifo", "nobody", "level=1"), "b=nobody"),
        (compare, ("fifo", "random", "critical_path"), "`critical_path` is one too many"),
        (compare, ("b=fifo", "random", "critical_path"), "`critical_path` is one too many"),
        (compare, ("exact_best", "fifo", "level=11"), "a=exact_best"),
        (compare, ("a=[]", "b=fifo"), "a=[]"),
        (results, ("seeds=0",), "seeds=0"),
        (results, ("levels=1,99",), "99"),
        (results, ("overrides=[seed=3]",), "seed=3"),
        (results, ("overrides=[learning_rat=3]",), "learning_rate"),
        (results, ("readme=missing.md",), "readme=missing.md"),
        (results, ("overrides=x=1",), "overrides: a list in brackets is needed, overrides=[A,B]"),
        (recorded, (), "folder= is missing; it must be given"),
        (headroom, ("n=64", "lookahead=2"), "error: lookahead=2: must be at least 4"),
        (calibrate, ("refine=-1",), "error: refine=-1: must be at least 0"),
        (watch, ("split=exam",), "split=exam"),
        (watch, ("instance=-1",), "instance=-1"),
        (watch, ("bundle=nowhere",), "bundle=nowhere"),
        (watch, ("bundles=nowhere", "level=1"), "nowhere/level-01"),
        (watch, ("player=nobody",), "player=nobody"),
        (watch, ("player=lookahead", "level=1"), "smallest_remaining where the order is hidden"),
        (watch, ("player=calibrated", "level=1"), "smallest_remaining where the order is hidden"),
        (watch, ("player=exact_best", "level=11"), "must be one of random, fifo"),
        (evaluate, ("level=11", "players=exact_best", "n=8"), "players=exact_best: does not play level 11"),
        (watch, ("player=fifo", "bundle=x"), "only one can play"),
        (watch, ("player=fifo", "gif=film.png"), "gif=film.png"),
        (export, (), "run"),
        (export, ("run=nowhere",), "run=nowhere"),
        (export, ("run=.", "out=."), "conductor sign . --key NAME"),
        (export, ("nowhere",), "key=value"),
        (benchmark, ("speed",), "what=speed"),
        (benchmark, ("env", "rounds=0"), "rounds=0"),
        (benchmark, ("env", "rounds=x"), "rounds"),
    ],
)
def test_other_commands_refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: object,
    arguments: tuple[str, ...],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refused(monkeypatch, capsys, command, *arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        (("learning_rat=1",), 2, ""),
        (("--cfg", "job", "level=1"), 0, "learning_rate: ${training:learning_rate,2e-3}"),
        (("--help",), 0, "# of PPO's probability ratio"),
    ],
)
def test_answers_without_the_learners_libraries(root: Path, arguments: tuple[str, ...], code: int, out: str) -> None:
    done = subprocess.run(
        (sys.executable, "-c", START, *arguments), cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert "Traceback" not in done.stderr
