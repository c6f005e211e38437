"""The three automatic layers around every call, and what each event does: the only place that knows all components.

`before_call` = access, inputs, allocation, state. `after_call` = store, track, release, log. `between_calls` =
synchronise, rebalance, prepare fallbacks, resolve dependencies: nothing is left for it to do in this version, because
holds, ranks and readiness are settled by the event that moves them.
"""

from __future__ import annotations

from pit import arbitration, artifact_store, dag_tracker, health, pool_manager, stale_manager
from pit.compiled import copy_record, kernel
from pit.layout import (
    CMD_LOAD,
    CMD_START,
    CMD_UNLOAD,
    COOLDOWN,
    ERR_ACCESS,
    ERR_LOAD,
    ERR_PRECONDITION,
    ERR_THROTTLED,
    IDLE,
    OK,
    OUT_COLD,
    OUT_DENIED,
    OUT_FAILED,
    OUT_WARM,
)
from pit.pool_manager import HERE, LOAD
from pit.state import call, command, copy, model, task, variant


@kernel
def emit_start(s, k):
    """The call in row k begins now."""
    c = call(s, k)
    c.start = s.now
    c.expected_end = s.now + c.est
    if c.model >= 0:
        m = model(s, c.model)
        m.free_at = min(m.free_at, c.expected_end)
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = CMD_START
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
def before_call(s, i, f, k, planned):
    """Starts a call of task i with variant k: places, a copy, its record, and the commands that make it real."""
    row = 3 * f + k
    v = variant(s, row)
    t = task(s, i)
    mode = planned & 3
    which = (planned >> 2) - 1
    est = t.base[k] * v.ratio
    pool_manager.take_places(s, v.pool, v.units)
    if mode == HERE:
        if which >= 0:
            pool_manager.use_copy(s, which)
    elif mode == LOAD:
        budget = s.pools[v.pool].budget
        if budget >= 0:
            b = s.budgets[budget]
            while b.capacity - b.used < model(s, v.model).size:
                victim = stale_manager.next_victim(s, budget, -1)
                pool_manager.drop_copy(s, victim, COOLDOWN)
                emit_copy(s, CMD_UNLOAD, victim)
        which = pool_manager.load_copy(s, v.pool, v.model)
        emit_copy(s, CMD_LOAD, which)
    else:
        pool_manager.add_user(s, which)
    row_of_call = s.n_calls
    s.n_calls += 1
    c = call(s, row_of_call)
    c.id = s.next_call
    s.next_call += 1
    c.task = i
    c.function = f
    c.variant = k
    c.pool = v.pool
    c.copy = which
    c.model = v.model
    c.units = v.units
    c.est = est
    c.spread = t.base[k] * v.deviation
    c.start = -1
    c.cold = 0
    if mode == HERE:
        emit_start(s, row_of_call)
        s.outcome = OUT_WARM
    else:
        c.cold = 1
        c.expected_end = copy(s, which).expected_loaded + est
        s.outcome = OUT_COLD
    dag_tracker.dispatched(s, i, c.expected_end)


@kernel
def after_call(s, k, error, elapsed, quality, size, price, release):
    """The call in row k has ended: store, track, release, log. `release` is 0 if its copy is gone already."""
    c = call(s, k)
    i = c.task
    t = task(s, i)
    m = c.model
    row = 3 * c.function + c.variant
    if error == OK:
        artifact_store.store(s, i, row, quality, size)
        dag_tracker.done(s, i)
    else:
        dag_tracker.failed(s, i)
    pool_manager.free_places(s, c.pool, c.units)
    if c.copy >= 0 and release:
        pool_manager.release_copy(s, c.copy)
        if s.n_held > 0 and pool_manager.has_room(s, c.copy):
            arbitration.end_holds(s, c.pool, c.model)
    s.spent += price
    if error == OK:
        if elapsed > 0:
            dag_tracker.observe_duration(s, row, elapsed / t.base[c.variant])
        s.duration_error = health.relative_error(s.duration_error, elapsed, c.est)
        dag_tracker.rank_again(s, row)
        health.outcome(s, c.pool, 0.0)
    else:
        if error == ERR_PRECONDITION or error == ERR_ACCESS:
            s.warnings += 1
        health.outcome(s, c.pool, 1.0)
        s.outcome = OUT_DENIED if error == ERR_ACCESS else OUT_FAILED
    s.hint_cold = c.cold
    s.hint_throttled = 1 if error == ERR_THROTTLED else 0
    drop_call(s, k)
    pool_manager.call_changed(s, m)


@kernel
def drop_call(s, k):
    """Row k leaves the table of calls; the rows behind it move up, so that they stay in order of their ids."""
    s.n_calls -= 1
    for j in range(k, s.n_calls):
        copy_record(call(s, j), call(s, j + 1))
    call(s, s.n_calls).id = -1


@kernel
def loaded(s, which, elapsed, price):
    """A copy has loaded; the calls that wait for it begin."""
    s.spent += price
    s.load_error = health.relative_error(s.load_error, elapsed, copy(s, which).load_est)
    pool_manager.copy_loaded(s, which, elapsed)
    for k in range(s.n_calls):
        c = call(s, k)
        if (c.copy == which) & (c.start < 0):
            emit_start(s, k)
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
    while k < s.n_calls:
        if call(s, k).copy == which:
            after_call(s, k, ERR_LOAD, 0, -1.0, 0, 0, False)  # the next one stands in row k now
        else:
            k += 1
