"""Every decision is made again; whoever rewrites who decided what, and seals the journal anew, is found out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conductor import audit
from conductor.__main__ import main
from conductor.bundle import write_bundle
from conductor.errors import ConductorError
from conductor.guard import TRIP
from conductor.journal import Journal, read_journal
from conductor.orchestrator import begin, resume
from conductor.report import verify_run
from conductor.workflow import load_workflow
from pit import rules
from pit.layout import BACK_OFF
from tests.conductor.helpers import MODULE, bundle_parts, preferring, small_workflow
from tests.conductor.test_crash import killed_run
from tests.conductor.test_guard import ANYWHERE, many
from tests.conductor.test_many import steps


def calibrated() -> dict[str, Any]:
    weights = np.random.default_rng(1).normal(size=rules.N_WEIGHTS)
    return {"name": "calibrated", "params": {"weights": rules.table_of(weights)}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    (folder / "work.py").write_text(MODULE)
    return folder


def written(place: Path, name: str, workflow: dict[str, Any]) -> Path:
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(workflow))
    return file


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A run by a policy that is far out of its range from the 20th decision on, with a shadow."""
    ranges = {"decisions": 1, "columns": ANYWHERE}
    bundle = write_bundle(place / "bundle", **bundle_parts(), ranges=ranges, rule=calibrated())
    shadow = write_bundle(place / "shadow", **preferring("wait", "standard"))
    workflow = load_workflow(written(place, "many", many(24)))
    return begin(workflow, place / "runs", bundle=bundle, shadow=shadow).folder


def forged(run: Path, target: Path, change: Callable[[dict[str, Any], int], object], kind: str = "action") -> Path:
    """A run whose rows of a kind were changed, with a chain and a head that fit."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("journal*"))
    journal, number = Journal(target, new=True), 0
    for row in read_journal(run):
        if row.kind == kind:
            number += 1
            change(row.data, number)
        journal.add(row.kind, row.time, row.data, row.run)
    journal.commit()
    journal.close()
    return target


def test_every_decision_is_made_again(run: Path) -> None:
    found = audit.verify(run)
    decided = [row.data for row in read_journal(run) if row.kind == "action"]
    assert found.decisions == len(decided) >= 24 and found.close == found.unknown == 0
    assert found.made_again == {"policy": TRIP - 1, "rule": len(decided) - TRIP + 1}


FORGERIES: list[tuple[str, Callable[[dict[str, Any], int], object], str]] = [
    ("the policy", lambda d, n: d.update(by="policy", note="", bundle="0" * 64) if n == 22 else None, "names another bundle"),
    ("the rule", lambda d, n: d.update(by="rule") if n == 3 else None, "row .* says that rule decided, for the reason ''"),
    ("reason", lambda d, n: d.update(note="dull") if n == 22 else None, "for the reason 'dull'; that cannot be"),
    ("distance", lambda d, n: d.update(distance=0.01) if n == 3 else None, "the distance is 1, guard not tripped; the record"),
    ("guard", lambda d, n: d.update(tripped=True) if n == 3 else None, "the guard was tripped, and policy decided"),
    ("guard off", lambda d, n: d.update(tripped=False) if n == 22 else None, "the guard was not tripped, and rule decided"),
    (
        "guard and reason",
        lambda d, n: d.update(tripped=False, note="stopped") if n == 22 else None,
        "guard tripped; the record",
    ),
    (
        "shadow of its own",
        lambda d, n: d.update(shadow=1) if n == 2 else None,
        "shadow is said to have wanted 1 .slot 0: st",
    ),
    ("unmeasured", lambda d, n: d.update(distance=None) if n == 3 else None, "the record says otherwise"),
    ("shadow", lambda d, n: d.update(shadow=3) if n == 3 else None, "the shadow is said to have wanted 3 .slot 0: queue."),
    ("shadow beyond", lambda d, n: d.update(shadow=500) if n == 3 else None, "holds 500 for an action"),
    ("seen", lambda d, n: d.update(observation="0" * 64) if n == 3 else None, "the observation in the replay is not"),
]


@pytest.mark.parametrize(("change", "words"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_forged_records(run: Path, tmp_path: Path, change: Callable[[dict[str, Any], int], object], words: str) -> None:
    folder = forged(run, tmp_path / "forged", change)
    with pytest.raises(ConductorError, match=words):
        audit.verify(folder)


def test_a_decision_that_nobody_would_make(place: Path, tmp_path: Path) -> None:
    """A replay of the journal cannot tell: any legal action replays. Only who decides again can."""
    workflow = load_workflow(written(place, "two", many(2)))
    fitted = write_bundle(tmp_path / "fitted", **bundle_parts(), rule=calibrated())
    folder = begin(workflow, tmp_path / "runs", strategy="calibrated", bundle=fitted).folder
    assert audit.verify(folder).made_again.keys() == {"rule"}
    for strategy, who in (("parallel", "rule"), ("sequential", "sequential"), ("adaptive", "policy")):
        policy = write_bundle(tmp_path / strategy, **preferring("standard", "wait"))
        folder = begin(workflow, tmp_path / "runs", strategy=strategy, bundle=policy).folder
        assert audit.verify(folder).made_again.keys() == {who}
        other = {"parallel": "sequential", "sequential": "parallel", "adaptive": "adaptive"}[strategy]
        lying = forged(folder, tmp_path / f"{strategy}-forged", lambda d, _, other=other: d.update(strategy=other), kind="run")
        if strategy == "adaptive":
            worse = write_bundle(tmp_path / "worse", **preferring("wait", "standard"))
            shutil.rmtree(lying / "bundle")
            worse.save(lying / "bundle")

            def claims(data: dict[str, Any], _: int, digest: str = worse.digest) -> None:
                data.update(bundle=digest)

            lying = forged(forged(lying, tmp_path / "a", claims, "run"), tmp_path / "b", claims)
        else:
            by = {"parallel": "sequential", "sequential": "rule"}[strategy]
            lying = forged(lying, tmp_path / f"{strategy}-lying", lambda d, _, by=by: d.update(by=by))
        assert verify_run(lying).ended
        with pytest.raises(ConductorError, match=r"is said to have chosen .*, and would choose"):
            audit.verify(lying)


def test_a_policy_that_is_gone_is_not_vouched_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    found = audit.verify(tmp_path / "run")
    assert found.unknown == TRIP - 1 and "there is no bundle" in found.missing[0]
    assert main(["audit", "verify", str(tmp_path / "run")]) == 0
    assert "19 by policy could not be made again: its bundle is not there" in capsys.readouterr().out
    told = audit.explain(tmp_path / "run", 3)
    assert told.alternatives[0].logit is None and told.outside == []


def test_a_decision_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = audit.explain(run, 2)
    rows = [row for row in read_journal(run) if row.kind == "action"]
    data = rows[1].data
    assert (told.number, told.decisions, told.time) == (2, len(rows), rows[1].time)
    assert told.maker.startswith(f"the policy of the bundle {data['bundle']}; distance from its training 100.0%; in ")
    best = told.alternatives[0]
    assert best.action == data["action"] and best.takers[:2] == ["decided", "policy"] and best.words == told.words
    assert sum(a.probability or 0.0 for a in told.alternatives) == pytest.approx(1.0)
    takers = {who for a in told.alternatives for who in a.takers}
    assert takers == {"decided", "policy", "calibrated", "critical_path", "smallest_remaining", "shadow"}
    starts = [a.words for a in told.alternatives if a.words.startswith("start ")]
    assert starts and all(": plain.standard on cpu" in words for words in starts)
    assert {name for name, _ in told.seen["the whole"]} >= {"work_left", "open_tasks"} and "pool cpu" in told.seen
    assert "elapsed" in {name for name, *_ in told.outside}
    late = audit.explain(run, 23)
    assert "the rule calibrated, because the policy sees what it was not trained on" in late.maker

    assert main(["audit", "explain", str(run), "2"]) == 0
    out = capsys.readouterr().out
    for words in (
        f"decision 2 of {len(rows)}, at",
        best.words,
        "pool cpu:",
        "not as in training, where it was always 0:",
        "calibrated",
        "slot 0, t",
    ):
        assert words in out, words
    assert max(map(len, out.splitlines())) <= 140
    assert main(["show", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"decisions: {TRIP - 1} by the policy, {len(rows) - TRIP + 1} by the rule (policy out of range)" in shown
    assert main(["audit", "explain", str(run)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(rows) and "(rule, policy out of range)" in listed[-1] and told.words in listed[1]
    assert main(["audit", "explain", str(run), "999"]) == 2
    assert f"has the decisions 1 to {len(rows)}, and no decision 999" in capsys.readouterr().err
    assert main(["audit", "verify", str(run)]) == 0
    assert "19 by policy" in capsys.readouterr().out


def test_a_rule_is_explained_too(place: Path, tmp_path: Path) -> None:
    folder = begin(load_workflow(written(place, "small", small_workflow())), tmp_path, strategy="parallel").folder
    told = audit.explain(folder, 1)
    assert told.words == "start a1: fa.standard on cpu with model A" and told.maker.startswith("the rule critical_path; in ")
    takers = [a.takers for a in told.alternatives if "decided" in a.takers]
    assert takers == [["decided", "critical_path", "smallest_remaining"]]
    assert any(place == "slot 0, a1 and 1 like it" for place in told.seen)


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_a_back_off_after_a_failure_is_made_again(place: Path, tmp_path: Path, strategy: str) -> None:
    """Once for each failure, also where the conductor died in between."""
    workflow = steps(1, call="work:fail_twice")
    workflow["system"].update(back_off_seconds=0.1, back_off_jitter=0.0, verbs=["standard", "wait", "back_off"])
    (tmp_path / "work.py").write_text(MODULE)
    folder = killed_run(written(tmp_path, "fails", workflow), "after_done:1", "--strategy", strategy)
    assert resume(folder).status == "solved"
    rows = [row for row in read_journal(folder) if row.kind in ("action", "event")]
    fails = [i for i, row in enumerate(rows) if row.data.get("error") == "throttled"]
    back_offs = [i for i, row in enumerate(rows) if row.data.get("action") == BACK_OFF]
    assert back_offs == [i + 1 for i in fails] and len(fails) == 2
    assert audit.verify(folder).made_again.total() == sum(row.kind == "action" for row in rows)
    numbers = [i for i, row in enumerate((row for row in rows if row.kind == "action"), 1) if row.data["action"] == BACK_OFF]
    assert all("which backs off after a failure; in" in audit.explain(folder, number).maker for number in numbers)
    assert "backs off" not in audit.explain(folder, 1).maker
