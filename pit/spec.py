"""What a person writes: systems (pools, models, functions with variants) and workflows, and their parameter arrays.

One schema for levels, workflow files and bundles. A mistake is one sentence that names the file, the key, the value and
what would be right. Times are seconds here and microseconds behind this door; prices become micro-units.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pit import state
from pit.errors import PitError
from pit.layout import (
    IMPLEMENTED_VERBS,
    MAX_FUNCTIONS,
    MAX_MODELS,
    MAX_PLACES,
    MAX_POOLS,
    MAX_TASKS,
    NEVER,
    VERBS,
)

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 20, 32, 200_000
MICRO = 1_000_000
VARIANTS = VERBS[:3]

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\- ]*$")]
Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-5, le=1e8, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Strict(BaseModel):
    """A section of a file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolSpec(Strict):
    """Places on one kind of host, and the memory budget that its models share."""

    places: int = Field(ge=1, le=MAX_PLACES)
    memory: str | None = None


class ModelSpec(Strict):
    """What must be loaded before a function is served: memory units, seconds, calls at once per copy, price per second."""

    size: int = Field(ge=0, le=1_000_000)
    load_seconds: Seconds
    serves: int = Field(default=1, ge=1, le=MAX_PLACES)
    price: Price = 0.0


class VariantSpec(Strict):
    """One way to run a function: where, with which model, how long, how well, at what price per second."""

    pool: str
    model: str | None = None
    seconds: Positive
    quality: Share = 1.0
    price: Price = 0.0
    units: int = Field(default=1, ge=1, le=MAX_PLACES)


class FunctionSpec(Strict):
    """A kind of call; `standard` always exists. `code` tells functions apart in levels of hidden order only."""

    code: float = Field(default=0.0, ge=-1, le=1)
    lite: VariantSpec | None = None
    standard: VariantSpec
    premium: VariantSpec | None = None

    def variants(self) -> list[tuple[str, VariantSpec]]:
        """(name, variant) of those that exist."""
        return [(name, v) for name in VARIANTS if (v := getattr(self, name)) is not None]


class SystemSpec(Strict):
    """Functions, models, pools and policies of one system."""

    memory: dict[Name, Annotated[int, Field(ge=1, le=1_000_000_000)]] = Field(default_factory=dict, max_length=MAX_POOLS)
    pools: dict[Name, PoolSpec] = Field(min_length=1, max_length=MAX_POOLS)
    models: dict[Name, ModelSpec] = Field(default_factory=dict, max_length=MAX_MODELS)
    functions: dict[Name, FunctionSpec] = Field(min_length=1, max_length=MAX_FUNCTIONS)
    verbs: list[str] = Field(default_factory=lambda: list(IMPLEMENTED_VERBS))
    order_hidden: bool = False
    quality_flow: Share = 0.0
    max_attempts: int = Field(default=0, ge=0, le=10_000)
    warning_weight: Share = 0.05
    deadline_seconds: Positive | None = None
    horizon_seconds: Positive | None = None

    @field_validator("verbs")
    @classmethod
    def _verbs(cls, verbs: list[str]) -> list[str]:
        for verb in verbs:
            if verb not in IMPLEMENTED_VERBS:
                raise ValueError(f"verb {verb!r} is not available; choose from {', '.join(IMPLEMENTED_VERBS)}")
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
        return self


class TaskSpec(Strict):
    """One node of a workflow: a function to be called once what stands in `after` is done."""

    id: Name
    function: str
    after: list[str] = Field(default_factory=list, max_length=10_000)
    seconds: Positive | None = None
    optional: bool = False
    args: dict[str, Any] = Field(default_factory=dict)


class WorkflowSpec(Strict):
    """Tasks over a system; `instruments` binds functions to real calls and belongs to the conductor."""

    name: Name = "workflow"
    system: SystemSpec
    tasks: list[TaskSpec] = Field(min_length=1, max_length=MAX_TASKS)
    instruments: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """What earlier runs measured, observed over hinted: per function and variant (count, sum, sum of squares), per model
    (count, sum)."""

    durations: dict[tuple[str, str], tuple[float, float, float]]
    loads: dict[str, tuple[float, float]]


def _known(name: str, table: Iterable[str], where: str, what: str) -> None:
    names = list(table)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names)[:12]) or 'none'}"
        raise ValueError(f"{where} names the {what} {name!r}, which is not defined; {hint}")


# --------------------------------------------------------------------------- files
class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, duplicate keys, deep nesting and very large documents."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = super().peek_event()  # type: ignore[no-untyped-call]
            raise PitError(f"an alias (*name) in line {event.start_mark.line + 1}; write the value out")
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise PitError(f"it is nested deeper than {MAX_DEPTH} levels or has more than {MAX_NODES} values")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, Hashable) or name in seen:
                raise PitError(f"the key {name!r} stands twice or is no name, in line {key.start_mark.line + 1}; keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path, what: str = "file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises `PitError` (file, line, remedy) if it cannot be read or is not safe."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PitError(f"{what} {path} has more than {MAX_BYTES} bytes; split it")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PitError(f"{what} {path} cannot be read: {reason}") from None
    loader = _Loader(text)
    try:
        data = loader.get_single_data()
    except PitError as error:
        raise PitError(f"{what} {path} is refused: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise PitError(f"{what} {path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise PitError(f"{what} {path} must hold a mapping of names to values, not {type(data).__name__}")
    return data


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Any, source: str) -> M:
    """`data` as a `model`; raises `PitError` with source, key, value and remedy for the first mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors()
        # A misspelt key is missing too: the misspelling is what helps.
        first = next((e for e in mistakes if e["type"] == "extra_forbidden"), mistakes[0])
        where = ".".join(str(x) for x in first["loc"])
        if first["type"] == "extra_forbidden":
            names = _field_names(model, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise PitError(f"{source}: unknown key {where!r}; {hint}") from None
        if first["type"] == "missing":
            raise PitError(f"{source}: the key {where!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict | list) else f" = {first['input']!r}"
        raise PitError(f"{source}: {where}{value}: {message}" if where else f"{source}: {message}") from None


def _field_names(model: Any, path: tuple[Any, ...]) -> list[str]:
    """The field names of the section that a validation path leads to."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part) if isinstance(part, str) else None
        annotation = field.annotation if field is not None else model
        stack, model = [annotation], annotation
        while stack:  # the first pydantic model inside list[...], dict[...] or ... | None
            a = stack.pop(0)
            if isinstance(a, type) and issubclass(a, BaseModel):
                model = a
                break
            stack.extend(getattr(a, "__args__", ()))
    return list(getattr(model, "model_fields", {}))


def read_workflow(path: str | Path) -> WorkflowSpec:
    """A workflow file, checked and in topological order. Raises `PitError`."""
    workflow = parse(WorkflowSpec, load_yaml(path, "workflow file"), f"workflow file {path}")
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
    try:
        for i, t in enumerate(workflow.tasks):
            _known(t.function, workflow.system.functions, f"tasks.{i}.function", "function")
            for name in t.after:
                _known(name, index, f"tasks.{i}.after", "task")
    except ValueError as error:
        raise PitError(str(error)) from None
    open_inputs = [len(set(t.after)) for t in workflow.tasks]
    followers: list[list[int]] = [[] for _ in workflow.tasks]
    for i, t in enumerate(workflow.tasks):
        for name in dict.fromkeys(t.after):
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


# --------------------------------------------------------------------------- parameter arrays
def microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * MICRO)


class Built(NamedTuple):
    """A Pit's memory, ready for the event `arrive`, and the names behind its indices."""

    memory: np.ndarray
    offsets: dict[str, int]
    counts: dict[str, int]
    workflow: WorkflowSpec
    task_ids: list[str]
    function_names: list[str]
    pool_names: list[str]
    model_names: list[str]


def copy_rows(system: SystemSpec) -> int:
    """Rows of the copy table: what the places and memory budgets can hold at once, and as many in cooldown."""
    places = sum(p.places for p in system.pools.values())
    smallest = min((m.size for m in system.models.values()), default=0)
    free = any(p.memory is None for p in system.pools.values()) or smallest == 0
    live = len(system.models) * places if free else sum(system.memory.values()) // smallest
    return 0 if not system.models else 2 * min(max(live, 1), 4096)


def fill_system(hot: np.ndarray, variants: np.ndarray, models: np.ndarray, copies: np.ndarray, system: SystemSpec) -> None:
    """Writes a system into a Pit's tables: hot (1,) PIT, variants (3 F,), models (M,), copies (C,)."""
    pools, names, budgets = list(system.pools), list(system.models), list(system.memory)
    for p, pool in enumerate(system.pools.values()):
        hot["pools"]["places"][0, p] = pool.places
        hot["pools"]["budget"][0, p] = budgets.index(pool.memory) if pool.memory is not None else -1
    for b, capacity in enumerate(system.memory.values()):
        hot["budgets"]["capacity"][0, b] = capacity
    variants["model"] = variants["pool"] = -1
    for f, function in enumerate(system.functions.values()):
        for name, v in function.variants():
            row = variants[3 * f + VARIANTS.index(name)]
            row["nominal"], row["quality"], row["price"] = microseconds(v.seconds), v.quality, round(v.price * MICRO)
            row["pool"], row["units"], row["code"] = pools.index(v.pool), v.units, function.code
            row["model"] = -1 if v.model is None else names.index(v.model)
            row["usable"] = name in system.verbs
        own = variants[3 * f : 3 * f + 3]
        own["kinds"] = sum(1 << k for k in range(3) if own["usable"][k])
    for m, model in enumerate(system.models.values()):
        row = models[m]
        row["size"], row["serves"], row["price"] = model.size, model.serves, round(model.price * MICRO)
        row["nominal"] = row["load_est"] = microseconds(model.load_seconds)
    values = {
        "n_functions": len(system.functions),
        "n_models": len(names),
        "n_pools": len(pools),
        "n_budgets": len(budgets),
        "n_copies": len(copies),
        "n_idle": len(copies),
        "all_places": sum(p.places for p in system.pools.values()),
        "quality_flow": system.quality_flow,
        "max_attempts": system.max_attempts,
        "warning_weight": system.warning_weight,
        "order_hidden": system.order_hidden,
        "verbs": sum(1 << VERBS.index(v) for v in set(system.verbs)),
        "deadline": NEVER if system.deadline_seconds is None else microseconds(system.deadline_seconds),
        "horizon": NEVER if system.horizon_seconds is None else microseconds(system.horizon_seconds),
    }
    for key, value in values.items():
        hot[key] = value


def build_pit(workflow: WorkflowSpec, exposure: int, history: History | None = None) -> Built:
    """A Pit's memory for one workflow. Raises `PitError`."""
    workflow = order_tasks(workflow)
    system = workflow.system
    tasks, functions, models = workflow.tasks, list(system.functions), list(system.models)
    index = {t.id: i for i, t in enumerate(tasks)}
    inputs = [[index[a] for a in dict.fromkeys(t.after)] for t in tasks]
    edges = sum(map(len, inputs))
    places = sum(p.places for p in system.pools.values())
    offsets, size = state.tables(len(tasks), edges, len(functions), len(models), copy_rows(system), places)
    raw = np.zeros(size + 64, np.uint8)
    memory = raw[-raw.ctypes.data % 64 :][:size]  # aligned to a cache line

    def rows(name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        return memory[offsets[name] : offsets[name] + count * dtype.itemsize].view(dtype)

    hot = memory[: state.PIT.itemsize].view(state.PIT)
    for name, offset in offsets.items():
        hot[name] = offset
    hot["size"], hot["n_tasks"], hot["exposure"] = size, len(tasks), exposure
    variants = rows("variant_at", state.VARIANT, 3 * len(functions))
    model_rows = rows("model_at", state.MODEL, len(models))
    fill_system(hot, variants, model_rows, rows("copy_at", state.COPY, copy_rows(system)), system)
    rows("call_at", state.CALL, places)["id"] = -1
    table = rows("task_at", state.TASK, len(tasks))
    outputs: list[list[int]] = [[] for _ in tasks]
    for i, before in enumerate(inputs):
        for j in before:
            outputs[j].append(i)
    for lists, kind, dtype_name in ((inputs, "pred", "pred_at"), (outputs, "succ", "succ_at")):
        ends = np.cumsum([len(x) for x in lists])
        table[f"{kind}_to"], table[f"{kind}_from"] = ends, ends - [len(x) for x in lists]
        rows(dtype_name, state.INDEX, edges)["task"] = [j for x in lists for j in x]
    for i, t in enumerate(tasks):
        table["function"][i] = functions.index(t.function)
        table["hint"][i] = 0 if t.seconds is None else microseconds(t.seconds)
        table["required"][i] = not t.optional
    if history is not None:
        _fill_history(variants, model_rows, functions, models, history)
    counts = {
        "tasks": len(tasks),
        "functions": len(functions),
        "models": len(models),
        "copies": copy_rows(system),
        "places": places,
    }
    return Built(
        memory, offsets, counts, workflow, [t.id for t in tasks], functions, list(system.pools), models
    )  # fmt: skip


def _fill_history(variants: np.ndarray, models: np.ndarray, functions: list[str], names: list[str], history: History) -> None:
    for (function, name), (n, s, ss) in history.durations.items():
        row = variants[3 * functions.index(function) + VARIANTS.index(name)]
        row["n"], row["s"], row["ss"] = n, s, ss
    for name, (n, s) in history.loads.items():
        row = models[names.index(name)]
        row["n"], row["s"] = n, s
        row["load_est"] = row["nominal"] * ((2.0 + s) / (2.0 + n))
    if not all(math.isfinite(x) for x in [*variants["s"], *variants["ss"], *models["s"]]):
        raise PitError("the history holds a number that is not finite; measure again")
