"""Small levels that switch on what other tenants, outages, deadlines, ageing outputs and twins do, alone and together."""

from __future__ import annotations

from typing import Any

from fq_env.level import Level
from pit.layout import ENABLED
from tests.fq_env.workflow_levels import level_of

SHAPES = {"layered": 2, "pipelines": 1, "in_tree": 1, "out_tree": 1, "map_reduce": 1}
WORKFLOW: dict[str, Any] = {"shapes": SHAPES, "tasks": [6, 24], "width": [2, 5], "siblings": [0.2, 0.8]}
NOISE: dict[str, Any] = {"noise_cv": [0.0, 0.4], "hint_cv": [0.0, 0.3], "task_cv": 0.3, "belief_cv": 0.2, "load_cv": 0.2}
OUTAGES: dict[str, Any] = {
    "outages": {"bench": 0.3, "desk": 0.3, "yard": 0.15}, "fault_domains": {"bench": 1, "desk": 1}, "outage_seconds": 4.0,
    "outage_failure": 0.7, "outage_after": 0.4,
}  # fmt: skip
TENANTS: dict[str, Any] = {"crowded": {"bench": 0.6, "desk": 0.3}, "crowd": [0.2, 1.0], "crowd_seconds": 2.5}
DRIFT: dict[str, Any] = {
    "drift": {"bench": 0.6, "desk": 0.5}, "onset": [0.0, 0.8], "drift_factor": [1.5, 4.0], "drift_failure": 0.3,
}  # fmt: skip
STREAM: dict[str, Any] = {"workflows": [1, 5], "load": [0.4, 2.0], "gap_cv": [0.5, 2.0], "weights": [1, 1, 6]}
GATES: list[dict[str, Any]] = [
    {"verb": "premium", "pool": "bench", "free": 1},
    {"verb": "standard", "at": "bench", "model": "saw", "after": 0.5},
    {"verb": "lite", "at": "bench", "pool": "desk", "free": 1, "after": 1.0},
    {"verb": "standard", "at": "desk", "pool": "yard", "free": 1, "after": 0.01},
]
CHANGES: dict[str, Any] = {
    "api_change": {"bench": 0.5, "desk": 0.4}, "change_onset": [0.0, 0.6], "change_after": 0.3, "config_seconds": 3.0,
}  # fmt: skip
LATE: dict[str, Any] = {"efficiency": 1, "stability": 0, "optimization": 2, "late": 0.4}
AGES = {"draw_up": 6.0, "carve": 3.0}  # seconds that outputs stay fresh


def variant(pool: str, seconds: float, quality: float, **more: Any) -> dict[str, Any]:
    return {"pool": pool, "seconds": seconds, "quality": quality, "price": 0.01} | more


def small_system(**more: Any) -> dict[str, Any]:
    """Three pools, of which two share a memory, and three functions with cheaper variants elsewhere."""
    return {
        "verbs": ["lite", "standard", "premium", "queue", "hold"], "quality_flow": 0.6, "memory": {"store": 3},
        "pools": {"bench": {"places": 3, "memory": "store"}, "desk": {"places": 2, "memory": "store"}, "yard": {"places": 1}},
        "models": {"saw": {"size": 1, "load_seconds": 1.5, "price": 0.01}, "pen": {"size": 2, "load_seconds": 1.0}},
        "functions": {
            "draw_up": {
                "standard": variant("desk", 3.0, 0.9, model="pen"), "lite": variant("yard", 1.0, 0.5),
                "premium": variant("bench", 4.0, 1.0, units=2),
            },
            "carve": {"standard": variant("bench", 2.0, 0.9, model="saw"), "lite": variant("bench", 1.5, 0.6)},
            "polish": {"standard": variant("bench", 1.5, 0.8), "premium": variant("desk", 2.5, 1.0, model="pen")},
        },
    } | more  # fmt: skip


def gang_system(**more: Any) -> dict[str, Any]:
    """The same with a function that takes places of two pools."""
    system = small_system(reserve_seconds=4.0, **more)
    gang = system["functions"]["draw_up"]
    gang = gang | {"standard": gang["standard"] | {"also": {"yard": 1}}, "premium": gang["premium"] | {"also": {"desk": 2}}}
    return system | {"functions": system["functions"] | {"draw_up": gang}}


def ageing_system(**more: Any) -> dict[str, Any]:
    """The same with outputs that grow stale, and everything enabled."""
    system = small_system(verbs=list(ENABLED), stale_quality=0.3, back_off_seconds=1.0, max_attempts=30, **more)
    functions = {name: f | {"fresh_seconds": AGES.get(name)} for name, f in system["functions"].items()}
    return system | {"functions": functions}


def small_level(system: dict[str, Any], workflow: dict[str, Any] | None = None, **more: Any) -> Level:
    """`more`: other keys of the level."""
    return level_of(WORKFLOW | (workflow or {}), system=system, **more)


OUTAGE_LEVEL = small_level(
    small_system(fallback=True, back_off_seconds=2.0, verbs=["lite", "standard", "premium", "back_off", "queue"]),
    {"optional": [0.0, 0.2], "any_join": [0.0, 0.3]},
    draw=NOISE | OUTAGES | {"deadline": [0.8, 2.0], "failure_rate": 0.05, "lost_rate": 0.05}, score=LATE,
)  # fmt: skip
TENANT_LEVEL = small_level(
    small_system(ageing_seconds=3.0, fair=True), {"priorities": [0, 2]}, draw=NOISE | TENANTS | {"places": [2, 4]}
)
FRESH_LEVEL = small_level(
    ageing_system(),
    {"echoes": [0.2, 0.7], "optional": [0.0, 0.2], "any_join": [0.0, 0.3]},
    draw=NOISE | {"fresh": [0.3, 1.5], "lost_rate": 0.1, "earlier": [0, 10]},
)
STORE: dict[str, Any] = {"hot": 40, "warm": 60, "cold": 50, "fetch_seconds": {"warm": 0.7, "cold": 2.5}}  # sizes are below
STORE_LEVEL = small_level(
    ageing_system(store=STORE), {"echoes": [0.0, 0.4], "optional": [0.0, 0.2], "any_join": [0.0, 0.3], "tasks": [12, 36]},
    draw=NOISE | {"size": [0, 30], "fresh": [0.3, 1.5], "lost_rate": 0.15, "failure_rate": 0.05, "money": [1.0, 2.5]},
)  # fmt: skip
STORE_LEVELS: dict[str, Level] = {
    "store": STORE_LEVEL,
    "store without an end": small_level(
        small_system(store={"hot": 25, "fetch_seconds": {"warm": 1.0}}, fallback=True, time_out=2.5),
        {"tasks": [10, 24]},
        draw=NOISE | {"size": [5, 40], "lost_rate": 0.1},
    ),
}
SMALL_LEVELS: dict[str, Level] = STORE_LEVELS | {
    "outages, deadline, late": OUTAGE_LEVEL,
    "tenants": TENANT_LEVEL,
    "drift": small_level(small_system(time_out=3.0), draw=NOISE | DRIFT | {"straggler_rate": [0.0, 0.2], "lost_rate": 0.05}),
    "gangs": small_level(gang_system(time_out=3.0), draw=NOISE | {"failure_rate": 0.05}),
    "gangs among tenants": small_level(gang_system(ageing_seconds=2.0), draw=NOISE | TENANTS),
    "fresh, echoes": FRESH_LEVEL,
    "changes, healed": small_level(
        small_system(heal=True, fallback=True, verbs=list(ENABLED), back_off_seconds=1.0), {"tasks": [20, 60]},
        draw=NOISE | CHANGES | DRIFT | {"failure_rate": 0.1, "earlier": [20]},
    ),
    "changes": small_level(small_system(), draw=NOISE | CHANGES | {"lost_rate": 0.1}),
    "gates": small_level(small_system(max_attempts=9), draw=NOISE | DRIFT, gates=GATES[:3]),
    "streams": small_level(
        small_system(verbs=list(ENABLED)), {"stream": STREAM, "tasks": [1, 9], "optional": [0.0, 0.5], "any_join": [0.0, 0.5]},
        draw=NOISE | {"lost_rate": 0.1},
    ),
    "all at once": small_level(
        ageing_system(time_out=2.5, prewarm=True),
        {"echoes": [0.0, 0.5]},
        draw=NOISE | OUTAGES | TENANTS | DRIFT | {"fresh": [0.3, 1.0], "deadline": [0.8, 1.6], "lost_rate": 0.05}, score=LATE,
    ),
}  # fmt: skip
