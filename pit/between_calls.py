"""What happens by itself after every event and action: queues are served, models are loaded ahead of the calls that want them.

`between_calls` = reuse, synchronise, rebalance and pre-warm, prepare fallbacks, resolve dependencies: the third automatic
layer. The other two are `pit.automation`'s.
"""

from __future__ import annotations

import numpy as np

from pit import arbitration, artifact_store, dag_tracker, pool_manager, stale_manager
from pit.automation import before_call, deny, emit_copy, emit_fetch, emit_tier, estimate, unload
from pit.compiled import apart, inside, kernel
from pit.layout import CMD_LOAD, DONE, ON, PLAIN, PREWARM_AFTER, STANDARD, TOLD_ROWS
from pit.members import UNTOLD, exclude, next_in
from pit.pool_manager import NO
from pit.state import artifact, copy, follow, model, ready, store_of, task, variant


@inside
def between_calls(s):
    """Synchronise, rebalance and pre-warm; nothing is left to do for fallbacks and dependencies."""
    if (s.n_queued > 0) | (s.any_twins + s.rebalance + s.prewarm + s.any_store > 0):
        look_around(s)


@apart
def look_around(s):
    """`between_calls`, where there may be something to do."""
    if s.status == ON and s.any_twins == 1:
        reuse(s)
    if s.n_queued > 0 and s.status == ON:
        serve_queues(s)
    if s.n_auto == 0 and s.n_idle > 0 and s.status == ON:
        if s.rebalance == 1:
            rebalance(s)
        if s.prewarm == 1 and s.n_auto == 0 and s.last_model >= 0:
            prewarm(s)
    if s.any_store == 1 and s.status == ON:
        stale_manager.make_room(s)
        if store_of(s, 0).untold == 1:
            tell_tiers(s)


@kernel
def tell_tiers(s):
    """The driver is told of every artifact that lies elsewhere than it knows, as far as there is room for commands."""
    o = store_of(s, 0)
    o.untold = 0
    i = next_in(s, UNTOLD, -1)
    while i >= 0:
        kept = artifact(s, i)
        if task(s, i).state == DONE and kept.tier != kept.told and s.n_commands >= 2 * s.n_tasks + TOLD_ROWS:
            o.untold = 1
        else:
            if task(s, i).state == DONE and kept.tier != kept.told:
                emit_tier(s, i)
                kept.told = kept.tier
            exclude(s, UNTOLD, i)
        i = next_in(s, UNTOLD, i)


@kernel
def reuse(s):
    """Ready tasks with a twin whose output is still fresh are done with it, the first one first."""
    k = 0
    while k < s.n_ready and s.status == ON:
        i = np.int64(ready(s, k).task)
        source = artifact_store.source_of(s, i) if task(s, i).mark == PLAIN else -1
        k += 1
        if source >= 0:
            artifact_store.take_over(s, i, source)
            emit_fetch(s, i, source)
            dag_tracker.reused(s, i)
            k = 0


@kernel
def serve_queues(s):
    """Pool by pool, the best of the queue begins as long as it can."""
    for p in range(s.n_pools):
        while s.pools[p].queued > 0 and s.status == ON:
            i = arbitration.first_in_queue(s, p)
            t = task(s, i)
            f = np.int64(t.function)
            v = variant(s, 3 * f + STANDARD)
            planned = pool_manager.can_begin(s, estimate(s, i, t, STANDARD, v), v)
            if planned & 3 == NO or arbitration.claimed(s, i, v):
                break
            outcome = s.outcome
            if v.forbidden == 1:
                arbitration.leave_queue(s, i)
                deny(s, i)
            else:
                v.served += 1
                before_call(s, i, f, STANDARD, planned, 0)
            s.outcome = outcome


@kernel
def pool_of(s, m):
    """The pool of model m; -1 if no variant uses it."""
    for row in range(3 * s.n_functions):
        v = variant(s, row)
        if v.model == m:
            return np.int64(v.pool)
    return -1


@kernel
def load_ahead(s, m, p):
    """Loads model m in pool p although no call has asked for it."""
    which = pool_manager.load_copy(s, p, m, 0)
    emit_copy(s, CMD_LOAD, which)


@kernel
def room_without_unwanted(s, m, budget):
    """Whether model m fits into the budget once copies that nobody wants have left."""
    if budget < 0:
        return True
    b = s.budgets[budget]
    room = b.capacity - b.used
    victim = -1
    while room < m.size:
        victim = stale_manager.next_unwanted(s, budget, victim)
        if victim < 0:
            return False
        room += model(s, copy(s, victim).model).size
    return True


@kernel
def rebalance(s):
    """Loads the model that most ready and near tasks want and that is loaded nowhere, in place of copies that none wants."""
    best = -1
    most = 0
    for x in range(s.n_models):
        m = model(s, x)
        if m.live == 0 and m.ready + m.soon > most and pool_manager.money_for(s, pool_manager.load_price(m)):
            p = pool_of(s, x)
            if p >= 0 and room_without_unwanted(s, m, s.pools[p].budget):
                best = x
                most = m.ready + m.soon
    if best < 0:
        return
    p = pool_of(s, best)
    budget = s.pools[p].budget
    if budget >= 0:
        b = s.budgets[budget]
        while b.capacity - b.used < model(s, best).size:
            unload(s, stale_manager.next_unwanted(s, budget, -1))
    load_ahead(s, best, p)


@kernel
def prewarm(s):
    """Loads the model that has most often followed the last call's, if there is room for it."""
    best = -1
    most = PREWARM_AFTER - 1
    for x in range(s.n_models):
        times = follow(s, s.last_model * s.n_models + x).task
        if times > most:
            best = x
            most = times
    if best < 0:
        return
    m = model(s, best)
    p = pool_of(s, best)
    budget = s.pools[p].budget
    if m.live > 0 or not pool_manager.money_for(s, pool_manager.load_price(m)):
        return
    if budget >= 0 and s.budgets[budget].capacity - s.budgets[budget].used < m.size:
        return
    load_ahead(s, best, p)
