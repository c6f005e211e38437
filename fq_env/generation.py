"""Instances: the physics and the hidden order that one seed draws, written straight into a Pit and its world.

The Pit gets what a production system would know (hints, catalogue figures, earlier observations); the world keeps the
truth. The order of draws is part of the level's version: changing it changes every instance.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint64

from fq_env.families import add_task, sigma_of
from fq_env.randomness import bits, integer, pick, to_noise, uniform
from fq_env.state import load_truth, truth
from pit.compiled import kernel
from pit.layout import N_VARIANTS, NEVER, STANDARD
from pit.pool_manager import learn_load
from pit.state import model, task, variant

_ONE = np.uint64(1)


@kernel
def draw_physics(s, w, L):
    """Places, memory, models, durations, loads, noise; returns how many functions are used."""
    if L.places[0] > 0:
        s.all_places -= s.pools[0].places
        s.pools[0].places = integer(w, L.places[0], L.places[1])
        s.all_places += s.pools[0].places
    if L.memory[0] > 0:
        s.budgets[0].capacity = integer(w, L.memory[0], L.memory[1])
    if s.n_limited > 0:
        slower = uniform(w, L.rate[0], L.rate[1])
        for p in range(s.n_pools):
            s.pools[p].period = np.int64(s.pools[p].period / slower)
    functions = np.int64(s.n_functions)
    if L.functions[0] > 0:
        functions = integer(w, L.functions[0], L.functions[1])
    models = 0
    if L.models[0] > 0:
        models = integer(w, L.models[0], L.models[1])
    w.noise = sigma_of(uniform(w, L.noise_cv[0], L.noise_cv[1]))
    w.load_noise = sigma_of(L.load_cv)
    w.straggler_rate = 0.0
    if L.straggler_rate[1] > 0.0:
        w.straggler_rate = uniform(w, L.straggler_rate[0], L.straggler_rate[1])
    belief = sigma_of(L.belief_cv)
    earlier = float(L.earlier[pick(w, L.n_earlier)])
    for f in range(functions):
        standard = variant(s, 3 * f + STANDARD)
        factor = uniform(w, L.seconds[0], L.seconds[1])
        gap = uniform(w, L.quality_gap[0], L.quality_gap[1])
        if models > 0:
            standard.model = f if f < models else pick(w, models)
        nominal = standard.nominal
        best = 0.0
        for k in range(N_VARIANTS):
            v = variant(s, 3 * f + k)
            if v.usable == 0:
                continue
            t = truth(w, 3 * f + k)
            t.mean = nominal * factor
            if k != STANDARD:
                t.mean = v.nominal * factor * uniform(w, L.variant_seconds[0], L.variant_seconds[1])
                v.quality = min(1.0, max(0.0, standard.quality + (v.quality - standard.quality) * gap))
            best = max(best, v.quality)
            v.nominal = float(max(1, np.int64(t.mean * to_noise(bits(w), belief))))
            learn(w, v, t.mean / v.nominal, earlier)
        truth(w, 3 * f + STANDARD).best = best
    scale = uniform(w, L.load_seconds[0], L.load_seconds[1])
    exclusive = uniform(w, 0.0, 1.0) < L.exclusive
    for i in range(s.n_models):
        m = model(s, i)
        t = load_truth(w, i)
        t.mean = m.nominal * scale * uniform(w, L.model_load[0], L.model_load[1])
        t.count = 0
        m.nominal = float(max(1, np.int64(t.mean * to_noise(bits(w), belief))))
        m.n = earlier
        m.s = earlier * (t.mean / m.nominal)
        learn_load(m)
        if exclusive:
            m.serves = 1
    if L.fresh[0] < L.fresh[1]:
        factor = uniform(w, L.fresh[0], L.fresh[1])
        for f in range(s.n_functions):
            v = variant(s, 3 * f + STANDARD)
            v.fresh = np.int64(v.fresh * factor)
    return functions


@kernel
def draw_drift(s, w, L):
    """Which pools will decay, when, and how badly."""
    for p in range(s.n_pools):
        w.onset[p] = NEVER
        if L.drift[p] > 0.0:
            decays = uniform(w, 0.0, 1.0) < L.drift[p]
            onset = np.int64(uniform(w, L.onset[0], L.onset[1]) * w.lb)
            w.decay[p] = uniform(w, L.drift_factor[0], L.drift_factor[1])
            w.onset[p] = onset if decays else NEVER


@kernel
def draw_changes(s, w, L):
    """Which variants' APIs will change, and when."""
    for row in range(N_VARIANTS * s.n_functions):
        v = variant(s, row)
        truth(w, row).change = NEVER
        if v.usable == 1 and L.api_change[v.pool] > 0.0:
            changes = uniform(w, 0.0, 1.0) < L.api_change[v.pool]
            when = np.int64(uniform(w, L.change_onset[0], L.change_onset[1]) * w.lb)
            truth(w, row).change = when if changes else NEVER


@kernel
def learn(w, v, ratio, earlier):
    """Writes `earlier` observations of a variant whose true observed/hinted ratio is `ratio`, with their sampling error."""
    v.n = earlier
    if earlier > 0.0:
        mean = ratio * to_noise(bits(w), w.noise / math.sqrt(earlier))
        v.s = earlier * mean
        v.ss = earlier * mean * mean * (1.0 + w.noise * w.noise)


@kernel
def draw_order(s, w, L):
    """Hidden order: a goal and all it needs, less what is held; distractors; all in random order and without edges."""
    n_functions = np.int64(s.n_functions)
    w.goal_index = pick(w, L.n_goals)
    useful = L.useful[w.goal_index]
    held = uint64(0)
    if uniform(w, 0.0, 1.0) < L.held:
        for f in range(n_functions):
            if L.plans[w.goal_index, 0] & (_ONE << uint64(f)) and L.n_needs[f] == 0:
                held = _ONE << uint64(f)
                break
    w.have = held
    w.useful = useful
    present = useful & ~held
    distractors = integer(w, L.distractors[0], L.distractors[1])
    others = 0
    for f in range(n_functions):
        if not useful & (_ONE << uint64(f)):
            others += 1
    for f in range(n_functions):  # selection sampling: each set of that size is equally likely
        if not useful & (_ONE << uint64(f)):
            if uniform(w, 0.0, 1.0) * others < distractors:
                present |= _ONE << uint64(f)
                distractors -= 1
            others -= 1
    required = ~uint64(0)
    for k in range(L.n_plans[w.goal_index]):
        required &= L.plans[w.goal_index, k]
    n = 0
    for f in range(n_functions):
        if present & (_ONE << uint64(f)):
            j = pick(w, n + 1)  # inside-out shuffle
            if j != n:
                task(s, n).function = task(s, j).function
            task(s, j).function = f
            n += 1
    s.n_tasks = n
    task_sigma = sigma_of(L.task_cv)
    for i in range(n):
        add_task(s, w, L, i, np.int64(task(s, i).function), to_noise(bits(w), task_sigma), 0.0)
        if not required & (_ONE << uint64(task(s, i).function)):
            task(s, i).required = 0
