"""Many environments at once: equal to single ones bit for bit, in three autoreset modes, for any n and threads."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fq_env
from fq_env.env import FunctionQuestEnv
from fq_env.errors import FQError
from fq_env.level import LEVELS
from fq_env.sb3 import FunctionQuestVecEnv
from fq_env.vector import FunctionQuestVectorEnv
from pit import layout

pytestmark = pytest.mark.filterwarnings("error")


def choose(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random legal action (n,) per row; NaN-free because no row is empty."""
    assert masks.any(axis=1).all()
    return np.where(masks, rng.random(masks.shape), -1).argmax(axis=1)


CASES = [(level, n, threads) for level in LEVELS for n, threads in ((1, 1), (7, 2))]
MANY = [(level, 256, threads) for level in (1, 11, 14) for threads in (1, 2)]


@pytest.mark.parametrize(("level", "n", "threads"), [*CASES, *MANY])
def test_a_vector_is_its_environments_one_by_one(level, n, threads):
    seeds = np.random.default_rng(n).integers(2**31, size=n).tolist()
    vector = FunctionQuestVectorEnv(n, level, threads=threads, autoreset_mode=AutoresetMode.SAME_STEP)
    singles = [FunctionQuestEnv(level) for _ in range(n)]
    rng = np.random.default_rng(0)
    obs, infos = vector.reset(seed=seeds)
    pairs = [env.reset(seed=seed) for env, seed in zip(singles, seeds, strict=True)]
    ends = 0
    for _ in range(300 if n < 256 else 120):
        np.testing.assert_array_equal(obs, np.array([o for o, _ in pairs]))
        masks = vector.action_masks()
        np.testing.assert_array_equal(masks, infos["action_mask"])
        np.testing.assert_array_equal(masks, np.array([env.action_masks() for env in singles]))
        actions = choose(masks, rng)
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        pairs = []
        for i, env in enumerate(singles):
            o, reward, end, cut, info = env.step(actions[i])
            assert (reward, end, cut) == (rewards[i], terminated[i], truncated[i])
            if end or cut:
                ends += 1
                assert infos["_final_obs"][i] and infos["_final_info"][i] and infos["_phi0"][i]
                np.testing.assert_array_equal(infos["final_obs"][i], o)
                for key, value in info.items():
                    np.testing.assert_array_equal(infos["final_info"][key][i], value)
                o, info = env.reset()
                assert infos["instance_seed"][i] == info["instance_seed"] and infos["phi0"][i] == info["phi0"]
            pairs.append((o, info))
    assert ends > 0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("level", LEVELS)
def test_autoreset_and_infos_are_those_of_gymnasiums_own_vector(level, mode):
    n, seeds = 5, [3, 1, 4, 15, 9]
    ours = FunctionQuestVectorEnv(n, level, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: FunctionQuestEnv(level)] * n, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    a, b = ours.reset(seed=seeds), theirs.reset(seed=seeds)
    ended = 0
    for _ in range(300):
        for x, y in zip(a[:-1], b[:-1], strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
        assert_same_infos(a[-1], b[-1])
        actions = choose(ours.action_masks(), rng)
        a, b = ours.step(actions), theirs.step(actions)
        ended += int(a[2].sum() + a[3].sum())
    assert ended > 0


def assert_same_infos(ours: dict, theirs: dict) -> None:
    """Same keys, same `_key` masks, and the same values where a mask says that there is one."""
    assert ours.keys() >= theirs.keys()
    for key, where in theirs.items():
        if not key.startswith("_"):
            continue
        np.testing.assert_array_equal(ours[key], where)
        if isinstance(theirs[key[1:]], dict):
            assert_same_infos(ours[key[1:]], theirs[key[1:]])
        else:
            for i in np.flatnonzero(where):
                np.testing.assert_array_equal(ours[key[1:]][i], theirs[key[1:]][i])


def test_disabled_autoreset_waits_for_a_reset_mask():
    n = 6
    env = FunctionQuestVectorEnv(n, 1, autoreset_mode="Disabled")
    obs, _ = env.reset(seed=0)
    rng, ended = np.random.default_rng(0), np.zeros(n, bool)
    while not ended.any():
        obs, _, terminated, truncated, infos = env.step(choose(env.action_masks(), rng))
        ended = terminated | truncated
    np.testing.assert_array_equal(infos["_total"], ended)
    with pytest.raises(FQError, match="reset_mask"):
        env.step(np.zeros(n, int))
    again, infos = env.reset(options={"reset_mask": ended})
    np.testing.assert_array_equal(again[~ended], obs[~ended])
    assert (again[ended] != obs[ended]).any(axis=1).all()
    np.testing.assert_array_equal(infos["_phi0"], ended)
    env.step(choose(env.action_masks(), rng))


def test_make_vec_gives_the_native_environment_and_truncates_as_the_single_one():
    name = fq_env.env_id(11)
    vector = gymnasium.make_vec(name, num_envs=3, max_episode_steps=4)
    assert isinstance(vector, FunctionQuestVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    single = gymnasium.make(name, max_episode_steps=4)
    _, _ = vector.reset(seed=[5, 6, 7])
    single.reset(seed=6)
    rng = np.random.default_rng(0)
    for _ in range(4):
        actions = choose(vector.action_masks(), rng)
        _, _, _, truncated, infos = vector.step(actions)
        assert single.step(actions[1])[3] == truncated[1]
    assert truncated.all() and (infos["steps"] == 4).all()
    statistics = gymnasium.wrappers.vector.RecordEpisodeStatistics(gymnasium.make_vec(name, num_envs=3, max_episode_steps=4))
    statistics.reset(seed=0)
    for _ in range(4):
        *_, infos = statistics.step(choose(statistics.unwrapped.action_masks(), rng))
    assert (infos["episode"]["l"] == 4).all()


def test_named_instances_one_per_environment():
    vector = FunctionQuestVectorEnv(3, 11)
    obs, infos = vector.reset(options={"split": "validation", "instance": [4, 5, 6]})
    for i, instance in enumerate((4, 5, 6)):
        single, info = FunctionQuestEnv(11).reset(options={"split": "validation", "instance": instance})
        np.testing.assert_array_equal(obs[i], single)
        assert infos["instance_seed"][i] == info["instance_seed"]
    obs, _ = vector.reset(options={"split": "validation", "instance": 4})
    assert (obs == obs[0]).all()


def test_seeds_of_neighbouring_vectors_share_no_instance():
    seen = []
    for seed in range(4):
        env = FunctionQuestVectorEnv(32, 1)
        for reset in ({"seed": seed}, {}, {}):
            seen += env.reset(**reset)[1]["instance_seed"].tolist()
    assert len(set(seen)) == len(seen) == 4 * 32 * 3


def test_levels_mix_in_one_vector():
    env = FunctionQuestVectorEnv(2, [1, 11], exposure="full")
    obs, _ = env.reset(seed=[0, 0])
    for i, level in enumerate((1, 11)):
        np.testing.assert_array_equal(obs[i], FunctionQuestEnv(level, exposure="full").reset(seed=0)[0])


def test_copies_are_the_callers_and_live_buffers_are_asked_for():
    for copy in (True, False):
        env = FunctionQuestVectorEnv(4, 11, copy=copy)
        obs, _ = env.reset(seed=0)
        then = obs.copy()
        for _ in range(5):
            env.step(choose(env.action_masks(), np.random.default_rng(0)))
        assert (obs == then).all() == copy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"autoreset_mode": "later"}, "later"), ({"num_envs": 0}, "0"), ({"level": [1]}, "1")],
)
def test_arguments_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(FQError, match=words):
        FunctionQuestVectorEnv(**{"num_envs": 2, "level": 1} | arguments)


@pytest.mark.parametrize("kind", ["vector", "sb3"])
def test_what_one_environment_refuses_many_refuse(kind):
    def made(n, level=1):
        return FunctionQuestVectorEnv(n, level) if kind == "vector" else FunctionQuestVecEnv(level, n)

    key = "num_envs" if kind == "vector" else "n_envs"
    for n, level, words in ((-1, 1, f"{key} is -1"), (1.5, 1, f"{key} is 1.5"), (3, [1, 1], f"{key} is 3, but 2 levels")):
        with pytest.raises(FQError, match=words):
            made(n, level)
    env = made(3)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\) before step\(\)"):
        env.step(np.full(3, layout.WAIT))
    env.reset()
    before = env.action_masks()
    for actions, words in (
        ([112, 128, 112], "action 128 of environment 1 is none: an integer from 0 to 127 is"),
        ([112, 112, -1], "action -1 of environment 2"),
        (np.array([2**64 - 1, 0, 0], np.uint64), "action 18446744073709551615 of environment 0"),
        ([112.0, 112.0, 112.0], r"actions are float64 of shape \(3,\); 3 integers from 0 to 127"),
        ([112], r"of shape \(1,\)"),
        ([[112, 112, 112]], r"of shape \(1, 3\)"),
        ([112, None, 112], "actions are object"),
    ):
        with pytest.raises(gymnasium.error.InvalidAction, match=words):
            env.step(np.asarray(actions))
    np.testing.assert_array_equal(env.action_masks(), before)
    for actions in ([112] * 3, (112, 0, 127), np.full(3, 112, np.int32), np.full(6, 112)[::2]):
        env.step(actions)


def test_who_was_left_out_of_the_first_reset_cannot_play():
    env = FunctionQuestVectorEnv(3, 1, autoreset_mode="Disabled")
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"in environments \[1\]"):
        env.step(np.full(3, layout.WAIT))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(np.full(3, layout.WAIT))


def test_resets_that_make_no_sense_are_refused():
    env = FunctionQuestVectorEnv(2, 1)
    for reset, words in (
        ({"seed": [1, 2, 3]}, "3 seeds"),
        ({"options": {"reset_mask": np.array([True])}}, r"shape \(1,\)"),
        ({"seed": 1, "options": {"reset_mask": np.array([True, False])}}, "list of 2 seeds"),
        ({"options": {"split": "test", "instance": [1, 2, 3]}}, "3"),
    ):
        with pytest.raises(FQError, match=words):
            env.reset(**reset)


def test_render_shows_every_environment():
    env = FunctionQuestVectorEnv(2, 1, render_mode="ansi")
    env.reset(seed=0)
    assert len(env.render()) == 2 and all("clock" in text for text in env.render())
