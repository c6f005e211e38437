"""The learners behind `algo=`: one factory, one loader, and the logits of what was learned."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from experiments.config import TrainConfig, ent_coef_after, shown, trained_levels
from experiments.errors import ExperimentError
from experiments.networks import policy_of
from fq_env.live import live_actions, live_columns

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

CHECKPOINT = "checkpoint.zip"  # the learner between its last two rollouts
BEST = "best.zip"  # the learner at the best of its looks


def algorithm(name: str) -> type[Any]:
    """The class behind `algo=`: `fast_ppo` (ours), `maskable_ppo` (stock sb3-contrib) or `ppo` (stock stable-baselines3)."""
    if name == "fast_ppo":
        from experiments.fast_ppo import FastPPO

        return FastPPO
    if name == "maskable_ppo":
        from sb3_contrib import MaskablePPO

        return MaskablePPO
    return PPO


def prepare_torch(threads: int, precision: str = "highest") -> None:
    """One process, few threads, no argument checks in distributions (they cost 5-15 % and trip on 128 masked logits)."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.distributions.Distribution.set_default_validate_args(False)


def make_model(cfg: TrainConfig, env: VecEnv) -> OnPolicyAlgorithm:
    """An untrained learner over `env`, with its random state and the environments' seeded by `cfg.seed`."""
    policy, policy_kwargs = policy_of(cfg)
    own = cfg.recipe_options.ppo if cfg.recipe == "srl_rlvr" else None
    rate = cfg.learning_rate if own is None or own.learning_rate is None else own.learning_rate
    model: OnPolicyAlgorithm = algorithm(cfg.algo)(
        policy,
        env,
        learning_rate=LinearSchedule(rate, cfg.learning_rate_end, 1.0),
        n_steps=cfg.n_steps,
        batch_size=cfg.batch_size,
        n_epochs=cfg.n_epochs,
        gamma=cfg.gamma,
        gae_lambda=cfg.gae_lambda,
        ent_coef=ent_coef_after(cfg, 0),
        vf_coef=cfg.vf_coef,
        clip_range=cfg.clip_range,
        max_grad_norm=cfg.max_grad_norm,
        target_kl=cfg.target_kl,
        policy_kwargs=policy_kwargs,
        seed=cfg.seed,
        device="cpu",
        **_live(cfg),
    )
    return model


def _live(cfg: TrainConfig) -> dict[str, np.ndarray]:
    """What the levels declare that their observations and masks can hold; only our own learner makes use of it."""
    if cfg.algo != "fast_ppo":
        return {}
    levels, exposure = trained_levels(cfg.level), shown(cfg)
    return {
        "live_columns": np.any([live_columns(level, exposure) for level in levels], axis=0),
        "live_actions": np.any([live_actions(level) for level in levels], axis=0),
    }


def load_model(folder: Path, algo: str) -> OnPolicyAlgorithm:
    """The learner saved in a run folder: at its best look, or, before there was one, at its last checkpoint.

    Only for runs of your own: its zip holds pickles, a bundle does not.

    Raises:
        ExperimentError: there is none, or it is broken.
    """
    path = next((folder / name for name in (BEST, CHECKPOINT) if (folder / name).is_file()), None)
    if path is None:
        raise ExperimentError(f"run={folder}: holds no {CHECKPOINT}; name the folder of a run that was trained")
    try:
        model: OnPolicyAlgorithm = algorithm(algo).load(path, device="cpu")
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ExperimentError(f"{path}: cannot be read ({str(error).splitlines()[0]}); name another run") from None
    return model


def torch_logits(model: OnPolicyAlgorithm) -> Callable[[np.ndarray], np.ndarray]:
    """A function from observations (k, 512) float32 to the policy's logits (k, 128) float32, before any mask."""
    policy: Any = model.policy

    def logits(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            latent = policy.mlp_extractor.forward_actor(torch.from_numpy(np.ascontiguousarray(obs)))
            output: np.ndarray = policy.action_net(latent).numpy()
        return output

    return logits
