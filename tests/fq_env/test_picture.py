"""Pictures: the view tells what the state holds, the graph is laid out in layers, and nothing written covers anything else."""

from __future__ import annotations

import copy
import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_env import picture, pools_picture
from fq_env.canvas import Canvas, fitted, width
from fq_env.engine import Engine
from fq_env.graph import columns, layers
from fq_env.level import Level, load_level
from fq_env.view import Memory
from pit import state
from pit.layout import N_VERBS, WAIT

LEVELS = Path(__file__).resolve().parents[2] / "levels"
LEAST_TEXT = 8  # pixels


def several_pools(places: int, tasks: tuple[int, int], width: tuple[int, int], pools: int) -> Level:
    """Level 11 with its models spread over so many pools."""
    data = yaml.safe_load((LEVELS / "level_11_warm_forge.yaml").read_text(encoding="utf-8"))
    system, names = data["system"], [f"host_{k}" for k in range(pools)]
    system["memory"] = {name: 6 for name in names}
    system["pools"] = {name: {"places": places + 3 * k, "memory": name} for k, name in enumerate(names)}
    where = {model: names[k % pools] for k, model in enumerate(system["models"])}
    for variant in (v for function in system["functions"].values() for v in function.values()):
        variant["pool"] = where[variant["model"]]
    for key in ("models", "places", "memory"):  # drawn for the first pool, or for all models
        del data["draw"][key]
    data["workflow"] |= {"tasks": list(tasks), "width": list(width)}
    return Level.model_validate(data)


WORLDS = {
    "hidden order": lambda: load_level(1),
    "one pool": lambda: load_level(11),
    "three pools": lambda: several_pools(2, (50, 60), (6, 12), 3),
    "eight pools": lambda: several_pools(1, (30, 40), (4, 6), 8),
    "large": lambda: several_pools(12, (250, 300), (10, 30), 1),
}


@functools.cache
def views(name: str, instance: int = 0, every: int = 5) -> list[dict[str, Any]]:
    """States of an episode that is played at random, the first and the last among them."""
    engine = Engine(WORLDS[name](), 1, autoreset="disabled")
    engine.reset(split="test", instances=instance)
    rng, found, steps = np.random.default_rng(instance), [engine.pit_view(0)], 0
    while not engine.step_one(int(rng.choice(np.flatnonzero(engine.masks[0])))):
        steps += 1
        if steps % every == 0:
            found.append(engine.pit_view(0))
    return [*found, engine.pit_view(0)]


def middle(name: str) -> dict[str, Any]:
    """A state with calls in flight that the test may change."""
    found = views(name)
    return copy.deepcopy(max(found[: len(found) // 2 + 1], key=lambda view: len(view["calls"])))


def written(view: dict[str, Any]) -> list[str]:
    return [text for _, text, _, _, _ in picture.draw(view).texts]


# --------------------------------------------------------------------------- the view
def test_inputs_are_the_edges_of_the_workflow_and_the_critical_path_follows_them():
    engine = Engine(11, 1, autoreset="disabled")
    rng = np.random.default_rng(0)
    for instance in range(4):
        engine.reset(split="test", instances=instance)
        for _ in range(30):
            view, memory = engine.pit_view(0), Memory(engine, 0)
            tasks = memory.tasks
            successors = engine.block.rows(engine.memory[0], "succ_at", state.LINK, int(tasks["succ_to"].max()))["task"]
            edges = {(k, int(j)) for k, t in enumerate(tasks) for j in successors[t["succ_from"] : t["succ_to"]]}
            assert {(j, t["index"]) for t in view["tasks"] for j in t["after"] + t["soft"]} == edges != set()
            path = [t["index"] for t in view["tasks"] if t["critical"]]
            for before, after in pairwise(path):
                assert (
                    tasks["rank"][after] == max(tasks["rank"][k] for j, k in edges if j == before) and (before, after) in edges
                )
            longest = max(
                (t["index"] for t in view["tasks"] if t["state"] in ("ready", "running")), key=lambda k: tasks["rank"][k]
            )
            assert path[0] == longest and path[-1] not in {j for j, _ in edges}
            if engine.step_one(int(rng.choice(np.flatnonzero(engine.masks[0])))):
                break


@pytest.mark.parametrize("level", [1, 11])
def test_the_last_action_is_the_one_that_was_taken(level: int):
    engine = Engine(level, 1, autoreset="disabled")
    rng, starts, named = np.random.default_rng(0), 0, 0
    for instance in range(20):
        engine.reset(split="test", instances=instance)
        assert engine.pit_view(0)["last"] is None
        ended = False
        while not ended:
            before = engine.pit_view(0)
            action = int(rng.choice(np.flatnonzero(engine.masks[0])))
            ended = bool(engine.step_one(action))
            after = engine.pit_view(0)
            if action == WAIT:
                assert after["last"] == {"verb": "wait", "task": None}
            elif action % N_VERBS < 3:
                starts += 1
                task = after["last"]["task"]
                if task is not None:
                    named += 1
                    assert task == before["slots"][action // N_VERBS]["head"]
    assert starts > 100 and named > (0.95 if level == 1 else 0.6) * starts


def test_loads_and_calls_tell_how_far_they_are():
    states = [view for name in ("one pool", "three pools") for view in views(name, every=1)]
    copies = [c for view in states for pool in view["pools"] for c in pool["copies"]]
    loading = [c for c in copies if c["state"] == "loading"]
    assert len(loading) > 20 and all(0 <= c["progress"] <= 1 and c["left"] >= 0 for c in loading)
    assert any(0.2 < c["progress"] < 0.8 for c in loading)
    assert all(c["progress"] is None for c in copies if c["state"] != "loading")
    for view in states:
        for call in view["calls"]:
            share = 0.0
            if call["start"] is not None:
                share = min(1.0, (view["now"] - call["start"]) / (call["expected_end"] - call["start"]))
            assert call["progress"] == pytest.approx(share, abs=1e-6)
        for pool in view["pools"]:
            held = {c["model"] for c in pool["copies"] if c["state"] != "cooldown"}
            assert not held & set(pool["cold"])
            assert pool["memory"]["used"] <= pool["memory"]["capacity"]


# --------------------------------------------------------------------------- where things stand
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_layers_put_every_task_right_of_its_inputs(data: st.DataObject):
    n = data.draw(st.integers(1, 40))
    after = [sorted(data.draw(st.sets(st.integers(0, k - 1), max_size=3))) if k else [] for k in range(n)]
    depth, found = layers(after), columns(after)
    assert sorted(k for column in found for k in column) == list(range(n))
    assert all(depth[k] == c for c, column in enumerate(found) for k in column)
    for k, inputs in enumerate(after):
        assert depth[k] == max((depth[j] + 1 for j in inputs), default=0)


def test_neighbours_stand_side_by_side():
    pipelines = [[], [], [], [2], [0], [1], [4], [5], [3]]  # three pipelines, crossed in their numbering
    found = columns(pipelines)
    rows = {k: row for column in found for row, k in enumerate(column)}
    assert all(rows[k] == rows[j] for k, inputs in enumerate(pipelines) for j in inputs)


def test_a_long_workflow_is_laid_in_bands_and_a_huge_one_is_not_laid_at_all():
    assert picture.in_bands([3] * 8, 600, 360) == (8, [0], 120)
    across, tops, row = picture.in_bands([3] * 20, 600, 360)
    assert across == 10 and len(tops) == 2 and tops[1] == 3 * row + picture.BAND_GAP
    assert picture.in_bands([30] * 3, 600, 360) is None


# --------------------------------------------------------------------------- what is written
@pytest.mark.parametrize("name", WORLDS)
def test_nothing_written_is_small_or_outside_or_covers_other_words(name: str):
    for view in views(name, every=9):
        boxes = []
        for (x, y), text, _, font, anchor in picture.draw(view).texts:
            assert font.size >= LEAST_TEXT, text
            left, top, right, bottom = font.getbbox(text, anchor=anchor)
            left, top, right, bottom = x + left, y + top, x + right, y + bottom
            assert min(left, top) >= 0 and right <= picture.WIDTH and bottom <= picture.HEIGHT, text
            boxes.append((left, top, right, bottom, text))
        for k, (left, top, right, bottom, text) in enumerate(boxes):
            for others in boxes[k + 1 :]:
                covers = min(right, others[2]) - max(left, others[0]) > 1 and min(bottom, others[3]) - max(top, others[1]) > 1
                assert not covers, (text, others[4])


def test_a_reader_finds_every_answer_in_words():
    view = middle("one pool")
    words = written(view)
    running = next(call for call in view["calls"])
    pool = view["pools"][0]
    assert f"Clock {view['now']:.1f} s" in words or f"Clock {view['now']:.0f} s" in words
    assert any(word.startswith(f"#{running['task']} {running['function']}: ") for word in words)
    assert f"Pool forge: {pool['places'] - pool['busy']} of {pool['places']} places free" in words
    assert f"Score can still reach {view['reachable']:.3f}" in words
    assert any(word.startswith("Last action: ") for word in words)
    assert any(word.startswith("cold (not loaded): ") for word in words)
    assert sum(word.startswith("#") and word[1:].isdigit() for word in words) == len(view["tasks"])
    done = sum(task["state"] == "done" for task in view["tasks"])
    assert any(word.startswith(f"{len(view['tasks'])} tasks: ") and f"{done} done" in word for word in words) == (done > 0)
    last = views("one pool")[-1]
    assert f"Final score {last['episode']['total']:.3f}" in written(last)


def test_a_large_workflow_is_counted_and_every_task_is_in_a_group():
    view = middle("large")
    counted = [int(word[1:]) for word in written(view) if word.startswith("×") and word[1:].isdigit()]
    assert sum(counted) == len(view["tasks"]) > picture.MOST_NODES


def test_held_and_undone_functions_are_told_apart():
    view = middle("hidden order")
    view["tasks"][0]["state"], view["held"] = "done", []
    assert "done, but undone since" in written(view) and "Held: nothing yet" in written(view)
    view["held"] = [view["tasks"][0]["function"]]
    assert "done, but undone since" not in written(view) and f"Held: {view['held'][0]}" in written(view)


@pytest.mark.parametrize("kind", picture.STATES)
def test_every_state_has_its_colour_and_its_mark(monkeypatch: pytest.MonkeyPatch, kind: str):
    assert len({mark for _, _, mark in picture.STATES.values()}) == len(picture.STATES)
    marks: list[str] = []
    draw_mark = Canvas.mark

    def noted(canvas: Canvas, name: str, *rest: Any) -> None:
        marks.append(name)
        draw_mark(canvas, name, *rest)

    monkeypatch.setattr(Canvas, "mark", noted)
    view = views("one pool")[0]
    plain, before = picture.render_picture(view), sorted(marks)
    marks.clear()
    changed = copy.deepcopy(view)
    task = next(t for t in changed["tasks"] if t["state"] == "blocked" and not t["critical"])
    call = {
        **middle("one pool")["calls"][0],
        "task": task["index"],
        "start": None if kind == "loading" else 0.0,
        "variant": "lite",
    }
    if kind in ("running", "loading"):
        changed["calls"] = [call]
    task["state"] = {"loading": "running", "held": "ready", "queued": "ready"}.get(kind, kind)
    task["held"], task["queued"] = kind == "held", kind == "queued"
    pixels = picture.render_picture(changed)
    colour = np.array([int(picture.STATES[kind][1][k : k + 2], 16) for k in (1, 3, 5)])
    grown = (pixels == colour).all(axis=-1).sum() - (plain == colour).all(axis=-1).sum()
    assert (grown > 300) == (kind != "blocked")
    for mark in before:
        if mark in marks:
            marks.remove(mark)
    mark = picture.STATES[kind][2]
    assert (mark in marks) == (kind not in ("blocked", "given_up"))


def test_pools_show_queues_tokens_back_offs_and_what_is_cold():
    view = middle("three pools")
    first, second, third = view["pools"]
    first |= {"queued": 2, "closed_for": 3.2}
    second |= {"tokens": 2.5, "burst": 5.0}
    third |= {"copies": [], "cold": ["ember", "wick"]}
    words = written(view)
    for expected in ("queue: 2", "closed for 3.20 s", "tokens: 2.5 of 5", "all cold: ember, wick"):
        assert any(word.startswith(expected) for word in words), expected
    busy = [row for row in pools_picture.rows_of(view, first, 300) if row[0] == "place" and row[1] is not None]
    assert len(busy) == sum(call["pool"] == first["name"] for call in view["calls"])


def test_words_are_cut_only_when_no_size_fits():
    assert fitted("draft", 100, 12, 8) == ("draft", 12)
    text, size = fitted("draft", width("draft", 9), 12, 8)
    assert (text, size) == ("draft", 9)
    text, size = fitted("a long name", 30, 12, 8)
    assert size == 8 and text.endswith("…") and width(text, 8) <= 30
