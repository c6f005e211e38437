"""Workflows of a level as data: families that are drawn anew, blueprints of pipelines, or one graph that is given.

Checked here and turned into the tables that the generator reads. It must know no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fq_env.sizes import MAX_BLUEPRINTS, MAX_WEIGHTS
from pit.layout import MAX_PRIORITY, MAX_TASKS, MAX_WORKFLOWS
from pit.spec import Name, Strict, SystemSpec, TaskSpec, Weight, WorkflowSpec, order_tasks


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"a list of two numbers is needed, [low, high]; for one value write it twice{_twice(value)}")
    return value


def _weights(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("a weight for each shape is needed, {shape: weight}, such as {layered: 1}")
    return value


def _twice(value: Any) -> str:
    return f", [{value}, {value}]" if isinstance(value, int | float) else ""


def _ordered(pair: Any) -> Any:
    if pair[0] > pair[1]:
        raise ValueError(f"low {pair[0]} is above high {pair[1]}; write the smaller one first")
    return pair


Finite = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Cv = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]
Observed = Annotated[int, Field(ge=0, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Range = Annotated[tuple[Finite, Finite], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high")]
Cvs = Annotated[tuple[Cv, Cv], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high")]
Factors = Annotated[
    tuple[Factor, Factor], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high, none of them 0")
]
Whole = Annotated[
    tuple[Count, Count], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high, both included")
]
Part = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=10**12)]
Bytes = Annotated[tuple[Byte, Byte], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high")]
Share = Annotated[tuple[Part, Part], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high, of 1")]
Size = Annotated[int, Field(ge=1, le=MAX_TASKS)]
Gap = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
Gaps = Annotated[tuple[Gap, Gap], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high")]
Flows = Annotated[int, Field(ge=1, le=MAX_WORKFLOWS)]
Sizes = Annotated[
    tuple[Size, Size], BeforeValidator(_pair), AfterValidator(_ordered), Field(description="low, high, both included")
]
FAMILIES = ("layered", "pipelines", "fork_join", "chain", "map_reduce", "out_tree", "in_tree", "series_parallel")
MOST_GROWN = 4096  # tasks of a series_parallel workflow, whose drawing takes tasks x edges
LINKS = ("one", "all", "window")


class Stage(Strict):
    """Tasks of one function: how many, and after which stages.

    `count`: a number, or `items`: as many as the instance has items. `after`: stage -> `one` (item by item; groups where the
    sizes differ), `all`, or `window` (each after `window` neighbours). `function`: None draws one.
    """

    count: Size | Literal["items"] = 1
    after: dict[Name, Literal["one", "all", "window"]] = Field(default_factory=dict)
    window: int = Field(default=2, ge=1, le=MAX_TASKS)
    function: str | None = None

    def size(self, items: int) -> int:
        return items if isinstance(self.count, str) else self.count


class Blueprint(Strict):
    """The shape of a pipeline: its stages by name, each after earlier ones."""

    stages: dict[Name, Stage] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _links(self) -> Blueprint:
        names = list(self.stages)
        for k, (name, stage) in enumerate(self.stages.items()):
            for other in stage.after:
                if other not in names[:k]:
                    raise ValueError(f"stages.{name}.after names {other!r}; only a stage above it can be named")
        return self

    def tasks(self, items: int) -> int:
        return sum(stage.size(items) for stage in self.stages.values())

    def edges(self, items: int) -> int:
        """At most so many edges."""
        total = 0
        for stage in self.stages.values():
            for other, link in stage.after.items():
                here, before = stage.size(items), self.stages[other].size(items)
                total += {"one": max(here, before), "all": here * before, "window": here * min(stage.window, before)}[link]
        return total

    def items(self, tasks: tuple[int, int]) -> tuple[int, int]:
        """The fewest and the most items with which the number of tasks lies in the range. Raises ValueError if none do."""
        each = self.tasks(2) - self.tasks(1)
        low, high = 1, 1
        if each > 0:
            low, high = max(1, 1 - (self.tasks(1) - tasks[0]) // each), 1 + (tasks[1] - self.tasks(1)) // each
        if low > high or not tasks[0] <= self.tasks(low) <= tasks[1]:
            raise ValueError(f"has {self.tasks(1)} tasks with one item and {each} more with each further one: none fits")
        return low, high


def _blueprint(**stages: Mapping[str, Any]) -> Blueprint:
    return Blueprint.model_validate({"stages": stages})


# Shapes that levels may name. After published workflows: montage (mosaics of the sky) and epigenomics (Juve et al., Future
# Generation Computer Systems 29, 2013); and pipelines as AI applications have them. Functions are drawn.
READY = {
    "montage": _blueprint(
        project={"count": "items"},
        difference={"count": "items", "after": {"project": "window"}},
        fit={"after": {"difference": "all"}},
        background={"count": "items", "after": {"fit": "all", "project": "one"}},
        table={"after": {"background": "all"}},
        add={"after": {"table": "all", "background": "all"}},
        picture={"after": {"add": "all"}},
    ),
    "epigenomics": _blueprint(
        split={},
        filter={"count": "items", "after": {"split": "all"}},
        convert={"count": "items", "after": {"filter": "one"}},
        pack={"count": "items", "after": {"convert": "one"}},
        map={"count": "items", "after": {"pack": "one"}},
        merge={"after": {"map": "all"}},
        index={"after": {"merge": "all"}},
        pileup={"after": {"index": "all"}},
    ),
    "rag": _blueprint(
        rewrite={},
        retrieve={"count": "items", "after": {"rewrite": "all"}},
        rerank={"after": {"retrieve": "all"}},
        answer={"after": {"rerank": "all", "rewrite": "all"}},
        check={"after": {"answer": "all", "rerank": "all"}},
    ),
    "agent_code": _blueprint(
        plan={},
        search={"count": 3, "after": {"plan": "all"}},
        write={"count": "items", "after": {"search": "all"}},
        test={"count": "items", "after": {"write": "one"}},
        review={"count": "items", "after": {"write": "one"}},
        repair={"count": "items", "after": {"test": "one", "review": "one"}},
        merge={"after": {"repair": "all"}},
        release={"after": {"merge": "all", "plan": "all"}},
    ),
    "documents": _blueprint(
        scan={"count": "items"},
        read={"count": "items", "after": {"scan": "one"}},
        extract={"count": "items", "after": {"read": "one"}},
        classify={"count": "items", "after": {"read": "one"}},
        embed={"count": "items", "after": {"extract": "one", "classify": "one"}},
        index={"after": {"embed": "all"}},
        summarise={"after": {"index": "all", "classify": "all"}},
    ),
}


class Given(Strict):
    """One fixed workflow, written as for the conductor: every instance has these tasks and edges.

    `durations: known`: a task's `seconds` are its true mean and its hint (less `draw.hint_cv`). `estimated`: they are its true
    mean, of which the Pit is told nothing: it has the function's own figure and what it observes.
    """

    tasks: list[TaskSpec] = Field(min_length=1, max_length=MAX_TASKS)
    durations: Literal["known", "estimated"] = "known"

    def ordered(self, system: SystemSpec) -> list[TaskSpec]:
        """The tasks in topological order. Raises `PitError`."""
        return order_tasks(WorkflowSpec(system=system, tasks=self.tasks)).tasks


class Stream(Strict):
    """Several workflows on one system, each drawn as the rest of `workflow` says.

    `load`: the least work of a workflow over what all places can do in the mean gap until the next one arrives. `gap_cv`: of
    the gaps. `weights`: of flow times, one is drawn for each workflow.
    """

    workflows: Annotated[tuple[Flows, Flows], BeforeValidator(_pair), AfterValidator(_ordered)]
    load: Factors
    gap_cv: Gaps = (1.0, 1.0)
    weights: list[Weight] = Field(default=[1.0], min_length=1, max_length=MAX_WEIGHTS)


class Workflow(Strict):
    """Either one `given` workflow, or what is drawn: weights of `shapes` (families and blueprints), size, width, how often
    neighbours share their function, and which share of the tasks is optional, joins `any` or repeats an earlier one.
    """

    given: Given | None = None
    shapes: Annotated[dict[str, Finite], BeforeValidator(_weights)] = Field(default_factory=dict)
    blueprints: dict[Name, Blueprint] = Field(default_factory=dict)  # the level's own, beside those of READY
    tasks: Sizes = (1, 1)
    width: Sizes = (1, 1)
    siblings: Share = (0.0, 0.0)
    optional: Share = (0.0, 0.0)  # of the tasks that have successors
    any_join: Share = (0.0, 0.0)  # of the tasks with two inputs or more
    priorities: tuple[int, int] = (0, 0)
    echoes: Share = (0.0, 0.0)  # of the tasks: twins of earlier ones
    stream: Stream | None = None  # several workflows, one after the other

    @model_validator(mode="after")
    def _consistent(self) -> Workflow:
        if self.given is not None:
            if more := sorted(self.model_fields_set - {"given"}):
                raise ValueError(f"a given workflow is not drawn; remove {more[0]!r} (or `given`)")
            return self
        if missing := [key for key in ("shapes", "tasks", "width", "siblings") if key not in self.model_fields_set]:
            raise ValueError(f"the key {missing[0]!r} is missing; write shapes, tasks, width and siblings, or `given`")
        known = {**READY, **self.blueprints}
        for name in self.shapes:
            if name not in FAMILIES and name not in known:
                raise ValueError(f"shapes names {name!r}; choose from {', '.join((*FAMILIES, *known))}, or define a blueprint")
        if doubled := set(self.blueprints) & {*FAMILIES, *READY}:
            raise ValueError(f"blueprints.{sorted(doubled)[0]} is the name of a shape that exists already; take another")
        if sum(self.shapes.values()) <= 0:
            raise ValueError("shapes: no weight is positive; give one shape a weight of 1")
        if len(self.drawn()) > MAX_BLUEPRINTS:
            raise ValueError(f"shapes names {len(self.drawn())} blueprints; at most {MAX_BLUEPRINTS} can be drawn from")
        if self.shapes.get("series_parallel", 0) > 0 and self.tasks[1] > MOST_GROWN:
            raise ValueError(f"tasks: a series_parallel workflow has at most {MOST_GROWN} tasks, not {self.tasks[1]}")
        if self.max_tasks > MAX_TASKS:
            raise ValueError(f"tasks and stream.workflows give up to {self.max_tasks} tasks; at most {MAX_TASKS} fit")
        if not 0 <= self.priorities[0] <= self.priorities[1] <= MAX_PRIORITY:
            raise ValueError(f"priorities must be a range within 0..{MAX_PRIORITY}, not {self.priorities}")
        for name, blueprint in self.drawn().items():
            try:
                blueprint.items(self.tasks)
            except ValueError as error:
                raise ValueError(f"tasks {list(self.tasks)} and blueprint {name!r}, which {error}; widen the range") from None
        return self

    def drawn(self) -> dict[str, Blueprint]:
        """The blueprints among the shapes, in their order."""
        known = {**READY, **self.blueprints}
        return {name: known[name] for name in self.shapes if name not in FAMILIES}

    def functions(self) -> set[str]:
        """The functions that are named, all of which the system must have."""
        stages = [stage for blueprint in self.drawn().values() for stage in blueprint.stages.values()]
        return {stage.function for stage in stages if stage.function is not None}

    @property
    def max_tasks(self) -> int:
        """The most tasks that an instance can have."""
        return self.tasks[1] * self.max_workflows if self.given is None else len(self.given.tasks)

    @property
    def max_workflows(self) -> int:
        """The most workflows that an instance can have: 1, but for a stream."""
        return 1 if self.stream is None else self.stream.workflows[1]

    @property
    def max_edges(self) -> int:
        """At most so many edges; exact for a given workflow."""
        if self.given is not None:
            return sum(len(task.inputs) for task in self.given.tasks)
        # Per task: two inputs and one more successor (layered), two (fork_join), eight with four reducers (map_reduce).
        per_task = 8 if "map_reduce" in self.shapes else 4
        most = max([per_task * self.tasks[1], *(b.edges(b.items(self.tasks)[1]) for b in self.drawn().values())])
        return most * self.max_workflows
