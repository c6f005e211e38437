"""How fast we learn, beside stock `MaskablePPO` and a plain single-file PPO: the same network, batch, epochs and environments.

A contestant's run is whole rollouts and updates, in wall seconds, because threads count. The share of the matrix peak is of
the products that were really computed: what is known to be zero is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark.race import spread

N_ENVS, N_STEPS, BATCH, EPOCHS, RATE = 256, 32, 2048, 4, 1e-3
FRAMES = N_ENVS * N_STEPS
WIDTHS = {"mlp": ([64, 64], [64, 64]), "symphony": ([512, 256, 128], [512, 256])}
STOCK, SINGLE, WHOLE, LIVE = "stock MaskablePPO", "single-file PPO", "ours, all 512 columns", "ours, live columns"


def _learner(kind: str, network: str, level: int) -> Any:
    """A learner of that kind with `learn(frames)` that goes on where it stopped; ReLU everywhere."""
    import torch
    from sb3_contrib import MaskablePPO

    from experiments.benchmark.single_file import SingleFilePPO
    from experiments.fast_ppo import FastPPO
    from experiments.networks import SlotsPolicy
    from fq_env.level import load_level
    from fq_env.live import live_actions, live_columns
    from fq_env.sb3 import make_sb3_env

    env = make_sb3_env(level, N_ENVS, 0)
    same: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": BATCH, "n_epochs": EPOCHS, "learning_rate": RATE}
    if kind == SINGLE:
        pi, vf = WIDTHS[network]
        return SingleFilePPO(env, pi=pi, vf=vf, **same)
    same |= {"gamma": 1.0, "gae_lambda": 0.98, "ent_coef": 0.003, "seed": 0, "device": "cpu"}
    policy: Any = "MlpPolicy"
    same["policy_kwargs"] = {"activation_fn": torch.nn.ReLU}
    if network == "slots":
        policy = SlotsPolicy
    else:
        pi, vf = WIDTHS[network]
        same["policy_kwargs"]["net_arch"] = {"pi": pi, "vf": vf}
    if kind == LIVE:
        same |= {"live_columns": live_columns(load_level(level)), "live_actions": live_actions(load_level(level))}
    return (MaskablePPO if kind == STOCK else FastPPO)(policy, env, **same)


def _learn(learner: Any) -> Callable[[], None]:
    """One more rollout and update."""
    if hasattr(learner, "num_timesteps"):
        return lambda: learner.learn(FRAMES, reset_num_timesteps=False, log_interval=None)
    return lambda: learner.learn(FRAMES)


def matrix_peak() -> float:
    """Multiplications and additions per second of the best of several large float32 matrix products."""
    import torch

    a, b, out = torch.rand(2048, 512), torch.rand(512, 512), torch.empty(2048, 512)
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - began)
    return 2.0 * a.numel() * 512 / best


def _split(learner: Any) -> dict[str, float]:
    """Microseconds per frame of the environment, the rest of the rollout and the update, and GFLOP/s of the update."""
    inside, step = [0.0], learner.env.step_wait

    def timed() -> Any:
        began = time.perf_counter()
        result = step()
        inside[0] += time.perf_counter() - began
        return result

    learner.env.step_wait = timed
    _learn(learner)()
    del learner.env.step_wait
    logged = learner.logger.name_to_value
    rollout, update = logged["time/rollout_seconds"], logged["time/update_seconds"]
    flops = 0.0
    frames = learner.rollout_buffer.frames
    for start in range(0, FRAMES, BATCH):
        frames.batch(np.arange(start, start + BATCH), learner._net)
        flops += 2.0 * learner._net.multiplications()
    micro = 1e6 / FRAMES
    return {
        "environment": inside[0] * micro, "rest of the rollout": (rollout - inside[0]) * micro, "update": update * micro,
        "gflops": EPOCHS * flops / update / 1e9,
    }  # fmt: skip


def train_tables(cfg: Any) -> dict[str, Any]:
    """Every network, level and number of threads: frames per second, ratios to stock, where the time goes."""
    import torch

    torch.distributions.Distribution.set_default_validate_args(False)
    tables: dict[str, Any] = {}
    for threads in cfg.threads:
        torch.set_num_threads(threads)
        for network in cfg.networks:
            for level in cfg.levels:
                name = f"{network}, level {level}, {threads} thread{'s' * (threads > 1)}"
                tables[name] = _table(name, network, level, cfg.rounds)
    return tables


def _table(name: str, network: str, level: int, rounds: int) -> dict[str, Any]:
    kinds = [STOCK, *([SINGLE] if network in WIDTHS else []), WHOLE, LIVE]
    learners = {kind: _learner(kind, network, level) for kind in kinds}
    runs = {kind: _learn(learner) for kind, learner in learners.items()}
    for run in runs.values():  # compile, allocate, warm up
        run()
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    splits: list[dict[str, float]] = []
    shares = []
    for r in range(rounds):
        for kind in kinds[r % len(kinds) :] + kinds[: r % len(kinds)]:
            repeats = 1 if kind in (STOCK, SINGLE) else 3
            began = time.perf_counter()
            for _ in range(repeats):
                runs[kind]()
            rates[kind].append(repeats * FRAMES / (time.perf_counter() - began))
        peak = matrix_peak()
        splits.append(_split(learners[LIVE]))
        shares.append(splits[-1]["gflops"] * 1e9 / peak)
    print(f"\n{name}: batch {BATCH}, {EPOCHS} epochs, {N_ENVS} x {N_STEPS} frames a rollout", flush=True)
    table: dict[str, Any] = {}
    for kind in kinds:
        ratio = spread(np.array(rates[kind]) / np.array(rates[STOCK]))
        table[kind] = {"frames_per_second": spread(rates[kind]), "over_stock": ratio}
        print(
            f"  {kind:<24} {np.median(rates[kind]):>10,.0f} frames/s   {ratio['median']:5.2f} x stock "
            f"[{ratio['min']:.2f}..{ratio['max']:.2f}]"
        )
    micros = {key: spread(split[key] for split in splits) for key in splits[0]}
    table["microseconds"], table["share_of_peak"] = micros, spread(shares)
    parts = ", ".join(f"{key} {micros[key]['median']:.2f}" for key in ("environment", "rest of the rollout", "update"))
    print(f"  live columns, us per frame: {parts}; the update runs at {micros['gflops']['median']:.0f} GFLOP/s,")
    share = table["share_of_peak"]
    print(
        f"  {share['median']:.0%} [{share['min']:.0%}..{share['max']:.0%}] of the peak of a 2048 x 512 x 512 product beside it"
    )
    return table
