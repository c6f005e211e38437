"""A level draws nothing that its system lacks, and no number that microseconds and micro-units cannot hold."""

from __future__ import annotations

import numpy as np
import pytest

from fq_env.level import Level
from fq_env.players import play
from tests.fq_env.workflow_levels import level_data, level_of

CHAIN = {"shapes": {"chain": 1}, "tasks": [10, 10], "width": [1, 1], "siblings": [0, 0]}


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        ({"functions": [1, 4]}, r"draw.functions = \[1, 4\]: must be a range within 1..3, the functions of the system"),
        ({"functions": [0, 2]}, "within 1..3"),
        ({"models": [1, 1]}, "draw.models .* within 1..0"),
        ({"places": [1, 65]}, "draw.places .* within 1..64"),
        ({"memory": [1, 5]}, "draw.memory .* within 1..0"),
        ({"seconds": [0.0, 1.0]}, "greater than or equal to 0.001"),
        ({"noise_cv": [0.0, 2.5]}, "less than or equal to 2"),
        ({"straggler_rate": [0.0, 1.5]}, "less than or equal to 1"),
        ({"earlier": [-1]}, "greater than or equal to 0"),
    ],
)
def test_a_draw_beyond_the_system_is_refused(draw, told):
    with pytest.raises(ValueError, match=told):
        level_of(CHAIN, draw=draw)


def test_times_end_before_the_clock_does():
    """The longest call x 10 tasks x horizon 40 stays below 1e12 s, which microseconds can count, or is refused."""
    data = level_data(CHAIN, draw={"noise_cv": [0.5, 0.5]})
    for function in data["system"]["functions"].values():
        function["standard"]["seconds"] = 1e8
    episodes = play(Level.model_validate(data), "fifo", split="validation", n=32)
    assert np.isfinite(episodes["total"]).all() and (episodes["makespan"] > 1e8).all() and (episodes["status"] == 1).all()
    data["draw"]["seconds"] = [20.0, 200.0]
    with pytest.raises(
        ValueError, match=r"a call or load may last 9.*e\+10 s; times 10 tasks and horizon 40 .* take shorter ones"
    ):
        Level.model_validate(data)


def test_a_price_that_cannot_be_counted_is_refused():
    data = level_data(CHAIN)
    data["system"]["functions"]["carve"]["standard"] |= {"seconds": 1e4, "price": 1e4}
    with pytest.raises(ValueError, match=r"may cost 1e\+08; at most 9e\+06"):
        Level.model_validate(data)


def test_rates_are_refused_where_tokens_cannot_be_timed():
    data = level_data(CHAIN, draw={"rate": [0.5, 2.0]})
    data["system"]["pools"]["bench"]["rate"] = 9e4
    with pytest.raises(ValueError, match=r"draw.rate times pools.bench.rate must lie between"):
        Level.model_validate(data)


def test_a_goal_cannot_be_held_from_the_start():
    order = {"needs": {"polish": ["carve"]}, "goals": ["polish", "carve"], "held": 0.5, "distractors": [0, 1]}
    data = level_data(CHAIN)
    del data["workflow"]
    data["system"]["order_hidden"] = True
    with pytest.raises(ValueError, match="'carve' needs nothing, so it may be held from the start"):
        Level.model_validate(data | {"order": order})
    Level.model_validate(data | {"order": order | {"held": 0.0}})
