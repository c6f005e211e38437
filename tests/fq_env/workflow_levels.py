"""Small levels around a workflow section, and the graph of an instance as plain data."""

from __future__ import annotations

from typing import Any, NamedTuple

from fq_env.engine import Engine
from fq_env.level import Level
from pit import state


def level_data(workflow: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A level of three functions on one pool, as a level file would hold it."""
    seconds = {"draw_up": 3.0, "carve": 2.0, "polish": 1.5}
    return {
        "number": 90, "name": "small", "title": "Small", "teaching": "-", "hint": "-", "probe": "total", "pass_mark": 0.5,
        "exposure": "full",
        "system": {
            "verbs": ["standard"], "quality_flow": 0.5, "pools": {"bench": {"places": 3}},
            "functions": {name: {"standard": {"pool": "bench", "seconds": x}} for name, x in seconds.items()},
        },
        "workflow": workflow, "score": {"efficiency": 1, "stability": 0, "optimization": 2}, "horizon": 40,
        "max_steps": 20_000,
    } | more  # fmt: skip


def level_of(workflow: dict[str, Any], **more: Any) -> Level:
    return Level.model_validate(level_data(workflow, **more))


class Node(NamedTuple):
    """A task as it stands in a Pit: its successors and inputs as (task, soft)."""

    function: int
    required: bool
    join_any: bool
    priority: int
    hint: float
    after: list[tuple[int, int]]
    inputs: list[tuple[int, int]]


def graph(engine: Engine, i: int = 0) -> list[Node]:
    """The tasks of environment i, which has just been reset."""
    block, memory = engine.block, engine.memory[i]
    n = int(block.hot(memory)["n_tasks"][0])
    tasks = block.rows(memory, "task_at", state.TASK, n)
    hints = block.rows(memory, "artifact_at", state.ARTIFACT, n)["hint"].tolist()
    tables = (block.rows(memory, name, state.LINK, block.edges) for name in ("succ_at", "pred_at"))
    out, inn = ([(j, soft) for j, soft, _ in table.tolist()] for table in tables)
    return [
        Node(
            int(t["function"]), bool(t["required"]), bool(t["join_any"]), int(t["priority"]), hint,
            out[t["succ_from"] : t["succ_to"]], inn[t["pred_from"] : t["pred_to"]],
        )
        for t, hint in zip(tasks, hints, strict=True)
    ]  # fmt: skip


def edges(nodes: list[Node]) -> set[tuple[int, int]]:
    return {(i, j) for i, node in enumerate(nodes) for j, _ in node.after}


def wfformat(seconds: list[float], parents: list[list[int]], names: list[str] | None = None) -> dict[str, Any]:
    """A WfFormat file of tasks with these run times and parents."""
    names = names or [f"{'split' if not before else 'work'}_ID{i:07}" for i, before in enumerate(parents)]
    ids = [f"id_{i}" for i in range(len(parents))]
    children: list[list[str]] = [[] for _ in parents]
    for i, before in enumerate(parents):
        for j in before:
            children[j].append(ids[i])
    tasks = [
        {"name": name, "id": ids[i], "parents": [ids[j] for j in parents[i]], "children": children[i], "inputFiles": ["x"]}
        for i, name in enumerate(names)
    ]
    runs = [{"id": ids[i], "runtimeInSeconds": x, "command": {"program": "do it"}} for i, x in enumerate(seconds)]
    return {
        "name": "small-recorded", "schemaVersion": "1.5", "runtimeSystem": {"name": "none", "version": "1"},
        "workflow": {
            "specification": {"tasks": tasks, "files": []},
            "execution": {"makespanInSeconds": 9.0, "executedAt": "2024-01-01T00:00:00Z", "tasks": runs},
        },
    }  # fmt: skip
