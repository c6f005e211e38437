"""One episode: how an instance begins, what a decision leads to and earns, what is told at the end."""

from __future__ import annotations

import numpy as np
from numba import uint64

from fq_env.families import draw_echoes, draw_graph, draw_stream
from fq_env.generation import draw_changes, draw_drift, draw_order, draw_physics
from fq_env.randomness import (
    ARRIVALS,
    DURATIONS,
    FAILURES,
    LOADS,
    OUTAGES,
    PLAYER,
    SIZES,
    STRAGGLERS,
    TENANTS,
    WORKFLOW,
    mix,
    uniform,
)
from fq_env.score_bounds import bounds
from fq_env.scoring import (
    artifacts_lost,
    base_in_time,
    deliverable_at_first,
    no_plan_left,
    potential,
    score,
    without_output,
)
from fq_env.world import after_arrival, first_tenants, run
from pit.compiled import kernel
from pit.freshness import stalest
from pit.interface import act, apply
from pit.layout import (
    ARRIVE,
    BLOCKED,
    DEFER,
    FAILED,
    NEVER,
    ON,
    REFRESH,
    SKIP,
    SOLVED,
    TIER_GONE,
)
from pit.memory import address_of, copy_bytes
from pit.slots import refresh_legal
from pit.state import artifact, flow, task

POTENTIAL, SPARSE, MAKESPAN, CONDUCTOR = range(4)


@kernel
def begin(s, w, L, exposure):
    """A new instance, named by the world's instance seed: physics, workflow, bounds; up to the first decision."""
    world = address_of(w) - address_of(s)
    copy_bytes(address_of(s), L.template, L.template_size)
    s.size = world
    s.exposure = exposure
    w.drawn = uint64(0)
    w.stream = mix(w.instance_seed, WORKFLOW)
    w.durations = mix(w.instance_seed, DURATIONS)
    w.failures = mix(w.instance_seed, FAILURES)
    w.loads = mix(w.instance_seed, LOADS)
    w.player = mix(w.instance_seed, PLAYER)
    w.stragglers = mix(w.instance_seed, STRAGGLERS)
    w.outages = mix(w.instance_seed, OUTAGES)
    w.tenants = mix(w.instance_seed, TENANTS)
    w.arrivals = mix(w.instance_seed, ARRIVALS)
    w.sizes = mix(w.instance_seed, SIZES)
    w.branch = NEVER
    for i in range(s.n_tasks):  # the template counts the most tasks that the level can have
        clean(s, i)
    functions = draw_physics(s, w, L)
    if L.order_hidden == 1:
        draw_order(s, w, L)
    elif L.workflows[1] > 0:
        draw_stream(s, w, L, functions)
    else:
        draw_graph(s, w, L, functions)
    if s.stream == 0:
        flow(s, 0).last = s.n_tasks
    if L.echoes[1] > 0.0:
        draw_echoes(s, w, L)
    bounds(s, w, L)
    s.horizon = np.int64(L.horizon * w.lb)
    if L.money[1] > 0.0:
        s.money = np.int64(uniform(w, L.money[0], L.money[1]) * w.cost_high)
    if L.deadline[1] > 0.0:
        s.deadline = np.int64(uniform(w, L.deadline[0], L.deadline[1]) * w.lb)
    if L.any_drift == 1:
        draw_drift(s, w, L)
    if L.any_change == 1:
        draw_changes(s, w, L)
    deliverable_at_first(s, w)
    w.n_due = 0
    w.event.kind = ARRIVE
    w.event.subject = 0
    apply(s, w.event)
    if s.stream == 1:
        after_arrival(s, w)
    if L.any_crowd == 1:
        first_tenants(s, w, L)
    w.steps = 0
    w.calls = 0
    w.cold_starts = 0
    w.load_count = 0
    w.wrong_calls = 0
    w.poor_calls = 0
    w.waits = 0
    w.holds = 0
    w.hedges = 0
    w.cancels = 0
    w.queued = 0
    w.skips = 0
    w.given_up = 0
    w.short = 0
    w.stragglers_met = 0
    w.outage_calls = 0
    w.stale_calls = 0
    w.refreshes = 0
    w.decayed_calls = 0
    w.changed_calls = 0
    w.echo_calls = 0
    w.gated_calls = 0
    w.fetches = 0
    w.moved = 0
    w.deleted = 0
    w.defers = 0
    w.overflow = 0
    w.busy = 0.0
    w.critical_wait = 0.0
    w.critical_quality = 0.0
    w.critical_cost = 0.0
    w.left = w.lb if s.stream == 0 else w.bounds_sum
    w.pending = 0
    w.reward_sum = 0.0
    run(s, w, L)
    w.phi = potential(s, w, L)
    w.phi0 = w.phi


@kernel
def clean(s, i):
    """Clears what an earlier episode left in task i."""
    t = task(s, i)
    t.state = BLOCKED
    t.near_time = 0.0
    t.since = 0
    t.flow = 0
    t.octave = 0
    t.quality = 0.0
    t.succ_from = 0
    t.succ_to = 0
    t.pred_from = 0
    t.pred_to = 0
    t.running_inputs = 0
    t.attempts = 0
    t.version = 0
    t.near = 0
    t.mark = 0
    t.calls = 0
    t.join_any = 0
    t.priority = 0
    t.touched = 0
    artifact(s, i).hint = 0.0
    artifact(s, i).tier = TIER_GONE
    artifact(s, i).need = 0


@kernel
def decide(s, w, L, action, kind):
    """One action and all that follows; the reward."""
    before = s.now
    left = w.left
    held = s.n_held
    w.steps += 1
    again = -1
    warned = s.warnings
    if action == REFRESH and refresh_legal(s):
        again = stalest(s)
    act(s, action)
    if again >= 0 and s.waiting == 0 and s.warnings == warned:
        w.refreshes += 1
        artifacts_lost(s, w, again)
    if action == DEFER:
        w.defers += s.waiting == 0 and s.warnings == warned
    w.waits += s.waiting
    if s.n_held > held:
        w.holds += 1
    if action == SKIP:
        w.skips += s.waiting == 0 and s.warnings == warned
    run(s, w, L)
    if s.n_given_up > w.given_up:
        without_output(s, w)
        if L.order_hidden == 1 and s.status == ON and no_plan_left(s, w, L):
            s.status = FAILED
    w.short += s.status == ON and s.any_short == 1
    w.overflow += s.status == ON and s.n_tail > 0
    phi = potential(s, w, L)
    r = phi - w.phi
    w.phi = phi
    if kind == SPARSE:
        r = phi if s.status != ON else 0.0
    elif kind == MAKESPAN:
        r = -(float(s.now - before) + w.left - left) / w.lb if s.stream == 0 else -(w.left - left) / w.bounds_sum
        if s.status == FAILED:
            r -= forfeit(s, w)
    elif kind == CONDUCTOR:
        lasts = float(s.now - s.t0) if s.stream == 0 else w.left
        bound = w.lb if s.stream == 0 else w.bounds_sum
        base = base_in_time(s, w, L) if L.late < 1.0 else w.base
        r = (1.0 - lasts / (lasts + bound)) * base if s.status == SOLVED else 0.0
    w.reward_sum += r
    return r


@kernel
def forfeit(s, w):
    """What giving up costs under the makespan reward: the time that was left to each workflow, in units of the bound."""
    weights = 0.0
    for g in range(s.flow_rows):
        weights += flow(s, g).weight
    rest = float(s.horizon - (s.now - s.t0))
    return rest * weights / w.bounds_sum if s.stream == 1 else rest / w.lb


@kernel
def report(s, w, L, out):
    """The result of the episode so far."""
    score(s, w, L, out)
    out.phi0 = w.phi0
    out.reward_sum = w.reward_sum
    out.lb = w.lb / 1e6
    out.cost = s.spent / 1e6
    out.cost_low = w.cost_low / 1e6
    out.busy = w.busy / 1e6
    out.critical_wait = w.critical_wait / 1e6
    out.critical_quality = w.critical_quality
    out.critical_cost = w.critical_cost / 1e6
    out.poor_calls = w.poor_calls
    out.hedges = w.hedges
    out.cancels = w.cancels
    out.queued = w.queued
    out.skips = w.skips
    out.short = w.short
    out.stragglers = w.stragglers_met
    out.outage_calls = w.outage_calls
    out.stale_calls = w.stale_calls
    out.refreshes = w.refreshes
    out.decayed_calls = w.decayed_calls
    out.changed_calls = w.changed_calls
    out.echo_calls = w.echo_calls
    out.gated_calls = w.gated_calls
    out.fetches = w.fetches
    out.moved = w.moved
    out.deleted = w.deleted
    out.reused = s.reused
    out.workflows = s.n_flows
    out.defers = w.defers
    out.overflow = w.overflow
    out.steps = w.steps
    out.calls = w.calls
    out.cold_starts = w.cold_starts
    out.loads = w.load_count
    out.wrong_calls = w.wrong_calls
    out.warnings = s.warnings
    out.waits = w.waits
    out.holds = w.holds
    out.instance_seed = w.instance_seed
    out.split = w.split
    out.instance = w.instance
    out.level = w.level
    out.status = s.status
