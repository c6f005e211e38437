"""Pool Manager: places, tokens, money, copies of models and their lifecycle (idle, loading, warm, active, cooldown), load
estimates.

It must not know why a call is made, nor which copy leaves when room is short: that is the Stale Manager's.
"""

from __future__ import annotations

import numpy as np

from pit.compiled import kernel
from pit.layout import ACTIVE, IDLE, LOADING, NEVER, PRIOR_COUNT, UTILISATION_WINDOW, WARM
from pit.state import call, copy, model

# How a call would begin: not at all, at once, on a copy that loads already, by loading a new copy.
NO, HERE, JOIN, LOAD = range(4)
_NONE = float(NEVER)  # us: no such call


@kernel
def gain_room(s, i):
    """Copy i has room for a call, or is loaded now: its model's `here` and `join` take note."""
    c = copy(s, i)
    m = model(s, c.model)
    if c.state == LOADING:
        join = m.join
        m.join = i if join < 0 or i < join else join
    else:
        here = m.here
        m.here = i if here < 0 or i < here else here


@kernel
def lose_room(s, i, state):
    """Copy i, which was in `state`, may have no room any more: if its model would use it next, another one is looked for."""
    which = copy(s, i).model
    m = model(s, which)
    if (m.join if state == LOADING else m.here) != i:
        return
    found = -1
    for k in range(s.copy_rows - 1, -1, -1):  # downwards, so that the first row stays
        c = copy(s, k)
        alike = (c.state == LOADING) if state == LOADING else (c.state == WARM) | (c.state == ACTIVE)
        found = k if alike & (c.model == which) & (c.users < m.serves) else found
    if state == LOADING:
        m.join = found
    else:
        m.here = found


@kernel
def plan(s, v):
    """How a call of variant v would get a copy, places aside: (copy + 1) * 4 + mode."""
    if v.model < 0:
        return HERE
    m = model(s, v.model)
    here = m.here
    join = m.join
    budget = s.pools[v.pool].budget
    b = s.budgets[max(budget, 0)]
    fits = (s.n_idle > 0) & ((budget < 0) | (b.capacity - b.used + b.evictable >= m.size))
    # Selected, not branched: which of these it is, is anybody's guess.
    planned = LOAD if fits else NO
    joining = join * 4 + (4 + JOIN)
    planned = joining if join >= 0 else planned
    using = here * 4 + (4 + HERE)
    return using if here >= 0 else planned


@kernel
def has_place(s, v):
    """Whether the variant's pool has its units free, and a gang's second pool those of it."""
    pool = s.pools[v.pool]
    enough = pool.places - pool.busy - pool.tenants >= v.units
    if s.any_gang == 1 and v.also >= 0:
        pool = s.pools[v.also]
        enough &= pool.places - pool.busy - pool.tenants >= v.also_units
    return enough


@kernel
def is_full(pool):
    """Whether a pool has no free place."""
    return pool.busy + pool.tenants >= pool.places


@kernel
def set_tenants(s, p, size):
    """Other tenants take `size` places of pool p, as far as it has them."""
    settle(s, p)
    pool = s.pools[p]
    s.n_full -= is_full(pool)
    s.all_tenants -= pool.tenants
    pool.tenants = min(size, np.int64(pool.places))
    s.all_tenants += pool.tenants
    s.n_full += is_full(pool)


@kernel
def credit(s, p):
    """What the token bucket of pool p holds now, us of refill time."""
    pool = s.pools[p]
    return min(pool.full, pool.credit + (s.now - pool.credited))


@kernel
def take_tokens(s, p, amount):
    """`amount` us leave the bucket of pool p; 0 empties nothing."""
    pool = s.pools[p]
    pool.credit = credit(s, p) - amount
    pool.credited = s.now


@kernel
def call_price(est, v):
    """Micro-units that a call of variant v is expected to cost."""
    return np.int64(est * v.price / 1e6)


@kernel
def load_price(m):
    """Micro-units that a load of model m is expected to cost."""
    return np.int64(m.load_est * m.price / 1e6)


@kernel
def money_for(s, amount):
    """Whether this amount may still be committed."""
    return (s.money == 0) | (s.spent + s.committed + amount <= s.money)


@kernel
def refused(s, est, v, mode):
    """Why limits forbid a call of variant v, expected to take `est` us: 0 they do not, 1 a back-off, 2 tokens or money."""
    pool = s.pools[v.pool]
    if pool.closed_until > s.now or (v.also >= 0 and s.pools[v.also].closed_until > s.now):
        return 1
    if pool.period > 0 and credit(s, v.pool) < v.tokens * pool.period:
        return 2
    if s.money > 0:
        amount = call_price(est, v)
        if mode == LOAD:
            amount += load_price(model(s, v.model))
        if not money_for(s, amount):
            return 2
    return 0


@kernel
def can_begin(s, est, v):
    """How a call of variant v that is expected to take `est` us would begin now (as `plan`), mode NO if it cannot."""
    planned = plan(s, v)
    mode = planned & 3
    if mode == NO or not has_place(s, v):
        return NO
    if s.any_tight == 1 and refused(s, est, v, mode) != 0:
        return NO
    return planned


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
    used = min(1.0, (pool.busy + pool.tenants) / pool.places)
    return pool.utilisation + (used - pool.utilisation) * w


@kernel
def take_places(s, p, units):
    settle(s, p)
    pool = s.pools[p]
    s.n_full -= is_full(pool)
    pool.busy += units
    s.n_full += is_full(pool)


@kernel
def free_places(s, p, units):
    settle(s, p)
    pool = s.pools[p]
    s.n_full -= is_full(pool)
    pool.busy -= units
    s.n_full += is_full(pool)


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
    c.last_used = s.now
    add_user(s, i)


@kernel
def add_user(s, i):
    """One more user of a copy, loaded or not."""
    c = copy(s, i)
    c.users += 1
    if c.users >= model(s, c.model).serves:
        lose_room(s, i, c.state)


@kernel
def load_copy(s, pool, m, users):
    """Takes memory, the first idle row and the load's price for a new copy, loading from now on; its index."""
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
    c.users = users
    c.state = LOADING
    c.auto = 1 - users
    s.n_auto += c.auto
    c.cost = load_price(md)
    s.committed += c.cost
    if users < md.serves:
        gain_room(s, i)
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
        load_ended(s, c)
    before = c.state
    c.state = state
    c.users = 0
    lose_room(s, i, before)
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
def load_ended(s, c):
    """Copy c does not load any more."""
    s.n_loading -= 1
    s.pools[c.pool].loading -= 1
    s.committed -= c.cost
    s.n_auto -= c.auto
    c.auto = 0


@kernel
def copy_loaded(s, i, elapsed):
    """A copy has loaded: the load estimate learns, the copy is warm, or active if calls wait for it."""
    c = copy(s, i)
    m = model(s, c.model)
    load_ended(s, c)
    c.state = ACTIVE if c.users > 0 else WARM
    if c.state == WARM:
        c.last_used = s.now
        set_warm(s, c, 1)
    lose_room(s, i, LOADING)
    if c.users < m.serves:
        gain_room(s, i)
    if elapsed > 0 and m.nominal > 0.0:
        m.n += 1.0
        m.s += elapsed / m.nominal
        learn_load(m)


@kernel
def learn_load(m):
    m.load_est = m.nominal * ((PRIOR_COUNT + m.s) / (PRIOR_COUNT + m.n))


@kernel
def release_copy(s, i):
    """One user fewer, of a copy that is loaded or still loads."""
    c = copy(s, i)
    c.users -= 1
    if c.state != LOADING:
        c.last_used = s.now
    if c.users == 0 and c.state == ACTIVE:
        c.state = WARM
        set_warm(s, c, 1)
    gain_room(s, i)


@kernel
def has_room(s, i):
    """Whether a warm or active copy can take one more call."""
    c = copy(s, i)
    return (c.state == WARM or c.state == ACTIVE) and c.users < model(s, c.model).serves


@kernel
def call_changed(s, m):
    """A started call on model m has ended, or is expected to end at another time."""
    if m >= 0:
        first = _NONE
        for k in range(s.n_calls):
            c = call(s, k)
            first = min(first, c.expected_end if (c.model == m) & (c.start >= 0) else _NONE)
        model(s, m).free_at = first


@kernel
def free_in(s, m):
    """us until a started call on model m is expected to end; beyond all bounds if none runs."""
    return max(0.0, model(s, m).free_at - s.now)


@kernel
def copy_delay(s, v):
    """us until variant v's model would be there if a call were started now."""
    if v.model < 0:
        return 0.0
    m = model(s, v.model)
    join = m.join
    load_est = m.load_est
    joined = max(0.0, copy(s, max(join, 0)).expected_loaded - s.now)  # chosen below, or not: a guess would cost more
    delay = joined if join >= 0 else load_est
    return 0.0 if m.here >= 0 else delay


@kernel
def next_place(s, pool):
    """us until a call of the pool is expected to end, as far as the encoder's `room` tells; without one the mean call."""
    return max(0.0, pool.room - s.now) if pool.room < _NONE else s.unit


@kernel
def room_in(s, v):
    """us until a call of the variant's pools that lack free places is expected to end, the later one of a gang's two."""
    wait = 0.0
    pool = s.pools[v.pool]
    if pool.places - pool.busy - pool.tenants < v.units:
        wait = next_place(s, pool)
    if v.also >= 0 and s.pools[v.also].places - s.pools[v.also].busy - s.pools[v.also].tenants < v.also_units:
        wait = max(wait, next_place(s, s.pools[v.also]))
    return wait


@kernel
def place_delay(s, v):
    """us until variant v's pools are expected to have its units free, as far as the encoder's `room` tells."""
    delay = pool_delay(s, s.pools[v.pool], v.units)
    if s.any_gang == 1 and v.also >= 0:
        delay = max(delay, pool_delay(s, s.pools[v.also], v.also_units))
    return delay


@kernel
def pool_delay(s, pool, units):
    """us until a pool is expected to have so many places free."""
    if pool.places - pool.busy - pool.tenants >= units:
        return 0.0
    return next_place(s, pool) + pool.queued * s.unit / pool.places


@kernel
def start_delay(s, v):
    """us until a call of variant v would begin: its copy, a place, tokens, the end of a back-off, a new configuration."""
    delay = max(copy_delay(s, v), place_delay(s, v))
    if v.mending == 1:
        delay = max(delay, s.unit)
    if s.any_tight == 1:
        pool = s.pools[v.pool]
        if pool.period > 0:
            delay = max(delay, float(v.tokens * pool.period - credit(s, v.pool)))
        delay = max(delay, float(pool.closed_until - s.now))
        if v.also >= 0:
            delay = max(delay, float(s.pools[v.also].closed_until - s.now))
    return delay


@kernel
def next_token(s, p):
    """us at which pool p holds one token more; NEVER if it needs none."""
    pool = s.pools[p]
    if pool.period == 0:
        return NEVER
    held = credit(s, p)
    if held >= pool.most:
        return NEVER
    return s.now + pool.period - held % pool.period
