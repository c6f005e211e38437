"""Stale Manager: which idle copies leave memory when room is short, least recently used first.

Expiry of artifacts, keep-alives and demotion between tiers will stand here; it must not know who asks for room.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import WARM
from pit.state import copy


@kernel
def next_victim(s, budget, after):
    """The warm copy of the budget that follows copy `after` (-1 = the first) in order of (last used, index); -1 if none."""
    best = -1
    for i in range(s.copy_rows):
        c = copy(s, i)
        if c.state != WARM or c.budget != budget or i == after:
            continue
        if after >= 0:
            a = copy(s, after)
            if c.last_used < a.last_used or (c.last_used == a.last_used and i < after):
                continue
        if best < 0 or c.last_used < copy(s, best).last_used:
            best = i
    return best
