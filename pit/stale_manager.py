"""Stale Manager: which idle copies leave memory: if room is short, least recently used first; when their keep-alive ends. And
when artifacts grow stale. And which artifacts leave a tier of the store that is too full, down to deletion: those of least
value to what is left to do.

It must not know who asks for room.
"""

from __future__ import annotations

from numba import uint64

from pit import freshness
from pit.compiled import apart, kernel
from pit.layout import (
    BLOCKED,
    NEED_LATER,
    NEED_NEAR,
    NEED_READY,
    NEVER,
    READY,
    RUNNING,
    TIER_COLD,
    TIER_GONE,
    TIER_HOT,
    TIER_WARM,
    WARM,
)
from pit.members import IN_TIER, members_of, words
from pit.memory import lowest_bit
from pit.state import artifact, copy, model, store_of, successor, task
from pit.tiers import fits, move

_ANY = 1 << 30
_ONE = uint64(1)


@kernel
def next_victim(s, budget, after):
    """The warm copy of the budget that follows copy `after` (-1 = the first) in order of (last used, index); -1 if none."""
    best = -1
    best_used = NEVER
    after_used = copy(s, after).last_used if after >= 0 else -1
    for i in range(s.copy_rows):
        c = copy(s, i)
        used = c.last_used
        later = (used > after_used) | ((used == after_used) & (i > after))
        better = later & (c.state == WARM) & (c.budget == budget) & (used < best_used)
        best = i if better else best
        best_used = used if better else best_used
    return best


@kernel
def next_unwanted(s, budget, after):
    """As `next_victim`, among copies of models that no ready or near task wants."""
    while True:
        after = next_victim(s, budget, after)
        if after < 0:
            return after
        m = model(s, copy(s, after).model)
        if m.ready + m.soon == 0:
            return after


@kernel
def next_expiry(s):
    """us at which the next unused copy leaves memory by its keep-alive; NEVER if none."""
    best = NEVER
    for i in range(s.copy_rows):
        c = copy(s, i)
        if c.state == WARM:
            keep = model(s, c.model).keep_alive
            if keep > 0 and c.last_used + keep < best:
                best = c.last_used + keep
    return best


@kernel
def next_staleness(s):
    """us at which the next artifact grows stale; NEVER if none will."""
    freshness.look(s)
    return s.stale_at


@kernel
def is_expired(s, i):
    """Whether the keep-alive of copy i has ended."""
    c = copy(s, i)
    if c.state != WARM:
        return False
    keep = model(s, c.model).keep_alive
    return keep > 0 and c.last_used + keep <= s.now


@kernel
def need(s, i):
    """How much unfinished work reads the artifact of task i, and how soon."""
    kept = artifact(s, i)
    if kept.need == 0:
        kept.need = 1 + count_need(s, i)
    return kept.need - 1


@apart
def count_need(s, i):
    """`need`, counted."""
    t = task(s, i)
    n = 0
    for e in range(t.succ_from, t.succ_to):
        o = task(s, successor(s, e).task)
        if o.state == READY:
            n += NEED_READY
        elif o.state == BLOCKED and o.near == 1:
            n += NEED_NEAR
        elif o.state == BLOCKED or o.state == RUNNING:
            n += NEED_LATER
    return n


@kernel
def least_in(s, tier, useless):
    """The artifact of least value in a tier; `useless`: among those that nobody reads and that are no result. -1 if none."""
    best = -1
    best_need = _ANY
    best_work = 0.0
    for k in range(words(s)):
        rest = members_of(s, IN_TIER + tier, k)
        while rest != 0:
            i = (k << 6) + lowest_bit(rest)
            rest &= rest - _ONE
            n = need(s, i)
            kept = artifact(s, i)
            if n > best_need or kept.size == 0:
                continue
            t = task(s, i)
            if useless and (n > 0 or t.succ_to == t.succ_from):
                continue
            if n == best_need and (t.work > best_work or (t.work == best_work and kept.created >= artifact(s, best).created)):
                continue
            best = i
            best_need = n
            best_work = t.work
    return best


@kernel
def make_room(s):
    """Artifacts of least value go down until no tier holds more than it may; what nobody needs is deleted."""
    o = store_of(s, 0)
    while o.used[TIER_HOT] > o.capacity[TIER_HOT]:
        i = least_in(s, TIER_HOT, False)
        if i < 0:
            break
        move(s, i, TIER_WARM if fits(s, TIER_WARM, artifact(s, i).size) else TIER_COLD)
    if o.capacity[TIER_WARM] > 0:
        while o.used[TIER_WARM] > o.capacity[TIER_WARM]:
            i = least_in(s, TIER_WARM, False)
            if i < 0:
                break
            move(s, i, TIER_COLD)
    if o.capacity[TIER_COLD] > 0:
        while o.used[TIER_COLD] > o.capacity[TIER_COLD]:
            i = least_in(s, TIER_COLD, True)
            if i < 0:
                break
            move(s, i, TIER_GONE)
