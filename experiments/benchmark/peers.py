"""Others beside ours: other suites' environments where they are installed, and plain-Python twins where the tests are."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.benchmark.environments import SEED, kernel_contestant, random_legal
from experiments.benchmark.race import Contestant, race, ranged, spread

CARTPOLE = "CartPole-v1"
MINIGRID = "MiniGrid-DoorKey-8x8-v0"
JUMANJI = "JobShop-v0"
JUMANJI_N = 256
TWIN_N = 256
QUICK = "for speed"


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


# --------------------------------------------------------------------------- the twins
def read_twin(module: Any, engine: Any) -> tuple[Any, Any]:
    """What is legal at first in the twin written for reading, and its step."""
    game = module.TwinGame(engine)
    return game.pit.mask(), game.step


def quick_twin(module: Any, engine: Any) -> tuple[Any, Any]:
    """The same of the twin written for speed."""
    game = module.quick_game(engine)
    return game.mask, game.step


def twin_contestant(name: str, begin: Callable[[Any], tuple[Any, Any]], level: int, seconds: float) -> Contestant:
    """The game in plain Python: whole episodes of random legal actions, from the instances of `SEED`'s stream."""
    from fq_env.engine import Engine

    engine = Engine(level, 1, autoreset="disabled", seed=SEED)
    rng = np.random.default_rng(SEED)
    episodes: list[list[int]] = []

    def episode() -> list[int]:
        engine.reset()
        mask, step = begin(engine)
        done, taken = False, list[int]()
        while not done:
            taken.append(int(rng.choice(np.flatnonzero(mask))))
            _, mask, _, terminated, truncated = step(taken[-1])
            done = terminated or truncated
        return taken

    began = time.process_time()
    while not episodes or time.process_time() - began < 2 * seconds:
        episodes.append(episode())

    def run() -> None:
        engine.seed(SEED)
        for actions in episodes:
            engine.reset()
            _, step = begin(engine)
            for action in actions:
                step(action)

    return Contestant(name, sum(map(len, episodes)), run)


def twin_table(cfg: Any) -> dict[str, Any]:
    """The kernel against the game in plain Python: written for reading, and on level 1 written for speed, too."""
    print(f"\nThe game in plain Python over the kernel, n = {TWIN_N}, with resets (written for speed: wanted 60 x)")
    modules = imported("tests.twin.game_twin", "tests.twin.quick")
    if modules is None:
        print("  not measured: there is no folder tests/ here")
        return {}
    print("  written for reading: it finds ranks, legal verbs and the score anew wherever it needs them")
    print("  written for speed: it plays level 1 alone, where a step is a whole call, and keeps what did not change")
    table = {}
    for level in cfg.levels:
        contestants = [kernel_contestant(level, TWIN_N, cfg.seconds)]
        contestants.append(twin_contestant("for reading", partial(read_twin, modules[0]), level, cfg.seconds))
        if level == 1:
            contestants.append(twin_contestant(QUICK, partial(quick_twin, modules[1]), level, cfg.seconds))
        times = race(contestants, cfg.rounds)
        ns = {c.name: spread(times[:, k]) for k, c in enumerate(contestants)}
        ratios = {c.name: spread(times[:, k] / times[:, 0]) for k, c in enumerate(contestants) if k > 0}
        table[f"level {level}"] = {"ratios": ratios, "ns_per_step": ns}
        print(f"  level {level:<4} {contestants[0].name:<20} {ranged(ns[contestants[0].name]):>30} ns")
        for name, ratio in ratios.items():
            print(f"  {'':<10} {name:<20} {ranged(ns[name]):>30} ns   {ranged(ratio, 2)} x", flush=True)
    return table
