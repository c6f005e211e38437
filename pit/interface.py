"""The Pit's door for kernels: act, advance, apply, decision_due, next_timer; and `drive`, the one entry from Python.

Whoever drives it owns the clock and carries out the commands. The rule book is `pit/README.md`.
"""

from __future__ import annotations

import numpy as np

from pit import (
    arbitration,
    automation,
    dag_tracker,
    flows,
    freshness,
    healing,
    health,
    observation,
    pool_manager,
    rules,
    slots,
    timers,
)
from pit.automation import find_call
from pit.between_calls import between_calls
from pit.compiled import entry, kernel
from pit.layout import (
    ARRIVE,
    BACK_OFF,
    BACKED_OFF,
    CONFIG_CHANGED,
    COOLDOWN,
    DEFER,
    ERR_THROTTLED,
    EXPIRED,
    FINISHED,
    HEDGE,
    HOLD,
    LOAD_FAILED,
    LOADED,
    LOADING,
    N_SLOTS,
    N_VARIANTS,
    N_VERBS,
    NEVER,
    OK,
    ON,
    OUT_BLOCKED,
    OUT_NONE,
    OUT_QUEUED,
    OUT_WAITED,
    OUTPUT_CHANGED,
    QUEUE,
    QUEUED,
    REFRESH,
    REJECTED,
    SKIP,
    SOLVED,
    STANDARD,
    STARTED,
    STREAM_CLOSED,
    TENANT_LOAD,
    UNLOADED,
    WAIT,
    ZERO_TIME_BASE,
    ZERO_TIME_PER_OPEN,
)
from pit.state import call, copy, event_at, model, pit_at, task, variant
from pit.timers import next_timer, other_timer


@kernel
def legal(s, action):
    """Whether an action is legal now."""
    if action >= WAIT:
        return action <= DEFER and (slots.globals_legal(s) >> (action - WAIT)) & 1 == 1
    if action < 0 or action >= N_SLOTS * N_VERBS or s.status != ON or s.arrived == 0:
        return False
    slots.refresh_slots(s)
    g = action // N_VERBS
    return g < s.n_slots and (s.slots[g].legal >> (action - g * N_VERBS)) & 1 == 1


@kernel
def first_legal(s):
    """The first legal action, -1 if none."""
    for a in range(DEFER + 1):
        if legal(s, a):
            return a
    return -1


@kernel
def act(s, action):
    """One decision of the agent; total: an illegal action has a defined outcome (rule book, section 5)."""
    if s.status != ON or s.arrived == 0:
        return
    s.actions += 1
    s.zero_actions += 1
    blocked = False
    if s.zero_actions > ZERO_TIME_PER_OPEN * s.n_ready + ZERO_TIME_BASE and slots.wait_legal(s):
        action = WAIT
    elif not legal(s, action):
        s.warnings += 1
        action = WAIT if slots.wait_legal(s) else first_legal(s)
        if action < 0:
            return
        blocked = True
    if action == WAIT:
        s.waiting = 1
        s.outcome = OUT_WAITED
    else:
        if action > WAIT:
            do_global(s, action)
        else:
            do_verb(s, action // N_VERBS, action % N_VERBS)
        between_calls(s)
        s.slots_valid = 0
    if blocked:
        s.outcome = OUT_BLOCKED


@kernel
def do_verb(s, g, verb):
    """A legal verb on slot g."""
    i = np.int64(s.slots[g].head)
    t = task(s, i)
    f = np.int64(t.function)
    standard = variant(s, 3 * f + STANDARD)
    if verb < N_VARIANTS:
        if standard.forbidden == 1:
            automation.deny(s, i)
        else:
            planned = pool_manager.plan(s, variant(s, 3 * f + verb))
            automation.before_call(s, i, f, verb, planned, 0)
    elif verb == QUEUE:
        arbitration.enqueue(s, i)
        s.outcome = OUT_QUEUED
    elif verb == HOLD:
        arbitration.hold_slot(s, g, s.now + np.int64(model(s, standard.model).load_est))
        s.outcome = OUT_QUEUED
    elif verb == HEDGE:
        k = np.int64(slots.running_variant(s, i))
        planned = pool_manager.plan(s, variant(s, 3 * f + k))
        automation.before_call(s, i, f, k, planned, 1)
    else:
        if t.mark == QUEUED:
            arbitration.leave_queue(s, i)
        else:
            automation.cancel_task(s, i)
        s.outcome = OUT_NONE


@kernel
def do_global(s, action):
    """A legal global action but `wait`."""
    if action == SKIP:
        dag_tracker.give_up(s, dag_tracker.first_optional(s))
    elif action == REFRESH:
        dag_tracker.run_again(s, freshness.stalest(s))
    elif action == DEFER:
        flows.defer(s, flows.least_urgent(s))
    else:
        p = arbitration.worst_pool(s)
        health.note_healing(s, BACKED_OFF, health.row_of(s, p), s.pools[p].failures)
        arbitration.back_off(s, p, 1 if action == BACK_OFF else 4)
    s.outcome = OUT_NONE


@kernel
def advance(s, t):
    """Fires every timer up to t at its own time, then sets the clock to t (us)."""
    when = next_timer(s)
    while when <= t:
        if when > s.now:
            s.now = when
            s.zero_actions = 0
        s.waiting = 0
        s.slots_valid = 0
        arbitration.expire_holds(s)
        if s.any_timer == 1:
            timers.fire_keep_alives(s)
            timers.fire_call_timers(s)
        if s.horizon <= s.now and s.status == ON:
            s.status = EXPIRED
        between_calls(s)
        when = next_timer(s)
    pass_time(s, t)


@kernel
def pass_time(s, t):
    """Sets the clock to t (us) if that is later and no timer is due before."""
    if t > s.now:
        s.now = t
        s.zero_actions = 0
        s.slots_valid = 0


@kernel
def apply(s, e):
    """One event; False if it does not fit the state and is ignored."""
    if (s.arrived == 0 and e.kind != ARRIVE) or s.status != ON:
        s.ignored += 1
        return False
    fits = False
    if e.kind == ARRIVE:
        if s.arrived == 0:
            s.arrived = 1
            s.t0 = s.now
            if s.deadline < NEVER:
                s.deadline += s.now
            if s.horizon < NEVER:
                s.horizon += s.now
            open_pools(s)
            dag_tracker.arrive(s)
            health.begin(s)
            fits = True
        elif s.stream_open == 1 and e.subject == s.n_flows and e.subject < s.flow_rows:
            dag_tracker.arrive(s)
            fits = True
    elif e.kind == STREAM_CLOSED:
        if s.stream_open == 1:
            s.stream_open = 0
            fits = True
            if s.required_left == 0:
                s.status = SOLVED
    elif e.kind == FINISHED or e.kind == REJECTED or e.kind == STARTED:
        k = find_call(s, e.subject) if e.subject >= 0 else -1
        if k >= 0 and call(s, k).start >= 0:
            fits = True
            if e.kind == FINISHED:
                automation.after_call(
                    s, k, np.int64(e.error), np.int64(e.elapsed), e.quality, np.int64(e.size), np.int64(e.price), True
                )
            elif e.kind == REJECTED:
                error = np.int64(e.error) if e.error != OK else ERR_THROTTLED
                automation.after_call(s, k, error, np.int64(0), -1.0, np.int64(0), np.int64(0), True)
            else:
                c = call(s, k)
                automation.set_start(s, k)
                pool_manager.call_changed(s, c.model)
                dag_tracker.expect(s, c.task, c.expected_end)
                automation.look_at_overruns(s, np.int64(c.task))
    elif e.kind == TENANT_LOAD:
        if 0 <= e.subject < s.n_pools and e.size >= 0:
            pool_manager.set_tenants(s, np.int64(e.subject), np.int64(e.size))
            fits = True
    elif e.kind == CONFIG_CHANGED or e.kind == OUTPUT_CHANGED:
        row = np.int64(e.subject)
        if 0 <= row < N_VARIANTS * s.n_functions and variant(s, row).usable == 1:
            fits = True
            if e.kind == CONFIG_CHANGED:
                healing.configured(s, row)
            else:
                healing.output_changed(s, row)
    elif 0 <= e.subject < s.n_copies:
        c = copy(s, e.subject)
        which = np.int64(e.subject)
        if e.kind == LOADED and c.state == LOADING:
            automation.loaded(s, which, np.int64(e.elapsed), np.int64(e.price))
            fits = True
        elif e.kind == LOAD_FAILED and c.state == LOADING:
            automation.load_failed(s, which, np.int64(e.price))
            fits = True
        elif e.kind == UNLOADED and c.state == COOLDOWN:
            pool_manager.idle_copy(s, which)
            fits = True
    if fits:
        s.waiting = 0
        s.slots_valid = 0
        between_calls(s)
    else:
        s.ignored += 1
    return fits


@kernel
def open_pools(s):
    """At the arrival: full token buckets, and which limits and timers there are at all."""
    for p in range(s.n_pools):
        pool = s.pools[p]
        pool.settled = s.now
        pool.full *= pool.period
        pool.most *= pool.period
        pool.credit = pool.full
        pool.credited = s.now
    s.any_tight = (s.n_limited > 0) | (s.money > 0) | (s.back_off > 0)
    s.any_limit = s.any_tight | ((s.any_gang == 1) & (s.reserve > 0))
    s.any_timer = (s.n_limited > 0) | (s.back_off > 0) | (s.time_out > 0.0) | timers.overruns_matter(s)
    for f in range(s.n_functions):
        s.any_fresh |= variant(s, 3 * f + STANDARD).fresh > 0
    s.any_timer |= timers.refresh_matters(s)
    for m in range(s.n_models):
        s.any_timer |= model(s, m).keep_alive > 0


@kernel
def decision_due(s):
    """Whether the driver should ask for an action: the end, or some start is legal and nobody waits."""
    if s.status != ON:
        return True
    if (s.arrived == 0) | (s.waiting == 1):
        return False
    idle = s.n_calls + s.n_loading + s.n_cooling + s.n_mending + s.n_held + s.all_tenants + s.stream_open == 0
    no_start = (s.n_ready == s.n_held + s.n_queued) | (s.n_full == s.n_pools)
    if no_start & ((s.n_late == 0) | (not timers.overruns_matter(s))) & (not idle) & (not timers.refresh_matters(s)):
        return False
    slots.refresh_slots(s)
    if s.any_start == 1:
        return True
    return idle and other_timer(s) == NEVER and first_legal(s) >= 0


ACT, ADVANCE, APPLY, DUE, OBSERVE, TIMER, RULE = range(7)


@entry
def drive(address, operation, value, event, first, second, theta, weights):
    """One operation on the Pit at `address`; the single door from Python (one compile for all of them)."""
    s = pit_at(address)
    if operation == ACT:
        act(s, value)
    elif operation == ADVANCE:
        advance(s, value)
    elif operation == APPLY:
        return np.int64(apply(s, event_at(event)))
    elif operation == DUE:
        return np.int64(decision_due(s))
    elif operation == OBSERVE:
        observation.encode(s, first, second, 1)
    elif operation == TIMER:
        return np.int64(next_timer(s))
    elif operation == RULE:
        return np.int64(rules.choose(s, value, theta, event, weights, first, second))
    return np.int64(0)
