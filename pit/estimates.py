"""Estimates of a workflow: durations, upward ranks, the lower bound LB, and what a task's quality means for the sinks.

Upward rank after Topcuoglu et al., HEFT (IEEE TPDS 2002), without communication cost. It must change no task's state.
"""

from __future__ import annotations

import math

import numpy as np

from pit.compiled import kernel
from pit.layout import ADAPT_COUNT, DONE, N_VARIANTS, PRIOR_COUNT, PRIOR_SQUARE, RANK_DRIFT, RANK_EDGES, STANDARD
from pit.memory import bits_of
from pit.state import flow, model, predecessor, successor, task, variant

_EDGES = len(RANK_EDGES)
_OCTAVE_OF_1 = 1023  # the exponent bits of 1.0
_MANTISSA_OF_HALF = int(np.float64(RANK_EDGES[1]).view(np.int64)) & ((1 << 52) - 1)  # the half-octaves share it
_PRIOR_DEVIATION = math.sqrt(PRIOR_SQUARE / PRIOR_COUNT - 1.0)


@kernel
def learn_ratio(v):
    """Refreshes what the Pit believes of observed / hinted for one variant."""
    if v.n == 0.0:
        v.ratio = 1.0
        v.deviation = _PRIOR_DEVIATION
        return
    v.ratio = (PRIOR_COUNT + v.s) / (PRIOR_COUNT + v.n)
    v.deviation = math.sqrt(max((PRIOR_SQUARE + v.ss) / (PRIOR_COUNT + v.n) - v.ratio * v.ratio, 0.0))


@kernel
def observe_duration(s, row, x):
    """One more observed / hinted ratio."""
    v = variant(s, row)
    v.n += 1.0
    v.s += x
    v.ss += x * x
    learn_ratio(v)


@kernel
def adapt(s, row, ratio, deviation):
    """Earlier observations of a variant are forgotten: as if a few had shown this ratio and deviation."""
    v = variant(s, row)
    v.n = ADAPT_COUNT
    v.s = (PRIOR_COUNT + ADAPT_COUNT) * ratio - PRIOR_COUNT
    v.ss = (PRIOR_COUNT + ADAPT_COUNT) * (deviation * deviation + ratio * ratio) - PRIOR_SQUARE
    learn_ratio(v)
    look_for_drift(s, row)


@kernel
def look_for_drift(s, row):
    """Marks that ranks are out of date if the ratio of a standard variant has left the one that they were computed with."""
    if row % N_VARIANTS == STANDARD:
        v = variant(s, row)
        if abs(v.ratio - v.ranked_ratio) > RANK_DRIFT * v.ranked_ratio:
            s.drift = 1


@kernel
def bucket(x):
    """How many of `RANK_EDGES` are larger than x >= 0. They are half-octaves, so the exponents of x and of x / sqrt 2 tell."""
    bits = bits_of(x)
    octaves = _OCTAVE_OF_1 + 1 - (bits >> 52)
    halves = _OCTAVE_OF_1 - ((bits - _MANTISSA_OF_HALF) >> 52)
    return min(max(octaves, 0), _EDGES // 2) + min(max(halves, 0), _EDGES // 2)


@kernel
def rank_all(s):
    """Work, rank and bucket of every task, from the last to the first; work and cost left, in a stream by workflow, too."""
    for i in range(s.n_tasks - 1, -1, -1):
        t = task(s, i)
        t.work = t.base[STANDARD] * variant(s, 3 * t.function + STANDARD).ratio
        t.rank = 0.0
        if s.order_hidden == 0:
            best = 0.0
            for e in range(t.succ_from, t.succ_to):
                best = max(best, task(s, successor(s, e).task).rank)
            t.rank = t.work + best
        t.bucket = bucket(t.rank / flow(s, t.flow).lb)
    s.work_left = 0.0
    s.cost_left = 0.0
    if s.stream == 1:
        for g in range(s.n_flows):
            flow(s, g).remaining = 0.0
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.state < DONE:
            s.work_left += t.work
            s.cost_left += standard_cost(s, t)
            if s.stream == 1:
                flow(s, t.flow).remaining += t.work
    for f in range(s.n_functions):
        v = variant(s, 3 * f + STANDARD)
        v.ranked_ratio = v.ratio
    s.finishes = 0
    s.drift = 0


@kernel
def standard_cost(s, t):
    """Micro-units that a task's work costs with the standard variant."""
    return t.work * variant(s, 3 * t.function + STANDARD).price / 1e6


@kernel
def least_of(s, t):
    """The least estimate (us) over the usable variants of a task."""
    least = -1.0
    for k in range(N_VARIANTS):
        v = variant(s, 3 * t.function + k)
        if v.usable == 1:
            x = t.base[k] * v.ratio
            least = x if least < 0.0 or x < least else least
    return least


@kernel
def has_choice(s, first, last):
    """Whether some task among first..last - 1, a workflow's, joins `any`."""
    found = False
    if s.any_join == 1:
        for i in range(first, last):
            found |= task(s, i).join_any == 1
    return found


@kernel
def find_needed(s, first, last):
    """Marks the tasks without which a workflow's run succeeds in no way, whatever alternative it takes (`touched`)."""
    choice = has_choice(s, first, last)
    for i in range(last - 1, first - 1, -1):
        t = task(s, i)
        t.touched = t.required
        if choice and t.required == 1 and t.succ_to > t.succ_from:
            t.touched = 0
            for e in range(t.succ_from, t.succ_to):
                o = task(s, successor(s, e).task)
                if o.touched == 1 and o.join_any == 0 and successor(s, e).soft == 0:
                    t.touched = 1


@kernel
def longest_path(s, first, last):
    """us of the critical path of required tasks over the fastest variants and the shorter alternatives; uses `rank`."""
    path = 0.0
    for i in range(first, last):
        t = task(s, i)
        before = -1.0
        for e in range(t.pred_from, t.pred_to):
            link = predecessor(s, e)
            if link.soft == 0:
                x = task(s, link.task).rank
                if before < 0.0 or (x < before if t.join_any == 1 else x > before):
                    before = x
        t.rank = max(before, 0.0) + least_of(s, t)
        path = max(path, t.rank if t.required == 1 else 0.0)
    return path


@kernel
def pool_area(s, first, last, p):
    """us that the needed tasks which only pool p can do fill its places."""
    area = 0.0
    for i in range(first, last):
        t = task(s, i)
        if t.touched == 0:
            continue
        least = -1.0
        for k in range(N_VARIANTS):
            v = variant(s, 3 * t.function + k)
            if v.usable == 1:
                if v.pool != p and v.also != p:
                    least = -1.0
                    break
                x = t.base[k] * v.ratio * (v.units if v.pool == p else v.also_units)
                if least < 0.0 or x < least:
                    least = x
        if least > 0.0:
            area += least
    return area / s.pools[p].places


@kernel
def least_load(s, first, last):
    """us of the load that cannot be avoided."""
    load = -1.0
    for i in range(first, last):
        t = task(s, i)
        if t.touched == 0:
            continue
        for k in range(N_VARIANTS):
            v = variant(s, 3 * t.function + k)
            if v.usable == 1:
                x = model(s, v.model).load_est if v.model >= 0 else 0.0
                load = x if load < 0.0 or x < load else load
    return max(load, 0.0)


@kernel
def bound(s, first, last):
    """LB_est of the workflow of tasks first..last - 1, us: critical path or the fullest pool's area, and the load that cannot
    be avoided."""
    find_needed(s, first, last)
    path = longest_path(s, first, last)
    for p in range(s.n_pools):
        path = max(path, pool_area(s, first, last, p))
    path += least_load(s, first, last)
    for i in range(first, last):
        task(s, i).touched = 0
    return path


@kernel
def find_influence(s, first, last, sinks):
    """What one task's quality means for the mean of its workflow's required sinks, from the last task to the first."""
    for i in range(last - 1, first - 1, -1):
        t = task(s, i)
        x = 0.0
        if t.required == 1 and t.succ_to == t.succ_from:
            x = 1.0 / sinks
        for e in range(t.succ_from, t.succ_to):
            o = task(s, successor(s, e).task)
            x += s.quality_flow * o.influence / (o.pred_to - o.pred_from)
        t.influence = x
