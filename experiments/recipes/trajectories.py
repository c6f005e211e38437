"""What a teacher did: named train instances, the actions taken in them, the scores that it claims.

Observations are not stored: whoever needs them replays the actions, and so finds out whether the claim is true.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from experiments.errors import ExperimentError
from experiments.files import write_with


@dataclass
class Trajectories:
    """k episodes one behind the other.

    Attributes:
        instances: (k,) int64, numbers of the level's train instances.
        lengths: (k,) int64, decisions of each.
        totals: (k,) float64, the score that each is said to have reached.
        bases: (k,) int64, which base player the teacher looked ahead with; -1: none of them.
        actions: (decisions,) int64.
        advantages: (decisions,) float32, by how much the chosen action is expected to score higher than the mean of the other
            legal ones; NaN where nobody knows.
        counts: (decisions,) int64, of how many legal actions it is known what each is expected to score: all or none.
        expected: (sum of counts,) float32, those scores minus their mean, decision by decision, the smallest action first.
    """

    instances: np.ndarray
    lengths: np.ndarray
    totals: np.ndarray
    bases: np.ndarray
    actions: np.ndarray
    advantages: np.ndarray
    counts: np.ndarray
    expected: np.ndarray

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def starts(self) -> np.ndarray:
        """Where each episode begins in `actions`, (k,) int64."""
        return np.cumsum(self.lengths) - self.lengths

    def chosen(self, episodes: np.ndarray) -> Trajectories:
        """The episodes of these numbers, in this order."""
        rows = spans(self.starts[episodes], self.lengths[episodes])
        scores = spans((np.cumsum(self.counts) - self.counts)[rows], self.counts[rows])
        whole = (self.instances[episodes], self.lengths[episodes], self.totals[episodes], self.bases[episodes])
        return Trajectories(*whole, self.actions[rows], self.advantages[rows], self.counts[rows], self.expected[scores])

    def save(self, path: Path) -> None:
        """Writes a file that is whole or absent. Raises OSError."""
        write_with(path, lambda temporary: np.savez(temporary, **{f.name: getattr(self, f.name) for f in fields(self)}))


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i] .. starts[i] + lengths[i] - 1 of each i (k,), one span behind the other, int64."""
    before = np.cumsum(lengths) - lengths
    found: np.ndarray = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return found


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file. Raises ExperimentError if it is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExperimentError(f"{path}: cannot be read ({error}); remove it with the .json beside it to repeat it") from None


def load(path: Path) -> Trajectories:
    """Reads what `save` wrote. Raises ExperimentError if it is damaged."""
    found = arrays_in(path)
    return Trajectories(**{f.name: found[f.name] for f in fields(Trajectories)})


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """All episodes of one or more parts, in order."""
    return Trajectories(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Trajectories)))


class Recorder:
    """Gathers decisions of episodes that are played side by side; `done` puts them one behind the other."""

    def __init__(self, n: int) -> None:
        self.actions: list[list[int]] = [[] for _ in range(n)]
        self.advantages: list[list[float]] = [[] for _ in range(n)]
        self.expected: list[list[np.ndarray]] = [[] for _ in range(n)]

    def note(
        self, rows: np.ndarray, actions: np.ndarray, advantages: np.ndarray, expected: list[np.ndarray] | None = None
    ) -> None:
        """One decision in each of the episodes `rows` (k,); `expected`: of each the expected scores, float32, or none."""
        scores = expected or [np.zeros(0, np.float32)] * len(rows)
        for i, action, advantage, each in zip(rows.tolist(), actions.tolist(), advantages.tolist(), scores, strict=True):
            self.actions[i].append(action)
            self.advantages[i].append(advantage)
            self.expected[i].append(each)

    def done(self, instances: np.ndarray, totals: np.ndarray, base: int) -> Trajectories:
        """The episodes, all ended: on which instances (n,), with which totals (n,), from which base player."""
        expected = [scores for episode in self.expected for scores in episode]
        return Trajectories(
            np.asarray(instances, np.int64),
            np.array([len(a) for a in self.actions], np.int64),
            totals.astype(np.float64),
            np.full(len(instances), base, np.int64),
            np.array([a for episode in self.actions for a in episode], np.int64),
            np.array([a for episode in self.advantages for a in episode], np.float32),
            np.array([len(scores) for scores in expected], np.int64),
            np.concatenate([*expected, np.zeros(0, np.float32)]),
        )
