"""Which columns and actions a learner computes with, and in which order: dead ones never, rarely used ones last.

Observations of a workflow are ragged: of 16 slots a few are filled. Frames are therefore sorted by what they hold, and a
frame on a low rung takes part only in the first columns of the first layer and in the first outputs of the last one. What
is left out is exactly zero, so results are those of the whole matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.fast_ppo.kernels import MAX_ACTIONS
from pit.layout import (
    GLOBAL_OFFSET,
    N_ACTIONS,
    N_OBSERVATION,
    N_POOL_FEATURES,
    N_SLOT_FEATURES,
    N_SLOTS,
    N_VERBS,
    POOL_OFFSET,
    WAIT,
)

RUNGS = (2, 4, 8, N_SLOTS)  # filled slots that a rung holds; more rungs cost more calls than they save


@dataclass(frozen=True)
class Ladder:
    """The order of columns and actions, and how many of each a rung holds.

    Attributes:
        columns: int64 (k,), column of the observation at each input.
        actions: int64 (a,), action at each output.
        widths: int64 (r,), inputs of each rung, ascending to k.
        heights: int64 (r,), outputs of each rung, ascending to a.
    """

    columns: np.ndarray
    actions: np.ndarray
    widths: np.ndarray
    heights: np.ndarray

    @functools.cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """(first and length of each run of neighbouring columns, int64 (k, 2); where each rung's runs end, int64 (r,))."""
        breaks = np.diff(self.columns, prepend=-2) != 1
        breaks[self.widths[:-1][self.widths[:-1] < len(self.columns)]] = True  # no run crosses a rung
        starts = np.flatnonzero(breaks)
        runs = np.stack([self.columns[starts], np.diff(starts, append=len(self.columns))], axis=1)
        return runs, np.searchsorted(starts, self.widths)

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Output of each action, int64 (128,); -1 where it is dead."""
        places = np.full(MAX_ACTIONS, -1, np.int64)
        places[self.actions] = np.arange(len(self.actions))
        return places


def flat_ladder(n_columns: int, n_actions: int) -> Ladder:
    """All columns and actions in their own order, on one rung."""
    return _ladder([np.arange(n_columns)], [np.arange(n_actions)])


def slot_ladder(live_columns: np.ndarray | None = None, live_actions: np.ndarray | None = None) -> Ladder:
    """The Pit's columns and actions: globals and pools first, then slot by slot.

    Args:
        live_columns: bool (512,), False where a column is zero in every observation; None: all live.
        live_actions: bool (128,), False where an action is never legal; None: all live.
    """
    columns_live, actions_live = _declared(live_columns, N_OBSERVATION), _declared(live_actions, N_ACTIONS)
    pools = GLOBAL_OFFSET if live_columns is not None else POOL_OFFSET + N_POOL_FEATURES  # undeclared: one pool is usual
    columns = [np.r_[GLOBAL_OFFSET:N_OBSERVATION, POOL_OFFSET:pools]]
    actions = [np.arange(WAIT, N_ACTIONS)]
    first = 0
    for slots in RUNGS:
        columns.append(np.arange(first * N_SLOT_FEATURES, slots * N_SLOT_FEATURES))
        actions.append(np.arange(first * N_VERBS, slots * N_VERBS))
        first = slots
    columns[-1] = np.r_[columns[-1], pools:GLOBAL_OFFSET]
    columns[1], actions[1] = np.r_[columns[0], columns[1]], np.r_[actions[0], actions[1]]
    return _ladder([c[columns_live[c]] for c in columns[1:]], [a[actions_live[a]] for a in actions[1:]])


def member_ladder(live_columns: np.ndarray | None = None, live_actions: np.ndarray | None = None) -> Ladder:
    """The same columns and actions for a network that computes slot by slot: rung k holds the context and k slots, alike."""
    columns_live, actions_live = _declared(live_columns, N_OBSERVATION), _declared(live_actions, N_ACTIONS)
    of_slots = columns_live[:POOL_OFFSET].reshape(N_SLOTS, N_SLOT_FEATURES)
    features = np.flatnonzero(of_slots.any(axis=0))
    verbs = np.flatnonzero(actions_live[:WAIT].reshape(N_SLOTS, N_VERBS).any(axis=0))
    slots = range(int(of_slots.any(axis=1).sum()))
    columns = [POOL_OFFSET + np.flatnonzero(columns_live[POOL_OFFSET:]), *(s * N_SLOT_FEATURES + features for s in slots)]
    return _ladder(columns, [WAIT + np.flatnonzero(actions_live[WAIT:]), *(s * N_VERBS + verbs for s in slots)])


def _declared(live: np.ndarray | None, size: int) -> np.ndarray:
    return np.ones(size, bool) if live is None else live


def _ladder(columns: Sequence[np.ndarray], actions: Sequence[np.ndarray]) -> Ladder:
    """One rung per pair; pairs that add nothing are left out."""
    kept = [(c, a) for i, (c, a) in enumerate(zip(columns, actions, strict=True)) if i == 0 or c.size + a.size]
    return Ladder(
        np.concatenate([c for c, _ in kept]).astype(np.int64),
        np.concatenate([a for _, a in kept]).astype(np.int64),
        np.cumsum([c.size for c, _ in kept]),
        np.cumsum([a.size for _, a in kept]),
    )
