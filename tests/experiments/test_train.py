"""A tiny training end to end: a whole run folder, a bundle of its best policy, the same weights for the same seed, signals."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import export, train
from experiments.examiner import Look
from tests.experiments import training

TINY = (
    *(
        "total_timesteps=4096",
        "n_envs=32",
        "n_steps=32",
        "batch_size=256",
        "network=mlp",
        "net_arch=[32]",
        "stop.when_solved=false",
    ),
    *("evaluation.every=2", "evaluation.validation=16", "evaluation.test=32", "evaluation.fit=16"),
)
FILES = (
    "config.yaml",
    "versions.json",
    "metrics.csv",
    "checkpoint.zip",
    "best.zip",
    "results.json",
    "curve.png",
    "report.md",
    "bundle",
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()


def test_a_run_leaves_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from conductor.bundle import load_bundle
    from conductor.trust import new_key

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

    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "config"))
    new_key("ours")
    for source, out, more in ((one, "again", ["golden=8", "sign=ours"]), (one / "bundle", "measured", [])):
        monkeypatch.setattr(sys, "argv", ["export", f"run={source}", f"out={tmp_path / out}", *more])
        export.main()
    again, measured = load_bundle(tmp_path / "again"), load_bundle(tmp_path / "measured")
    np.testing.assert_array_equal(again.policy._weights[0], bundles[0].policy._weights[0])
    assert (again.signature.state, bundles[0].signature.state) == ("foreign", "unsigned")
    ranges = bundles[0].manifest.ranges
    assert ranges is not None and ranges == again.manifest.ranges == measured.manifest.ranges
    assert ranges.decisions >= 64 and ranges.columns["slot0.ready_count"][1] > 0 and "pool7.capacity" not in ranges.columns
    assert measured.contents.keys() == bundles[0].contents.keys() and measured.manifest == bundles[0].manifest


def test_multirun_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(
        monkeypatch,
        "-m",
        "level=1,11",
        "seed=0,1",
        f"runs={tmp_path / 'runs'}",
        "algo=ppo",
        "recipe=plain",
        *TINY,
        "total_timesteps=1024",
    )
    folders = sorted((tmp_path / "runs").glob("level-*/*-seed*"))
    assert [folder.parent.name for folder in folders] == ["level-01"] * 2 + ["level-11"] * 2
    assert all((folder / "bundle" / "manifest.json").exists() for folder in folders)
    assert {link.resolve() for link in (tmp_path / "runs").glob("level-*/latest")} <= set(folders)
    assert len(list((tmp_path / "runs").glob("level-*/latest"))) == 2


def test_the_policy_of_the_best_look_is_kept(tmp_path: Path) -> None:
    """Evaluated, exported and loaded is the policy that scored best, not the last one."""
    from conductor.bundle import load_bundle
    from experiments.algorithms import load_model, torch_logits
    from experiments.evaluate import play_policy
    from fq_env.level import load_level

    folder = tmp_path / "run"
    score = train.train(
        training.config("learning_rate=0.1", "learning_rate_end=0.1", "seed=2", "evaluation.test=8", f"folder={folder}")
    )
    found = json.loads((folder / "results.json").read_text())
    best = max(found["validation"], key=lambda look: look["total"])
    assert found["best"] == best
    assert best["frames"] < found["frames"] == 4096, "the case is worth testing"
    model = load_model(folder, "fast_ppo")
    assert model.num_timesteps == best["frames"]
    for split, wanted in (("validation", best["total"]), ("test", score)):
        assert play_policy(torch_logits(model), load_level(1), split=split, n=8)["total"].mean() == wanted
    bundle = load_bundle(folder / "bundle").policy
    obs = np.random.default_rng(0).random((50, 512), np.float32)
    logits = np.stack([bundle.logits(row).copy() for row in obs])
    np.testing.assert_allclose(logits, torch_logits(model)(obs), rtol=1e-4, atol=1e-5)
    assert f"after {best['frames']:,} frames, at the best look" in (folder / "report.md").read_text()


def test_the_card_names_what_only_real_work_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path, tmp_path: Path
) -> None:
    """Loads that take exactly as long as the catalogue says: their error is 0 in training alone."""
    from conductor.bundle import load_bundle

    text = (root / "levels" / "level_11_warm_forge.yaml").read_text()
    exact = tmp_path / "exact.yaml"
    exact.write_text(re.sub(r"(?m)^  (load_cv|belief_cv|load_seconds|model_load): .*\n", "", text))
    said = []
    for level, name in (("11", "drawn"), (str(exact), "exact")):
        more = ("total_timesteps=1024", "learning_rate=0.03", "evaluation.test=2", f"folder={tmp_path / name}")
        train.train(training.config(f"level={level}", *more))
        said.append([capsys.readouterr().out, load_bundle(tmp_path / name / "bundle").card])
    monkeypatch.setattr(sys, "argv", ["export", f"run={tmp_path / 'exact' / 'bundle'}", f"out={tmp_path / 'measured'}"])
    export.main()
    said[1].append(capsys.readouterr().out)
    note = "the range guard will call every decision far: `load_error` (load_cv or belief_cv); set"
    assert [[note in text for text in texts] for texts in said] == [[False] * 2, [True] * 3]
    assert export.still([], "partial", []) == ""
    assert "`duration_error` (noise_cv or belief_cv);" in export.still(["load_error"], "full", [])
    from fq_env.level import load_level

    level = load_level(11)
    assert export.still(["duration_error"], "full", [level]).startswith(
        "The policy loaded no model in training"
    )  # it is drawn


def test_the_entropy_bonus_fades_over_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.config import ent_coef_after
    from experiments.fast_ppo import FastPPO

    fading = ("ent_coef=0.02", "ent_coef_end=0.004")
    cfg = training.config(*fading, f"folder={tmp_path / 'run'}")
    assert [ent_coef_after(cfg, frames) for frames in (0, 2048, 4096, 9999)] == pytest.approx([0.02, 0.012, 0.004, 0.004])
    assert ent_coef_after(training.config("ent_coef=0.02"), 4096) == 0.02
    own = training.config(
        *fading, "recipe=srl_rlvr", "recipe_options.ppo.ent_coef=0.01", "recipe_options.supervised.batch_size=128"
    )
    assert ent_coef_after(own, 2048) == pytest.approx(0.007)
    seen, update = [], FastPPO.train
    monkeypatch.setattr(FastPPO, "train", lambda self: seen.append(self.ent_coef) or update(self))
    train.train(cfg)
    assert seen == [ent_coef_after(cfg, frames) for frames in range(0, 4096, 512)]


def test_without_a_test_the_test_instances_are_never_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fq_env.engine import Engine

    splits: set[str | None] = set()
    reset = Engine.reset

    def noted(self: Engine, indices: Any = None, *, split: str | None = None, instances: Any = None) -> None:
        splits.add(split)
        reset(self, indices, split=split, instances=instances)

    monkeypatch.setattr(Engine, "reset", noted)
    looks: list[Look] = []
    score = train.train(training.config(f"folder={tmp_path / 'run'}"), on_look=looks.append)
    assert splits == {None, "train", "validation"}
    assert score == max(look.total for look in looks)
    assert [look.frames for look in looks] == [1024, 2048, 3072, 4096]
    assert (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "bundle").exists()


def test_an_interrupt_before_the_folder_is_a_run_leaves_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from experiments import run_folder

    for step in ("versions", "begin", "write_json"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(run_folder, step, lambda *_: signal.raise_signal(signal.SIGINT))
            train.train(training.config(f"runs={tmp_path}"))
        assert not list(tmp_path.glob("level-*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_go_on(root: Path, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "a run"
    arguments = (
        "level=1",
        f"folder='{folder}'",
        "total_timesteps=200_000",
        "evaluation.every=2",
        "stop.when_solved=false",
        "network=mlp",
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
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    said = re.search(r"interrupted; `python (.*)` goes on after ([\d,]+) of 200,000 frames", err)
    assert said, err
    done = subprocess.run(
        (sys.executable, *shlex.split(said[1])), cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"goes on after {said[2]} of 200,000 frames" in done.stdout
    assert (folder / "bundle" / "manifest.json").is_file()
    with open(folder / "metrics.csv", newline="") as file:
        frames = [int(row["frames"]) for row in csv.DictReader(file)]
    assert frames == list(range(frames[0], frames[-1] + 1, frames[0])), "every rollout once"
    assert frames[-1] >= 200_000
