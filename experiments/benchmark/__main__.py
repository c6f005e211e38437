"""How fast things are, beside others in the same run: `python -m experiments.benchmark env` (or `compile`, `train`, `decide`,
`conductor`).

All contestants of a table run in every round, one after the other, so that neighbours on the machine and its clock hit them
alike; what is printed is the median over rounds with [min..max].
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from experiments import cli
from experiments.benchmark.parts import PARTS, env_tables
from experiments.benchmark.starting import compile_table
from experiments.errors import ExperimentError
from experiments.files import check_out, write_json
from fq_env.level_files import LEVELS
from pit.layout import MAX_TASKS

COMMANDS = ("env", "compile", "train", "decide", "conductor", "all")
LEARNED = [1, 11]  # levels of the tables about learners and decisions, unless others are asked for


@dataclass
class BenchmarkConfig:
    """Keys of the command; explained in `configs/benchmark.yaml`."""

    what: str = MISSING
    part: str = MISSING
    levels: list[int] | None = MISSING
    tasks: list[int] = MISSING
    rounds: int = MISSING
    seconds: float = MISSING
    threads: list[int] = MISSING
    networks: list[str] = MISSING
    workflows: int = MISSING
    out: str | None = MISSING


def benchmark(cfg: BenchmarkConfig) -> dict[str, Any]:
    """Runs what was asked for, prints it and, if asked, writes it as JSON."""
    if cfg.what not in COMMANDS:
        raise ExperimentError(f"what={cfg.what}: must be one of {', '.join(COMMANDS)}")
    if cfg.part not in ("all", *PARTS):
        raise ExperimentError(f"part={cfg.part}: must be one of {', '.join(PARTS)}, all")
    if cfg.rounds < 1 or cfg.seconds <= 0 or cfg.levels == [] or cfg.workflows < 1:
        words = f"rounds={cfg.rounds} seconds={cfg.seconds} levels={cfg.levels} workflows={cfg.workflows}"
        raise ExperimentError(f"{words}: must be positive and not empty")
    if not cfg.tasks or min(cfg.tasks) < 2 or max(cfg.tasks) > MAX_TASKS:
        raise ExperimentError(f"tasks={cfg.tasks}: must be numbers of tasks from 2 to {MAX_TASKS}")
    check_out(cfg.out)
    figures: dict[str, Any] = {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()}
    figures |= {"rounds": cfg.rounds, "seconds": cfg.seconds}
    if cfg.what in ("env", "all"):
        figures |= env_tables(replace(cfg, levels=cfg.levels or list(LEVELS)))
    if cfg.what in ("compile", "all"):
        figures["start"] = compile_table()
    learned = replace(cfg, levels=cfg.levels or LEARNED)
    if cfg.what in ("train", "all"):
        from experiments.benchmark.learners import train_tables

        figures["train"] = train_tables(learned)
    if cfg.what in ("decide", "all"):
        from experiments.benchmark.deciding import decide_table

        figures["decide"] = decide_table(learned)
    if cfg.what in ("conductor", "all"):
        from experiments.benchmark.conducting import conductor_tables

        figures["conductor"] = conductor_tables(cfg)
    if cfg.out is not None:
        write_json(Path(cfg.out), figures)
        print(f"\nwritten: {cfg.out}")
    return figures


def main() -> None:
    """The command line; a first word without `=` is what to measure."""
    cli.one_thread_per_process()
    arguments = [f"what={a}" if i == 0 and "=" not in a and not a.startswith("-") else a for i, a in enumerate(sys.argv[1:])]
    cli.guarded(lambda: benchmark(cli.read("benchmark", BenchmarkConfig, arguments, __doc__ or "")), BenchmarkConfig)


if __name__ == "__main__":
    main()
