"""What a sweep is: the keys of its command, and the file `sweep.yaml` in its folder, which every process that joins reads."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from experiments import cli
from experiments.config import TrainConfig, finished, register, trained_levels
from experiments.errors import ExperimentError
from experiments.files import write_text


@dataclass
class SweepConfig:
    """Keys of the command beside those of training; explained in `configs/sweep.yaml`."""

    trials: int = MISSING
    jobs: int = MISSING
    folder: str | None = MISSING
    seeds: int = MISSING
    looks: int = MISSING
    startup: int = MISSING
    warmup: float = MISSING
    top: int = MISSING
    confirm: int = MISSING
    instances: int = MISSING
    space: dict[str, Any] = field(default_factory=dict)


@dataclass
class Keys(SweepConfig, TrainConfig):
    """Every key that the command knows."""


@dataclass
class Definition:
    """What all processes of a sweep agree on.

    `base` is the resolved training configuration (of trial 0), `given` the keys of it that stood on the command line.
    """

    trials: int
    seeds: int
    looks: int
    startup: int
    warmup: float
    top: int
    confirm: int
    instances: int
    space: dict[str, Any]
    given: dict[str, Any]
    base: dict[str, Any]


FILE = "sweep.yaml"
RANGES = {
    "trials": (1, 1_000_000),
    "jobs": (1, 1024),
    "seeds": (1, 100),
    "looks": (1, 1000),
    "startup": (0, 1_000_000),
    "warmup": (0, 1),
    "top": (1, 20),
    "confirm": (0, 100),
    "instances": (2, 65_536),
}
# What trials must share to be comparable, and what only says where records go.
SHARED = ("level", "seed", "total_timesteps", "evaluation", "stop", "torch_threads")
RECORDS = ("runs", "folder", "resume", "checkpoint", "progress_bar", "tensorboard", "wandb")
DECIDED = ("evaluation.every", "evaluation.test", "resume")  # by the sweep itself


def unknown(key: str, schema: type = Keys) -> ExperimentError:
    """The error for a key that is not known, with the nearest name that is."""
    near = difflib.get_close_matches(key, cli.keys_of(schema), n=1, cutoff=0.5)
    return ExperimentError(f"unknown key `{key}` ({f'did you mean `{near[0]}`?' if near else 'see --help'})")


def configured(base: dict[str, Any], changes: dict[str, Any]) -> TrainConfig:
    """A training's configuration: the base with some values changed. Raises ExperimentError if it cannot be trained."""
    config = OmegaConf.merge(OmegaConf.structured(TrainConfig), base)
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return finished(config)  # type: ignore[arg-type]


@dataclass
class Arguments:
    """The command line, sorted: keys of the sweep, keys of its space, and keys of training with their text."""

    sweep: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


def sort_arguments(arguments: list[str]) -> Arguments:
    """Sorts `key=value` arguments. Raises ExperimentError for one that no key of the sweep or of training takes."""
    found = Arguments()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ExperimentError(f"`{argument}` is not of the form key=value (see --help)")
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
        if key.startswith("space."):
            found.space[key.removeprefix("space.")] = value
        elif key != "space" and key in {f.name for f in fields(SweepConfig)}:
            found.sweep[key] = value
        elif key in DECIDED:
            raise ExperimentError(f"{key}={text}: the sweep decides it (see `looks` in --help); leave it out")
        elif key in cli.keys_of(TrainConfig):
            found.training[key] = value
            found.overrides.append(argument)
        else:
            raise unknown(key)
    return found


def settings_of(given: dict[str, Any]) -> SweepConfig:
    """The keys of the sweep itself, checked: `configs/sweep.yaml`, then what was given."""
    config = OmegaConf.merge(OmegaConf.structured(SweepConfig), OmegaConf.load(cli.configs_dir() / "sweep.yaml"))
    for key, value in given.items():
        OmegaConf.update(config, key, value)
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, SweepConfig)
    for key, (low, high) in RANGES.items():
        if not low <= getattr(settings, key) <= high:
            raise ExperimentError(f"{key}={getattr(settings, key)}: must lie between {low} and {high}")
    if settings.confirm == 1:
        raise ExperimentError("confirm=1: an interval needs two seeds or more; 0 leaves the confirmation out")
    return settings


def define(arguments: Arguments) -> Definition:
    """A new sweep from its command line, with every key of its space tried once.

    Raises:
        ExperimentError: a key or value is wrong; the sentence names the file or argument that it comes from.
    """
    from hydra import compose, initialize_config_dir

    settings = settings_of(arguments.sweep)
    register()
    with initialize_config_dir(str(cli.configs_dir()), version_base="1.3"):
        config = compose("train", arguments.overrides)
    OmegaConf.update(config, "progress_bar", False)
    if "tensorboard" not in arguments.training:
        OmegaConf.update(config, "tensorboard", False)
    finished(config)
    base: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if len(trained_levels(base["level"])) > 1:
        raise ExperimentError(f"level={base['level']}: a sweep compares scores of one level; name one, such as level=11")
    space = {**settings.space, **arguments.space}
    held = arguments.training.keys() - arguments.space.keys()
    space = {key: spec for key, spec in space.items() if spec is not None and key not in held}
    for key, problem in problems(space, base):
        given = key in arguments.space
        where = f"space.{key}={space[key]}" if given else f"{cli.configs_dir() / 'sweep.yaml'}: space.{key}: {space[key]}"
        raise ExperimentError(f"{where}: {problem}; mend it, or drop it with space.{key}=null")
    if not space:
        raise ExperimentError("space: nothing is left to search; give space.KEY=[VALUE, ...] (see --help)")
    rest = {f.name: getattr(settings, f.name) for f in fields(SweepConfig) if f.name not in ("jobs", "folder", "space")}
    return Definition(**rest, space=space, given=arguments.training, base=base)


def problems(space: dict[str, Any], base: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of every key that cannot be searched as it stands, beside the other keys of `base`."""
    from experiments.sweep.space import distribution, ends

    for key, spec in space.items():
        try:
            if key.split(".")[0] in SHARED + RECORDS:
                raise ExperimentError("is the same in all trials and cannot be searched")
            if key not in base:
                raise unknown(key, TrainConfig)
            distribution(spec, base[key])
            for value in ends(spec):
                configured(base, {key: value})
        except ExperimentError as error:
            yield key, str(error)


def check_joins(definition: Definition, arguments: Arguments, folder: Path) -> None:
    """Refuses arguments that differ from the sweep that is gone on with; only `trials` may, `jobs` is each command's own."""
    for key, value in arguments.sweep.items():
        if key not in ("folder", "jobs", "trials") and value != getattr(definition, key):
            raise ExperimentError(_differs(folder, key, value, getattr(definition, key)))
    for key, value in arguments.space.items():
        if value != definition.space.get(key):
            raise ExperimentError(_differs(folder, f"space.{key}", value, definition.space.get(key)))
    base = OmegaConf.create(definition.base)
    for key, value in arguments.training.items():
        if value != definition.given.get(key, OmegaConf.select(base, key)):
            raise ExperimentError(_differs(folder, key, value, OmegaConf.select(base, key)))


def _differs(folder: Path, key: str, value: Any, stored: Any) -> str:
    return f"{key}={value}: the sweep in {folder} has {stored}; leave {key} out to go on with it, or name another folder"


def default_folder(base: dict[str, Any]) -> Path:
    """`RUNS/sweeps/level-LEVEL-DATE`."""
    level = f"{base['level']:02d}" if isinstance(base["level"], int) else Path(str(base["level"])).stem
    return Path(base["runs"]) / "sweeps" / f"level-{level}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def read_definition(folder: Path) -> Definition:
    """The sweep in a folder. Raises ExperimentError if there is none."""
    try:
        stored = OmegaConf.to_container(OmegaConf.load(folder / FILE))
        return Definition(**stored)  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        raise ExperimentError(f"folder={folder}: exists and holds no sweep ({FILE}); name another folder") from None


def write_definition(folder: Path, definition: Definition) -> None:
    """Writes `sweep.yaml`, atomically."""
    write_text(folder / FILE, OmegaConf.to_yaml(OmegaConf.create(vars(definition))))
