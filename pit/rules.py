"""Rule players: the orchestration rules that people write by hand, at kernel speed, in the game and in production alike.

A rule reads the same slots as a policy and answers one legal action. `calibrated` scores every legal action by a linear form
of the very features that the policy reads; its numbers are fitted per level (`experiments.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pit import pool_manager
from pit.compiled import kernel
from pit.errors import PitError
from pit.layout import (
    GLOBAL_ACTIONS,
    GLOBAL_FEATURES,
    GLOBAL_OFFSET,
    MAX_POOLS,
    N_GLOBAL_FEATURES,
    N_GLOBAL_WEIGHTS,
    N_POOL_FEATURES,
    N_RULE_GLOBALS,
    N_SLOT_FEATURES,
    N_VARIANTS,
    N_VERB_WEIGHTS,
    N_VERBS,
    N_WEIGHTS,
    PLAIN,
    POOL_FEATURES,
    POOL_OFFSET,
    SLOT_FEATURES,
    STANDARD,
    VERBS,
    WAIT,
)
from pit.memory import float32_at, float64_at, get_byte
from pit.observation import encode
from pit.pool_manager import HERE, LOAD
from pit.slots import globals_legal, refresh_slots, wait_legal
from pit.state import model, task, variant

FIFO, CRITICAL_PATH, WARM_WAIT, SMALLEST, SEQUENTIAL, CALIBRATED = range(6)
RULES = {
    "fifo": FIFO,
    "critical_path": CRITICAL_PATH,
    "critical_path_warm_wait": WARM_WAIT,
    "smallest_remaining": SMALLEST,
    "sequential": SEQUENTIAL,
    "calibrated": CALIBRATED,
}

_GLOBALS_FROM = N_VERBS * N_VERB_WEIGHTS


def weight_names() -> list[tuple[str, str]]:
    """(action, feature) of each number of a calibrated rule, in order; the bias is called `bias`."""
    slots = [f.name for f in SLOT_FEATURES]
    whole = [f"pool{p}.{f.name}" for p in range(MAX_POOLS) for f in POOL_FEATURES]
    whole += [f"global.{f.name}" for f in GLOBAL_FEATURES]
    names = [(verb, feature) for verb in VERBS for feature in ("bias", *slots, *whole)]
    return names + [(a, feature) for a in GLOBAL_ACTIONS[:N_RULE_GLOBALS] for feature in ("bias", *whole)]


def weights_of(table: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """The numbers of a calibrated rule, float64 (N_WEIGHTS,), from a table action -> feature -> weight; what is missing is 0.

    Raises:
        PitError: an action or feature that does not exist, or a weight that is not finite.
    """
    index = {name: k for k, name in enumerate(weight_names())}
    weights = np.zeros(N_WEIGHTS)
    for action, row in table.items():
        for feature, value in row.items():
            if (action, feature) not in index:
                raise PitError(f"rule 'calibrated': {action}.{feature} is unknown; see pit.rules.weight_names")
            if not np.isfinite(value):
                raise PitError(f"rule 'calibrated': {action}.{feature} is {value}; it must be finite")
            weights[index[action, feature]] = value
    return weights


def table_of(weights: np.ndarray) -> dict[str, dict[str, float]]:
    """The inverse of `weights_of`, without zeros."""
    table: dict[str, dict[str, float]] = {}
    for (action, feature), value in zip(weight_names(), weights.tolist(), strict=True):
        if value != 0.0:
            table.setdefault(action, {})[feature] = value
    return table


def parameters(name: str, params: Mapping[str, Any]) -> tuple[int, float, int, np.ndarray | None]:
    """Code, theta, variant and weights for `choose`. Raises PitError.

    `theta`: critical_path_warm_wait: a busy copy that is expected free within theta x the load estimate is waited for;
    smallest_remaining: the most calls in flight (0: no limit). `variant` (all but calibrated): 0 lite, 1 standard, 2 premium
    where the function has it, standard elsewhere. `weights` (calibrated): the table of `weights_of`.
    """
    if name not in RULES:
        raise PitError(f"rule {name!r} is unknown; choose one of {', '.join(RULES)}")
    known = {"weights"} if name == "calibrated" else {"theta", "variant"}
    if unknown := set(params) - known:
        raise PitError(f"rule {name!r} has no parameter {sorted(unknown)[0]!r}; it takes {' and '.join(sorted(known))}")
    weights = weights_of(params.get("weights", {})) if name == "calibrated" else None
    preferred = params.get("variant", STANDARD)
    if preferred not in range(N_VARIANTS):  # the kernel takes it for an index
        raise PitError(f"rule {name!r}: variant is {preferred}; 0 (lite), 1 (standard) or 2 (premium) is needed")
    theta = 0.0 if name == "smallest_remaining" else 1.0
    return RULES[name], float(params.get("theta", theta)), int(preferred), weights


@kernel
def choose(s, rule, theta, preferred, weights, out, mask):
    """The rule's action now. `weights`: address of a calibrated rule's numbers; `out`, `mask`: addresses that it may write an
    observation and a mask to."""
    if rule == CALIBRATED:
        return choose_linear(s, weights, out, mask)
    refresh_slots(s)
    action = preferred_start(s, rule, theta, preferred)
    if action >= 0:
        return action
    if wait_legal(s):
        return WAIT
    for g in range(s.n_slots):  # nothing can be waited for: whatever is possible
        for verb in range(N_VERBS):
            if (s.slots[g].legal >> verb) & 1:
                return g * N_VERBS + verb
    legal = globals_legal(s)
    for k in range(1, N_RULE_GLOBALS):
        if (legal >> k) & 1:
            return WAIT + k
    return WAIT


@kernel
def preferred_start(s, rule, theta, preferred):
    """The start that the rule wants; -1 if none."""
    if (rule == SEQUENTIAL and s.n_calls > 0) or (rule == SMALLEST and theta > 0.0 and s.n_calls >= theta):
        return -1
    best = -1
    highest = 0.0
    for g in range(s.n_slots):
        slot = s.slots[g]
        t = task(s, slot.head)
        k = preferred if variant(s, 3 * t.function + preferred).usable == 1 else STANDARD
        if (slot.legal >> k) & 1 == 0 or t.mark != PLAIN:
            continue
        if rule == FIFO:
            if best < 0 or came_first(s, slot.head, s.slots[best // N_VERBS].head):
                best = g * N_VERBS + k
            continue
        if rule == CRITICAL_PATH and s.stream == 1:
            if best < 0 or t.rank > highest:
                best = g * N_VERBS + k
                highest = t.rank
            continue
        if rule != WARM_WAIT or slot.mode[k] == HERE:
            return g * N_VERBS + k
        if best < 0:
            v = variant(s, 3 * t.function + k)
            if slot.mode[k] != LOAD or pool_manager.free_in(s, v.model) > theta * model(s, v.model).load_est:
                best = g * N_VERBS + k
    return best


@kernel
def came_first(s, i, j):
    """Whether task i has been ready for longer than task j, or as long and stands before it in the workflow."""
    mine = task(s, i).ready_time
    theirs = task(s, j).ready_time
    return mine < theirs or (mine == theirs and i < j)


@kernel
def linear(features, n, weights):
    """The sum of n features (float32 at an address) times weights (float64 at an address), in order."""
    total = 0.0
    for k in range(n):
        total += float32_at(features, k) * float64_at(weights, k)
    return total


@kernel
def linear_whole(s, out, weights):
    """The pools' and the globals' part of a linear score; pools that do not exist are all 0."""
    pools = linear(out + 4 * POOL_OFFSET, s.n_pools * N_POOL_FEATURES, weights)
    return pools + linear(out + 4 * GLOBAL_OFFSET, N_GLOBAL_FEATURES, weights + 8 * MAX_POOLS * N_POOL_FEATURES)


@kernel
def choose_linear(s, weights, out, mask):
    """The legal action of the largest linear score; the first of equals."""
    encode(s, out, mask, 1)
    return best_linear(s, weights, out, mask)


@kernel
def best_linear(s, weights, out, mask):
    """Of the actions that `mask` allows, that of the largest linear score on the observation `out`; the first of equals."""
    best = -1
    most = 0.0
    for verb in range(N_VERBS):
        if (s.verbs >> verb) & 1 == 0:
            continue
        own = weights + 8 * verb * N_VERB_WEIGHTS
        base = float64_at(own, 0) + linear_whole(s, out, own + 8 * (1 + N_SLOT_FEATURES))
        for g in range(s.n_slots):
            if get_byte(mask, g * N_VERBS + verb) == 1:
                score = base + linear(out + 4 * g * N_SLOT_FEATURES, N_SLOT_FEATURES, own + 8)
                action = g * N_VERBS + verb
                if best < 0 or score > most or (score == most and action < best):
                    best = action
                    most = score
    for k in range(N_RULE_GLOBALS):
        if get_byte(mask, WAIT + k) == 1:
            own = weights + 8 * (_GLOBALS_FROM + k * N_GLOBAL_WEIGHTS)
            score = float64_at(own, 0) + linear_whole(s, out, own + 8)
            if best < 0 or score > most:
                best = WAIT + k
                most = score
    return best if best >= 0 else WAIT
