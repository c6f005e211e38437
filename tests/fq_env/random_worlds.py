"""Random small levels in which every mechanic is on or off by chance: what only goes wrong in company shows here."""

from __future__ import annotations

import random
from typing import Any

from fq_env.level import Level
from pit.layout import ENABLED
from tests.fq_env.small_worlds import (
    CHANGES,
    DRIFT,
    GATES,
    NOISE,
    OUTAGES,
    SHAPES,
    TENANTS,
    ageing_system,
    gang_system,
    small_system,
)
from tests.fq_env.workflow_levels import level_of

STRAGGLERS: dict[str, Any] = {"straggler_rate": [0.0, 0.3], "slow_share": 0.4, "slow_factor": 2.0, "slow_seconds": 5.0}


def stream(rng: random.Random) -> dict[str, Any]:
    return {
        "workflows": [rng.randint(1, 2), rng.randint(2, 5)], "load": rng.choice(([0.3, 0.6], [0.5, 1.5], [2.0, 6.0])),
        "gap_cv": rng.choice(([0.0, 0.0], [0.5, 1.5], [1.0, 4.0])), "weights": rng.choice(([1.0], [1, 1, 8], [0.05, 3.0])),
    }  # fmt: skip


def random_system(rng: random.Random) -> dict[str, Any]:
    """One of the small systems with random policies, limits and verbs."""

    def maybe(chance: float, value: Any, default: Any) -> Any:
        return value if rng.random() < chance else default

    policies: dict[str, Any] = {
        "time_out": maybe(0.3, rng.uniform(1.2, 4.0), None), "prewarm": maybe(0.3, True, False),
        "rebalance": maybe(0.3, True, False), "fallback": maybe(0.4, True, False), "heal": maybe(0.5, True, False),
        "fair": maybe(0.3, True, False),
        "ageing_seconds": maybe(0.3, 3.0, 0.0), "quality_flow": rng.choice((0.0, 0.6, 1.0)),
        "warning_weight": rng.choice((0.01, 0.1)),
    }  # fmt: skip
    system = rng.choice((small_system, gang_system, ageing_system))(**policies)
    system["back_off_seconds"] = system.get("back_off_seconds") or maybe(0.4, 1.5, 0.0)
    system["max_attempts"] = maybe(0.3, rng.randint(2, 9), system.get("max_attempts", 0))
    system["verbs"] = [verb for verb in ENABLED if verb == "standard" or rng.random() < 0.75]
    if rng.random() < 0.25:
        limits = {name: {"rate": rng.uniform(0.5, 2.0), "burst": rng.randint(2, 4)} for name in system["pools"]}
        system["pools"] = {name: pool | limits[name] for name, pool in system["pools"].items()}
    if rng.random() < 0.4:
        caps = {"hot": rng.choice((20, 60)), "warm": rng.choice((None, 30)), "cold": rng.choice((None, 40))}
        system["store"] = caps | {"fetch_seconds": {"warm": rng.choice((0.0, 0.5)), "cold": rng.choice((0.5, 3.0))}}
    if rng.random() < 0.3:
        system["models"] = {name: model | {"keep_alive_seconds": 2.0} for name, model in system["models"].items()}
    return system


def random_draw(rng: random.Random, system: dict[str, Any]) -> dict[str, Any]:
    draw = dict(NOISE) if rng.random() < 0.8 else {}
    for part in (OUTAGES, TENANTS, DRIFT, CHANGES):
        draw |= part if rng.random() < 0.3 else {}
    draw |= {"failure_rate": rng.choice((0.0, 0.05, 0.3)), "lost_rate": rng.choice((0.0, 0.1, 0.3))}
    draw |= STRAGGLERS if rng.random() < 0.3 else {}
    draw |= {"deadline": [0.6, 2.0]} if rng.random() < 0.4 else {}
    draw |= {"money": [0.4, 1.5]} if rng.random() < 0.3 else {}
    draw |= {"fresh": [0.3, 1.5]} if any(f.get("fresh_seconds") for f in system["functions"].values()) else {}
    draw |= {"size": [0, 30]} if "store" in system else {}
    return draw | {"earlier": rng.choice(([0], [0, 10], [40])), "places": [2, 4]}


def random_level(seed: int) -> Level:
    """The level of this seed; the rare one that the door refuses is made anew without its gates."""
    rng = random.Random(seed)
    system = random_system(rng)
    draw = random_draw(rng, system)
    top = rng.randint(3, 16)
    workflow: dict[str, Any] = {
        "shapes": SHAPES, "tasks": [1, top], "width": [1, 5], "siblings": [0.2, 0.8],
        "optional": rng.choice(([0.0, 0.0], [0.0, 0.5])), "any_join": rng.choice(([0.0, 0.0], [0.0, 0.7])),
        "priorities": rng.choice(([0, 0], [0, 3])), "echoes": rng.choice(([0.0, 0.0], [0.1, 0.7])),
    }  # fmt: skip
    if rng.random() < 0.65:
        workflow["stream"] = stream(rng)
    gates = rng.sample(GATES, rng.choice((0, 0, 1, 3)))
    late = 0.4 if "deadline" in draw else 1.0
    score = {"efficiency": rng.choice((0, 1)), "stability": rng.choice((0, 1)), "optimization": 2, "late": late}
    parts = {"system": system, "draw": draw, "score": score, "horizon": rng.choice((1.5, 8, 60)), "max_steps": 400}
    try:
        return level_of(workflow, **parts, gates=gates)
    except ValueError:
        return level_of(workflow, **parts)
