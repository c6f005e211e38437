"""The lists of open tasks: the ready ones in order, the near ones by index, which running ones have overrun; their echoes.

It must not know why a task is ready or runs: that is the DAG Tracker's.
"""

from __future__ import annotations

import numpy as np

from pit import flows
from pit.compiled import kernel
from pit.layout import (
    BLOCKED,
    HELD,
    OVERDUE,
    PLAIN,
    READY,
    RUNNING,
    STANDARD,
)
from pit.members import OPTIONAL, exclude
from pit.slot_key import key_of
from pit.state import artifact, call, flow, model, near, ready, task, variant
from pit.tiers import doubt


@kernel
def critical_path_left(s):
    """us of the longest path that is left: over ready tasks, and over tasks in flight less what they have run."""
    path = 0.0
    for k in range(s.n_ready if s.stream == 1 else min(s.n_ready, 1)):
        path = max(path, task(s, ready(s, k).task).rank)
    for k in range(s.n_calls):
        c = call(s, k)
        t = task(s, c.task)
        path = max(path, t.rank - (min(float(s.now - c.start), t.work) if c.start >= 0 else 0.0))
    return path


@kernel
def sort_ready(s):
    """A stream's ready tasks are put in order and into groups again, after some workflow's remaining work has changed."""
    flows.find_octaves(s)
    n = s.n_ready
    s.n_ready = 0
    for k in range(n):  # insertion into the sorted front of the same list
        place_ready(s, ready(s, k).task)


@kernel
def place_ready(s, i):
    """Inserts task i into the ready tasks: larger rank, then earlier ready, then smaller index."""
    t = task(s, i)
    if s.stream == 1:
        t.octave = flow(s, t.flow).octave
    t.key = key_of(t)
    k = s.n_ready
    while k > 0:
        j = ready(s, k - 1).task
        o = task(s, j)
        if s.stream == 1 and o.flow != t.flow:
            if flows.goes_first(s, np.int64(o.flow), np.int64(t.flow)):
                break
        elif o.rank > t.rank:
            break
        elif o.rank == t.rank and (o.ready_time < t.ready_time or (o.ready_time == t.ready_time and j < i)):
            break
        ready(s, k).task = j
        k -= 1
    ready(s, k).task = i
    s.n_ready += 1


@kernel
def has_echo(s, i):
    """Whether a twin of task i is in flight."""
    j = artifact(s, i).next_twin
    while j != i:
        if task(s, j).state == RUNNING:
            return True
        j = artifact(s, j).next_twin
    return False


@kernel
def tell_twins(s, i):
    """Task i is in flight, or is no more: its ready twins have an echo, or have none."""
    j = artifact(s, i).next_twin
    while j != i:
        t = task(s, j)
        if t.state == READY:
            t.echo = has_echo(s, j)
            t.key = key_of(t)
        j = artifact(s, j).next_twin


@kernel
def make_ready(s, i):
    t = task(s, i)
    t.state = READY
    doubt(s, t)
    if t.required == 0:
        exclude(s, OPTIONAL, i)
    t.mark = PLAIN
    t.ready_time = s.now
    if s.any_twins == 1:
        t.echo = has_echo(s, i)
    place_ready(s, i)
    m = variant(s, 3 * t.function + STANDARD).model
    if m >= 0:
        model(s, m).ready += 1


@kernel
def leave_ready(s, i):
    """Task i is not among the ready tasks any more; its marks are gone."""
    t = task(s, i)
    s.n_ready -= 1
    passed = False
    for k in range(s.n_ready):  # everything behind task i moves up by one
        passed |= ready(s, k).task == i
        ready(s, k).task = ready(s, k + passed).task
    t.echo = 0
    v = variant(s, 3 * t.function + STANDARD)
    if v.model >= 0:
        model(s, v.model).ready -= 1
    if t.mark != PLAIN:
        if t.mark == HELD:
            s.n_held -= 1
        else:
            s.n_queued -= 1
            s.n_claims -= v.also >= 0
            s.pools[v.pool].queued -= 1
        t.mark = PLAIN


@kernel
def set_near(s, i):
    """Keeps the sorted list of blocked tasks whose open inputs are all running (join any: some input)."""
    t = task(s, i)
    enough = (t.running_inputs == t.open_inputs) | ((t.join_any == 1) & (t.running_inputs > 0))
    is_near = (t.state == BLOCKED) & (t.open_inputs > 0) & enough
    if is_near == t.near:
        return
    t.near = is_near
    doubt(s, t)
    m = variant(s, 3 * t.function + STANDARD).model
    if m >= 0:
        model(s, m).soon += 2 * is_near - 1
    if is_near:
        k = s.n_near
        while k > 0 and near(s, k - 1).task > i:
            near(s, k).task = near(s, k - 1).task
            k -= 1
        near(s, k).task = i
        s.n_near += 1
    else:
        s.n_near -= 1
        passed = False
        for k in range(s.n_near):  # everything behind task i moves up by one
            passed |= near(s, k).task == i
            near(s, k).task = near(s, k + passed).task


@kernel
def set_late(s, i, is_late):
    """Whether running task i stands in a slot: a call of it has overrun, or the order is hidden."""
    t = task(s, i)
    if (t.mark == OVERDUE) != is_late:
        t.mark = OVERDUE if is_late else PLAIN
        s.n_late += 2 * is_late - 1
    if is_late:
        t.key = key_of(t)
