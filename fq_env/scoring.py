"""Score and reward under true parameters (rule page, section 4): potential and total, against `score_bounds`.

The potential is the best total still reachable; the reward is its change (potential-based shaping: Ng, Harada and
Russell, ICML 1999).
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.score_bounds import cheapest_plan
from fq_env.state import goal, sink, span, truth
from pit.compiled import kernel
from pit.layout import DONE, GIVEN_UP, NEVER, ON, SOLVED, STANDARD
from pit.state import call, flow, predecessor, ready, successor, task

_ONE = np.uint64(1)


@kernel
def reachable(s, w, i):
    """The quality that the output of task i, which has not ended, can still have: the best variant's on the best inputs."""
    t = task(s, i)
    n = t.pred_to - t.pred_from
    mean = 1.0
    if n > 0 and s.quality_flow > 0.0:
        mean = 0.0
        for e in range(t.pred_from, t.pred_to):
            j = predecessor(s, e).task
            x = goal(w, j).best
            if t.join_any == 0:
                mean += x
            elif task(s, j).state != GIVEN_UP:
                mean = max(mean, x)
        if t.join_any == 0:
            mean /= n
    return goal(w, i).own * (1.0 - s.quality_flow + s.quality_flow * mean)


@kernel
def best_now(s, w, i):
    """The quality of task i's output: reached, 0 if given up, or what can still be reached."""
    t = task(s, i)
    return t.quality if t.state >= DONE else reachable(s, w, i)


@kernel
def deliverable(s, w, first):
    """The best quality still reachable of task `first`, which has ended or must run again, and of all that its change touches;
    then `w.base`."""
    goal(w, first).best = best_now(s, w, first)
    if s.quality_flow > 0.0:
        last = touch(s, w, first, first)
        i = first
        while i < last:
            i += 1
            g = goal(w, i)
            if g.stale == 1:
                g.stale = 0
                best = best_now(s, w, i)
                if best != g.best:
                    g.best = best
                    last = touch(s, w, i, last)
    sink_quality(s, w)


@kernel
def touch(s, w, i, last):
    """What task i's successors can deliver must be computed again; the last of them, or `last` if that is behind it."""
    t = task(s, i)
    for e in range(t.succ_from, t.succ_to):
        j = successor(s, e).task
        goal(w, j).stale = 1
        last = max(last, j)
    return last


@kernel
def sink_quality(s, w):
    """The mean of what required sinks can still deliver."""
    total = 0.0
    for k in range(w.n_sinks):
        total += goal(w, sink(w, k).task).best
    w.base = total / max(1, w.n_sinks)


@kernel
def deliverable_at_first(s, w):
    """`deliverable` of every task, before anything has run."""
    w.n_sinks = 0
    for i in range(s.n_tasks):
        g = goal(w, i)
        t = task(s, i)
        g.stale = 0
        g.done = 0
        g.own = truth(w, 3 * t.function + STANDARD).best
        g.best = reachable(s, w, i)
        if t.required == 1 and t.succ_to == t.succ_from:
            sink(w, w.n_sinks).task = i
            w.n_sinks += 1
    sink_quality(s, w)


@kernel
def task_done(s, w, L, i):
    """Task i is done: what is left shrinks, and quality may have been lost."""
    t = task(s, i)
    g = goal(w, i)
    g.done_at = s.now
    g.done = t.version
    if s.order_hidden == 1 and L.n_plans[w.goal_index] > 1:
        cheapest_plan(s, w, L)
    elif g.needed == 1:
        share(s, w, t, g, -1.0)
    if t.quality != g.best:
        deliverable(s, w, i)


@kernel
def artifact_lost(s, w, i):
    """Task i must run again: what is left grows, and quality may be gained."""
    g = goal(w, i)
    g.done = 0
    if g.needed == 1:
        share(s, w, task(s, i), g, 1.0)
    deliverable(s, w, i)


@kernel
def artifacts_lost(s, w, first):
    """Task `first` must run again, and with it what it was made from as far as that was deleted since."""
    artifact_lost(s, w, first)
    if s.any_store == 1:
        for i in range(first - 1, -1, -1):
            t = task(s, i)
            if goal(w, i).done > 0 and (t.state != DONE or t.version != goal(w, i).done):  # or a twin's output came at once
                artifact_lost(s, w, i)


@kernel
def share(s, w, t, g, sign):
    """The share of a needed task in what is left is added (1.0) or taken away (-1.0)."""
    w.cost_left += sign * g.cost
    if s.stream == 1:
        span(w, t.flow).work_left += sign * g.least
    else:
        w.work_left += sign * g.least


@kernel
def without_output(s, w):
    """Tasks were given up: what their quality meant is gone."""
    w.given_up = s.n_given_up
    for i in range(s.n_tasks):
        if task(s, i).state == GIVEN_UP and goal(w, i).best != 0.0:
            deliverable(s, w, i)


@kernel
def no_plan_left(s, w, L):
    """Hidden order: whether every plan of the goal holds a function whose task is given up."""
    lost = uint64(0)
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.state == GIVEN_UP:
            lost |= _ONE << uint64(t.function)
    for k in range(L.n_plans[w.goal_index]):
        if L.plans[w.goal_index, k] & lost == uint64(0):
            return False
    return True


@kernel
def time_left(s, w):
    """us that the rest needs at least: the true critical path, or the least work over all places."""
    path = 0.0
    running = 0
    for k in range(s.n_ready):
        path = max(path, goal(w, ready(s, k).task).rank)
    for k in range(s.n_calls):
        c = call(s, k)
        if c.hedge == 1 and is_second(s, k):
            continue
        g = goal(w, c.task)
        since = min(s.now - c.start, np.int64(g.least))
        run = since if c.start >= 0 else 0
        path = max(path, g.rank - run)
        running += run * g.needed
    return max(path, (w.work_left - running) / s.all_places)


@kernel
def flow_times(s, w):
    """us, sum of weight x flow time over the workflows of a stream: reached, or what it is at least; what each still needs is
    noted."""
    for g in range(s.n_flows):
        span(w, g).path = 0.0
        span(w, g).running = 0.0
    for k in range(s.n_ready):
        i = np.int64(ready(s, k).task)
        x = span(w, task(s, i).flow)
        x.path = max(x.path, goal(w, i).rank)
    for k in range(s.n_calls):
        c = call(s, k)
        if c.hedge == 1 and is_second(s, k):
            continue
        g = goal(w, c.task)
        x = span(w, task(s, c.task).flow)
        run = min(s.now - c.start, np.int64(g.least)) if c.start >= 0 else 0
        x.path = max(x.path, g.rank - run)
        x.running += run * g.needed
    total = 0.0
    for g in range(s.flow_rows):
        total += flow(s, g).weight * flow_time(s, w, g)
    return total


@kernel
def flow_time(s, w, g):
    """us from the arrival of workflow g to its end: reached, or what it is at least."""
    f = flow(s, g)
    x = span(w, g)
    x.left = x.lb
    if g >= s.n_flows:
        return x.lb
    if f.ended < NEVER:
        x.left = 0.0
        return float(f.ended - f.arrived)
    x.left = max(x.path, (x.work_left - x.running) / s.all_places)
    return float(s.now - f.arrived) + x.left


@kernel
def is_second(s, k):
    """Whether an older call of the same task is in flight."""
    for j in range(k):
        if call(s, j).task == call(s, k).task:
            return True
    return False


@kernel
def efficiency(s, w, left):
    """Resources used between the lower bound and the sequential-cold upper bound, `left` micro-units being still due."""
    if w.cost_high <= w.cost_low:
        return 1.0
    return min(1.0, max(0.0, (w.cost_high - s.spent - left) / (w.cost_high - w.cost_low)))


@kernel
def stability(s):
    return max(0.0, 1.0 - s.warning_weight * s.warnings)


@kernel
def weighted(L, base, e, t, o):
    """base (1 + we e + ws s + wo o) / (1 + we + ws + wo)."""
    bonus = L.w_efficiency * e + L.w_stability * t + L.w_optimization * o
    return base * (1.0 + bonus) / (1.0 + L.w_efficiency + L.w_stability + L.w_optimization)


@kernel
def in_time(s, w, L, i):
    """What the quality of required sink i counts, done or not: less if it comes after the deadline."""
    g = goal(w, i)
    when = float(g.done_at) if task(s, i).state == DONE else s.now + g.least
    return L.late if when > s.deadline else 1.0


@kernel
def base_in_time(s, w, L):
    """The mean of what required sinks can still deliver, in time or not."""
    total = 0.0
    for k in range(w.n_sinks):
        i = np.int64(sink(w, k).task)
        total += goal(w, i).best * in_time(s, w, L, i)
    return total / max(1, w.n_sinks)


@kernel
def potential(s, w, L):
    """The best total still reachable; keeps `w.left` for the makespan reward."""
    if s.stream == 1:
        w.left = flow_times(s, w)
    else:
        w.left = time_left(s, w) if s.status != SOLVED else 0.0
    if s.status != ON and s.status != SOLVED:
        return 0.0
    elapsed = float(s.now - s.t0)
    o = 1.0
    if s.stream == 1:
        o = min(1.0, w.bounds_sum / w.left)
    elif elapsed + w.left > 0.0:
        o = min(1.0, w.lb / (elapsed + w.left))
    left = w.cost_left + w.load_cost if s.status == ON else 0.0
    base = base_in_time(s, w, L) if L.late < 1.0 else w.base
    return weighted(L, base, efficiency(s, w, left), stability(s), o)


@kernel
def score_flows(s, w, out):
    """Weighted means over a stream's workflows: flow time (us), and flow time over its bound."""
    out.flow = 0.0
    out.slowdown = 0.0
    weights = 0.0
    for g in range(s.flow_rows):
        lasts = flow_time(s, w, g)
        out.flow += flow(s, g).weight * lasts
        if span(w, g).lb > 0.0:  # not one whose work is all done in earlier workflows
            out.slowdown += flow(s, g).weight * lasts / span(w, g).lb
        weights += flow(s, g).weight
    out.flow /= weights
    out.slowdown /= weights


@kernel
def score(s, w, L, out):
    """Writes the four parts and the total of an ended episode, from what was delivered (not from the potential)."""
    delivered = 0.0
    out.late = 0
    for k in range(w.n_sinks):
        i = np.int64(sink(w, k).task)
        delivered += task(s, i).quality * in_time(s, w, L, i)
        out.late += task(s, i).state == DONE and goal(w, i).done_at > s.deadline
    makespan = float(s.now - s.t0)
    out.base = delivered / max(1, w.n_sinks) if s.status == SOLVED else 0.0
    out.efficiency = efficiency(s, w, 0.0)
    out.stability = stability(s)
    out.optimization = min(1.0, w.lb / makespan) if makespan > 0.0 else 1.0
    out.flow = makespan + w.left
    out.slowdown = out.flow / w.lb
    if s.stream == 1:
        out.optimization = min(1.0, w.bounds_sum / flow_times(s, w))
        score_flows(s, w, out)
    out.flow /= 1e6
    out.total = weighted(L, out.base, out.efficiency, out.stability, out.optimization)
    out.makespan = makespan / 1e6
