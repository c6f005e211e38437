"""One measurable behaviour per level that shows its teaching was learned: figures of episode records, by name.

A level's file names its probe. Records are `fq_env.state.EPISODE`, any shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Probe(NamedTuple):
    """`of` records -> number; `words` for tables; `better`: -1 if less of it is better, 1 if more."""

    of: Callable[[Any], float]
    words: str
    better: int


def _ratio(records: Any, above: str, below: str) -> float:
    return float(records[above].sum() / max(records[below].sum(), 1e-9))


PROBES: dict[str, Probe] = {
    "wrong_calls": Probe(lambda r: float(r["wrong_calls"].mean()), "wrong calls", -1),
    "poor_calls": Probe(lambda r: float(r["poor_calls"].mean()), "poor calls", -1),
    "cost_over_best": Probe(lambda r: _ratio(r, "cost", "cost_low"), "cost over the cheapest plan's", -1),
    "overlap": Probe(lambda r: _ratio(r, "busy", "makespan"), "calls at a time", 1),
    "critical_wait": Probe(lambda r: _ratio(r, "critical_wait", "makespan"), "share of the makespan that critical tasks waited", -1),
    "short": Probe(lambda r: _ratio(r, "short", "steps"), "share of decisions short of tokens or money", -1),
    "cold_starts_per_call": Probe(lambda r: _ratio(r, "cold_starts", "calls"), "cold starts per call", -1),
    "quality_per_cost": Probe(
        lambda r: _ratio(r, "critical_quality", "critical_cost") * float(r["cost_low"].mean()) * 1e6 / float(r["calls"].mean()),
        "quality per cost on the critical path",
        1,
    ),
    "p95_makespan": Probe(
        lambda r: float(np.quantile(r["makespan"] / r["lb"], 0.95)), "95th percentile of makespan over bound", -1
    ),
}  # fmt: skip


def probe(name: str, records: np.ndarray) -> float | None:
    """The figure of these records; None for what has totals only (a proven optimum)."""
    return PROBES[name].of(records) if "makespan" in (records.dtype.names or ()) else None
