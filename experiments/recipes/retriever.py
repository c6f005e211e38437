"""Finds instances like one that is to be played, among those already played and verified: what was the best start there?

An instance is described by what the first observation says of it as a whole (pools, globals), and the means of its slots.
"""

from __future__ import annotations

import numpy as np

from fq_env.engine import Engine
from fq_env.level import Level
from pit.layout import N_SLOT_FEATURES, N_SLOTS, POOL_OFFSET

SIDE_BY_SIDE = 256


def descriptions(level: Level, instances: np.ndarray, exposure: str) -> np.ndarray:
    """What the first observations of train `instances` (k,) say of them, (k, features) float32."""
    found = []
    for first in range(0, len(instances), SIDE_BY_SIDE):
        chunk = instances[first : first + SIDE_BY_SIDE]
        engine = Engine(level, len(chunk), exposure=exposure, autoreset="disabled")
        engine.reset(split="train", instances=chunk.tolist())
        slots = engine.obs[:, :POOL_OFFSET].reshape(len(chunk), N_SLOTS, N_SLOT_FEATURES)
        found.append(np.concatenate([engine.obs[:, POOL_OFFSET:], slots.mean(axis=1)], axis=1))
    return np.concatenate(found)


class Retriever:
    """The nearest neighbours by Euclidean distance, each feature in units of its spread over the library.

    Args:
        features: (k, f), what is known of the library's instances.
        scores: (k, b), what each of b base players' trajectories scored there; -inf where one was not kept.
    """

    def __init__(self, features: np.ndarray, scores: np.ndarray, neighbours: int) -> None:
        self.center, spread = features.mean(axis=0), features.std(axis=0)
        self.scale = np.where(spread > 0.0, 1.0 / np.maximum(spread, 1e-6), 0.0)
        self.features, self.scores = (features - self.center) * self.scale, scores
        self.neighbours = min(neighbours, len(features))

    def best_bases(self, features: np.ndarray) -> np.ndarray:
        """For each of `features` (n, f) the base player that was best in most of its neighbours, (n,) int64."""
        winners, bases = self.scores.argmax(axis=1), self.scores.shape[1]
        asked = (features - self.center) * self.scale
        found = np.empty(len(asked), np.int64)
        for i, point in enumerate(asked):
            near = np.argsort(((self.features - point) ** 2).sum(axis=1), kind="stable")[: self.neighbours]
            found[i] = np.bincount(winners[near], minlength=bases).argmax()
        return found
