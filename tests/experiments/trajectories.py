"""Six train instances of level 11, a learner that has learned nothing, and trajectories as the verifier replays them."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.algorithms import make_model
from experiments.evaluate import CALIBRATED, Referee
from experiments.recipes import teacher, verifier
from experiments.recipes.trajectories import Trajectories
from fq_env.level import load_level
from fq_env.sb3 import make_sb3_env
from tests.experiments.training import config

INSTANCES = np.arange(6) + 10**6


def learner(*overrides: str) -> Any:
    cfg = config(*overrides)
    return make_model(cfg, make_sb3_env(cfg.level, cfg.n_envs, cfg.seed))


def replayed(played: Trajectories, **options: Any) -> verifier.Replay:
    level = load_level(11)
    rule = teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED]
    options = {"exposure": "full", "reward": "potential", "gamma": 1.0, **options}
    return verifier.replay(level, played, rule, learner("level=11").ladder, **options)
