"""Who decides: the policy, and the rule behind it when the policy cannot."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from conductor.decision_maker import DecisionMaker
from conductor.manifest import RuleSpec
from conductor.policy import MlpSpec, NetworkSpec, Policy, SlotsSpec, make_policy
from pit.handle import Event, Pit
from pit.layout import ARRIVE, STANDARD, WAIT
from pit.spec import WorkflowSpec
from tests.conductor.helpers import NETWORK, SLOTS, random_observations, random_tensors, small_workflow


@pytest.fixture
def pit() -> Pit:
    pit = Pit(WorkflowSpec.model_validate(small_workflow()))
    pit.apply(Event(ARRIVE, 0))
    return pit


def policy_that(bias: float) -> Policy:
    return make_policy(NETWORK, {**random_tensors(), "action.bias": np.full(128, bias, np.float32)})


def mlp_by_hand(t: dict[str, np.ndarray], layers: int, activation: str, obs: np.ndarray) -> np.ndarray:
    """The logits of one observation in float64."""
    f = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    for i in range(layers):
        obs = f(t[f"policy.{i}.weight"] @ obs + t[f"policy.{i}.bias"])
    return t["action.weight"] @ obs + t["action.bias"]


def slots_by_hand(t: dict[str, np.ndarray], activation: str, obs: np.ndarray) -> np.ndarray:
    """The logits of one observation in float64, slot by slot."""
    f = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    seen = obs[400:]
    encoded = {}
    for slot, x in enumerate(obs[:400].reshape(16, 25)):
        if x[0] != 0:
            first = f(t["slot.weight"] @ x + t["context.weight"] @ seen + t["context.bias"])
            encoded[slot] = f(t["encoder.weight"] @ first + t["encoder.bias"])
    width = len(t["encoder.bias"])
    mean = sum(encoded.values(), np.zeros(width)) / max(len(encoded), 1)
    highest = np.max(list(encoded.values()), axis=0) if encoded else np.zeros(width)
    summary = f(t["summary.weight"] @ np.concatenate([mean, highest, seen]) + t["summary.bias"])
    logits = np.zeros(128)
    for slot, e in encoded.items():
        member = f(t["own.weight"] @ e + t["shared.weight"] @ summary + t["shared.bias"])
        logits[7 * slot : 7 * slot + 7] = t["verbs.weight"] @ member + t["verbs.bias"]
    logits[112:] = t["globals.weight"] @ summary + t["globals.bias"]
    return logits


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layers", [[], [24], [20, 12, 8]])
def test_mlp_is_what_its_tensors_say(layers: list[int], activation: str) -> None:
    network = MlpSpec.model_validate({"kind": "mlp", "layers": layers, "activation": activation})
    obs = random_observations(51)
    obs[34:, 30] += 0.5  # a feature of an empty slot, which the Pit never shows, counts all the same
    check(network, lambda t, row: mlp_by_hand(t, len(layers), activation, row), obs)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", [[12, 10], [8, 20]])
def test_slots_are_what_their_tensors_say(widths: list[int], activation: str) -> None:
    network = SlotsSpec.model_validate({"kind": "slots", "widths": widths, "activation": activation})
    check(network, lambda t, row: slots_by_hand(t, activation, row), random_observations(51))
    policy = make_policy(network, random_tensors(3, network))
    assert policy.logits_many(random_observations(1)).shape == (1, 128), "no slot in use at all"


def check(network: NetworkSpec, by_hand: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray], obs: np.ndarray) -> None:
    tensors = random_tensors(3, network)
    policy = make_policy(network, tensors)
    exact = np.array([by_hand({name: t.astype(np.float64) for name, t in tensors.items()}, row) for row in obs])
    assert np.abs(exact).max() > 0.5
    np.testing.assert_allclose(np.array([policy.logits(row).copy() for row in obs]), exact, rtol=1e-4, atol=1e-5)
    many = policy.logits_many(obs)
    np.testing.assert_allclose(many, exact, rtol=1e-4, atol=1e-5)
    assert many.dtype == np.float32
    assert policy.logits_many(obs[:0]).shape == (0, 128)


def test_masked_argmax_is_legal_and_the_first_of_equals() -> None:
    tensors = {name: np.zeros_like(array) for name, array in random_tensors().items()}
    policy = make_policy(NETWORK, tensors)
    mask = np.zeros(128, bool)
    mask[[40, 41]] = True
    assert policy.act(np.ones(512, np.float32), mask) == 40
    tensors["action.bias"] = np.arange(128, dtype=np.float32)
    assert make_policy(NETWORK, tensors).act(np.ones(512, np.float32), mask) == 41


@pytest.mark.parametrize(
    ("network", "tensor", "number"),
    [
        *((SLOTS, "globals.bias", number) for number in (np.nan, np.inf, -np.inf)),
        *((SLOTS, name, np.nan) for name in ("context.bias", "encoder.bias", "summary.bias", "shared.bias", "verbs.bias")),
        (NETWORK, "policy.0.bias", np.nan),  # which a ReLU must let through
    ],
)
def test_a_logit_that_is_not_finite_is_told(network: NetworkSpec, tensor: str, number: float) -> None:
    tensors = random_tensors(0, network)
    tensors[tensor][5] = number
    mask = np.ones(128, bool)
    assert make_policy(network, tensors).act(random_observations(4)[3], mask) == -1


def test_what_was_seen_before_leaves_no_trace() -> None:
    observations = random_observations(8)
    for network in (NETWORK, SLOTS):
        tensors = random_tensors(3, network)
        policy = make_policy(network, tensors)
        for row in observations:
            assert (policy.logits(row) == make_policy(network, tensors).logits(row)).all()


def test_policy_decides_and_is_counted(pit: Pit) -> None:
    maker = DecisionMaker("adaptive", policy_that(0.0), None)
    decision = maker.choose(pit, pit.observe(), pit.mask())
    assert decision.by == "policy" and pit.mask()[decision.action] and maker.counts == {"policy": 1}


@pytest.mark.parametrize(
    ("policy", "seconds", "note"),
    [
        (None, 1.0, "absent"),
        (policy_that(np.nan), 1.0, "not finite"),
        (policy_that(np.inf), 1.0, "not finite"),
        (policy_that(0), 0.0, "late"),
    ],
)
def test_the_rule_decides_when_the_policy_cannot(pit: Pit, policy: Policy | None, seconds: float, note: str) -> None:
    maker = DecisionMaker("adaptive", policy, RuleSpec(name="critical_path_warm_wait", params={"theta": 0.5}), seconds)
    decision = maker.choose(pit, pit.observe(), pit.mask())
    assert decision[:3] == (pit.rule("critical_path_warm_wait", theta=0.5), "rule", note)
    assert decision.said.endswith("; critical_path_warm_wait decides instead") and decision.latency >= 0
    assert maker.choose(pit, pit.observe(), pit.mask()).said == "", "once is enough"
    assert maker.counts == {"rule": 2, note: 2}


def test_sequential_waits_while_anything_is_under_way(pit: Pit) -> None:
    maker = DecisionMaker("sequential", None, None)
    first = maker.choose(pit, pit.observe(), pit.mask())
    assert first.action == STANDARD
    pit.act(first.action)
    assert pit.decision_due() and maker.choose(pit, pit.observe(), pit.mask()).action == WAIT


def test_threads_may_share_a_policy() -> None:
    """As conductors do that were given one bundle."""
    policy, observations, mask = make_policy(NETWORK, random_tensors()), random_observations(16), np.ones(128, bool)
    right = [policy.act(obs, mask) for obs in observations]
    assert len(set(right)) > 1
    wrong: list[int] = []

    def decide(thread: int) -> None:
        for i in range(20_000):
            k = (i + 5 * thread) % 16
            if policy.act(observations[k], mask) != right[k]:
                wrong.append(k)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=decide, args=(thread,)) for thread in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
