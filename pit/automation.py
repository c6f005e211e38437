"""The automatic layers around every call, and what each event does: a place that knows all components.

`before_call` = access, inputs, allocation, state. `after_call` = store, track, release, log. The third layer is
`pit.between_calls`.
"""

from __future__ import annotations

import numpy as np

from pit import arbitration, artifact_store, dag_tracker, healing, health, open_tasks, pool_manager, stale_manager
from pit.compiled import kernel
from pit.layout import (
    CMD_CANCEL,
    CMD_DELETE,
    CMD_FETCH,
    CMD_LOAD,
    CMD_START,
    CMD_STORE,
    CMD_UNLOAD,
    COOLDOWN,
    ERR_ACCESS,
    ERR_CANCELLED,
    ERR_LOAD,
    ERR_LOST,
    ERR_PRECONDITION,
    ERR_THROTTLED,
    FELL_BACK,
    IDLE,
    N_VARIANTS,
    OK,
    ON,
    OUT_COLD,
    OUT_DENIED,
    OUT_FAILED,
    OUT_WARM,
    OVERRUN_FACTOR,
    OVERRUN_SPREADS,
    QUEUED,
    READY,
    TIER_GONE,
)
from pit.memory import copy_record
from pit.pool_manager import HERE, LOAD, NO
from pit.slot_key import key_of
from pit.state import artifact, call, command, copy, follow, model, task, variant


# --------------------------------------------------------------------------- commands
@kernel
def emit_call(s, kind, k):
    """A command about the call in row k: start or cancel."""
    c = call(s, k)
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = kind
    out.call = c.id
    out.task = c.task
    out.function = c.function
    out.variant = c.variant
    out.pool = c.pool
    out.copy = c.copy
    out.model = c.model


@kernel
def emit_copy(s, kind, i):
    """A command about copy i: load or unload."""
    c = copy(s, i)
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = kind
    out.call = -1
    out.task = -1
    out.function = -1
    out.variant = -1
    out.pool = c.pool
    out.copy = i
    out.model = c.model


@kernel
def emit_fetch(s, i, source):
    """A command: the output of task i is that of task `source`."""
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = CMD_FETCH
    out.call = -1
    out.task = i
    out.function = task(s, i).function
    out.variant = -1
    out.pool = -1
    out.copy = source
    out.model = -1


@kernel
def emit_tier(s, i):
    """A command: the artifact of task i goes to another tier, or is deleted."""
    tier = artifact(s, i).tier
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = CMD_DELETE if tier == TIER_GONE else CMD_STORE
    out.call = -1
    out.task = i
    out.function = task(s, i).function
    out.variant = -1
    out.pool = -1
    out.copy = -1 if tier == TIER_GONE else tier
    out.model = -1


@kernel
def begin(s, k):
    """The call in row k begins now."""
    emit_call(s, CMD_START, k)
    set_start(s, k)


@kernel
def set_start(s, k):
    """The call in row k runs since now: when it is expected to end, and when it will have overrun."""
    c = call(s, k)
    c.start = s.now
    c.expected_end = s.now + c.est
    c.limit = max(1, np.int64(OVERRUN_FACTOR * c.est + OVERRUN_SPREADS * c.spread))
    c.overrun = 0
    if c.model >= 0:
        m = model(s, c.model)
        m.free_at = min(m.free_at, c.expected_end)


@kernel
def unload(s, which):
    """A warm copy leaves memory."""
    pool_manager.drop_copy(s, which, COOLDOWN)
    emit_copy(s, CMD_UNLOAD, which)


# --------------------------------------------------------------------------- before a call
@kernel
def estimate(s, i, t, k, v):
    """us that a call of task i (t) with variant k (v) is expected to take if it begins now, fetching included."""
    est = t.base[k] * v.ratio
    if s.any_store == 1:
        est += artifact_store.fetch_time(s, i)
    return est


@kernel
def before_call(s, i, f, k, planned, hedge):
    """Starts a call of task i with variant k: places, tokens, money, a copy, its record, the commands that make it real."""
    v = variant(s, 3 * f + k)
    t = task(s, i)
    mode = planned & 3
    which = (planned >> 2) - 1
    est = t.base[k] * v.ratio
    fetch = 0
    if s.any_store == 1:
        fetch = artifact_store.fetch_time(s, i)
        est += fetch
        artifact_store.fetch_inputs(s, i)
    if s.lineage == 1:
        artifact_store.note_inputs(s, i)
    pool_manager.take_places(s, v.pool, v.units)
    if v.also >= 0:
        pool_manager.take_places(s, v.also, v.also_units)
    if s.pools[v.pool].period > 0:
        pool_manager.take_tokens(s, v.pool, v.tokens * s.pools[v.pool].period)
    if mode == HERE:
        if which >= 0:
            pool_manager.use_copy(s, which)
    elif mode == LOAD:
        make_room(s, v)
        which = pool_manager.load_copy(s, v.pool, v.model, 1)
        emit_copy(s, CMD_LOAD, which)
    else:
        pool_manager.add_user(s, which)
    row = s.n_calls
    s.n_calls += 1
    c = call(s, row)
    c.id = s.next_call
    s.next_call += 1
    c.task = i
    c.function = f
    c.variant = k
    c.pool = v.pool
    c.copy = which
    c.model = v.model
    c.units = v.units
    c.also = v.also
    c.also_units = v.also_units
    c.est = est
    c.spread = t.base[k] * v.deviation
    c.fetch = fetch
    c.start = -1
    c.overrun = 0
    c.stale = artifact_store.stale_inputs(s, i) if s.any_fresh == 1 else 0
    c.cold = mode != HERE
    c.queued = t.mark == QUEUED
    c.hedge = hedge
    c.cost = pool_manager.call_price(est, v)
    s.committed += c.cost
    t.calls += 1
    if mode == HERE:
        begin(s, row)
        s.outcome = OUT_WARM
    else:
        c.expected_end = copy(s, which).expected_loaded + est
        s.outcome = OUT_COLD
    if hedge == 0:
        dag_tracker.dispatched(s, i, c.expected_end)
    if s.prewarm == 1 and v.model >= 0:
        if s.last_model >= 0:
            follow(s, s.last_model * s.n_models + v.model).task += 1
        s.last_model = v.model


@kernel
def make_room(s, v):
    """Evicts copies until variant v's model fits into its budget."""
    budget = s.pools[v.pool].budget
    if budget >= 0:
        b = s.budgets[budget]
        while b.capacity - b.used < model(s, v.model).size:
            unload(s, stale_manager.next_victim(s, budget, -1))


@kernel
def deny(s, i):
    """Task i's function may not be called: an attempt and a warning, and no call."""
    t = task(s, i)
    t.attempts += 1
    s.warnings += 1
    s.outcome = OUT_DENIED
    if s.max_attempts > 0 and t.attempts >= s.max_attempts:
        dag_tracker.give_up(s, i)
    else:
        t.key = key_of(t)


# --------------------------------------------------------------------------- after a call
@kernel
def release(s, k):
    """Places, committed money and the copy of the call in row k are free again."""
    c = call(s, k)
    pool_manager.free_places(s, c.pool, c.units)
    if c.also >= 0:
        pool_manager.free_places(s, c.also, c.also_units)
    s.committed -= c.cost
    task(s, c.task).calls -= 1


@kernel
def release_copy(s, k):
    """The copy of the call in row k has one user fewer; holds on its model end if that makes room."""
    c = call(s, k)
    if c.copy >= 0:
        pool_manager.release_copy(s, c.copy)
        if s.n_held > 0 and pool_manager.has_room(s, c.copy):
            arbitration.end_holds(s, c.pool, c.model)


@kernel
def cancel_call(s, k):
    """The call in row k is given up: what it has cost so far is paid, and nothing is learned from it."""
    c = call(s, k)
    m = c.model
    emit_call(s, CMD_CANCEL, k)
    if c.start >= 0:
        s.spent += (s.now - c.start) * variant(s, 3 * c.function + c.variant).price // 1_000_000
    release(s, k)
    release_copy(s, k)
    drop_call(s, k)
    pool_manager.call_changed(s, m)


@kernel
def cancel_others(s, i, kept):
    """All calls of task i but the one with id `kept` are cancelled, in order of id."""
    k = 0
    while k < s.n_calls:
        c = call(s, k)
        if c.task == i and c.id != kept:
            cancel_call(s, k)
        else:
            k += 1


@kernel
def cancel_task(s, i):
    """The agent gives up the running attempt of task i."""
    cancel_others(s, i, -1)
    task(s, i).attempts += 1
    dag_tracker.failed(s, i, False)


@kernel
def find_call(s, number):
    """Row of the call with this id; -1 if it is not in flight."""
    row = -1
    for k in range(s.n_calls):  # no early exit: where it would leave is a guess that fails
        row = k if call(s, k).id == number else row
    return row


@kernel
def look_at_overruns(s, i):
    """Whether a running task's calls, one of which has just ended, have overrun."""
    open_tasks.set_late(s, i, (s.order_hidden == 1) | has_overrun(s, i))


@kernel
def has_overrun(s, i):
    """Whether a call of task i in flight has overrun."""
    found = False
    for k in range(s.n_calls):
        c = call(s, k)
        found |= (c.task == i) & (c.overrun > 0)
    return found


@kernel
def track(s, k, error):
    """What the end of the call in row k means for its task and all that wait for it; the row in which the call stands now."""
    c = call(s, k)
    i = np.int64(c.task)
    t = task(s, i)
    if error == OK:
        if t.calls > 1:
            number = c.id
            cancel_others(s, i, number)
            k = find_call(s, number)
        dag_tracker.done(s, i)
    else:
        t.attempts += error != ERR_CANCELLED  # that is the driver's own loss
        if t.calls == 1:
            dag_tracker.failed(s, i, error == ERR_LOST)
    return k


@kernel
def after_call(s, k, error, elapsed, quality, size, price, with_copy):
    """The call in row k has ended: store, track, release, log. `with_copy` is 0 if its copy is gone already."""
    c = call(s, k)
    i = np.int64(c.task)
    f = np.int64(c.function)
    used = np.int64(c.variant)
    row = 3 * f + used
    m = c.model
    if error == OK:
        artifact_store.store(s, i, row, quality, size, np.int64(c.stale))
    k = track(s, k, error)
    c = call(s, k)
    release(s, k)
    if with_copy:
        release_copy(s, k)
    s.spent += price
    log(s, c, row, error, elapsed, quality)
    drop_call(s, k)
    pool_manager.call_changed(s, m)
    if error != OK:
        if task(s, i).calls > 0:
            look_at_overruns(s, i)
        elif s.fallback == 1 and error != ERR_PRECONDITION and error != ERR_ACCESS and error != ERR_CANCELLED:
            fall_back(s, i, f, used)


@kernel
def log(s, c, row, error, elapsed, quality):
    """What is learned from the end of call c: nothing, if its driver lost it."""
    if error == ERR_CANCELLED:
        return
    p = np.int64(c.pool)
    pool = s.pools[p]
    if health.outcome(s, p, row, error):
        healing.mend(s, row)
    if error == OK:
        if elapsed > c.fetch:
            healing.learn_duration(s, p, row, (elapsed - c.fetch) / task(s, c.task).base[c.variant])
        if s.watched == 1 and quality >= 0.0 and variant(s, row).quality > 0.0:
            health.cohere(s, row, p, quality / variant(s, row).quality)
        s.duration_error = health.relative_error(s.duration_error, elapsed, c.est)
        dag_tracker.rank_again(s, row)
        pool.in_row = 0
    else:
        if error == ERR_PRECONDITION or error == ERR_ACCESS:
            s.warnings += 1
        pool.in_row += 1
        if error == ERR_THROTTLED and pool.period > 0:
            pool.credit = 0
            pool.credited = s.now
        s.outcome = OUT_DENIED if error == ERR_ACCESS else OUT_FAILED
    health.note_health(s, p)
    s.hint_cold = c.cold
    s.hint_queued = c.queued
    s.hint_throttled = 1 if error == ERR_THROTTLED else 0
    s.hint_stale = c.stale > 0


@kernel
def fall_back(s, i, f, used):
    """After a failed call with variant `used`: the next variant that can begin is begun at once."""
    t = task(s, i)
    if t.state != READY or s.status != ON:
        return
    for step in range(1, N_VARIANTS):
        k = (used + step) % N_VARIANTS
        v = variant(s, 3 * f + k)
        if v.usable == 1:
            planned = pool_manager.can_begin(s, estimate(s, i, t, k, v), v)
            if planned & 3 != NO and not arbitration.claimed(s, i, v):
                outcome = s.outcome
                health.note_healing(s, FELL_BACK, 3 * f + k, health.chance(s, 3 * f + k))
                before_call(s, i, f, k, planned, 0)
                s.outcome = outcome
                return


@kernel
def drop_call(s, k):
    """Row k leaves the table of calls; the rows behind it move up, so that they stay in order of their ids."""
    s.n_calls -= 1
    for j in range(k, s.n_calls):
        copy_record(call(s, j), call(s, j + 1))
    call(s, s.n_calls).id = -1


# --------------------------------------------------------------------------- loads
@kernel
def loaded(s, which, elapsed, price):
    """A copy has loaded; the calls that wait for it begin."""
    s.spent += price
    s.load_error = health.relative_error(s.load_error, elapsed, copy(s, which).load_est)
    pool_manager.copy_loaded(s, which, elapsed)
    for k in range(s.n_calls):
        c = call(s, k)
        if (c.copy == which) & (c.start < 0):
            begin(s, k)
            dag_tracker.expect(s, c.task, c.expected_end)
    if s.n_held > 0 and pool_manager.has_room(s, which):
        c = copy(s, which)
        arbitration.end_holds(s, c.pool, c.model)


@kernel
def load_failed(s, which, price):
    """A copy could not be loaded; the calls that waited for it end with an error."""
    s.spent += price
    pool_manager.drop_copy(s, which, IDLE)
    k = 0
    newest = s.next_call  # a fallback may begin another call on the same row of copies
    while k < s.n_calls:
        c = call(s, k)
        if c.copy == which and c.id < newest:
            after_call(s, k, ERR_LOAD, 0, -1.0, 0, 0, False)  # the next one stands in row k now
        else:
            k += 1
