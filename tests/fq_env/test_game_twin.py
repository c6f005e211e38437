"""The engine against its plain-Python twin: observations, masks, flags, rewards and scores of whole episodes.

And two laws that need no twin: the Pit never sees the world behind it, and nothing is lost or made on the way.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

import pit.layout as L
from fq_env.block import aligned
from fq_env.engine import Engine
from fq_env.level import Level, load_level
from fq_env.level_files import LEVELS
from fq_env.state import REWARDS, SPLITS
from pit import state
from pit.interface import ACT, OBSERVE, drive
from tests.fq_env.random_worlds import random_level
from tests.fq_env.small_worlds import DRIFT, OUTAGES, SMALL_LEVELS, TENANTS
from tests.twin.chance import mix
from tests.twin.game_twin import TwinGame

HISTORIES = int(os.environ.get("FQ_TWIN_HISTORIES", "12"))  # 12: every exposure under every reward
PER_LEVEL, BLOCK = int(os.environ.get("FQ_TWIN_PER_LEVEL", "200")), 50
COUNTS = (
    "steps", "calls", "cold_starts", "loads", "wrong_calls", "warnings", "waits", "holds", "instance_seed", "status",
    "poor_calls", "hedges", "cancels", "queued", "stragglers", "workflows", "overflow", "short", "skips",
)  # fmt: skip
RARE_COUNTS = (
    "outage_calls", "decayed_calls", "stale_calls", "refreshes", "reused", "late", "echo_calls", "gated_calls", "defers",
    "changed_calls", "fetches", "moved", "deleted",
)  # fmt: skip
FIGURES = (
    "total", "base", "efficiency", "stability", "optimization", "phi0", "reward_sum", "makespan", "lb", "cost",
    "cost_low", "flow", "slowdown", "busy", "critical_wait", "critical_quality", "critical_cost",
)  # fmt: skip


def changed(number: int, **parts: dict[str, Any]) -> Level:
    """A level with other figures: `system`, `draw` and `level` say which."""
    level = load_level(number)
    system, draw = level.system.model_copy(update=parts.get("system", {})), level.draw.model_copy(update=parts.get("draw", {}))
    return level.model_copy(update={"system": system, "draw": draw, **parts.get("level", {})})


def with_premium() -> Level:
    """Level 11 with a slow and good third variant that takes two places."""
    functions = {
        name: f.model_copy(update={"premium": f.standard.model_copy(update={"quality": 1.0, "seconds": 17.0, "units": 2})})
        for name, f in load_level(11).system.functions.items()
    }
    return changed(11, system={"verbs": ["lite", "standard", "premium", "hold"], "functions": functions})


def with_ties() -> Level:
    """Level 11 where loads take as long as standard calls and nothing varies but hints: many things happen at one time."""
    one, none = (1.0, 1.0), (0.0, 0.0)
    system = load_level(11).system
    models = {name: model.model_copy(update={"load_seconds": 10.0}) for name, model in system.models.items()}
    draw: dict[str, Any] = {"places": (4, 4), "memory": (8, 8), "noise_cv": none, "hint_cv": (0.4, 0.4)}
    draw |= dict.fromkeys(("seconds", "variant_seconds", "load_seconds", "model_load"), one)
    draw |= dict.fromkeys(("task_cv", "belief_cv", "load_cv", "failure_rate", "exclusive"), 0.0)
    return changed(11, system={"models": models}, draw=draw)


def with_trouble(**parts: Any) -> Level:
    """Level 11 with every action enabled, late calls, lost artifacts and failures; `parts` are policies of its system."""
    system: dict[str, Any] = {"verbs": list(L.ENABLED), "back_off_seconds": 4.0, "max_attempts": 6} | parts
    draw: dict[str, Any] = {"straggler_rate": (0.1, 0.4), "slow_share": 0.3, "slow_factor": 2.0, "slow_seconds": 20.0}
    return changed(11, system=system, draw=draw | {"failure_rate": 0.1, "lost_rate": 0.1})


def with_scarcity() -> Level:
    """Level 11 with little money and few tokens, and copies that soon leave memory."""
    system = load_level(11).system
    pools = {name: pool.model_copy(update={"rate": 0.15, "burst": 3}) for name, pool in system.pools.items()}
    models = {name: model.model_copy(update={"keep_alive_seconds": 6.0}) for name, model in system.models.items()}
    verbs = ["lite", "standard", "queue", "hold"]
    parts: dict[str, Any] = {
        "pools": pools,
        "models": models,
        "verbs": verbs,
        "money": 1.0,
        "ageing_seconds": 10.0,
        "fair": True,
    }
    return changed(11, system=parts, draw={"money": (0.3, 0.8), "rate": (0.7, 1.5)})


def hands(places: int) -> dict[str, Any]:
    pools = load_level(1).system.pools
    return {name: pool.model_copy(update={"places": places}) for name, pool in pools.items()}


def in_every_pool(number: int) -> dict[str, Any]:
    """Draws of outages, tenants and drift in the pools of a level of the suite."""
    pools = load_level(number).system.pools
    return (
        OUTAGES
        | TENANTS
        | DRIFT
        | {"fault_domains": {}}
        | {key: dict.fromkeys(pools, 0.4) for key in ("outages", "crowded", "drift")}
    )


# Three calls are required, and together they take more than twice the longest: two hands are kept busy by work, not by a path.
THE_TREASURE = load_level(1).order.model_copy(update={"held": 0.0, "goals": ["take_treasure"]})  # type: ignore[union-attr]
ODD_LEVELS: dict[str, int | Level] = {
    "expires": changed(11, level={"horizon": 1.2}),
    "expires in hidden order": changed(1, level={"horizon": 1.3}),
    "fails": changed(11, system={"max_attempts": 2}, draw={"failure_rate": 0.3}),
    "fails in hidden order": changed(1, system={"max_attempts": 2}),
    "two hands": changed(1, system={"pools": hands(2)}, draw={"seconds": (1.0, 1.0)}, level={"order": THE_TREASURE}),
    "three hands": changed(1, system={"pools": hands(3)}),
    "premium": with_premium(),
    "nothing is legal": changed(11, system={"verbs": ["standard", "hold"]}, draw={"memory": (1, 1)}),
    "ties": with_ties(),
    "trouble": with_trouble(),
    "trouble that is mended": with_trouble(fallback=True, time_out=1.5, prewarm=True, rebalance=True),
    "scarcity": with_scarcity(),
    "every action in hidden order": changed(4, system={"verbs": list(L.ENABLED), "pools": hands(2), "back_off_seconds": 2.0}),
    "outages, tenants, drift in hidden order": changed(2, draw=in_every_pool(2)),
    "never fails": changed(11, draw={"failure_rate": 0.0, "load_cv": 0.0}),
}
ALL_LEVELS: dict[str, int | Level] = {"1": 1, "11": 11, **ODD_LEVELS, **SMALL_LEVELS}


def any_action(rng: random.Random, mask: np.ndarray, illegal: float) -> int:
    """A random legal action, or with that chance any number at all."""
    return rng.randint(-2, L.N_ACTIONS + 2) if rng.random() < illegal else rng.choice(np.flatnonzero(mask).tolist())


def begun(level: int | Level, seed: int, reward: str, exposure: str | None = None, steps: int | None = None) -> Engine:
    engine = Engine(level, 1, exposure=exposure, reward=reward, autoreset="disabled", max_episode_steps=steps, seed=seed)
    engine.reset()
    return engine


def near(a: float, b: float) -> bool:
    """Equal but for the rounding of a sum of many rewards."""
    return abs(a - b) <= 1e-9


def compare(level: int | Level, seed: int, illegal: float = 0.05, steps: int | None = None) -> TwinGame:
    """One episode of engine and twin in lockstep."""
    rng, reward = random.Random(seed), REWARDS[seed % len(REWARDS)]
    exposure = L.EXPOSURES[seed % len(L.EXPOSURES)]
    engine = begun(level, seed, reward, exposure, steps)
    twin = TwinGame(engine, 0, reward, steps)
    hot = engine.block.hot(engine.memory[0])[0]
    assert twin.horizon == int(hot["horizon"] - hot["t0"])
    if engine.levels[0].draw.deadline is not None:
        low, high = engine.levels[0].draw.deadline
        assert int(low * twin.lb) <= twin.pit.system["deadline"] <= int(high * twin.lb)
    assert twin.phi0 == engine.phi0[0]
    seen = twin.pit.observe(), twin.pit.mask(), 0.0, False, False
    for step in itertools.count():
        where = f"seed {seed}, step {step}, exposure {exposure}, reward {reward}"
        observation, mask, got, terminated, truncated = seen
        wrong = [name for (name, _), a, b in zip(L.columns(), observation, engine.obs[0], strict=True) if a != b]
        assert observation.tobytes() == engine.obs[0].tobytes(), f"{where}: {wrong}"
        assert mask == engine.masks[0].tolist(), where
        assert (terminated, truncated) == (engine.terminated[0], engine.truncated[0]), where
        assert got == engine.rewards[0], f"{where}: {got!r}, engine {engine.rewards[0]!r}"
        if terminated or truncated:
            break
        action = any_action(rng, engine.masks[0], illegal)
        seen = twin.step(action)
        engine.step_one(action)
    record, mine = engine.episodes[0], twin.episode()
    for name in (*COUNTS, *RARE_COUNTS):
        assert mine[name] == record[name], f"{where}: {name}"
    for name in FIGURES:
        assert mine[name] == record[name], f"{where}: {name} {mine[name]!r}, engine {record[name]!r}"
    if reward == "potential" and terminated:
        assert near(record["reward_sum"], record["total"] - record["phi0"])
    return twin


@pytest.mark.parametrize("block", range(PER_LEVEL // BLOCK))
@pytest.mark.parametrize("level", LEVELS)
def test_the_engine_follows_the_rule_page(level: int, block: int) -> None:
    """Every exposure under every reward; legal actions alone in half of the histories; fewer of streams, which are long."""
    tasks = load_level(level).max_tasks
    every = 1 if tasks <= 64 else tasks // 16
    for seed in range(block * BLOCK, (block + 1) * BLOCK, every):
        compare(level, seed, illegal=0.05 * (seed % 2))


def test_the_odd_levels_reach_the_rarer_rules() -> None:
    """What the twin counts in these levels, or the comparison would say nothing about it."""
    reached: Counter[str] = Counter()
    for name in ("trouble", "trouble that is mended", "scarcity", "every action in hidden order"):
        for seed in range(300, 306):
            twin = compare(ODD_LEVELS[name], seed)
            reached += twin.pit.reached + Counter(late=twin.count["stragglers"], cancelled=twin.count["cancels"])
    wanted = (
        "hedge", "hedge: the first call wins", "cancel: running", "cancel: queued", "queue",
        "begun from a queue", "partial re-execution", "back_off", "back_off_long", "fallback", "prewarm: load",
        "rebalance: load", "refused: no money", "refused: no token", "late", "cancelled",
        *(f"timer: {name}" for name in ("token", "pool opens", "keep-alive", "time-out")),
    )  # fmt: skip
    assert not [name for name in wanted if reached[name] == 0]


def test_the_small_levels_reach_what_they_are_made_for() -> None:
    reached: Counter[str] = Counter()
    for name, level in SMALL_LEVELS.items():
        for seed in range(300, 312):
            twin = compare(level, seed)
            reached += twin.pit.reached + Counter({key: twin.episode()[key] for key in RARE_COUNTS})
            reached += Counter({f"{name}: {L.STATUSES[twin.pit.status]}": 1})
    wanted = (
        *RARE_COUNTS, "reuse: solves the run", "reuse: refused, all are stale", "run again: a fetched task",
        "stale inputs: quality lost", "tenants: crowd calls in flight", "tenants: leave", "timer: grows stale",
        "refused: for tenants alone", "gang: a claim keeps others out",
        "gang: refused by its second pool alone", *(f"{name}: solved" for name in SMALL_LEVELS),
    )  # fmt: skip
    assert not [name for name in wanted if reached[name] == 0]


@pytest.mark.parametrize("seed", range(200, 200 + max(4, HISTORIES // 3)))
@pytest.mark.parametrize("level", (1, 11))
def test_it_follows_it_to_the_step_limit(level: int, seed: int) -> None:
    compare(level, seed, steps=1 + seed % 9)
    whole = compare(level, seed)
    assert compare(level, seed, steps=whole.count["steps"]).pit.status == L.SOLVED  # the last step is no truncation


@pytest.mark.parametrize("seed", range(300, 300 + HISTORIES))
@pytest.mark.parametrize("name", (*ODD_LEVELS, *SMALL_LEVELS))
def test_it_follows_it_in_odd_levels(name: str, seed: int) -> None:
    compare(ALL_LEVELS[name], seed)


@pytest.mark.parametrize("seed", range(max(4, HISTORIES // 4)))
def test_it_follows_it_in_random_levels(seed: int) -> None:
    """Each of these seeds stands for a level of its own, in which any mechanic may meet any other."""
    for k in range(10):
        compare(random_level(10 * seed + k), seed)


@pytest.mark.parametrize("level", (1, 11))
def test_instances_are_named_by_hashes(level: int) -> None:
    key = int.from_bytes(hashlib.sha256(f"function-quest level {level} {load_level(level).name}".encode()).digest()[:8])
    engine = Engine(level, 2, seed=5)
    for split, name in enumerate(SPLITS):
        engine.reset(split=name, instances=[7, 123])
        assert engine.instance_seeds.tolist() == [mix(mix(key, split), i) for i in (7, 123)]
    streams = np.random.SeedSequence(5).generate_state(2, np.uint64).tolist()
    for episode in range(3):
        engine.reset()
        assert engine.instance_seeds.tolist() == [mix(mix(stream, 0), episode) for stream in streams]
    world = engine.block.hidden(engine.memory[0])[0]
    seeds = [int(world[name]) for name in ("durations", "failures", "loads", "stragglers", "outages", "tenants")]
    assert seeds == [mix(int(world["instance_seed"]), stream) for stream in (1, 2, 3, 5, 6, 7)]


def see(memory: np.ndarray) -> tuple[bytes, bytes]:
    """Observation and mask of the Pit that lies in this memory, encoded anew."""
    observation, mask = np.zeros(L.N_OBSERVATION, np.float32), np.zeros(L.N_ACTIONS, bool)
    drive(memory.ctypes.data, OBSERVE, 0, 0, observation.ctypes.data, mask.ctypes.data, 0.0, 0)
    return observation.tobytes(), mask.tobytes()


@pytest.mark.parametrize("seed", range(HISTORIES))
@pytest.mark.parametrize("name", ("1", "11", "all at once"))
def test_nothing_leaks_from_the_world_into_the_pit(name: str, seed: int) -> None:
    """With the world behind it overwritten, the Pit shows, allows and does the same."""
    rng, engine = random.Random(seed), begun(ALL_LEVELS[name], seed, "potential", "full")
    size = engine.block.pit_size
    plain, poisoned = aligned(engine.block.stride), aligned(engine.block.stride)
    for _ in range(60):
        action = any_action(rng, engine.masks[0], 0.05)
        for memory in (plain, poisoned):
            memory[:] = engine.memory[0]
            engine.block.hot(memory)["slots_valid"] = 0  # nothing that was kept: slots and legality are found again
        poisoned[size:] = 0xAB
        assert see(plain) == see(poisoned) == (engine.obs[0].tobytes(), engine.masks[0].tobytes())
        for memory in (plain, poisoned):
            drive(memory.ctypes.data, ACT, action, 0, 0, 0, 0.0, 0)
        assert see(plain) == see(poisoned)
        assert plain[:size].tobytes() == poisoned[:size].tobytes()
        assert (poisoned[size:] == 0xAB).all()
        engine.step_one(action)
        if engine.terminated[0] or engine.truncated[0]:
            break


def conserve(engine: Engine) -> None:
    """Places, memory and users of the engine's own tables add up."""
    memory, block = engine.memory[0], engine.block
    hot = block.hot(memory)[0]
    calls = block.rows(memory, "call_at", state.CALL, block.places)
    calls = calls[calls["id"] >= 0]
    copies = block.rows(memory, "copy_at", state.COPY, int(hot["n_copies"]))
    sizes = block.rows(memory, "model_at", state.MODEL, int(hot["n_models"]))["size"]
    assert len(calls) == hot["n_calls"]
    for p, pool in enumerate(hot["pools"][: hot["n_pools"]]):
        taken = calls["units"][calls["pool"] == p].sum() + calls["also_units"][calls["also"] == p].sum()
        assert pool["busy"] == taken <= pool["places"]
        assert 0 <= pool["tenants"] <= pool["places"]
    for b, budget in enumerate(hot["budgets"][: hot["n_budgets"]]):
        mine = copies[copies["budget"] == b]
        live = mine[np.isin(mine["state"], (L.LOADING, L.WARM, L.ACTIVE))]
        assert budget["used"] == sizes[live["model"]].sum() <= budget["capacity"]
        assert budget["evictable"] == sizes[live["model"][live["state"] == L.WARM]].sum()
    for c, copy in enumerate(copies):
        assert copy["users"] == (calls["copy"] == c).sum()


@pytest.mark.parametrize("seed", range(400, 400 + HISTORIES))
@pytest.mark.parametrize(
    "name", ("1", "11", "premium", "fails", "expires", "trouble", "trouble that is mended", "scarcity", *SMALL_LEVELS)
)
def test_nothing_is_lost_or_made(name: str, seed: int) -> None:
    rng, engine = random.Random(seed), begun(ALL_LEVELS[name], seed, "potential")
    twin = TwinGame(engine)
    hot = engine.block.hot(engine.memory[0])[0]
    while not (engine.terminated[0] or engine.truncated[0]):
        conserve(engine)
        action = any_action(rng, engine.masks[0], 0.05)
        engine.step_one(action)
        twin.step(action)
        assert hot["spent"] == sum(twin.pit.paid)
    conserve(engine)
    calls = engine.block.rows(engine.memory[0], "call_at", state.CALL, engine.block.places)
    flying = calls["id"][calls["id"] >= 0].tolist()
    ended, reached = twin.pit.ended, twin.pit.reached
    assert sorted(sum(ended.values(), flying)) == list(range(hot["next_call"]))  # every call ends once, or is under way
    tasks = engine.block.rows(engine.memory[0], "task_at", state.TASK, int(hot["n_tasks"]))
    assert tasks["attempts"].sum() == len(ended["failed"]) + reached["cancel: running"] + reached["denied"]
    causes = ("partial re-execution", "refresh", "run again: it was gone")
    done, again = len(ended["finished"]) + twin.count["reused"], sum(reached[cause] for cause in causes)
    assert tasks["version"].sum() == done and hot["reused"] == twin.count["reused"] == reached["reuse"]
    assert (tasks["state"] == L.DONE).sum() == done - again
    assert engine.episodes["cost"][0] == sum(twin.pit.paid) / 1e6
