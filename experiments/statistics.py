"""Arithmetic and tables of an evaluation: players on the same instances, means with bootstrap intervals, paired differences.

Knows arrays of episode records and nothing of how they were played.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RESAMPLES = 4000  # of each bootstrap: the ends of a 95 % interval are then good to about 2 % of its width
TRAINED = "trained"  # the name of the policy among the players
EXACT = "exact_best"  # the name of the proven optimum, where there is one


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the mean of `values` (n,); the same for the same values."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 200):  # in blocks, so that 2,048 values do not take 130 MB
        means[start : start + 200] = values[rng.integers(0, n, (min(200, RESAMPLES - start), n))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def perf(total: float, random: float, best: float) -> float:
    """(total - random) / (best - random): 0 plays like chance, 1 like the best known; 0 if those two are equal."""
    return (total - random) / (best - random) if best != random else 0.0


def compare(episodes: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One flat row per player, from the episodes (n,) of each on the same n instances in the same order.

    A row: `player`, `n`, `mean`, `low`, `high` (score and its 95 % interval), `perf`, `base`, `efficiency`, `stability`,
    `optimization`, `makespan` (mean, s), `cold_starts_per_call`, `wrong_calls` (per episode), `solved` (share), `bound` (true
    for a proven optimum) and, where there is a trained policy and this is another player, `difference`, `difference_low`,
    `difference_high` (trained minus this player, paired).
    The best known of `perf` is the proven optimum if it is among the players, else the best of those that are not trained.

    Raises:
        ValueError: players were not compared on the same instances.
    """
    _require_paired(episodes)
    totals = {name: np.asarray(rows["total"], np.float64) for name, rows in episodes.items()}
    others = [t.mean() for name, t in totals.items() if name != TRAINED]
    best = float(totals[EXACT].mean() if EXACT in totals else max(others))
    chance = float(totals["random"].mean())
    table = []
    for name, rows in episodes.items():
        total = totals[name]
        low, high = interval(total)
        row: dict[str, Any] = {"player": name, "n": len(total), "mean": float(total.mean()), "low": low, "high": high}
        row["perf"] = perf(row["mean"], chance, best)
        row["bound"] = name == EXACT
        for part in ("base", "efficiency", "stability", "optimization", "makespan", "wrong_calls"):
            row[part] = float(rows[part].mean()) if part in (rows.dtype.names or ()) else None
        if "calls" in (rows.dtype.names or ()):
            row["cold_starts_per_call"] = float(rows["cold_starts"].sum() / max(1, rows["calls"].sum()))
            row["solved"] = float((rows["status"] == 1).mean())
        else:
            row["cold_starts_per_call"] = row["solved"] = None
        if TRAINED in totals and name != TRAINED:
            difference = totals[TRAINED] - total
            row["difference"] = float(difference.mean())
            row["difference_low"], row["difference_high"] = interval(difference)
        table.append(row)
    return table


def _require_paired(episodes: Mapping[str, np.ndarray]) -> None:
    seeds = [rows["instance_seed"] for rows in episodes.values() if "instance_seed" in (rows.dtype.names or ())]
    sizes = {len(rows) for rows in episodes.values()}
    if len(sizes) != 1 or any(not np.array_equal(seeds[0], other) for other in seeds[1:]):
        raise ValueError("the players did not play the same instances")


def markdown(table: list[dict[str, Any]], probe: str = "") -> str:
    """The table as Markdown, best score first; `probe` names the field that shows whether the teaching was learned."""
    columns = {"makespan": ("makespan (s)", ".2f"), "cold_starts_per_call": ("cold starts per call", ".3f")}
    if table and table[0].get(probe) is not None:
        columns.setdefault(probe, (probe.replace("_", " "), ".3f"))
    columns["solved"] = ("solved", ".3f")
    names = " | ".join(title for title, _ in columns.values())
    lines = [
        f"| player | score [95 %] | perf | {names} | trained minus player [95 %] |",
        "|---|---|---|" + "---|" * len(columns) + "---|",
    ]
    for row in sorted(table, key=lambda r: -r["mean"]):
        name = f"**{row['player']}**" if row["player"] == TRAINED else row["player"]
        difference = "–"
        if row.get("difference") is not None:
            difference = f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        score = f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        cells = " | ".join("–" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items())
        lines.append(f"| {name} | {score} | {row['perf']:.3f} | {cells} | {difference} |")
    best = "the proven optimum" if any(r["bound"] for r in table) else "the best player that is not trained"
    lines += ["", f"{table[0]['n']} instances, the same for every player. perf: 0 = random, 1 = {best}."]
    return "\n".join(lines)
