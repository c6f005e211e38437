"""What an agent may do now: slots of interchangeable ready tasks, the legal verbs of each, and the mask."""

from __future__ import annotations

import numpy as np

from pit import arbitration, pool_manager
from pit.compiled import clear, kernel, put_byte
from pit.layout import HOLD, N_ACTIONS, N_VARIANTS, N_VERBS, ON, STANDARD, WAIT
from pit.pool_manager import HERE, NO
from pit.state import model, task, variant


@kernel
def wait_legal(s):
    """Whether `wait` may be chosen: something is in flight, loads, cools down or is held; or nothing else can be done."""
    return s.n_calls > 0 or s.n_loading + s.n_cooling + s.n_held > 0 or s.status != ON or s.arrived == 0


@kernel
def refresh_slots(s):
    """Groups the ready tasks and finds each slot's legal verbs, if anything has changed since the last time."""
    if s.slots_valid == 1:
        return
    s.slots_valid = 1
    s.any_start = 0
    pool_manager.survey(s)
    arbitration.group_ready(s)
    for g in range(s.n_slots):
        slot = s.slots[g]
        t = task(s, slot.head)
        bits = 0
        kinds = variant(s, 3 * t.function + STANDARD).kinds
        for k in range(N_VARIANTS):
            if (kinds >> k) & 1:
                row = 3 * t.function + k
                planned = pool_manager.plan(s, row)
                slot.mode[k] = planned & 3
                if planned & 3 != NO and t.hold_until == 0 and pool_manager.has_place(s, row):
                    bits |= 1 << k
        if bits != 0:
            s.any_start = 1
        if bits & (1 << STANDARD) and (s.verbs >> HOLD) & 1 and slot.mode[STANDARD] != HERE:
            v = variant(s, 3 * t.function + STANDARD)
            if pool_manager.free_in(s, v.model) <= model(s, v.model).load_est:
                bits |= 1 << HOLD
        slot.legal = bits


@kernel
def write_mask(s, out):
    """Legal actions as 128 bytes at address `out`."""
    clear(out, N_ACTIONS)
    if s.status == ON and s.arrived == 1:
        refresh_slots(s)
        for g in range(s.n_slots):
            bits = np.int64(s.slots[g].legal)
            for verb in range(N_VERBS):
                put_byte(out, g * N_VERBS + verb, (bits >> verb) & 1)
    if wait_legal(s):
        put_byte(out, WAIT, 1)
