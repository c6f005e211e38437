"""The old model's stages: their order, the same world to the last bit, checkers, vectors, clones, and what is refused."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check

import fq_env
from fq_env.engine import Engine, make_engine
from fq_env.env import FunctionQuestEnv
from fq_env.errors import FQError
from fq_env.explicit import STAGES, ExplicitEngine
from fq_env.explicit_kernel import STAGE_COLUMN
from fq_env.level import explicit_level, load_level, plain_level
from fq_env.live import live_actions, live_columns
from fq_env.players import PLAYERS, play
from fq_env.sb3 import make_sb3_env
from fq_env.vector import FunctionQuestVectorEnv
from pit import layout
from pit.layout import N_SLOT_FEATURES, N_SLOTS, N_VERBS, STANDARD, WAIT

LEVELS = fq_env.EXPLICIT
ALLOCATE, VALIDATE, INVOKE, STORE, TRACK, RELEASE = range(len(STAGES))
ATTEMPTS = [f.name for f in layout.SLOT_FEATURES].index("attempts")
pytestmark = pytest.mark.filterwarnings("error")


def rows(obs: np.ndarray) -> np.ndarray:
    """The slots of an observation, (16, 25)."""
    return obs[: N_SLOTS * N_SLOT_FEATURES].reshape(N_SLOTS, N_SLOT_FEATURES)


def perform(engine: Engine, action: int) -> tuple[float, int]:
    """What the plain level's `action` is with explicit stages, for the only environment; the reward, and the steps."""
    reward, steps = 0.0, 0

    def step(a: int) -> None:
        nonlocal reward, steps
        assert engine.masks[0, a]
        engine.step_one(a)
        reward, steps = reward + float(engine.rewards[0]), steps + 1

    if action == WAIT:
        step(WAIT)
    else:
        for stage in (ALLOCATE, VALIDATE, INVOKE):
            step(action - STANDARD + stage)
    while not (engine.terminated[0] or engine.truncated[0]) and to_close(engine):
        legal = np.flatnonzero(engine.masks[0])
        assert (legal < WAIT).all() and (legal % N_VERBS >= STORE).all()  # nothing of others, and the clock stands
        step(int(legal[0]))
    return reward, steps


def to_close(engine: Engine) -> bool:
    """Whether calls have ended that are not released."""
    return bool(engine.masks[0, :WAIT].reshape(N_SLOTS, N_VERBS)[:, STORE:].any())


@pytest.mark.parametrize("level", LEVELS)
def test_who_performs_every_stage_plays_the_plain_level_to_the_last_bit(level):
    plain = Engine(plain_level(level), 1, autoreset="disabled")
    explicit = make_engine(explicit_level(level), 1, autoreset="disabled")
    rng = np.random.default_rng(level)
    for instance in range(6):
        for engine in (plain, explicit):
            engine.reset(split="test", instances=[instance])
        steps = 0
        while not plain.terminated[0]:
            legal = plain.masks[0].reshape(-1)
            np.testing.assert_array_equal(explicit.masks[0, ALLOCATE:WAIT:N_VERBS], legal[STANDARD:WAIT:N_VERBS])
            assert explicit.masks[0, WAIT] == legal[WAIT] and explicit.masks[0].sum() == legal.sum()
            seen, stages = rows(explicit.obs[0]).copy(), slice(STAGE_COLUMN, STAGE_COLUMN + len(STAGES))
            seen[:, stages] = 0.0
            np.testing.assert_array_equal(seen, rows(plain.obs[0]))
            action = int(rng.choice(np.flatnonzero(legal)))
            plain.step_one(action)
            reward, took = perform(explicit, action)
            steps += took
            assert reward == plain.rewards[0]
            np.testing.assert_array_equal(explicit.obs[0, layout.POOL_OFFSET :], plain.obs[0, layout.POOL_OFFSET :])
        assert explicit.terminated[0]
        ours, theirs = explicit.episodes[0], plain.episodes[0]
        same = [name for name in ours.dtype.names if name != "steps"]
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours["steps"] == steps > 4 * theirs["calls"]


def test_instances_are_those_of_the_level_itself():
    seeds = [make_engine(level, 4, split="test", autoreset="disabled") for level in (11, "plain-11", "explicit-11")]
    for engine in seeds:
        engine.reset()
    assert len({tuple(engine.instance_seeds.tolist()) for engine in seeds}) == 1


def test_stages_are_due_one_by_one_and_shown():
    engine = make_engine("explicit-6", 1, autoreset="disabled")
    engine.reset(split="validation", instances=[3])
    for stage in (ALLOCATE, VALIDATE, INVOKE):
        assert np.flatnonzero(engine.masks[0, :N_VERBS]).tolist() == [stage]
        assert rows(engine.obs[0])[0, STAGE_COLUMN : STAGE_COLUMN + 6].tolist() == [float(k == stage) for k in range(6)]
        now, calls = engine._hots["now"][0], engine._hots["n_calls"][0]
        assert engine.step_one(stage) == 0
        assert (engine.rewards[0] == 0.0 and engine._hots["now"][0] == now) or stage == INVOKE
        assert (engine._hots["next_call"][0] > 0) == (stage == INVOKE) and calls == 0
    while not engine.masks[0, STORE]:
        engine.step_one(WAIT)
    first = rows(engine.obs[0])[0]
    assert first[0] == np.float32(1 / 5) and first[STAGE_COLUMN + STORE] == 1.0 and np.count_nonzero(first) == 2
    assert np.flatnonzero(engine.masks[0]).tolist() == [STORE]  # the clock stands, and nothing of others may be done
    shown = rows(engine.obs[0])[1:].copy()
    engine.step_one(STORE)
    engine.step_one(TRACK)
    assert np.flatnonzero(engine.masks[0]).tolist() == [RELEASE]
    engine.step_one(RELEASE)
    np.testing.assert_array_equal(rows(engine.obs[0])[:-1], shown)  # what follows moves up, and may be allocated now
    assert engine.masks[0, ALLOCATE] and not to_close(engine)


def test_a_task_keeps_its_stage_wherever_its_slot_moves_and_a_new_attempt_begins_anew():
    engine = make_engine("explicit-8", 1, autoreset="disabled")
    moved = again = 0
    for instance in range(12):
        engine.reset(split="train", instances=[instance])
        stages: dict[int, int] = {}
        attempts: dict[int, int] = {}
        places: dict[int, int] = {}
        rng = np.random.default_rng(instance)
        while not engine.terminated[0]:
            legal = np.flatnonzero(engine.masks[0])
            action = int(rng.choice(legal))
            if not to_close(engine):
                heads = engine._hots["slots"]["head"][0, : engine._hots["n_slots"][0]].tolist()
                for slot, head in enumerate(heads):
                    stage = stages.get(head, ALLOCATE)
                    assert rows(engine.obs[0])[slot, STAGE_COLUMN + stage] == 1.0
                    moved += stage > ALLOCATE and places.get(head, slot) != slot
                    tried = float(rows(engine.obs[0])[slot, ATTEMPTS])
                    again += tried > attempts.get(head, 0.0) and stage == ALLOCATE
                    attempts[head], places[head] = tried, slot
                if action < WAIT:
                    head, stage = heads[action // N_VERBS], action % N_VERBS
                    stages[head] = (stage + 1) % STORE
            engine.step_one(action)
    assert moved > 3 and again > 3


@pytest.mark.parametrize("level", LEVELS)
def test_an_illegal_action_is_warned_of_and_becomes_a_legal_one(level):
    env = FunctionQuestEnv(f"explicit-{level}")
    env.reset(seed=0)
    warnings = 0
    for action in (INVOKE, RELEASE, 6, 127):
        mask = env.action_masks()
        assert not mask[action]
        obs, *_, info = env.step(action)
        warnings += 1
        named = env.obs_to_dict(obs)["globals"]
        assert named["last_blocked"] == 1.0 and named["warnings"] == pytest.approx(warnings / (warnings + 4))
    rng, ended = np.random.default_rng(0), False
    while not ended:  # an agent that sees no mask comes to an end, too
        _, _, terminated, truncated, info = env.step(int(rng.integers(128)))
        ended = terminated or truncated
    assert info["warnings"] > warnings


@pytest.mark.parametrize("level", LEVELS)
def test_checkers_accept_the_ids_and_observations_stay_in_bounds(level):
    name = fq_env.explicit_id(level)
    for exposure in layout.EXPOSURES:
        gymnasium_check(gymnasium.make(name, exposure=exposure).unwrapped)
        sb3_check(gymnasium.make(name, exposure=exposure))
    env = gymnasium.make(name).unwrapped
    own = load_level(f"explicit-{level}")
    columns, actions = live_columns(own), live_actions(own)
    bounds = np.array([(f.low, f.high) for _, f in layout.columns()], np.float32)
    rng, total = np.random.default_rng(0), 0.0
    for seed in range(4):
        obs, info = env.reset(seed=seed)
        phi0, total, ended = info["phi0"], 0.0, False
        while not ended:
            assert (obs >= bounds[:, 0]).all() and (obs <= bounds[:, 1]).all() and not obs[~columns].any()
            assert info["action_mask"].any() and not info["action_mask"][~actions].any()
            obs, reward, terminated, truncated, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
            total, ended = total + reward, terminated or truncated
        assert terminated and abs(total - (info["total"] - phi0)) < 1e-6 and info["warnings"] <= info["wrong_calls"]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_and_scalar_environments_are_the_same(mode):
    vector = FunctionQuestVectorEnv(3, "explicit-8", autoreset_mode=mode, max_episode_steps=60)
    singles = [FunctionQuestEnv("explicit-8", max_episode_steps=60) for _ in range(3)]
    obs, infos = vector.reset(seed=[4, 5, 6])
    single = [env.reset(seed=seed) for env, seed in zip(singles, (4, 5, 6), strict=True)]
    over, rng, ends = [False] * 3, np.random.default_rng(0), 0
    for _ in range(400):
        masks = vector.action_masks()
        actions = np.where(masks, rng.random(masks.shape), -1).argmax(axis=1)
        if mode is AutoresetMode.DISABLED and any(over):
            obs, infos = vector.reset(options={"reset_mask": np.array(over)})
            single = [env.reset() if ended else s for env, s, ended in zip(singles, single, over, strict=True)]
            over = [False] * 3
        else:
            obs, rewards, terminated, truncated, infos = vector.step(actions)
            for i, env in enumerate(singles):
                if over[i]:  # next step
                    single[i], over[i] = env.reset(), False
                    continue
                result: Any = env.step(actions[i])
                single[i] = result[0], result[-1]
                assert (rewards[i], terminated[i], truncated[i]) == result[1:4]
                over[i] = terminated[i] or truncated[i]
                ends += over[i]
                if over[i] and mode is AutoresetMode.SAME_STEP:
                    np.testing.assert_array_equal(infos["final_obs"][i], result[0])
                    assert infos["final_info"]["total"][i] == result[-1]["total"]
                    single[i], over[i] = env.reset(), False
        for i, (one, env) in enumerate(zip(single, singles, strict=True)):
            np.testing.assert_array_equal(obs[i], one[0])
            np.testing.assert_array_equal(vector.action_masks()[i], env.action_masks())
    assert ends > 5


def test_a_checkpoint_of_the_adapter_holds_the_stages():
    def run(env: Any, steps: int, first: int) -> list[np.ndarray]:
        seen = []
        for t in range(steps):
            masks = env.action_masks()
            actions = np.where(masks, np.random.default_rng([first, t]).random(masks.shape), -1).argmax(axis=1)
            obs, rewards, *_ = env.step(actions)
            seen += [obs, rewards, env.action_masks()]
        return seen

    one, two = make_sb3_env("explicit-11", 8, seed=3), make_sb3_env("explicit-11", 8, seed=9)
    for env in (one, two):
        env.reset()
    run(one, 37, 0)
    two.set_state(one.state())
    for a, b in zip(run(one, 60, 1), run(two, 60, 1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_refused_says_what_would_be_right():
    with pytest.raises(FQError, match="cannot share"):
        make_engine(["explicit-11", "plain-11"], 2)
    engine = make_engine("explicit-11", 1)
    assert isinstance(engine, ExplicitEngine)
    engine.reset()
    with pytest.raises(FQError, match="plain-11"):
        engine.play(PLAYERS["fifo"])
    with pytest.raises(FQError, match="level 77 does not exist"):
        load_level("explicit-77")
    assert load_level("explicit-11") is explicit_level(11)
    totals = [play(level, "critical_path", split="test", n=8)["total"] for level in ("plain-11", "explicit-11")]
    np.testing.assert_array_equal(*totals)  # rules play the same world, without stages
