"""What can be configured about a study: names, types and checks; the numbers stand in `configs/study.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from experiments.errors import ExperimentError

NAMES = ("implicit_vs_explicit", "ablations")
PARTS = ("masks", "slots", "hold", "history", "supervised", "kl", "curriculum")


@dataclass
class StudyConfig:
    """Keys of the command; explained in `configs/study.yaml`."""

    name: str = MISSING
    levels: Any = MISSING
    seeds: int | None = MISSING
    frames: int | None = MISSING
    n: int = MISSING
    jobs: int = MISSING
    overrides: list[str] = MISSING
    runs: str = MISSING
    out: str = MISSING
    readme: str | None = MISSING
    unmasked: bool = MISSING
    parts: Any = MISSING
    teacher: int = MISSING
    rollouts: int = MISSING
    studies: dict[str, Any] = MISSING


@dataclass(frozen=True)
class Settings:
    """A study's checked configuration: numbers of levels, training seeds, frames of a training, all other keys, and the stem
    of its files: its name, its levels if they are not the study's own, and its parts if they are not all: a few that are
    measured anew replace no page of all of them."""

    numbers: list[int]
    seeds: int
    frames: int
    parts: list[str]
    cfg: StudyConfig
    stem: str


def checked(cfg: StudyConfig) -> Settings:
    """The settings, with a study's own numbers where none are given. Raises ExperimentError."""
    from experiments.config import levels_of
    from experiments.results import DECIDED

    if cfg.name not in NAMES:
        raise ExperimentError(f"name={cfg.name}: must be one of {', '.join(NAMES)}")
    own = cfg.studies[cfg.name]
    levels = levels_of(own["levels"] if cfg.levels is None else cfg.levels)
    for level in levels:
        if level.number == 0:
            raise ExperimentError(f"levels={cfg.levels}: a study plays levels of the suite; name their numbers")
    seeds = own["seeds"] if cfg.seeds is None else cfg.seeds
    frames = own["frames"] if cfg.frames is None else cfg.frames
    for key, value, low in (
        ("seeds", seeds, 1), ("frames", frames, 1), ("n", cfg.n, 2), ("jobs", cfg.jobs, 1), ("teacher", cfg.teacher, 2),
        ("rollouts", cfg.rollouts, 0),
    ):  # fmt: skip
        if value < low:
            raise ExperimentError(f"{key}={value}: must be at least {low}")
    for override in cfg.overrides:
        if override.partition("=")[0] in (*DECIDED, "total_timesteps", "masks", "curriculum"):
            raise ExperimentError(f"overrides=[{override}]: the study decides this key; leave it out")
    words = PARTS if cfg.parts is None else cfg.parts if isinstance(cfg.parts, list) else str(cfg.parts).split(",")
    parts = [str(word).strip() for word in words]
    for part in parts:
        if part not in PARTS:
            raise ExperimentError(f"parts={part}: must be among {', '.join(PARTS)}")
    numbers = [level.number for level in levels]
    usual = numbers == [level.number for level in levels_of(own["levels"])]
    stem = cfg.name if usual else f"{cfg.name}-{'+'.join(map(str, numbers))}"
    stem += f"-{'+'.join(parts)}" if cfg.name == "ablations" and set(parts) != set(PARTS) else ""
    return Settings(numbers, int(seeds), int(frames), parts, cfg, stem)
