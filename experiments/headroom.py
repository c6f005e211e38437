"""How much there is to gain on each level before anything is trained: `python -m experiments.headroom levels=1-7,11,12,14`.

Plays chance, the rules, the fitted rules and one step of lookahead over the best of them on the same validation instances.
perf: 0 = random, 1 = the best known (a proven optimum, or the best player here).
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.files import check_out, read_json, write_json
from experiments.probes import PROBES, probe
from experiments.readme import HEADROOM, headroom_text, readme_of, write_between
from experiments.side_by_side import pool

WANTED = 0.05  # headroom from which a level can carry a claim


@dataclass
class HeadroomConfig:
    """Keys of the command; explained in `configs/headroom.yaml`."""

    levels: Any = MISSING
    split: str = MISSING
    n: int = MISSING
    lookahead: int = MISSING
    rollouts: int = MISSING
    fit: int = MISSING
    jobs: int = MISSING
    fast: bool = MISSING
    out: str | None = MISSING
    readme: str | None = MISSING


def measure(word: str, split: str, n: int, few: int, rollouts: int, fit: int) -> dict[str, Any]:
    """The row of one level: players' mean totals, perf, makespans and probes, and what is to be gained."""
    from experiments.config import level_of
    from experiments.evaluate import LOOKAHEAD, Referee

    level = level_of(word)
    referee = Referee(level, fit)
    began = time.perf_counter()
    played = referee.players(split, n, names=referee.plain())
    hard = referee.players(split, min(few, n), names=[LOOKAHEAD], rollouts=rollouts)
    hard |= referee.players(split, n, names=[statistics.EXACT])
    rules = {name: float(records["total"].mean()) for name, records in played.items()}
    best_rule = max(rules, key=lambda name: rules[name])
    # Lookahead plays fewer instances: its lead there over its own rule, whose luck it shares, is added to the rule's score on
    # all. The optimum knows what no rule knows, shares no luck with one, and is found on all.
    means = rules | {
        name: rules[best_rule] + float(np.mean(records["total"] - played[best_rule]["total"][: len(records)]))
        for name, records in hard.items()
    }
    best = max(means.values())
    rows = []
    for name, records in (played | hard).items():
        row: dict[str, Any] = {"player": name, "n": len(records), "total": means[name]}
        row["perf"] = statistics.perf(means[name], means["random"], best)
        row["makespan"] = float(records["makespan"].mean()) if "makespan" in (records.dtype.names or ()) else None
        row["probe"] = probe(level.probe, records)
        if name in hard:
            low, high = statistics.interval(records["total"] - played[best_rule]["total"][: len(records)])
            row |= {"lead": means[name] - rules[best_rule], "lead_low": low, "lead_high": high, "over": best_rule}
        rows.append(row)
    tuned = max(v for k, v in rules.items() if k != "random")
    return {
        "level": level.number, "name": level.name, "split": split, "probe": level.probe, "rollouts": rollouts,
        "gain": best - means["random"], "headroom": 1.0 - statistics.perf(tuned, means["random"], best),
        "rows": rows, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def markdown(found: list[dict[str, Any]]) -> str:
    """The table of all levels: a row a player, best last, then what is to be gained."""
    lines = ["| level | player | score | perf | makespan (s) | probe |", "|---|---|---|---|---|---|"]
    for level in found:
        for row in sorted(level["rows"], key=lambda r: r["total"]):
            makespan = "–" if row["makespan"] is None else f"{row['makespan']:.1f}"
            figure = "–" if row["probe"] is None else f"{row['probe']:.3f}"
            lines.append(
                f"| {level['level']} {level['name']} | {row['player']} | {row['total']:.4f} | {row['perf']:.3f} "
                f"| {makespan} | {figure} |"
            )
    lines += ["", "| level | best − random | best − tuned rule, perf | probe |", "|---|---|---|---|"]
    for level in found:
        kind = "room for a claim" if level["headroom"] >= WANTED else "skill check"
        words = PROBES[level["probe"]].words
        lines.append(
            f"| {level['level']} {level['name']} | {level['gain']:.3f} | {level['headroom']:.3f} ({kind}) | {words} |"
        )
    return "\n".join(lines)


def headroom(cfg: HeadroomConfig) -> list[dict[str, Any]]:
    """Measures, prints and writes the table; the levels' rows."""
    from experiments.config import level_words

    if cfg.split not in ("train", "validation"):
        raise ExperimentError(f"split={cfg.split}: must be train or validation; headroom is looked at before the test")
    for key, low in (("n", 16), ("lookahead", 4), ("rollouts", 1), ("fit", 1), ("jobs", 1)):
        if getattr(cfg, key) < low:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be at least {low}")
    check_out(cfg.out)
    readme = readme_of(cfg.readme, "headroom", cfg.out, HEADROOM)
    share = 4 if cfg.fast else 1
    words = level_words(cfg.levels)
    rows = {}
    with pool(cfg.jobs) as workers:
        counts = (cfg.split, cfg.n // share, cfg.lookahead // share, max(1, cfg.rollouts // share), cfg.fit)
        running = {workers.submit(measure, word, *counts): word for word in words}
        for future in as_completed(running):
            word, row = running[future], future.result()
            rows[word] = row
            if cfg.out is not None:
                _keep(Path(cfg.out), row)
            print(
                f"level {word}: {row['gain']:.3f} to gain, headroom {row['headroom']:.3f} ({row['seconds']:.0f} s)",
                file=sys.stderr,
            )
    found = [rows[word] for word in words]
    print(markdown(found))
    if readme is not None and cfg.out is not None:
        write_between(Path(readme), headroom_text(read_json(Path(cfg.out))["levels"]), HEADROOM)
        print(f"\nrefreshed: {readme}")
    return found


def _keep(path: Path, row: dict[str, Any]) -> None:
    """Writes a level's row beside those of other levels."""
    kept = {r["level"]: r for r in (read_json(path)["levels"] if path.is_file() else [])}
    kept[row["level"]] = row
    write_json(path, {"levels": [kept[number] for number in sorted(kept)]})


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: headroom(cli.read("headroom", HeadroomConfig, sys.argv[1:], __doc__ or "")),
        HeadroomConfig,
        "interrupted; the levels that were finished are in the file that `out` names",
    )


if __name__ == "__main__":
    main()
