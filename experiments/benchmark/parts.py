"""The parts of `python -m experiments.benchmark env`, and each level's headline figures, which its page shows."""

from __future__ import annotations

import os
from typing import Any

from experiments.benchmark.environments import SIZES, adapter_table, kernel_table, threads_table, vector_table, wanted
from experiments.benchmark.growth import tasks_table
from experiments.benchmark.peers import QUICK, single_table, twin_table


def operations_table(cfg: Any) -> dict[str, Any]:
    """`operations.operations_table`; the module comes with kernels, which take their time to import."""
    from experiments.benchmark import operations

    return operations.operations_table(cfg)


PARTS = {
    "kernel": kernel_table,
    "operations": operations_table,
    "threads": threads_table,
    "single": single_table,
    "vector": vector_table,
    "adapter": adapter_table,
    "twin": twin_table,
    "tasks": tasks_table,
}


def load() -> float:
    """How many processes wanted a core during the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def env_tables(cfg: Any) -> dict[str, Any]:
    """The tables about stepping that were asked for, the load of the machine before and after, and the headlines."""
    before = load()
    print(f"load of the machine: {before} on {os.cpu_count()} cores", flush=True)
    figures = {name: table(cfg) for name, table in PARTS.items() if cfg.part in ("all", name)}
    print(f"\nload of the machine: {before} before, {load()} after (on an idle machine this process alone makes 1)")
    return {"load": [before, load()], "levels": [headlines(level, figures) for level in cfg.levels], **figures}


def headlines(level: int, figures: dict[str, Any]) -> dict[str, Any]:
    """What was measured about one level, in a few numbers (medians)."""
    from fq_env import env_id

    row: dict[str, Any] = {"level": level}
    name = f"level {level}"
    if "kernel" in figures:
        found = figures["kernel"][name][f"n = {SIZES[0]}"]
        ns = found["ns_per_step"]["median"]
        row |= {"steps_per_cpu_second": round(1e9 / ns), "wanted_steps_per_cpu_second": round(wanted(level))}
        row |= {"ns_per_step": round(ns, 1), "times_cartpole": round(found["cartpole_ratio"]["median"], 1)}
    if "single" in figures:
        row["times_cartpole_through_gym_make"] = round(figures["single"][env_id(level)]["cartpole_ratio"]["median"], 2)
    if name in figures.get("threads", {}):
        row["two_threads_over_one"] = round(figures["threads"][name]["ratio"]["median"], 2)
    if name in figures.get("twin", {}) and QUICK in figures["twin"][name]["ratios"]:
        row["times_plain_python"] = round(figures["twin"][name]["ratios"][QUICK]["median"], 2)
    return row
