"""What an agent sees of one slot: its 25 features. Columns are declared in `pit.layout`.

Values are computed in float64 and written as float32 at an address. It must change nothing but the cache of the victim's
demand.
"""

from __future__ import annotations

import numpy as np

from pit import artifact_store, flows, pool_manager, stale_manager
from pit.compiled import kernel
from pit.layout import (
    DONE,
    LITE,
    NEVER,
    OVERDUE,
    PLAIN,
    PREMIUM,
    RUNNING,
    STANDARD,
    URGENCY_SCALE,
)
from pit.memory import put
from pit.pool_manager import LOAD
from pit.scales import clip, contrast, count2, count4, crowd, squash
from pit.state import artifact, call, copy, flow, model, predecessor, task, variant

# Feature `status` of a slot: by the class of its head; then plain and optional, and the one of these that `skip` takes.
_STATUS = np.array([0.0, 1.0, 1.0, 0.5, -0.5, -1.0])


@kernel
def victim_demand(s, v):
    """Ready and near demand of the copies that loading variant v's model would evict."""
    demand = 0.0
    budget = s.pools[v.pool].budget
    if budget < 0:
        return demand
    size = model(s, v.model).size
    if size == s.victim_size and budget == s.victim_budget:
        return s.victim_demand
    b = s.budgets[budget]
    room = b.capacity - b.used
    victim = -1
    while room < size:
        victim = stale_manager.next_victim(s, budget, victim)
        m = model(s, copy(s, victim).model)
        room += m.size
        demand += m.ready + m.near
    s.victim_size = size
    s.victim_budget = budget
    s.victim_demand = demand
    return demand


@kernel
def encode_delay(s, at, first, kinds, k, fetch):
    """Feature 6 + k: when variant k, if it is one of the usable `kinds`, could begin, `fetch` us later for its inputs;
    `first` = the function's first row."""
    if (kinds >> k) & 1:
        put(at, 6 + k, squash(pool_manager.start_delay(s, variant(s, first + k)) + fetch, s.unit))
    else:
        put(at, 6 + k, -1.0)


@kernel
def encode_supply(s, slot, at, first, v):
    """Features 6-13 of a slot: when its variants could begin, and who else wants their models; `v` = its standard variant."""
    fetch = artifact_store.fetch_time(s, slot.head) if s.any_store == 1 else 0
    encode_delay(s, at, first, v.kinds, LITE, fetch)
    encode_delay(s, at, first, v.kinds, STANDARD, fetch)
    encode_delay(s, at, first, v.kinds, PREMIUM, fetch)
    put(at, 9, 1.0)
    if v.model >= 0:
        m = model(s, v.model)
        put(at, 9, squash(pool_manager.free_in(s, v.model), s.unit))  # 1 if none runs: that is a long time
        put(at, 10, count2(m.live))
        put(at, 11, count4(m.ready))
        put(at, 12, crowd(m.near, 4.0))
        if slot.mode[STANDARD] == LOAD:
            put(at, 13, crowd(victim_demand(s, v), 4.0))


@kernel
def encode_contrast(s, at, t, v, est, k):
    """Variant k of task t beside its standard variant v (of estimate `est`): features 14, 16 and 18."""
    o = variant(s, 3 * t.function + k)
    other = t.base[k] * o.ratio
    put(at, 14, contrast(other, est))
    put(at, 16, clip(o.quality - v.quality, -1.0, 1.0))
    put(at, 18, contrast(other * o.price, est * v.price))


@kernel
def freshness(s, t):
    """How stale the worst input of task t is; without one that ages, minus how quickly its own output will be."""
    worst = 0.0
    for e in range(t.pred_from, t.pred_to):
        j = predecessor(s, e).task
        o = task(s, j)
        fresh = variant(s, 3 * o.function + STANDARD).fresh
        if o.state == DONE and fresh > 0:
            worst = max(worst, min(1.0, (s.now - artifact(s, j).created) / fresh))
    own = variant(s, 3 * t.function + STANDARD).fresh
    if worst == 0.0 and own > 0:
        return -s.unit / (s.unit + own)
    return worst


@kernel
def twins(s, i):
    """c / (c + 4) of the unfinished twins of task i that have arrived, negative if one of them is in flight."""
    n = 0
    sign = 1.0
    j = artifact(s, i).next_twin
    while j != i:
        state = task(s, j).state
        n += (state < DONE) & (j < s.n_tasks)
        if state == RUNNING:
            sign = -1.0
        j = artifact(s, j).next_twin
    return sign * count4(n)


@kernel
def overrun_of(s, i):
    """By how much the oldest call of running task i has overrun: contrast of its time and its estimate."""
    k = 0
    while call(s, k).task != i:
        k += 1
    c = call(s, k)
    return max(0.0, contrast(float(s.now - c.start), c.est)) if c.start >= 0 else 0.0


@kernel
def encode_slot(s, g, at, path, skipped):
    """The 25 features of slot g at float address `at`; `path` = cp_left, `skipped` = the task that `skip` would give up."""
    slot = s.slots[g]
    t = task(s, slot.head)
    first = 3 * t.function
    v = variant(s, first + STANDARD)
    est = t.base[STANDARD] * v.ratio
    if s.exposure > 0:
        encode_supply(s, slot, at, first, v)
    put(at, 0, count4(slot.count))
    if s.order_hidden == 0 and path > 0.0:
        put(at, 1, min(1.0, t.rank / path))
    w = flow(s, t.flow)
    if s.stream == 1:
        put(at, 2, crowd(URGENCY_SCALE * flows.urgency(s, np.int64(t.flow)) * s.unit, 1.0))
    else:
        put(at, 2, 1.0 if s.deadline == NEVER else clip((s.deadline - s.now - t.rank) / s.lb, -1.0, 1.0))
    put(at, 3, crowd(t.influence * (w.last - w.first), 1.0))
    put(at, 4, squash(est, s.unit))
    put(at, 5, clip(t.base[STANDARD] * v.deviation / est, 0.0, 1.0))
    if v.kinds & (1 << LITE):
        encode_contrast(s, at, t, v, est, LITE)
    if v.kinds & (1 << PREMIUM):
        encode_contrast(s, at + 4, t, v, est, PREMIUM)
    put(at, 20, count2(t.attempts))
    if t.mark == OVERDUE:
        put(at, 21, overrun_of(s, np.int64(slot.head)))
    is_skipped = (skipped == -2) | (skipped == slot.head)
    optional = (t.mark == PLAIN) & (t.required == 0)
    put(at, 23, _STATUS[t.mark + optional * (4 + is_skipped)])  # plain is 0
    if s.any_fresh == 1:
        put(at, 22, freshness(s, t))
    if s.order_hidden == 1:
        put(at, 24, clip(v.code, -1.0, 1.0))
    elif s.any_twins == 1:
        put(at, 24, twins(s, np.int64(slot.head)))
