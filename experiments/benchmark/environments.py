"""How fast the environments are, many at a time.

Actions are random legal ones, recorded in a first pass and replayed from the same seed, so no contestant's time holds the
choice of an action; it does hold the observation, the mask, the reward and the reset of finished episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark.race import Contestant, length_for, race, ranged, spread, versus

SIZES = (256, 512, 1024)  # environments of the kernel table; the first one is the figure that stands for the level
ADAPTER_N = 256
SYNC_N = 256
THREADS_N = 1024
SEED = 7


def wanted(level: int) -> float:
    """Steps per CPU second that are wanted of a level's kernel: the first five are small."""
    return 4e6 if level <= 5 else 2e6


def random_legal(masks: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A uniformly random legal action per row of masks (n, k), from uniform numbers (n,) in [0, 1)."""
    ranks = (uniform * masks.sum(axis=1)).astype(np.int64)
    return (np.cumsum(masks, axis=1) > ranks[:, None]).argmax(axis=1)


# --------------------------------------------------------------------------- contestants
def recorded_engine(level: int, n: int, seconds: float) -> tuple[Any, np.ndarray]:
    """An engine and random legal actions (steps, n) for it, recorded from the streams of `SEED`."""
    from fq_env.engine import Engine

    engine = Engine(level, n, autoreset="same_step", seed=SEED)
    engine.reset()
    rng = np.random.default_rng(SEED)
    steps = length_for(seconds, lambda: engine.step(random_legal(engine.masks, rng.random(n))))
    engine.seed(SEED)
    engine.reset()
    actions = np.empty((steps, n), np.int64)
    for t in range(steps):
        actions[t] = random_legal(engine.masks, rng.random(n))
        engine.step(actions[t])
    return engine, actions


def replay(name: str, engine: Any, actions: np.ndarray, expected: np.ndarray) -> Contestant:
    """The raw kernel: `Engine.step` alone, on actions (steps, n) that lead to the observations `expected`."""

    def run() -> None:
        engine.seed(SEED)
        engine.reset()
        for row in actions:
            engine.step(row)

    run()
    if not np.array_equal(engine.obs, expected):
        raise RuntimeError(f"{name}: recorded actions from the same seed went another way: the engine is not deterministic")
    return Contestant(name, actions.size, run)


def kernel_contestant(level: int, n: int, seconds: float) -> Contestant:
    """The raw kernel on one thread."""
    engine, actions = recorded_engine(level, n, seconds)
    return replay(f"kernel, n = {n}", engine, actions, engine.obs.copy())


def adapter_contestant(level: int, n: int, actions: np.ndarray) -> Contestant:
    """stable-baselines3's adapter over the same engine, seed and actions."""
    from fq_env.sb3 import make_sb3_env

    env = make_sb3_env(level, n, SEED)

    def run() -> None:
        env.seed(SEED)
        env.reset()
        for row in actions:
            env.step(row)

    return Contestant(f"SB3 adapter, level {level}, n = {n}", actions.size, run)


def masks_contestant(level: int, n: int) -> Contestant:
    """The masks of all environments, as sb3-contrib asks for them; one step is one such call."""
    from fq_env.sb3 import make_sb3_env

    env = make_sb3_env(level, n, SEED)
    env.reset()
    calls = 2000

    def run() -> None:
        for _ in range(calls):
            env.env_method("action_masks")

    return Contestant(f"masks, level {level}, n = {n}", calls, run)


def vector_contestants(level: int, n: int, seconds: float) -> tuple[Contestant, Contestant]:
    """Our native vector environment and Gymnasium's SyncVectorEnv of our single ones, on the same episodes and actions."""
    import gymnasium

    from fq_env import env_id

    name = env_id(level)
    native = gymnasium.make_vec(name, num_envs=n)
    sync = gymnasium.make_vec(name, num_envs=n, vectorization_mode="sync")
    seeds = list(range(n))
    rng = np.random.default_rng(SEED)
    _, infos = native.reset(seed=seeds)  # type: ignore[arg-type]
    steps = max(20, int(seconds * 1e9 / (n * 4000)))  # about as long as the slower one takes
    actions = np.empty((steps, n), np.int64)
    for t in range(steps):
        actions[t] = random_legal(infos["action_mask"], rng.random(n))
        _, _, _, _, infos = native.step(actions[t])

    def runner(env: Any) -> Callable[[], None]:
        def run() -> None:
            env.reset(seed=seeds)
            for row in actions:
                env.step(row)

        return run

    return (
        Contestant("native VectorEnv", actions.size, runner(native)),
        Contestant("SyncVectorEnv", actions.size, runner(sync)),
    )


# --------------------------------------------------------------------------- tables
def kernel_table(cfg: Any) -> dict[str, Any]:
    """Every level's kernel at several sizes, CartPole-v1 beside it in every round."""
    from experiments.benchmark.peers import CARTPOLE, single_contestant

    cartpole = single_contestant(CARTPOLE, cfg.seconds)
    table: dict[str, Any] = {}
    print("\nKernel: one decision of one environment with observation, mask, reward, reset; one thread")
    for level in cfg.levels:
        contestants = [kernel_contestant(level, n, cfg.seconds) for n in SIZES]
        times = race([*contestants, cartpole], cfg.rounds)
        rows = table[f"level {level}"] = {}
        for i, n in enumerate(SIZES):
            ns, ratio = spread(times[:, i]), spread(times[:, -1] / times[:, i])
            rate, goal = 1e9 / ns["median"], wanted(level)
            rows[f"n = {n}"] = {"ns_per_step": ns, "cartpole_ratio": ratio, "share_of_wanted": rate / goal}
            print(
                f"  {f'level {level}' if i == 0 else '':<9} n = {n:<5} {ranged(ns):>22} ns   {rate / 1e6:5.2f} M steps per "
                f"CPU second, {rate / goal:4.2f} of {goal / 1e6:.0f} M;  {ranged(ratio, 1)} x CartPole-v1",
                flush=True,
            )
    return table


def threads_table(cfg: Any) -> dict[str, Any]:
    """Two kernel threads against one, by the clock on the wall; needs two idle cores."""
    import numba

    from fq_env.engine import Engine

    print(f"\nTwo threads against one, n = {THREADS_N}, time on the wall (wanted 1.8 x)")
    if numba.config.NUMBA_NUM_THREADS < 2:
        print("  not measured: there is one core")
        return {}
    table = {}
    for level in cfg.levels:
        one, actions = recorded_engine(level, THREADS_N, cfg.seconds)
        expected = one.obs.copy()
        two = Engine(level, THREADS_N, autoreset="same_step", seed=SEED, threads=2)
        contestants = (replay("two", two, actions, expected), replay("one", one, actions, expected))
        table[f"level {level}"] = versus(f"level {level}", *contestants, cfg.rounds, time.perf_counter_ns)
    return table


def vector_table(cfg: Any) -> dict[str, Any]:
    """Our vector environment against Gymnasium's around single ones, on the first level."""
    print(f"\nGymnasium's SyncVectorEnv over the native one, n = {SYNC_N} (wanted 10 x)")
    level = cfg.levels[0]
    return {f"level {level}": versus(f"level {level}", *vector_contestants(level, SYNC_N, cfg.seconds), cfg.rounds)}


def adapter_table(cfg: Any) -> dict[str, Any]:
    """What stable-baselines3's adapter and its masks cost over the raw kernel."""
    result: dict[str, Any] = {}
    print(f"\nstable-baselines3 over the raw kernel, n = {ADAPTER_N} (wanted 100 ns, 5 us)")
    for level in cfg.levels:
        engine, actions = recorded_engine(level, ADAPTER_N, cfg.seconds)
        raw = replay("kernel", engine, actions, engine.obs.copy())
        times = race([raw, adapter_contestant(level, ADAPTER_N, actions)], cfg.rounds)
        cost = spread(times[:, 1] - times[:, 0])
        micro = spread(race([masks_contestant(level, ADAPTER_N)], cfg.rounds)[:, 0] / 1e3)
        result[f"level {level}"] = {"adapter_ns_per_step": cost, "masks_us_per_vector_step": micro}
        print(
            f"  level {level:<3} adapter {ranged(cost, 0, '+')} ns per step   masks {ranged(micro, 1)} us per vector step",
            flush=True,
        )
    return result
