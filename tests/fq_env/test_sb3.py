"""The stable-baselines3 adapter: its contract, and the same bits as the vector environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from fq_env.errors import FQError
from fq_env.level import LEVELS
from fq_env.sb3 import make_sb3_env
from fq_env.vector import FunctionQuestVectorEnv

pytestmark = pytest.mark.filterwarnings("error")


def choose(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(masks, rng.random(masks.shape), -1).argmax(axis=1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 7, 256])
@pytest.mark.parametrize("level", LEVELS)
def test_the_adapter_is_the_vector_environment(level, n, threads):
    limit = 8 if level <= 5 else 20  # so that truncation is met too
    vector = FunctionQuestVectorEnv(n, level, autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=limit)
    adapter = make_sb3_env(level, n, seed=None, threads=threads, max_episode_steps=limit)
    adapter.seed(9)
    obs, infos = vector.reset(seed=9)
    np.testing.assert_array_equal(adapter.reset(), obs)
    assert [info["phi0"] for info in adapter.reset_infos] == infos["phi0"].tolist()
    rng, cut = np.random.default_rng(0), 0
    for _ in range(300 if n < 256 else 120):
        masks = get_action_masks(adapter).reshape(n, -1)
        np.testing.assert_array_equal(masks, vector.action_masks())
        actions = choose(masks, rng)
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        obs2, rewards2, dones, listed = adapter.step(actions)
        np.testing.assert_array_equal(obs2, obs)
        np.testing.assert_array_equal(rewards2, rewards.astype(np.float32))
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert (obs2.dtype, rewards2.dtype, dones.dtype) == (np.float32, np.float32, np.bool_)
        for i, info in enumerate(listed):
            assert bool(info) == dones[i]
            if not info:
                continue
            cut += int(truncated[i])
            assert info["TimeLimit.truncated"] == truncated[i] == ("terminal_observation" in info)
            assert info["score"]["total"] == infos["final_info"]["total"][i]
            assert info["is_success"] == infos["final_info"]["is_success"][i]
            assert info["episode"]["r"] == infos["final_info"]["reward_sum"][i]
            assert info["episode"]["l"] == infos["final_info"]["steps"][i]
            if truncated[i]:
                np.testing.assert_array_equal(info["terminal_observation"], infos["final_obs"][i])
    assert cut > 0


def test_what_was_handed_out_is_never_rewritten():
    env, rng, kept = make_sb3_env(11, 8, max_episode_steps=5), np.random.default_rng(0), []
    obs = env.reset()
    for _ in range(20):
        [masks] = env.env_method("action_masks")
        kept.append([(array, array.copy()) for array in (obs, masks)])
        obs, rewards, dones, infos = env.step(choose(masks, rng))
        arrays = [rewards, dones, *(info["terminal_observation"] for info in infos if "terminal_observation" in info)]
        kept.append([(array, array.copy()) for array in arrays])
    for array, then in (pair for pairs in kept for pair in pairs):
        np.testing.assert_array_equal(array, then)


def test_what_stable_baselines_asks_of_an_environment():
    env = make_sb3_env(1, 3)
    env.reset()
    assert is_masking_supported(env) and not env.has_attr("no_such_thing")
    assert env.get_attr("render_mode") == [None] * 3
    assert env.env_is_wrapped(Monitor) == [True] * 3 and env.env_is_wrapped(VecMonitor, indices=0) == [False]
    assert [mask.shape for mask in env.env_method("action_masks", indices=[0, 2])] == [(128,), (128,)]
    with pytest.raises(AttributeError, match="no_such_method"):
        env.env_method("no_such_method")
    with pytest.raises(FQError, match="speed"):
        env.set_attr("speed", 1)
    assert env.get_images() == [None] * 3
    env.close()


def test_options_name_the_next_episodes_only():
    env = make_sb3_env(11, 2, seed=3)
    env.set_options([{"split": "test", "instance": 0}, {}])
    first = env.reset()
    env.set_options({"split": "test", "instance": 0})
    both = env.reset()
    np.testing.assert_array_equal(first[0], both[0])
    np.testing.assert_array_equal(both[0], both[1])
    assert (first[1] != both[1]).any()
    assert (env.reset()[0] != both[0]).any()
    env.set_options({"split": "tset", "instance": 0})
    with pytest.raises(FQError, match="tset"):
        env.reset()


def test_a_maskable_ppo_trains_logs_and_is_evaluated_without_wrappers():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        env = make_sb3_env(1, 16, seed=0)
        model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=1, gamma=1.0, seed=0)
        model.learn(2048)
        assert len(model.ep_info_buffer) > 0 and len(model.ep_success_buffer) > 0
        mean, _ = evaluate_policy(model, make_sb3_env(1, 4, seed=1), n_eval_episodes=8)
        assert -1 <= mean <= 0
    finally:
        torch.set_num_threads(threads)
