"""Timers: when the next one is due, and what calls and copies do when theirs has come.

In order at one time: ends of holds, tokens, ends of back-offs, keep-alives, staleness, overruns, time-outs, the horizon.
"""

from __future__ import annotations

import numpy as np

from pit import arbitration, open_tasks, pool_manager, stale_manager
from pit.automation import after_call, emit_call, find_call, unload
from pit.compiled import apart, inside, kernel
from pit.layout import CANCEL, CMD_CANCEL, ERR_TIMEOUT, HEDGE, NEVER, ON, REFRESH_BIT
from pit.state import call, variant


@inside
def next_timer(s):
    """us of the next timer; NEVER if none."""
    on = (s.status == ON) & (s.arrived == 1)
    if on and s.n_held + s.n_queued + s.any_timer > 0:
        return min(other_timer(s), s.horizon)
    return s.horizon if on else NEVER


@apart
def other_timer(s):
    """us of the next timer besides the horizon; NEVER if none."""
    best = min(arbitration.next_hold(s), arbitration.next_claim(s))
    if s.any_timer == 1:
        best = min(best, min(next_call_timer(s), stale_manager.next_expiry(s)))
        if refresh_matters(s):
            best = min(best, stale_manager.next_staleness(s))
        for p in range(s.n_pools):
            best = min(best, pool_manager.next_token(s, p))
            closed = s.pools[p].closed_until
            if closed > s.now:
                best = min(best, closed)
    return best


@kernel
def refresh_matters(s):
    """Whether it makes a difference when an artifact grows stale."""
    return s.any_fresh == 1 and (s.verbs >> REFRESH_BIT) & 1 == 1


@kernel
def overruns_matter(s):
    return (s.verbs & ((1 << HEDGE) | (1 << CANCEL))) != 0


@kernel
def time_limit(s, c):
    """us after its start at which a call is cancelled; NEVER if it is not."""
    if s.time_out <= 0.0:
        return NEVER
    return max(1, np.int64(s.time_out * c.est))


@kernel
def next_call_timer(s):
    """us of the next overrun or time-out; NEVER if none."""
    best = NEVER
    late = overruns_matter(s)
    for k in range(s.n_calls):
        c = call(s, k)
        if c.start >= 0:
            if late:
                best = min(best, c.start + c.limit)
            if s.time_out > 0.0:
                best = min(best, c.start + time_limit(s, c))
    return best


@kernel
def fire_call_timers(s):
    """Overruns, then time-outs, of all calls for which it is time."""
    if overruns_matter(s):
        for k in range(s.n_calls):
            c = call(s, k)
            while c.start >= 0 and c.start + c.limit <= s.now:
                c.overrun += 1
                c.limit *= 2
                open_tasks.set_late(s, np.int64(c.task), True)
    if s.time_out > 0.0:
        newest = s.next_call
        k = 0
        while k < s.n_calls and s.status == ON:
            c = call(s, k)
            if c.start >= 0 and c.id < newest and c.start + time_limit(s, c) <= s.now:
                number = c.id
                elapsed = s.now - c.start
                price = elapsed * variant(s, 3 * c.function + c.variant).price // 1_000_000
                emit_call(s, CMD_CANCEL, k)
                after_call(s, k, ERR_TIMEOUT, elapsed, -1.0, 0, price, True)
                k = 0 if find_call(s, number) < 0 else k + 1
            else:
                k += 1


@kernel
def fire_keep_alives(s):
    """Unused copies whose keep-alive has ended leave memory."""
    for i in range(s.copy_rows):
        if stale_manager.is_expired(s, i):
            unload(s, i)
