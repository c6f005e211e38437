"""The arms of a study: how each is trained, seed by seed, what of it is there already, and how it plays the test instances.

A run folder is named by its configuration and code, so whole runs are used again and interrupted ones go on. The policy that
plays is the one of the best look at validation instances; test instances are played once, at the end of each training.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.results import QUIET, complete, composed, facts_of, spent
from experiments.side_by_side import Job, run_all
from experiments.study.settings import Settings

if TYPE_CHECKING:
    from experiments.config import TrainConfig

LOOKS = 24  # at the validation score in a training, after about equal shares of its budget


@dataclass(frozen=True)
class Arm:
    """How something is trained: `level` and `overrides` of the training, `frames` of its budget; `plays` names the level of
    its test instances."""

    name: str
    words: str
    plays: str
    level: str
    frames: int
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """An arm's trainings, one configuration for each seed, and what they depend on beside the seed."""

    arm: Arm
    configurations: list[TrainConfig]
    configuration: str
    code: str

    def facts(self) -> list[dict[str, Any]]:
        """`results.json` of each seed's run."""
        return [facts_of(configuration) for configuration in self.configurations]

    def played(self, n: int) -> np.ndarray:
        """Episode records (seeds, n) of the test instances."""
        return np.stack([np.load(played_in(configuration, n)) for configuration in self.configurations])

    def account(self, records: np.ndarray) -> dict[str, Any]:
        """The arm for people and for the record: how it was trained, what that took and gave."""
        of = ("frames", "seconds", "cpu_seconds", "ended")
        return {
            "words": self.arm.words,
            "level": self.arm.level,
            "plays": self.arm.plays,
            "frames": self.arm.frames,
            "overrides": list(self.arm.overrides),
            "configuration": self.configuration,
            "code": self.code,
            "trainings": [
                {"seed": seed, "best": facts["best"], "test": float(records[seed]["total"].mean())}
                | {key: facts[key] for key in of}
                for seed, facts in enumerate(self.facts())
            ],
        }


def wanted(settings: Settings, number: int, arm: Arm) -> Trained:
    """The trainings of an arm. Raises ExperimentError for a configuration that cannot be trained."""
    from experiments.config import trained_levels
    from experiments.run_folder import configuration_hash
    from experiments.sources import code_digest

    words = [f"level={arm.level}", f"total_timesteps={arm.frames}", "evaluation.test=0", "stop.when_solved=false", *QUIET]
    configurations = []
    for seed in range(settings.seeds):
        configured = composed([*words, *settings.cfg.overrides, *arm.overrides, f"seed={seed}"])
        rollouts = arm.frames / (configured.n_envs * configured.n_steps)
        configured.evaluation.every = max(1, round(rollouts / LOOKS))
        configurations.append(configured)
    configuration = configuration_hash(asdict(configurations[0]))
    code = "-".join(code_digest(level)[:8] for level in trained_levels(configurations[0].level))
    parent = Path(settings.cfg.runs) / settings.cfg.name / f"level-{number:02d}" / arm.name
    for seed, configured in enumerate(configurations):
        configured.folder = str(parent / f"seed{seed}-{configuration[:8]}-{code}")
    return Trained(arm, configurations, configuration, code)


def played_in(configuration: TrainConfig, n: int) -> Path:
    """The file of a training's test episodes."""
    return Path(str(configuration.folder)) / f"test-{n}.npy"


def work(configuration: TrainConfig, command: str, plays: str, n: int) -> None:
    """One training, or what is left of it, and then its test instances."""
    from experiments.algorithms import load_model, prepare_torch, torch_logits
    from experiments.config import any_level
    from experiments.evaluate import play_policy
    from experiments.files import write_with
    from experiments.run_folder import read_run
    from experiments.train import train

    folder = Path(str(configuration.folder))
    if not complete(folder):
        if (folder / "versions.json").is_file():
            configuration = replace(configuration, resume=str(folder))
        elif folder.exists():
            shutil.rmtree(folder)  # interrupted before anything was written
        train(configuration, command)
    prepare_torch(1)
    logits = torch_logits(load_model(folder, configuration.algo))
    records = play_policy(logits, any_level(plays), split="test", n=n, exposure=read_run(folder).exposure)
    write_with(played_in(configuration, n), lambda temporary: np.save(temporary, records))


def told_of(configuration: TrainConfig, n: int) -> str:
    """What a training took and gave, in words."""
    return f"test {np.load(played_in(configuration, n))['total'].mean():.4f}, {spent(facts_of(configuration))}"


def train_arms(settings: Settings, arms: Sequence[Trained]) -> None:
    """Trains and plays what is not there yet. Raises ExperimentError if a training ended early."""
    n, command, todo, there = settings.cfg.n, command_of(settings), [], 0
    for trained in arms:
        for configuration in trained.configurations:
            if complete(Path(str(configuration.folder))) and played_in(configuration, n).is_file():
                there += 1
                continue
            name = f"level {trained.arm.plays}, {trained.arm.name}, seed {configuration.seed}"
            told: Callable[[], str] = partial(told_of, configuration, n)
            todo.append(Job(name, partial(work, configuration, command, trained.arm.plays, n), told))
    print(f"{there} trainings are there, {len(todo)} to do, {settings.cfg.jobs} at a time", flush=True)
    run_all(todo, settings.cfg.jobs)


def command_of(settings: Settings) -> str:
    """The command that gives the study again."""
    cfg = settings.cfg
    levels = ",".join(map(str, settings.numbers))
    words = [f"name={cfg.name}", f"levels={levels}", f"seeds={settings.seeds}", f"frames={settings.frames}", f"n={cfg.n}"]
    if cfg.name == "ablations":
        words += [f"parts={','.join(settings.parts)}", f"teacher={cfg.teacher}", f"rollouts={cfg.rollouts}"]
    elif not cfg.unmasked:
        words.append("unmasked=false")
    words += [f"overrides=[{','.join(cfg.overrides)}]"] if cfg.overrides else []
    return shlex.join(["python", "-m", "experiments.study", *words])
