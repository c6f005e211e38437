"""One measurable behaviour per level that shows its teaching was learned: figures of episode records, by name.

A level's file names its probe. Records are `fq_env.state.EPISODE`, any shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Probe(NamedTuple):
    """`of` records -> number; `words` for tables; `better`: -1 if less of it is better, 1 if more; the `fields` read."""

    words: str
    better: int
    fields: tuple[str, ...]
    of: Callable[[Any], float]


def _mean(field: str) -> Callable[[Any], float]:
    return lambda records: float(records[field].mean())


def _ratio(above: str, below: str) -> Callable[[Any], float]:
    return lambda records: float(records[above].sum() / max(float(records[below].sum()), 1e-9))


def _late(records: Any) -> float:
    return float(np.quantile(records["makespan"] / records["lb"], 0.95))


def _quality_per_cost(records: Any) -> float:
    """Quality bought on the critical path, over its price in units of the cheapest run's mean call."""
    unit = float(records["cost_low"].sum()) / max(float(records["calls"].sum()), 1e-9)
    return float(records["critical_quality"].sum()) * unit / max(float(records["critical_cost"].sum()), 1e-9)


PROBES: dict[str, Probe] = {
    "wrong_calls": Probe("wrong calls", -1, ("wrong_calls",), _mean("wrong_calls")),
    "poor_calls": Probe("poor calls", -1, ("poor_calls",), _mean("poor_calls")),
    "cost_over_best": Probe("cost over the cheapest plan's", -1, ("cost", "cost_low"), _ratio("cost", "cost_low")),
    "overlap": Probe("calls at a time", 1, ("busy", "makespan"), _ratio("busy", "makespan")),
    "critical_wait": Probe(
        "wait of critical tasks over makespan", -1, ("critical_wait", "makespan"), _ratio("critical_wait", "makespan")
    ),
    "short": Probe("decisions short of tokens or money", -1, ("short", "steps"), _ratio("short", "steps")),
    "cold_starts_per_call": Probe("cold starts per call", -1, ("cold_starts", "calls"), _ratio("cold_starts", "calls")),
    "quality_per_cost": Probe(
        "quality per cost on the critical path",
        1,
        ("cost_low", "calls", "critical_quality", "critical_cost"),
        _quality_per_cost,
    ),
    "outage_calls": Probe("calls begun in an outage, of all", -1, ("outage_calls", "calls"), _ratio("outage_calls", "calls")),
    "stale_calls": Probe("calls with stale inputs, of all", -1, ("stale_calls", "calls"), _ratio("stale_calls", "calls")),
    "echo_calls": Probe(
        "calls for what is being made already, of all", -1, ("echo_calls", "calls"), _ratio("echo_calls", "calls")
    ),
    "decayed_calls": Probe(
        "calls begun in a decayed pool, of all", -1, ("decayed_calls", "calls"), _ratio("decayed_calls", "calls")
    ),
    "changed_calls": Probe("calls of a changed API, of all", -1, ("changed_calls", "calls"), _ratio("changed_calls", "calls")),
    "slowdown": Probe("weighted mean of flow time over its bound", -1, ("slowdown",), _mean("slowdown")),
    "total": Probe("total score", 1, ("total",), _mean("total")),
    "gated_calls": Probe("calls before a closed gate, of all", -1, ("gated_calls", "calls"), _ratio("gated_calls", "calls")),
    "fetches": Probe("calls that had to fetch their inputs, of all", -1, ("fetches", "calls"), _ratio("fetches", "calls")),
    "late": Probe("outputs after the deadline", -1, ("late",), _mean("late")),
    "p95_makespan": Probe("95th percentile of makespan over bound", -1, ("makespan", "lb"), _late),
}


def probe(name: str, records: np.ndarray) -> float | None:
    """The figure of these records; None for what has totals only (a proven optimum)."""
    return PROBES[name].of(records) if set(PROBES[name].fields) <= set(records.dtype.names or ()) else None
