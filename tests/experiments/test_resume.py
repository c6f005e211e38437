"""A training that was killed, interrupted or ended by a fault goes on from its last checkpoint, with the same bits."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import algorithms, checkpoints, run_folder
from experiments.config import CHOICES
from experiments.errors import ExperimentError
from experiments.evaluate import open_policies
from experiments.examiner import Examiner, Look
from experiments.interrupts import Interrupted
from experiments.train import main, resume, train
from fq_env.sb3 import FunctionQuestVecEnv
from tests.experiments.clients.killed import POINTS
from tests.experiments.training import ROLLOUT, assert_same, config

WholeRun = Callable[[str], Path]
FAST_POINTS = ("in a rollout", "half of a checkpoint written")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """The run folder of a training with this algorithm that nothing happened to; made once."""
    base = tmp_path_factory.mktemp("whole")

    def made(algo: str) -> Path:
        if not (base / algo).exists():
            train(config(f"algo={algo}", f"folder={base / algo}"))
        return base / algo

    return made


def kill(root: Path, base: Path, *points: str) -> Path:
    """Trains once per algorithm and point, in a process that is killed there; `base`."""
    command = (sys.executable, "-m", "tests.experiments.clients.killed", str(base), *points)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return base


def frames_in(folder: Path) -> int:
    return checkpoints.frames_of(folder / "checkpoint.zip")


# --------------------------------------------------------------------------- kill -9
@pytest.fixture(scope="module")
def killed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kill(root, tmp_path_factory.mktemp("killed"), *FAST_POINTS)


@pytest.mark.parametrize("algo", CHOICES["algo"])
def test_killed_and_resumed_gives_the_same_bits(killed: Path, whole: WholeRun, algo: str) -> None:
    for point in FAST_POINTS:
        folder = killed / algo / point
        assert frames_in(folder) == 3 * ROLLOUT, "the good checkpoint is left"
        score = resume(folder)
        assert_same(whole(algo), folder)
        found = json.loads((folder / "results.json").read_text())
        assert found["score"] == score == json.loads((whole(algo) / "results.json").read_text())["score"]
        assert found["resumed"] == [f"after {3 * ROLLOUT:,} frames"]
        assert not list(folder.glob(".*")), "what was half-written is gone"


@pytest.mark.slow
def test_killed_anywhere_and_resumed_gives_the_same_bits(root: Path, tmp_path: Path, whole: WholeRun) -> None:
    points = [point for point in POINTS if point not in FAST_POINTS]
    kill(root, tmp_path, *points)
    for algo, point in itertools.product(map(str, CHOICES["algo"]), points):
        resume(tmp_path / algo / point)
        assert_same(whole(algo), tmp_path / algo / point)


@pytest.mark.slow
@pytest.mark.parametrize("network", CHOICES["network"])
def test_level_11_and_every_network_resume(tmp_path: Path, network: str) -> None:
    level_11 = ("level=11", f"network={network}", "net_arch=null", "total_timesteps=2048")
    train(config(*level_11, f"folder={tmp_path / 'whole'}"))
    with pytest.raises(Interrupted):
        train(config(*level_11, f"folder={tmp_path / 'cut'}"), on_look=lambda look: os.kill(os.getpid(), signal.SIGTERM))
    resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("level", ["8", "explicit-8"])
def test_a_training_without_masks_resumes_with_the_same_bits(tmp_path: Path, level: str) -> None:
    """What may be legal is read off the observations; those of a checkpoint of before are known by another name."""
    words = (f"level={level}", "masks=false", "total_timesteps=2048")
    train(config(*words, f"folder={tmp_path / 'whole'}"))
    with pytest.raises(Interrupted):
        train(config(*words, f"folder={tmp_path / 'cut'}"), on_look=lambda look: os.kill(os.getpid(), signal.SIGTERM))
    older = shutil.copytree(tmp_path / "cut", tmp_path / "older")
    kept = checkpoints.read(older / "checkpoint.zip")
    packed = io.BytesIO()
    np.savez(packed, **{"last_obs" if name == "obs" else name: array for name, array in kept.arrays.items()})
    stock(older / "checkpoint.zip")
    with zipfile.ZipFile(older / "checkpoint.zip", "a") as archive:
        archive.writestr(checkpoints.FACTS, json.dumps(kept.facts))
        archive.writestr(checkpoints.ARRAYS, packed.getvalue())
    for folder in (tmp_path / "cut", older):
        resume(folder)
        assert_same(tmp_path / "whole", folder)


# --------------------------------------------------------------------------- signals and exceptions
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_rollout_and_saves(tmp_path: Path, whole: WholeRun, number: int) -> None:
    """The signal comes after the look at two rollouts: the third is finished, nothing of it is lost."""
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        train(
            config("algo=maskable_ppo", "checkpoint.every=100", f"folder={tmp_path / 'run'}"),
            on_look=lambda look: os.kill(os.getpid(), number),
        )
    assert stop.value.code == 128 + number
    assert f"resume={tmp_path / 'run'}` goes on after {3 * ROLLOUT:,} of 4,096 frames" in str(stop.value)
    assert frames_in(tmp_path / "run") == 3 * ROLLOUT
    assert signal.getsignal(number) is before
    resume(tmp_path / "run")
    assert_same(whole("maskable_ppo"), tmp_path / "run")


def test_a_second_signal_stops_at_once(tmp_path: Path, whole: WholeRun) -> None:
    def twice(look: Look) -> None:
        if look.frames == 4 * ROLLOUT:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config("algo=maskable_ppo", f"folder={tmp_path / 'run'}"), on_look=twice)
    assert frames_in(tmp_path / "run") == 3 * ROLLOUT
    resume(tmp_path / "run")
    assert_same(whole("maskable_ppo"), tmp_path / "run")


def test_what_on_look_raises_is_passed_on_and_the_folder_is_sound(tmp_path: Path, whole: WholeRun) -> None:
    class Pruned(Exception):
        pass

    looks: list[int] = []

    def prune(look: Look) -> None:
        looks.append(look.frames)
        if len(looks) == 3:
            raise Pruned

    folder = tmp_path / "run"
    with pytest.raises(Pruned):
        train(config("algo=maskable_ppo", f"folder={folder}"), on_look=prune)
    assert looks == [2 * ROLLOUT, 4 * ROLLOUT, 6 * ROLLOUT]
    assert algorithms.load_model(folder, "maskable_ppo").num_timesteps in looks
    resume(folder)
    assert_same(whole("maskable_ppo"), folder)


def test_solved_stops_between_two_rollouts_and_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Examiner, "verdict", lambda self: "solved" if len(self.looks) == 2 else None)
    folder = tmp_path / "run"
    train(config("algo=maskable_ppo", f"folder={folder}"))
    assert frames_in(folder) == 4 * ROLLOUT
    assert json.loads((folder / "results.json").read_text())["stopped"]
    (folder / "results.json").unlink()  # as if killed while the report was made
    resume(folder)
    assert frames_in(folder) == 4 * ROLLOUT
    assert "solved" in json.loads((folder / "results.json").read_text())["ended"]


# --------------------------------------------------------------------------- what may be resumed
def copy_of(folder: Path, to: Path) -> Path:
    """A run folder as if killed after its last checkpoint."""
    shutil.copytree(folder, to)
    (to / "results.json").unlink()
    return to


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_a_complete_run_is_left_as_it_is(
    whole: WholeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole("maskable_ppo") / "results.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["train", f"resume={whole('maskable_ppo')}"])
    capsys.readouterr()
    main()
    assert "is complete after 4,096 frames" in capsys.readouterr().out
    assert (whole("maskable_ppo") / "results.json").read_bytes() == before


def test_latest_is_the_run_begun_last_whether_complete_or_not(
    whole: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The link `latest` leads to complete runs alone, and there is none before the first; a killed run is found too."""
    killed = copy_of(whole("maskable_ppo"), tmp_path / "b")
    (killed / "checkpoint.zip").unlink()
    found = refused(monkeypatch, capsys, f"resume={tmp_path / 'none'}")
    assert f"not complete: {killed} (python -m experiments.train resume={killed})" in found
    with pytest.raises(ExperimentError, match=f"latest: is neither a run .*; not complete: {killed} "):
        open_policies("run", str(tmp_path / "latest"))
    with run_folder.locked(killed):
        assert f"{killed}: another process is training" in refused(monkeypatch, capsys, f"resume={tmp_path / 'latest'}")
    shutil.copytree(whole("maskable_ppo"), tmp_path / "a")
    run_folder.point_latest(tmp_path / "a")
    os.utime(tmp_path / "a" / "config.yaml", (1, 1))
    monkeypatch.setattr(sys, "argv", ["train", f"resume={tmp_path / 'latest'}"])
    main()
    assert f"{killed}: goes on after 0 of 4,096 frames" in capsys.readouterr().out
    assert (tmp_path / "latest").resolve() == killed
    assert_same(whole("maskable_ppo"), killed)
    (tmp_path / "a" / "results.json").unlink()
    main()
    assert f"{killed} is complete after 4,096 frames" in (out := capsys.readouterr().out)
    assert f"not complete: {tmp_path / 'a'} (" in out


def test_resume_refuses(
    whole: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(whole("maskable_ppo"), tmp_path / "run")
    assert "no run folder" in refused(monkeypatch, capsys, f"resume={tmp_path}")
    assert "leave out total_timesteps=9" in refused(monkeypatch, capsys, f"resume={folder}", "total_timesteps=9")
    with run_folder.locked(folder):
        assert "another process" in refused(monkeypatch, capsys, f"resume={folder}")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text + "colour: red\n")
    assert "colour" in refused(monkeypatch, capsys, f"resume={folder}")
    (folder / "config.yaml").write_text(text.replace("gamma:", "gamme:"))
    assert "not of this version" in refused(monkeypatch, capsys, f"resume={folder}")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stock(path: Path) -> None:
    """A zip of stable-baselines3 alone, as another program may have written it."""
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist() if not name.startswith("resume")}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in kept.items():
            new.writestr(name, data)


@pytest.mark.parametrize("damage", [cut, flip, stock, lambda path: path.write_bytes(b"")])
def test_a_broken_checkpoint_is_refused(
    whole: WholeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    folder = copy_of(whole("maskable_ppo"), tmp_path / "run")
    damage(folder / "checkpoint.zip")
    assert "checkpoint.zip: is no whole checkpoint" in refused(monkeypatch, capsys, f"resume={folder}")


def test_a_checkpoint_of_another_network_is_refused(
    whole: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(whole("maskable_ppo"), tmp_path / "run")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("- 16\n", "- 24\n"))
    assert "does not fit" in refused(monkeypatch, capsys, f"resume={folder}")


def test_other_versions_are_named_and_another_world_begins_new_episodes(
    whole: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("packages", {"torch": "1.0"}), ("code", {"fq_env": "other"})):
        folder = tmp_path / name
        with pytest.raises(Interrupted):
            train(config("algo=maskable_ppo", f"folder={folder}"), on_look=lambda look: os.kill(os.getpid(), signal.SIGINT))
        path = folder / "versions.json"
        about = json.loads(path.read_text())
        about[name] |= changes
        path.write_text(json.dumps(about))
        capsys.readouterr()
        resume(folder)
        err = capsys.readouterr().err
        assert "not bit for bit" in err
        assert frames_in(folder) == 8 * ROLLOUT
        if name == "packages":
            assert "instead of 1.0" in err
            assert_same(whole("maskable_ppo"), folder)
        else:
            assert "other code in fq_env/; the environments begin new episodes" in err
            with pytest.raises(AssertionError):
                assert_same(whole("maskable_ppo"), folder)


# --------------------------------------------------------------------------- faults
def poison_reward(monkeypatch: pytest.MonkeyPatch, value: float, after: int) -> None:
    """From that step of the training environments on, one reward is `value`."""
    step, calls = FunctionQuestVecEnv.step_wait, 0

    def wrong(self: FunctionQuestVecEnv) -> Any:
        nonlocal calls
        obs, rewards, dones, infos = step(self)
        calls += 1
        if calls >= after:
            rewards[3] = value
        return obs, rewards, dones, infos

    monkeypatch.setattr(FunctionQuestVecEnv, "step_wait", wrong)


@pytest.mark.parametrize(("algo", "value"), [("fast_ppo", np.nan), ("fast_ppo", -np.inf), ("maskable_ppo", np.nan)])
def test_a_reward_that_is_not_finite(tmp_path: Path, whole: WholeRun, algo: str, value: float) -> None:
    with pytest.MonkeyPatch.context() as patched:
        poison_reward(patched, value, after=5 * 16 + 3)
        with pytest.raises(
            ExperimentError, match=rf"a reward is not finite after 2,656 frames .*after {3 * ROLLOUT:,} of"
        ) as fault:
            train(config(f"algo={algo}", f"folder={tmp_path / 'run'}"))
    assert str(fault.value).count("\n") == 0
    resume(tmp_path / "run")
    assert_same(whole(algo), tmp_path / "run")


@pytest.mark.parametrize("algo", ["fast_ppo", "maskable_ppo"])
def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path, whole: WholeRun, algo: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        learn = algorithms.algorithm(algo).train

        def wrong(self: Any) -> None:
            learn(self)
            if self.num_timesteps == 6 * ROLLOUT:
                with torch.no_grad():
                    self.policy.value_net.bias.fill_(np.nan)

        patched.setattr(algorithms.algorithm(algo), "train", wrong)
        with pytest.raises(ExperimentError, match=rf"`value_net.bias` is not finite after {6 * ROLLOUT:,} frames"):
            train(config(f"algo={algo}", f"folder={tmp_path / 'run'}"))
    assert frames_in(tmp_path / "run") == 3 * ROLLOUT
    resume(tmp_path / "run")
    assert_same(whole(algo), tmp_path / "run")


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = algorithms.algorithm("maskable_ppo").train

    def wrong(self: Any) -> None:
        learn(self)
        self.logger.record("train/value_loss", np.float64(np.inf))

    monkeypatch.setattr(algorithms.algorithm("maskable_ppo"), "train", wrong)
    with pytest.raises(ExperimentError, match=rf"`train/value_loss` is not finite after {ROLLOUT} frames.*at the beginning"):
        train(config("algo=maskable_ppo", f"folder={tmp_path / 'run'}"))


@pytest.mark.parametrize("algo", ["fast_ppo", "maskable_ppo"])
def test_an_empty_mask_is_refused(tmp_path: Path, algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = FunctionQuestVecEnv.step_wait, 0

    def wrong(self: FunctionQuestVecEnv) -> Any:
        nonlocal calls
        calls += 1
        result = step(self)
        if calls == 4 * 16 + 5:
            self._engine.masks[7] = False
        return result

    monkeypatch.setattr(FunctionQuestVecEnv, "step_wait", wrong)
    with pytest.raises(ExperimentError, match=r"environment 7 offers no legal action after 2,208 frames"):
        train(config(f"algo={algo}", f"folder={tmp_path / 'run'}"))
    assert frames_in(tmp_path / "run") == 3 * ROLLOUT


FULL = """
import resource, sys
from experiments.train import TrainConfig, cli, train
from tests.experiments.training import config
def fill(look):
    if look.frames >= 4 * 512: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
cfg = config("algo=maskable_ppo", "folder=" + sys.argv[1], *sys.argv[2:])
cli.guarded(lambda: train(cfg, on_look=fill), TrainConfig)
"""


@pytest.mark.parametrize("tensorboard", ["true", "false"])
def test_a_full_disk_stops_the_training_and_leaves_the_last_checkpoint(
    root: Path, tmp_path: Path, whole: WholeRun, tensorboard: str
) -> None:
    folder = tmp_path / "run"
    command = (sys.executable, "-c", FULL, str(folder), f"tensorboard={tensorboard}")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert f"resume={folder}` goes on after {3 * ROLLOUT:,} of 4,096 frames" in done.stderr
    assert not list(folder.glob(".*"))
    resume(folder)
    assert_same(whole("maskable_ppo"), folder)
