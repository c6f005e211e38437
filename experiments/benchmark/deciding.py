"""How long one decision takes: the conductor's networks beside stable-baselines3's `predict`, on recorded play."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

DECISIONS = 2000
NETWORKS = ("mlp", "symphony", "slots")


def _recorded(level: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (k, 512) and masks (k, 128) of random legal play."""
    from experiments.benchmark.environments import random_legal
    from fq_env.engine import Engine

    engine = Engine(level, 64, autoreset="same_step", seed=7)
    engine.reset()
    rng, seen = np.random.default_rng(7), []
    for _ in range(DECISIONS // 64 + 1):
        seen.append((engine.obs.copy(), engine.masks.copy()))
        engine.step(random_legal(engine.masks, rng.random(64)))
    obs, masks = (np.concatenate(part)[:DECISIONS] for part in zip(*seen, strict=True))
    return obs, masks


def _micros(decide: Callable[[np.ndarray, np.ndarray], Any], obs: np.ndarray, masks: np.ndarray) -> list[float]:
    times = []
    for o, m in zip(obs, masks, strict=True):
        began = time.perf_counter_ns()
        decide(o, m)
        times.append((time.perf_counter_ns() - began) / 1e3)
    return times


def _predict(model: Any, obs: np.ndarray, mask: np.ndarray) -> Any:
    return model.predict(obs, action_masks=mask, deterministic=True)


def decide_table(cfg: Any) -> dict[str, Any]:
    """Microseconds of one decision, median and 99th percentile over all rounds; contestants take turns."""
    import torch
    from pydantic import TypeAdapter
    from sb3_contrib import MaskablePPO

    from conductor.policy import NetworkSpec, make_policy
    from experiments.export import network_of, tensors_of
    from experiments.networks import policy_of
    from fq_env.sb3 import make_sb3_env

    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    level = cfg.levels[-1]
    obs, masks = _recorded(level)
    contestants: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {}
    for network in NETWORKS:
        kind: Any = SimpleNamespace(network=network, net_arch=None, activation="relu", algo="maskable_ppo")
        policy, policy_kwargs = policy_of(kind)
        model = MaskablePPO(
            policy, make_sb3_env(level, 1, 0), policy_kwargs=policy_kwargs, device="cpu", n_steps=2, batch_size=2
        )
        spec: NetworkSpec = TypeAdapter(NetworkSpec).validate_python(network_of(model))
        contestants[f"{network}, conductor"] = make_policy(spec, tensors_of(model)).act
        contestants[f"{network}, SB3 predict"] = partial(_predict, model)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(cfg.rounds):
        for name, decide in contestants.items():
            times[name] += _micros(decide, obs, masks)
    print(f"\nOne decision from observation and mask (level {level}, one thread)")
    table = {}
    for name, values in times.items():
        p50, p99 = np.percentile(values, (50, 99))
        table[name] = {"p50_us": float(p50), "p99_us": float(p99)}
        print(f"  {name:<24} p50 {p50:7.1f} us   p99 {p99:7.1f} us")
    return table
