"""Levels: one YAML file each, checked here and turned into the parameters that the generator reads.

A level is data: a catalogue (the same `SystemSpec` as production), how workflows and physics are drawn, score weights.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from fq_env.bounds import check_draw, check_gates
from fq_env.errors import FQError
from fq_env.importers import wfformat
from fq_env.level_files import LEVELS
from fq_env.sizes import MAX_ALTERNATIVES, MAX_EDGES, MAX_GATES, MAX_GOALS, MAX_PLANS, N_STAGES
from fq_env.workflows import Bytes, Cv, Cvs, Factors, Finite, Observed, Part, Range, Share, Whole, Workflow
from pit.errors import PitError
from pit.files import load_part, load_yaml, parse, shown
from pit.layout import EXPOSURES, MAX_PLACES, MAX_POOLS
from pit.spec import Strict, SystemSpec, join_system


class Order(Strict):
    """Levels of hidden order: what each function needs, which goals are drawn, what may be held already, distractors.

    `needs`: without it a call fails; a list of lists names alternatives. `soft`: it must be held or given up. `prefers`:
    without it the output is poor. `spoils`: what a function's success undoes.
    """

    needs: dict[str, list[str] | list[list[str]]]
    soft: dict[str, list[str]] = Field(default_factory=dict)
    prefers: dict[str, list[str]] = Field(default_factory=dict)
    spoils: dict[str, list[str]] = Field(default_factory=dict)
    poor: float = Field(default=0.4, ge=0, le=1, description="quality of a poor output over that of a good one")
    goals: list[str] = Field(min_length=1, max_length=MAX_GOALS)
    held: float = Field(ge=0, le=1, description="chance that the first function of the goal's chain is held at the start")
    distractors: Whole

    def alternatives(self, function: str) -> list[list[str]]:
        """What a function needs: lists of which one must be complete; none if it needs nothing."""
        needs = self.needs.get(function, [])
        listed = [x for x in needs if isinstance(x, list)]
        return listed if listed else [[x for x in needs if isinstance(x, str)]] if needs else []

    def named(self) -> Iterator[tuple[str, str]]:
        """(key, function) of every function that is named."""
        for table in ("needs", "soft", "prefers", "spoils"):
            for function in getattr(self, table):
                yield f"order.{table}", function
                lists = self.alternatives(function) if table == "needs" else [getattr(self, table)[function]]
                yield from ((f"order.{table}.{function}", name) for names in lists for name in names)
        yield from (("order.goals", name) for name in self.goals)

    def plans(self, goal: str, above: tuple[str, ...] = ()) -> list[frozenset[str]]:
        """The sets of functions that reach a goal and contain no smaller such set. Raises ValueError on a circle."""
        if goal in above:
            raise ValueError(f"order.needs: {' needs '.join((*above, goal))}: a circle; remove one of these needs")
        found = {frozenset([goal])} if not self.alternatives(goal) else set[frozenset[str]]()
        for names in self.alternatives(goal):
            ways = {frozenset([goal])}
            for name in names:
                ways = {way | plan for way in ways for plan in self.plans(name, (*above, goal))}
            found |= ways
        return sorted((p for p in found if not any(q < p for q in found)), key=sorted)

    def check_circles(self, goal: str, cleared: set[str], above: tuple[str, ...] = ()) -> None:
        """Raises ValueError if what a goal needs, also softly, waits for itself; circles of `needs` alone are for `plans`.
        `cleared`: functions that are known not to; it grows."""
        if goal in above:
            circle = " needs ".join((*above[above.index(goal) :], goal))
            raise ValueError(f"order.needs with order.soft: {circle}: a circle; remove one of these needs")
        if goal in cleared:
            return
        for name in dict.fromkeys([*self.soft.get(goal, []), *(x for names in self.alternatives(goal) for x in names)]):
            self.check_circles(name, cleared, (*above, goal))
        cleared.add(goal)

    def useful(self, goal: str) -> set[str]:
        """All functions that help to reach a goal: those of its plans, and what these prefer or need softly."""
        found = set().union(*self.plans(goal))
        todo = sorted(found)
        while todo:
            name = todo.pop()
            for helper in (*self.prefers.get(name, []), *self.soft.get(name, [])):
                new = set().union(*self.plans(helper)) - found
                found |= new
                todo += sorted(new)
        return found


Domain = Annotated[int, Field(ge=0, lt=MAX_POOLS)]


def _list(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("a list of numbers is needed, of which one is drawn, such as [0, 3]")
    return value


class Draw(Strict):
    """What every instance draws anew; factors multiply the catalogue's figures. CVs are of log-normal factors."""

    functions: Whole | None = None  # how many functions of the catalogue are used
    models: Whole | None = None  # how many of the standard variants' models are used
    places: Whole | None = None  # of the first pool
    memory: Whole | None = None  # of the first budget, memory units
    seconds: Factors = (1.0, 1.0)  # per function
    variant_seconds: Factors = (1.0, 1.0)  # per function, on lite and premium
    quality_gap: Range = (1.0, 1.0)  # per function, on the gaps to standard
    load_seconds: Range = (1.0, 1.0)  # per instance
    model_load: Range = (1.0, 1.0)  # per model
    exclusive: float = Field(default=0.0, ge=0, le=1)  # chance that every copy serves one call at a time
    task_cv: Cv = 0.0  # true mean of a task over its function's
    hint_cv: Cvs = (0.0, 0.0)  # hint over true mean
    belief_cv: Cv = 0.0  # catalogue figure over true mean of a function, and of a load
    noise_cv: Cvs = (0.0, 0.0)  # duration of one call over its mean
    load_cv: Cv = 0.0  # one load over its mean
    earlier: Annotated[list[Observed], BeforeValidator(_list)] = Field(
        default=[0], min_length=1, max_length=8
    )  # earlier observations, one is drawn
    failure_rate: float = Field(default=0.0, ge=0, le=0.9)
    lost_rate: float = Field(default=0.0, ge=0, le=0.5)  # calls that find an input's artifact gone
    money: Factors | None = None  # the limit, over what all standard calls cost
    rate: Factors = (1.0, 1.0)  # on the pools' token rates
    straggler_rate: Share = (0.0, 0.0)  # chance of a call to be late
    straggler_factor: Factors = (3.0, 10.0)  # of a late call's duration
    slow_share: float = Field(default=0.0, ge=0, le=1)  # of the time in which a pool is slow
    slow_factor: float = Field(default=1.0, ge=1, le=100)  # on the chance while its pool is slow
    slow_seconds: float = Field(default=60.0, ge=1e-3, le=1e6)  # how long a pool stays as it is
    outages: dict[str, Part] = Field(default_factory=dict)  # per pool: share of the time in which it is out
    outage_seconds: float = Field(default=60.0, ge=1e-3, le=1e6)  # how long a pool is out, or is not
    outage_failure: float = Field(default=0.9, gt=0, le=1)  # chance that a call fails which begins while its pool is out
    outage_after: float = Field(default=0.3, gt=0, le=1)  # of a call's duration, after which such a call fails at the latest
    fault_domains: dict[str, Domain] = Field(default_factory=dict)  # pools of the same number are out together
    crowded: dict[str, Part] = Field(default_factory=dict)  # per pool: share of the time in which other tenants are there
    crowd: Share = (0.5, 1.0)  # of a pool's places, which they take then
    crowd_seconds: float = Field(default=60.0, ge=1e-3, le=1e6)  # how long they stay, or stay away
    drift: dict[str, Part] = Field(default_factory=dict)  # per pool: chance that it decays during the instance
    onset: Range = (0.1, 0.5)  # over the lower bound, when it does
    drift_factor: Factors = (2.0, 4.0)  # on the durations of its calls from then on
    drift_failure: Part = 0.0  # chance that such a call fails
    api_change: dict[str, Part] = Field(default_factory=dict)  # per pool: chance of each of its variants to change its API
    change_onset: Range = (0.1, 0.5)  # over the lower bound, when it does; its calls are `invalid` until it is configured
    change_after: float = Field(default=0.1, gt=0, le=1)  # of its duration, after which such a call has failed
    config_seconds: float = Field(default=10.0, ge=0, le=1e6)  # how long a configuration takes
    fresh: Factors = (1.0, 1.0)  # per instance, on all `fresh_seconds`
    deadline: Factors | None = None  # over the lower bound
    size: Bytes | None = None  # bytes, of a task's artifact


class Gate(Strict):
    """A door that opens only in a certain state of the infrastructure: without `free` places of the pool left, or without a
    loaded copy of the model, calls of this variant (`at`: in this pool alone) fail after a share `after` of their duration.
    Nobody is told."""

    verb: Literal["lite", "standard", "premium"]
    at: str | None = None
    pool: str | None = None
    free: int = Field(default=1, ge=1, le=MAX_PLACES)
    model: str | None = None
    after: float = Field(default=0.3, gt=0, le=1)


class Weights(Strict):
    """Weights of the score's bonuses."""

    efficiency: Finite = 1.0
    stability: Finite = 1.0
    optimization: Finite = 2.0
    late: Part = 1.0  # what the quality of an output after the deadline counts


# Names of the behaviours by which it is seen that a level's teaching was learned; `experiments.probes` measures them.
Probe = Literal[
    "total", "wrong_calls", "poor_calls", "cost_over_best", "overlap", "critical_wait", "short", "cold_starts_per_call",
    "quality_per_cost", "outage_calls", "stale_calls", "echo_calls", "decayed_calls", "changed_calls", "slowdown",
    "gated_calls", "fetches", "late", "p95_makespan",
]  # fmt: skip


class Level(Strict):
    """One level (see `levels/`). What has a default may be left out of a level of one's own."""

    number: int = Field(default=0, ge=0, le=99, description="0: no level of the suite, such as a workflow from outside")
    name: str = Field(min_length=1, description="by default the file's, without its ending")
    title: str = ""
    teaching: str = ""
    hint: str = ""
    probe: Probe = "total"
    pass_mark: float = Field(
        default=0.85, ge=0, le=1, description="perf (0 random, 1 best known) from which the level counts as solved"
    )
    exposure: Literal["hidden", "partial", "full"] = "full"
    system: SystemSpec
    workflow: Workflow | None = None
    order: Order | None = None
    draw: Draw = Draw()
    gates: list[Gate] = Field(default_factory=list, max_length=MAX_GATES)
    score: Weights = Weights()
    horizon: float = Field(
        default=40.0, gt=1, le=1e4, allow_inf_nan=False, description="multiple of the lower bound at which it expires"
    )
    max_steps: int = Field(default=20_000, ge=1, le=1_000_000_000)
    lookahead_depth: int = Field(
        default=0, ge=0, le=1_000_000, description="decisions after which lookahead takes what is still reachable; 0: never"
    )
    lookahead_width: int = Field(
        default=0,
        ge=0,
        le=128,
        description="how many actions lookahead tries: what a fitted rule likes best; 0: all that is legal",
    )
    history: list[str] = Field(default_factory=list, description="what each version of the environment changed")
    training: dict[str, Any] = Field(default_factory=dict)
    _stem: str = PrivateAttr("")

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
            for key, name in self.order.named():
                if name not in names:
                    raise ValueError(f"{key} names the function {name!r}, which system.functions lacks")
            for name in names:
                if len(self.order.alternatives(name)) > MAX_ALTERNATIVES:
                    raise ValueError(f"order.needs.{name} has more than {MAX_ALTERNATIVES} alternatives; leave the best")
            for name in self.order.goals:
                if len(self.order.plans(name)) > MAX_PLANS:
                    raise ValueError(f"order.goals: more than {MAX_PLANS} plans reach {name!r}; take alternatives away")
                cleared: set[str] = set()
                for helper in sorted(self.order.useful(name)):
                    self.order.check_circles(helper, cleared)
            if not self.system.order_hidden:
                raise ValueError("system.order_hidden must be true in a level with `order`")
        elif self.workflow is not None:
            self._check_workflow(self.workflow)
        check_draw(self)
        check_gates(self)
        return self

    def _check_workflow(self, workflow: Workflow) -> None:
        if self.system.order_hidden:
            raise ValueError("system.order_hidden must be false in a level with `workflow`")
        names, used = list(self.system.functions), workflow.functions()
        if workflow.given is not None:
            used = {task.function for task in workflow.given.ordered(self.system)}
        drawn = names if self.draw.functions is None else names[: self.draw.functions[0]]
        if missing := sorted(used - set(drawn)):
            why = "which system.functions lacks" if missing[0] not in names else "which draw.functions may leave out"
            raise ValueError(f"workflow names the function {missing[0]!r}, {why}; name one of {', '.join(drawn[:12])}")
        if workflow.max_edges > MAX_EDGES:
            raise ValueError(f"workflow can have {workflow.max_edges} edges; at most {MAX_EDGES} fit: draw fewer tasks")

    @property
    def stem(self) -> str:
        """The name of its file without the ending; its own name if it was read from none."""
        return self._stem or self.name

    @property
    def of_suite(self) -> bool:
        """Whether it is a level of the suite, or a file that says the same, and not only one that took over its number."""
        return self.number in LEVELS and self.model_dump() == load_level(self.number).model_dump()

    @property
    def label(self) -> str:
        """What it is called among others: its number in the suite, else the name of its file."""
        return str(self.number) if self.of_suite else self.stem

    @property
    def has_twins(self) -> bool:
        """Whether tasks of an instance can be twins, whose outputs are interchangeable."""
        if self.workflow is None:
            return False
        given = self.workflow.given
        return self.workflow.echoes[1] > 0 if given is None else any(task.content for task in given.tasks)

    @property
    def max_tasks(self) -> int:
        """The most tasks that an instance can have."""
        return len(self.system.functions) if self.workflow is None else self.workflow.max_tasks

    @property
    def max_workflows(self) -> int:
        """The most workflows that an instance can have."""
        return 1 if self.workflow is None else self.workflow.max_workflows

    @property
    def max_edges(self) -> int:
        """The most edges that an instance can have."""
        return 0 if self.workflow is None else self.workflow.max_edges

    @property
    def env_id(self) -> str:
        """The Gymnasium id."""
        return f"FunctionQuest/Level-{self.number:02d}-v0"


class OuterLevel(Level):
    """A level whose agent sees or does other things than a runtime's would."""


class ExplicitLevel(OuterLevel):
    """A level as the old model of infrastructure plays it: stage by stage, see `fq_env.explicit`."""


@functools.lru_cache(maxsize=64)
def plain_level(level: int | str | Path) -> Level:
    """The level as it can be played with and without explicit stages: `standard` is its only verb beside `wait`.

    Instances are those of the level itself; bounds and scores count what `standard` can do. What the Pit would begin by itself
    (fallbacks, pre-warming, rebalancing) is off.
    """
    found = load_level(level)
    off = {"verbs": ["standard"], "fallback": False, "prewarm": False, "rebalance": False}
    training = {key: value for key, value in found.training.items() if key != "recipe"}  # no teacher knows explicit stages
    return found.model_copy(update={"system": found.system.model_copy(update=off), "training": training})


@functools.lru_cache(maxsize=64)
def explicit_level(level: int | str | Path) -> ExplicitLevel:
    """The plain level (`plain_level`) whose agent performs every stage of every call, with as many times its steps."""
    plain = plain_level(level)
    return ExplicitLevel.model_construct(**dict(plain.model_copy(update={"max_steps": plain.max_steps * (1 + N_STAGES)})))


class BlindLevel(OuterLevel):
    """A level whose agent is not shown what happened before, see `fq_env.blind`."""


@functools.lru_cache(maxsize=64)
def blind_level(level: int | str | Path) -> BlindLevel:
    """The level without the features that carry history."""
    return BlindLevel.model_construct(**dict(load_level(level)))


class HoldlessLevel(Level):
    """A level whose verb `hold` was taken away. What is fitted to the whole level serves here too: no rule begins what is
    not legal."""


@functools.lru_cache(maxsize=64)
def level_without_hold(level: int | str | Path) -> HoldlessLevel:
    """The level without its verb `hold`. Raises `FQError` if it has none."""
    found = load_level(level)
    verbs = [verb for verb in found.system.verbs if verb != "hold"]
    if len(verbs) == len(found.system.verbs):
        raise FQError(f"level {level} has no verb `hold` to go without; its verbs are {', '.join(verbs)}")
    return HoldlessLevel.model_construct(**dict(found) | {"system": found.system.model_copy(update={"verbs": verbs})})


# Levels that were changed for a comparison, by words such as `plain-11`: same world, same named instances.
ARMS = {"plain": plain_level, "explicit": explicit_level, "no-history": blind_level, "no-hold": level_without_hold}
ARM = re.compile(rf"({'|'.join(ARMS)})-(\d{{1,2}})")


MOST_KNOWN = 64
_FILES = ("given", "file")  # keys of the section `workflow` that can name a file
_known: dict[Path, tuple[dict[Path, bytes], Level]] = {}  # what was read, with the digests of the files that it came from


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes()).digest() if path.is_file() else b""
    except OSError:
        return b""


def _of_file(path: Path) -> Level:
    """The level in a file: the same object as long as the file and those that it names are what they were."""
    files, level = _known.pop(path, ({}, None))
    if level is None or any(_digest(file) != digest for file, digest in files.items()):
        files = {path: _digest(path)}
        level = _read(path, files)
        level._stem = path.stem
    _known[path] = files, level
    while len(_known) > MOST_KNOWN:
        del _known[next(iter(_known))]
    return level


def _read(path: Path, files: dict[Path, bytes]) -> Level:
    """Reads a level, and adds the files that it names to `files`."""
    try:
        if path.suffix == ".json":
            return recorded_level(path)
        data = load_yaml(path, "level file")
        section = data.get("workflow")
        named = [data.get("system"), data.get("policies"), *map((section if isinstance(section, dict) else {}).get, _FILES)]
        if isinstance(section, dict) and "file" in section:
            data.setdefault("system", {})  # the recording gives it; `policies` go beside what the level itself says of it
        join_system(data, path, "level file")
        if isinstance(name := data.get("workflow"), str):
            right = f"{{{'file' if name.endswith('.json') else 'given'}: {shown(name)}}}"
            raise PitError(
                f"level file {path}: workflow = {shown(name)}: a section is needed; for the tasks of a file, {right}"
            )
        if isinstance(data.get("workflow"), dict) and isinstance(data["workflow"].get("given"), str):
            data["workflow"] = _conducted(data["workflow"], path)
        if isinstance(data.get("workflow"), dict) and "file" in data["workflow"]:
            data = wfformat.around(data, path)
        level = parse(Level, {"name": path.stem, **data}, f"level file {path}")
        files |= {file: _digest(file) for file in (path.parent / name for name in named if isinstance(name, str))}
        return level
    except PitError as error:
        raise FQError(str(error)) from None


def _conducted(workflow: dict[str, Any], path: Path) -> dict[str, Any]:
    """A level's section `workflow` whose `given` names a workflow file of the conductor: its tasks, without what only real
    calls need. Raises `PitError`."""
    workflow = dict(workflow)
    load_part(workflow, "given", path, "level file")
    tasks = workflow["given"].get("tasks")
    if isinstance(tasks, list):
        tasks = [{k: v for k, v in task.items() if k != "args"} if isinstance(task, dict) else task for task in tasks]
    return {**workflow, "given": {"tasks": tasks}}


def recorded_level(path: str | Path, durations: str = "known", workers: int = wfformat.WORKERS) -> Level:
    """A recorded workflow (WfFormat JSON) as a level; see `fq_env.importers.wfformat`. Raises `FQError`."""
    try:
        return parse(Level, wfformat.as_level(path, durations, workers), f"workflow file {path}")
    except PitError as error:
        raise FQError(str(error)) from None


def load_level(level: int | str | Path | Level) -> Level:
    """A level by number, by path of a YAML file or of a recorded workflow (WfFormat JSON), changed for a comparison
    (`explicit-11` and the like, see `ARMS`), or itself. Raises `FQError`."""
    if isinstance(level, Level):
        return level
    arm = ARM.fullmatch(str(level))
    if arm:
        return ARMS[arm[1]](int(arm[2]))
    if isinstance(level, str) and re.fullmatch(r"\d{1,2}", level):
        level = int(level)
    if isinstance(level, int) and not isinstance(level, bool):
        if level not in LEVELS:
            raise FQError(f"level {level} does not exist; there are {', '.join(map(str, LEVELS))}, or name a YAML file")
        return _of_file(LEVELS[level])
    path = Path(str(level))
    if path.suffix not in (".yaml", ".yml", ".json"):
        known = ", ".join(map(str, LEVELS))
        raise FQError(f"level {str(level)!r} is neither a number ({known}) nor a YAML file nor a WfFormat file (.json)")
    return _of_file(path)
