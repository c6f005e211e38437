"""What a person writes: systems (pools, models, functions with variants), workflows and what earlier runs measured.

One schema for levels, workflow files and bundles. A mistake is one sentence that names the file, the key, the value and
what would be right. Times are seconds here and microseconds behind this door; prices become micro-units.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pit.errors import PitError
from pit.files import load_part, load_yaml, parse, shown
from pit.layout import (
    DEFAULT_VERBS,
    ENABLED,
    MAX_FUNCTIONS,
    MAX_MODELS,
    MAX_PLACES,
    MAX_POOLS,
    MAX_PRIORITY,
    MAX_TASKS,
    VERBS,
)

VARIANTS = VERBS[:3]
PARTS = ("memory", "pools", "models", "functions", "store")  # of a system; its other keys are its policies

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.\- ]*[A-Za-z0-9_.\-])?$")]
Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-5, le=1e8, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]


class Strict(BaseModel):
    """A section of a file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolSpec(Strict):
    """Places on one kind of host, the memory budget that its models share, and its token bucket: `rate` tokens per second
    up to `burst` of them."""

    places: int = Field(ge=1, le=MAX_PLACES)
    memory: str | None = None
    rate: float | None = Field(default=None, ge=1e-6, le=1e5, allow_inf_nan=False)
    burst: int = Field(default=1, ge=1, le=10_000)


class ModelSpec(Strict):
    """What must be loaded before a function is served: memory units, seconds, calls at once per copy, price per second; an
    unused copy leaves memory after `keep_alive_seconds`."""

    size: int = Field(ge=0, le=1_000_000)
    load_seconds: Seconds
    serves: int = Field(default=1, ge=1, le=MAX_PLACES)
    price: Price = 0.0
    keep_alive_seconds: Positive | None = None


class VariantSpec(Strict):
    """One way to run a function: where, with which model, how long, how well, at what price per second.

    A gang takes places of a second pool, too: `also: {pool: units}`.
    """

    pool: str
    model: str | None = None
    seconds: Positive
    quality: Share = 1.0
    price: Price = 0.0
    units: int = Field(default=1, ge=1, le=MAX_PLACES)
    tokens: int = Field(default=1, ge=0, le=10_000)
    also: dict[str, Annotated[int, Field(ge=1, le=MAX_PLACES)]] = Field(default_factory=dict, max_length=1)


class FunctionSpec(Strict):
    """A kind of call; `standard` always exists. `code` tells functions apart in levels of hidden order only; an output that is
    older than `fresh_seconds` is stale."""

    code: float = Field(default=0.0, ge=-1, le=1)
    fresh_seconds: Positive | None = None
    lite: VariantSpec | None = None
    standard: VariantSpec
    premium: VariantSpec | None = None

    def variants(self) -> list[tuple[str, VariantSpec]]:
        """(name, variant) of those that exist."""
        return [(name, v) for name in VARIANTS if (v := getattr(self, name)) is not None]


class FetchSpec(Strict):
    """Seconds until an artifact is at hand that lies in a lower tier."""

    warm: Seconds = 0.0
    cold: Seconds = 0.0


class StoreSpec(Strict):
    """Where outputs lie: bytes of the hot, the warm and the cold tier (none: unlimited). What is worth least goes down; where
    the cold tier is full, what no unfinished task reads is deleted."""

    hot: Bytes
    warm: Bytes | None = None
    cold: Bytes | None = None
    fetch_seconds: FetchSpec = FetchSpec()


class SystemSpec(Strict):
    """Functions, models, pools and policies of one system."""

    memory: dict[Name, Annotated[int, Field(ge=1, le=1_000_000_000)]] = Field(default_factory=dict, max_length=MAX_POOLS)
    pools: dict[Name, PoolSpec] = Field(min_length=1, max_length=MAX_POOLS)
    models: dict[Name, ModelSpec] = Field(default_factory=dict, max_length=MAX_MODELS)
    functions: dict[Name, FunctionSpec] = Field(min_length=1, max_length=MAX_FUNCTIONS)
    verbs: list[str] = Field(default_factory=lambda: list(DEFAULT_VERBS))
    order_hidden: bool = False
    quality_flow: Share = 0.0
    max_attempts: int = Field(default=0, ge=0, le=10_000)
    warning_weight: Share = 0.05
    stale_quality: Share = Field(default=1.0, description="what the quality of a stale input still counts")
    deadline_seconds: Positive | None = None
    horizon_seconds: Positive | None = None
    money: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    back_off_seconds: Seconds = 0.0
    back_off_most_seconds: Positive | None = Field(default=None, description="of one back-off, however often calls failed")
    back_off_jitter: Share | None = Field(default=None, description="share of a back-off that a run may leave out")
    time_out: float | None = Field(default=None, ge=1, le=1e6, allow_inf_nan=False, description="multiple of the estimate")
    ageing_seconds: Seconds = 0.0
    reserve_seconds: Seconds = 0.0
    fair: bool = False
    fallback: bool = False
    prewarm: bool = False
    rebalance: bool = False
    heal: bool = False
    store: StoreSpec | None = None
    deny: list[str] = Field(default_factory=list, description="functions, or FUNCTION.VARIANT, that this tenant may not use")

    @field_validator("verbs")
    @classmethod
    def _verbs(cls, verbs: list[str]) -> list[str]:
        for verb in verbs:
            if verb not in ENABLED:
                raise ValueError(f"verb {verb!r} is not available; choose from {', '.join(ENABLED)}")
        if "standard" not in verbs:
            raise ValueError("the verb 'standard' must be enabled")
        return verbs

    @model_validator(mode="after")
    def _references(self) -> SystemSpec:
        for name, pool in self.pools.items():
            if pool.memory is not None:
                _known(pool.memory, self.memory, f"pools.{name}.memory", "memory budget")
        served: dict[str, str] = {}
        for function, f in self.functions.items():
            for name, v in f.variants():
                where = f"functions.{function}.{name}"
                _known(v.pool, self.pools, f"{where}.pool", "pool")
                if v.units > self.pools[v.pool].places:
                    raise ValueError(
                        f"{where}.units is {v.units}, but pool {v.pool!r} has only {self.pools[v.pool].places} places"
                    )
                for also, units in v.also.items():
                    _known(also, self.pools, f"{where}.also", "pool")
                    if also == v.pool or units > self.pools[also].places:
                        raise ValueError(
                            f"{where}.also takes {units} places of pool {also!r}, which must be another pool than {v.pool!r} "
                            f"and has {self.pools[also].places} places"
                        )
                if self.pools[v.pool].rate is not None and v.tokens > self.pools[v.pool].burst:
                    raise ValueError(
                        f"{where}.tokens is {v.tokens}, but pool {v.pool!r} holds at most {self.pools[v.pool].burst} (burst)"
                    )
                if v.model is not None:
                    _known(v.model, self.models, f"{where}.model", "model")
                    if served.setdefault(v.model, v.pool) != v.pool:
                        raise ValueError(
                            f"{where}.pool is {v.pool!r}, but model {v.model!r} is served in pool {served[v.model]!r}; "
                            f"a model lives in one pool: define a second model for the other"
                        )
                    budget = self.pools[v.pool].memory
                    if budget is not None and self.models[v.model].size > self.memory[budget]:
                        raise ValueError(
                            f"{where}.model {v.model!r} has size {self.models[v.model].size}, "
                            f"but memory {budget!r} holds only {self.memory[budget]}"
                        )
        for name in self.deny:
            self._check_denied(name)
        for function in self.functions:
            if not self.usable(function):
                raise ValueError(f"functions.{function} has no variant that `verbs` enables and `deny` leaves; allow one")
        return self

    def _check_denied(self, name: str) -> None:
        function, dot, variant = name.rpartition(".")
        whole = name in self.functions
        if whole and not self.order_hidden:
            raise ValueError(f"deny names the function {name!r}; only with order_hidden may a whole function be forbidden")
        if not whole:
            _known(function if dot else name, self.functions, "deny", "function")
            _known(variant, [v for v, _ in self.functions[function].variants()], f"deny: {name}", "variant")

    def usable(self, function: str) -> list[str]:
        """The variants of a function that may be used: they exist, their verb is enabled, they are not denied."""
        return [v for v, _ in self.functions[function].variants() if v in self.verbs and f"{function}.{v}" not in self.deny]


class TaskSpec(Strict):
    """One node of a workflow: a function to be called once what stands in `after` is done (`join: any`: one of it).

    What stands in `soft` is waited for, too, but may be given up: the output is the poorer for it. Tasks of the same `content`
    (a number from 1 on) call the same function for the same result: one's output serves the others.
    """

    id: Name
    function: str
    after: list[str] = Field(default_factory=list, max_length=10_000)
    soft: list[str] = Field(default_factory=list, max_length=10_000)
    join: Literal["all", "any"] = "all"
    priority: int = Field(default=0, ge=0, le=MAX_PRIORITY)
    seconds: Positive | None = None
    optional: bool = False
    content: int = Field(default=0, ge=0, le=MAX_TASKS)
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _edges(self) -> TaskSpec:
        if self.join == "any" and (self.soft or not self.after):
            raise ValueError("join 'any' needs inputs in `after`, and none in `soft`")
        if double := set(self.after) & set(self.soft):
            raise ValueError(f"{sorted(double)[0]!r} stands in `after` and in `soft`; leave it in one")
        return self

    @property
    def inputs(self) -> list[str]:
        """Hard inputs, then soft ones, each once."""
        return list(dict.fromkeys([*self.after, *self.soft]))


class WorkflowSpec(Strict):
    """Tasks over a system; `instruments` binds functions to real calls and belongs to the conductor.

    `weight`: what an hour of this workflow's flow time counts beside other workflows of a stream.
    """

    name: Name = "workflow"
    weight: Weight = 1.0
    system: SystemSpec
    tasks: list[TaskSpec] = Field(min_length=1, max_length=MAX_TASKS)
    instruments: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """What earlier runs measured, observed over hinted: per function and variant (count, sum, sum of squares), per model
    (count, sum)."""

    durations: dict[tuple[str, str], tuple[float, float, float]]
    loads: dict[str, tuple[float, float]]


def _known(name: str, names: Collection[str], where: str, what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name[:100], names, 1) if len(names) < 1000 else []
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names)[:12]) or 'none'}"
        raise ValueError(f"{where} names the {what} {shown(name)}, which is not defined; {hint}")


def join_system(data: dict[str, Any], path: str | Path, what: str) -> None:
    """Puts together, in `data`, what a file says of its system: `system` and `policies` may each be the name of another file,
    and `policies` is what stands in a system besides its parts. Raises `PitError` that names the file with the mistake."""
    file = load_part(data, "system", path, what)
    policies = load_part(data, "policies", path, what) or path
    more, system = data.pop("policies", None), data.get("system")
    if more is not None:
        if not isinstance(more, dict) or not isinstance(system, dict):
            raise PitError(f"{what} {path}: policies and system must each hold keys with values, or name a file that does")
        for key in more:
            if key in PARTS:
                raise PitError(f"{what} {policies}: policies.{key} belongs to `system`; policies are all its other keys")
            if key in system:
                raise PitError(f"{what} {policies}: policies.{key} stands in `system`, too ({file or path}); keep one")
        data["system"] = {**system, **more}
    if file is not None:
        parse(SystemSpec, data["system"], f"system file {file}" + (f" with {policies}" if more is not None else ""))


def read_workflow(path: str | Path) -> WorkflowSpec:
    """A workflow file with the files that it names (`system`, `policies`, `instruments`), checked and in topological order.
    Raises `PitError`."""
    data = load_yaml(path, "workflow file")
    join_system(data, path, "workflow file")
    load_part(data, "instruments", path, "workflow file")
    workflow = parse(WorkflowSpec, data, f"workflow file {path}")
    try:
        return order_tasks(workflow)
    except PitError as error:
        raise PitError(f"workflow file {path}: {error}") from None


def order_tasks(workflow: WorkflowSpec) -> WorkflowSpec:
    """The same workflow with its tasks in topological order (stable). Raises `PitError` on a cycle or an unknown name."""
    index: dict[str, int] = {}
    if all(t.optional for t in workflow.tasks):
        raise PitError("tasks: all are optional; at least one must be required")
    for i, t in enumerate(workflow.tasks):
        if t.id in index:
            raise PitError(f"tasks.{i}.id {t.id!r} stands twice; give every task its own id")
        index[t.id] = i
    contents: dict[int, str] = {}
    try:
        for i, t in enumerate(workflow.tasks):
            _known(t.function, workflow.system.functions, f"tasks.{i}.function", "function")
            if t.content and contents.setdefault(t.content, t.function) != t.function:
                raise ValueError(
                    f"tasks.{i}.content is {t.content}, which stands for a result of {contents[t.content]!r}; "
                    f"give {t.function!r} a number of its own"
                )
            for where, names in (("after", t.after), ("soft", t.soft)):
                for name in names:
                    _known(name, index, f"tasks.{i}.{where}", "task")
    except ValueError as error:
        raise PitError(str(error)) from None
    open_inputs = [len(t.inputs) for t in workflow.tasks]
    followers: list[list[int]] = [[] for _ in workflow.tasks]
    for i, t in enumerate(workflow.tasks):
        for name in t.inputs:
            followers[index[name]].append(i)
    order, todo = [], [i for i, n in enumerate(open_inputs) if n == 0]
    while todo:
        i = todo.pop(0)
        order.append(i)
        for j in followers[i]:
            open_inputs[j] -= 1
            if open_inputs[j] == 0:
                todo.append(j)
    if len(order) < len(workflow.tasks):
        stuck = [t.id for i, t in enumerate(workflow.tasks) if open_inputs[i] > 0]
        raise PitError(f"the tasks {', '.join(stuck[:6])} wait for each other in a cycle; remove one `after` among them")
    if order == list(range(len(order))):
        return workflow
    return workflow.model_copy(update={"tasks": [workflow.tasks[i] for i in order]})
