"""Stored frames: observations and masks of a rollout, each only as wide as what it holds, and batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.fast_ppo import kernels
from experiments.fast_ppo.ladder import Ladder


class Frames:
    """Up to `capacity` frames over a ladder. `words` (capacity, 2) uint64: legal actions as bits; `rungs` (capacity,)."""

    def __init__(self, capacity: int, ladder: Ladder) -> None:
        self.ladder = ladder
        self.words = np.zeros((capacity, 2), np.uint64)
        self.rungs = np.zeros(capacity, np.uint8)
        self.size = 0
        self._flat = np.zeros(capacity * len(ladder.columns), np.float32)  # pages that no frame reaches are never touched
        self._offsets = np.zeros(capacity, np.int64)
        self._position = 0
        self._order = np.zeros(capacity, np.int64)
        self._ends = np.zeros(len(ladder.widths), np.int64)

    def clear(self) -> None:
        """Forgets all frames."""
        self.size = self._position = 0

    def add(self, obs: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Stores observations (k, width) with masks (k, actions) bool; their numbers (k,).

        Raises:
            ValueError: a mask is empty or allows an action that the ladder declares dead.
        """
        new = slice(self.size, self.size + len(obs))
        words = self.words[new] if masks is not None else self.words[:0]
        if masks is not None:
            kernels.pack(masks, words)
        ladder = self.ladder
        position = kernels.take_in(
            obs, words, ladder.places, *ladder.runs, ladder.widths, ladder.heights,
            self._flat, self._position, self._offsets[new], self.rungs[new],
        )  # fmt: skip
        if position < 0:
            assert masks is not None
            raise ValueError(_fault(masks, ladder.places))
        self.size, self._position = new.stop, position
        return np.arange(new.start, new.stop)

    def take(self, other: Frames, frames: np.ndarray) -> None:
        """Adds copies of the stored `frames` (k,) of another store over the same ladder, in this order."""
        new = slice(self.size, self.size + len(frames))
        self.words[new], self.rungs[new] = other.words[frames], other.rungs[frames]
        for at, frame in enumerate(frames.tolist(), self.size):
            start, width = other._offsets[frame], int(self.ladder.widths[other.rungs[frame]])
            self._flat[self._position : self._position + width] = other._flat[start : start + width]
            self._offsets[at] = self._position
            self._position += width
        self.size = new.stop

    def batch(self, frames: np.ndarray, net: Any) -> tuple[np.ndarray, np.ndarray]:
        """Loads `frames` (b,) into a network, sorted by rung; (frames in that order, where each rung ends)."""
        order = self._order[: len(frames)]
        kernels.arrange(frames, self.rungs, order, self._ends)
        net.load(self._flat, self._offsets, order, self._ends)
        return order, self._ends


def _fault(masks: np.ndarray, places: np.ndarray) -> str:
    empty = np.flatnonzero(~masks.any(axis=1))
    if empty.size:
        return f"environment {empty[0]} offers no legal action: its mask is empty"
    dead = np.flatnonzero(masks.any(axis=0) & (places[: masks.shape[1]] < 0))
    return f"action {dead[0]} is legal, but `live_actions` declares that it never is"
