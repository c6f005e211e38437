"""A workflow file as the conductor reads it: the Pit's workflow, and what makes functions and models real (`instruments:`)."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conductor.errors import ConductorError
from conductor.files import canonical
from conductor.instruments.base import COMMON
from conductor.instruments.command import check_placeholders
from conductor.instruments.sandbox import Limits
from pit.errors import PitError
from pit.files import shown
from pit.layout import N_VARIANTS, VERBS
from pit.spec import SystemSpec, WorkflowSpec, order_tasks, read_workflow

BACK_OFF_MOST, BACK_OFF_JITTER = 300.0, 0.5  # s of one back-off; share of it that a run may leave out
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False, strict=True)]  # of a time limit: 1e9 are 31 years


class FunctionPlan(BaseModel):
    """`{kind: python, call: "module:function", seconds: 30}`: keys that do not stand here are the instrument's.

    `variants: {lite: {...}}` replaces some of them for a variant. `configure: "module:function"` is called with `function` and
    `variant` when the Pit has found that their API has changed. `environment` and `secrets` name variables of the conductor's
    environment that calls of this function see; a secret has to be set, and its value is taken out of what a call gives.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str
    seconds: Seconds = 300.0  # time limit of one call, and of one configuration
    configure: str | None = None
    environment: list[str] = []
    secrets: list[str] = []
    variants: dict[Literal["lite", "standard", "premium"], dict[str, Any]] = {}

    def instrument(self, variant: str) -> dict[str, Any]:
        """What a worker needs to make it for a variant."""
        options = {**(self.model_extra or {}), **next((o for name, o in self.variants.items() if name == variant), {})}
        return {"kind": options.pop("kind", self.kind), "options": options}

    def request(self, variant: str) -> dict[str, Any]:
        """What a worker needs for a call besides its job. Raises KeyError for a secret that is not set."""
        seen = {name: os.environ[name] for name in self.environment if name in os.environ}
        secrets = {name: os.environ[name] for name in self.secrets}
        return {"instrument": self.instrument(variant), "environment": seen, "secrets": secrets}


class ModelPlan(BaseModel):
    """`{load: "module:function", args: {...}}`: what a worker process calls to load the model before it serves."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    load: str
    args: dict[str, Any] = {}
    seconds: Seconds = 300.0  # time limit of one load


class Plan(BaseModel):
    """The section `instruments:` of a workflow file.

    `environment` names variables that all workers see besides the usual ones, `limits` is what each of them may take (as
    `conductor.instruments.sandbox.Limits`, without `cpu`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    functions: dict[str, FunctionPlan] = {}
    models: dict[str, ModelPlan] = {}
    environment: list[str] = []
    limits: dict[str, Any] = {}


@dataclass(frozen=True)
class Workflow:
    """A checked workflow: tasks in topological order, a plan for every function and model that a task may use."""

    spec: WorkflowSpec
    plan: Plan
    limits: Limits  # of each worker
    base: Path  # the folder in which its modules are found
    where: str = field(default="workflow", compare=False)  # what errors call it: its file


def load_workflow(path: str | Path) -> Workflow:
    """Read and check a workflow file. Raises ConductorError with one sentence."""
    try:
        spec = read_workflow(path)
    except PitError as error:
        raise ConductorError(str(error)) from error
    return check_workflow(spec, Path(path).absolute().parent, str(path))


def check_workflow(spec: WorkflowSpec, base: Path, where: str) -> Workflow:
    """Order the tasks and check that everything they may use can be made real. Raises ConductorError with one sentence."""
    try:
        spec = order_tasks(spec)
    except PitError as error:
        text = str(error)
        raise ConductorError(text if text.startswith(where) else f"{where}: {text}") from error
    try:  # what runs is what the journal can hold
        spec = WorkflowSpec.model_validate_json(canonical(spec.model_dump(), sort=False))
    except (ValueError, TypeError) as error:
        raise ConductorError(f"{where}: holds a value that JSON cannot (in tasks.*.args or instruments): {error}") from error
    try:
        plan = Plan.model_validate(spec.instruments or {})
    except ValidationError as error:
        mistakes = error.errors()
        first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
        key = ".".join(str(part)[:100] for part in ("instruments", *first["loc"]))
        if first["type"] == "extra_forbidden":
            names = list((ModelPlan if len(first["loc"]) > 1 else Plan).model_fields)
            near = difflib.get_close_matches(str(first["loc"][-1])[:100], names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise ConductorError(f"{where}: unknown key {key!r}; {hint}") from error
        raise ConductorError(f"{where}: {key}: {first['msg']}, not {shown(first['input'])}") from error
    try:
        limits = Limits.read(plan.limits, Limits())
        if limits.cpu is not None:
            raise ValueError("limits.cpu would end every worker some day; give it to a function of kind command")
    except ValueError as error:
        raise ConductorError(f"{where}: instruments.{error}") from error
    system = spec.system
    for name in plan.functions:
        if name not in system.functions:
            raise ConductorError(f"{where}: instruments.functions.{name}: system.functions has no such function")
        for verb, options in plan.functions[name].variants.items():
            key = f"instruments.functions.{name}.variants.{verb}"
            if getattr(system.functions[name], verb) is None:
                raise ConductorError(f"{where}: {key}: system.functions.{name} has no variant {verb}")
            if not isinstance(options.get("kind", ""), str):
                raise ConductorError(f"{where}: {key}.kind: a kind's name is needed, not {shown(options['kind'])}")
            for common in COMMON:
                if common in options:
                    raise ConductorError(
                        f"{where}: {key}.{common}: {common} is the same for all variants; it stands beside `variants`"
                    )
        for secret in plan.functions[name].secrets:
            if secret not in os.environ:
                raise ConductorError(f"{where}: instruments.functions.{name}.secrets: {secret} is not set in the environment")
    for name in plan.models:
        if name not in system.models:
            raise ConductorError(f"{where}: instruments.models.{name}: system.models has no such model")
    for name in dict.fromkeys(task.function for task in spec.tasks):
        if name not in plan.functions:
            raise ConductorError(
                f'{where}: instruments.functions.{name} is missing; for example {{kind: python, call: "module:function"}}'
            )
        function = system.functions[name]
        for variant in (function.lite, function.standard, function.premium):
            if variant is not None and variant.model is not None and variant.model not in plan.models:
                raise ConductorError(
                    f'{where}: instruments.models.{variant.model} is missing; say what loads it: {{load: "module:function"}}'
                )
    for task in spec.tasks:
        function = system.functions[task.function]
        for name in VERBS[:N_VARIANTS]:
            options = plan.functions[task.function].instrument(name)
            options = {**options["options"], "kind": options["kind"]}
            while options["kind"] == "proxy" and isinstance(options.get("of"), dict):
                options = {"kind": None, **options["of"]}
            if getattr(function, name) is None or options["kind"] != "command" or not isinstance(options.get("argv"), list):
                continue
            for text in (*options["argv"], options.get("stdin")):
                try:
                    if isinstance(text, str):
                        check_placeholders(text, task.id, task.args, task.inputs, task.join == "any")
                except ValueError as error:
                    raise ConductorError(f"{where}: instruments.functions.{task.function}: {error}") from error
    if system.order_hidden:
        raise ConductorError(f"{where}: system.order_hidden is for the game alone; say in `after` what must come first")
    if not system.max_attempts and not system.horizon_seconds:
        raise ConductorError(
            f"{where}: system.max_attempts is 0 and there is no horizon_seconds, so a function that always fails would be "
            "called for ever; set max_attempts (3, for example)"
        )
    return Workflow(spec.model_copy(update={"system": _restrained(system)}), plan, limits, base, where)


def _restrained(system: SystemSpec) -> SystemSpec:
    """The system whose back-offs end some day and do not end together with other runs', unless its file says otherwise."""
    if system.back_off_seconds == 0.0:
        return system
    usual = {"back_off_most_seconds": max(BACK_OFF_MOST, system.back_off_seconds), "back_off_jitter": BACK_OFF_JITTER}
    return system.model_copy(update={key: value for key, value in usual.items() if getattr(system, key) is None})
