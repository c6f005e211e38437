"""The engine's kernel: reset, step, whole episodes under a rule, for one environment or many.

One entry serves n = 1 and n = many; only the parallel twin of the same loop is compiled apart, when it is asked for.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import uint64

from fq_env.families import draw_echoes, draw_graph, draw_stream
from fq_env.futures import another_future
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
from fq_env.scoring import (
    artifacts_lost,
    base_in_time,
    bounds,
    deliverable_at_first,
    no_plan_left,
    potential,
    score,
    without_output,
)
from fq_env.state import (
    EPISODE,
    LEVEL,
    WORLD,
    byte_at,
    due,
    engine_at,
    episode_at,
    float_at,
    goal,
    integer_at,
    level_at,
    world_at,
)
from fq_env.world import after_arrival, first_tenants, run
from pit.compiled import entry, kernel, parallel_entry
from pit.dag_tracker import stalest
from pit.interface import act, apply
from pit.layout import (
    ARRIVE,
    BLOCKED,
    DEFER,
    FAILED,
    N_ACTIONS,
    N_OBSERVATION,
    N_RULE_GLOBALS,
    N_SLOT_FEATURES,
    N_VERBS,
    NEVER,
    ON,
    POOL_OFFSET,
    REFRESH,
    SOLVED,
    STANDARD,
    TIER_GONE,
    WAIT,
)
from pit.memory import LINE, address_of, copy_bytes, fetcher
from pit.observation import encode
from pit.rules import choose
from pit.slots import globals_legal, refresh_legal, refresh_slots
from pit.state import PIT, TASK, artifact, call, command, flow, pit_at, ready, task, variant

RESET, STEP, PLAY, ADVISE, FORK = range(5)
POTENTIAL, SPARSE, MAKESPAN, CONDUCTOR = range(4)
DISABLED, NEXT_STEP, SAME_STEP = range(3)
RANDOM = -1
_OBS_BYTES = 4 * N_OBSERVATION
_OPEN, _SLOTS = 6, 4  # ready tasks and slots that are fetched ahead: what most states have
_LEVEL_BYTES, _EPISODE_BYTES = LEVEL.itemsize, EPISODE.itemsize
fetch_pit, fetch_world = fetcher(PIT.itemsize), fetcher(WORLD.itemsize)
fetch_row, fetch_task, fetch_mask = fetcher(LINE), fetcher(TASK.itemsize), fetcher(N_ACTIONS)
fetch_slots, fetch_whole = fetcher(4 * _SLOTS * N_SLOT_FEATURES), fetcher(_OBS_BYTES - 4 * POOL_OFFSET)


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


@kernel
def level_next(e, w):
    """The level of the next episode, which becomes the environment's."""
    w.level = w.next_level
    return level_at(e.levels + w.level * _LEVEL_BYTES)


@kernel
def name_next(w, L, split, n):
    """The next instance of this environment: a train stream of its own, or every n-th named instance of a split."""
    if split == 0:
        w.instance = w.episode
        w.episode += 1
        w.instance_seed = mix(mix(w.train_stream, 0), w.instance)
    else:
        w.instance += n
        w.instance_seed = mix(mix(L.key, split), w.instance)


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
    if s.n_given_up > w.given_up:
        w.skips += 1
    run(s, w, L)
    if s.n_given_up > w.given_up:
        without_output(s, w)
        if L.order_hidden == 1 and s.status == ON and no_plan_left(s, w, L):
            s.status = FAILED
    w.short += s.any_short
    w.overflow += s.status == ON and s.n_tail > 0
    phi = potential(s, w, L)
    r = phi - w.phi
    w.phi = phi
    if kind == SPARSE:
        r = phi if s.status != ON else 0.0
    elif kind == MAKESPAN:
        r = -(float(s.now - before) + w.left - left) / w.lb if s.stream == 0 else -(w.left - left) / w.bounds_sum
    elif kind == CONDUCTOR:
        lasts = float(s.now - s.t0) if s.stream == 0 else w.left
        bound = w.lb if s.stream == 0 else w.bounds_sum
        base = base_in_time(s, w, L) if L.late < 1.0 else w.base
        r = (1.0 - lasts / (lasts + bound)) * base if s.status == SOLVED else 0.0
    w.reward_sum += r
    return r


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


@kernel
def reset_one(e, i):
    """Environment i begins the instance that `split` and `instance` name (instance < 0: the next of its train stream)."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    L = level_next(e, w)
    w.split = integer_at(e.split + 8 * i).x
    asked = integer_at(e.instance + 8 * i).x
    if asked < 0:
        name_next(w, L, 0, e.n)
    else:
        w.instance = asked
        w.instance_seed = mix(mix(L.key, w.split), asked)
    begin(s, w, L, e.exposure)
    show(e, i, s, 1)
    float_at(e.rewards + 8 * i).x = 0.0
    byte_at(e.terminated + i).x = 0
    byte_at(e.truncated + i).x = 0


@kernel
def show(e, i, s, whole):
    """Observation and mask of environment i into the buffers; `whole` = 0: over the ones before, of the same episode."""
    encode(s, e.obs + i * _OBS_BYTES, e.masks + i * N_ACTIONS, whole)


@kernel
def step_one(e, i):
    """Environment i takes its action; observation, mask, reward, flags; autoreset."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    L = level_at(e.levels + w.level * _LEVEL_BYTES)
    reward = 0.0
    terminated = 0
    truncated = 0
    if w.pending > 0:  # 1: the episode has ended; more: the environment sits this step out
        if w.pending == 1 and e.autoreset == NEXT_STEP:
            L = level_next(e, w)
            name_next(w, L, w.split, e.n)
            begin(s, w, L, e.exposure)
            show(e, i, s, 1)
    else:
        whole = e.fresh
        reward = decide(s, w, L, integer_at(e.actions + 8 * i).x, e.reward)
        if s.status != ON:
            terminated = 1
        else:
            limit = e.max_steps if e.max_steps > 0 else L.max_steps
            truncated = 1 if w.steps >= limit else 0
        if terminated == 1 or truncated == 1:
            report(s, w, L, episode_at(e.episodes + i * _EPISODE_BYTES))
            w.pending = 1
            if e.autoreset == SAME_STEP:
                if e.final == 1 or truncated == 1:
                    encode(s, e.final_obs + i * _OBS_BYTES, e.final_masks + i * N_ACTIONS, 1)
                L = level_next(e, w)
                name_next(w, L, w.split, e.n)
                begin(s, w, L, e.exposure)
                whole = 1
        show(e, i, s, whole)
    float_at(e.rewards + 8 * i).x = reward
    byte_at(e.terminated + i).x = terminated
    byte_at(e.truncated + i).x = truncated


@kernel
def pick_random(s, w):
    """A legal action, each equally likely."""
    refresh_slots(s)
    whole = globals_legal(s)
    count = 0
    for k in range(N_RULE_GLOBALS):
        count += (whole >> k) & 1
    for g in range(s.n_slots):
        for verb in range(N_VERBS):
            count += (s.slots[g].legal >> verb) & 1
    w.player = mix(w.player, 1)
    k = np.int64(((w.player >> uint64(32)) * uint64(count)) >> uint64(32))
    for g in range(s.n_slots):
        for verb in range(N_VERBS):
            if (s.slots[g].legal >> verb) & 1:
                if k == 0:
                    return g * N_VERBS + verb
                k -= 1
    for action in range(N_RULE_GLOBALS):
        if (whole >> action) & 1:
            if k == 0:
                return WAIT + action
            k -= 1
    return WAIT


@kernel
def by_rule(e, i, s):
    """The action of the engine's rule; environment i's buffers serve as its eyes."""
    return choose(s, e.rule, e.theta, e.preferred, e.weights, e.obs + i * _OBS_BYTES, e.masks + i * N_ACTIONS)


@kernel
def look_ahead(e, i, s, w, L):
    """The action with which the engine's rule does best from here, on average over futures that are drawn afresh, the same
    ones for every action; the first of equals. The averages are left in the engine's `means`."""
    mask = e.masks + i * N_ACTIONS
    encode(s, e.obs + i * _OBS_BYTES, mask, 1)
    spare = e.scratch + i * (e.stride + N_ACTIONS)
    copy_bytes(spare + e.stride, mask, N_ACTIONS)
    best = -1
    most = 0.0
    choices = 0
    for action in range(N_ACTIONS):
        if byte_at(spare + e.stride + action).x == 1:
            choices += 1
            best = action
    if choices == 1:
        return best
    best = -1
    w.player = mix(w.player, 2)
    for action in range(N_ACTIONS):
        if byte_at(spare + e.stride + action).x == 0:
            continue
        total = 0.0
        for k in range(e.rollouts):
            total += roll_out(e, i, s, w, L, action, mix(w.player, k), spare)
        float_at(e.means + 8 * (i * N_ACTIONS + action)).x = total / e.rollouts
        if best < 0 or total > most:
            best = action
            most = total
    return best


@kernel
def roll_out(e, i, s, w, L, action, future, spare):
    """The total of the episode if `action` is taken now and the engine's rule plays on, in a future of its own; what can still
    be reached where the level cuts futures short."""
    copy_bytes(spare, address_of(s), e.stride)
    t = pit_at(spare)
    u = world_at(spare + t.size)
    another_future(t, u, L, future)
    limit = e.max_steps if e.max_steps > 0 else L.max_steps
    cut = u.steps + L.depth if L.depth > 0 else limit
    decide(t, u, L, action, POTENTIAL)
    while t.status == ON and u.steps < min(limit, cut):
        decide(t, u, L, by_rule(e, i, t), POTENTIAL)
    return u.phi if t.status != ON or u.steps < limit else 0.0


@kernel
def by_player(e, i, s, w, L):
    """The action of the engine's player: chance, a rule, or what is best after looking ahead with it."""
    if e.rule == RANDOM:
        return pick_random(s, w)
    if e.rollouts > 0:
        return look_ahead(e, i, s, w, L)
    return by_rule(e, i, s)


@kernel
def advise_one(e, i):
    """Notes the action of the engine's player in environment i."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    integer_at(e.actions + 8 * i).x = by_player(e, i, s, w, level_at(e.levels + w.level * _LEVEL_BYTES))


@kernel
def fork_one(e, i):
    """Environment i, into which another's memory was copied, goes on in the future that its instance number names."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    L = level_at(e.levels + w.level * _LEVEL_BYTES)
    another_future(s, w, L, mix(w.player, integer_at(e.instance + 8 * i).x))
    show(e, i, s, 1)


@kernel
def play_one(e, i):
    """Environment i plays its episode to the end under the engine's rule."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    L = level_at(e.levels + w.level * _LEVEL_BYTES)
    limit = e.max_steps if e.max_steps > 0 else L.max_steps
    while s.status == ON and w.steps < limit:
        decide(s, w, L, by_player(e, i, s, w, L), e.reward)
    report(s, w, L, episode_at(e.episodes + i * _EPISODE_BYTES))
    show(e, i, s, 1)


@kernel
def serve(e, operation, i):
    """One operation on environment i."""
    if operation == STEP:
        step_one(e, i)
    elif byte_at(e.reset + i).x == 1:
        if operation == RESET:
            reset_one(e, i)
        elif operation == PLAY:
            play_one(e, i)
        elif operation == FORK:
            fork_one(e, i)
        else:
            advise_one(e, i)


@kernel
def fetch_ahead(e, i):
    """Fetches the two records of environment i, so that they are at hand when its turn comes."""
    base = e.memory + i * e.stride
    fetch_pit(base)
    fetch_world(base + pit_at(e.memory).size)


@kernel
def fetch_rest(e, i):
    """Fetches what else a step of environment i is about, its records being at hand already."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    for k in range(min(np.int64(s.n_ready), _OPEN)):
        j = np.int64(ready(s, k).task)
        t = task(s, j)
        fetch_task(address_of(t))
        fetch_row(address_of(goal(w, j)))
        fetch_row(address_of(variant(s, 3 * t.function + STANDARD)))
    fetch_row(address_of(call(s, 0)))
    fetch_row(address_of(command(s, 0)))
    fetch_row(address_of(due(w, w.n_due)))
    fetch_slots(e.obs + i * _OBS_BYTES)
    fetch_whole(e.obs + i * _OBS_BYTES + 4 * POOL_OFFSET)
    fetch_mask(e.masks + i * N_ACTIONS)


@entry
def engine(address, operation):
    """One operation on all environments of the engine record at `address`; the number that ended (STEP)."""
    e = engine_at(address)
    ended = 0
    for i in range(e.n):
        fetch_ahead(e, i + 2)
        if i + 1 < e.n:
            fetch_rest(e, i + 1)
        serve(e, operation, i)
        if operation == STEP:
            ended += byte_at(e.terminated + i).x | byte_at(e.truncated + i).x
    return ended


@parallel_entry
def engine_parallel(address, operation):
    """`engine` on several threads; the same bits."""
    e = engine_at(address)
    for i in numba.prange(e.n):
        serve(engine_at(address), operation, i)
    ended = 0
    if operation == STEP:
        for i in range(e.n):
            ended += byte_at(e.terminated + i).x | byte_at(e.truncated + i).x
    return ended
