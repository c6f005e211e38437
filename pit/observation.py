"""The encoder: mask and observation, what an agent sees of a Pit. Columns are declared in `pit.layout`; nothing else is read.

Values are computed in float64 and written as float32 at an address. It must change nothing but caches (slots, near
demand).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pit import arbitration, flows, pool_manager
from pit.compiled import kernel
from pit.layout import (
    FULL,
    GLOBAL_FEATURES,
    GLOBAL_OFFSET,
    LOADING,
    MAX_POOLS,
    N_ACTIONS,
    N_GLOBAL_FEATURES,
    N_OBSERVATION,
    N_POOL_FEATURES,
    N_SLOT_FEATURES,
    N_SLOTS,
    NEVER,
    ON,
    OVERRUN_FACTOR,
    OVERRUN_SPREADS,
    POOL_FEATURES,
    POOL_OFFSET,
    SCORE_WEIGHTS,
    SKIP_BIT,
    SLOT_FEATURES,
    STANDARD,
    WAIT,
    columns,
)
from pit.memory import clear, float32_at, put, put_byte
from pit.pool_manager import HERE
from pit.scales import clip, count2, count4, count8, crowd, squash
from pit.slot_features import encode_slot
from pit.slots import enabled, mask_globals, mask_slot, refresh_slots, wait_legal
from pit.state import call, copy, model, near, ready, task, variant

# Exposure class of each column of one slot, of one pool, and of the globals.
_SLOT_CLASS = np.array([f.exposure for f in SLOT_FEATURES])
_POOL_CLASS = np.array([f.exposure for f in POOL_FEATURES])
_GLOBAL_CLASS = np.array([f.exposure for f in GLOBAL_FEATURES])
_NAMES = {f.name: i for i, f in enumerate(GLOBAL_FEATURES)}
_LAST = _NAMES["last_none"]
_SLOT_BYTES = 4 * N_SLOT_FEATURES
_NONE = float(NEVER)  # us: no such call


@kernel
def near_demand(s):
    """Per model: blocked tasks whose open inputs are all running, the sooner the more."""
    if s.any_near == 1:
        for m in range(s.n_models):
            model(s, m).near = 0.0
    s.any_near = s.n_near > 0
    for k in range(s.n_near):
        t = task(s, near(s, k).task)
        m = variant(s, 3 * t.function + STANDARD).model
        if m >= 0:
            model(s, m).near += s.unit / (s.unit + max(0.0, t.near_time - s.now))


@kernel
def encode_pools(s, out):
    """The 8 features of every pool."""
    for p in range(s.n_pools):
        pool = s.pools[p]
        at = out + 4 * (POOL_OFFSET + p * N_POOL_FEATURES)
        put(at, 0, count8(pool.places))
        put(at, 1, max(0, pool.places - pool.busy - pool.tenants) / pool.places)
        put(at, 2, count2(pool.loading))
        put(at, 3, count2(pool.warm))
        put(at, 4, count4(pool.queued))
        if s.exposure == FULL:
            put(at, 5, pool.failures)
            put(at, 6, clip(pool_manager.utilisation(s, p), 0.0, 1.0))
            put(at, 7, pool.health)


@kernel
def next_event(s, when):
    """us until the next event is expected, the first started call at `when`; beyond all bounds if none is."""
    if s.n_loading > 0:
        for i in range(s.copy_rows):
            c = copy(s, i)
            loaded = c.expected_loaded
            sooner = (c.state == LOADING) & (loaded < when)
            when = loaded if sooner else when
    left = max(0.0, when - s.now)
    if s.n_held > 0:
        left = min(left, float(arbitration.next_hold(s) - s.now))
    return left


@kernel
def running(s):
    """(critical path left, overrun calls, us when the first started call is expected to end), over calls in flight.

    The path is that of the first ready task, too; each pool's `room` is noted. A started call has overrun if it has run
    longer than 1.5 x its estimate plus two spreads.
    """
    path = 0.0
    overrun = 0
    first = _NONE
    for p in range(s.n_pools):
        s.pools[p].room = _NONE
    for k in range(s.n_ready if s.stream == 1 else min(s.n_ready, 1)):
        path = max(path, task(s, ready(s, k).task).rank)
    for k in range(s.n_calls):
        c = call(s, k)
        t = task(s, c.task)
        started = c.start >= 0
        end = c.expected_end
        since = float(s.now - c.start)
        ran = since if started else 0.0
        path = max(path, t.rank - min(ran, t.work))
        overrun += ran > OVERRUN_FACTOR * c.est + OVERRUN_SPREADS * c.spread
        first = min(first, end if started else _NONE)
        pool = s.pools[c.pool]
        pool.room = min(pool.room, end)
        if c.also >= 0:
            pool = s.pools[c.also]
            pool.room = min(pool.room, end)
    return path, overrun, first


@kernel
def retries_left(s):
    """1 - the largest attempts of an unfinished task / max_attempts."""
    worst = 0
    if s.max_attempts == 0:
        return 1.0
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.state < 3 and t.attempts > worst:
            worst = t.attempts
    return max(0.0, 1.0 - worst / s.max_attempts)


@kernel
def money_left(s):
    """What may still be spent beside what the rest costs with standard variants."""
    if s.money == 0:
        return 1.0
    x = float(max(0, s.money - s.spent - s.committed))
    rest = max(0.0, s.cost_left)
    return x / (x + rest) if x + rest > 0.0 else 0.0


@kernel
def tokens_left(s):
    """The emptiest token bucket."""
    left = 1.0
    if s.n_limited > 0:
        for p in range(s.n_pools):
            pool = s.pools[p]
            if pool.period > 0:
                left = min(left, pool_manager.credit(s, p) / pool.full)
    return left


@kernel
def encode_first_slot(s, at, first):
    """Full exposure only: what will be warm or free next, for the first slot; the next event (`first`: of started calls)."""
    put(at, 29, squash(next_event(s, first), s.unit))
    warm = 1.0
    room = 1.0
    if s.n_slots > 0:
        v = variant(s, 3 * task(s, s.slots[0].head).function + STANDARD)
        if s.slots[0].mode[STANDARD] == HERE or v.usable == 0 or v.model < 0:
            warm = 0.0
        else:
            warm = squash(pool_manager.free_in(s, v.model), s.unit)
        if pool_manager.has_place(s, v):
            room = 0.0
        else:
            room = squash(pool_manager.room_in(s, v), s.unit)
    put(at, 30, warm)
    put(at, 31, room)
    put(at, 33, s.duration_error)
    put(at, 34, s.load_error)
    put(at, 35, s.failure_error)


@kernel
def encode_tail(s, at, path):
    """Open tasks that found no slot."""
    work = 0.0
    rank = 0.0
    oldest = s.now
    for k in range(s.n_ready + s.n_late):
        t = task(s, ready(s, k).task)
        if t.slot < 0:
            work += t.work
            rank = max(rank, t.rank)
            oldest = min(oldest, t.ready_time)
    put(at, 40, count8(s.n_tail))
    put(at, 41, crowd(work, s.lb))
    if path > 0.0:
        put(at, 42, min(1.0, rank / path))
    put(at, 43, squash(float(s.now - oldest), s.unit))


@kernel
def encode_stream(s, at):
    """Arrivals of workflows, and whether more may come."""
    gaps = s.n_flows - 1
    if gaps > 0:
        mean = float(s.last_arrival - s.t0) / gaps
        put(at, 37, s.lb / (s.lb + mean))
        if gaps > 1 and mean > 0.0:
            cv = math.sqrt(max(s.gap_squares / gaps - mean * mean, 0.0)) / mean
            put(at, 38, crowd(cv, 1.0))
    put(at, 39, s.stream_open)


@kernel
def encode_globals(s, at, path, work, overrun, first):
    """The 48 globals at float address `at`; `first` = when the first started call is expected to end."""
    elapsed = float(s.now - s.t0)
    put(at, 0, crowd(elapsed, s.lb))
    put(at, 1, 1.0 if s.deadline == NEVER else clip((s.deadline - s.now) / (s.deadline - s.t0), -1.0, 1.0))
    put(at, 2, work)
    put(at, 3, crowd(path, s.lb))
    put(at, 4, s.required_left / max(1, s.n_required))
    put(at, 5, count8(s.n_ready))
    put(at, 6, count8(s.n_calls))
    put(at, 7, count2(overrun))
    put(at, 8, money_left(s))
    put(at, 9, tokens_left(s))
    put(at, 10, retries_left(s))
    put(at, 11, count8(s.zero_actions))
    put(at, _LAST + s.outcome, 1.0)
    put(at, 20, s.hint_cold)
    put(at, 21, s.hint_queued)
    put(at, 22, s.hint_throttled)
    put(at, 23, s.hint_stale)
    sinks = max(1, s.n_sinks)
    put(at, 24, clip(s.quality_done / sinks, 0.0, 1.0))
    put(at, 26, max(0.0, 1.0 - s.warning_weight * s.warnings))
    put(at, 28, count4(s.warnings))
    if s.exposure > 0:
        efficiency = 1.0
        if s.upper_cost > 0.0:
            efficiency = clip(1.0 - s.spent / s.upper_cost, 0.0, 1.0)
        put(at, 25, efficiency)
        if s.stream == 1:
            put(at, 27, flows.flow_ratio(s))
        else:
            left = max(path, s.work_left / s.all_places)
            put(at, 27, min(1.0, s.lb / (elapsed + left)) if elapsed + left > 0.0 else 1.0)
        put(at, 32, s.n_full / s.n_pools)
    if s.exposure == FULL:
        encode_first_slot(s, at, first)
    put(at, 36, count4(s.n_active) if s.status == ON else 0.0)
    if s.stream == 1:
        encode_stream(s, at)
    if s.n_tail > 0:
        encode_tail(s, at, path)
    if s.cp_start > 0.0:
        put(at, 44, clip(1.0 - path / s.cp_start, 0.0, 1.0))
    put(at, 45, s.sinks_done / sinks)
    put(at, 46, crowd(float(s.n_tasks), 64.0))
    put(at, 47, count8(s.all_places))


@kernel
def clear_rest(s, out):
    """Clears the slots that an earlier observation at `out` shows and this one does not: a slot's first feature is never 0."""
    g = s.n_slots
    while g < N_SLOTS and float32_at(out, g * N_SLOT_FEATURES) != 0.0:
        clear(out + g * _SLOT_BYTES, _SLOT_BYTES)
        g += 1


@kernel
def encode(s, out, mask, whole):
    """The observation, 512 float32 at address `out`, and the legal actions, 128 bytes at address `mask`.

    `whole` = 0 promises that `out` holds zeros or an earlier observation of a Pit of the same system and exposure.
    """
    if s.arrived == 0 or whole == 1:
        clear(out, 4 * N_OBSERVATION)
    clear(mask, N_ACTIONS)
    if s.arrived == 0:
        put_byte(mask, WAIT, wait_legal(s))
        return
    refresh_slots(s)
    if s.exposure > 0:
        near_demand(s)
        s.victim_size = -1
    path, overrun, first = running(s)
    work = clip(s.work_left / s.work_total, 0.0, 1.0)
    skipped = -2
    if enabled(s, SKIP_BIT):
        skipped = np.int64(s.skipped)
    for g in range(s.n_slots):
        at = out + g * _SLOT_BYTES
        clear(at, _SLOT_BYTES)
        encode_slot(s, g, at, path, skipped)
        mask_slot(s, g, mask)
    clear_rest(s, out)
    mask_globals(s, mask)
    if s.exposure > 0:
        encode_pools(s, out)
    clear(out + 4 * GLOBAL_OFFSET, 4 * N_GLOBAL_FEATURES)
    encode_globals(s, out + 4 * GLOBAL_OFFSET, path, work, overrun, first)


# The kernel writes a block only if its class is exposed; these lines hold it to the declaration.
assert list(np.flatnonzero(_SLOT_CLASS)) == list(range(6, 14)) and _SLOT_CLASS.max() == 1
assert list(_POOL_CLASS) == [1, 1, 1, 1, 1, 2, 2, 2]
assert list(np.flatnonzero(_GLOBAL_CLASS == 1)) == [25, 27, 32]
assert list(np.flatnonzero(_GLOBAL_CLASS == 2)) == [29, 30, 31, 33, 34, 35]


def score_parts(observation: np.ndarray, weights: tuple[float, float, float] = SCORE_WEIGHTS) -> dict[str, float]:
    """The four score parts as the Pit estimates them and their total, from a fully exposed observation (512,) float32."""
    parts = {
        name: float(observation[GLOBAL_OFFSET + _NAMES[f"score_{name}"]])
        for name in ("base", "efficiency", "stability", "optimization")
    }
    bonus = sum(w * parts[n] for w, n in zip(weights, ("efficiency", "stability", "optimization"), strict=True))
    return {**parts, "total": parts["base"] * (1.0 + bonus) / (1.0 + sum(weights))}


def obs_to_dict(observation: np.ndarray) -> dict[str, Any]:
    """An observation (512,) by name: `{"slots": [{name: value}], "pools": [...], "globals": {...}}`, without empty ones."""
    named: dict[str, Any] = {"slots": [], "pools": [], "globals": {}}
    values = {name: float(x) for (name, _), x in zip(columns(), observation, strict=True)}
    for kind, count, features in (("slot", N_SLOTS, SLOT_FEATURES), ("pool", MAX_POOLS, POOL_FEATURES)):
        for i in range(count):
            row = {f.name: values[f"{kind}{i}.{f.name}"] for f in features}
            if row[features[0].name] != 0.0:
                named[kind + "s"].append(row)
    named["globals"] = {f.name: values[f.name] for f in GLOBAL_FEATURES}
    return named
