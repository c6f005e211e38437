"""Strategies on real work: `python -m experiments.examples`.

The example workflows of the conductor really run, repeat after repeat, under every strategy in turn, on the same machine. What
is compared is declared beforehand (`score`), differences are paired within a repeat, and every run is verified: its journal is
folded again, and each observation, mask and call must come out bit for bit. The policies come from

    python -m experiments.calibrate levels=examples/NAME/NAME_level.yaml
    python -m experiments.train level=examples/NAME/NAME_level.yaml
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.files import check_out, write_json
from experiments.sources import ROOT

SCORES = ("total", "base", "efficiency", "stability", "optimization")
PRINTED = ("base", "makespan", "spent")  # beside the score


@dataclass
class ExamplesConfig:
    """Keys of the command; explained in `configs/examples.yaml`."""

    examples: list[str] = MISSING
    repeats: int = MISSING
    strategies: list[str] = MISSING
    bundles: str = MISSING
    score: str = MISSING
    runs: str = MISSING
    out: str | None = MISSING


def compare_examples(cfg: ExamplesConfig) -> dict[str, Any]:
    """Runs everything; per example the rows of every run and the table that `report` prints.

    Raises:
        ExperimentError: a score, example or strategy that there is not, or a run that did not end well.
        ConductorError: a bundle or a workflow that is refused, a run that does not verify.
    """
    from conductor.bundle import load_bundle
    from conductor.decision_maker import NEED_BUNDLE, STRATEGIES
    from conductor.trust import ANYONE
    from conductor.workflow import load_workflow

    if cfg.score not in SCORES or cfg.repeats < 2 or not set(cfg.strategies) <= set(STRATEGIES) or len(cfg.strategies) < 2:
        raise ExperimentError(
            f"score={cfg.score} repeats={cfg.repeats} strategies={cfg.strategies}: needed are one of {', '.join(SCORES)}, "
            f"at least 2, and at least two of {', '.join(STRATEGIES)}"
        )
    check_out(cfg.out)
    work = {}
    for name in cfg.examples:
        file = ROOT / "examples" / name / "workflow.yaml"
        if not file.is_file():
            raise ExperimentError(f"examples: there is no example {name!r}; known are {', '.join(known())}")
        need = set(cfg.strategies) & set(NEED_BUNDLE)
        work[name] = load_workflow(file), load_bundle(cfg.bundles.format(name=name), ANYONE) if need else None
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: defaultdict(list) for name in work}
    for repeat in range(cfg.repeats):
        turn = repeat % len(cfg.strategies)
        for name, (workflow, bundle) in work.items():
            for strategy in [*cfg.strategies[turn:], *cfg.strategies[:turn]]:
                row = run_once(workflow, strategy, bundle if strategy in NEED_BUNDLE else None, Path(cfg.runs))
                found[name][strategy].append(row)
                print(f"{repeat + 1}/{cfg.repeats} {name}, {strategy}: {cfg.score} {row[cfg.score]:.3f}", flush=True)
        if repeat and cfg.out is not None:
            write_json(Path(cfg.out), results(found, cfg.score))
    return results(found, cfg.score)


def known() -> list[str]:
    """The names of all examples."""
    return sorted(path.parent.name for path in (ROOT / "examples").glob("*/workflow.yaml"))


def run_once(workflow: Any, strategy: str, bundle: Any, runs: Path) -> dict[str, Any]:
    """One real run, verified: its scores, seconds, units and calls. Raises ExperimentError unless it was solved."""
    from conductor.orchestrator import begin
    from conductor.report import report_run, verify_run

    result = begin(workflow, runs, bundle=bundle, strategy=strategy)
    if result.status != "solved":
        raise ExperimentError(f"{result.folder}: this run has {result.status}, and was to be solved")
    verify_run(result.folder)
    report = report_run(result.folder)
    counts = {"calls": len(report.calls), "failed": sum(call.result != "ok" for call in report.calls)}
    loads = report.events["loaded"]
    return {**report.score, "makespan": report.makespan, "spent": report.spent, **counts, "loads": loads}


def results(found: dict[str, dict[str, list[dict[str, Any]]]], score: str) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals, and how far the first strategy is ahead of each other one, paired by repeat."""
    table: dict[str, Any] = {"score": score, "examples": {}}
    for name, strategies in found.items():
        first = next(iter(strategies))
        ahead = np.array([row[score] for row in strategies[first]])
        entry: dict[str, Any] = {"repeats": len(ahead), "strategies": {}, "leads": {}, "runs": dict(strategies)}
        for strategy, rows in strategies.items():
            values = np.array([row[score] for row in rows])
            low, high = statistics.interval(values)
            means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            entry["strategies"][strategy] = {**means, f"{score}_low": low, f"{score}_high": high}
            if strategy != first:
                low, high = statistics.interval(ahead - values)
                entry["leads"][strategy] = {"difference": float((ahead - values).mean()), "low": low, "high": high}
        table["examples"][name] = entry
    return table


def report(table: dict[str, Any]) -> str:
    """The tables as Markdown."""
    score = table["score"]
    lines = [
        f"| example | strategy | repeats | {score} [95 %] | lead of the first [95 %] | {' | '.join(PRINTED)} | calls | loads |"
    ]
    lines.append("|" + "---|" * (7 + len(PRINTED)))
    for name, entry in table["examples"].items():
        for strategy, row in entry["strategies"].items():
            lead = entry["leads"].get(strategy)
            shown = "" if lead is None else f"{lead['difference']:+.3f} [{lead['low']:+.3f}, {lead['high']:+.3f}]"
            values = " | ".join(f"{row[key]:.2f}" for key in (*PRINTED, "calls", "loads"))
            interval = f"{row[score]:.3f} [{row[f'{score}_low']:.3f}, {row[f'{score}_high']:.3f}]"
            lines.append(f"| {name} | {strategy} | {entry['repeats']} | {interval} | {shown} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()

    def work() -> None:
        print(report(compare_examples(cli.read("examples", ExamplesConfig, sys.argv[1:], __doc__ or ""))))

    cli.guarded(work, ExamplesConfig)


if __name__ == "__main__":
    main()
