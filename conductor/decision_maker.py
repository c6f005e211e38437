"""Who decides: the policy of a bundle with a rule player behind it, a rule player alone, or one call at a time. The last two
back off from a pool after each failure where the system has that verb; how long, and ever longer, is the Pit's.

A policy decides unless it is absent, was stopped, was late too often, sees what it was never trained on, or answers with what
is not finite or too late; then the rule does, and the decision says why not the policy. An answer cannot be cut short: it is a
fixed number of multiplications in this process, at most some 4 million for a bundle of the largest size, so that it ends, and
what takes longer is the machine. It is measured, thrown away if it was late, and not asked for any more if that goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from conductor.bundle import Bundle
from conductor.guard import RangeGuard, recall
from conductor.manifest import RuleSpec
from conductor.pit_interface import Rule, calls_so_far
from conductor.policy import Policy
from pit.handle import Pit
from pit.layout import BACK_OFF, WAIT

STRATEGIES = ("adaptive", "calibrated", "parallel", "sequential")
NEED_BUNDLE = STRATEGIES[:2]  # its policy, or its rule alone
SECONDS = 0.25  # within which a policy must answer; it takes 15 us
LATE_IN_A_ROW = 3  # late answers after which it is not asked any more in this run
ROUND = 100  # moments of decision in a row, between which no call began or ended, from which on somebody goes round
LONG_ROUND = 1000  # decisions, or four for each task, in which no task came to its first output
ROUND_NOTE = "goes round"
PLAIN = "critical_path"  # the rule that then decides: it begins calls or waits, and nothing else
NOTES = {  # why not the policy, for people
    "absent": "the policy is absent",
    "put aside": f"the policy was late {LATE_IN_A_ROW} times in a row and is not asked any more",
    "stopped": "the policy was stopped",
    "out of range": "the policy sees what it was not trained on",
    "not finite": "the policy answered with a number that is not finite",
    "late": "the policy answered too late",
    ROUND_NOTE: "nothing has come of many decisions",
}


class Decision(NamedTuple):
    """An action (0..127), who chose it (`policy`, `rule`, `sequential`) and why not the policy (`""` if as planned, or a key
    of `NOTES`); `latency` in us; `distance` from what the policy was trained on (None: not measured), and whether the guard is
    `tripped` (`conductor.guard.RangeGuard`); what the `shadow` would have done (-1: nothing sound; None: there is none);
    `said`: what people should be told now."""

    action: int
    by: str
    note: str
    latency: int = 0
    distance: float | None = None
    tripped: bool = False
    shadow: int | None = None
    said: str = ""

    def payload(self) -> dict[str, Any]:
        """The keys of the journal's row `action` that are about who decided."""
        return {key: value for key, value in self._asdict().items() if key != "said"}


class Shadow:
    """A second policy that is asked and not obeyed, with its own exposure. One that is late too often is not asked again."""

    def __init__(self, bundle: Bundle, exposure: str, seconds: float = SECONDS) -> None:
        """`exposure`: what the run's own observations show."""
        self._policy, self._seconds, self._late = bundle.policy, seconds, 0
        self._exposure = bundle.manifest.exposure if bundle.manifest.exposure != exposure else None

    def choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray) -> int:
        """The action that it would take; -1 if it has none, or is not asked any more."""
        if self._late >= LATE_IN_A_ROW:
            return -1
        if self._exposure is not None:
            observation = pit.observe_as(self._exposure)
        action, seconds = _ask(self._policy, observation, mask)
        self._late = self._late + 1 if seconds > self._seconds else 0
        return action


class DecisionMaker:
    """Chooses actions by one strategy; where that goes round, the plain rule does. `counts`: how often who decided, and why a
    policy did not (keys of `NOTES`)."""

    def __init__(
        self,
        strategy: str,
        policy: Policy | None,
        rule: RuleSpec | None,
        seconds: float = SECONDS,
        *,
        guard: RangeGuard | None = None,
        shadow: Shadow | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`rule`: the fall-back; `critical_path` if None. `seconds`: a policy that takes longer is late. `guard`: of what the
        policy sees, if that can be measured. `stopped`: whether it must not decide now, asked at every decision."""
        self._strategy, self._policy, self._seconds = strategy, policy, seconds
        self._guard, self._shadow, self._stopped = guard, shadow, stopped
        rule = rule if rule is not None else RuleSpec()
        self._rule, self._name = Rule(rule.name, rule.params), rule.name
        self._late = 0  # in a row
        self._told: set[str] = set()
        self._calls, self._at, self._moments = (0, 0), -1, 0  # begun and in flight; when that was seen; moments since then
        self._decided, self._outputs, self._long_round = 0, -1, False  # since the last look at outputs; how many; none new
        self.counts: Counter[str] = Counter()

    def choose(self, pit: Pit, observation: np.ndarray, mask: np.ndarray, failed_again: bool = False) -> Decision:
        """The action for an observation (512,) float32 and a mask (128,) bool; always a legal one. `failed_again`: as
        `conductor.pit_interface.PitInterface.failed_again` says."""
        begin = time.perf_counter_ns()
        action, by, note, distance, tripped = self._choose(pit, observation, mask, failed_again)
        if not mask[action]:  # a rule may find nothing for its variant where another could start
            action = int(mask.argmax())
        self.counts[by] += 1
        said = self._say(note) if note else ""
        latency = (time.perf_counter_ns() - begin) // 1000
        shadow = None if self._shadow is None else self._shadow.choose(pit, observation, mask)
        return Decision(action, by, note, latency, distance, tripped, shadow, said)

    def _say(self, note: str) -> str:
        """What to tell people of why the policy does not decide: once."""
        self.counts[note] += 1
        if note in self._told:
            return ""
        self._told.add(note)
        return f"{NOTES[note]}; {PLAIN if note == ROUND_NOTE else self._name} decides instead"

    def recall(self, rows: Sequence[dict[str, Any]], counts: Mapping[str, int] | None = None) -> None:
        """Be as after these decisions: payloads of the run's last `guard.WINDOW` rows `action`, or all, the oldest first; and
        `counts` of all."""
        self.counts.update(counts)
        notes = [row["note"] for row in rows]
        while notes and notes[-1] == "late":
            notes.pop()
            self._late += 1
        if notes and notes[-1] == "put aside":
            self._late = LATE_IN_A_ROW
        if self._guard is not None and rows:
            recall(self._guard, rows)

    def _choose(
        self, pit: Pit, observation: np.ndarray, mask: np.ndarray, failed_again: bool
    ) -> tuple[int, str, str, float | None, bool]:
        """As the fields of `Decision`: action, by, note, distance, tripped."""
        if self._strategy == "calibrated" and self._goes_round(pit):
            return pit.rule(PLAIN), "rule", ROUND_NOTE, None, False
        if self._strategy == "calibrated":
            return self._rule.choose(pit), "rule", "", None, False
        if self._strategy != "adaptive":
            by = "sequential" if self._strategy == "sequential" else "rule"
            return plan(self._strategy, pit, mask, failed_again), by, "", None, False
        action, note = -1, self._hindrance()
        if self._goes_round(pit) and not note:
            note = ROUND_NOTE
        distance, tripped = None, False
        if self._guard is not None:
            distance = self._guard.look(observation)
            tripped = self._guard.tripped
        if not note and tripped:
            note = "out of range"
        if not note and self._policy is not None:
            action, seconds = _ask(self._policy, observation, mask)
            late = seconds > self._seconds
            self._late = self._late + 1 if late else 0
            note = "not finite" if action < 0 else "late" if late else ""
        if note:
            return pit.rule(PLAIN) if note == ROUND_NOTE else self._rule.choose(pit), "rule", note, distance, tripped
        return action, "policy", "", distance, tripped

    def _goes_round(self, pit: Pit) -> bool:
        """Whether decisions lead nowhere: verbs that cost nothing can be repeated for ever, and outputs be made again."""
        calls = calls_so_far(pit)
        if calls != self._calls:
            self._calls, self._moments = calls, 0
        elif pit.now != self._at:
            self._moments += 1
        self._at = pit.now
        self._decided += 1
        if self._decided >= LONG_ROUND and self._decided >= 4 * len(pit.tasks()):
            outputs = int(np.count_nonzero(pit.tasks()["version"]))
            self._long_round, self._outputs, self._decided = outputs == self._outputs, outputs, 0
        return self._moments >= ROUND or self._long_round

    def _hindrance(self) -> str:
        """Why the policy is not even asked, whatever there is to see."""
        if self._policy is None:
            return "absent"
        if self._late >= LATE_IN_A_ROW:
            return "put aside"
        return "stopped" if self._stopped() else ""


def plan(strategy: str, pit: Pit, mask: np.ndarray, failed_again: bool) -> int:
    """The action of `parallel` or `sequential`; `failed_again` as for `DecisionMaker.choose`."""
    if failed_again and mask[BACK_OFF]:
        return BACK_OFF
    if strategy == "sequential" and mask[WAIT]:  # waiting is legal as long as anything runs or loads
        return WAIT
    return pit.rule(PLAIN)


def _ask(policy: Policy, observation: np.ndarray, mask: np.ndarray) -> tuple[int, float]:
    """A policy's action (-1: its answer is not finite) and the seconds that it took."""
    begin = time.perf_counter()
    action = policy.act(observation, mask)
    return action, time.perf_counter() - begin
