"""Contestants side by side: all run in every round, one after the other, so that neighbours on the machine hit them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Contestant:
    """`run()` does `steps` environment steps, the same ones each time it is called."""

    name: str
    steps: int
    run: Callable[[], None]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and largest."""
    array = np.fromiter(values, np.float64)
    return {"median": float(np.median(array)), "min": float(array.min()), "max": float(array.max())}


def ranged(values: dict[str, float], digits: int = 0, sign: str = "") -> str:
    """A spread as people read it: `363 [346..425]`."""
    middle, low, high = (f"{values[key]:{sign},.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle} [{low}..{high}]"


def race(contestants: list[Contestant], rounds: int, clock: Callable[[], int] = time.process_time_ns) -> np.ndarray:
    """Nanoseconds per environment step, (rounds, contestants), of CPU or what `clock` counts; who starts a round rotates."""
    for contestant in contestants:  # warm: nothing compiled or imported for the first time is timed
        contestant.run()
    times = np.empty((rounds, len(contestants)))
    for r in range(rounds):
        for k in range(len(contestants)):
            c = (r + k) % len(contestants)
            began = clock()
            contestants[c].run()
            times[r, c] = (clock() - began) / contestants[c].steps
    return times


def versus(
    title: str, fast: Contestant, slow: Contestant, rounds: int, clock: Callable[[], int] = time.process_time_ns
) -> dict[str, Any]:
    """Two contestants and the median of `slow / fast` over rounds, in one line."""
    times = race([fast, slow], rounds, clock)
    ratio, rows = spread(times[:, 1] / times[:, 0]), {c.name: spread(times[:, i]) for i, c in enumerate((fast, slow))}
    beside = ", ".join(f"{name} {ranged(ns)} ns" for name, ns in rows.items())
    print(f"  {title:<10} {ranged(ratio, 2)} x   ({beside})", flush=True)
    return {"ratio": ratio, "ns_per_step": rows}


def length_for(seconds: float, step: Callable[[], object]) -> int:
    """How many calls of `step` take about that many CPU seconds (at least 20)."""
    step()
    began = time.process_time_ns()
    for _ in range(20):
        step()
    return max(20, int(seconds * 1e9 / max(1.0, (time.process_time_ns() - began) / 20)))
