"""Other futures of one world, for looking ahead: what has not happened yet is drawn anew, and agrees with what has.

Nothing here knows when a pool will decay or an API will change: such times are drawn again, too.
"""

from __future__ import annotations

import numpy as np

from fq_env.randomness import (
    ARRIVALS,
    CHANGES,
    DRIFT,
    DURATIONS,
    FAILURES,
    LOADS,
    OUTAGES,
    STRAGGLERS,
    TENANTS,
    mix,
    to_noise,
    to_uniform,
)
from fq_env.score_bounds import mean_gap
from fq_env.state import due, goal, load_truth, truth
from fq_env.world import lateness, next_change, taken
from pit.automation import find_call
from pit.compiled import kernel
from pit.layout import ARRIVE, CONFIG_CHANGED, ERR_ERROR, ERR_INVALID, ERR_LOST, N_VARIANTS, NEVER, OK, TENANT_LOAD
from pit.memory import copy_record
from pit.state import call, copy, model, variant

TRIES = 24  # draws of a duration that must be longer than what has passed already


@kernel
def another_future(s, w, L, seed):
    """From now on other durations, failures, loads and stragglers happen; what is under way ends at another time, too."""
    w.durations = mix(seed, DURATIONS)
    w.failures = mix(seed, FAILURES)
    w.loads = mix(seed, LOADS)
    w.stragglers = mix(seed, STRAGGLERS)
    w.arrivals = mix(seed, ARRIVALS)
    w.outages_later = mix(seed, OUTAGES)
    w.tenants_later = mix(seed, TENANTS)
    w.branch = s.now
    if L.any_drift == 1:
        drift_again(s, w, L, seed)
    if L.any_change == 1:
        change_again(s, w, L, seed)
    n = w.n_due
    spare = due(w, n)
    for k in range(n):
        draw_again(s, w, L, due(w, k))
    for k in range(1, n):  # insertion, in falling order of time
        copy_record(spare, due(w, k))
        j = k
        while j > 0 and due(w, j - 1).when < spare.when:
            copy_record(due(w, j), due(w, j - 1))
            j -= 1
        copy_record(due(w, j), spare)


@kernel
def drift_again(s, w, L, seed):
    """Pools that have not decayed yet decay at another time, or never."""
    for p in range(s.n_pools):
        if L.drift[p] > 0.0 and w.onset[p] > s.now - s.t0:
            own = mix(mix(seed, DRIFT), p)
            onset = np.int64((L.onset[0] + (L.onset[1] - L.onset[0]) * to_uniform(mix(own, 1))) * w.lb)
            decays = to_uniform(mix(own, 0)) < L.drift[p] and onset > s.now - s.t0
            w.onset[p] = onset if decays else NEVER
            w.decay[p] = L.drift_factor[0] + (L.drift_factor[1] - L.drift_factor[0]) * to_uniform(mix(own, 2))


@kernel
def change_again(s, w, L, seed):
    """Variants whose API has not changed yet change it at another time, or never."""
    for row in range(N_VARIANTS * s.n_functions):
        t = truth(w, row)
        if s.now - s.t0 < t.change <= NEVER:
            v = variant(s, row)
            own = mix(mix(seed, CHANGES), row)
            when = np.int64((L.change_onset[0] + (L.change_onset[1] - L.change_onset[0]) * to_uniform(mix(own, 1))) * w.lb)
            changes = v.usable == 1 and to_uniform(mix(own, 0)) < L.api_change[v.pool] and when > s.now - s.t0
            t.change = when if changes else NEVER


@kernel
def arrive_again(s, w, d):
    """The next workflow of a stream, which has not arrived by now, arrives at another time."""
    g = np.int64(d.event.subject)
    d.when = s.last_arrival
    for k in range(TRIES):
        if d.when <= s.now:
            own = mix(w.arrivals, g * 64 + k + (1 << 20))
            d.when = s.last_arrival + max(1, np.int64(mean_gap(s, w, g) * to_noise(own, w.gap_noise)))
    if d.when <= s.now:
        d.when = s.now + 1 + np.int64(0.25 * mean_gap(s, w, g))


@kernel
def draw_again(s, w, L, d):
    """The event d, which has not happened by now, happens at another time: a draw that agrees with that."""
    if d.event.kind == TENANT_LOAD:
        p = np.int64(d.event.subject)
        k = next_change(s, w, L, p, s.now // L.crowd_window)
        d.when = k * L.crowd_window
        d.event.size = taken(s, w, L, p, k)
        return
    if d.event.kind == ARRIVE:
        arrive_again(s, w, d)
        return
    if d.event.kind == CONFIG_CHANGED:  # takes the time that it takes
        return
    began = d.when - d.event.elapsed
    ran = s.now - began
    elapsed = 0
    price = 0
    if d.task < 0:
        m = np.int64(copy(s, d.event.subject).model)
        price = model(s, m).price
        mean = load_truth(w, m).mean
        for k in range(TRIES):
            if elapsed <= ran:
                elapsed = max(1, np.int64(mean * to_noise(mix(w.loads, (1 << 40) + m * 64 + k), w.load_noise)))
    else:
        c = call(s, find_call(s, d.event.subject))
        row = 3 * c.function + c.variant
        price = variant(s, row).price
        mean = truth(w, row).mean * goal(w, c.task).factor
        for k in range(TRIES):
            if elapsed <= ran:
                key = ((np.int64(1) << 40) + np.int64(c.task) * 2 + c.hedge) * 64 + k
                lasts = mean * to_noise(mix(w.durations, key), w.noise)
                if w.straggler_rate > 0.0:
                    lasts *= lateness(s, w, L, np.int64(c.pool), key)
                elapsed = max(1, np.int64(lasts))
                if d.gate > 0:
                    elapsed = max(1, np.int64(elapsed * L.gate_after[d.gate - 1]))
                elif d.event.error == ERR_INVALID:
                    elapsed = max(1, np.int64(elapsed * L.change_after))
                elapsed += c.fetch
        if d.event.error == ERR_ERROR or d.event.error == ERR_LOST:
            d.event.error = OK  # nobody knows that yet
    if elapsed <= ran:
        elapsed = ran + 1 + np.int64(0.25 * mean)
    d.when = began + elapsed
    d.event.elapsed = elapsed
    d.event.price = elapsed * price // 1_000_000
