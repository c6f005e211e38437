"""Who decides: the policy, and the rule behind it when the policy cannot."""

from __future__ import annotations

import numpy as np
import pytest

from conductor.bundle import RuleSpec
from conductor.decision_maker import DecisionMaker
from conductor.policy import Policy
from pit.handle import Event, Pit
from pit.layout import ARRIVE, STANDARD, WAIT
from pit.spec import WorkflowSpec
from tests.conductor.helpers import LAYERS, random_tensors, small_workflow


@pytest.fixture
def pit() -> Pit:
    pit = Pit(WorkflowSpec.model_validate(small_workflow()))
    pit.apply(Event(ARRIVE, 0))
    return pit


def policy_that(bias: float) -> Policy:
    return Policy({**random_tensors(), "action.bias": np.full(128, bias, np.float32)}, LAYERS, "relu")


def test_masked_argmax_is_legal_and_the_first_of_equals() -> None:
    tensors = {name: np.zeros_like(array) for name, array in random_tensors().items()}
    policy = Policy(tensors, LAYERS, "relu")
    mask = np.zeros(128, bool)
    mask[[40, 41]] = True
    assert policy.act(np.ones(512, np.float32), mask) == 40
    tensors["action.bias"] = np.arange(128, dtype=np.float32)
    assert Policy(tensors, LAYERS, "relu").act(np.ones(512, np.float32), mask) == 41


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
    assert decision == (pit.rule("critical_path_warm_wait", theta=0.5), "rule", note)
    assert maker.counts == {"rule": 1, note: 1}


def test_sequential_waits_while_anything_is_under_way(pit: Pit) -> None:
    maker = DecisionMaker("sequential", None, None)
    first = maker.choose(pit, pit.observe(), pit.mask())
    assert first.action == STANDARD
    pit.act(first.action)
    assert pit.decision_due() and maker.choose(pit, pit.observe(), pit.mask()).action == WAIT
