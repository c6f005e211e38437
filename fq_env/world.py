"""The simulated world: it carries out the Pit's commands, draws durations and failures, and jumps to the next event.

It owns the clock and the truth; the Pit learns of them by events alone.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.randomness import mix, to_noise, to_uniform
from fq_env.scoring import task_ended
from fq_env.state import due, goal, load_due, load_truth, truth
from pit.compiled import kernel
from pit.interface import advance, apply, decision_due, find_call, next_timer
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
def begin_call(s, w, L, k):
    """The call in row k begins: its true duration and outcome are drawn."""
    c = call(s, k)
    t = task(s, c.task)
    d = due(w, k)
    row = 3 * c.function + c.variant
    key = (np.int64(c.task) * 1024 + min(np.int64(t.attempts), 1023)) * 4 + c.variant
    mean = truth(w, row).mean * goal(w, c.task).factor
    d.elapsed = max(1, np.int64(mean * to_noise(mix(w.durations, key), w.noise)))
    d.error = OK
    w.calls += 1
    w.cold_starts += c.cold
    if L.order_hidden == 1:
        if L.needs[c.function] & ~w.have != uint64(0):
            d.error = ERR_PRECONDITION
            w.wrong_calls += 1
        elif t.required == 0:
            w.wrong_calls += 1
    elif L.failure_rate > 0.0:
        u = to_uniform(mix(w.failures, key))
        if u < L.failure_rate:  # it fails part of the way
            d.error = ERR_ERROR
            d.elapsed = max(1, np.int64(d.elapsed * (u / L.failure_rate)))
    d.when = s.now + d.elapsed


@kernel
def begin_load(s, w, i):
    """Copy i begins to load."""
    c = copy(s, i)
    t = load_truth(w, c.model)
    d = load_due(w, i)
    d.elapsed = max(1, np.int64(t.mean * to_noise(mix(w.loads, np.int64(c.model) * 65536 + t.count), w.load_noise)))
    d.when = s.now + d.elapsed
    t.count += 1
    w.load_count += 1


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
def next_due(s, w):
    """(us, row) of the next event in the order (time, kind, subject): row < 0 is the load of copy -1 - row; NEVER if none."""
    when = NEVER
    row = 0
    if s.n_loading > 0:
        for i in range(s.copy_rows):
            at = load_due(w, i).when
            better = at < when
            when = at if better else when
            row = -1 - i if better else row
    for k in range(s.call_rows):
        at = due(w, k).when
        if at == when and at < NEVER and row >= 0:
            row = k if call(s, k).id < call(s, row).id else row
        better = at < when
        when = at if better else when
        row = k if better else row
    return when, row


@kernel
def happen(s, w, L, row):
    """The event that is due now."""
    e = w.event
    e.error = OK
    e.quality = -1.0
    e.size = 0
    if row < 0:
        i = -1 - row
        e.kind = LOADED
        e.subject = i
        e.elapsed = load_due(w, i).elapsed
        e.price = e.elapsed * model(s, copy(s, i).model).price // 1_000_000
        w.load_cost = 0.0
        load_due(w, i).when = NEVER
        apply(s, e)
        return
    c = call(s, row)
    d = due(w, row)
    i = np.int64(c.task)
    f = np.int64(c.function)
    e.kind = FINISHED
    e.subject = c.id
    e.error = d.error
    e.elapsed = d.elapsed
    e.price = d.elapsed * variant(s, 3 * f + c.variant).price // 1_000_000
    d.when = NEVER
    apply(s, e)
    if d.error == OK:
        w.have |= _ONE << uint64(f & 63)
    if task(s, i).state == DONE or task(s, i).state == GIVEN_UP:
        task_ended(s, w, i)


@kernel
def run(s, w, L):
    """Until a decision is due: everything that happens at one time happens before the agent is asked."""
    carry_out(s, w, L)
    while True:
        when, row = next_due(s, w)
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
            advance(s, when)
            happen(s, w, L, row)
            carry_out(s, w, L)
