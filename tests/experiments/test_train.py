"""A tiny training end to end: a whole run folder, a bundle that loads, the same weights for the same seed, Ctrl-C."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import export, train

TINY = (
    *("total_timesteps=4096", "n_envs=32", "n_steps=32", "batch_size=256", "net_arch=[32]", "stop.when_solved=false"),
    *("evaluation.every=2", "evaluation.validation=16", "evaluation.test=32", "evaluation.fit=16"),
)
FILES = ("config.yaml", "versions.json", "metrics.csv", "checkpoint.zip", "results.json", "curve.png", "report.md", "bundle")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()


def test_a_run_leaves_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from conductor.bundle import load_bundle

    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        run(monkeypatch, "level=1", f"folder={folder}", *TINY)
    out = capsys.readouterr().out
    one = folders[0]
    for name in FILES:
        assert (one / name).exists(), name
    assert list((one / "tensorboard").iterdir())
    assert not list(one.rglob(".*")), "no temporary file is left"
    assert str(one / "bundle") in out
    assert "random" in out

    found = json.loads((one / "results.json").read_text())
    assert {row["player"] for row in found["test"]} >= {
        "trained",
        "random",
        "fifo",
        "critical_path",
        "critical_path_warm_wait",
    }
    assert all(math.isfinite(row["mean"]) and row["low"] <= row["mean"] <= row["high"] for row in found["test"])
    assert [look["frames"] for look in found["validation"]] == [2048, 4096]
    with open(one / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["frames"])) for row in rows] == [1024, 2048, 3072, 4096]
    assert rows[1]["validation/total"] and not rows[0]["validation/total"]
    assert all(float(row["time/frames_per_second"]) > 0 for row in rows)
    assert "python -m experiments.train level=1" in (one / "report.md").read_text()

    bundles = [load_bundle(folder / "bundle") for folder in folders]
    assert bundles[0].manifest.levels == ["1"]
    assert bundles[0].manifest.rule.name == "critical_path_warm_wait"
    for first, second in zip(bundles[0].policy._weights, bundles[1].policy._weights, strict=True):
        np.testing.assert_array_equal(first, second)

    monkeypatch.setattr(sys, "argv", ["export", f"run={one}", f"out={tmp_path / 'again'}", "golden=8"])
    export.main()
    again = load_bundle(tmp_path / "again").policy
    np.testing.assert_array_equal(again._weights[0], bundles[0].policy._weights[0])


def test_multirun_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "-m", "level=1,11", "seed=0,1", f"runs={tmp_path / 'runs'}", "algo=ppo", *TINY, "total_timesteps=1024")
    folders = sorted((tmp_path / "runs").glob("level-*/*-seed*"))
    assert [folder.parent.name for folder in folders] == ["level-01"] * 2 + ["level-11"] * 2
    assert all((folder / "bundle" / "manifest.json").exists() for folder in folders)
    assert {link.resolve() for link in (tmp_path / "runs").glob("level-*/latest")} <= set(folders)
    assert len(list((tmp_path / "runs").glob("level-*/latest"))) == 2


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (
        "level=1",
        f"folder={folder}",
        "total_timesteps=1_000_000_000",
        "evaluation.every=2",
        "stop.when_solved=false",
    )
    with subprocess.Popen(
        (sys.executable, "-m", "experiments.train", *arguments),
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("perf" in line for line in process.stdout), "a look was printed"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == train.INTERRUPTED
    assert "interrupted after" in err
    assert "Traceback" not in err
    assert (folder / "checkpoint.zip").is_file()
    done = subprocess.run(
        (sys.executable, "-m", "experiments.export", f"run={folder}"),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "bundle" / "manifest.json").is_file()
