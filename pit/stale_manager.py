"""Stale Manager: which idle copies leave memory when room is short, least recently used first.

Expiry of artifacts, keep-alives and demotion between tiers will stand here; it must not know who asks for room.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import NEVER, WARM
from pit.state import copy


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
