"""The scalar environment: Gymnasium's and stable-baselines3's checkers, seeds, splits, masks, bounds, rewards."""

from __future__ import annotations

import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check

import fq_env
from fq_env.env import FunctionQuestEnv
from fq_env.errors import FQError
from fq_env.level import LEVELS
from pit import layout

EXPOSURES = layout.EXPOSURES
IDS = [fq_env.env_id(level) for level in LEVELS]
pytestmark = pytest.mark.filterwarnings("error")


def legal(mask: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(mask)))


def play(env: FunctionQuestEnv, rng: np.random.Generator, **reset: object) -> tuple[list[np.ndarray], list[float], dict]:
    """One episode of random legal actions: observations, rewards, last info."""
    obs, info = env.reset(**reset)
    seen, rewards, done = [obs], [], False
    while not done:
        mask = env.action_masks()
        assert mask.any()
        obs, reward, terminated, truncated, info = env.step(legal(mask, rng))
        seen.append(obs)
        rewards.append(reward)
        done = terminated or truncated
    np.testing.assert_array_equal(info.pop("action_mask"), env.action_masks())
    return seen, rewards, info


@pytest.mark.parametrize("exposure", EXPOSURES)
@pytest.mark.parametrize("name", IDS)
def test_checkers_accept_every_id_under_every_exposure(name, exposure):
    gymnasium_check(gymnasium.make(name, exposure=exposure).unwrapped)
    sb3_check(gymnasium.make(name, exposure=exposure))


@pytest.mark.parametrize("level", LEVELS)
def test_observations_stay_in_bounds_and_legal_actions_cost_no_warning(level):
    rng = np.random.default_rng(0)
    bounds = np.array([(f.low, f.high) for _, f in layout.columns()], np.float32)
    for exposure in EXPOSURES:
        env = FunctionQuestEnv(level, exposure=exposure)
        for episode in range(5):
            seen, _, info = play(env, rng, seed=episode)
            table = np.array(seen)
            assert np.isfinite(table).all()
            assert (table >= bounds[:, 0]).all() and (table <= bounds[:, 1]).all()
            early = sum(task["attempts"] for task in env.view()["tasks"]) if info["wrong_calls"] else 0
            # A call before its time, or at a closed gate, is the player's mistake, not the mask's.
            assert early <= info["warnings"] <= early + info["gated_calls"]


@pytest.mark.parametrize("level", LEVELS)
def test_exposure_hides_columns_and_changes_nothing_else(level):
    classes = np.array([f.exposure for _, f in layout.columns()])
    runs = [play(FunctionQuestEnv(level, exposure=e), np.random.default_rng(3), seed=7) for e in EXPOSURES]
    full = np.array(runs[-1][0])
    for exposure, (seen, rewards, info) in enumerate(runs):
        assert rewards == runs[-1][1] and info == runs[-1][2]
        np.testing.assert_array_equal(np.array(seen), np.where(classes <= exposure, full, 0))


@settings(max_examples=40, deadline=None)
@given(level=st.sampled_from(list(LEVELS)), seed=st.integers(0, 2**32 - 1))
def test_rewards_sum_to_the_score_less_its_start(level, seed):
    env = ENVS.setdefault(level, FunctionQuestEnv(level, max_episode_steps=1_000_000))
    _, rewards, info = play(env, np.random.default_rng(seed), seed=seed)
    assert info["status"] != layout.ON
    assert abs(sum(rewards) - (info["total"] - info["phi0"])) <= 1e-6
    assert abs(sum(rewards) - info["reward_sum"]) <= 1e-9
    assert info["steps"] == len(rewards)
    for part in ("total", "base", "efficiency", "stability", "optimization", "phi0"):
        assert 0 <= info[part] <= 1


ENVS: dict[int, FunctionQuestEnv] = {}


@pytest.mark.parametrize("level", LEVELS)
def test_the_sparse_reward_is_the_score_at_the_end(level):
    _, rewards, info = play(FunctionQuestEnv(level, reward="sparse"), np.random.default_rng(0), seed=1)
    assert not any(rewards[:-1]) and abs(rewards[-1] - info["total"]) <= 1e-9


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_bits(level):
    one, two = (
        [play(env, rng, **reset) for reset in ({"seed": 11}, {}, {})]
        for env, rng in ((FunctionQuestEnv(level), np.random.default_rng(0)) for _ in range(2))
    )
    for (seen, rewards, info), (seen2, rewards2, info2) in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.array(seen), np.array(seen2))
        assert rewards == rewards2 and info == info2
    assert len({info["instance_seed"] for _, _, info in one}) == 3


def test_neighbouring_seeds_share_no_instance():
    seeds = [{env.reset(**reset)[1]["instance_seed"] for reset in ({"seed": s}, *[{}] * 30)} for env in (FunctionQuestEnv(1),)
             for s in range(8)]  # fmt: skip
    assert len(set().union(*seeds)) == 8 * 31


def test_splits_share_no_instance_and_names_are_exact():
    env = FunctionQuestEnv(11)
    seen = {}
    for split in ("train", "validation", "test"):
        for i in range(20):
            obs, info = env.reset(seed=i, options={"split": split, "instance": i})
            again, info_again = env.reset(options={"split": split, "instance": i})
            np.testing.assert_array_equal(obs, again)
            assert info["instance_seed"] == info_again["instance_seed"]
            seen[split, i] = info["instance_seed"]
    assert len(set(seen.values())) == len(seen)
    stream = {env.reset(**reset)[1]["instance_seed"] for reset in ({"seed": 0}, *[{}] * 50)}
    assert not stream & {seed for (split, _), seed in seen.items() if split != "train"}


def test_a_named_instance_does_not_move_the_train_stream():
    env = FunctionQuestEnv(1)
    env.reset(seed=4)
    plain = env.reset()[1]["instance_seed"]
    env.reset(seed=4)
    env.reset(options={"split": "test", "instance": 0})
    assert env.reset()[1]["instance_seed"] == plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tset", "instance": 0}, "tset"),
        ({"split": "test"}, "without an instance"),
        ({"split": "test", "instance": -1}, "-1"),
        ({"split": "test", "instance": 1.5}, "1.5"),
        ({"split": "test", "instance": 2**70}, "from 0 to 9223372036854775807"),
        ({"split": "test", "instance": 2**63}, "from 0 to 9223372036854775807"),
        ({"splt": "test"}, "did you mean 'split'"),
    ],
)
def test_options_that_name_no_instance_are_refused_in_a_sentence(options, words):
    with pytest.raises(FQError, match=words):
        FunctionQuestEnv(1).reset(options=options)


@pytest.mark.parametrize("arguments", [{"level": 99}, {"exposure": "all"}, {"reward": "dense"}, {"render_mode": "human"},
                                       {"max_episode_steps": 0}])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(FQError, match=str(next(iter(arguments.values())))):
        FunctionQuestEnv(**{"level": 1} | arguments)


def test_what_was_handed_out_is_never_rewritten():
    env, rng = FunctionQuestEnv(11), np.random.default_rng(1)
    obs, info = env.reset(seed=0)
    mask, kept = env.action_masks(), []
    for _ in range(30):
        kept.append((obs, obs.copy(), mask, mask.copy(), info))
        obs, _, terminated, truncated, info = env.step(legal(mask, rng))
        mask = env.action_masks()
        if terminated or truncated:
            break
    assert len({id(info) for *_, info in kept}) == len(kept)
    for obs, obs_then, mask, mask_then, _ in kept:
        np.testing.assert_array_equal(obs, obs_then)
        np.testing.assert_array_equal(mask, mask_then)


def test_illegal_actions_become_wait_and_cost_one_warning_each():
    env = FunctionQuestEnv(11)
    env.reset(seed=0)
    for warnings in range(1, 4):
        *_, terminated, truncated, _ = env.step(layout.N_ACTIONS - 1)
        if terminated or truncated:
            break
        assert env.view()["warnings"] == warnings


def test_an_episode_that_is_over_must_be_reset():
    env = gymnasium.make(fq_env.env_id(1), render_mode="ansi")
    for ask in (env.render, lambda: env.step(0)):
        with pytest.raises(gymnasium.error.ResetNeeded):
            ask()
    env = env.unwrapped
    _, _, info = play(env, np.random.default_rng(0), seed=0)
    assert isinstance(info["is_success"], bool) and isinstance(env.render(), str)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(int(np.flatnonzero(env.action_masks())[0]))


@pytest.mark.parametrize("action", [-1, 128, 10**30, 3.0, np.float32(3), "3", None, np.array([3])])
def test_what_is_no_action_is_refused_and_an_illegal_one_is_played(action):
    env = gymnasium.make(fq_env.env_id(1)).unwrapped
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match=r"is none: an integer from 0 to 127 is"):
        env.step(action)
    illegal = int(np.flatnonzero(~env.action_masks())[0])
    assert env.view()["warnings"] == 0
    env.step(np.int32(illegal))
    assert env.view()["warnings"] == 1


def test_the_step_limit_truncates_and_tells_the_score():
    env = FunctionQuestEnv(11, max_episode_steps=3)
    _, rewards, info = play(env, np.random.default_rng(0), seed=0)
    assert len(rewards) == info["steps"] == 3 and not info["is_success"] and info["status"] == layout.ON


def test_obs_to_dict_names_every_value():
    env = FunctionQuestEnv(11, exposure="full")
    obs, _ = env.reset(seed=0)
    named = env.obs_to_dict(obs)
    assert set(named["globals"]) == {f.name for f in layout.GLOBAL_FEATURES}
    assert set(named["slots"][0]) == {f.name for f in layout.SLOT_FEATURES}
    seen = [value for block in (*named["slots"], *named["pools"], named["globals"]) for value in block.values()]
    np.testing.assert_array_equal(np.sort(np.array(seen, np.float32)[np.nonzero(seen)]), np.sort(obs[obs != 0]))


@pytest.mark.parametrize("level", LEVELS)
def test_render_returns_text(level):
    env = gymnasium.make(fq_env.env_id(level), render_mode="ansi")
    env.reset(seed=0)
    rng, done = np.random.default_rng(0), False
    while not done:
        text = env.render()
        assert "clock" in text and "pool" in text
        *_, terminated, truncated, _ = env.step(legal(env.unwrapped.action_masks(), rng))
        done = terminated or truncated
    assert "score" in env.render()
    silent = FunctionQuestEnv(level)
    silent.reset()
    assert silent.render() is None


def test_the_documentation_names_every_action_by_its_number():
    rows = [line.split("|")[1:3] for line in (FunctionQuestEnv.__doc__ or "").splitlines() if line.strip().startswith("|")]
    named = {}
    for numbers, text in rows:
        _, plus, low = numbers.strip().rpartition("slot * 7 + ")
        for number, name in zip(low.split(","), re.findall(r"`(\w+)`", text), strict=False):
            if plus or number.strip().isdigit():
                named[name] = plus, int(number)
    actions = {verb: ("slot * 7 + ", i) for i, verb in enumerate(layout.VERBS)}
    reserved = ("rule", *(name for name in layout.GLOBAL_ACTIONS if name.startswith("reserved")))
    actions |= {name: ("", layout.WAIT + i) for i, name in enumerate(layout.GLOBAL_ACTIONS) if name not in reserved}
    assert named == actions and f"{layout.N_ACTIONS - len(reserved)}-{layout.N_ACTIONS - 1} | reserved" in str(
        FunctionQuestEnv.__doc__
    )
    info = FunctionQuestEnv(level=1).reset(seed=0)[1]
    assert type(info["instance_seed"]) is np.uint64 and "`instance_seed` (np.uint64)" in str(FunctionQuestEnv.__doc__)


def test_importing_the_package_is_light(root):
    code = "import sys, fq_env; print(sorted({'numba', 'pydantic', 'torch', 'stable_baselines3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
