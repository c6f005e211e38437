"""Rule players: the linear rule against plain Python, its named weights, and what every rule must keep."""

from __future__ import annotations

import numpy as np
import pytest

from fq_env.engine import Engine, Player
from fq_env.level_files import LEVELS
from fq_env.players import PLAYERS, calibrated, play
from pit import layout as L
from pit import state
from pit.errors import PitError
from pit.rules import parameters, table_of, weight_names, weights_of


def best_by_hand(obs: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> int:
    """The legal action of the largest linear score, the first of equals; sums run in the order of the features."""
    pools = [float(x) for x in obs[L.POOL_OFFSET : L.GLOBAL_OFFSET]]
    last = [float(x) for x in obs[L.GLOBAL_OFFSET :]]
    best, most = -1, 0.0
    for action in np.flatnonzero(mask).tolist():
        if action < L.WAIT:
            g, verb = divmod(action, L.N_VERBS)
            own = weights[verb * L.N_VERB_WEIGHTS :][: L.N_VERB_WEIGHTS].tolist()
            features = [float(x) for x in obs[g * L.N_SLOT_FEATURES :][: L.N_SLOT_FEATURES]]
            whole = own[1 + L.N_SLOT_FEATURES :]
            base = own[0] + (total(pools, whole) + total(last, whole[len(pools) :]))
            score = base + total(features, own[1:])
        else:
            own = weights[L.N_VERBS * L.N_VERB_WEIGHTS + (action - L.WAIT) * L.N_GLOBAL_WEIGHTS :].tolist()
            score = own[0] + (total(pools, own[1:]) + total(last, own[1 + len(pools) :]))
        if best < 0 or score > most:
            best, most = action, score
    return best


def total(features: list[float], weights: list[float]) -> float:
    value = 0.0
    for x, w in zip(features, weights, strict=False):
        value += x * w
    return value


@pytest.mark.parametrize("level", LEVELS)
def test_the_linear_rule_is_the_sum_that_it_says(level: int) -> None:
    rng = np.random.default_rng(level)
    engine = Engine(level, 1, split="validation", autoreset="disabled")
    seen = set()
    for instance in range(4):
        engine.reset(instances=[instance])
        for _ in range(40):
            weights = rng.normal(size=L.N_WEIGHTS)
            obs, mask = engine.obs[0].copy(), engine.masks[0].copy()
            action = int(engine.advise(calibrated(weights))[0])
            assert action == best_by_hand(obs, mask, weights)
            assert engine.obs[0].tobytes() == obs.tobytes() and engine.masks[0].tobytes() == mask.tobytes()
            seen.add(action)
            engine.step(np.array([action]))
            if engine.terminated[0]:
                break
    assert len(seen) > 1


def test_weights_have_names() -> None:
    weights = np.random.default_rng(0).normal(size=L.N_WEIGHTS)
    assert len(weight_names()) == len(set(weight_names())) == L.N_WEIGHTS
    np.testing.assert_array_equal(weights_of(table_of(weights)), weights)
    assert weights_of({"wait": {"bias": 2.0}})[weight_names().index(("wait", "bias"))] == 2.0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"stand": {"bias": 1.0}}, "stand.bias is unknown"),
        ({"lite": {"rnk": 1.0}}, "lite.rnk is unknown"),
        ({"lite": {"rank": float("nan")}}, "lite.rank is nan"),
    ],
)
def test_wrong_weights_are_refused_by_name(table: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(PitError, match=said):
        weights_of(table)


def test_a_rule_takes_its_own_parameters_only() -> None:
    with pytest.raises(PitError, match="no parameter 'weights'"):
        parameters("fifo", {"weights": {}})
    with pytest.raises(PitError, match="no parameter 'theta'"):
        parameters("calibrated", {"theta": 1.0})


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("level", LEVELS)
def test_rules_act_legally_and_finish(level: int, name: str) -> None:
    episodes = play(level, name, split="train", n=24)
    wrong = episodes["wrong_calls"] + episodes["gated_calls"]  # a warning is the caller's mistake, never the rule's
    assert (episodes["warnings"] <= wrong).all()
    assert (episodes["status"] != L.ON).all()


def test_sequential_runs_one_call_at_a_time_and_a_cap_holds() -> None:
    engine = Engine(11, 8, split="validation", autoreset="disabled")
    for player, most in ((PLAYERS["sequential"], 1), (PLAYERS["smallest_remaining"]._replace(theta=2.0), 2)):
        engine.reset(instances=list(range(8)))
        highest = 0
        while (engine._hots["status"] == L.ON).any():
            engine.step(engine.advise(player))
            highest = max(highest, int(engine._hots["n_calls"].max()))
        assert highest == most


def test_fifo_takes_what_has_been_ready_longest() -> None:
    engine = Engine(12, 1, split="validation", autoreset="disabled")
    engine.reset(instances=[0])
    for _ in range(30):
        action = int(engine.advise(Player(0))[0])
        slots = engine._hots["slots"][0][: int(engine._hots["n_slots"][0])]
        if action < L.WAIT:
            tasks = engine.block.rows(engine.memory[0], "task_at", state.TASK, int(engine._hots["n_tasks"][0]))
            legal = [int(s["head"]) for s in slots if s["legal"] >> L.STANDARD & 1]
            chosen = int(slots["head"][action // L.N_VERBS])
            assert chosen == min(legal, key=lambda i: (tasks["ready_time"][i], i))
        engine.step(np.array([action]))
        if engine.terminated[0]:
            break
