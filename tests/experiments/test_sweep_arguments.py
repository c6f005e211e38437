"""The command line of sweeps: what is refused, what is searched, what may change when a sweep is gone on with."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from experiments.sweep import __main__ as command
from experiments.sweep import settings, space
from tests.experiments.test_sweep import begun, environment


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("learning_rat=1", ("learning_rat", "`learning_rate`")),
        ("trails=3", ("trails", "`trials`")),
        ("level", ("`level`", "key=value")),
        ("level=99", ("99",)),
        ("level=all", ("level=all", "one level")),
        ("trials=0", ("trials=0", "between 1")),
        ("trials=many", ("many",)),
        ("confirm=1", ("confirm=1", "two seeds")),
        ("warmup=2", ("warmup=2",)),
        ("seed=-1", ("seed=-1",)),
        ("evaluation.test=32", ("evaluation.test=32", "sweep decides")),
        ("space.lerning_rate=[1e-3]", ("space.lerning_rate=", "`learning_rate`")),
        ("space.seed=[0,1]", ("space.seed=[0, 1]", "same in all trials")),
        ("space.evaluation.every=[0,1]", ("space.evaluation.every=", "same in all trials")),
        ("space.n_epochs=3", ("space.n_epochs=3", "list of values")),
        ("space.n_epochs={low: 2}", ("space.n_epochs=", "{low: A, high: B}")),
        ("space.n_epochs={low: 2, high: many}", ("space.n_epochs=", "numbers")),
        ("space.n_epochs={low: 8, high: 2}", ("space.n_epochs=", "8", "2")),
        ("space.n_epochs=[2,3]", ("space.n_epochs=[2, 3]", "as given, 8,")),
        ("space.gamma={low: 0.9, high: 0.99}", ("space.gamma=", "as given, 1.0,")),
        ("space.net_arch={low: 1, high: 2}", ("space.net_arch=", "as given, None,")),
        ("space.network=[slots,cnn]", ("space.network=", "network=cnn")),
        ("space.clip_range={low: 0.1, high: 3}", ("space.clip_range=", "clip_range=3")),
        ("space.batch_size=[1024,3000]", ("space.batch_size=", "batch_size=3000")),
        ("network=symphony", ("configs/sweep.yaml: space.net_arch", "symphony", "space.net_arch=null")),
        ("level=1 folder=/proc/no/such", ("/proc/no",)),
        ("folder=mistyped jobs=2", ("mistyped: holds no sweep; to begin one there, give level=",)),
    ],
)
def test_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(monkeypatch, capsys, *(arguments.split() if "folder=" in arguments else [arguments]))
    for part in parts:
        assert part in sentence
    assert list(tmp_path.iterdir()) == []


def test_names_the_file_of_a_wrong_space(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, root: Path
) -> None:
    text = (root / "configs" / "sweep.yaml").read_text()
    for name in ("train.yaml", "sweep.yaml"):
        (tmp_path / name).write_text((root / "configs" / name).read_text())
    (tmp_path / "sweep.yaml").write_text(text.replace("  vf_coef:", "  vf_koef:"))
    monkeypatch.setattr(command.cli, "configs_dir", lambda: tmp_path)
    sentence = refused(monkeypatch, capsys, "level=1")
    assert f"{tmp_path / 'sweep.yaml'}: space.vf_koef" in sentence
    assert "`vf_coef`" in sentence


def test_without_optuna_says_how_to_install_it(tmp_path: Path, root: Path) -> None:
    code = "import sys; sys.modules['optuna'] = None; import experiments.sweep.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment(root))
    assert done.returncode == 2
    assert "pip install 'function-quest[sweep]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("level", [1, 11])
def test_the_shipped_space_holds_the_defaults(level: int) -> None:
    definition = settings.define(settings.sort_arguments([f"level={level}"]))
    assert {"learning_rate", "n_epochs", "net_arch", "batch_size", "n_steps"} <= definition.space.keys()


def test_distributions() -> None:
    assert space.distribution({"low": 2, "high": 8}, 4) == IntDistribution(2, 8)
    assert space.distribution({"low": 1, "high": 2}, 1.5) == FloatDistribution(1, 2)
    assert space.distribution({"low": 1e-4, "high": 1, "log": True}, 0.5) == FloatDistribution(1e-4, 1, log=True)
    choices: list[Any] = [None, [128, 128], 3]
    found = space.distribution(choices, None)
    assert space.values({"net_arch": choices, "gamma": {}}, {"net_arch": found.choices[1], "gamma": 0.5}) == {  # type: ignore[attr-defined]
        "net_arch": [128, 128],
        "gamma": 0.5,
    }


def test_a_given_key_leaves_the_space_or_moves_the_first_trial(tmp_path: Path) -> None:
    assert "n_epochs" not in begun(tmp_path / "a", "n_epochs=3").definition.space
    study = begun(tmp_path / "b", "n_epochs=3", "space.n_epochs=[3,5]")
    assert study.definition.space["n_epochs"] == [3, 5]
    assert study.default["n_epochs"] == 3


def test_going_on_must_not_change_the_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert begun(folder, "trials=3").wanted == 3
    assert begun(folder, "trials=7", "jobs=2").wanted == 7
    for argument in ("looks=5", "seed=1", "space.n_epochs=[8,9]", "learning_rate=0.5", "level=11"):
        with pytest.raises(command.ExperimentError, match=re.escape(argument.split("=")[0])):
            begun(folder, argument)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(command.ExperimentError, match="holds no sweep"):
        begun(tmp_path / "other")
