"""What an agent may do now: slots of interchangeable ready tasks, the legal verbs of each, and the mask."""

from __future__ import annotations

import numpy as np
from numba import uint64

from pit import arbitration, pool_manager
from pit.compiled import kernel, put_word
from pit.layout import HOLD, LITE, N_VERBS, ON, PREMIUM, STANDARD
from pit.pool_manager import HERE, NO
from pit.state import model, task, variant

_SPREAD = np.uint64(sum(1 << (7 * k) for k in range(N_VERBS)))  # times seven bits: bit k of them stands at bit 8 k, too
_ONES = np.uint64(0x0001010101010101)


@kernel
def wait_legal(s):
    """Whether `wait` may be chosen: something is in flight, loads, cools down or is held; or nothing else can be done."""
    return s.n_calls > 0 or s.n_loading + s.n_cooling + s.n_held > 0 or s.status != ON or s.arrived == 0


@kernel
def start_bit(s, slot, t, kinds, k):
    """Bit k if a slot's head t may be started with variant k, one of the usable `kinds`; notes how it would begin."""
    if (kinds >> k) & 1 == 0:
        return 0
    v = variant(s, 3 * t.function + k)
    mode = pool_manager.plan(s, v) & 3
    slot.mode[k] = mode
    return ((mode != NO) & (t.hold_until == 0) & pool_manager.has_place(s, v)) << k


@kernel
def refresh_slots(s):
    """Groups the ready tasks and finds each slot's legal verbs, if anything has changed since the last time."""
    if s.slots_valid == 1:
        return
    s.slots_valid = 1
    s.any_start = 0
    arbitration.group_ready(s)
    for g in range(s.n_slots):
        slot = s.slots[g]
        t = task(s, slot.head)
        first = 3 * t.function
        kinds = variant(s, first + STANDARD).kinds
        bits = (
            start_bit(s, slot, t, kinds, LITE) | start_bit(s, slot, t, kinds, STANDARD) | start_bit(s, slot, t, kinds, PREMIUM)
        )
        s.any_start |= bits != 0
        if bits & (1 << STANDARD) and (s.verbs >> HOLD) & 1 and slot.mode[STANDARD] != HERE:
            v = variant(s, first + STANDARD)
            if pool_manager.free_in(s, v.model) <= model(s, v.model).load_est:
                bits |= 1 << HOLD
        slot.legal = bits


@kernel
def mask_slot(s, g, mask):
    """The legal verbs of slot g as bytes of the mask: seven, and one 0 where the next slot or `wait` will stand."""
    legal = uint64(s.slots[g].legal) if s.status == ON else uint64(0)
    put_word(mask + g * N_VERBS, (legal * _SPREAD) & _ONES)
