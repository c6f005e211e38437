"""What keeps watch over a policy while it decides: how far what it sees is from what it was trained on, and the switch that
takes decisions away from it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conductor.errors import ConductorError
from conductor.journal import read_run, run_folder
from conductor.manifest import RangesSpec

SHARE = 0.05  # of the live columns outside their quantiles, from which on a decision is far
WINDOW, TRIP, BACK = 50, 20, 5  # decisions that are remembered; far ones among them that trip the guard, and that let it go
STOP_FILE = "policy.stop"  # in a run's folder
STOP = threading.Event()  # of this process: every policy in it stops, until its end (`conductor run` sets it at SIGUSR1)


class RangeGuard:
    """Whether the policy is where it was trained. A decision is far if a column that was dead in training is not zero, or more
    than `SHARE` of the live ones leave their quantiles. `tripped` from `TRIP` far ones in the last `WINDOW` decisions on,
    until `WINDOW` decisions hold at most `BACK`: it is watched on while the rule decides."""

    def __init__(self, ranges: RangesSpec) -> None:
        self._low, self._high, live = ranges.limits()
        self._weights = np.where(live, 1.0 / live.sum(), 1.0)
        self._below, self._above = np.empty(live.shape, bool), np.empty(live.shape, bool)
        self._far: deque[bool] = deque(maxlen=WINDOW)
        self._count = 0  # of far ones
        self.tripped = False

    def distance(self, observation: np.ndarray) -> float:
        """Share of the live columns of an observation (512,) float32 that leave their quantiles; 1 if a dead one is not 0."""
        np.less(observation, self._low, out=self._below)
        np.greater(observation, self._high, out=self._above)
        np.logical_or(self._below, self._above, out=self._below)
        outside = self._below.nonzero()[0]
        return min(1.0, round(float(self._weights[outside].sum()), 4)) if outside.size else 0.0

    def look(self, observation: np.ndarray) -> float:
        """Take note of a decision's observation; its `distance`."""
        distance = self.distance(observation)
        self._note(distance)
        return distance

    def _note(self, distance: float) -> None:
        if len(self._far) == WINDOW:
            self._count -= self._far[0]
        self._far.append(distance > SHARE)
        self._count += self._far[-1]
        if self.tripped:
            self.tripped = self._count > BACK or len(self._far) < WINDOW
        else:
            self.tripped = self._count >= TRIP

    def recall(self, distances: Iterable[float], tripped: bool) -> None:
        """Be as after decisions with these distances, `WINDOW` of them or all, at the end of which it was tripped or not."""
        self._far = deque((distance > SHARE for distance in distances), maxlen=WINDOW)
        self._count = sum(self._far)
        self.tripped = tripped


def recall(guard: RangeGuard, rows: Sequence[Mapping[str, Any]]) -> None:
    """`RangeGuard.recall` for payloads of a run's last `WINDOW` rows `action`, or all, the oldest first; at least one."""
    guard.recall([row["distance"] for row in rows if row["distance"] is not None], rows[-1]["tripped"])


def thrown(file: str) -> bool:
    """Whether policies must not decide now: a run's switch is thrown (its `STOP_FILE` is there), or this process's."""
    return STOP.is_set() or os.path.exists(file)


def throw(place: str | os.PathLike[str], *, undo: bool = False) -> Path:
    """Throw a run's switch, or put it back (`undo`); the file that is the switch. Holds from the next decision on.

    Raises:
        ConductorError: no such run, one in which no policy decides, one that has ended, or a folder that cannot be written.
    """
    first, last = None, None
    for row in read_run(place):
        first, last = first or row, row
    assert first is not None and last is not None  # an empty journal is refused
    file = run_folder(place, first.data) / STOP_FILE
    if first.data["strategy"] != "adaptive":
        raise ConductorError(f"{file.parent}: no policy decides in this run, its strategy is {first.data['strategy']}")
    if last.kind == "end":
        raise ConductorError(f"{file.parent}: this run has ended; there is nothing left to decide")
    try:
        if undo:
            file.unlink(missing_ok=True)
        else:
            file.touch()
    except OSError as error:
        raise ConductorError(f"{file}: cannot be written ({error.strerror})") from error
    return file
