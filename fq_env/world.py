"""The simulated world: it carries out the Pit's commands, draws durations and failures, and jumps to the next event.

It owns the clock and the truth; the Pit learns of them by events alone.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.randomness import mix, to_noise, to_uniform
from fq_env.scoring import task_ended
from fq_env.state import due, goal, load_truth, truth
from pit.compiled import copy_record, kernel
from pit.interface import advance, apply, decision_due, find_call, next_timer, pass_time
from pit.layout import (
    CMD_LOAD,
    CMD_START,
    DONE,
    ERR_ERROR,
    ERR_PRECONDITION,
    FAILED,
    FINISHED,
    GIVEN_UP,
    LOADED,
    NEVER,
    OK,
    ON,
    UNLOADED,
)
from pit.state import call, command, copy, model, task, variant

_ONE = np.uint64(1)


@kernel
def schedule(w, when, kind, subject, error, elapsed, price, i):
    """Puts an event about task i (-1 = none) among those to come, in falling order of (time, kind, subject)."""
    k = w.n_due
    w.n_due += 1
    while k > 0:
        before = due(w, k - 1)
        e = before.event
        if before.when > when or (before.when == when and (e.kind > kind or (e.kind == kind and e.subject > subject))):
            break
        copy_record(due(w, k), before)
        k -= 1
    d = due(w, k)
    d.when = when
    d.task = i
    d.event.kind = kind
    d.event.subject = subject
    d.event.error = error
    d.event.elapsed = elapsed
    d.event.quality = -1.0
    d.event.size = 0
    d.event.price = price


@kernel
def begin_call(s, w, L, k):
    """The call in row k begins: its true duration and outcome are drawn."""
    c = call(s, k)
    t = task(s, c.task)
    row = 3 * c.function + c.variant
    key = (np.int64(c.task) * 1024 + min(np.int64(t.attempts), 1023)) * 4 + c.variant
    mean = truth(w, row).mean * goal(w, c.task).factor
    elapsed = max(1, np.int64(mean * to_noise(mix(w.durations, key), w.noise)))
    error = OK
    w.calls += 1
    w.cold_starts += c.cold
    if L.order_hidden == 1:
        if L.needs[c.function] & ~w.have != uint64(0):
            error = ERR_PRECONDITION
            w.wrong_calls += 1
        elif t.required == 0:
            w.wrong_calls += 1
    elif L.failure_rate > 0.0:
        u = to_uniform(mix(w.failures, key))
        if u < L.failure_rate:  # it fails part of the way
            error = ERR_ERROR
            elapsed = max(1, np.int64(elapsed * (u / L.failure_rate)))
    price = elapsed * variant(s, row).price // 1_000_000
    schedule(w, s.now + elapsed, FINISHED, c.id, error, elapsed, price, c.task)


@kernel
def begin_load(s, w, i):
    """Copy i begins to load."""
    m = copy(s, i).model
    t = load_truth(w, m)
    elapsed = max(1, np.int64(t.mean * to_noise(mix(w.loads, np.int64(m) * 65536 + t.count), w.load_noise)))
    t.count += 1
    w.load_count += 1
    price = elapsed * model(s, m).price // 1_000_000
    schedule(w, s.now + elapsed, LOADED, i, OK, elapsed, price, -1)


@kernel
def carry_out(s, w, L):
    """All commands of the Pit, in order."""
    for k in range(s.n_commands):
        o = command(s, k)
        if o.kind == CMD_START:
            begin_call(s, w, L, find_call(s, o.call))
        elif o.kind == CMD_LOAD:
            begin_load(s, w, np.int64(o.copy))
        else:  # unloading takes no time here
            w.event.kind = UNLOADED
            w.event.subject = o.copy
            apply(s, w.event)
    s.n_commands = 0


@kernel
def happen(s, w):
    """The next event, which is due now."""
    w.n_due -= 1
    d = due(w, w.n_due)
    apply(s, d.event)
    if d.task < 0:
        w.load_cost = 0.0
        return
    t = task(s, d.task)
    if d.event.error == OK:
        w.have |= _ONE << uint64(t.function & 63)
    if t.state == DONE or t.state == GIVEN_UP:
        task_ended(s, w, np.int64(d.task))


@kernel
def run(s, w, L):
    """Until a decision is due: everything that happens at one time happens before the agent is asked."""
    carry_out(s, w, L)
    while True:
        when = due(w, w.n_due - 1).when if w.n_due > 0 else NEVER
        timer = next_timer(s)
        if min(when, timer) > s.now and decision_due(s):
            return
        if s.status != ON:
            return
        if timer <= when:
            if timer == NEVER:  # nothing will ever happen: the workflow cannot succeed any more
                s.status = FAILED
                return
            advance(s, timer)
        else:
            pass_time(s, when)
            happen(s, w)
            carry_out(s, w, L)
