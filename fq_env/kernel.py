"""The engine's kernel: reset, step, whole episodes under a rule, for one environment or many.

One entry serves n = 1 and n = many; only the parallel twin of the same loop is compiled apart, when it is asked for.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import uint64

from fq_env.episode import POTENTIAL, begin, decide, report
from fq_env.futures import another_future
from fq_env.randomness import (
    mix,
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
from pit.compiled import entry, kernel, parallel_entry
from pit.layout import (
    N_ACTIONS,
    N_OBSERVATION,
    N_RULE_GLOBALS,
    N_SLOT_FEATURES,
    N_VERBS,
    ON,
    POOL_OFFSET,
    STANDARD,
    WAIT,
)
from pit.memory import LINE, address_of, copy_bytes, fetcher, get_byte, put_byte
from pit.observation import encode
from pit.rules import CALIBRATED, best_linear, choose
from pit.slots import globals_legal, refresh_slots
from pit.state import PIT, TASK, call, command, pit_at, ready, task, variant

RESET, STEP, PLAY, ADVISE, FORK = range(5)
DISABLED, NEXT_STEP, SAME_STEP = range(3)
RANDOM = -1
_OBS_BYTES = 4 * N_OBSERVATION
_OPEN, _SLOTS = 6, 4  # ready tasks and slots that are fetched ahead: what most states have
_SHARE = 32  # environments in a row that a thread takes, at most
_LEVEL_BYTES, _EPISODE_BYTES = LEVEL.itemsize, EPISODE.itemsize
fetch_pit, fetch_world = fetcher(PIT.itemsize), fetcher(WORLD.itemsize)
fetch_row, fetch_task, fetch_mask = fetcher(LINE), fetcher(TASK.itemsize), fetcher(N_ACTIONS)
fetch_slots, fetch_whole = fetcher(4 * _SLOTS * N_SLOT_FEATURES), fetcher(_OBS_BYTES - 4 * POOL_OFFSET)


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
    ones for every action; the first of equals. The averages are left in the engine's `means`; what the level's shortlist
    leaves out counts there as the worst that was tried."""
    mask = e.masks + i * N_ACTIONS
    encode(s, e.obs + i * _OBS_BYTES, mask, 1)
    spare = e.scratch + i * (e.stride + N_ACTIONS)
    copy_bytes(spare + e.stride, mask, N_ACTIONS)
    best = -1
    most = 0.0
    choices = 0
    for action in range(N_ACTIONS):
        if get_byte(spare + e.stride, action) == 1:
            choices += 1
            best = action
    if choices == 1:
        return best
    if L.shortlist > 0 and e.rule == CALIBRATED:
        shortlist(e, s, e.obs + i * _OBS_BYTES, mask, spare + e.stride, min(L.shortlist, choices))
    best = -1
    worst = 0.0
    w.player = mix(w.player, 2)
    for action in range(N_ACTIONS):
        if get_byte(spare + e.stride, action) == 0:
            continue
        total = 0.0
        for k in range(e.rollouts):
            total += roll_out(e, i, s, w, L, action, mix(w.player, k), spare)
        float_at(e.means + 8 * (i * N_ACTIONS + action)).x = total / e.rollouts
        if best < 0 or total > most:
            worst = total if best < 0 else worst
            best = action
            most = total
        worst = min(worst, total)
    if L.shortlist > 0:
        for action in range(N_ACTIONS):
            if get_byte(spare + e.stride, action) == 0:
                float_at(e.means + 8 * (i * N_ACTIONS + action)).x = worst / e.rollouts
    return best


@kernel
def shortlist(e, s, observation, mask, tried, width):
    """Leaves in `tried` the `width` actions that the calibrated rule likes best of those that `mask` allows."""
    for action in range(N_ACTIONS):
        put_byte(tried, action, 0)
    for _ in range(width):
        action = best_linear(s, e.weights, observation, mask)
        put_byte(tried, action, 1)
        put_byte(mask, action, 0)


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


@kernel
def serve_range(e, operation, first, last):
    """One operation on the environments from `first` up to `last`; the number that ended (STEP)."""
    ended = 0
    for i in range(first, last):
        fetch_ahead(e, i + 2)
        if i + 1 < last:
            fetch_rest(e, i + 1)
        serve(e, operation, i)
        if operation == STEP:
            ended += byte_at(e.terminated + i).x | byte_at(e.truncated + i).x
    return ended


@entry
def engine(address, operation):
    """One operation on all environments of the engine record at `address`; the number that ended (STEP)."""
    e = engine_at(address)
    return serve_range(e, operation, 0, e.n)


@parallel_entry
def engine_parallel(address, operation):
    """`engine` on several threads, each of which takes some environments in a row at a time; the same bits."""
    e = engine_at(address)
    share = max(1, min(_SHARE, e.n // 8))
    for k in numba.prange((e.n + share - 1) // share):
        part = engine_at(address)
        serve_range(part, operation, k * share, min((k + 1) * share, part.n))
    ended = 0
    if operation == STEP:
        for i in range(e.n):
            ended += byte_at(e.terminated + i).x | byte_at(e.truncated + i).x
    return ended
