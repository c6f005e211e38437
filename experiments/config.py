"""What can be configured about a training: the typed schema behind `configs/train.yaml`, its checks, and what follows from it.

The numbers stand in the YAML, here are only their names, types and ranges. Nothing heavy is imported.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.cli import unknown_key
from experiments.errors import ExperimentError
from experiments.recipes.settings import RANGES as RECIPE_RANGES
from experiments.recipes.settings import RECIPES, RecipeConfig, fault
from fq_env.errors import FQError
from fq_env.level import ARM, ExplicitLevel, Level, OuterLevel, load_level
from fq_env.level_files import LEVELS
from fq_env.state import REWARDS
from pit.layout import EXPOSURES


@dataclass
class EvaluationConfig:
    """When and on how many instances the policy is looked at."""

    every: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    fit: int = MISSING


@dataclass
class MixtureConfig:
    """How a training of several levels divides its environments and its budget among them."""

    rehearsal: float = MISSING
    patience: float = MISSING
    floor: float = MISSING
    temperature: float = MISSING
    staleness: float = MISSING
    training: dict[str, Any] = MISSING
    judged: int | None = None


@dataclass
class StopConfig:
    """When a training ends before its budget is spent."""

    when_solved: bool = MISSING
    patience: int | None = MISSING
    progress: float = MISSING
    mastery: float = MISSING


@dataclass
class CheckpointConfig:
    """How often a training can be resumed from."""

    every: int = MISSING


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = MISSING
    project: str = MISSING


@dataclass
class TrainConfig:
    """One training; every key is explained in `configs/train.yaml`."""

    level: Any = MISSING
    seed: int = MISSING
    exposure: str | None = MISSING
    phases: list[float] = MISSING
    curriculum: str = MISSING
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    reward: str = MISSING
    total_timesteps: int = MISSING
    n_envs: int = MISSING
    n_steps: int = MISSING
    algo: str = MISSING
    batch_size: int = MISSING
    n_epochs: int = MISSING
    learning_rate: float = MISSING
    learning_rate_end: float = MISSING
    gamma: float = MISSING
    gae_lambda: float = MISSING
    ent_coef: float = MISSING
    ent_coef_end: float | None = MISSING
    vf_coef: float = MISSING
    clip_range: float = MISSING
    max_grad_norm: float = MISSING
    target_kl: float | None = MISSING
    masks: bool = MISSING
    network: str = MISSING
    net_arch: list[int] | None = MISSING
    activation: str = MISSING
    torch_threads: int = MISSING
    matmul_precision: str = MISSING
    recipe: str = MISSING
    recipe_options: RecipeConfig = field(default_factory=RecipeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: str | None = MISSING
    runs: str = MISSING
    folder: str | None = MISSING
    sign: str | None = None
    progress_bar: bool = MISSING
    tensorboard: bool = MISSING
    wandb: WandbConfig = field(default_factory=WandbConfig)


OPTIONS_OF_A_LEVEL = tuple(
    f"recipe_options.{key}"
    for key in (
        "teacher.episodes", "teacher.rollouts", "visits.rounds", "visits.episodes", "supervised.epochs",
        "supervised.smoothing", "supervised.target", "ppo.ent_coef", "ppo.learning_rate",
    )
)  # fmt: skip
SCHEDULE = "schedule"  # the exposure that grows while the training goes on

CHOICES = {
    "algo": ("fast_ppo", "maskable_ppo", "ppo"),
    "matmul_precision": ("highest", "high", "medium"),
    "exposure": (*EXPOSURES, SCHEDULE, None),
    "curriculum": ("staged", "uniform", "plr"),
    "reward": REWARDS,
    "network": ("mlp", "symphony", "slots"),
    "activation": ("relu", "tanh"),
    "recipe": RECIPES,
    "wandb.mode": ("disabled", "offline", "online"),
}
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "mixture.rehearsal": (0.0, 1.0),
    "mixture.patience": (0.0, 1.0),
    "mixture.floor": (1e-6, 1.0),
    "mixture.temperature": (0.05, 100.0),
    "mixture.staleness": (0.0, 1.0),
    "total_timesteps": (1, 1e12),
    "n_envs": (1, 65_536),
    "n_steps": (2, 65_536),
    "batch_size": (2, 2**24),
    "n_epochs": (1, 1000),
    "learning_rate": (0.0, 1.0),
    "learning_rate_end": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "ent_coef": (0.0, 10.0),
    "vf_coef": (0.0, 100.0),
    "clip_range": (1e-6, 1.0),
    "max_grad_norm": (1e-6, 1e6),
    "torch_threads": (1, 1024),
    "evaluation.every": (0, 1e9),
    "evaluation.validation": (2, 65_536),
    "evaluation.test": (0, 1_000_000),
    "evaluation.fit": (1, 65_536),
    "checkpoint.every": (1, 1e9),
    "stop.progress": (0.0, 1.0),
    "stop.mastery": (0.0, 10.0),
    **{f"recipe_options.{key}": limits for key, limits in RECIPE_RANGES.items()},
}


@functools.lru_cache(maxsize=64)
def level_of(level: int | str) -> Level:
    """The level that a command's `level=` names. Raises ExperimentError for one that does not exist or is not sound."""
    found = any_level(level)
    if ARM.fullmatch(str(level)):
        raise ExperimentError(f"level={level}: was changed for a comparison, take level {found.number}")
    return found


@functools.lru_cache(maxsize=64)
def any_level(level: int | str) -> Level:
    """As `level_of`, and levels that were changed for a comparison, too: `plain-11`, `explicit-11` (`ARMS`)."""
    try:
        return load_level(level)
    except FQError as error:
        raise ExperimentError(f"level={level}: {error}") from None


def for_runtime(level: Level, what: str) -> Level:
    """The level; refuses one that was changed in what its agent sees or does, for which there is no `what`.

    Raises:
        ExperimentError: it is such a level.
    """
    if isinstance(level, OuterLevel):
        kind = "explicit" if isinstance(level, ExplicitLevel) else "no-history"
        raise ExperimentError(f"level={kind}-{level.number}: has no {what}; take level {level.number}")
    return level


def level_words(value: Any) -> list[str]:
    """`1-3,11`, `11`, `all`, a path, or a list of such as single words: `["1", "2", "3", "11"]`, each once."""
    words: list[str] = []
    for word in (str(x).strip() for x in (value if isinstance(value, list) else str(value).split(","))):
        ends = re.fullmatch(r"(\d{1,2})-(\d{1,2})", word)
        if word == "all":
            words += map(str, LEVELS)
        elif ends:
            words += [str(n) for n in LEVELS if int(ends[1]) <= n <= int(ends[2])]
        else:
            words.append(word)
    return list(dict.fromkeys(words))


def levels_of(value: Any) -> list[Level]:
    """The levels that a command's `levels=` names. Raises ExperimentError for one that does not exist or is not sound."""
    return [level_of(word) for word in level_words(value)]


def _words(value: Any) -> list[str]:
    """A training's `level=` as single words."""
    if isinstance(value, str) and not re.fullmatch(r"all|[\d, -]*[,-][\d, -]*", value):
        return [value]
    return level_words(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)


def trained_levels(value: Any) -> list[Level]:
    """The levels of a training: one (a number or a file), or several (`all`, `1-5,11`, a list) in the order of their numbers.

    Raises:
        ExperimentError: one does not exist or is not sound, or a range holds none.
    """
    words = _words(value)
    levels = [any_level(value)] if words == [value] else [level_of(word) for word in words]
    if not levels:
        raise ExperimentError(f"level={value}: names no level; there are {', '.join(map(str, LEVELS))}")
    return sorted(levels, key=lambda level: level.number)


def names_of(value: Any) -> tuple[str, ...]:
    """A training's levels as a bundle names them, in the order of `trained_levels`: their numbers, or the paths given."""
    return tuple(sorted(_words(value), key=lambda word: any_level(word).number))


def title_of(value: Any) -> str:
    """What a training's `level=` is called in names of folders: `11`, `all`, `1-5+11`, the stem of a file."""
    words = [f"{value:02d}"] if isinstance(value, int) else value if isinstance(value, list) else [value]
    return "+".join(Path(str(word)).stem.replace(",", "+") for word in words)


def folder_of(word: Any) -> str:
    """What a level's own folders and files are called: `level-11`, or `level-STEM` for a file that is none of the suite's."""
    level = any_level(word)
    of_suite = ARM.fullmatch(str(word)) or level.of_suite
    return f"level-{level.number:02d}" if of_suite else f"level-{Path(str(word)).stem}"


def shown(cfg: TrainConfig) -> str:
    """The exposure under which a training's policy is judged and used: the one given, the last of a schedule, or the level's
    own, of several levels the one that shows most."""
    if cfg.exposure == SCHEDULE:
        return EXPOSURES[-1]
    return cfg.exposure or max((level.exposure for level in trained_levels(cfg.level)), key=EXPOSURES.index)


def exposure_after(cfg: TrainConfig, frames: int) -> str:
    """The exposure of episodes that begin after so many frames of the budget."""
    if cfg.exposure != SCHEDULE:
        return shown(cfg)
    return EXPOSURES[sum(frames >= phase * cfg.total_timesteps for phase in cfg.phases)]


def ent_coef_after(cfg: TrainConfig, frames: int) -> float:
    """The weight of the entropy bonus after so many frames of the budget."""
    own = cfg.recipe_options.ppo.ent_coef if cfg.recipe == "srl_rlvr" else None
    first = cfg.ent_coef if own is None else own
    last = first if cfg.ent_coef_end is None else cfg.ent_coef_end
    return first + (last - first) * min(1.0, frames / cfg.total_timesteps)


def _training(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """The resolver `${training:KEY,DEFAULT}`. A level that cannot be read gives the default here, its error in `finished`."""
    try:
        levels = trained_levels(_root_.level)
    except ExperimentError:
        return default
    return (levels[0].training if len(levels) == 1 else _root_.mixture.training).get(key, default)


def _several(then: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """The resolver `${several:A,B}`: A where several levels are trained together, else B."""
    try:
        return then if len(trained_levels(_root_.level)) > 1 else otherwise
    except ExperimentError:
        return otherwise


def register() -> None:
    """Makes the resolvers known to OmegaConf and the schema to Hydra."""
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("several", _several, replace=True)
    OmegaConf.register_new_resolver("training", _training, replace=True)
    ConfigStore.instance().store("train_schema", TrainConfig)


def finished(config: DictConfig) -> TrainConfig:
    """The resolved and checked configuration.

    Raises:
        ExperimentError: a key, choice, range or combination is wrong, named with its value and what would be right.
    """
    known = {f.name for f in fields(TrainConfig)}
    for key in config:
        if key not in known:
            raise unknown_key(str(key), TrainConfig)
    levels = trained_levels(config.level)
    sections = [(f"level={config.level}: its `training` section", levels[0].training)] if len(levels) == 1 else []
    for where, section in [*sections, ("mixture.training", config.mixture.training)]:
        for key in section:
            if key not in known and key not in OPTIONS_OF_A_LEVEL:
                raise ExperimentError(f"{where}: {unknown_key(key, TrainConfig)}")
    cfg = OmegaConf.to_object(config)
    assert isinstance(cfg, TrainConfig)
    check(cfg, config)
    labels = [level.label for level in levels]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ExperimentError(f"level={cfg.level}: two of the levels are called {twice}; give one of the files another name")
    judged = cfg.mixture.judged
    if judged is not None and str(judged) not in labels:
        raise ExperimentError(f"mixture.judged={judged}: must be null or one of level={cfg.level}")
    if cfg.n_envs < len(levels):
        raise ExperimentError(f"n_envs={cfg.n_envs}: {len(levels)} levels need at least as many environments")
    if cfg.recipe != "plain" and any(isinstance(level, ExplicitLevel) for level in levels):
        raise ExperimentError(f"level={cfg.level} recipe={cfg.recipe}: no teacher knows explicit stages; take recipe=plain")
    return cfg


def check(cfg: TrainConfig, config: DictConfig) -> None:
    """Refuses what cannot be trained before anything heavy is imported."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in choices:
            names = ", ".join("null" if c is None else str(c) for c in choices)
            raise ExperimentError(f"{key}={value}: must be one of {names}")
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(config, key)
        if not low <= value <= high:
            raise ExperimentError(f"{key}={value}: must lie between {low:g} and {high:g}")
    if cfg.stop.patience is not None and cfg.stop.patience < 1:
        raise ExperimentError(f"stop.patience={cfg.stop.patience}: must be null or at least 1, such as 12")
    if cfg.sign is not None:
        from conductor.trust import private_key

        private_key(cfg.sign)
    if cfg.ent_coef_end is not None and not 0.0 <= cfg.ent_coef_end <= 10.0:
        raise ExperimentError(f"ent_coef_end={cfg.ent_coef_end}: must be null or lie between 0 and 10, such as 0.001")
    if cfg.target_kl is not None and not 0.0 < cfg.target_kl <= 10.0:
        raise ExperimentError(f"target_kl={cfg.target_kl}: must be null or lie between 0 and 10, such as 0.03")
    if len(cfg.phases) != len(EXPOSURES) - 1 or not 0.0 <= cfg.phases[0] <= cfg.phases[1] <= 1.0:
        raise ExperimentError(f"phases={cfg.phases}: must be two ascending shares of the budget, such as [0.2,0.5]")
    if cfg.net_arch is not None:
        _check_widths(cfg.network, cfg.net_arch)
    if cfg.evaluation.test == 1:
        raise ExperimentError("evaluation.test=1: must be 0 (no test, no bundle) or at least 2")
    wrong = fault(cfg.recipe, cfg.algo, cfg.batch_size, cfg.recipe_options)
    if wrong is not None:
        raise ExperimentError(wrong)
    rollout = cfg.n_envs * cfg.n_steps
    if rollout % cfg.batch_size:
        raise ExperimentError(
            f"batch_size={cfg.batch_size}: must divide n_envs x n_steps = {cfg.n_envs} x {cfg.n_steps} = {rollout}; "
            f"{_nearest_divisor(rollout, cfg.batch_size)} would"
        )


def _check_widths(network: str, net_arch: list[int]) -> None:
    lengths, wanted = {
        "mlp": (range(1, 9), "one to eight widths between 1 and 4096, such as [64,64]"),
        "slots": ((2,), "two widths between 1 and 4096, of the encoder and of the context, such as [64,64]"),
        "symphony": ((), "null, because the sizes of network=symphony are fixed; network=mlp takes any"),
    }[network]
    if len(net_arch) not in lengths or any(not 1 <= width <= 4096 for width in net_arch):
        raise ExperimentError(f"net_arch={net_arch}: must be {wanted}")


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(2, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - wanted))


def derived(cfg: TrainConfig) -> str:
    """What follows from the configuration, in a line for people."""
    rollout = cfg.n_envs * cfg.n_steps
    rollouts = -(-cfg.total_timesteps // rollout)
    steps = rollouts * cfg.n_epochs * (rollout // cfg.batch_size)
    return f"{rollouts} rollouts of {rollout} frames, {steps} gradient steps on {cfg.batch_size} frames each"
