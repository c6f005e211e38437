"""The shipped examples do what they say, with the answers that they must come to, and replay bit for bit."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
from pathlib import Path

import pytest

from conductor.bundle import Bundle
from conductor.journal import read_journal
from conductor.orchestrator import begin, resume
from conductor.pit_interface import fold
from conductor.report import report_run, verify_run
from conductor.workflow import load_workflow
from tests.conductor.helpers import conductor, output_of
from tests.conductor.test_crash import finished

PROGRAMS = {
    "largest_jump": "max([abs(x) for x in [y - x for x, y in zip(xs, xs[1:])]])",
    "positive_weight": "len(xs) * sum([x for x in xs if x > 0])",
    "second_largest": "max(sorted(set(xs))[:-1])",
    "zigzag": "sum(xs[::2]) - sum(xs[1::2])",
}


def test_code_forge_finds_the_programs(root: Path, tmp_path: Path) -> None:
    """With standard variants throughout: right programs, a natural failure on the way, an eviction, a checkable report."""
    workflow = load_workflow(root / "examples" / "code_forge" / "workflow.yaml")
    report = report_run(begin(workflow, tmp_path, strategy="parallel").folder)
    assert report.status == "solved" and report.done == report.tasks == 25 and report.score["base"] == 1.0
    assert output_of(Path(report.folder), report.outputs["report"])["programs"] == PROGRAMS
    assert report.events["unloaded"] >= 1
    failed = [call for call in report.calls if call.function == "draft" and call.result == "error"]
    assert {call.task for call in failed} == {"draft positive_weight", "draft zigzag"}
    text = (Path(report.folder) / "files" / "report.md").read_text()
    assert text.count("| 100.0% |") == 4 and re.search(r"passed: 1\.0000", text)
    folded = verify_run(report.folder)
    assert folded.ended and list(folded.view.workflow.system.pools) == ["forge", "bench"]  # as in the file: pools are numbered so


def test_code_forge_under_any_policy_ends_with_a_report(root: Path, tmp_path: Path, bundle: Bundle) -> None:
    """A policy of random weights chooses lite variants too, and the measured quality says what that costs."""
    workflow = load_workflow(root / "examples" / "code_forge" / "workflow.yaml")
    report = report_run(begin(workflow, tmp_path / "runs", strategy="adaptive", bundle=bundle).folder)
    assert report.status == "solved"
    mean = output_of(Path(report.folder), report.outputs["report"])["mean"]
    assert 0 <= mean <= 1 and abs(report.score["base"] - mean) < 1e-6


MISSING = [name for name in ("tesseract", "apertium", "espeak-ng") if shutil.which(name) is None]
MISSING += ["pocketsphinx"] if importlib.util.find_spec("pocketsphinx") is None else []


@pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")
def test_documents_are_understood(root: Path, tmp_path: Path) -> None:
    """Standard throughout: a page that is hard to read fails and is cleaned, and most words arrive."""
    workflow = load_workflow(root / "examples" / "documents" / "workflow.yaml")
    report = report_run(begin(workflow, tmp_path, strategy="parallel").folder)
    assert report.status == "solved" and report.done == report.tasks == 19
    failed = [call for call in report.calls if call.result != "ok"]
    assert [call.task for call in failed] == ["read_notice"] and "hard to read" in failed[0].text
    rates = output_of(Path(report.folder), report.outputs["report"])["word_error_rates"]
    assert set(rates) == {"letter", "list", "notice"} and all(0 < rate < 0.6 for rate in rates.values())
    assert report.score["base"] == pytest.approx(1 - sum(rates.values()) / 3, abs=1e-4)
    assert verify_run(report.folder).ended


def test_data_is_learned(root: Path, tmp_path: Path, bundle: Bundle) -> None:
    """Under a policy of random weights: regressions that have not converged fail, and the vote is right all the same."""
    workflow = load_workflow(root / "examples" / "data" / "workflow.yaml")
    report = report_run(begin(workflow, tmp_path / "runs", strategy="adaptive", bundle=bundle).folder)
    assert report.status == "solved" and report.done == report.tasks == 11
    failed = [call for call in report.calls if call.result != "ok"]
    assert {call.function for call in failed} == {"linear"} and "has not converged within 15 steps" in failed[0].text
    right = output_of(Path(report.folder), report.outputs["report"])["right"]
    assert all(share > 0.9 for share in right.values())
    assert report.score["base"] == pytest.approx(sum(right.values()) / 2, abs=1e-4)
    assert verify_run(report.folder).ended


@pytest.mark.slow
@pytest.mark.parametrize("count", (1, 12))
@pytest.mark.parametrize("point", ("before_intent", "after_intent", "mid_effect", "before_done", "after_done"))
def test_code_forge_killed_at_every_boundary(root: Path, tmp_path: Path, point: str, count: int) -> None:
    """kill -9, then resume: no recorded result is lost or recorded twice, and the programs found are the right ones."""
    workflow = root / "examples" / "code_forge" / "workflow.yaml"
    done = conductor("run", workflow, "--strategy", "parallel", "--runs", tmp_path, FQ_KILL_AT=f"{point}:{count}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = tmp_path.iterdir()
    recorded = finished(folder)
    result = resume(folder)
    assert result.status == "solved" and output_of(folder, report_run(folder).outputs["report"])["programs"] == PROGRAMS
    after = finished(folder)
    assert set(after.values()) == {1} and len(after) == 25 and recorded.keys() <= after.keys()
    assert fold(read_journal(folder)).ended  # every observation, mask and the final state again, bit for bit
