"""The bounds of the score under true parameters (rule page, section 4): what no player can beat, of tasks, workflows and whole
episodes. Drawn once an episode; nothing here knows what an agent does.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.randomness import mix, to_noise
from fq_env.state import goal, load_truth, span, truth
from pit.compiled import kernel
from pit.estimates import has_choice
from pit.layout import DONE, N_VARIANTS, STANDARD
from pit.state import artifact, flow, model, successor, task, variant

_ONE = np.uint64(1)


@kernel
def bounds(s, w, L):
    """Per task the least time, rank and cost; per workflow LB (us) and least work; LB, least and sequential-cold cost
    (micro-units) of all, under true means."""
    load_cost = -1.0
    w.cost_high = 0.0
    w.cost_left = 0.0
    w.bounds_sum = 0.0
    w.lb = 0.0
    arrival = 0
    for g in range(s.flow_rows):
        f = flow(s, g)
        w.work_left = 0.0
        path, load, cheapest = longest(s, w, np.int64(f.first), np.int64(f.last))
        if s.order_hidden == 1 and L.n_plans[w.goal_index] > 1:
            cheapest_plan(s, w, L)
        load_cost = cheapest if load_cost < 0.0 or cheapest < load_cost else load_cost
        x = span(w, g)
        x.lb = max(path, w.work_left / s.all_places) + max(load, 0.0)
        x.left = x.lb
        x.work = w.work_left
        x.work_left = w.work_left
        w.bounds_sum += f.weight * x.lb
        arrival += gap(s, w, g) if g > 0 else 0
        w.lb = max(w.lb, arrival + x.lb)
    w.load_cost = max(load_cost, 0.0)
    w.cost_low = w.cost_left + w.load_cost


@kernel
def mean_gap(s, w, g):
    """us that pass in the mean between the arrivals of workflows g - 1 and g of a stream."""
    return span(w, g - 1).work / s.all_places / w.load


@kernel
def gap(s, w, g):
    """us between the arrivals of workflows g - 1 and g of a stream."""
    return max(1, np.int64(mean_gap(s, w, g) * to_noise(mix(w.arrivals, g), w.gap_noise)))


@kernel
def longest(s, w, first, last):
    """The tasks first..last - 1 of one workflow: (its longest path in us, the load that cannot be avoided in us, the least
    price of one). Work and costs are added to the world's sums."""
    path = 0.0
    load = -1.0
    load_cost = -1.0
    choice = has_choice(s, first, last)
    for i in range(last - 1, first - 1, -1):
        t = task(s, i)
        g = goal(w, i)
        light, light_cost, usual = least(s, w, t, g)
        if s.order_hidden == 1:  # every function once, and what is needed once more
            w.cost_high += usual
        w.cost_high += usual if t.required == 1 else 0.0
        twin = s.any_twins == 1 and artifact(s, i).next_twin != i
        own = 0.0 if twin else g.least
        if twin and has_later(s, w, i):
            g.least = 0.0
            g.cost = 0.0
        g.needed = is_needed(s, w, t, choice)
        g.rank = 0.0
        if g.needed == 0:
            continue
        best = 0.0
        for e in range(t.succ_from, t.succ_to):
            link = successor(s, e)
            if link.soft == 0 and task(s, link.task).join_any == 0:
                best = max(best, goal(w, link.task).rank)
        g.rank = own + best
        path = max(path, g.rank)
        w.cost_left += g.cost
        w.work_left += g.least
        load = light if load < 0.0 or light < load else load
        load_cost = light_cost if load_cost < 0.0 or light_cost < load_cost else load_cost
    return path, load, load_cost


@kernel
def has_later(s, w, i):
    """Whether a needed twin of task i stands behind it in its workflow, or in an earlier one."""
    own = task(s, i).flow
    j = artifact(s, i).next_twin
    while j != i:
        other = task(s, j).flow
        if ((j > i and other == own) or other < own) and goal(w, j).needed == 1:
            return True
        j = artifact(s, j).next_twin
    return False


@kernel
def least(s, w, t, g):
    """Writes a task's least time and cost; (least load, its least price, what standard costs with its load)."""
    g.least = -1.0
    g.cost = -1.0
    light = -1.0
    light_cost = -1.0
    usual = 0.0
    for k in range(N_VARIANTS):
        row = 3 * t.function + k
        v = variant(s, row)
        if v.usable == 0:
            continue
        mean = truth(w, row).mean * g.factor
        cost = mean * v.price / 1e6
        y = 0.0
        z = 0.0
        if v.model >= 0:
            y = load_truth(w, v.model).mean
            z = y * model(s, v.model).price / 1e6
        g.least = mean if g.least < 0.0 or mean < g.least else g.least
        g.cost = cost if g.cost < 0.0 or cost < g.cost else g.cost
        light = y if light < 0.0 or y < light else light
        light_cost = z if light_cost < 0.0 or z < light_cost else light_cost
        if k == STANDARD:
            usual = cost + z
    return light, light_cost, usual


@kernel
def is_needed(s, w, t, choice):
    """Whether no run succeeds without task t, whatever alternative it takes, if there is any `choice`."""
    if t.required == 0 or not choice or t.succ_to == t.succ_from:
        return t.required
    for e in range(t.succ_from, t.succ_to):
        link = successor(s, e)
        if link.soft == 0 and task(s, link.task).join_any == 0 and goal(w, link.task).needed == 1:
            return 1
    return 0


@kernel
def cheapest_plan(s, w, L):
    """Hidden order with several plans: the least work and the least cost of what a plan still lacks."""
    n = L.n_plans[w.goal_index]
    for k in range(n):
        plan = L.plans[w.goal_index, k]
        work = 0.0
        cost = 0.0
        for i in range(s.n_tasks - 1, -1, -1):
            t = task(s, i)
            if t.state != DONE and (plan >> uint64(t.function)) & _ONE == _ONE:
                work += goal(w, i).least
                cost += goal(w, i).cost
        w.work_left = work if k == 0 or work < w.work_left else w.work_left
        w.cost_left = cost if k == 0 or cost < w.cost_left else w.cost_left
