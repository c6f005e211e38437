"""Whom a run asks: the bundle whose policy decides, and one that is asked without effect; kept beside the journal, so that the
run goes on with the very same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from conductor.bundle import Bundle, load_bundle
from conductor.decision_maker import NEED_BUNDLE, STRATEGIES, DecisionMaker, Shadow
from conductor.errors import ConductorError
from conductor.guard import STOP_FILE, RangeGuard, thrown
from conductor.manifest import RuleSpec
from conductor.pit_interface import Folded
from conductor.trust import ANYONE
from pit.errors import PitError
from pit.files import mapping_of, parse, shown
from pit.spec import SystemSpec

SHOWN = 3  # differences between two systems that are told
FOLDERS = ("bundle", "shadow")  # beside the journal, and the keys of the journal's row `run` that hold their digests


class Advice(NamedTuple):
    """A strategy, the bundle that it obeys, and the one that it only compares with. `missing`: why one of them is not there
    although the run began with it."""

    strategy: str
    bundle: Bundle | None = None
    shadow: Bundle | None = None
    missing: tuple[str, ...] = ()

    def check(self) -> Advice:
        """Itself. Raises ConductorError for an unknown strategy, or one that has no bundle and needs it."""
        if self.strategy not in STRATEGIES:
            raise ConductorError(f"strategy {self.strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
        if self.strategy in NEED_BUNDLE and self.bundle is None:
            raise ConductorError(
                f"strategy {self.strategy} needs a bundle (`--bundle DIR`); without one choose parallel or sequential"
            )
        return self

    def record(self) -> dict[str, Any]:
        """The keys of the journal's row `run` that are about it."""
        policy = self.bundle if self.strategy == "adaptive" else None
        rule = self.bundle.manifest.rule if self.bundle is not None and self.strategy in NEED_BUNDLE else RuleSpec()
        return {
            "strategy": self.strategy,
            "exposure": policy.manifest.exposure if policy is not None else "full",
            "bundle": self.bundle.digest if self.bundle is not None else "",
            "signature": self.bundle.signature.words() if self.bundle is not None else "",
            "rule": rule.model_dump(),
            "shadow": self.shadow.digest if self.shadow is not None else "",
            "shadow_signature": self.shadow.signature.words() if self.shadow is not None else "",
        }

    def save(self, folder: Path) -> None:
        """Keep the bundles in the folder of a journal. Raises ConductorError."""
        for name, bundle in zip(FOLDERS, (self.bundle, self.shadow)):
            if bundle is not None and not (folder / name).exists():
                bundle.save(folder / name)


def recalled(folder: Path, record: dict[str, Any]) -> Advice:
    """What a run began with, from its journal's folder and the payload of its row `run`.

    Whose bundle it is was asked when the run began; now it must be the same one. One that is gone or was changed is missing,
    and the run goes on without it.
    """
    found: dict[str, Bundle] = {}
    missing = []
    for name in FOLDERS:
        try:
            if record[name]:
                bundle = load_bundle(folder / name, ANYONE)
                if bundle.digest != record[name]:
                    raise ConductorError(f"{folder / name}: is not the bundle that the run began with")
                found[name] = bundle
        except ConductorError as error:
            missing.append(f"{error}; the run goes on without it")
    return Advice(record["strategy"], found.get("bundle"), found.get("shadow"), tuple(missing))


def decider(advice: Advice, record: dict[str, Any], folder: Path, past: Folded | None = None) -> DecisionMaker:
    """Who decides in a run. `record`: the payload of its row `run`; `folder`: its own, where its switch may be; `past`: the
    run so far, if it goes on. Raises ConductorError for a rule that is none."""
    try:
        rule = RuleSpec.model_validate(record["rule"])
    except ValidationError as error:
        raise ConductorError(f"row `run`: rule: {error.errors()[0]['msg']}") from error
    policy = advice.bundle if advice.strategy == "adaptive" else None
    ranges = policy.manifest.ranges if policy is not None else None
    maker = DecisionMaker(
        advice.strategy,
        policy.policy if policy is not None else None,
        rule,
        guard=RangeGuard(ranges) if ranges is not None else None,
        shadow=Shadow(advice.shadow, record["exposure"]) if advice.shadow is not None else None,
        stopped=functools.partial(thrown, str(folder / STOP_FILE)),
    )
    if past is not None:
        maker.recall(past.recent, past.counts)
    return maker


def unlike(trained: str, system: SystemSpec) -> str:
    """In what a system differs from the one that a bundle was trained for (its `system.yaml`): the first few figures; "" if
    in nothing, or if the bundle was trained for several."""
    try:
        spec = parse(SystemSpec, mapping_of(trained, "system.yaml"), "system.yaml")
    except PitError:  # a bundle may say what it likes there
        return ""
    parts = {"functions", "models", "pools", "memory"}
    here, there = (x.model_dump(mode="json", include=parts) for x in (system, spec))
    found = list(_differences(here, there))
    return "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _differences(here: dict[str, Any], there: dict[str, Any], above: str = "") -> Iterator[str]:
    """What is another value, new, or gone, by its path."""
    for key in dict.fromkeys((*here, *there)):
        a, b, path = here.get(key), there.get(key), f"{above}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{path}.")
        elif a is None or b is None:
            if a is not b:
                yield f"{path} is {'gone' if a is None else 'new'}"
        elif a != b:
            yield f"{path} is {shown(a)} and was {shown(b)}"
