"""DAG Tracker: estimates, upward ranks, readiness and near-future demand of tasks.

Upward rank after Topcuoglu et al., HEFT (IEEE TPDS 2002), without communication cost. It must not know places or copies.
"""

from __future__ import annotations

import math

import numpy as np

from pit.compiled import bits_of, kernel
from pit.layout import (
    BLOCKED,
    DONE,
    FAILED,
    GIVEN_UP,
    N_VARIANTS,
    PRIOR_COUNT,
    PRIOR_SQUARE,
    RANK_DRIFT,
    RANK_EDGES,
    RANK_EVERY_MIN,
    RANK_EVERY_SHARE,
    READY,
    RUNNING,
    SOLVED,
    STANDARD,
)
from pit.state import model, near, ready, successor, task, variant

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
def bucket(x):
    """How many of `RANK_EDGES` are larger than x >= 0. They are half-octaves, so the exponents of x and of x / sqrt 2 tell."""
    bits = bits_of(x)
    octaves = _OCTAVE_OF_1 + 1 - (bits >> 52)
    halves = _OCTAVE_OF_1 - ((bits - _MANTISSA_OF_HALF) >> 52)
    return min(max(octaves, 0), _EDGES // 2) + min(max(halves, 0), _EDGES // 2)


@kernel
def rank_all(s):
    """Work, rank and bucket of every task, from the last to the first; work left."""
    for i in range(s.n_tasks - 1, -1, -1):
        t = task(s, i)
        t.work = t.base[STANDARD] * variant(s, 3 * t.function + STANDARD).ratio
        t.rank = 0.0
        if s.order_hidden == 0:
            best = 0.0
            for e in range(t.succ_from, t.succ_to):
                best = max(best, task(s, successor(s, e).task).rank)
            t.rank = t.work + best
        t.bucket = bucket(t.rank / s.lb)
    s.work_left = 0.0
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.state < DONE:
            s.work_left += t.work
    for f in range(s.n_functions):
        v = variant(s, 3 * f + STANDARD)
        v.ranked_ratio = v.ratio
    s.finishes = 0
    s.drift = 0


@kernel
def rank_again(s, row):
    """After a finish: marks drift of the function of `row` (its standard variant) and recomputes ranks when it is time."""
    s.finishes += 1
    if row % N_VARIANTS == STANDARD:
        v = variant(s, row)
        if abs(v.ratio - v.ranked_ratio) > RANK_DRIFT * v.ranked_ratio:
            s.drift = 1
    if s.drift == 1 and s.finishes >= max(RANK_EVERY_MIN, s.n_tasks // RANK_EVERY_SHARE):
        rank_all(s)
        n = s.n_ready
        s.n_ready = 0
        for k in range(n):  # insertion into the sorted front of the same list
            place_ready(s, ready(s, k).task)


@kernel
def bound(s):
    """LB_est, us: critical path over the fastest variants or the fullest pool's area, and the load that cannot be avoided."""
    path = 0.0
    load = -1.0
    for i in range(s.n_tasks - 1, -1, -1):
        t = task(s, i)
        least = -1.0
        light = -1.0
        for k in range(N_VARIANTS):
            v = variant(s, 3 * t.function + k)
            if v.usable == 1:
                x = t.base[k] * v.ratio
                if least < 0.0 or x < least:
                    least = x
                y = 0.0
                if v.model >= 0:
                    y = model(s, v.model).load_est
                if light < 0.0 or y < light:
                    light = y
        best = 0.0
        for e in range(t.succ_from, t.succ_to):
            best = max(best, task(s, successor(s, e).task).rank)
        t.rank = least + best
        path = max(path, t.rank)
        if t.required == 1 and (load < 0.0 or light < load):
            load = light
    for p in range(s.n_pools):
        area = 0.0
        for i in range(s.n_tasks):
            t = task(s, i)
            if t.required == 0:
                continue
            least = -1.0
            for k in range(N_VARIANTS):
                v = variant(s, 3 * t.function + k)
                if v.usable == 1:
                    if v.pool != p:
                        least = -1.0
                        break
                    x = t.base[k] * v.ratio * v.units
                    if least < 0.0 or x < least:
                        least = x
            if least > 0.0:
                area += least
        path = max(path, area / s.pools[p].places)
    return path + max(load, 0.0)


@kernel
def arrive(s):
    """The workflow is there: estimates, ranks, bounds, counts; tasks without open inputs become ready."""
    for f in range(3 * s.n_functions):
        v = variant(s, f)
        if v.usable == 1 or f % N_VARIANTS == STANDARD:
            learn_ratio(v)
    for i in range(s.n_tasks):
        t = task(s, i)
        standard = variant(s, 3 * t.function + STANDARD).nominal
        for k in range(N_VARIANTS):
            nominal = variant(s, 3 * t.function + k).nominal
            t.base[k] = nominal if t.hint <= 0.0 else t.hint * nominal / standard
        t.state = BLOCKED
        t.open_inputs = t.pred_to - t.pred_from
        if t.required == 1:
            s.n_required += 1
            if t.succ_to == t.succ_from:
                s.n_sinks += 1
    s.required_left = s.n_required
    s.lb = bound(s)
    rank_all(s)
    s.work_total = s.work_left
    s.unit = s.work_left / s.n_tasks
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.required == 1:
            v = variant(s, 3 * t.function + STANDARD)
            cost = t.work * v.price / 1e6
            if v.model >= 0:
                m = model(s, v.model)
                cost += m.load_est * m.price / 1e6
            s.upper_cost += cost
        if t.open_inputs == 0:
            make_ready(s, i)
    s.cp_start = task(s, ready(s, 0).task).rank if s.n_ready > 0 else 0.0


@kernel
def place_ready(s, i):
    """Inserts task i into the ready tasks: larger rank, then earlier ready, then smaller index."""
    t = task(s, i)
    t.key = t.function * 256 + t.bucket * 4 + (2 if t.attempts > 0 else 0) + (1 if t.hold_until > 0 else 0)
    k = s.n_ready
    while k > 0:
        j = ready(s, k - 1).task
        o = task(s, j)
        if o.rank > t.rank:
            break
        if o.rank == t.rank and (o.ready_time < t.ready_time or (o.ready_time == t.ready_time and j < i)):
            break
        ready(s, k).task = j
        k -= 1
    ready(s, k).task = i
    s.n_ready += 1


@kernel
def make_ready(s, i):
    t = task(s, i)
    t.state = READY
    t.ready_time = s.now
    place_ready(s, i)
    m = variant(s, 3 * t.function + STANDARD).model
    if m >= 0:
        model(s, m).ready += 1


@kernel
def set_near(s, i):
    """Keeps the sorted list of blocked tasks whose open inputs are all running."""
    t = task(s, i)
    is_near = (t.state == BLOCKED) & (t.open_inputs > 0) & (t.running_inputs == t.open_inputs)
    if is_near == t.near:
        return
    t.near = is_near
    if is_near:
        k = s.n_near
        while k > 0 and near(s, k - 1).task > i:
            near(s, k).task = near(s, k - 1).task
            k -= 1
        near(s, k).task = i
        s.n_near += 1
    else:
        k = 0
        while near(s, k).task != i:
            k += 1
        s.n_near -= 1
        while k < s.n_near:
            near(s, k).task = near(s, k + 1).task
            k += 1


@kernel
def dispatched(s, i, when):
    """Task i leaves the ready tasks and runs, expected to end at `when` (us); its successors have one more running input."""
    t = task(s, i)
    t.state = RUNNING
    s.n_ready -= 1
    where = np.int64(s.n_ready)
    for k in range(s.n_ready):
        where = k if ready(s, k).task == i else where
    for k in range(s.n_ready):  # everything behind task i moves up by one
        ready(s, k).task = ready(s, k + (k >= where)).task
    m = variant(s, 3 * t.function + STANDARD).model
    if m >= 0:
        model(s, m).ready -= 1
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        o = task(s, j)
        o.running_inputs += 1
        o.near_time = max(o.near_time, when)
        set_near(s, j)


@kernel
def expect(s, i, when):
    """A call of task i is expected to end at `when` (us): its successors take note."""
    t = task(s, i)
    for e in range(t.succ_from, t.succ_to):
        o = task(s, successor(s, e).task)
        o.near_time = max(o.near_time, when)


@kernel
def ended(s, i, resolved):
    """A call of task i has ended: its successors have one running input fewer, and if it is resolved (there is an output,
    or there will never be one) one open input fewer: those without any become ready."""
    t = task(s, i)
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        o = task(s, j)
        o.running_inputs -= 1
        o.open_inputs -= resolved
        set_near(s, j)
        if o.open_inputs == 0 and o.state == BLOCKED:
            make_ready(s, j)


@kernel
def done(s, i):
    """Task i has its output."""
    t = task(s, i)
    t.state = DONE
    s.work_left -= t.work
    if t.required == 1:
        s.required_left -= 1
        if t.succ_to == t.succ_from:
            s.sinks_done += 1
            s.quality_done += t.quality
    ended(s, i, 1)
    if s.required_left == 0:
        s.status = SOLVED


@kernel
def failed(s, i):
    """An attempt of task i gave nothing: it is ready again, or given up when its attempts are used."""
    t = task(s, i)
    t.attempts += 1
    if s.max_attempts > 0 and t.attempts >= s.max_attempts:
        t.state = GIVEN_UP
        t.quality = 0.0
        s.work_left -= t.work
        if t.required == 1:
            s.status = FAILED
        ended(s, i, 1 - t.required)
    else:
        ended(s, i, 0)
        make_ready(s, i)
