"""What takes decisions away from a policy: the guard of its ranges, its switch, its lateness; and a shadow that never has any.

A run whose policy is absent, late, not finite or out of its range is done by the rule, says so once, and is replayed exactly.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conductor import audit, decision_maker, guard
from conductor.__main__ import main
from conductor.advice import unlike
from conductor.bundle import Bundle, write_bundle
from conductor.decision_maker import Decision, DecisionMaker, Shadow
from conductor.errors import ConductorError
from conductor.guard import BACK, STOP_FILE, TRIP, WINDOW, RangeGuard, throw
from conductor.journal import read_journal
from conductor.manifest import RangesSpec, ranges_of
from conductor.orchestrator import begin, resume
from conductor.report import report_run, verify_run
from conductor.workflow import load_workflow
from pit.handle import Event, Pit
from pit.layout import ARRIVE
from pit.spec import WorkflowSpec
from tests.conductor.helpers import MODULE, bundle_parts, preferring, random_observations, small_workflow
from tests.conductor.test_crash import killed_run

Write = Callable[[dict[str, Any]], Path]
ANYWHERE = {f"slot{s}.{name}": [-1.0, -1.0, 1.0, 1.0] for s in range(2) for name in ("rank", "ready_count")}


def spec(observations: np.ndarray) -> RangesSpec:
    return RangesSpec.model_validate(ranges_of(observations))


def many(count: int = 30) -> dict[str, Any]:
    """A workflow of `count` tasks that are done at once, so that there is much to decide."""
    workflow = small_workflow()
    workflow["tasks"] = [{"id": f"t{i}", "function": "plain", "args": {"number": i, "sleep": 0}} for i in range(count)]
    return workflow


# ------------------------------------------------------------------ ranges
def test_distance_is_the_share_of_live_columns_outside() -> None:
    seen = random_observations(400)
    seen[:, 100:] = 0.0
    watch = RangeGuard(spec(seen))
    assert watch.distance(seen[200]) <= 0.01, "what was seen is near"
    inside = np.sort(seen, axis=0)[200]
    assert watch.distance(inside) == 0.0
    for k in (1, 5, 30):
        outside = inside.copy()
        outside[:k] = 2.0
        assert watch.distance(outside) == round(k / 100, 4)
    dead = inside.copy()
    dead[300] = 1e-6
    assert watch.distance(dead) == 1.0
    assert watch.distance(-inside - 1) == 1.0, "below counts as above"


def test_the_guard_trips_at_20_of_50_and_comes_back_at_5() -> None:
    watch = RangeGuard(spec(np.full((10, 512), 0.5, np.float32)))
    near, far = np.full(512, 0.5, np.float32), np.zeros(512, np.float32)
    for k in range(TRIP):
        assert not watch.tripped, k
        watch.look(far)
        watch.look(near)
    assert watch.tripped
    for _ in range(WINDOW - 2 * BACK - 2):
        watch.look(near)
    assert watch.tripped, "6 of the last 50 were far"
    watch.look(near)
    assert not watch.tripped
    for _ in range(TRIP):
        assert not watch.tripped
        watch.look(far)
    assert watch.tripped


@settings(max_examples=60)
@given(st.lists(st.booleans(), max_size=200), st.data())
def test_a_guard_that_recalls_goes_on_as_if_nothing_had_been(flags: list[bool], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(flags)))
    numbers = RangesSpec.model_validate({"decisions": 1, "columns": ANYWHERE})
    whole, first, second = (RangeGuard(numbers) for _ in range(3))
    distances = [0.3 if flag else 0.01 for flag in flags]
    for distance in distances[:at]:
        whole._note(distance)
        first._note(distance)
    second.recall(distances[:at][-WINDOW:], first.tripped)
    for distance in distances[at:]:
        whole._note(distance)
        second._note(distance)
        assert whole.tripped == second.tripped


# ------------------------------------------------------------------ one decision maker
class Counting:
    """A policy that always answers the same, and counts how often it was asked."""

    def __init__(self, action: int, seconds: float = 0.0) -> None:
        self.asked, self._action, self._seconds = 0, action, seconds

    def act(self, obs: np.ndarray, mask: np.ndarray) -> int:
        self.asked += 1
        time.sleep(self._seconds)
        return self._action


@pytest.fixture
def pit() -> Pit:
    pit = Pit(WorkflowSpec.model_validate(small_workflow()), exposure="partial")
    pit.apply(Event(ARRIVE, 0))
    return pit


def choose(maker: DecisionMaker, pit: Pit) -> Decision:
    return maker.choose(pit, pit.observe(), pit.mask())


def test_a_policy_that_is_late_again_and_again_is_put_aside(pit: Pit) -> None:
    policy = Counting(1, seconds=0.002)
    maker = DecisionMaker("adaptive", policy, None, seconds=0.001)  # type: ignore[arg-type]
    notes = [choose(maker, pit).note for _ in range(6)]
    assert notes == ["late"] * 3 + ["put aside"] * 3 and policy.asked == 3
    said = [row for row in (choose(DecisionMaker("adaptive", policy, None, seconds=0.001), pit) for _ in range(2)) if row.said]  # type: ignore[arg-type]
    assert len(said) == 2, "each conductor says it once"


def test_an_answer_in_time_begins_the_count_anew(pit: Pit, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [9.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0, 9.0, 9.0]
    answers = iter(seconds)
    monkeypatch.setattr(decision_maker, "_ask", lambda *_: (1, next(answers)))
    maker = DecisionMaker("adaptive", Counting(1), None)  # type: ignore[arg-type]
    assert [choose(maker, pit).note for _ in seconds] == ["late" if x else "" for x in seconds]
    assert choose(maker, pit).note == "put aside"


def test_the_guard_is_recalled(pit: Pit) -> None:
    watch = RangeGuard(RangesSpec.model_validate({"decisions": 1, "columns": ANYWHERE}))
    policy = Counting(1)
    maker = DecisionMaker("adaptive", policy, None, guard=watch)  # type: ignore[arg-type]
    maker.recall([Decision(1, "rule", "", distance=0.2, tripped=k >= TRIP - 1).payload() for k in range(TRIP + 3)])
    assert choose(maker, pit).note == "out of range" and policy.asked == 0


def test_lateness_is_recalled(pit: Pit) -> None:
    policy = Counting(1, seconds=0.002)

    def rows(*notes: str) -> list[dict[str, Any]]:
        return [Decision(1, "rule", note).payload() for note in notes]

    for notes, expected in (
        (("late", "late"), ["late", "put aside"]),
        (("late", "", "late"), ["late", "late", "put aside"]),
        (("late", "late", "late"), ["put aside"]),
        (("put aside", "put aside"), ["put aside"]),
        (("late", "late", "stopped"), ["late", "late", "late", "put aside"]),
    ):
        maker = DecisionMaker("adaptive", policy, None, seconds=0.001)  # type: ignore[arg-type]
        maker.recall(rows(*notes))
        assert [choose(maker, pit).note for _ in expected] == expected, notes


def test_of_several_reasons_the_strongest_is_told_and_the_policy_is_not_asked(pit: Pit) -> None:
    policy, switch = Counting(1), [True]
    watch = RangeGuard(RangesSpec.model_validate({"decisions": 1, "columns": ANYWHERE}))
    maker = DecisionMaker("adaptive", policy, None, guard=watch, stopped=lambda: switch[0])  # type: ignore[arg-type]
    found = [choose(maker, pit) for _ in range(TRIP + 1)]
    assert {d.note for d in found} == {"stopped"} and found[-1].tripped and found[0].distance == 1.0
    switch[0] = False
    assert choose(maker, pit).note == "out of range" and policy.asked == 0
    other = DecisionMaker("adaptive", None, None, guard=watch, stopped=lambda: True)
    assert choose(other, pit).note == "absent"


def test_a_shadow_is_asked_after_every_decision_with_its_own_exposure(pit: Pit, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    class Watching(Counting):
        def act(self, obs: np.ndarray, mask: np.ndarray) -> int:
            seen.append(obs.copy())
            return super().act(obs, mask)

    full = write_bundle(tmp_path / "full", **bundle_parts(), exposure="full")
    for exposure, expected in (("partial", pit.observe_full()), ("full", pit.observe())):
        shadow = Shadow(full, exposure)
        shadow._policy = Watching(5)  # type: ignore[assignment]
        maker = DecisionMaker("parallel", None, None, shadow=shadow)
        decision = choose(maker, pit)
        assert (decision.by, decision.shadow) == ("rule", 5) and decision.action == pit.rule("critical_path")
        np.testing.assert_array_equal(seen.pop(), expected)
    assert (pit.observe_full() != pit.observe()).any(), "the test means something"
    slow = Shadow(full, "full", seconds=0.001)
    slow._policy = Counting(7, seconds=0.002)  # type: ignore[assignment]
    maker = DecisionMaker("parallel", None, None, shadow=slow)
    assert [choose(maker, pit).shadow for _ in range(5)] == [7, 7, 7, -1, -1]
    assert choose(DecisionMaker("parallel", None, None), pit).shadow is None


# ------------------------------------------------------------------ whole runs
class Heard:
    """An observer that keeps what it hears, and does something at the first event of a kind."""

    def __init__(self, kind: str = "", act: Callable[[], object] = lambda: None) -> None:
        self.said: list[str] = []
        self.folder = Path()
        self._kind, self._act = kind, act

    def __call__(self, kind: str, time: int, text: str) -> None:
        if kind == "begin":
            self.folder = Path(text)
        if kind == "guard":
            self.said.append(text)
        if kind == self._kind:
            self._kind = ""
            self._act()


def check(folder: Path, heard: Heard, words: str, note: str, fallen: int | None = None) -> None:
    """The run was solved, `fallen` decisions (None: all) were the rule's for this reason, said once; its replay is exact."""
    assert verify_run(folder).ended
    report = report_run(folder)
    assert report.status == "solved" and report.done == report.tasks
    assert [text for text in heard.said if words in text] == heard.said and len(heard.said) == 1, heard.said
    rows = [row.data for row in read_journal(folder) if row.kind == "action"]
    notes = [row["note"] for row in rows]
    assert notes.count(note) == report.decisions[f"rule (policy {note})"] == (len(notes) if fallen is None else fallen) > 0
    for row in rows:
        assert row["by"] == ("rule" if row["note"] else "policy")
        assert row["bundle"] == ("" if row["note"] else report.run["bundle"]) and row["latency"] >= 0


def test_a_late_policy(write_workflow: Write, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_maker, "LATE_IN_A_ROW", 10**6)
    real = decision_maker._ask
    monkeypatch.setattr(decision_maker, "_ask", lambda *arguments: (real(*arguments)[0], 1.0))
    heard = Heard()
    folder = begin(load_workflow(write_workflow(many(5))), bundle.path.parent / "runs", bundle=bundle, observer=heard).folder
    check(folder, heard, "the policy answered too late; critical_path decides instead", "late")


def test_a_policy_that_is_not_finite(write_workflow: Write, tmp_path: Path) -> None:
    """Its weights are finite, and it passes its golden vectors: the infinite comes with what it sees."""
    parts = preferring("standard")
    weight = np.full((128, 512), 3e38, np.float32)
    bundle = write_bundle(tmp_path / "nan", **{**parts, "tensors": {**parts["tensors"], "action.weight": weight}})
    heard = Heard()
    folder = begin(load_workflow(write_workflow(many(5))), tmp_path / "runs", bundle=bundle, observer=heard).folder
    check(folder, heard, "not finite; critical_path decides instead", "not finite")


def test_a_policy_out_of_its_range(write_workflow: Write, tmp_path: Path) -> None:
    ranges = {"decisions": 1, "columns": ANYWHERE}  # all else is dead
    bundle = write_bundle(tmp_path / "far", **preferring("standard"), ranges=ranges)
    heard = Heard()
    folder = begin(load_workflow(write_workflow(many(30))), tmp_path / "runs", bundle=bundle, observer=heard).folder
    rows = [row.data for row in read_journal(folder) if row.kind == "action"]
    assert len(rows) >= 30 and {row["distance"] for row in rows} == {1.0}
    assert [row["tripped"] for row in rows] == [k >= TRIP - 1 for k in range(len(rows))]
    check(folder, heard, "sees what it was not trained on", "out of range", len(rows) - TRIP + 1)
    assert report_run(folder).far == len(rows)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by a policy whose conductor was killed after the first result."""
    place = tmp_path_factory.mktemp("killed")
    (place / "work.py").write_text(MODULE)
    (place / "workflow.yaml").write_text(yaml.safe_dump(small_workflow()))
    rule = {"name": "critical_path_warm_wait", "params": {"theta": 0.5}}
    ranges = ranges_of(random_observations(500))
    bundle = write_bundle(place / "bundle", **preferring("standard"), rule=rule, ranges=ranges)
    return killed_run(place / "workflow.yaml", "after_done:1", "--bundle", bundle.path)


def test_an_absent_policy(killed: Path, tmp_path: Path) -> None:
    """The bundle is gone when the conductor is started again: the rule that was fitted for it is in the journal."""
    before = sum(row.kind == "action" for row in read_journal(killed))
    for number, (change, words) in enumerate((
        (lambda place: shutil.rmtree(place), "there is no bundle"),
        (lambda place: (place / "card.md").write_text("x"), "card.md: has 1 bytes"),
        (lambda place: write_bundle(place, **preferring("lite"), overwrite=True), "is not the bundle that the run began with"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder)
        change(folder / "bundle")
        heard = Heard()
        resume(folder, heard)
        assert words in heard.said.pop(0)
        rows = [row.data for row in read_journal(folder) if row.kind == "action"]
        check(folder, heard, "the policy is absent; critical_path_warm_wait decides instead", "absent", len(rows) - before)


def test_an_audit_spans_a_restart(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    resume(tmp_path / "run")
    found = audit.verify(tmp_path / "run")
    kinds = [row.kind for row in read_journal(tmp_path / "run")]
    assert "action" in kinds[: kinds.index("resume")] and "action" in kinds[kinds.index("resume") :]
    assert found.made_again["policy"] == found.decisions == kinds.count("action")


def test_the_switch_takes_the_decisions_and_gives_them_back(
    write_workflow: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "policy", **preferring("standard"))
    workflow = many(4)
    for i, task in enumerate(workflow["tasks"]):
        task["after"] = [f"t{i - 1}"] if i else []
    heard = Heard()

    def observe(kind: str, time: int, text: str) -> None:
        heard(kind, time, text)
        if kind == "finished" and text.startswith("t0"):
            assert main(["stop-policy", str(heard.folder)]) == 0
        if kind == "finished" and text.startswith("t2"):
            assert main(["stop-policy", str(heard.folder), "--undo"]) == 0

    folder = begin(load_workflow(write_workflow(workflow)), tmp_path / "runs", bundle=bundle, observer=observe).folder
    notes = [row.data["note"] for row in read_journal(folder) if row.kind == "action"]
    assert notes[0] == "" and notes[-1] == "" and "stopped" in notes
    check(folder, heard, "the policy was stopped; critical_path decides instead", "stopped", notes.count("stopped"))
    assert not (folder / STOP_FILE).exists()
    told = capsys.readouterr().out
    assert "from the next decision on, unless its conductor got SIGUSR1, which holds until it ends\n" in told
    with pytest.raises(ConductorError, match="this run has ended"):
        throw(folder)
    with pytest.raises(ConductorError, match="there is no journal"):
        throw(tmp_path)
    folder = begin(load_workflow(write_workflow(workflow)), tmp_path / "runs", strategy="parallel").folder
    with pytest.raises(ConductorError, match="no policy decides in this run, its strategy is parallel"):
        throw(folder)


def test_a_signal_takes_the_decisions(write_workflow: Write, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "policy", **preferring("standard"))
    workflow = small_workflow(plain={"kind": "python", "call": "work:until_told", "seconds": 100})
    workflow["tasks"] = [{"id": "a", "function": "plain"}, {"id": "b", "function": "plain", "after": ["a"]}]
    arguments = ["run", write_workflow(workflow), "--bundle", bundle.path, "--runs", tmp_path / "runs"]
    process = subprocess.Popen([sys.executable, "-m", "conductor", *map(str, arguments)], stdout=subprocess.DEVNULL)
    try:
        begun: list[Path] = []
        until = time.monotonic() + 100
        while not begun and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
            begun = [file for file in (tmp_path / "runs").glob("*/files/effects.log") if "begin a" in file.read_text()]
        os.kill(process.pid, signal.SIGUSR1)
        (begun[0].parent / "told").touch()
        assert process.wait(100) == 0
    finally:
        process.kill()
    folder = next((tmp_path / "runs").iterdir())
    assert verify_run(folder).ended
    notes = [row.data["note"] for row in read_journal(folder) if row.kind == "action"]
    assert notes[0] == "" and notes[-1] == "stopped"
    assert not guard.STOP.is_set(), "only that process"


def test_a_shadow_decides_nothing_and_is_reported(
    write_workflow: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_bundle(tmp_path / "first", **preferring("standard", "wait"))
    second = write_bundle(tmp_path / "second", **preferring("wait", "standard"))
    file = write_workflow(small_workflow())
    for shadow, more in ((first, ["--bundle", first.path]), (second, [])):  # a rule may have a shadow, too
        arguments = ["run", file, *more, "--shadow", shadow.path, "--runs", tmp_path / "runs" / shadow.path.name]
        assert main([str(part) for part in arguments]) == 0
        folder = next((tmp_path / "runs" / shadow.path.name).iterdir())
        report = report_run(folder)
        out = capsys.readouterr().out
        agreed = f"agreed in {report.agreed} of {report.shadowed} decisions"
        assert f"shadow {shadow.digest}, not signed: {agreed}" in out and report.run["shadow_signature"] == "not signed"
        assert report.decisions["policy" if more else "rule"] == report.shadowed > 0 and verify_run(folder).ended
        assert (report.agreed == report.shadowed) is bool(more)
        assert report.run["shadow"] == shadow.digest and (folder / "shadow" / "manifest.json").is_file()


def test_a_system_that_was_not_trained_for_is_told(write_workflow: Write, bundle: Bundle) -> None:
    """What differs, at the beginning, once; nothing where nothing does, or where a bundle says what cannot be read."""
    content = small_workflow()
    told: list[str] = []

    def see(kind: str, time: int, text: str) -> None:
        told.append(text) if "another system" in text else None

    workflow = load_workflow(write_workflow(content))
    same = replace(bundle, system_yaml=yaml.safe_dump(workflow.spec.system.model_dump(mode="json")))
    begin(workflow, workflow.base / "runs", bundle=same, observer=see)
    assert not told and unlike("a: &x 1\nb: *x", workflow.spec.system) == "" == unlike("[", workflow.spec.system)
    content["system"]["functions"]["fa"]["standard"]["seconds"] = 0.3
    content["system"]["models"]["A"]["size"] = 2
    content["system"]["functions"]["other"] = {"standard": {"pool": "cpu", "seconds": 1}}
    begin(load_workflow(write_workflow(content)), workflow.base / "runs", bundle=same, observer=see)
    begin(load_workflow(write_workflow(content)), workflow.base / "runs", strategy="parallel", observer=see)  # asks no bundle
    assert told == [
        "the bundle was trained for another system: models.A.size is 2 and was 1; "
        "functions.fa.standard.seconds is 0.3 and was 0.1; functions.other is new"
    ]
    content["system"]["pools"]["spare"] = {"places": 1}
    content["system"]["pools"]["cpu"]["places"] = 3
    begin(load_workflow(write_workflow(content)), workflow.base / "runs", bundle=same, observer=see)
    assert told[1].endswith("pools.spare is new; models.A.size is 2 and was 1; and 2 more")
