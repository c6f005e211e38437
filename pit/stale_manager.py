"""Stale Manager: which idle copies leave memory: if room is short, least recently used first; when their keep-alive ends. And
when artifacts grow stale.

Demotion between tiers will stand here; it must not know who asks for room.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import DONE, NEVER, STANDARD, WARM
from pit.state import artifact, copy, model, task, variant


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
    best = NEVER
    for i in range(s.n_tasks):
        t = task(s, i)
        fresh = variant(s, 3 * t.function + STANDARD).fresh
        if t.state == DONE and fresh > 0:
            when = artifact(s, i).created + fresh
            if s.now < when < best:
                best = when
    return best


@kernel
def is_expired(s, i):
    """Whether the keep-alive of copy i has ended."""
    c = copy(s, i)
    if c.state != WARM:
        return False
    keep = model(s, c.model).keep_alive
    return keep > 0 and c.last_used + keep <= s.now
