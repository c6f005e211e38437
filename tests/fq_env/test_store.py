"""The store in the game: bytes are conserved, tiers keep their capacities, nothing that unfinished work reads is deleted."""

from __future__ import annotations

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.level import Level
from fq_env.players import PLAYERS, lookahead, play
from fq_env.state import GOAL
from pit import state
from pit.layout import DONE, ON, SOLVED, TIER_GONE
from tests.fq_env.small_worlds import NOISE, STORE_LEVEL, STORE_LEVELS, ageing_system, small_level, small_system


def check(engine: Engine) -> None:
    """The laws of the store in environment 0, and that the world counts what is left as it is."""
    memory, block = engine.memory[0], engine.block
    n = int(block.hot(memory)["n_tasks"][0])
    tasks, kept = block.rows(memory, "task_at", state.TASK, n), block.rows(memory, "artifact_at", state.ARTIFACT, n)
    store = block.rows(memory, "store_at", state.STORE, 1)[0]
    done = tasks["state"] == DONE
    for tier in range(TIER_GONE):
        used = int(kept["size"][done & (kept["tier"] == tier)].sum())
        assert used == store["used"][tier]
    for used, most in zip(store["used"][:2].tolist(), store["capacity"][:2].tolist(), strict=True):
        assert most == 0 or used <= most
    links = block.rows(memory, "pred_at", state.LINK, int(tasks["pred_to"].max(initial=0)))["task"]
    for t in tasks[tasks["state"] < DONE]:
        inputs = links[t["pred_from"] : t["pred_to"]]
        assert not (done[inputs] & (kept["tier"][inputs] == TIER_GONE)).any()
    results = done & (tasks["succ_from"] == tasks["succ_to"])
    assert not (results & (kept["tier"] == TIER_GONE)).any()
    assert (kept["tier"][done] == kept["told"][done]).all()
    goals, world = block.rows(memory, "goal_at", GOAL, n), block.hidden(memory)[0]
    left = (goals["needed"] == 1) & ~done
    assert world["cost_left"] == pytest.approx(goals["cost"][left].sum(), rel=1e-9, abs=1e-6)
    assert world["work_left"] == pytest.approx(goals["least"][left].sum(), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("name", STORE_LEVELS)
def test_nothing_is_lost_and_nothing_needed_is_deleted(name: str) -> None:
    level, rng, ends = STORE_LEVELS[name], np.random.default_rng(5), set()
    engine = Engine(level, 1, autoreset="disabled")
    totals = dict.fromkeys(("moved", "deleted", "fetches"), 0)
    for instance in range(30):
        engine.reset(split="train", instances=[instance])
        for _ in range(400):
            if engine._hots["status"][0] != ON:
                break
            check(engine)
            engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
        ends.add(int(engine._hots["status"][0]))
        for key in totals:
            totals[key] += int(engine.episodes[key][0])
    assert SOLVED in ends and totals["moved"] > 100 and totals["fetches"] > 20
    assert (totals["deleted"] > 100) == (level.system.store is not None and level.system.store.cold is not None)


def plain(**store: object) -> Level:
    system = small_system(store={"hot": 30, **store}) if store is not None else small_system()
    return small_level(system, {"tasks": [12, 24]}, draw=NOISE | {"size": [10, 20]})


def test_room_enough_is_no_store_at_all() -> None:
    """Sizes that fit, or fetches that take no time, change nothing that an agent sees."""
    without = small_level(small_system(), {"tasks": [12, 24]}, draw=NOISE)
    roomy = small_level(small_system(store={"hot": 10**6}), {"tasks": [12, 24]}, draw=NOISE | {"size": [10, 20]})
    for other in (roomy, plain(warm=30)):
        pair = [Engine(level, 1, seed=3, autoreset="same_step") for level in (without, other)]
        rng = np.random.default_rng(0)
        for engine in pair:
            engine.reset()
        for _ in range(300):
            actions = np.where(pair[0].masks, rng.random(pair[0].masks.shape), -1).argmax(axis=1)
            for engine in pair:
                engine.step(actions)
            assert pair[0].obs.tobytes() == pair[1].obs.tobytes() and pair[0].rewards.tobytes() == pair[1].rewards.tobytes()
            assert pair[0].masks.tobytes() == pair[1].masks.tobytes()


def test_capacity_matters_and_lookahead_fetches_less() -> None:
    slow = {"fetch_seconds": {"warm": 2.0, "cold": 4.0}, "warm": 60}
    totals = [
        play(level, "critical_path", split="validation", n=128) for level in (plain(**slow), plain(**slow | {"hot": 300}))
    ]
    assert totals[0]["makespan"].mean() > 1.05 * totals[1]["makespan"].mean() and (totals[0]["fetches"] > 0).mean() > 0.8
    base = PLAYERS["critical_path"]
    here, ahead = (play(plain(**slow), player, split="validation", n=24) for player in (base, lookahead(base, 4)))
    assert (ahead["total"] - here["total"]).mean() > 0.02


def test_sizes_are_drawn_per_task_and_shared_by_twins() -> None:
    engine = Engine(STORE_LEVEL, 1, split="train", autoreset="disabled")
    rng, sizes, pairs = np.random.default_rng(1), set[int](), 0
    for instance in range(12):
        engine.reset(instances=[instance])
        while not (engine.terminated[0] or engine.truncated[0]):
            engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
        memory, block = engine.memory[0], engine.block
        n = int(block.hot(memory)["n_tasks"][0])
        tasks, kept = block.rows(memory, "task_at", state.TASK, n), block.rows(memory, "artifact_at", state.ARTIFACT, n)
        made = tasks["state"] == DONE
        sizes |= set(kept["size"][made].tolist())
        for content in set(kept["content"][made].tolist()) - {0}:
            own = kept["size"][made & (kept["content"] == content)]
            assert (own == own[0]).all()
            pairs += len(own) > 1
    assert min(sizes) >= 0 and max(sizes) < 30 and len(sizes) > 20 and pairs > 5


def test_a_level_with_a_store_and_one_without_share_an_engine() -> None:
    other = small_level(ageing_system(), draw=NOISE)
    mixed = Engine([STORE_LEVEL, other], 2, autoreset="disabled")
    alone = [Engine(level, 1, autoreset="disabled") for level in (STORE_LEVEL, other)]
    mixed.reset(split="train", instances=[1, 1])
    for engine in alone:
        engine.reset(split="train", instances=[1])
    rng = np.random.default_rng(2)
    for _ in range(80):
        actions = np.where(mixed.masks, rng.random(mixed.masks.shape), -1).argmax(axis=1)
        if (mixed.terminated | mixed.truncated).any():
            break
        mixed.step(actions)
        for i, engine in enumerate(alone):
            engine.step(actions[i : i + 1])
            assert mixed.obs[i].tobytes() == engine.obs[0].tobytes() and mixed.rewards[i] == engine.rewards[0]
