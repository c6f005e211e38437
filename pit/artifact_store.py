"""Artifact Store: what finished tasks left: quality, size, version, time, tier. Inputs' quality flows into outputs'; what is
stale counts less; twins take over each other's; what calls were made from, and how long their inputs must be fetched.

It must not know which tasks become ready by an artifact: that is the DAG Tracker's.
"""

from __future__ import annotations

import numpy as np

from pit.compiled import kernel
from pit.layout import DONE, STANDARD, TIER_GONE, TIER_HOT
from pit.state import artifact, predecessor, store_of, task, variant
from pit.tiers import first_tier, fits, move

_MOST = 255  # versions that are counted


@kernel
def is_stale(s, i):
    """Whether the artifact of done task i is older than its function's artifacts stay fresh."""
    fresh = variant(s, 3 * task(s, i).function + STANDARD).fresh
    return fresh > 0 and s.now - artifact(s, i).created >= fresh


@kernel
def stale_inputs(s, i):
    """How many inputs of task i are done and stale."""
    t = task(s, i)
    n = 0
    for e in range(t.pred_from, t.pred_to):
        j = predecessor(s, e).task
        n += task(s, j).state == DONE and is_stale(s, j)
    return n


@kernel
def is_gone(s, i):
    """Whether the artifact of done task i was deleted."""
    return s.any_store == 1 and artifact(s, i).tier == TIER_GONE


@kernel
def fetch_time(s, i):
    """us until all inputs of task i are at hand, fetched side by side."""
    t = task(s, i)
    longest = 0
    for e in range(t.pred_from, t.pred_to):
        j = predecessor(s, e).task
        if task(s, j).state == DONE:
            longest = max(longest, store_of(s, 0).fetch[artifact(s, j).tier])
    return longest


@kernel
def fetch_inputs(s, i):
    """The inputs of task i come into the hot tier, as far as they fit into it at all."""
    t = task(s, i)
    for e in range(t.pred_from, t.pred_to):
        j = predecessor(s, e).task
        if task(s, j).state == DONE and fits(s, TIER_HOT, artifact(s, j).size):
            artifact(s, j).told = TIER_HOT
            move(s, j, TIER_HOT)


@kernel
def note_inputs(s, i):
    """Lineage: the versions of task i's inputs as a call of it begins."""
    t = task(s, i)
    for e in range(t.pred_from, t.pred_to):
        link = predecessor(s, e)
        o = task(s, link.task)
        link.used = o.version if o.state == DONE else 0


@kernel
def source_of(s, i):
    """The twin whose output task i can take over: done, not stale, the newest, then of smallest index; -1 if there is none."""
    found = -1
    j = np.int64(artifact(s, i).next_twin)
    while j != i:
        if task(s, j).state == DONE and not is_stale(s, j) and not is_gone(s, j):
            newer = found < 0 or artifact(s, j).created > artifact(s, found).created
            if newer or (artifact(s, j).created == artifact(s, found).created and j < found):
                found = j
        j = np.int64(artifact(s, j).next_twin)
    return found


@kernel
def take_over(s, i, source):
    """Task i has the output of its twin `source`, as old as that."""
    t = task(s, i)
    t.quality = task(s, source).quality
    t.version = min(t.version + 1, _MOST)
    kept = artifact(s, i)
    kept.created = artifact(s, source).created
    kept.size = artifact(s, source).size
    origin = artifact(s, source).source
    origin = source if origin < 0 else origin
    kept.source = -1 if origin == i else origin
    if s.any_store == 1:
        kept.told = artifact(s, source).told
        move(s, i, artifact(s, source).tier)


@kernel
def flowed(s, i, quality, stale):
    """Quality of task i's output if its variant alone would give `quality`: q (1 - a + a mean(inputs)), a the quality flow.

    An input that is given up counts 0; of alternatives only those that are done count; `stale` inputs count less.
    """
    t = task(s, i)
    n = t.pred_to - t.pred_from
    mean = 1.0
    if n > 0:
        total = 0.0
        for e in range(t.pred_from, t.pred_to):
            o = task(s, predecessor(s, e).task)
            if t.join_any == 1 and o.state != DONE:
                n -= 1
            else:
                total += o.quality
        mean = total / n if n > 0 else 1.0
        if stale > 0:
            mean *= 1.0 - stale / (t.pred_to - t.pred_from) * (1.0 - s.stale_quality)
    return quality * (1.0 - s.quality_flow + s.quality_flow * mean)


@kernel
def store(s, i, row, quality, size, stale):
    """Keeps the output of task i; an unknown quality (< 0) counts as the variant's nominal one."""
    t = task(s, i)
    if quality < 0.0:
        quality = flowed(s, i, variant(s, row).quality, stale)
    t.quality = quality
    t.version = min(t.version + 1, _MOST)
    kept = artifact(s, i)
    kept.created = s.now
    kept.size = max(0, size)
    kept.source = -1
    if s.any_store == 1:
        kept.told = TIER_HOT
        move(s, i, first_tier(s, kept.size))
