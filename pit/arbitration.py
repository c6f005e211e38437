"""Arbitration Engine: who may ask next, and what is held back.

Ready tasks that are interchangeable share a slot; holds keep a slot's members back until a copy has room.
It must not know how a call is carried out.
"""

from __future__ import annotations

import numpy as np

from pit.compiled import kernel
from pit.layout import N_SLOTS, NEVER
from pit.state import ready, task, variant


@kernel
def group_ready(s):
    """Puts every ready task into a slot (function, half-octave of rank, attempted, held); widens buckets if slots run out."""
    for width in range(3):
        n = 0
        s.n_tail = 0
        for k in range(s.n_ready):
            i = ready(s, k).task
            t = task(s, i)
            key = np.int64(t.key)  # function * 256 + bucket * 4 + attempted * 2 + held
            if width > 0:
                bucket = (key >> 2) & 63
                key -= bucket * 4
                if width == 1:
                    key += (bucket >> 1) * 4
            g = n
            for j in range(n):  # no early exit: where it would leave is a guess that fails
                g = j if s.keys[j] == key else g
            if g == N_SLOTS:
                if width < 2:
                    s.n_tail = 1
                    break
                t.slot = -1
                s.n_tail += 1
                continue
            slot = s.slots[g]
            head = slot.head
            count = slot.count
            s.keys[g] = key
            slot.head = i if g == n else head  # selected, not branched: whether a task opens a slot is anybody's guess
            slot.count = 1 if g == n else count + 1
            n += g == n
            t.slot = g
        s.n_slots = n
        if s.n_tail == 0:
            break


@kernel
def hold_slot(s, g, until):
    """Holds every present member of slot g until `until` (us)."""
    for k in range(s.n_ready):
        t = task(s, ready(s, k).task)
        if t.slot == g:
            t.hold_until = until
            t.key |= 1
            s.n_held += 1


@kernel
def end_holds(s, pool, m):
    """A copy of (pool, m) has room: tasks whose standard variant uses it are plain again."""
    for k in range(s.n_ready):
        t = task(s, ready(s, k).task)
        if t.hold_until > 0:
            v = variant(s, 3 * t.function + 1)
            if v.pool == pool and v.model == m:
                t.hold_until = 0
                t.key &= ~1
                s.n_held -= 1


@kernel
def next_hold(s):
    """us at which the next hold ends by itself; NEVER if none."""
    best = NEVER
    if s.n_held > 0:
        for k in range(s.n_ready):
            t = task(s, ready(s, k).task)
            if 0 < t.hold_until < best:
                best = t.hold_until
    return best


@kernel
def expire_holds(s):
    """Ends the holds whose time is now or past."""
    for k in range(s.n_ready):
        t = task(s, ready(s, k).task)
        if 0 < t.hold_until <= s.now:
            t.hold_until = 0
            t.key &= ~1
            s.n_held -= 1
