"""How fast the environments are.

Actions are random legal ones, recorded in a first pass and replayed from the same seed, so no contestant's time holds the
choice of an action; it does hold the observation, the mask, the reward and the reset of finished episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark.race import Contestant, length_for, race, spread

SIZES = (256, 512, 1024)  # environments of the kernel table
ADAPTER_N = 256
SYNC_N = 256
SEED = 7
COMMANDS = ("env", "compile", "all")


def random_legal(masks: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A uniformly random legal action per row of masks (n, 128), from uniform numbers (n,) in [0, 1)."""
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


def kernel_contestant(level: int, n: int, seconds: float) -> Contestant:
    """The raw kernel: `Engine.step` alone."""
    engine, actions = recorded_engine(level, n, seconds)
    expected = engine.obs.copy()

    def run() -> None:
        engine.seed(SEED)
        engine.reset()
        for row in actions:
            engine.step(row)

    run()
    if not np.array_equal(engine.obs, expected):
        raise RuntimeError("a replay of recorded actions from the same seed went another way: the engine is not deterministic")
    return Contestant(f"kernel, level {level}, n = {n}", actions.size, run)


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


def single_contestant(env_id: str, seconds: float) -> Contestant:
    """One environment through `gymnasium.make` with its default wrappers; a masked one plays legal actions only."""
    import gymnasium

    import fq_env  # noqa: F401  (registers the ids)

    env = gymnasium.make(env_id)
    rng = np.random.default_rng(SEED)
    env.reset(seed=SEED)
    limit = 20_000 if env_id.startswith("CartPole") else 100_000
    actions: list[int] = []
    _, info = env.reset(seed=SEED)
    began = time.process_time()
    while len(actions) < limit and time.process_time() - began < 3 * seconds:
        mask = info.get("action_mask")
        action = int(rng.integers(env.action_space.n)) if mask is None else int(rng.choice(np.flatnonzero(mask)))  # type: ignore[attr-defined]
        actions.append(action)
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            _, info = env.reset()

    def run() -> None:
        env.reset(seed=SEED)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return Contestant(f"gym.make {env_id}", len(actions), run)


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
        Contestant(f"native VectorEnv, level {level}, n = {n}", actions.size, runner(native)),
        Contestant(f"SyncVectorEnv, level {level}, n = {n}", actions.size, runner(sync)),
    )


# --------------------------------------------------------------------------- tables
def kernel_table(cfg: Any) -> dict[str, Any]:
    """The kernel at several sizes."""
    contestants = [kernel_contestant(level, n, cfg.seconds) for level in cfg.levels for n in SIZES]
    times = race(contestants, cfg.rounds)
    table = {c.name: spread(times[:, i]) for i, c in enumerate(contestants)}
    print("\nKernel: one decision of one environment with observation, mask, reward, reset; one thread")
    for name, ns in table.items():
        rate = 1e3 / ns["median"]
        print(f"  {name:<34} {ns['median']:8.0f} ns [{ns['min']:.0f}..{ns['max']:.0f}]   {rate:6.2f} M steps per CPU second")
    return table


def versus(title: str, fast: Contestant, slow: Contestant, rounds: int) -> dict[str, Any]:
    """Two contestants and the median of `slow / fast` over rounds."""
    times = race([fast, slow], rounds)
    ratio = spread(times[:, 1] / times[:, 0])
    print(f"\n{title}: {ratio['median']:.2f} x [{ratio['min']:.2f}..{ratio['max']:.2f}]")
    rows = {}
    for i, contestant in enumerate((fast, slow)):
        rows[contestant.name] = ns = spread(times[:, i])
        print(f"  {contestant.name:<42} {ns['median']:8.0f} ns [{ns['min']:.0f}..{ns['max']:.0f}]")
    return {"ratio": ratio, "ns_per_step": rows}


def adapter_table(cfg: Any) -> dict[str, Any]:
    """What stable-baselines3's adapter and its masks cost over the raw kernel."""
    result: dict[str, Any] = {}
    print(f"\nstable-baselines3 over the raw kernel, n = {ADAPTER_N}")
    for level in cfg.levels:
        engine, actions = recorded_engine(level, ADAPTER_N, cfg.seconds)

        def raw(engine: Any = engine, actions: np.ndarray = actions) -> None:
            engine.seed(SEED)
            engine.reset()
            for row in actions:
                engine.step(row)

        times = race([Contestant("kernel", actions.size, raw), adapter_contestant(level, ADAPTER_N, actions)], cfg.rounds)
        cost = spread(times[:, 1] - times[:, 0])
        micro = spread(race([masks_contestant(level, ADAPTER_N)], cfg.rounds)[:, 0] / 1e3)
        result[f"level {level}"] = {"adapter_ns_per_step": cost, "masks_us_per_vector_step": micro}
        print(
            f"  level {level:<3} adapter {cost['median']:+6.0f} ns per step [{cost['min']:+.0f}..{cost['max']:+.0f}]   "
            f"masks {micro['median']:.1f} us per vector step [{micro['min']:.1f}..{micro['max']:.1f}]"
        )
    return result


def env_tables(cfg: Any) -> dict[str, Any]:
    """All tables about stepping."""
    from fq_env import env_id

    first = cfg.levels[0]
    return {
        "kernel": kernel_table(cfg),
        "single": versus(
            "One environment through gym.make, CartPole-v1 over ours",
            single_contestant(env_id(first), cfg.seconds),
            single_contestant("CartPole-v1", cfg.seconds),
            cfg.rounds,
        ),
        "vector": versus("SyncVectorEnv over the native one", *vector_contestants(first, SYNC_N, cfg.seconds), cfg.rounds),
        "adapter": adapter_table(cfg),
    }
