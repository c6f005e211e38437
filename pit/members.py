"""Sets of tasks, one bit a task: those for which all would else have to be looked at. Walks go by index, the smallest first.

It must not know why a task is in a set.
"""

from __future__ import annotations

from numba import uint64

from pit.compiled import kernel
from pit.layout import TIER_HOT
from pit.memory import lowest_bit
from pit.state import member_words

OPTIONAL = 0  # blocked tasks that are not required
FRESH = 1  # done tasks whose artifacts will grow stale
STALE = 2  # those whose artifacts have, unless it was seen that nobody wants them
UNTOLD = 3  # artifacts that may lie elsewhere than the driver knows
IN_TIER = 4 - TIER_HOT  # + tier: artifacts that lie in it
_ONE = uint64(1)


@kernel
def include(s, which, i):
    """Task i is in set `which` from now on."""
    member_words(s, i >> 6).sets[which] |= _ONE << uint64(i & 63)


@kernel
def exclude(s, which, i):
    """Task i is not in set `which`."""
    member_words(s, i >> 6).sets[which] &= ~(_ONE << uint64(i & 63))


@kernel
def words(s):
    """In so many words of 64 bits the sets of tasks lie."""
    return (s.n_tasks + 63) >> 6


@kernel
def members_of(s, which, k):
    """Word k of set `which`, uint64: its bit b is task 64 k + b."""
    return member_words(s, k).sets[which]


@kernel
def next_in(s, which, after):
    """The member of set `which` that follows task `after` (-1 = the first); -1 if none."""
    i = after + 1
    k = i >> 6
    end = words(s)
    if k < end:
        word = member_words(s, k).sets[which] >> uint64(i & 63)
        if word != 0:
            return i + lowest_bit(word)
        for j in range(k + 1, end):
            word = member_words(s, j).sets[which]
            if word != 0:
                return (j << 6) + lowest_bit(word)
    return -1
