"""A level as the kernels read it: one record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from fq_env.level import Level, Order
from fq_env.state import LEVEL
from pit.spec import VARIANTS


def level_record(level: Level, template: np.ndarray, size: int) -> np.ndarray:
    """A level's parameters as the generator reads them, (1,) `fq_env.state.LEVEL`."""
    row = np.zeros(1, LEVEL)
    draw, functions = level.draw, list(level.system.functions)
    for name in _RANGES:
        row[name][0] = getattr(draw, name) or (0.0, 0.0)
    for name in ("functions", "models", "places", "memory", "size"):
        row[name][0] = getattr(draw, name) or (0, 0)
    for name in ("slow", "outage", "crowd"):
        row[f"{name}_window"] = int(getattr(draw, f"{name}_seconds") * 1e6)
    row["config_time"] = int(draw.config_seconds * 1e6)
    for name in (
        "exclusive", "task_cv", "belief_cv", "load_cv", "failure_rate", "lost_rate", "slow_share", "slow_factor",
        "outage_failure", "outage_after", "drift_failure", "change_after",
    ):  # fmt: skip
        row[name] = getattr(draw, name)
    for p, pool in enumerate(level.system.pools):
        row["outages"][0, p], row["crowded"][0, p] = draw.outages.get(pool, 0.0), draw.crowded.get(pool, 0.0)
        row["drift"][0, p], row["api_change"][0, p] = draw.drift.get(pool, 0.0), draw.api_change.get(pool, 0.0)
        row["domains"][0, p] = draw.fault_domains.get(pool, p)
    for name, table in (("outage", "outages"), ("crowd", "crowded"), ("drift", "drift"), ("change", "api_change")):
        row[f"any_{name}"] = row[table].any()
    for k, gate in enumerate(level.gates):
        at, room = (-1 if name is None else list(level.system.pools).index(name) for name in (gate.at, gate.pool))
        asked = -1 if gate.model is None else list(level.system.models).index(gate.model)
        row["gates"][0, k] = VARIANTS.index(gate.verb), at, room, gate.free, asked
        row["gate_after"][0, k] = gate.after
    row["n_gates"] = len(level.gates)
    row["earlier"][0, : len(draw.earlier)] = draw.earlier
    row["n_earlier"], row["horizon"], row["max_steps"] = len(draw.earlier), level.horizon, level.max_steps
    row["depth"], row["shortlist"] = level.lookahead_depth, level.lookahead_width
    for name in ("efficiency", "stability", "optimization"):
        row[f"w_{name}"] = getattr(level.score, name)
    row["late"] = level.score.late
    if level.order is not None:
        _write_order(row, level.order, functions)
    row["number"] = level.number
    row["key"] = int.from_bytes(hashlib.sha256(f"function-quest level {level.number} {level.name}".encode()).digest()[:8])
    row["template"], row["template_size"] = template.ctypes.data, size
    return row


def _write_order(row: np.ndarray, order: Order, functions: list[str]) -> None:
    """The part of a level's record that levels of hidden order have."""

    def bits(names: Iterable[str]) -> int:
        return sum(1 << functions.index(name) for name in set(names))

    row["order_hidden"], row["held"], row["distractors"][0], row["poor"] = 1, order.held, order.distractors, order.poor
    for f, name in enumerate(functions):
        needs = order.alternatives(name)
        row["needs"][0, f, : len(needs)] = [bits(x) for x in needs]
        row["n_needs"][0, f] = len(needs)
        for table in ("soft", "prefers", "spoils"):
            row[table][0, f] = bits(getattr(order, table).get(name, []))
    for k, goal in enumerate(order.goals):
        plans = order.plans(goal)
        row["plans"][0, k, : len(plans)] = [bits(plan) for plan in plans]
        row["n_plans"][0, k], row["useful"][0, k] = len(plans), bits(order.useful(goal))
    row["n_goals"] = len(order.goals)


_RANGES = (
    "seconds", "variant_seconds", "quality_gap", "load_seconds", "model_load", "hint_cv", "noise_cv", "money", "rate",
    "straggler_rate", "straggler_factor", "crowd", "fresh", "deadline", "onset", "drift_factor",
    "change_onset",
)  # fmt: skip
