"""Who decided what, and why: every decision of a journal is made again, and any of them is told in words.

The journal holds digests of what was seen; its fold gives the observation and the mask again, bit for bit, and the bundle
beside it the policy's answer. What stands here changes nothing.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from conductor.advice import Advice, recalled
from conductor.bundle import MIN_MARGIN
from conductor.decision_maker import NEED_BUNDLE, NOTES, PLAIN, ROUND_NOTE, plan
from conductor.errors import ConductorError
from conductor.guard import WINDOW, RangeGuard, recall
from conductor.journal import Row, journal_path, read_run
from conductor.manifest import RuleSpec
from conductor.pit_interface import Fold, PitInterface, Rule
from conductor.report import verify_journal
from pit import layout
from pit.errors import PitError
from pit.layout import BACK_OFF, N_SLOT_FEATURES, N_VERBS, POOL_OFFSET, VERBS, WAIT

OTHERS = ("critical_path", "smallest_remaining")  # rules that need no fit, to compare a decision with


@dataclass
class Moment:
    """A decision as it was: its row, and the Pit, observation (512,) and mask (128,) bool just before it."""

    number: int  # 1, 2, ... in the run
    recent: Sequence[dict[str, Any]] | None  # payloads of the latest decisions, if the conductor was started anew since
    row: Row
    view: PitInterface
    observation: np.ndarray
    mask: np.ndarray


@dataclass
class Audit:
    """What an audit found. `made_again`: decisions whose maker comes to the same action again, by who that was; `close`: the
    policy's whose best two logits are nearer than two machines' arithmetic; `unknown`: those whose policy is not there."""

    decisions: int = 0
    made_again: Counter[str] = field(default_factory=Counter)
    close: int = 0
    unknown: int = 0
    missing: tuple[str, ...] = ()


class Replay:
    """A run that is folded row by row, stopping before every decision."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        """Raises ConductorError if there is no such run."""
        self._rows = read_run(place)
        self._fold = Fold(next(self._rows))
        self.run = self._fold.run
        self.advice: Advice = recalled(journal_path(place).parent, self.run)
        try:
            spec = RuleSpec.model_validate(self.run["rule"])
            self.rule, self.rule_name = Rule(spec.name, spec.params), spec.name
        except (ValidationError, PitError, ValueError, OverflowError) as error:
            raise ConductorError(f"row `run`: rule: {error}") from error

    def moments(self) -> Iterator[Moment]:
        """Every decision in order; what differs from the record is told before the next one is given.

        Raises:
            ConductorError: the journal is not whole, or replays differently.
        """
        view, number, anew = self._fold.view, 0, False
        recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        for row in self._rows:
            anew |= row.kind == "resume"
            if row.kind == "action":
                number += 1
                _check_actions(row)
                view.advance(row.time)  # as the fold would, so that the Pit is as it was when the decision was due
                yield Moment(number, tuple(recent) if anew else None, row, view, view.pit.observe(), view.pit.mask())
                anew = False
                recent.append(row.data)
            self._fold.take(row)


def _check_actions(row: Row) -> None:
    action, shadow = row.data["action"], row.data["shadow"]
    for value, least in ((action, 0), (-1 if shadow is None else shadow, -1)):
        if not isinstance(value, int) or not least <= value < layout.N_ACTIONS:
            raise ConductorError(f"row {row.seq} ({row.kind}): holds {value!r} for an action")


def verify(place: str | os.PathLike[str]) -> Audit:
    """Check a journal as `journal verify` does, and make every decision of one of its runs again.

    Policy and rules must come to the recorded actions, the guard to the recorded distances, the shadow to its own; a decision
    that was not the policy's must say why.

    Raises:
        ConductorError: the first thing that does not hold.
    """
    verify_journal(place)
    replay = Replay(place)
    advice, audit = replay.advice, Audit(missing=replay.advice.missing)
    ranges = advice.bundle.manifest.ranges if advice.bundle is not None and advice.strategy == "adaptive" else None
    guard = RangeGuard(ranges) if ranges is not None else None
    for moment in replay.moments():
        where = f"row {moment.row.seq} (decision {moment.number})"
        audit.decisions += 1
        _check_claims(moment.row.data, replay.run, where)
        _check_maker(moment, replay, audit, where)
        if guard is not None:
            _check_guard(moment, guard, where)
        if advice.shadow is not None:
            _check_shadow(moment, replay, where)
    return audit


def _check_claims(data: dict[str, Any], run: dict[str, Any], where: str) -> None:
    """Whether what a row says of its maker fits together."""
    planned = {"adaptive": "policy", "sequential": "sequential"}.get(run["strategy"], "rule")
    if data["by"] != ("rule" if data["note"] else planned) or (data["note"] and data["note"] not in NOTES):
        raise ConductorError(f"{where}: says that {data['by']} decided, for the reason {data['note']!r}; that cannot be")
    if data["bundle"] != (run["bundle"] if data["by"] == "policy" else ""):
        raise ConductorError(f"{where}: names another bundle than the run")
    if (data["note"] == "out of range") > data["tripped"] or (data["by"] == "policy") & data["tripped"]:
        raise ConductorError(f"{where}: the guard was {'' if data['tripped'] else 'not '}tripped, and {data['by']} decided")


def _check_maker(moment: Moment, replay: Replay, audit: Audit, where: str) -> None:
    data, mask, pit = moment.row.data, moment.mask, moment.view.pit
    if data["by"] == "policy":
        if replay.advice.bundle is None:
            audit.unknown += 1
            return
        action = replay.advice.bundle.policy.act(moment.observation, mask)
        if action != data["action"] and mask[data["action"]]:
            logits = replay.advice.bundle.policy.logits(moment.observation)
            if logits[mask].max() - logits[data["action"]] < MIN_MARGIN:
                audit.close += 1
                return
    elif data["note"] == ROUND_NOTE:
        action = pit.rule(PLAIN)
    elif replay.advice.strategy not in NEED_BUNDLE:
        action = plan(replay.advice.strategy, pit, mask, moment.view.failed_again())
    else:
        action = replay.rule.choose(pit)
    if not mask[action]:
        action = int(mask.argmax())
    if action != data["action"]:
        raise ConductorError(
            f"{where}: {data['by']} is said to have chosen {_plain(data['action'])}, and would choose {_plain(action)}"
        )
    audit.made_again[data["by"]] += 1


def _check_guard(moment: Moment, guard: RangeGuard, where: str) -> None:
    data = moment.row.data
    if moment.recent:
        recall(guard, moment.recent)
    if data["distance"] is None and data["note"] == "absent":  # of a conductor that could not load the bundle
        return
    distance = guard.look(moment.observation)
    if (distance, guard.tripped) != (data["distance"], data["tripped"]):
        raise ConductorError(
            f"{where}: the distance is {distance:g}, guard {'' if guard.tripped else 'not '}tripped; the record says otherwise"
        )


def _check_shadow(moment: Moment, replay: Replay, where: str) -> None:
    shadow, action = replay.advice.shadow, moment.row.data["shadow"]
    if shadow is None or action is None or action < 0:
        return
    logits = _logits(shadow.policy, moment, shadow.manifest.exposure)
    if not moment.mask[action] or logits[moment.mask].max() - logits[action] >= MIN_MARGIN:
        raise ConductorError(f"{where}: the shadow is said to have wanted {_plain(action)}, and would want something else")


def _logits(policy: Any, moment: Moment, exposure: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return policy.logits(moment.view.pit.observe_as(exposure))


def _plain(action: int) -> str:
    return f"{action} ({layout.action_name(action)})"


# ------------------------------------------------------------------ one decision in words
@dataclass
class Alternative:
    """A legal action: in words, the policy's logit and probability (None: there is no policy, or it is not finite), and who
    would have taken it."""

    action: int
    words: str
    logit: float | None
    probability: float | None
    takers: list[str]


@dataclass
class Explanation:
    """One decision. `alternatives`, the likeliest first; `seen`: what the numbers are about -> (name, value) of those that
    are not 0; `outside`: (column, value, low, high) of those that leave what the policy was trained on."""

    number: int
    decisions: int
    time: int  # us
    words: str  # of what was decided
    maker: str  # who decided, and why
    alternatives: list[Alternative]
    seen: dict[str, list[tuple[str, float]]]
    outside: list[tuple[str, float, float, float]]


def explain(place: str | os.PathLike[str], number: int) -> Explanation:
    """Tell a run's decision `number` (1, 2, ...) in words, after replaying the run up to it.

    Raises:
        ConductorError: there is no such decision, the journal is not whole, or replays differently.
    """
    replay = Replay(place)
    found: Explanation | None = None
    count = 0
    for moment in replay.moments():
        count = moment.number
        if moment.number == number:
            found = _explain(moment, replay)
    if found is None:
        raise ConductorError(f"{place}: has the decisions 1 to {count}, and no decision {number}")
    found.decisions = count
    return found


def _explain(moment: Moment, replay: Replay) -> Explanation:
    data = moment.row.data
    names = _slot_names(moment.view)
    return Explanation(
        number=moment.number,
        decisions=0,
        time=moment.row.time,
        words=_words(data["action"], moment, names),
        maker=_maker(moment, replay),
        alternatives=_alternatives(moment, replay, names),
        seen=_seen(moment, names),
        outside=_outside(moment, replay),
    )


def _slot_names(view: PitInterface) -> list[str]:
    """The task at the head of each slot in use."""
    return [view.pit.task_ids[head] for head, _ in view.pit.slots()]


def _words(action: int, moment: Moment, names: list[str]) -> str:
    """`start t1: parse.standard on cpu with model A`."""
    pit = moment.view.pit
    if action >= WAIT or action // N_VERBS >= len(names):
        return layout.action_name(action)
    task, verb = names[action // N_VERBS], VERBS[action % N_VERBS]
    if action % N_VERBS >= layout.N_VARIANTS:
        return f"{verb} {task}"
    spec = moment.view.workflow.tasks[pit.task_ids.index(task)]
    variant = getattr(moment.view.workflow.system.functions[spec.function], verb)
    if variant is None:  # never legal
        return f"{verb} {task}"
    model = f" with model {variant.model}" if variant.model is not None else ""
    return f"start {task}: {spec.function}.{verb} on {variant.pool}{model}"


def _maker(moment: Moment, replay: Replay) -> str:
    data = moment.row.data
    if data["by"] == "policy":
        told = f"the policy of the bundle {data['bundle']}"
    elif data["by"] == "sequential":
        told = "one call at a time"
    else:
        told = f"the rule {PLAIN if data['note'] == ROUND_NOTE else replay.rule_name}"
        if data["note"]:
            told += f", because {NOTES.get(data['note'], data['note'])}"
    if replay.advice.strategy not in NEED_BUNDLE and data["action"] == BACK_OFF and moment.view.failed_again():
        told += ", which backs off after a failure"
    if data["distance"] is not None:
        told += f"; distance from its training {data['distance']:.1%}"
    return f"{told}; in {data['latency']} us"


def _alternatives(moment: Moment, replay: Replay, names: list[str]) -> list[Alternative]:
    data, mask, pit, bundle = moment.row.data, moment.mask, moment.view.pit, replay.advice.bundle
    takers: dict[int, list[str]] = {}

    def takes(action: int, who: str) -> None:
        takers.setdefault(action, []).append(who)

    takes(data["action"], "decided")
    logits = None
    if bundle is not None:
        logits = _logits(bundle.policy, moment, bundle.manifest.exposure).astype(np.float64)
        if np.isfinite(logits).all():
            takes(int(np.where(mask, logits, -np.inf).argmax()), "policy")
        else:
            logits = None
    if replay.rule_name not in OTHERS:
        takes(replay.rule.choose(pit), replay.rule_name)
    for name in OTHERS:
        takes(pit.rule(name), name)
    if data["shadow"] is not None and data["shadow"] >= 0:
        takes(data["shadow"], "shadow")
    legal = np.flatnonzero(mask)
    chances = np.zeros(0)
    if logits is not None:
        chances = np.exp(logits[legal] - logits[legal].max())
        chances /= chances.sum()
    found = [
        Alternative(
            int(action),
            _words(int(action), moment, names),
            None if logits is None else float(logits[action]),
            None if logits is None else float(chances[k]),
            takers.get(int(action), []),
        )
        for k, action in enumerate(legal)
    ]
    return sorted(found, key=lambda a: (-(a.probability or 0.0), a.action))


def _seen(moment: Moment, names: list[str]) -> dict[str, list[tuple[str, float]]]:
    pools, counts = moment.view.pit.pool_names, [count for _, count in moment.view.pit.slots()]
    seen: dict[str, list[tuple[str, float]]] = {}
    for i, (name, feature) in enumerate(layout.columns()):
        value = float(moment.observation[i])
        if value == 0.0:
            continue
        place = name.split(".")[0]
        if i < POOL_OFFSET:
            slot = i // N_SLOT_FEATURES
            place = f"slot {slot}, {names[slot]}" + (f" and {counts[slot] - 1} like it" if counts[slot] > 1 else "")
        elif i < layout.GLOBAL_OFFSET:
            place = f"pool {pools[(i - POOL_OFFSET) // layout.N_POOL_FEATURES]}"
        else:
            place = "the whole"
        seen.setdefault(place, []).append((feature.name, value))
    return seen


def _outside(moment: Moment, replay: Replay) -> list[tuple[str, float, float, float]]:
    bundle = replay.advice.bundle
    if bundle is None or bundle.manifest.ranges is None:
        return []
    low, high, _ = bundle.manifest.ranges.limits()
    observation = moment.view.pit.observe_as(bundle.manifest.exposure)
    columns = [name for name, _ in layout.columns()]
    return [
        (columns[i], float(observation[i]), float(low[i]), float(high[i]))
        for i in np.flatnonzero((observation < low) | (observation > high))
    ]


def decisions(place: str | os.PathLike[str]) -> Iterator[tuple[int, int, str, str]]:
    """Number, time (us), what and by whom of every decision of a run. Raises ConductorError as `explain`."""
    for moment in Replay(place).moments():
        data = moment.row.data
        by = data["by"] + (f", policy {data['note']}" if data["note"] else "")
        yield moment.number, moment.row.time, _words(data["action"], moment, _slot_names(moment.view)), by
