"""The simulated world: it carries out the Pit's commands, draws durations and failures, and jumps to the next event.

It owns the clock and the truth; the Pit learns of them by events alone.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.randomness import (
    mix,
    to_noise,
    to_uniform,
)
from fq_env.score_bounds import gap
from fq_env.scoring import artifacts_lost, task_done
from fq_env.state import due, goal, load_truth, span, truth
from pit.automation import find_call
from pit.compiled import kernel
from pit.dag_tracker import oldest_input
from pit.interface import advance, apply, decision_due, pass_time
from pit.layout import (
    ACTIVE,
    ARRIVE,
    CMD_CANCEL,
    CMD_CONFIGURE,
    CMD_DELETE,
    CMD_FETCH,
    CMD_LOAD,
    CMD_START,
    CMD_STORE,
    CONFIG_CHANGED,
    ERR_ERROR,
    ERR_INVALID,
    ERR_LOST,
    ERR_PRECONDITION,
    FAILED,
    FINISHED,
    GIVEN_UP,
    LOADED,
    N_VARIANTS,
    NEVER,
    OK,
    ON,
    STANDARD,
    STREAM_CLOSED,
    TENANT_LOAD,
    UNLOADED,
    WARM,
)
from pit.memory import copy_record
from pit.open_tasks import has_echo
from pit.state import artifact, call, command, copy, flow, model, task, variant
from pit.timers import next_timer

_ONE = np.uint64(1)
WINDOWS = 64  # that are searched for a change of what other tenants take
CONFIGURED = NEVER + 1  # when a variant changes that has changed and was configured: never again
NEARLY = 0.9  # a task counts as critical if its rank is at least this share of the time that is left


@kernel
def schedule(w, when, kind, subject, error, elapsed, quality, price, i):
    """Puts an event about task i (-1 = none) among those to come, in falling order of (time, kind, subject); its row."""
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
    d.gate = 0
    d.event.kind = kind
    d.event.subject = subject
    d.event.error = error
    d.event.elapsed = elapsed
    d.event.quality = quality
    d.event.size = 0
    d.event.price = price
    return d


@kernel
def begin_call(s, w, L, k):
    """The call in row k begins: its true duration and outcome are drawn."""
    c = call(s, k)
    t = task(s, c.task)
    row = 3 * c.function + c.variant
    key = (np.int64(c.task) * 1024 + min(np.int64(t.attempts), 1023)) * 8 + 4 * c.hedge + c.variant
    lasts = truth(w, row).mean * goal(w, c.task).factor * to_noise(mix(w.durations, key), w.noise)
    if w.straggler_rate > 0.0:
        lasts *= lateness(s, w, L, np.int64(c.pool), key)
    rate = L.failure_rate
    if L.any_drift == 1 and s.now - s.t0 >= w.onset[c.pool]:
        lasts *= w.decay[c.pool]
        rate = max(rate, L.drift_failure)
        w.decayed_calls += 1
    elapsed = max(1, np.int64(lasts))
    error = OK
    quality = -1.0
    w.calls += 1
    w.cold_starts += c.cold
    gate = closed_gate(s, L, c) if L.n_gates > 0 else 0
    if gate > 0:
        error = ERR_PRECONDITION
        elapsed = max(1, np.int64(elapsed * L.gate_after[gate - 1]))
        w.gated_calls += 1
    elif L.any_change == 1 and s.now - s.t0 >= truth(w, row).change:
        error = ERR_INVALID
        elapsed = max(1, np.int64(elapsed * L.change_after))
        w.changed_calls += 1
    elif L.order_hidden == 1:
        f = np.int64(c.function)
        if not works(s, w, L, f):
            error = ERR_PRECONDITION
            w.wrong_calls += 1
        elif (w.useful >> uint64(f)) & _ONE == uint64(0):
            w.wrong_calls += 1
        if error == OK and L.prefers[f] & ~w.have != uint64(0):
            quality = variant(s, 3 * f + STANDARD).quality * L.poor
            w.poor_calls += 1
    elif rate + L.lost_rate > 0.0 or L.any_outage == 1:
        u = to_uniform(mix(w.failures, key))
        after = 1.0
        if L.any_outage == 1 and is_out(s, w, L, np.int64(c.pool)):
            rate = L.outage_failure
            after = L.outage_after
            w.outage_calls += 1
        if u < rate:  # it fails part of the way
            error = ERR_ERROR
            elapsed = max(1, np.int64(elapsed * ((u / rate) * after)))
        elif u < rate + L.lost_rate:
            error = ERR_LOST
            elapsed = max(1, np.int64(elapsed * ((u - rate) / L.lost_rate)))
    elapsed += c.fetch
    price = elapsed * variant(s, row).price // 1_000_000
    note_call(s, w, c, t, elapsed, price)
    d = schedule(w, s.now + elapsed, FINISHED, c.id, error, elapsed, quality, price, c.task)
    d.gate = gate
    if L.size[1] > 0:
        d.event.size = size_of(s, w, L, np.int64(c.task))


@kernel
def size_of(s, w, L, i):
    """Bytes of the output of task i; twins' are the same."""
    content = np.int64(artifact(s, i).content)
    key = (1 << 20) + content if content > 0 else i
    return np.int64(L.size[0] + (L.size[1] - L.size[0]) * to_uniform(mix(w.sizes, key)))


@kernel
def closed_gate(s, L, c):
    """The first gate before call c that is closed now, counted from 1; 0 if none is."""
    for g in range(L.n_gates):
        at = L.gates[g, 1]
        if L.gates[g, 0] == c.variant and (at < 0 or at == c.pool):
            p = L.gates[g, 2]
            if p >= 0:
                pool = s.pools[p]
                if pool.places - pool.busy - pool.tenants < L.gates[g, 3]:
                    return g + 1
            elif not is_loaded(s, L.gates[g, 4]):
                return g + 1
    return 0


@kernel
def is_loaded(s, m):
    """Whether a copy of model m is warm or active."""
    for i in range(s.copy_rows):
        c = copy(s, i)
        if c.model == m and (c.state == WARM or c.state == ACTIVE):
            return True
    return False


@kernel
def is_out(s, w, L, p):
    """Whether pool p is out now: its fault domain is, in this window of time."""
    k = s.now // L.outage_window
    seed = w.outages if k * L.outage_window <= w.branch else w.outages_later
    return to_uniform(mix(mix(seed, L.domains[p]), k)) < L.outages[p]


@kernel
def taken(s, w, L, p, k):
    """How many places of pool p other tenants take in window k of time."""
    seed = mix(w.tenants if k * L.crowd_window <= w.branch else w.tenants_later, p)
    if to_uniform(mix(seed, 2 * k)) >= L.crowded[p]:
        return 0
    return np.int64(s.pools[p].places * (L.crowd[0] + (L.crowd[1] - L.crowd[0]) * to_uniform(mix(seed, 2 * k + 1))))


@kernel
def next_change(s, w, L, p, k):
    """The window after k in which other tenants take another number of places of pool p; the last one that is looked at."""
    last = k + WINDOWS
    k += 1
    while k < last and taken(s, w, L, p, k) == taken(s, w, L, p, k - 1):
        k += 1
    return k


@kernel
def plan_tenants(s, w, L, p, k):
    """What other tenants take of pool p after window k is told when it changes."""
    k = next_change(s, w, L, p, k)
    d = schedule(w, k * L.crowd_window, TENANT_LOAD, p, OK, 0, -1.0, 0, -1)
    d.event.size = taken(s, w, L, p, k)


@kernel
def first_tenants(s, w, L):
    """Who is there when the workflow arrives, and when that will change."""
    for p in range(s.n_pools):
        size = taken(s, w, L, p, 0)
        if size > 0:
            w.event.kind = TENANT_LOAD
            w.event.subject = p
            w.event.size = size
            apply(s, w.event)
        if L.crowded[p] > 0.0:
            plan_tenants(s, w, L, p, 0)
    w.event.size = 0


@kernel
def after_arrival(s, w):
    """A workflow of a stream has arrived: when the next one does, or that there is none."""
    g = np.int64(s.n_flows)
    if g < s.flow_rows:
        schedule(w, s.now + gap(s, w, g), ARRIVE, g, OK, 0, -1.0, 0, -1)
    else:
        w.event.kind = STREAM_CLOSED
        w.event.subject = 0
        apply(s, w.event)


@kernel
def works(s, w, L, f):
    """Hidden order: whether function f finds all that it needs."""
    found = L.n_needs[f] == 0
    for k in range(L.n_needs[f]):
        found |= L.needs[f, k] & ~w.have == uint64(0)
    missing = L.soft[f] & ~w.have
    if missing != uint64(0):  # only what is given up, or was never there, need not be waited for
        for i in range(s.n_tasks):
            t = task(s, i)
            if t.state != GIVEN_UP and (missing >> uint64(t.function)) & _ONE == _ONE:
                found = False
    return found


@kernel
def lateness(s, w, L, p, key):
    """By which factor a call in pool p is late: some are, and more of them while the pool is slow."""
    chance = w.straggler_rate
    if to_uniform(mix(mix(w.stragglers, p), 2 * (s.now // L.slow_window) + 1)) < L.slow_share:
        chance = min(1.0, chance * L.slow_factor)
    own = mix(w.stragglers, 1000 + key)
    if to_uniform(mix(own, 0)) >= chance:
        return 1.0
    w.stragglers_met += 1
    return L.straggler_factor[0] + (L.straggler_factor[1] - L.straggler_factor[0]) * to_uniform(mix(own, 1))


@kernel
def note_call(s, w, c, t, elapsed, price):
    """What the probes measure of a call that begins now."""
    w.busy += elapsed
    w.queued += c.queued
    w.fetches += c.fetch > 0
    w.hedges += c.hedge
    w.stale_calls += c.stale > 0
    if s.any_twins == 1:
        w.echo_calls += has_echo(s, np.int64(c.task))
    left = w.left if s.stream == 0 else span(w, t.flow).left
    if goal(w, c.task).rank >= NEARLY * left and t.required == 1:
        w.critical_wait += s.now - t.ready_time
        w.critical_quality += variant(s, 3 * c.function + c.variant).quality
        w.critical_cost += price


@kernel
def begin_load(s, w, i):
    """Copy i begins to load."""
    m = copy(s, i).model
    t = load_truth(w, m)
    elapsed = max(1, np.int64(t.mean * to_noise(mix(w.loads, np.int64(m) * 65536 + t.count), w.load_noise)))
    t.count += 1
    w.load_count += 1
    price = elapsed * model(s, m).price // 1_000_000
    schedule(w, s.now + elapsed, LOADED, i, OK, elapsed, -1.0, price, -1)


@kernel
def forget_call(w, number):
    """The call with this id will not end any more: it was cancelled."""
    found = 0
    for k in range(w.n_due):
        d = due(w, k)
        if d.event.kind == FINISHED and d.event.subject == number:
            found = 1
        elif found == 1:
            copy_record(due(w, k - 1), d)
    w.n_due -= found


@kernel
def carry_out(s, w, L):
    """All commands of the Pit, in order."""
    k = 0
    while k < s.n_commands:  # an unload can be what a command that follows at once has waited for
        o = command(s, k)
        k += 1
        if o.kind == CMD_START:
            row = s.n_calls - 1
            if row < 0 or call(s, row).id != o.call:  # most often it is the newest one
                row = find_call(s, o.call)
            if row >= 0:  # else it was cancelled right away
                begin_call(s, w, L, row)
        elif o.kind == CMD_LOAD:
            begin_load(s, w, np.int64(o.copy))
        elif o.kind == CMD_CANCEL:
            w.cancels += 1
            forget_call(w, np.int64(o.call))
        elif o.kind == CMD_FETCH:
            task_done(s, w, L, np.int64(o.task))
        elif o.kind == CMD_CONFIGURE:
            row = N_VARIANTS * o.function + o.variant
            schedule(w, s.now + L.config_time, CONFIG_CHANGED, row, OK, 0, -1.0, 0, -1)
        elif o.kind == CMD_STORE:
            w.moved += 1
        elif o.kind == CMD_DELETE:
            w.deleted += 1
        else:  # unloading takes no time here
            w.event.kind = UNLOADED
            w.event.subject = o.copy
            apply(s, w.event)
    s.n_commands = 0


@kernel
def happen(s, w, L):
    """The next event, which is due now."""
    w.n_due -= 1
    d = due(w, w.n_due)
    i = np.int64(d.task)
    error = np.int64(d.event.error)
    if i < 0:
        subject = np.int64(d.event.subject)
        apply(s, d.event)
        if d.event.kind == TENANT_LOAD:
            plan_tenants(s, w, L, subject, s.now // L.crowd_window)
        elif d.event.kind == ARRIVE:
            after_arrival(s, w)
        elif d.event.kind == CONFIG_CHANGED:
            if L.any_change == 1 and s.now - s.t0 >= truth(w, subject).change:
                truth(w, subject).change = CONFIGURED
        else:
            w.load_cost = 0.0
        return
    t = task(s, i)
    if error == OK:
        w.have |= _ONE << uint64(t.function & 63)
        if L.order_hidden == 1:
            w.have &= ~L.spoils[t.function]
    lost = -1
    if error == ERR_LOST and t.calls == 1 and flow(s, t.flow).ended == NEVER:
        lost = oldest_input(s, i)
    apply(s, d.event)
    if lost >= 0:
        artifacts_lost(s, w, lost)
    if error == OK:
        task_done(s, w, L, i)


@kernel
def run(s, w, L):
    """Until a decision is due: everything that happens at one time happens before the agent is asked."""
    while True:
        if s.n_commands > 0:
            carry_out(s, w, L)
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
            happen(s, w, L)
