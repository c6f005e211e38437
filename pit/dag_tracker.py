"""DAG Tracker: readiness, near-future demand, alternatives and partial re-execution of tasks.

It must not know places or copies. What it believes of durations is `pit.estimates`.
"""

from __future__ import annotations

import numpy as np

from pit import flows, freshness
from pit.compiled import kernel
from pit.estimates import bound, find_influence, learn_ratio, look_for_drift, rank_all
from pit.layout import (
    BLOCKED,
    DONE,
    FAILED,
    GIVEN_UP,
    N_VARIANTS,
    NEVER,
    ON,
    OVERDUE,
    RANK_EVERY_MIN,
    RANK_EVERY_SHARE,
    READY,
    RUNNING,
    SOLVED,
    STANDARD,
    TIER_GONE,
)
from pit.members import OPTIONAL, exclude, include, next_in
from pit.open_tasks import (
    critical_path_left,
    leave_ready,
    make_ready,
    set_late,
    set_near,
    sort_ready,
    tell_twins,
)
from pit.state import artifact, flow, model, predecessor, ready, successor, task, variant
from pit.tiers import doubt, move


@kernel
def rank_again(s, row):
    """After a finish: marks drift of the function of `row` (its standard variant) and recomputes ranks when it is time."""
    s.finishes += 1
    look_for_drift(s, row)
    if s.drift == 1 and s.finishes >= max(RANK_EVERY_MIN, s.n_tasks // RANK_EVERY_SHARE):
        rank_all(s)
        sort_ready(s)


@kernel
def arrive(s):
    """The next workflow is there: estimates, ranks, bounds, counts; its tasks without open inputs become ready."""
    if s.n_flows == 0:
        for f in range(3 * s.n_functions):
            v = variant(s, f)
            if v.usable == 1 or f % N_VARIANTS == STANDARD:
                learn_ratio(v)
    w = flow(s, s.n_flows)
    note_arrival(s, w)
    first = np.int64(w.first)
    last = np.int64(w.last)
    w.required_left = 0
    w.n_sinks = 0
    for i in range(first, last):
        t = task(s, i)
        hint = artifact(s, i).hint
        standard = variant(s, 3 * t.function + STANDARD).nominal
        for k in range(N_VARIANTS):
            nominal = variant(s, 3 * t.function + k).nominal
            t.base[k] = nominal if hint <= 0.0 else hint * nominal / standard
        t.flow = s.n_flows - 1
        block(s, i)
        t.open_inputs = 1 if t.join_any == 1 else t.pred_to - t.pred_from
        w.required_left += t.required
        w.n_sinks += t.required & (t.succ_to == t.succ_from)
    s.n_required += w.required_left
    s.required_left += w.required_left
    s.n_sinks += w.n_sinks
    w.lb = bound(s, first, last)
    s.lb_sum += w.lb
    s.lb = s.lb_sum / s.n_flows
    rank_all(s)
    work = 0.0
    for i in range(first, last):
        work += task(s, i).work
    s.work_total += work
    s.unit = s.work_total / s.n_tasks
    find_influence(s, first, last, w.n_sinks)
    if s.stream == 1:
        sort_ready(s)
    for i in range(first, last):
        t = task(s, i)
        if t.required == 1:
            v = variant(s, 3 * t.function + STANDARD)
            cost = t.work * v.price / 1e6
            if v.model >= 0:
                m = model(s, v.model)
                cost += m.load_est * m.price / 1e6
            s.upper_cost += cost
        if t.open_inputs == 0:
            make_ready(s, i)
    s.cp_start = max(s.cp_start, critical_path_left(s))


@kernel
def block(s, i):
    """Task i waits for inputs."""
    task(s, i).state = BLOCKED
    if task(s, i).required == 0:
        include(s, OPTIONAL, i)
    if s.any_fresh == 1:
        freshness.wanted(s, i)


@kernel
def block_again(s, i):
    """Task i, which had inputs or even an output, waits for inputs."""
    block(s, i)
    doubt(s, task(s, i))


@kernel
def abandon(s, i):
    """Task i, blocked or ready, will never have an output."""
    t = task(s, i)
    if t.state == READY:
        leave_ready(s, i)
    t.state = GIVEN_UP
    doubt(s, t)
    if t.required == 0:
        exclude(s, OPTIONAL, i)
    s.n_given_up += 1
    t.quality = 0.0
    flows.take_share(s, t, -1.0)
    set_near(s, i)


@kernel
def note_arrival(s, w):
    """Workflow `w` is the next one: counts, gaps between arrivals; nobody is deferred any more."""
    if s.n_flows > 0:
        gap = float(s.now - s.last_arrival)
        s.gap_squares += gap * gap
    s.last_arrival = s.now
    s.n_flows += 1
    s.n_active += 1
    s.n_tasks = w.last
    w.arrived = s.now
    w.ended = NEVER
    flows.end_deferrals(s)


@kernel
def end_flow(s, g):
    """Workflow g has all that is required of it: in a stream, what it has not begun is given up."""
    w = flow(s, g)
    w.ended = s.now
    s.n_active -= 1
    flows.end_deferrals(s)
    if s.stream == 1:
        for i in range(w.first, w.last):
            if task(s, i).state <= READY:
                abandon(s, i)


@kernel
def dispatched(s, i, when):
    """Task i leaves the ready tasks and runs, expected to end at `when` (us); its successors have one more running input."""
    t = task(s, i)
    leave_ready(s, i)
    t.state = RUNNING
    doubt(s, t)
    if s.any_twins == 1:
        tell_twins(s, i)
    if s.order_hidden == 1:
        set_late(s, i, True)
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        o = task(s, j)
        o.running_inputs += 1
        o.near_time = max(o.near_time, when)
        set_near(s, j)


@kernel
def expect(s, i, when):
    """A call of task i is expected to end at `when` (us): its successors take note."""
    t = task(s, i)
    for e in range(t.succ_from, t.succ_to):
        o = task(s, successor(s, e).task)
        o.near_time = max(o.near_time, when)


@kernel
def stopped(s, i):
    """Task i runs no more: its successors have one running input fewer."""
    t = task(s, i)
    if t.mark == OVERDUE:
        set_late(s, i, False)
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        task(s, j).running_inputs -= 1
        set_near(s, j)


@kernel
def tell(s, j):
    """Task j is told that one of its inputs is done, or that it must do without it."""
    t = task(s, j)
    if t.join_any == 1:
        t.open_inputs = 0
    else:
        t.open_inputs -= 1
    set_near(s, j)
    if t.open_inputs == 0 and t.state == BLOCKED:
        make_ready(s, j)
        if t.join_any == 1:
            release_alternatives(s, j)


@kernel
def release_alternatives(s, j):
    """One input of task j is enough, and is there: what only the other ones were good for becomes optional."""
    t = task(s, j)
    for e in range(t.pred_from, t.pred_to):
        task(s, predecessor(s, e).task).touched = 1
    for i in range(j - 1, -1, -1):
        t = task(s, i)
        if t.touched == 0:
            continue
        t.touched = 0
        if t.required == 0 or t.state >= DONE:
            continue
        free = True
        for e in range(t.succ_from, t.succ_to):
            o = task(s, successor(s, e).task)
            if o.state < DONE and o.required == 1 and (o.join_any == 0 or o.state == BLOCKED):
                free = False
        if free:
            t.required = 0
            if t.state == BLOCKED:
                include(s, OPTIONAL, i)
            s.n_required -= 1
            s.required_left -= 1
            flow(s, t.flow).required_left -= 1
            for e in range(t.pred_from, t.pred_to):
                task(s, predecessor(s, e).task).touched = 1


@kernel
def done(s, i):
    """Task i has its output: a call of it has ended."""
    task(s, i).state = DONE
    if s.any_twins == 1:
        tell_twins(s, i)
    stopped(s, i)
    complete(s, i)


@kernel
def reused(s, i):
    """Ready task i has the output of a twin."""
    leave_ready(s, i)
    task(s, i).state = DONE
    s.reused += 1
    complete(s, i)


@kernel
def complete(s, i):
    """What the output of task i means for the rest."""
    t = task(s, i)
    doubt(s, t)
    if s.any_fresh == 1:
        freshness.made(s, i)
    flows.take_share(s, t, -1.0)
    g = np.int64(t.flow)
    if t.required == 1:
        s.required_left -= 1
        flow(s, g).required_left -= 1
        if t.succ_to == t.succ_from:
            s.sinks_done += 1
            s.quality_done += t.quality
    for e in range(t.succ_from, t.succ_to):
        tell(s, successor(s, e).task)
    if flow(s, g).required_left == 0 and flow(s, g).ended == NEVER:
        end_flow(s, g)
    if s.required_left == 0 and s.stream_open == 0:
        s.status = SOLVED
    elif s.stream == 1:
        sort_ready(s)


@kernel
def failed(s, i, lost):
    """An attempt of task i gave nothing, and no other call of it is in flight: it is ready again, or given up when its
    attempts are used. `lost`: an input's artifact is gone."""
    t = task(s, i)
    stopped(s, i)
    block_again(s, i)
    if s.any_twins == 1:
        tell_twins(s, i)
    if flow(s, t.flow).ended < NEVER:
        abandon(s, i)
        sort_ready(s)
        return
    if lost:
        lose_input(s, i)
    if s.max_attempts > 0 and t.attempts >= s.max_attempts:
        give_up(s, i)
    else:
        open_again(s, i)


@kernel
def open_again(s, i):
    """A blocked task is ready if it lacks no input."""
    if task(s, i).open_inputs == 0:
        make_ready(s, i)
    else:
        set_near(s, i)


@kernel
def oldest_input(s, i):
    """The input of task i whose artifact is the oldest (then: of smallest index); -1 if none is done."""
    t = task(s, i)
    found = -1
    for e in range(t.pred_from, t.pred_to):
        k = np.int64(predecessor(s, e).task)
        if task(s, k).state == DONE:
            age = artifact(s, k).created
            if found < 0 or age < artifact(s, found).created or (age == artifact(s, found).created and k < found):
                found = k
    return found


@kernel
def lose_input(s, i):
    """The oldest artifact among the inputs of task i is gone: its producer runs once more."""
    found = oldest_input(s, i)
    if found >= 0:
        run_again(s, found)


@kernel
def run_again(s, found):
    """Done task `found` must run once more, and with it only what it was made from and is gone since."""
    undo(s, found)
    if s.any_store == 1:
        task(s, found).touched = 1
        for i in range(found, -1, -1):
            t = task(s, i)
            if t.touched == 1:
                t.touched = 0
                if i != found:
                    undo(s, i)
                touch_gone(s, t)


@kernel
def touch_gone(s, t):
    """Marks the inputs of task t that are done and whose artifacts are gone."""
    for e in range(t.pred_from, t.pred_to):
        j = predecessor(s, e).task
        if task(s, j).state == DONE and artifact(s, j).tier == TIER_GONE:
            task(s, j).touched = 1


@kernel
def undo(s, found):
    """Done task `found` must run once more: its successors lack it again."""
    t = task(s, found)
    if s.any_store == 1:
        move(s, found, TIER_GONE)
    flows.take_share(s, t, 1.0)
    s.required_left += t.required
    flow(s, t.flow).required_left += t.required
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        o = task(s, j)
        if o.join_any == 0:
            o.open_inputs += 1
        else:
            o.open_inputs = 1
            for f in range(o.pred_from, o.pred_to):
                k = np.int64(predecessor(s, f).task)
                if k != found and task(s, k).state == DONE:
                    o.open_inputs = 0
        if o.state == READY and o.open_inputs > 0:
            leave_ready(s, j)
            block_again(s, j)
        set_near(s, j)
    if s.any_fresh == 1:
        freshness.unmade(s, found)
    block_again(s, found)
    open_again(s, found)
    if s.stream == 1:
        sort_ready(s)


@kernel
def give_up(s, first):
    """Task `first` will never have an output; what cannot do without it falls with it, in order of index."""
    task(s, first).touched = 1
    for i in range(first, s.n_tasks):
        t = task(s, i)
        if t.touched == 0:
            continue
        t.touched = 0
        if t.join_any == 1 and i != first and not inputs_given_up(s, t):
            continue
        if s.status != ON:
            continue
        abandon(s, i)
        if t.required == 1:
            s.status = FAILED
            continue
        for e in range(t.succ_from, t.succ_to):
            link = successor(s, e)
            o = task(s, link.task)
            if link.soft == 0 and o.state == BLOCKED:
                o.touched = 1
            elif o.join_any == 0:
                tell(s, link.task)
    if s.stream == 1:
        sort_ready(s)


@kernel
def inputs_given_up(s, t):
    """Whether every input of a task is given up."""
    for e in range(t.pred_from, t.pred_to):
        if task(s, predecessor(s, e).task).state != GIVEN_UP:
            return False
    return True


@kernel
def first_optional(s):
    """The first ready optional task, or else the blocked one of smallest index; -1 if there is none."""
    for k in range(s.n_ready):
        i = np.int64(ready(s, k).task)
        if task(s, i).required == 0:
            return i
    return next_in(s, OPTIONAL, -1)
