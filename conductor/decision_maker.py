"""Who decides: the policy of a bundle with a rule player behind it, a rule player alone, or one call at a time."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from conductor.manifest import RuleSpec
from conductor.pit_interface import Rule
from conductor.policy import Policy
from pit.handle import Pit
from pit.layout import WAIT

STRATEGIES = ("adaptive", "critical_path", "sequential")


class Decision(NamedTuple):
    """An action (0..127), who chose it (`policy`, `rule`, `sequential`) and why not the policy (`""` if as planned)."""

    action: int
    by: str
    note: str


class DecisionMaker:
    """Chooses actions by one strategy. `counts`: how often who decided, and why a policy did not (`late`, `not finite`)."""

    def __init__(self, strategy: str, policy: Policy | None, rule: RuleSpec | None, seconds: float = 0.25) -> None:
        """`rule`: the fall-back; `critical_path` if None. `seconds`: a policy that takes longer is late."""
        self._strategy, self._policy, self._seconds = strategy, policy, seconds
        rule = rule if rule is not None else RuleSpec()
        self._rule = Rule(rule.name, rule.params)
        self.counts: Counter[str] = Counter()

    def choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray) -> Decision:
        """The action for an observation (512,) float32 and a mask (128,) bool; always a legal one."""
        decision = self._choose(pit, observation, mask)
        if not mask[decision.action]:  # a rule may find nothing for its variant where another could start
            decision = decision._replace(action=int(mask.argmax()))
        self.counts[decision.by] += 1
        if decision.note:
            self.counts[decision.note] += 1
        return decision

    def _choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray) -> Decision:
        if self._strategy == "sequential":  # waiting is legal as long as anything runs or loads
            return Decision(WAIT if mask[WAIT] else pit.rule("critical_path"), "sequential", "")
        if self._strategy == "critical_path":
            return Decision(pit.rule("critical_path"), "rule", "")
        if self._policy is None:
            return self._fall_back(pit, "absent")
        begin = time.perf_counter()
        with np.errstate(all="ignore"):  # what is not finite is answered below
            action = self._policy.act(observation, mask)
        if action < 0:
            return self._fall_back(pit, "not finite")
        if time.perf_counter() - begin > self._seconds:
            return self._fall_back(pit, "late")
        return Decision(action, "policy", "")

    def _fall_back(self, pit: Pit, note: str) -> Decision:
        return Decision(self._rule.choose(pit), "rule", note)
