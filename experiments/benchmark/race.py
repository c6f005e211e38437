"""Contestants side by side: all run in every round, one after the other, so that neighbours on the machine hit them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


def race(contestants: list[Contestant], rounds: int) -> np.ndarray:
    """Nanoseconds of CPU per environment step, (rounds, contestants); who starts a round rotates."""
    for contestant in contestants:  # warm: nothing compiled or imported for the first time is timed
        contestant.run()
    times = np.empty((rounds, len(contestants)))
    for r in range(rounds):
        for k in range(len(contestants)):
            c = (r + k) % len(contestants)
            began = time.process_time_ns()
            contestants[c].run()
            times[r, c] = (time.process_time_ns() - began) / contestants[c].steps
    return times


def length_for(seconds: float, step: Callable[[], object]) -> int:
    """How many calls of `step` take about that many CPU seconds (at least 20)."""
    step()
    began = time.process_time_ns()
    for _ in range(20):
        step()
    return max(20, int(seconds * 1e9 / max(1.0, (time.process_time_ns() - began) / 20)))
