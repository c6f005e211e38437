"""Rule players: the orchestration rules that people write by hand, at kernel speed, in the game and in production alike.

A rule reads the same slots as a policy and answers one legal action.
"""

from __future__ import annotations

from collections.abc import Mapping

from pit import pool_manager
from pit.compiled import kernel
from pit.errors import PitError
from pit.layout import N_VERBS, STANDARD, WAIT
from pit.pool_manager import HERE, LOAD
from pit.slots import refresh_slots, wait_legal
from pit.state import model, task, variant

FIFO, CRITICAL_PATH, WARM_WAIT = range(3)
RULES = {"fifo": FIFO, "critical_path": CRITICAL_PATH, "critical_path_warm_wait": WARM_WAIT}


def parameters(name: str, params: Mapping[str, float]) -> tuple[int, float, int]:
    """Code, theta and variant for `choose`.

    `theta` (critical_path_warm_wait): a busy copy that is expected free within theta x the load estimate is waited for.
    `variant` (all): 0 lite, 1 standard, 2 premium where the function has it, standard elsewhere.
    """
    if name not in RULES:
        raise PitError(f"rule {name!r} is unknown; choose one of {', '.join(RULES)}")
    unknown = set(params) - {"theta", "variant"}
    if unknown:
        raise PitError(f"rule {name!r} has no parameter {sorted(unknown)[0]!r}; it takes theta and variant")
    return RULES[name], float(params.get("theta", 1.0)), int(params.get("variant", STANDARD))


@kernel
def choose(s, rule, theta, preferred):
    """The rule's action now; `wait` if it starts nothing (or the first legal start if waiting is not possible)."""
    refresh_slots(s)
    best = -1
    fallback = -1
    for g in range(s.n_slots):
        slot = s.slots[g]
        t = task(s, slot.head)
        k = preferred if variant(s, 3 * t.function + preferred).usable == 1 else STANDARD
        if (slot.legal >> k) & 1 == 0:
            continue
        if fallback < 0:
            fallback = g * N_VERBS + k
        if rule == CRITICAL_PATH:
            return g * N_VERBS + k
        if rule == FIFO:
            if best < 0 or t.ready_time < task(s, s.slots[best // N_VERBS].head).ready_time:
                best = g * N_VERBS + k
            continue
        if slot.mode[k] == HERE:
            return g * N_VERBS + k
        if best < 0:
            v = variant(s, 3 * t.function + k)
            if slot.mode[k] != LOAD or pool_manager.free_in(s, v.model) > theta * model(s, v.model).load_est:
                best = g * N_VERBS + k
    if best >= 0:
        return best
    return WAIT if wait_legal(s) or fallback < 0 else fallback
