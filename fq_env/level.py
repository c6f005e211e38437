"""Levels: one YAML file each, checked here and turned into the parameters that the generator reads.

A level is data: a catalogue (the same `SystemSpec` as production), how workflows and physics are drawn, score weights.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fq_env.errors import FQError
from fq_env.level_files import LEVELS
from pit.errors import PitError
from pit.files import load_yaml, parse
from pit.layout import EXPOSURES, MAX_TASKS
from pit.spec import Strict, SystemSpec

Range = Annotated[tuple[float, float], Field(description="low, high")]
Whole = Annotated[tuple[int, int], Field(description="low, high, both included")]
FAMILIES = ("layered", "pipelines", "fork_join")


class Workflow(Strict):
    """The family of workflows: shape weights, size, width, and how often neighbours of a layer share its function."""

    shapes: dict[Literal["layered", "pipelines", "fork_join"], float] = Field(min_length=1)
    tasks: Whole
    width: Whole
    siblings: Range


class Order(Strict):
    """Levels of hidden order: what each function needs, which goals are drawn, what may be held already, distractors."""

    needs: dict[str, list[str]]
    goals: list[str] = Field(min_length=1, max_length=8)
    held: float = Field(ge=0, le=1, description="chance that the first function of the goal's chain is held at the start")
    distractors: Whole


class Draw(Strict):
    """What every instance draws anew; factors multiply the catalogue's figures. CVs are of log-normal factors."""

    functions: Whole | None = None  # how many functions of the catalogue are used
    models: Whole | None = None  # how many of the standard variants' models are used
    places: Whole | None = None  # of the first pool
    memory: Whole | None = None  # of the first budget, memory units
    seconds: Range = (1.0, 1.0)  # per function
    variant_seconds: Range = (1.0, 1.0)  # per function, on lite and premium
    quality_gap: Range = (1.0, 1.0)  # per function, on the gaps to standard
    load_seconds: Range = (1.0, 1.0)  # per instance
    model_load: Range = (1.0, 1.0)  # per model
    exclusive: float = Field(default=0.0, ge=0, le=1)  # chance that every copy serves one call at a time
    task_cv: float = Field(default=0.0, ge=0, le=2)  # true mean of a task over its function's
    hint_cv: Range = (0.0, 0.0)  # hint over true mean
    belief_cv: float = Field(default=0.0, ge=0, le=2)  # catalogue figure over true mean of a function, and of a load
    noise_cv: Range = (0.0, 0.0)  # duration of one call over its mean
    load_cv: float = Field(default=0.0, ge=0, le=2)  # one load over its mean
    earlier: list[int] = Field(default_factory=lambda: [0], min_length=1, max_length=8)  # earlier observations, one is drawn
    failure_rate: float = Field(default=0.0, ge=0, le=0.9)


class Weights(Strict):
    """Weights of the score's bonuses."""

    efficiency: float = Field(ge=0)
    stability: float = Field(ge=0)
    optimization: float = Field(ge=0)


class Level(Strict):
    """One level (see `levels/`)."""

    number: int = Field(ge=1, le=99)
    name: str
    title: str
    teaching: str
    hint: str
    probe: str
    pass_mark: float = Field(ge=0, le=1, description="perf (0 random, 1 best known) from which the level counts as solved")
    exposure: Literal["hidden", "partial", "full"]
    system: SystemSpec
    workflow: Workflow | None = None
    order: Order | None = None
    draw: Draw = Draw()
    score: Weights
    horizon: float = Field(gt=1, description="the episode expires at this multiple of the lower bound")
    max_steps: int = Field(ge=1)
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("exposure")
    @classmethod
    def _exposure(cls, value: str) -> str:
        assert value in EXPOSURES
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Level:
        if (self.workflow is None) == (self.order is None):
            raise ValueError("a level has either `workflow` (open order) or `order` (hidden order)")
        if self.order is not None:
            names = set(self.system.functions)
            if len(names) > 16:
                raise ValueError("a level of hidden order has at most 16 functions")
            for key, needs in self.order.needs.items():
                for name in (key, *needs):
                    if name not in names:
                        raise ValueError(f"order.needs names the function {name!r}, which system.functions lacks")
            for name in self.order.goals:
                if name not in names:
                    raise ValueError(f"order.goals names the function {name!r}, which system.functions lacks")
            if not self.system.order_hidden:
                raise ValueError("system.order_hidden must be true in a level with `order`")
        elif self.workflow is not None and not 1 <= self.workflow.tasks[0] <= self.workflow.tasks[1] <= MAX_TASKS:
            raise ValueError(f"workflow.tasks must be a range within 1..{MAX_TASKS}")
        return self

    @property
    def max_tasks(self) -> int:
        """The most tasks that an instance can have."""
        return len(self.system.functions) if self.workflow is None else self.workflow.tasks[1]

    @property
    def env_id(self) -> str:
        """The Gymnasium id."""
        return f"FunctionQuest/Level-{self.number:02d}-v0"


@functools.lru_cache(maxsize=64)
def _read(path: Path) -> Level:
    try:
        return parse(Level, load_yaml(path, "level file"), f"level file {path}")
    except PitError as error:
        raise FQError(str(error)) from None


def load_level(level: int | str | Path | Level) -> Level:
    """A level by number, by path of a YAML file, or itself. Raises `FQError`."""
    if isinstance(level, Level):
        return level
    if isinstance(level, str) and re.fullmatch(r"\d{1,2}", level):
        level = int(level)
    if isinstance(level, int) and not isinstance(level, bool):
        if level not in LEVELS:
            raise FQError(f"level {level} does not exist; there are {', '.join(map(str, LEVELS))}, or name a YAML file")
        return _read(LEVELS[level])
    path = Path(str(level))
    if path.suffix not in (".yaml", ".yml"):
        raise FQError(f"level {str(level)!r} is neither a number ({', '.join(map(str, LEVELS))}) nor a YAML file")
    return _read(path)
