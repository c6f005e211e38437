"""How well the Pit's detectors find trouble: `python -m experiments.health`.

Streams of calls run through a real Pit, calm ones and such with trouble put in: durations half as long again, of a pool or
one function, or rising slowly, failures, a changed API, outages of two pools at once or of one. Judged are the patterns
that it finds, how soon, what it cries for nothing, the chance of failure that it gives, and what healing is worth.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import MISSING

from experiments import cli
from experiments.errors import ExperimentError
from experiments.files import check_out, write_json
from experiments.health_streams import KINDS, Plan, Stream, draw
from experiments.side_by_side import pool
from pit import layout

SPLITS = {"validation": 0, "test": 1 << 32}  # their first seeds
GRACE = 10  # calls after its end in which trouble may still be found
PATTERNS = ("degradation", "api_change", "resonance", "recovery")
WANTED = {"precision": 0.9, "recall": 0.9, "delay": 15.0, "alarms": 0.5}  # at least, at least, at most, at most
HEALED = 100  # calls after a step on which estimates are compared
BINS = 10  # of predicted chances


@dataclass
class HealthConfig:
    """Keys of the command; explained in `configs/health.yaml`."""

    episodes: int = MISSING
    split: str = MISSING
    jobs: int = MISSING
    fast: bool = MISSING
    out: str | None = MISSING


class Finding(NamedTuple):
    """A pattern that the record of a pool, or of one of its functions, took on: which, and whether rightly."""

    pattern: str
    right: bool


@dataclass
class Episode:
    """What one stream gave. `wanted`: patterns that should have been found; `delays`: calls concerned until they first were.

    `outcomes`: (chance given, failed) of each call; `off`: how wrong estimates were after a step; `lost`: calls of a changed
    API.
    """

    kind: str
    calls: int = 0
    lost: int = 0
    findings: list[Finding] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    delays: dict[str, int] = field(default_factory=dict)
    outcomes: list[tuple[float, bool]] = field(default_factory=list)
    off: list[float] = field(default_factory=list)


def is_right(pattern: str, stream: Stream, pool: int, function: int, number: int) -> bool:
    """Whether a record that takes on a pattern at this call is right to do so."""
    now = stream.wrong(pool, function, number)
    lately = now or stream.wrong(pool, function, number - GRACE)
    if pattern == "recovery":
        return not now
    if pattern == "api_change":
        return any(trouble.changed for trouble in now)
    if pattern == "resonance":
        return bool(lately) and any(
            stream.wrong(p, -1, number) or stream.wrong(p, -1, number - GRACE) for p in range(stream.plan.pools) if p != pool
        )
    return any(not trouble.changed for trouble in lately)


def finding(stream: Stream, row: int, number: int) -> Finding:
    """What the record of this row has just taken on."""
    functions, every = stream.plan.functions, len(stream.pit.function_names)
    pattern = layout.PATTERNS[stream.pit.patterns()[row]]
    pool, function = (row - 3 * every, -1) if row >= 3 * every else divmod(row // 3, functions)
    return Finding(pattern, is_right(pattern, stream, pool, function, number))


def main_pattern(plan: Plan) -> str:
    """What a stream's trouble is to be called."""
    if plan.troubles[0].changed:
        return "api_change"
    return "resonance" if len(plan.troubles) > 1 else "degradation"


def follow(plan: Plan, heal: bool = True) -> Episode:
    """Runs a stream and notes what the Pit finds, and how many calls concerned that took."""
    stream, episode = Stream(plan, heal), Episode(plan.kind)
    patterns = stream.pit.patterns()
    before = patterns.copy()
    trouble = plan.troubles[0] if plan.troubles else None
    during = after = 0
    for call in stream.calls():
        episode.calls += 1
        episode.outcomes.append((call.chance, call.error != layout.OK))
        episode.lost += call.error == layout.ERR_INVALID
        if trouble is not None and call.pool == trouble.pool and trouble.function in (-1, call.function):
            wrong = bool(stream.wrong(call.pool, call.function, call.number))
            during += wrong
            after += during > 0 and not wrong
            if plan.kind == "step" and wrong and during <= HEALED and call.error == layout.OK:
                episode.off.append(min(1.0, call.off))
        rows = np.flatnonzero(patterns != before)
        if len(rows):
            before = patterns.copy()
            found = [finding(stream, int(row), call.number) for row in rows]
            episode.findings += found
            note_delays(plan, episode, found, during, after)
    if trouble is not None:
        main = main_pattern(plan)
        episode.wanted = [main, *(["recovery"] if main in episode.delays and not plan.timed else [])]
    return episode


def note_delays(plan: Plan, episode: Episode, found: list[Finding], during: int, after: int) -> None:
    """Notes what was found for the first time, after `during` calls of the trouble, or `after` calls since its end."""
    right = {finding.pattern for finding in found if finding.right}
    if plan.troubles and during > 0:
        main = main_pattern(plan)
        if main in right and main not in episode.delays:
            episode.delays[main] = during
        if "recovery" in right and main in episode.delays and after > 0:
            episode.delays.setdefault("recovery", after)


def run(job: tuple[str, int]) -> tuple[Episode, list[float]]:
    """One stream, and the errors of estimates that it has where nothing is healed (steps alone)."""
    plan = draw(*job)
    return follow(plan), follow(plan, heal=False).off if plan.kind == "step" else []


# --------------------------------------------------------------------------- what it comes to
def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def quantiles(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Median and 90th percentile."""
    return (float(np.median(values)), float(np.quantile(values, 0.9))) if len(values) else (None, None)


def pattern_row(pattern: str, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Precision over all that was found, recall over all that should have been."""
    found = [f for episode in episodes for f in episode.findings if f.pattern == pattern]
    wanted = [episode for episode in episodes if pattern in episode.wanted]
    delays = [episode.delays[pattern] for episode in wanted if pattern in episode.delays]
    median, p90 = quantiles(delays)
    return {
        "pattern": pattern, "found": len(found), "precision": share(sum(f.right for f in found), len(found)),
        "wanted": len(wanted), "recall": share(len(delays), len(wanted)), "delay": median, "delay_p90": p90,
    }  # fmt: skip


def kind_row(kind: str, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Streams of one kind: how many troubles were found, how soon; alarms without any; the chances that were given."""
    own = [episode for episode in episodes if episode.kind == kind]
    mains = [(episode.wanted[0], episode) for episode in own if episode.wanted]
    delays = [episode.delays[main] for main, episode in mains if main in episode.delays]
    median, p90 = quantiles(delays)
    calls = sum(episode.calls for episode in own)
    false = sum(not f.right and f.pattern != "recovery" for episode in own for f in episode.findings)
    return {
        "kind": kind, "episodes": len(own), "calls": calls, "recall": share(len(delays), len(mains)) if mains else None,
        "delay": median, "delay_p90": p90, "false_per_1000": 1000.0 * share(false, calls),
        **brier([outcome for episode in own for outcome in episode.outcomes]),
    }  # fmt: skip


def brier(outcomes: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Brier score of the chances that were given, that of the base rate, and the error of calibration."""
    chance, failed = np.array(outcomes, float).T
    rate = failed.mean()
    bins = np.minimum((chance * BINS).astype(int), BINS - 1)
    off = [abs((chance - failed)[bins == k].sum()) for k in range(BINS)]
    return {
        "brier": float(np.mean((chance - failed) ** 2)), "base": float(rate * (1.0 - rate)),
        "calibration_error": float(sum(off) / len(chance)),
    }  # fmt: skip


def table(found: Sequence[tuple[Episode, list[float]]], split: str) -> dict[str, Any]:
    """All figures."""
    episodes = [episode for episode, _ in found]
    api = [episode.lost for episode in episodes if episode.kind == "api"]
    return {
        "split": split,
        "patterns": [pattern_row(pattern, episodes) for pattern in PATTERNS],
        "kinds": [kind_row(kind, episodes) for kind in KINDS],
        "chance": brier([outcome for episode in episodes for outcome in episode.outcomes]),
        "healing": {
            "estimate_error": float(np.mean([x for episode in episodes for x in episode.off])),
            "estimate_error_unhealed": float(np.mean([x for _, off in found for x in off])),
            "calls": HEALED,
            "api_calls_lost": float(np.mean(api)),
        },
    }


def short(found: dict[str, Any]) -> list[str]:
    """What falls short of what is wanted, in words; nothing if all is well."""
    said = []
    for row in found["patterns"]:
        said += [f"{row['pattern']}: {key} {row[key]:.3f}" for key in ("precision", "recall") if row[key] < WANTED[key]]
    kinds = {row["kind"]: row for row in found["kinds"]}
    delay, alarms = kinds["step"]["delay"], kinds["calm"]["false_per_1000"]
    if delay is None or delay > WANTED["delay"]:
        said.append(f"step: delay {delay}")
    if alarms > WANTED["alarms"]:
        said.append(f"calm: {alarms:.2f} alarms per 1,000 calls")
    if found["chance"]["brier"] >= found["chance"]["base"]:
        said.append("chance: Brier score not below that of the base rate")
    return said


def markdown(found: dict[str, Any]) -> str:
    """The tables."""

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "| pattern | found | precision | injected | recall | median delay, calls | 90 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["patterns"]:
        lines.append(
            f"| {row['pattern']} | {row['found']} | {row['precision']:.3f} | {row['wanted']} | {row['recall']:.3f} "
            f"| {cell(row['delay'], '.0f')} | {cell(row['delay_p90'], '.0f')} |"
        )
    lines += [
        "",
        "| streams | calls | recall | median delay, calls | 90 % | false alarms per 1,000 calls | Brier | base rate's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["kinds"]:
        lines.append(
            f"| {row['kind']} ({row['episodes']}) | {row['calls']:,} | {cell(row['recall'], '.3f')} "
            f"| {cell(row['delay'], '.0f')} | {cell(row['delay_p90'], '.0f')} | {row['false_per_1000']:.2f} "
            f"| {row['brier']:.4f} | {row['base']:.4f} |"
        )
    chance, healing = found["chance"], found["healing"]
    lines += [
        "",
        f"Chance of failure: Brier {chance['brier']:.4f}, base rate {chance['base']:.4f}, calibration error "
        f"{chance['calibration_error']:.3f}. Estimates in the {healing['calls']} calls after a step are off by "
        f"{healing['estimate_error']:.3f} with healing, {healing['estimate_error_unhealed']:.3f} without; a changed API costs "
        f"{healing['api_calls_lost']:.1f} calls until it is configured.",
    ]
    return "\n".join(lines)


def health(cfg: HealthConfig) -> dict[str, Any]:
    """Measures, prints and writes the tables."""
    if cfg.split not in SPLITS:
        raise ExperimentError(f"split={cfg.split}: must be {' or '.join(SPLITS)}")
    if cfg.episodes < 10 or cfg.jobs < 1:
        raise ExperimentError(f"episodes={cfg.episodes} jobs={cfg.jobs}: must be at least 10 and 1")
    check_out(cfg.out)
    count = max(10, cfg.episodes // 10) if cfg.fast else cfg.episodes
    jobs = [(kind, SPLITS[cfg.split] + i) for kind in KINDS for i in range(count)]
    with pool(cfg.jobs) as workers:
        found = table(list(workers.map(run, jobs, chunksize=8)), cfg.split)
    print(markdown(found))
    for text in short(found):
        print(f"short of what is wanted: {text}", file=sys.stderr)
    if cfg.out is not None:
        write_json(Path(cfg.out), found)
    return found


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(lambda: health(cli.read("health", HealthConfig, sys.argv[1:], __doc__ or "")), HealthConfig)


if __name__ == "__main__":
    main()
