"""The Pit's door for kernels: act, advance, apply, decision_due, next_timer; and `drive`, the one entry from Python.

Whoever drives it owns the clock and carries out the commands. The rule book is `pit/README.md`.
"""

from __future__ import annotations

import numpy as np

from pit import arbitration, automation, dag_tracker, observation, pool_manager, rules, slots
from pit.compiled import entry, kernel
from pit.layout import (
    ARRIVE,
    COOLDOWN,
    ERR_THROTTLED,
    EXPIRED,
    FINISHED,
    HOLD,
    LOAD_FAILED,
    LOADED,
    LOADING,
    N_SLOTS,
    N_VERBS,
    NEVER,
    OK,
    ON,
    OUT_BLOCKED,
    OUT_QUEUED,
    OUT_WAITED,
    REJECTED,
    STANDARD,
    STARTED,
    UNLOADED,
    WAIT,
    ZERO_TIME_BASE,
    ZERO_TIME_PER_OPEN,
)
from pit.state import call, copy, event_at, model, pit_at, task, variant


@kernel
def legal(s, action):
    """Whether an action is legal now."""
    if action == WAIT:
        return slots.wait_legal(s)
    if action < 0 or action >= N_SLOTS * N_VERBS or s.status != ON or s.arrived == 0:
        return False
    slots.refresh_slots(s)
    g = action // N_VERBS
    return g < s.n_slots and (s.slots[g].legal >> (action - g * N_VERBS)) & 1 == 1


@kernel
def first_legal(s):
    """The first legal action, -1 if none."""
    for a in range(WAIT + 1):
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
        g = action // N_VERBS
        verb = action - g * N_VERBS
        slot = s.slots[g]
        f = np.int64(task(s, slot.head).function)
        if verb == HOLD:
            v = variant(s, 3 * f + STANDARD)
            arbitration.hold_slot(s, g, s.now + np.int64(model(s, v.model).load_est))
            s.outcome = OUT_QUEUED
        else:
            planned = pool_manager.plan(s, variant(s, 3 * f + verb))
            automation.before_call(s, np.int64(slot.head), f, verb, planned)
        s.slots_valid = 0
    if blocked:
        s.outcome = OUT_BLOCKED


@kernel
def next_timer(s):
    """us of the next timer; NEVER if none."""
    if s.status != ON or s.arrived == 0:
        return NEVER
    return min(arbitration.next_hold(s), s.horizon)


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
        if s.horizon <= s.now:
            s.status = EXPIRED
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
def find_call(s, number):
    """Row of the call with this id; -1 if it is not in flight."""
    row = -1
    for k in range(s.n_calls):  # no early exit: where it would leave is a guess that fails
        row = k if call(s, k).id == number else row
    return row


@kernel
def apply(s, e):
    """One event; False if it does not fit the state and is ignored."""
    if (s.arrived == 1) == (e.kind == ARRIVE) or s.status != ON:
        s.ignored += 1
        return False
    fits = False
    if e.kind == ARRIVE:
        s.arrived = 1
        s.t0 = s.now
        if s.deadline < NEVER:
            s.deadline += s.now
        if s.horizon < NEVER:
            s.horizon += s.now
        for p in range(s.n_pools):
            s.pools[p].settled = s.now
        dag_tracker.arrive(s)
        fits = True
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
                c.start = s.now
                c.expected_end = s.now + c.est
                pool_manager.call_changed(s, c.model)
                dag_tracker.expect(s, c.task, c.expected_end)
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
    else:
        s.ignored += 1
    return fits


@kernel
def decision_due(s):
    """Whether the driver should ask for an action: the end, or some start is legal and nobody waits."""
    if s.status != ON:
        return True
    if (s.arrived == 0) | (s.waiting == 1) | (s.n_ready == s.n_held) | (s.n_full == s.n_pools):
        return False
    slots.refresh_slots(s)
    return s.any_start == 1


ACT, ADVANCE, APPLY, DUE, OBSERVE, TIMER, RULE = range(7)


@entry
def drive(address, operation, value, event, first, second, theta):
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
        observation.encode(s, first, second)
    elif operation == TIMER:
        return np.int64(next_timer(s))
    elif operation == RULE:
        return np.int64(rules.choose(s, value, theta, first))
    return np.int64(0)
