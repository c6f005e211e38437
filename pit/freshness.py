"""Which artifacts have grown stale and are still wanted: what the DAG Tracker and the Stale Manager both ask.

Who grows stale is looked for only once the next one has.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import DONE, NEVER, READY, STANDARD
from pit.members import FRESH, STALE, exclude, include, next_in
from pit.state import artifact, predecessor, successor, task, variant


@kernel
def time_of(s, i):
    """us for which the artifact of task i stays fresh; 0 = for ever."""
    return variant(s, 3 * task(s, i).function + STANDARD).fresh


@kernel
def made(s, i):
    """Done task i has an artifact."""
    fresh = time_of(s, i)
    if fresh > 0:
        include(s, FRESH, i)
        s.stale_at = min(s.stale_at, artifact(s, i).created + fresh)


@kernel
def unmade(s, i):
    """Task i has no artifact any more."""
    exclude(s, FRESH, i)
    exclude(s, STALE, i)
    s.stale_at = 0


@kernel
def wanted(s, j):
    """Task j waits for inputs: the artifacts of those that are done are wanted again."""
    t = task(s, j)
    for e in range(t.pred_from, t.pred_to):
        i = predecessor(s, e).task
        if task(s, i).state == DONE and time_of(s, i) > 0:
            include(s, FRESH, i)
            s.stale_at = 0


@kernel
def look(s):
    """Finds what has grown stale since the last look, and when the next artifact will."""
    if s.now < s.stale_at:
        return
    s.stale_at = NEVER
    i = next_in(s, FRESH, -1)
    while i >= 0:
        when = artifact(s, i).created + time_of(s, i)
        if when <= s.now:
            exclude(s, FRESH, i)
            include(s, STALE, i)
        else:
            s.stale_at = min(s.stale_at, when)
        i = next_in(s, FRESH, i)


@kernel
def is_wanted(s, i):
    """Whether a successor of task i is ready or blocked."""
    t = task(s, i)
    for e in range(t.succ_from, t.succ_to):
        if task(s, successor(s, e).task).state <= READY:
            return True
    return False


@kernel
def stalest(s):
    """The done task whose stale artifact is still wanted and is oldest for its kind, then of smallest index; -1 if none."""
    look(s)
    found = -1
    most = 0.0
    i = next_in(s, STALE, -1)
    while i >= 0:
        if is_wanted(s, i):
            age = (s.now - artifact(s, i).created) / time_of(s, i)
            if age > most:
                found = i
                most = age
        else:
            exclude(s, STALE, i)
        i = next_in(s, STALE, i)
    return found
