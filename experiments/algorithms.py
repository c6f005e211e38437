"""The learners behind `algo=`: one factory, one loader, and the logits of what was learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from experiments.config import TrainConfig
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
CHECKPOINT = "checkpoint.zip"


def algorithm(name: str) -> type[Any]:
    """The class behind `algo=`: `maskable_ppo` (stock sb3-contrib) or `ppo` (stock stable-baselines3)."""
    if name == "maskable_ppo":
        from sb3_contrib import MaskablePPO

        return MaskablePPO
    return PPO


def prepare_torch(threads: int) -> None:
    """One process, few threads, no argument checks in distributions (they cost 5-15 % and trip on 128 masked logits)."""
    torch.set_num_threads(threads)
    torch.distributions.Distribution.set_default_validate_args(False)


def make_model(cfg: TrainConfig, env: VecEnv) -> OnPolicyAlgorithm:
    """An untrained learner over `env`, with its random state and the environments' seeded by `cfg.seed`."""
    model: OnPolicyAlgorithm = algorithm(cfg.algo)(
        "MlpPolicy",
        env,
        learning_rate=LinearSchedule(cfg.learning_rate, cfg.learning_rate_end, 1.0),
        n_steps=cfg.n_steps,
        batch_size=cfg.batch_size,
        n_epochs=cfg.n_epochs,
        gamma=cfg.gamma,
        gae_lambda=cfg.gae_lambda,
        ent_coef=cfg.ent_coef,
        vf_coef=cfg.vf_coef,
        clip_range=cfg.clip_range,
        max_grad_norm=cfg.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(cfg.net_arch), "vf": list(cfg.net_arch)},
            "activation_fn": ACTIVATIONS[cfg.activation],
        },
        seed=cfg.seed,
        device="cpu",
    )
    return model


def load_model(folder: Path, algo: str) -> OnPolicyAlgorithm:
    """The learner saved in a run folder. Only for runs of your own: its zip holds pickles, a bundle does not.

    Raises:
        ExperimentError: there is no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ExperimentError(f"run={folder}: holds no {CHECKPOINT}; name the folder of a run that was trained")
    model: OnPolicyAlgorithm = algorithm(algo).load(path, device="cpu")
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
