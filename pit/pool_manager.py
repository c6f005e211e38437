"""Pool Manager: places, copies of models and their lifecycle (idle, loading, warm, active, cooldown), load estimates.

It must not know why a call is made, nor which copy leaves when room is short: that is the Stale Manager's.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import ACTIVE, IDLE, LOADING, PRIOR_COUNT, UTILISATION_WINDOW, WARM
from pit.state import call, copy, model, variant

# How a call would begin: not at all, at once, on a copy that loads already, by loading a new copy.
NO, HERE, JOIN, LOAD = range(4)


@kernel
def plan(s, row):
    """How a call of variant `row` would get a copy, places aside: (copy + 1) * 4 + mode."""
    v = variant(s, row)
    if v.model < 0:
        return HERE
    m = model(s, v.model)
    budget = s.pools[v.pool].budget
    if m.live > 0:
        join = -1
        for i in range(s.copy_rows):
            c = copy(s, i)
            if c.model == v.model and c.pool == v.pool and c.users < m.serves:
                if c.state == WARM or c.state == ACTIVE:
                    return (i + 1) * 4 + HERE
                if c.state == LOADING and join < 0:
                    join = i
        if join >= 0:
            return (join + 1) * 4 + JOIN
    if s.n_idle > 0:
        if budget < 0:
            return LOAD
        b = s.budgets[budget]
        if b.capacity - b.used + b.evictable >= m.size:
            return LOAD
    return NO


@kernel
def has_place(s, row):
    """Whether the variant's pool has its units free."""
    v = variant(s, row)
    pool = s.pools[v.pool]
    return pool.places - pool.busy >= v.units


@kernel
def any_place(s):
    """Whether some pool has a free place: without one no start is legal, whatever is ready."""
    for p in range(s.n_pools):
        if s.pools[p].busy < s.pools[p].places:
            return True
    return False


@kernel
def settle(s, p):
    """Stores the utilisation average of pool p up to now, before its busy places change."""
    pool = s.pools[p]
    pool.utilisation = utilisation(s, p)
    pool.settled = s.now


@kernel
def utilisation(s, p):
    """The utilisation average of pool p at now, 0..1."""
    pool = s.pools[p]
    d = float(s.now - pool.settled)
    w = d / (d + UTILISATION_WINDOW * s.unit)
    return pool.utilisation + (pool.busy / pool.places - pool.utilisation) * w


@kernel
def take_places(s, p, units):
    settle(s, p)
    s.pools[p].busy += units


@kernel
def free_places(s, p, units):
    settle(s, p)
    s.pools[p].busy -= units


@kernel
def set_warm(s, c, by):
    """A copy becomes warm (by = 1) or ceases to be (-1): it can be evicted, or can no more."""
    s.pools[c.pool].warm += by
    if c.budget >= 0:
        s.budgets[c.budget].evictable += by * model(s, c.model).size


@kernel
def use_copy(s, i):
    """One more user of a warm or active copy."""
    c = copy(s, i)
    if c.state == WARM:
        set_warm(s, c, -1)
        c.state = ACTIVE
    c.users += 1
    c.last_used = s.now


@kernel
def load_copy(s, pool, m):
    """Takes memory and the first idle row for a new copy with one user, loading from now on; its index."""
    i = 0
    while copy(s, i).state != IDLE:
        i += 1
    s.copy_rows = max(s.copy_rows, i + 1)
    s.n_idle -= 1
    s.n_loading += 1
    s.pools[pool].loading += 1
    c = copy(s, i)
    md = model(s, m)
    md.live += 1
    c.pool = pool
    c.model = m
    c.budget = s.pools[pool].budget
    c.users = 1
    c.state = LOADING
    c.last_used = s.now
    c.load_est = md.load_est
    c.expected_loaded = s.now + md.load_est
    if c.budget >= 0:
        s.budgets[c.budget].used += md.size
    return i


@kernel
def drop_copy(s, i, state):
    """A copy leaves memory: to cooldown (evicted) or idle (its load failed)."""
    c = copy(s, i)
    m = model(s, c.model)
    m.live -= 1
    if c.budget >= 0:
        s.budgets[c.budget].used -= m.size
    if c.state == WARM:
        set_warm(s, c, -1)
    if c.state == LOADING:
        s.n_loading -= 1
        s.pools[c.pool].loading -= 1
    c.state = state
    c.users = 0
    if state == IDLE:
        s.n_idle += 1
        shrink_rows(s)
    else:
        s.n_cooling += 1


@kernel
def idle_copy(s, i):
    """Cooldown has ended."""
    copy(s, i).state = IDLE
    s.n_cooling -= 1
    s.n_idle += 1
    shrink_rows(s)


@kernel
def shrink_rows(s):
    while s.copy_rows > 0 and copy(s, s.copy_rows - 1).state == IDLE:
        s.copy_rows -= 1


@kernel
def copy_loaded(s, i, elapsed):
    """A copy has loaded: the load estimate learns, the copy is warm, or active if calls wait for it."""
    c = copy(s, i)
    m = model(s, c.model)
    s.n_loading -= 1
    s.pools[c.pool].loading -= 1
    c.state = ACTIVE if c.users > 0 else WARM
    if c.state == WARM:
        set_warm(s, c, 1)
    if elapsed > 0 and m.nominal > 0.0:
        m.n += 1.0
        m.s += elapsed / m.nominal
        learn_load(m)


@kernel
def learn_load(m):
    m.load_est = m.nominal * ((PRIOR_COUNT + m.s) / (PRIOR_COUNT + m.n))


@kernel
def release_copy(s, i):
    """One user fewer."""
    c = copy(s, i)
    c.users -= 1
    c.last_used = s.now
    if c.users == 0:
        c.state = WARM
        set_warm(s, c, 1)


@kernel
def has_room(s, i):
    """Whether a warm or active copy can take one more call."""
    c = copy(s, i)
    return (c.state == WARM or c.state == ACTIVE) and c.users < model(s, c.model).serves


@kernel
def free_in(s, pool, m):
    """us until a call on a copy (pool, m) is expected to end; -1.0 if none runs."""
    best = -1.0
    for k in range(s.call_rows):
        c = call(s, k)
        if c.id >= 0 and c.model == m and c.pool == pool and c.start >= 0:
            left = max(0.0, c.expected_end - s.now)
            if best < 0.0 or left < best:
                best = left
    return best


@kernel
def room_in(s, pool):
    """us until a call of the pool is expected to end; -1.0 if none is in flight."""
    best = -1.0
    for k in range(s.call_rows):
        c = call(s, k)
        if c.id >= 0 and c.pool == pool:
            left = max(0.0, c.expected_end - s.now)
            if best < 0.0 or left < best:
                best = left
    return best


@kernel
def start_delay(s, row, planned):
    """us until a call of the variant would begin if it were started now (places aside)."""
    mode = planned & 3
    if mode == HERE:
        return 0.0
    if mode == JOIN:
        return max(0.0, copy(s, (planned >> 2) - 1).expected_loaded - s.now)
    return model(s, variant(s, row).model).load_est
