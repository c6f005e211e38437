"""What an agent may do now: slots of interchangeable ready tasks, the legal verbs of each, and the mask."""

from __future__ import annotations

import numpy as np
from numba import uint64

from pit import arbitration, automation, dag_tracker, flows, freshness, pool_manager
from pit.compiled import apart, inside, kernel, rare
from pit.layout import (
    CANCEL,
    DEFER_BIT,
    HEDGE,
    HOLD,
    LITE,
    N_VERBS,
    NEVER,
    ON,
    OVERDUE,
    PLAIN,
    PREMIUM,
    QUEUE,
    QUEUED,
    REFRESH_BIT,
    SKIP_BIT,
    STANDARD,
    WAIT,
    WAIT_BIT,
)
from pit.memory import put_word
from pit.pool_manager import HERE, NO
from pit.state import call, model, task, variant

_SPREAD = np.uint64(sum(1 << (7 * k) for k in range(N_VERBS)))  # times seven bits: bit k of them stands at bit 8 k, too
_ONES = np.uint64(0x0001010101010101)


@inside
def wait_legal(s):
    """Whether `wait` may be chosen: something is in flight, loads, cools down, is held or closed; or all is over."""
    going = s.n_calls + s.n_loading + s.n_cooling + s.n_mending + s.n_held + s.all_tenants + s.stream_open > 0
    return going | (s.status != ON) | (s.arrived == 0) or (s.any_tight == 1 and is_closed(s))


@rare
def is_closed(s):
    """Whether a pool is backed off or short of tokens."""
    for p in range(s.n_pools):
        if s.pools[p].closed_until > s.now or pool_manager.next_token(s, p) < NEVER:
            return True
    return False


@kernel
def enabled(s, bit):
    return (s.verbs >> bit) & 1 == 1


@kernel
def back_off_legal(s):
    """Whether some pool has a failed call last and is not backed off."""
    return s.back_off > 0 and arbitration.worst_pool(s) >= 0


@kernel
def refresh_legal(s):
    """Whether refresh is enabled and a stale artifact is still wanted."""
    return s.any_fresh == 1 and enabled(s, REFRESH_BIT) and freshness.stalest(s) >= 0


@inside
def globals_legal(s):
    """Bits of the legal global actions: wait 0, back_off 1, back_off_long 2, skip 3, refresh 4, defer 5."""
    bits = 1 if wait_legal(s) else 0
    if s.verbs >> (WAIT_BIT + 1) != 0 and s.status == ON and s.arrived == 1:
        bits |= other_globals(s)
    return bits


@apart
def other_globals(s):
    """The bits of `globals_legal` besides that of `wait`."""
    bits = 0
    if (enabled(s, WAIT_BIT + 1) or enabled(s, WAIT_BIT + 2)) and back_off_legal(s):
        bits |= (s.verbs >> WAIT_BIT) & 6
    if enabled(s, SKIP_BIT):
        refresh_slots(s)
        if s.skipped >= 0:
            bits |= 8
    if refresh_legal(s):
        bits |= 16
    if s.n_active > 1 and enabled(s, DEFER_BIT) and flows.least_urgent(s) >= 0:
        bits |= 32
    return bits


@inside
def start_bit(s, slot, t, kinds, k):
    """Bit k if a slot's plain head t may be started with variant k, one of the usable `kinds`; notes how it would begin."""
    slot.mode[k] = NO
    if (kinds >> k) & 1 == 0:
        return 0
    v = variant(s, 3 * t.function + k)
    mode = pool_manager.plan(s, v) & 3
    slot.mode[k] = mode
    fits = (mode != NO) & (t.mark == PLAIN) & pool_manager.has_place(s, v)
    if fits and s.any_limit == 1:
        fits = is_free(s, slot, t, v, k)
    return fits << k


@apart
def is_free(s, slot, t, v, k):
    """Whether neither a claim nor a limit forbids to start a slot's head t with its variant k, v."""
    i = np.int64(slot.head)
    if arbitration.claimed(s, i, v):
        return False
    why = pool_manager.refused(s, automation.estimate(s, i, t, k, v), v, np.int64(slot.mode[k]))
    if why == 2:
        s.any_short = 1
    return why == 0


@kernel
def hedge_bit(s, t, i):
    """Bit `hedge` if a second call of running task i may begin with the variant of its first."""
    if t.calls != 1:
        return 0
    k = np.int64(running_variant(s, i))
    v = variant(s, 3 * t.function + k)
    if pool_manager.can_begin(s, automation.estimate(s, i, t, k, v), v) & 3 == NO or arbitration.claimed(s, i, v):
        return 0
    return 1 << HEDGE


@kernel
def running_variant(s, i):
    """The variant of the oldest call of task i in flight."""
    k = 0
    while call(s, k).task != i:
        k += 1
    return call(s, k).variant


@kernel
def other_bits(s, g, bits):
    """The legal verbs of slot g besides its starts `bits`: queue, hold, hedge, cancel."""
    slot = s.slots[g]
    i = np.int64(slot.head)
    t = task(s, i)
    first = 3 * t.function
    if t.mark == PLAIN:
        v = variant(s, first + STANDARD)
        if enabled(s, QUEUE) and v.usable == 1 and (not pool_manager.has_place(s, v) or arbitration.claimed(s, i, v)):
            bits |= 1 << QUEUE
        if bits & (1 << STANDARD) and enabled(s, HOLD) and slot.mode[STANDARD] != HERE:
            if pool_manager.free_in(s, v.model) <= model(s, v.model).load_est:
                bits |= 1 << HOLD
    elif t.mark == QUEUED:
        if enabled(s, CANCEL) and (t.since < s.now or not wait_legal(s)):  # else nothing new could be a reason
            bits |= 1 << CANCEL
    elif t.mark == OVERDUE and automation.has_overrun(s, i):
        if enabled(s, HEDGE):
            bits |= hedge_bit(s, t, i)
        if enabled(s, CANCEL) and (s.max_attempts == 0 or t.attempts + 1 < s.max_attempts):
            bits |= 1 << CANCEL
        s.any_start |= bits != 0
    return bits


@kernel
def refresh_slots(s):
    """Groups the open tasks and finds each slot's legal verbs, if anything has changed since the last time."""
    if s.slots_valid == 0:
        find_slots(s)


@apart
def find_slots(s):
    """Groups the open tasks and finds each slot's legal verbs."""
    s.slots_valid = 1
    s.any_start = 0
    s.any_short = 0
    arbitration.group_ready(s)
    if enabled(s, SKIP_BIT):
        s.skipped = dag_tracker.first_optional(s) if s.n_required < s.n_tasks else -1
    others = (s.verbs >> QUEUE) & 15
    starts = 0
    for g in range(s.n_slots):
        slot = s.slots[g]
        t = task(s, slot.head)
        kinds = variant(s, 3 * t.function + STANDARD).kinds
        bits = start_bit(s, slot, t, kinds, LITE)
        bits |= start_bit(s, slot, t, kinds, STANDARD)
        bits |= start_bit(s, slot, t, kinds, PREMIUM)
        starts |= bits
        if others != 0:
            bits = other_bits(s, g, bits)
        slot.legal = bits
    s.any_start |= starts != 0
    if s.any_start == 0:
        s.any_start = refresh_legal(s)


@kernel
def mask_slot(s, g, mask):
    """The legal verbs of slot g as bytes of the mask: seven, and one 0 where the next slot or `wait` will stand."""
    legal = uint64(s.slots[g].legal) if s.status == ON else uint64(0)
    put_word(mask + g * N_VERBS, (legal * _SPREAD) & _ONES)


@kernel
def mask_globals(s, mask):
    """The legal global actions as bytes of the mask, seven of them."""
    put_word(mask + WAIT, (uint64(globals_legal(s)) * _SPREAD) & _ONES)
