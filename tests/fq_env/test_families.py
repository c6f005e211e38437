"""Workflows: every family, blueprint and given graph is a sound graph of the kind that it says, and plays to its end."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_env.engine import Engine
from fq_env.errors import FQError
from fq_env.level import load_level
from fq_env.players import play
from fq_env.workflows import FAMILIES, READY, Blueprint
from pit.layout import SOLVED
from tests.fq_env.workflow_levels import Node, edges, graph, level_of

N = 24  # instances of one level
MARKS = {"optional": [0.2, 0.5], "any_join": [0.2, 0.6], "priorities": [1, 3]}


def drawn(shape: str, tasks: tuple[int, int] = (12, 40), width: tuple[int, int] = (2, 7), **more: Any) -> dict[str, Any]:
    return {"shapes": {shape: 1}, "tasks": tasks, "width": width, "siblings": (0.1, 0.9), **more}


def instances(workflow: dict[str, Any], n: int = N) -> tuple[Engine, list[list[Node]]]:
    engine = Engine(level_of(workflow), n, autoreset="disabled")
    engine.reset(split="validation")
    return engine, [graph(engine, i) for i in range(n)]


def check(nodes: list[Node], most_edges: int) -> None:
    """A sound graph: edges lead forward, both tables say the same, soft is what it must be, sinks are required."""
    forward = [(i, j, soft) for i, node in enumerate(nodes) for j, soft in node.after]
    backward = [(j, i, soft) for i, node in enumerate(nodes) for j, soft in node.inputs]
    assert sorted(forward) == sorted(backward)
    assert len({(i, j) for i, j, _ in forward}) == len(forward) <= most_edges
    assert all(i < j for i, j, _ in forward)
    for i, j, soft in forward:
        assert soft == (not nodes[i].required and not nodes[j].join_any)
    assert all(node.required for node in nodes if not node.after)
    assert all(len(node.inputs) > 1 for node in nodes if node.join_any)


@pytest.mark.parametrize("shape", [*FAMILIES, *READY])
@settings(max_examples=6)
@given(low=st.integers(10, 30), span=st.integers(10, 40), width=st.integers(1, 12), marked=st.booleans())
def test_every_shape_is_a_sound_graph_within_its_sizes(shape, low, span, width, marked):
    workflow = drawn(shape, (low, low + span), (width, width + 2), **(MARKS if marked else {}))
    engine, graphs = instances(workflow)
    for i, nodes in enumerate(graphs):
        assert low <= len(nodes) <= low + span
        check(nodes, engine.block.edges)
        hot = engine.block.hot(engine.memory[i])
        assert hot["any_join"][0] == any(node.join_any for node in nodes)
        assert hot["n_required"][0] == sum(node.required for node in nodes) >= 1
        assert all((1 <= node.priority <= 3) if marked else node.priority == 0 for node in nodes)
    if not marked:
        assert all(node.required and not node.join_any for nodes in graphs for node in nodes)
    assert len({str(nodes) for nodes in graphs}) > 1


def test_marks_are_as_frequent_as_they_should_be():
    _, graphs = instances(drawn("layered", (40, 40), optional=[0.3, 0.3], any_join=[0.5, 0.5], priorities=[0, 3]), 100)
    inner = [node for nodes in graphs for node in nodes if node.after]
    joins = [node for nodes in graphs for node in nodes if len(node.inputs) > 1]
    assert np.mean([not node.required for node in inner]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([node.join_any for node in joins]) == pytest.approx(0.5, abs=0.05)
    assert np.bincount([node.priority for node in inner]) / len(inner) == pytest.approx(np.full(4, 0.25), abs=0.03)


@pytest.mark.parametrize("shape", [*FAMILIES, *READY])
def test_every_shape_plays_to_its_end(shape):
    level = level_of(drawn(shape, **MARKS))
    for player in ("random", "fifo", "critical_path"):
        episodes = play(level, player, split="validation", n=N)
        assert (episodes["status"] == SOLVED).all()
        assert np.isfinite(episodes["total"]).all() and (episodes["makespan"] >= episodes["lb"] - 1e-3).all()


# --------------------------------------------------------------------------- what each family is
def test_a_chain_is_one_after_the_other():
    for nodes in instances(drawn("chain"))[1]:
        assert edges(nodes) == {(i, i + 1) for i in range(len(nodes) - 1)}


def test_trees_have_one_parent_or_one_successor():
    for nodes in instances(drawn("out_tree"))[1]:
        assert [len(node.inputs) for node in nodes] == [0] + [1] * (len(nodes) - 1)
    for nodes in instances(drawn("in_tree"))[1]:
        assert [len(node.after) for node in nodes] == [1] * (len(nodes) - 1) + [0]


def test_map_reduce_alternates_between_many_and_few_all_to_all():
    for nodes in instances(drawn("map_reduce", (20, 60), (5, 9)))[1]:
        layer = [0] * len(nodes)
        for i, j in sorted(edges(nodes)):
            layer[j] = layer[i] + 1
        sizes = np.bincount(layer).tolist()
        assert len(sizes) >= 3 and all(size <= 4 for size in sizes[1::2]) and all(size >= 2 for size in sizes[:-1:2])
        assert len(edges(nodes)) == sum(a * b for a, b in itertools.pairwise(sizes))


def test_series_parallel_reduces_to_one_task():
    """Twins (same inputs and successors) and followers (sole input, sole successor) are merged until one task is left."""
    for nodes in instances(drawn("series_parallel", (10, 60)))[1]:
        after = {i: {j for j, _ in node.after} for i, node in enumerate(nodes)}
        inputs = {i: {j for j, _ in node.inputs} for i, node in enumerate(nodes)}

        def absorb(kept: int, gone: int, after: Any = after, inputs: Any = inputs) -> None:
            for table in (after, inputs):
                for others in table.values():
                    if gone in others:
                        others.discard(gone)
                        others.add(kept)
                del table[gone]

        merged = True
        while merged:
            merged = False
            for i in list(after):
                twin = next((j for j in after if j != i and after[j] == after[i] and inputs[j] == inputs[i]), None)
                if twin is not None:
                    absorb(i, twin)
                elif len(after[i]) == 1 and len(inputs[j := next(iter(after[i]))]) == 1:
                    behind = after[j]
                    absorb(i, j)
                    after[i] = behind
                    inputs[i].discard(i)
                else:
                    continue
                merged = True
                break
        assert len(after) == 1


def expanded(blueprint: Blueprint, items: int) -> set[tuple[int, int]]:
    """The edges of a blueprint, written for reading."""
    members: dict[str, list[int]] = {}
    found, made = set(), 0
    for name, stage in blueprint.stages.items():
        here = members[name] = list(range(made, made + stage.size(items)))
        made += len(here)
        for other, kind in stage.after.items():
            before = members[other]
            a, b = len(before), len(here)
            if kind == "all":
                found |= {(x, y) for x in before for y in here}
            elif kind == "window":
                found |= {(x, y) for j, y in enumerate(here) for x in before[j * a // b :][: stage.window]}
            elif a > b:
                found |= {(x, here[i * b // a]) for i, x in enumerate(before)}
            else:
                found |= {(before[j * a // b], y) for j, y in enumerate(here)}
    return found


OWN = {
    "stages": {
        "cut": {"count": 7},
        "sort": {"count": 3, "after": {"cut": "one"}, "function": "polish"},
        "weigh": {"count": "items", "after": {"sort": "one", "cut": "window"}, "window": 3},
        "pack": {"count": 2, "after": {"weigh": "one", "cut": "all"}},
    }
}


@pytest.mark.parametrize("name", [*READY, "own"])
def test_blueprints_expand_as_they_are_written(name):
    blueprint = READY.get(name) or Blueprint.model_validate(OWN)
    seen = set()
    for nodes in instances(drawn(name, (13, 50), blueprints={"own": OWN}))[1]:
        (items,) = (k for k in range(1, 51) if blueprint.tasks(k) == len(nodes))
        assert edges(nodes) == expanded(blueprint, items)
        seen.add(items)
        if name == "own":
            assert {node.function for node in nodes[7:10]} == {2}
        assert len(edges(nodes)) <= blueprint.edges(items)
    low, high = blueprint.items((13, 50))
    assert low <= min(seen) < max(seen) <= high


def test_the_bound_on_edges_is_exact_where_no_window_is_cut_off():
    uneven = {"a": {"count": 7}, "b": {"count": 3, "after": {"a": "one"}}, "c": {"count": "items", "after": {"b": "one"}}}
    for blueprint in (READY["epigenomics"], READY["agent_code"], Blueprint.model_validate({"stages": uneven})):
        assert [blueprint.edges(k) for k in (1, 4, 9)] == [len(expanded(blueprint, k)) for k in (1, 4, 9)]


# --------------------------------------------------------------------------- given graphs
GIVEN = [
    {"id": "a", "function": "carve", "seconds": 5.0, "priority": 2},
    {"id": "d", "function": "polish", "after": ["b"], "soft": ["c"]},
    {"id": "b", "function": "draw_up", "after": ["a"], "optional": True},
    {"id": "c", "function": "draw_up", "after": ["a"], "seconds": 0.5},
    {"id": "e", "function": "carve", "after": ["b", "c"], "join": "any"},
]


@pytest.mark.parametrize("durations", ["known", "estimated"])
def test_a_given_workflow_is_copied_as_it_is_written(durations):
    level = level_of({"given": {"tasks": GIVEN, "durations": durations}})
    engine = Engine(level, 3, autoreset="disabled")
    engine.reset(split="validation")
    assert engine.block.edges == 6 and level.max_tasks == 5
    hints = [5e6, 0, 5e5, 0, 0] if durations == "known" else [0] * 5
    for i in range(3):
        a, b, c, d, e = graph(engine, i)  # in topological order: d, written second, needs b and c
        assert [x.function for x in (a, b, c, d, e)] == [1, 0, 0, 2, 1]
        assert [x.hint for x in (a, b, c, d, e)] == hints
        assert [x.required for x in (a, b, c, d, e)] == [True, False, True, True, True]
        assert (a.priority, e.join_any, d.inputs, e.inputs) == (2, True, [(1, 1), (2, 1)], [(1, 0), (2, 0)])
        assert sorted(b.after) == [(3, 1), (4, 0)]
    # a 5 s, then c 0.5 s; b (3 s) is optional, but d waits for it: a, b, d are 5 + 3 + 1.5 s.
    assert play(level, "critical_path", split="validation", n=1)["makespan"][0] == pytest.approx(9.5, abs=1e-5)


def test_two_thousand_tasks_with_dense_edges():
    width, layers = 100, 20
    before = [[f"t{k - 1}_{j}" for j in range(width)] if k else [] for k in range(layers)]
    tasks = [
        {"id": f"t{k}_{i}", "function": "carve", "seconds": 1 + i / 100, "after": before[k]}
        for k in range(layers)
        for i in range(width)
    ]  # fmt: skip
    level = level_of({"given": {"tasks": tasks}})
    engine = Engine(level, 1, autoreset="disabled")
    engine.reset(split="validation")
    assert engine.block.edges == (layers - 1) * width * width == len(edges(graph(engine)))
    episode = play(level, "critical_path", split="validation", n=1)[0]
    assert episode["status"] == SOLVED and episode["calls"] == 2000


def test_a_complete_graph_is_played_in_its_order():
    tasks = [{"id": str(i), "function": "carve", "seconds": 1.0, "after": [str(j) for j in range(i)]} for i in range(300)]
    level = level_of({"given": {"tasks": tasks}})
    assert Engine(level, 1).block.edges == level.max_edges == 300 * 299 // 2
    assert play(level, "random", split="validation", n=1)["makespan"][0] == pytest.approx(300, abs=1e-3)


def test_environments_of_drawn_and_given_workflows_share_an_engine():
    levels = [level_of({"given": {"tasks": GIVEN}}), level_of(drawn("map_reduce"))]
    engine = Engine(levels, 2, autoreset="disabled")
    engine.reset(split="validation")
    assert len(graph(engine, 0)) == 5 < len(graph(engine, 1))
    alone = Engine(levels[1], 2, autoreset="disabled")
    alone.reset(1, split="validation", instances=1)
    assert graph(engine, 1) == graph(alone, 1)


def own(stages: dict[str, Any], tasks: tuple[int, int]) -> dict[str, Any]:
    return {"shapes": {"b": 1}, "blueprints": {"b": {"stages": stages}}, "tasks": tasks}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shapes": {"rings": 1}}, "shapes names 'rings'; choose from layered"),
        ({"shapes": {"chain": 0}}, "no weight is positive"),
        ({"tasks": [40, 12]}, "low 40 is above high 12"),
        ({"tasks": [0, 3]}, "greater than or equal to 1"),
        ({"tasks": [1, 40_000]}, "less than or equal to 32000"),
        ({"shapes": {"series_parallel": 1}, "tasks": [1, 5000]}, "at most 4096 tasks, not 5000"),
        ({"shapes": {"montage": 1}, "tasks": [1, 3]}, "blueprint 'montage', which has 7 tasks with one item and 3 more"),
        ({"siblings": [0.5, 1.5]}, "less than or equal to 1"),
        ({"optional": [0.5, float("nan")]}, "optional"),
        ({"priorities": [0, 4]}, "within 0..3"),
        ({"given": {"tasks": GIVEN}}, "a given workflow is not drawn"),
        ({"blueprints": {"rag": OWN}}, "blueprints.rag is the name of a shape that exists already"),
        (own({"x": {"after": {"y": "all"}}}, (1, 1)), "stages.x.after names 'y'; only a stage above it"),
        (own({"x": {"function": "mill"}}, (1, 1)), "'mill', which system.functions lacks"),
        (own({"x": {"count": 9000}, "y": {"count": 9000, "after": {"x": "all"}}}, (1, 18_000)), "81000000 edges; at most 2"),
    ],
)  # fmt: skip
def test_an_unsound_workflow_is_refused_in_one_sentence(change, told):
    with pytest.raises(ValueError) as refused:
        level_of(drawn("chain") | change)
    assert told in str(refused.value)


def test_a_cycle_and_an_unknown_function_are_refused_with_the_file(tmp_path):
    import yaml

    from tests.fq_env.workflow_levels import level_data

    for change, told in (({"after": ["d"]}, "in a cycle"), ({"function": "mill"}, "'mill', which is not defined")):
        path = tmp_path / f"{told[1:5]}.yaml"
        path.write_text(yaml.safe_dump(level_data({"given": {"tasks": [GIVEN[0] | change, *GIVEN[1:]]}})))
        with pytest.raises(FQError, match=told) as refused:
            load_level(path)
        assert str(path) in str(refused.value)
