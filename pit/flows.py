"""Workflows of a stream: who is most urgent, whose remaining work is how large, who is deferred.

Weighted shortest remaining work first, after Smith's rule (Naval Research Logistics Quarterly 3, 1956). It moves no task.
"""

from __future__ import annotations

import numpy as np

from pit.compiled import kernel
from pit.estimates import standard_cost
from pit.layout import MAX_OCTAVE, NEVER
from pit.state import flow, ready, task


@kernel
def urgency(s, g):
    """Weight over remaining work (per us) of workflow g."""
    w = flow(s, g)
    return w.weight / max(w.remaining, 1.0)


@kernel
def goes_first(s, a, b):
    """Whether workflow a's tasks stand before those of workflow b."""
    mine = urgency(s, a)
    other = urgency(s, b)
    return mine > other or (mine == other and a < b)


@kernel
def find_octaves(s):
    """Of each workflow: how many of 1, 2, 4, ... 2^14 are at most remaining work / mean call."""
    if s.stream == 0:
        return
    for g in range(s.n_flows):
        w = flow(s, g)
        x = w.remaining / s.unit
        n = 0
        edge = 1.0
        while n < MAX_OCTAVE and edge <= x:
            n += 1
            edge *= 2.0
        w.octave = n


@kernel
def take_share(s, t, sign):
    """Task t's share of work and cost left is added (1.0) or taken away (-1.0)."""
    s.work_left += sign * t.work
    s.cost_left += sign * standard_cost(s, t)
    if s.stream == 1:
        flow(s, t.flow).remaining += sign * t.work


@kernel
def end_deferrals(s):
    """No workflow is deferred any more."""
    if s.any_deferred == 1:
        s.any_deferred = 0
        for g in range(s.n_flows):
            flow(s, g).deferred = 0


@kernel
def least_urgent(s):
    """Of the active workflows that are not deferred and have a ready task the one of least urgency, then of largest index; -1
    if there are fewer than two."""
    found = -1
    for k in range(s.n_ready - 1, -1, -1):  # they stand in order of urgency
        g = np.int64(task(s, ready(s, k).task).flow)
        if flow(s, g).deferred == 0:
            if found >= 0 and g != found:
                return found
            found = g
    return -1


@kernel
def defer(s, g):
    """Workflow g stands in no slot until one arrives or ends."""
    flow(s, g).deferred = 1
    s.any_deferred = 1


@kernel
def flow_ratio(s):
    """min(1, weighted bounds / weighted flow times), the time that is left being at least remaining work over all places."""
    bounds = 0.0
    times = 0.0
    for g in range(s.n_flows):
        w = flow(s, g)
        lasts = float(w.ended - w.arrived)
        if w.ended == NEVER:
            lasts = float(s.now - w.arrived) + w.remaining / s.all_places
        bounds += w.weight * w.lb
        times += w.weight * lasts
    return min(1.0, bounds / times) if times > 0.0 else 1.0
