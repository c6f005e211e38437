"""Tiny trainings for tests: their configuration, and what they leave, without what depends on the clock."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from stable_baselines3.common.save_util import load_from_zip_file

from experiments import checkpoints, cli
from experiments.config import TrainConfig, finished, register

# Eight rollouts of 512 frames, a look after every second and a checkpoint after every third of them.
TINY = (
    *(
        "level=1",
        "recipe=plain",
        "total_timesteps=4096",
        "n_envs=32",
        "n_steps=16",
        "batch_size=128",
        "n_epochs=2",
        "network=mlp",
        "net_arch=[16]",
    ),
    *("evaluation.every=2", "evaluation.validation=8", "evaluation.test=0", "evaluation.fit=4"),
    *("stop.when_solved=false", "checkpoint.every=3", "progress_bar=false"),
)
ROLLOUT = 512


def config(*overrides: str) -> TrainConfig:
    """The checked configuration of a tiny training."""
    register()
    with initialize_config_dir(str(cli.configs_dir()), version_base="1.3"):
        return finished(compose("train", [*TINY, *overrides]))


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics without times; cells as they are written."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def state(folder: Path) -> dict[str, Any]:
    """All that a run's last checkpoint and its best policy hold, flat."""
    checkpoint = checkpoints.read(folder / "checkpoint.zip")
    _, best, _ = load_from_zip_file(folder / "best.zip", load_data=False, device="cpu")
    memory = {k: v for k, v in checkpoint.memory.items() if k not in ("seconds", "cpu_seconds", "resumed")}
    episodes = [{k: v for k, v in episode.items() if k != "t"} for episode in checkpoint.facts["episodes"]]
    facts = checkpoint.facts | {"memory": memory, "episodes": episodes}
    return flat({"parameters": checkpoint.parameters, "arrays": checkpoint.arrays, "facts": facts, "best": best})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary of arrays and plain values."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}/{i}").items()}
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value}


def assert_same(one: Path, two: Path) -> None:
    """Two runs ended with the same bits: weights, optimiser, environments, random states, looks, rows."""
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert rows(one) == rows(two)
