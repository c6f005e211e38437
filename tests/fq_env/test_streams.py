"""Streams of workflows: who goes first, what ends a workflow, what the figures say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.level import Level
from fq_env.picture import render_picture
from fq_env.players import as_player, play_on
from fq_env.render import render_text
from pit.handle import Event, Pit
from pit.layout import ARRIVE, DEFER, DONE, FINISHED, GIVEN_UP, N_VERBS, READY, SOLVED, STANDARD, STREAM_CLOSED, WAIT
from pit.spec import SystemSpec, TaskSpec, WorkflowSpec

N = 128


def stream_level(workflows: int, **draw: Any) -> Level:
    """Workflows of very different sizes and weights over four equal places: who goes first decides."""
    functions = {
        f: {"standard": {"pool": "crew", "seconds": s, "quality": 1.0, "price": 1.0}} for f, s in zip("abc", (9, 12, 6))
    }
    return Level.model_validate(
        {
            "number": 90, "name": "stream", "title": "Stream", "teaching": "-", "hint": "-", "probe": "slowdown",
            "pass_mark": 0.5, "exposure": "full", "horizon": 40, "max_steps": 5000,
            "score": {"efficiency": 0, "stability": 0, "optimization": 2},
            "system": {"verbs": ["standard", "defer"], "pools": {"crew": {"places": 4}}, "functions": functions},
            "workflow": {
                "shapes": {"layered": 2, "pipelines": 2, "fork_join": 1}, "tasks": [4, 24], "width": [3, 6],
                "siblings": [0.2, 0.7],
                "stream": {"workflows": [workflows, workflows], "load": [0.9, 1.5], "gap_cv": [1, 2], "weights": [1, 1, 4]},
            },
            "draw": {"task_cv": 0.4, "noise_cv": [0.1, 0.3], "earlier": [30], **draw},
        }
    )  # fmt: skip


@pytest.mark.parametrize("workflows", [2, 4, 8])
def test_smallest_remaining_beats_critical_path_on_flow_time(workflows: int) -> None:
    engine = Engine(stream_level(workflows), N, split="validation", autoreset="disabled")
    short = play_on(engine, as_player("smallest_remaining"), split="validation", n=N)
    long = play_on(engine, as_player("critical_path"), split="validation", n=N)
    assert (short["workflows"] == workflows).all()
    lead = long["flow"] - short["flow"]
    assert lead.mean() > 3 * lead.std() / np.sqrt(N)
    assert (long["slowdown"] - short["slowdown"]).mean() > 0


def test_every_workflow_arrives_and_the_reward_adds_up() -> None:
    engine = Engine(stream_level(5), N, split="validation", autoreset="disabled")
    for name in ("random", "fifo", "smallest_remaining"):
        found = play_on(engine, as_player(name), split="validation", n=N)
        assert (found["workflows"] == 5).all() and (found["status"] == SOLVED).all()
        assert np.abs(found["reward_sum"] - (found["total"] - found["phi0"])).max() <= 1e-6
        assert found["slowdown"].mean() > 1 and (found["flow"] <= found["makespan"]).all()
        assert name != "random" or found["defers"].sum() > 0


def test_open_tasks_without_a_slot_are_counted() -> None:
    level = stream_level(8)
    functions = {f"f{k}": {"standard": {"pool": "crew", "seconds": 5 + k, "quality": 1.0}} for k in range(40)}
    many = level.model_dump() | {"system": level.system.model_dump() | {"functions": functions}}
    many["workflow"] = level.workflow.model_dump() | {"shapes": {"fork_join": 1}, "tasks": (30, 40), "width": (20, 30)}  # type: ignore[union-attr]
    many["workflow"] |= {"siblings": (0.0, 0.0), "given": None, "blueprints": {}}
    many["workflow"].pop("given")
    engine = Engine(Level.model_validate(many), 16, split="validation", autoreset="disabled")
    found = play_on(engine, as_player("smallest_remaining"), split="validation", n=16)
    assert (found["status"] == SOLVED).all() and found["overflow"].min() > 0
    few = Engine(level, 16, split="validation", autoreset="disabled")
    assert play_on(few, as_player("smallest_remaining"), split="validation", n=16)["overflow"].sum() == 0


def test_a_stream_is_seen_in_text_and_picture() -> None:
    engine = Engine(stream_level(3), 1, split="validation", autoreset="disabled")
    engine.reset(split="validation", instances=0)
    first = engine.pit_view(0)
    assert first["stream"] and len(first["workflows"]) == 1 and first["workflows"][0]["ended"] is None
    engine.play(as_player("fifo"))
    view = engine.pit_view(0)
    assert view["stream"] is False and len(view["workflows"]) == 3
    assert sorted(k for flow in view["workflows"] for k in flow["tasks"]) == list(range(len(view["tasks"])))
    assert all(0 <= flow["arrived"] < flow["ended"] for flow in view["workflows"])
    assert "3 workflows so far, 3 done, no more will come" in render_text(view)
    assert (render_picture(view) != render_picture(first)).any()


# --------------------------------------------------------------------------- one Pit by hand
def pit(*weights: float, tasks: tuple[TaskSpec, ...] = (), verbs: tuple[str, ...] = ("standard", "defer")) -> Pit:
    """A stream of as many workflows as weights: each a chain of two tasks, the first also `tasks`."""
    system = SystemSpec.model_validate(
        {
            "verbs": list(verbs), "pools": {"p": {"places": 2}},
            "functions": {f: {"standard": {"pool": "p", "seconds": 10}} for f in "ab"},
        }
    )  # fmt: skip
    chain = [TaskSpec(id="one", function="a"), TaskSpec(id="two", function="b", after=["one"])]
    flows = [WorkflowSpec(system=system, tasks=[*chain, *(tasks if g == 0 else ())], weight=w) for g, w in enumerate(weights)]
    return Pit(flows[0], then=flows[1:])


def finish(pit: Pit, task: int) -> None:
    """The call of a task ends well, ten seconds later."""
    pit.advance(pit.now + 10_000_000)
    number = int(next(c["id"] for c in pit.calls() if c["task"] == task))
    assert pit.apply(Event(FINISHED, number, elapsed=10_000_000))


def test_a_stream_ends_when_it_is_closed_and_done() -> None:
    p = pit(1.0, 1.0)
    assert p.apply(Event(ARRIVE, 0)) and not p.apply(Event(ARRIVE, 0)) and not p.apply(Event(ARRIVE, 2))
    for task in (0, 1):
        p.act(STANDARD)
        finish(p, task)
    assert p.status == 0 and not p.decision_due() and p.mask()[WAIT]
    assert p.apply(Event(ARRIVE, 1)) and not p.apply(Event(ARRIVE, 2)) and p.decision_due()
    assert p.apply(Event(STREAM_CLOSED, 0)) and not p.apply(Event(STREAM_CLOSED, 0))
    for task in (2, 3):
        p.act(STANDARD)
        finish(p, task)
    assert p.status == SOLVED


def test_the_heavier_workflow_stands_first_and_the_lighter_one_can_be_deferred() -> None:
    p = pit(1.0, 3.0, 1.0)
    p.apply(Event(ARRIVE, 0))
    assert not p.mask()[DEFER]
    p.apply(Event(ARRIVE, 1))
    assert (
        p.mask()[DEFER] and p.mask()[STANDARD] and not p.mask()[STANDARD + N_VERBS]
    )  # one slot: the same function, rank, octave
    p.act(DEFER)
    assert not p.mask()[DEFER]
    p.act(STANDARD)
    assert int(p.calls()["task"][0]) == 2  # of the heavier one
    assert not p.mask()[STANDARD]
    p.apply(Event(ARRIVE, 2))  # nobody is deferred any more
    assert p.mask()[STANDARD]


def test_what_an_ended_workflow_has_not_begun_is_given_up() -> None:
    p = pit(1.0, 1.0, tasks=(TaskSpec(id="extra", function="a", seconds=1.0, optional=True),))
    assert p.task_ids == ["0/one", "0/extra", "0/two", "1/one", "1/two"]
    p.apply(Event(ARRIVE, 0))
    for task in (0, 2):
        p.act(STANDARD)
        finish(p, task)
    assert p.tasks()["state"].tolist()[:3] == [DONE, GIVEN_UP, DONE]
    p.apply(Event(ARRIVE, 1))
    assert p.task_state(3) == READY
