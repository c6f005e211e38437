"""A level's workflow as the tables that the generator reads: its blueprints, or its given graph."""

from __future__ import annotations

import numpy as np

from fq_env.level import Level
from fq_env.state import EDGE, GIVEN
from fq_env.workflows import FAMILIES, LINKS, Blueprint, Given
from pit.build import microseconds


def write_workflow(row: np.ndarray, level: Level) -> list[np.ndarray]:
    """Writes a level's workflow into its record, (1,) LEVEL; the tables that it points to, which must live as long."""
    workflow, functions = level.workflow, list(level.system.functions)
    if workflow is None:
        return []
    if workflow.given is not None:
        rows, edges = given_tables(workflow.given, level)
        row["given"], row["n_given"] = rows.ctypes.data, len(rows)
        row["given_edges"], row["n_given_edges"] = edges.ctypes.data, len(edges)
        return [rows, edges]
    for name in ("siblings", "tasks", "width", "optional", "any_join", "echoes", "priorities"):
        row[name][0] = getattr(workflow, name)
    if (stream := workflow.stream) is not None:
        for name in ("workflows", "load", "gap_cv"):
            row[name][0] = getattr(stream, name)
        row["weights"][0, : len(stream.weights)], row["n_weights"] = stream.weights, len(stream.weights)
    drawn = workflow.drawn()
    weights = [workflow.shapes.get(name, 0.0) for name in (*FAMILIES, *drawn)]
    row["shapes"][0] = np.cumsum(weights)[-1]
    row["shapes"][0, : len(weights)] = np.cumsum(weights)
    tables = [blueprint_table(blueprint, functions) for blueprint in drawn.values()]
    for k, (blueprint, table) in enumerate(zip(drawn.values(), tables, strict=True)):
        row["blueprints"][0, k], row["stages"][0, k] = table.ctypes.data, len(blueprint.stages)
        row["items"][0, k] = blueprint.items(workflow.tasks)
    return tables


def blueprint_table(blueprint: Blueprint, functions: list[str]) -> np.ndarray:
    """int64: per stage its function (-1: drawn), count (0: items) and number of links; per link the first task of the stage
    before (a fixed part, and a part per item), its count, kind and window."""
    values: list[int] = []
    firsts: dict[str, tuple[int, int, int]] = {}
    fixed = per_item = 0
    for name, stage in blueprint.stages.items():
        count = stage.size(0)
        values += [-1 if stage.function is None else functions.index(stage.function), count, len(stage.after)]
        for other, kind in stage.after.items():
            values += [*firsts[other], LINKS.index(kind), stage.window]
        firsts[name] = (fixed, per_item, count)
        fixed, per_item = fixed + count, per_item + (count == 0)
    return np.array(values, np.int64)


def given_tables(given: Given, level: Level) -> tuple[np.ndarray, np.ndarray]:
    """The tasks (n,) GIVEN in topological order, and the edges (m,) EDGE between them by consumer."""
    tasks, functions = given.ordered(level.system), list(level.system.functions)
    index = {task.id: i for i, task in enumerate(tasks)}
    rows = np.zeros(len(tasks), GIVEN)
    for row, task in zip(rows, tasks, strict=True):
        mean = microseconds(level.system.functions[task.function].standard.seconds)
        row["function"], row["required"] = functions.index(task.function), not task.optional
        row["join_any"], row["priority"], row["content"] = task.join == "any", task.priority, task.content
        # The next larger number: mean x factor is cut to whole microseconds.
        row["factor"] = 1.0 if task.seconds is None else np.nextafter(microseconds(task.seconds) / mean, np.inf)
        row["hinted"] = task.seconds is not None and given.durations == "known"
    edges = [(index[name], i, name in task.soft) for i, task in enumerate(tasks) for name in task.inputs]
    return rows, np.array(edges, EDGE)
