"""Arbitration Engine: who may ask next, who waits in a queue, and what is held or closed.

Open tasks that are interchangeable share a slot; holds keep a slot's members back until a copy has room; a queue orders
tasks by priority and age; a back-off closes a pool. It must not know how a call is carried out.
"""

from __future__ import annotations

import numpy as np

from pit import flows
from pit.compiled import kernel, rare
from pit.layout import HELD, MAX_DOUBLINGS, N_SLOTS, NEVER, OVERDUE, PLAIN, QUEUED, STANDARD
from pit.memory import position
from pit.slot_key import key_of
from pit.state import call, flow, ready, task, variant

_BUCKET = 16  # of a key: octave, function (128), priority (4), bucket (64), echo (2), attempted (2), class (4)
_OCTAVE = _BUCKET * 64 * 4 * 128
_DEFERRED = N_SLOTS  # the slot of a task that stands in none and not in the tail


@kernel
def find_late(s):
    """Lists the running tasks that have overrun behind the ready ones: larger rank, then smaller index."""
    first = np.int64(s.n_ready)
    n = first
    for row in range(s.n_calls):
        i = np.int64(call(s, row).task)
        t = task(s, i)
        if t.mark != OVERDUE:
            continue
        known = False
        for k in range(first, n):
            known |= ready(s, k).task == i
        if known:
            continue
        k = n
        while k > first:
            j = ready(s, k - 1).task
            o = task(s, j)
            if s.stream == 1 and o.flow != t.flow:
                if flows.goes_first(s, np.int64(o.flow), np.int64(t.flow)):
                    break
            elif o.rank > t.rank or (o.rank == t.rank and j < i):
                break
            ready(s, k).task = j
            k -= 1
        ready(s, k).task = i
        if s.stream == 1:
            t.octave = flow(s, t.flow).octave
        t.key = key_of(t)
        n += 1


@kernel
def group_ready(s):
    """Puts every open task into a slot (function, priority, half-octave of rank, attempted, class); widens buckets if slots
    run out."""
    if s.n_late > 0:
        find_late(s)
    for width in range(3):
        n = 0
        s.n_tail = 0
        for k in range(s.n_ready + s.n_late):
            i = ready(s, k).task
            t = task(s, i)
            key = np.int64(t.key)
            if width > 0:
                bucket = (key // _BUCKET) & 63
                key -= bucket * _BUCKET
                if width == 1:
                    key += (bucket >> 1) * _BUCKET
                else:
                    key %= _OCTAVE
            if s.any_deferred == 1 and flow(s, t.flow).deferred == 1:
                t.slot = _DEFERRED
                continue
            g = position(s.keys, n, key)
            if g == N_SLOTS:
                if width < 2:
                    s.n_tail = 1
                    break
                t.slot = -1
                s.n_tail += 1
                continue
            slot = s.slots[g]
            head = slot.head
            count = slot.count
            s.keys[g] = key
            slot.head = i if g == n else head  # selected, not branched: whether a task opens a slot is anybody's guess
            slot.count = 1 if g == n else count + 1
            n += g == n
            t.slot = g
        s.n_slots = n
        if s.n_tail == 0:
            break


@kernel
def mark(s, t, kind):
    """A ready task is plain, held or queued from now on."""
    t.mark = kind
    t.key = key_of(t)


@kernel
def hold_slot(s, g, until):
    """Holds every present member of slot g until `until` (us)."""
    for k in range(s.n_ready):
        t = task(s, ready(s, k).task)
        if t.slot == g:
            t.since = until
            mark(s, t, HELD)
            s.n_held += 1


@kernel
def end_holds(s, pool, m):
    """A copy of (pool, m) has room: tasks whose standard variant uses it are plain again."""
    for k in range(s.n_ready):
        t = task(s, ready(s, k).task)
        if t.mark == HELD:
            v = variant(s, 3 * t.function + STANDARD)
            if v.pool == pool and v.model == m:
                mark(s, t, PLAIN)
                s.n_held -= 1


@kernel
def next_hold(s):
    """us at which the next hold ends by itself; NEVER if none."""
    best = NEVER
    if s.n_held > 0:
        for k in range(s.n_ready):
            t = task(s, ready(s, k).task)
            if t.mark == HELD and t.since < best:
                best = t.since
    return best


@kernel
def expire_holds(s):
    """Ends the holds whose time is now or past."""
    if s.n_held > 0:
        for k in range(s.n_ready):
            t = task(s, ready(s, k).task)
            if t.mark == HELD and t.since <= s.now:
                mark(s, t, PLAIN)
                s.n_held -= 1


@kernel
def enqueue(s, i):
    """Task i lines up for its standard variant."""
    t = task(s, i)
    t.since = s.now
    mark(s, t, QUEUED)
    s.n_queued += 1
    v = variant(s, 3 * t.function + STANDARD)
    s.n_claims += v.also >= 0
    s.pools[v.pool].queued += 1


@kernel
def leave_queue(s, i):
    """Task i is plain again."""
    t = task(s, i)
    mark(s, t, PLAIN)
    s.n_queued -= 1
    v = variant(s, 3 * t.function + STANDARD)
    s.n_claims -= v.also >= 0
    s.pools[v.pool].queued -= 1


@kernel
def first_in_queue(s, p):
    """The task that pool p serves next: priority and age, fairness, rank, time in the queue, index; -1 if none is queued."""
    best = -1
    best_class = 0
    for k in range(s.n_ready):
        i = np.int64(ready(s, k).task)
        t = task(s, i)
        v = variant(s, 3 * t.function + STANDARD)
        if t.mark != QUEUED or v.pool != p:
            continue
        urgency = np.int64(t.priority)
        if s.ageing > 0:
            urgency += (s.now - t.since) // s.ageing
        if best >= 0 and not goes_first(s, t, i, urgency, task(s, best), best, best_class):
            continue
        best = i
        best_class = urgency
    return best


@kernel
def goes_first(s, t, i, urgency, o, j, other):
    """Whether queued task t (index i) goes before o (index j)."""
    if urgency != other:
        return urgency > other
    if s.fair == 1:
        mine = variant(s, 3 * t.function + STANDARD).served
        theirs = variant(s, 3 * o.function + STANDARD).served
        if mine != theirs:
            return mine < theirs
    if t.rank != o.rank:
        return t.rank > o.rank
    if t.since != o.since:
        return t.since < o.since
    return i < j


@kernel
def claims(s, t, pool):
    """Whether a ready task, being queued for a gang, claims this pool."""
    v = variant(s, 3 * t.function + STANDARD)
    return t.mark == QUEUED and v.also >= 0 and (v.pool == pool or v.also == pool) and s.now < t.since + s.reserve


@kernel
def goes_before(t, i, o, j):
    """Whether task t (index i) goes before task o (index j) in a pool that it claims."""
    return t.rank > o.rank or (t.rank == o.rank and i < j)


@kernel
def is_claimed(s, i, pool):
    """Whether a queued gang that goes before task i claims this pool."""
    for k in range(s.n_ready):
        j = np.int64(ready(s, k).task)
        if j != i and claims(s, task(s, j), pool) and goes_before(task(s, j), j, task(s, i), i):
            return True
    return False


@kernel
def claimed(s, i, v):
    """Whether a pool of which variant v takes places is claimed by a queued gang that goes before task i."""
    return s.n_claims > 0 and s.reserve > 0 and one_is_claimed(s, i, v)


@rare
def one_is_claimed(s, i, v):
    """`claimed`, where gangs may wait."""
    return is_claimed(s, i, v.pool) or (v.also >= 0 and is_claimed(s, i, v.also))


@kernel
def next_claim(s):
    """us at which the next claim ends; NEVER if none does."""
    best = NEVER
    if s.n_claims > 0 and s.reserve > 0:
        for k in range(s.n_ready):
            t = task(s, ready(s, k).task)
            until = t.since + s.reserve
            if t.mark == QUEUED and s.now < until < best and variant(s, 3 * t.function + STANDARD).also >= 0:
                best = until
    return best


@kernel
def worst_pool(s):
    """The pool with most failed calls in a row that is not backed off; -1 if none has failed last."""
    best = -1
    failures = 0
    for p in range(s.n_pools):
        pool = s.pools[p]
        if pool.in_row > failures and pool.closed_until <= s.now:
            best = p
            failures = pool.in_row
    return best


@kernel
def lot(s, p):
    """A number in [0, 1) that this run's salt, its actions so far and pool p make (SplitMix64's finish): nothing is drawn."""
    x = s.salt + (np.uint64(s.actions) * np.uint64(64) + np.uint64(p)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@kernel
def back_off(s, p, times):
    """Pool p, whose last calls have failed, takes no new call for `times` x the base x 2^(failures - 1), or the most that is
    allowed; less some of it, so that runs that failed together do not come back together."""
    pool = s.pools[p]
    wait = times * s.back_off * (np.int64(1) << (min(np.int64(pool.in_row), MAX_DOUBLINGS) - 1))
    wait = min(wait, np.int64(s.back_off_most))
    if s.jitter > 0.0:
        wait -= np.int64(wait * (s.jitter * lot(s, p)))
    pool.closed_until = s.now + wait
