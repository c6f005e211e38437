"""Others beside ours: other suites' environments where they are installed, and the plain-Python twin where the tests are."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from experiments.benchmark.environments import SEED, kernel_contestant, random_legal
from experiments.benchmark.race import Contestant, race, ranged, spread, versus

CARTPOLE = "CartPole-v1"
MINIGRID = "MiniGrid-DoorKey-8x8-v0"
JUMANJI = "JobShop-v0"
JUMANJI_N = 256
TWIN_N = 256


def imported(*names: str) -> list[Any] | None:
    """These modules; None if one of them is not there."""
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError:
        return None


# --------------------------------------------------------------------------- one environment, and other suites
def single_contestant(env_id: str, seconds: float) -> Contestant:
    """One environment through `gymnasium.make` with its default wrappers; a masked one plays legal actions only."""
    import gymnasium

    import fq_env  # noqa: F401  (registers the ids)

    env = gymnasium.make(env_id)
    rng = np.random.default_rng(SEED)
    env.reset(seed=SEED)
    limit = 20_000 if env_id == CARTPOLE else 100_000
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

    return Contestant(env_id, len(actions), run)


def jumanji_contestant(seconds: float) -> Contestant | None:
    """Jumanji's job shop as its authors run it, compiled for many at once, resetting itself; None if it is not installed."""
    modules = imported("jax", "jumanji", "jumanji.wrappers")
    if modules is None:
        return None
    jax, jumanji, wrappers = modules
    env = wrappers.VmapAutoResetWrapper(jumanji.make(JUMANJI))
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    keys = jax.random.split(jax.random.PRNGKey(SEED), JUMANJI_N)
    rng = np.random.default_rng(SEED)
    state, seen = reset(keys)
    actions: list[Any] = []
    began = time.process_time()
    while len(actions) < 5 or time.process_time() - began < 2 * seconds:
        masks = np.asarray(seen.observation.action_mask)  # (n, machines, jobs + 1)
        rows = masks.reshape(-1, masks.shape[-1])
        drawn = random_legal(rows, rng.random(len(rows))).reshape(masks.shape[:2])
        actions.append(jax.numpy.asarray(drawn, jax.numpy.int32))
        state, seen = step(state, actions[-1])

    def run() -> None:
        state, seen = reset(keys)
        for action in actions:
            state, seen = step(state, action)
        seen.reward.block_until_ready()

    return Contestant(f"Jumanji {JUMANJI}, n = {JUMANJI_N}", len(actions) * JUMANJI_N, run)


def single_table(cfg: Any) -> dict[str, Any]:
    """Every level through `gymnasium.make`, other suites' environments beside it."""
    from fq_env import env_id

    print("\nOne environment through gymnasium.make, CPU time with resets, CartPole-v1 over it (ours: wanted 4 x)")
    minigrid = single_contestant(MINIGRID, cfg.seconds) if imported("minigrid") else None
    found = {MINIGRID: minigrid, f"Jumanji {JUMANJI}": jumanji_contestant(cfg.seconds)}
    contestants = [single_contestant(CARTPOLE, cfg.seconds), *(c for c in found.values() if c is not None)]
    contestants += [single_contestant(env_id(level), cfg.seconds) for level in cfg.levels]
    times = race(contestants, cfg.rounds)
    table: dict[str, Any] = {}
    for i, contestant in enumerate(contestants):
        ns, ratio = spread(times[:, i]), spread(times[:, 0] / times[:, i])
        table[contestant.name] = {"ns_per_step": ns, "cartpole_ratio": ratio}
        print(f"  {contestant.name:<30} {ranged(ns):>28} ns   {ranged(ratio, 2)} x")
    for name in (name for name, c in found.items() if c is None):
        table[name] = None
        print(f"  {name:<30} not installed")
    return table


# --------------------------------------------------------------------------- the twin
def twin_contestant(twin: Any, level: int, seconds: float) -> Contestant:
    """The game in plain Python: whole episodes of random legal actions, from the instances of `SEED`'s stream."""
    from fq_env.engine import Engine

    engine = Engine(level, 1, autoreset="disabled", seed=SEED)
    rng = np.random.default_rng(SEED)
    episodes: list[list[int]] = []

    def episode(actions: list[int] | None) -> list[int]:
        engine.reset()
        game = twin.TwinGame(engine)
        mask, done, taken = game.pit.mask(), False, list[int]()
        while not done:
            taken.append(int(rng.choice(np.flatnonzero(mask))) if actions is None else actions[len(taken)])
            _, mask, _, terminated, truncated = game.step(taken[-1])
            done = terminated or truncated
        return taken

    began = time.process_time()
    while not episodes or time.process_time() - began < 2 * seconds:
        episodes.append(episode(None))

    def run() -> None:
        engine.seed(SEED)
        for actions in episodes:
            episode(actions)

    return Contestant("twin", sum(map(len, episodes)), run)


def twin_table(cfg: Any) -> dict[str, Any]:
    """The kernel against the game in plain Python that the tests compare it with."""
    print(f"\nThe plain-Python twin over the kernel, n = {TWIN_N} (wanted 60 x)")
    modules = imported("tests.twin.game_twin")
    if modules is None:
        print("  not measured: there is no folder tests/ here")
        return {}
    print("  the twin is written for reading: it finds ranks, legal verbs and the score anew wherever it needs them")
    table = {}
    for level in cfg.levels:
        contestants = kernel_contestant(level, TWIN_N, cfg.seconds), twin_contestant(modules[0], level, cfg.seconds)
        table[f"level {level}"] = versus(f"level {level}", *contestants, cfg.rounds)
    return table
