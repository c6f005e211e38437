"""Recorded workflows in WfFormat (wfcommons.org, versions 1.5 and 1.6) as levels.

Tasks, edges and run times come from the file; machines, files and cores are not read. A task's function is what it is a call
of, see `category`. A run time of 0 counts as 10 us, the shortest that a task can take.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from fq_env.errors import FQError
from pit.errors import PitError
from pit.files import parse
from pit.layout import MAX_FUNCTIONS, MAX_PLACES, MAX_TASKS
from pit.spec import Strict

MAX_BYTES = 1 << 26
SHORTEST = 1e-5  # s
WORKERS = 8
BELIEF_CV = 0.2  # `durations: estimated`: of the figure that the Pit has for a function, over its true mean
STEPS_PER_TASK = 20  # an episode of a random player needs about ten

_Id = Annotated[str, Field(min_length=1, max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)  # more keys may stand there: they are not read


class _Task(_Part):
    id: _Id
    name: _Id
    parents: list[_Id]
    children: list[_Id]


class _Command(_Part):
    program: str = ""


class _Run(_Part):
    id: _Id
    command: _Command = _Command()
    runtimeInSeconds: float = Field(ge=0, le=1e8, allow_inf_nan=False)


class _Specification(_Part):
    tasks: list[_Task] = Field(min_length=1, max_length=MAX_TASKS)


class _Execution(_Part):
    tasks: list[_Run]


class _Workflow(_Part):
    specification: _Specification
    execution: _Execution


class _File(_Part):
    name: _Id
    schemaVersion: Literal["1.5", "1.6"]
    workflow: _Workflow


class Around(Strict):
    """The section `workflow` of a level file that names a recorded workflow; `file` is relative to the level file."""

    file: str
    durations: Literal["known", "estimated"] = "known"
    workers: int = Field(default=WORKERS, ge=1, le=MAX_PLACES)


class Recorded(NamedTuple):
    """A recorded workflow: its name, and per task, in topological order, (function, seconds, indices of its inputs)."""

    name: str
    tasks: list[tuple[str, float, list[int]]]


def read(path: str | Path) -> Recorded:
    """A WfFormat file, checked. Raises `FQError` (file, key, value, remedy)."""
    source = f"workflow file {path}"
    try:
        return _recorded(parse(_File, _load(Path(path)), source), source)
    except PitError as error:
        raise FQError(str(error)) from None


def category(name: str, program: str = "") -> str:
    """The function of a task: the program that its name begins with, else the last part of its name without its number.

    `mDiffFit_ID0000012` -> `mDiffFit`; `map_map_s_1_ID0000007` of the program `map` -> `map`; `ALIGN.BWA_MEM_12` -> `BWA_MEM`.
    """
    if program and re.match(rf"{re.escape(program)}([_.\-]|$)", name):
        short = program
    else:
        short = re.sub(r"[_.\-](ID)?\d+$", "", name) or name
        parts = short.split(".")
        short = parts[-1] if all(re.match(r"[A-Za-z]\w*$", part) for part in parts) else short
    return re.sub(r"^\.|[^A-Za-z0-9_.]", "_", short)[:80]


def as_level(path: str | Path, durations: str = "known", workers: int = WORKERS) -> dict[str, Any]:
    """What a level file for this workflow would hold. Raises `FQError`."""
    name, tasks = read(path)
    seconds: dict[str, list[float]] = {}
    for function, lasts, _ in tasks:
        seconds.setdefault(function, []).append(lasts)
    short = re.sub(r"\W+", "_", name)[:60]
    return {
        "number": 0,
        "name": short,
        "title": name,
        "teaching": f"A recorded workflow of {len(tasks)} tasks on {workers} equal workers.",
        "hint": "What lies on the longest path cannot wait.",
        "probe": "critical_wait",
        "pass_mark": 0.85,
        "exposure": "full",
        "system": {
            "verbs": ["standard"],
            "pools": {"workers": {"places": workers}},
            "functions": {f: {"standard": {"pool": "workers", "seconds": math.fsum(x) / len(x)}} for f, x in seconds.items()},
        },
        "workflow": {
            "given": {
                "durations": durations,
                "tasks": [
                    {"id": str(i), "function": function, "seconds": lasts, "after": [str(j) for j in inputs]}
                    for i, (function, lasts, inputs) in enumerate(tasks)
                ],
            }
        },
        "draw": {"belief_cv": BELIEF_CV} if durations == "estimated" else {},
        "score": {"efficiency": 0, "stability": 0, "optimization": 1},
        "horizon": 40,
        "max_steps": STEPS_PER_TASK * len(tasks) + 100,
    }


def around(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A level file's `data` whose `workflow` names a WfFormat file: what it does not say itself comes from there.

    `system` is put together section by section, so that a level can give the workers' number, or a function its model.
    Raises `PitError`.
    """
    section = parse(Around, data["workflow"], f"level file {path}: workflow")
    whole = as_level(path.parent / section.file, section.durations, section.workers)
    workflow, system = whole["workflow"], dict(whole["system"])
    own = data.get("system", {})
    if not isinstance(own, dict):
        raise FQError(f"level file {path}: system = {own!r}: must be a mapping of sections")
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(system.get(key), dict)
        system[key] = {**system[key], **value} if both else value
    return {**whole, **data, "workflow": workflow, "system": system}


def _load(path: Path) -> dict[str, Any]:
    source = f"workflow file {path}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FQError(f"{source} has more than {MAX_BYTES} bytes; split it")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise FQError(f"{source} cannot be read: {reason}") from None
    try:
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_doubles)
    except FQError as error:
        raise FQError(f"{source} is refused: {error}") from None
    except RecursionError:
        raise FQError(f"{source} is refused: it is nested too deeply; a workflow has less than ten levels") from None
    except ValueError as error:
        raise FQError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise FQError(f"{source} must hold an object with `schemaVersion` and `workflow`, not {type(data).__name__}")
    return data


def _refuse_constant(word: str) -> NoReturn:
    raise FQError(f"the value {word} is no number of JSON; write a finite one")


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise FQError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object; keep one")
    return table


def _recorded(file: _File, source: str) -> Recorded:
    tasks = file.workflow.specification.tasks
    where = f"{source}: workflow.specification.tasks"
    index = _indices([task.id for task in tasks], where)
    runs = file.workflow.execution.tasks
    ran = _indices([run.id for run in runs], f"{source}: workflow.execution.tasks")
    for i, task in enumerate(tasks):
        if task.id not in ran:
            raise FQError(f"{where}.{i}.id {task.id!r} is missing in workflow.execution.tasks; add its runtimeInSeconds")
    for k, run in enumerate(runs):
        if run.id not in index:
            raise FQError(f"{source}: workflow.execution.tasks.{k}.id {run.id!r} is no specified task; remove it")
    inputs = _inputs(tasks, index, where)
    order = _topological(inputs, [task.id for task in tasks], where)
    place = {i: k for k, i in enumerate(order)}
    functions = [category(task.name, runs[ran[task.id]].command.program) for task in tasks]
    if len(set(functions)) > MAX_FUNCTIONS:
        kinds = len(set(functions))
        raise FQError(f"{where}: tasks of {kinds} different names (numbers apart); at most {MAX_FUNCTIONS} are possible")
    lasts = [max(SHORTEST, runs[ran[task.id]].runtimeInSeconds) for task in tasks]
    return Recorded(file.name, [(functions[i], lasts[i], sorted(place[j] for j in inputs[i])) for i in order])


def _indices(ids: list[str], where: str) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, name in enumerate(ids):
        if name in index:
            raise FQError(f"{where}.{i}.id {name!r} stands twice, first in task {index[name]}; give every task its own id")
        index[name] = i
    return index


def _inputs(tasks: list[_Task], index: dict[str, int], where: str) -> list[list[int]]:
    """Each task's parents, once `parents` and `children` are found to say the same."""
    edges: dict[str, set[tuple[str, str]]] = {"parents": set(), "children": set()}
    for i, task in enumerate(tasks):
        for key, others in (("parents", task.parents), ("children", task.children)):
            for k, other in enumerate(others):
                if other not in index:
                    raise FQError(f"{where}.{i}.{key}.{k} {other!r} is no task's id; name one of workflow.specification.tasks")
                edge = (other, task.id) if key == "parents" else (task.id, other)
                if edge in edges[key]:
                    raise FQError(f"{where}.{i}.{key}.{k} {other!r} stands there twice; name it once")
                edges[key].add(edge)
    for key, other in (("parents", "children"), ("children", "parents")):
        for before, after in sorted(edges[key] - edges[other]):
            here, missing = (after, before) if key == "parents" else (before, after)
            i = index[here]
            raise FQError(f"{where}.{i}.{key} names {missing!r}, whose `{other}` lack {here!r}; name both or none")
    return [[index[other] for other in task.parents] for task in tasks]


def _topological(inputs: list[list[int]], ids: list[str], where: str) -> list[int]:
    """An order in which inputs come first, as near to the file's as it can be."""
    followers: list[list[int]] = [[] for _ in inputs]
    left = [len(before) for before in inputs]
    for i, before in enumerate(inputs):
        for j in before:
            followers[j].append(i)
    order = [i for i, n in enumerate(left) if n == 0]
    for i in order:  # grows while it is walked
        for j in followers[i]:
            left[j] -= 1
            if left[j] == 0:
                order.append(j)
    if len(order) < len(inputs):
        stuck = ", ".join(repr(ids[i]) for i, n in enumerate(left) if n > 0)
        raise FQError(f"{where}: parents of {stuck[:200]} lead round in a cycle; remove one of these edges")
    return order
