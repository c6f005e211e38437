"""kill -9 at every boundary of the journal, then resume: nothing lost, nothing recorded twice, the right output."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.bundle import Bundle
from conductor.errors import ConductorError
from conductor.journal import Journal, read_journal, read_run
from conductor.orchestrator import resume
from conductor.pit_interface import fold
from conductor.report import report_run
from pit.layout import BACK_OFF
from tests.conductor.helpers import conductor, output_of, small_workflow

Write = Callable[[dict[str, Any]], Path]


def effects(folder: Path) -> list[tuple[str, str, str, int]]:
    """(begin or end, task, key, process) of every effect that really happened, recorded or not."""
    lines = [line.split() for line in (folder / "files" / "effects.log").read_text().splitlines()]
    return [(what, task, key, int(process)) for what, task, key, _, process in lines]


def finished(folder: Path) -> Counter[str]:
    """How often each task's success is recorded."""
    calls = {row.data["call"]: row.data["task"] for row in read_run(folder) if row.kind == "intent"}
    events = [row.data for row in read_run(folder) if row.kind == "event" and row.data["kind"] == "finished"]
    return Counter(calls[e["subject"]] for e in events if e["error"] == "ok" and e["applied"])


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def killed_run(path: Path, at: str, *arguments: object) -> Path:
    done = conductor("run", path, "--runs", path.parent / "runs", *arguments, FQ_KILL_AT=at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (path.parent / "runs").iterdir()
    return folder


POINTS = [f"{point}:{n}" for point in ("before_intent", "after_intent", "mid_effect", "before_done") for n in (1, 3)]
POINTS += ["after_done:1", "after_done:2"]  # the third is the run's end where a1 and a2 end in one tick


@pytest.mark.parametrize("at", [p for p in POINTS if p != "before_intent:1"])
def test_killed_at_every_boundary(write_workflow: Write, bundle: Bundle, at: str) -> None:
    content = small_workflow()
    content["system"]["max_attempts"] = 1  # the conductor's own death is no failed attempt
    folder = killed_run(write_workflow(content), at, "--bundle", bundle.path)
    deadline = time.monotonic() + 60
    before = finished(folder)
    workers = {process for *_, process in effects(folder)} if (folder / "files" / "effects.log").exists() else set()
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, workers)), "a worker outlived its conductor"
    done_before = Counter(task for what, task, *_ in (effects(folder) if workers else []) if what == "end")

    result = resume(folder)
    assert result.status == "solved" and output_of(folder, report_run(folder).outputs["c"]) == 123
    assert finished(folder) == dict.fromkeys(("a1", "a2", "b", "c"), 1)  # nothing lost, nothing recorded twice
    assert fold(read_journal(folder)).ended
    ends = Counter(task for what, task, *_ in effects(folder) if what == "end")
    for task in before:
        assert ends[task] == done_before[task] == 1  # a recorded result is never worked for again
    assert len({(task, key) for _, task, key, _ in effects(folder)}) == 4  # one key a task, whatever happened
    assert len([row for row in read_journal(folder) if row.kind == "resume"]) == 1
    decided = [row.data for row in read_journal(folder) if row.kind == "action"]
    assert result.decisions == Counter(word for d in decided for word in (d["by"], d["note"]) if word)


def test_killed_before_anything_was_recorded(write_workflow: Write) -> None:
    """The very first tick is one commit: either the run has begun, with its first intents, or there is no run."""
    workflow = small_workflow()
    workflow["tasks"] = [{"id": "c", "function": "plain"}]
    folder = killed_run(write_workflow(workflow), "before_intent:1")
    with pytest.raises(ConductorError, match="is empty; its run never began"):
        resume(folder)


def test_killed_again_and_again(write_workflow: Write) -> None:
    """Every conductor dies right after it has recorded one result; the run still ends, and each result stands once."""
    folder = killed_run(write_workflow(small_workflow()), "after_done:1")
    for _ in range(5):
        done = conductor("resume", folder, FQ_KILL_AT="after_done:1")
        if done.returncode != -signal.SIGKILL:
            break
    assert "has ended already (solved)" in done.stderr and done.returncode == 2
    assert finished(folder) == dict.fromkeys(("a1", "a2", "b", "c"), 1)
    assert output_of(folder, report_run(folder).outputs["c"]) == 123


def test_a_lost_call_is_no_failure(write_workflow: Write) -> None:
    """Nobody backs off from its pool, and nothing of its health changes; what it has cost is paid."""
    workflow = small_workflow(plain={"kind": "python", "call": "work:until_told", "seconds": 90})
    workflow["system"].update(back_off_seconds=0.1, verbs=["standard", "wait", "back_off"])
    workflow["system"]["functions"]["fa"]["standard"].pop("model")
    workflow["system"]["functions"]["plain"]["standard"]["price"] = 3.0
    workflow["tasks"] = [{"id": "quick", "function": "fa"}, {"id": "long", "function": "plain"}]
    folder = killed_run(write_workflow(workflow), "after_done:1", "--strategy", "parallel")
    (folder / "files" / "told").touch()
    assert resume(folder).status == "solved"
    quick, lost, again = report_run(folder).calls
    assert [call.result for call in (quick, lost, again)] == ["ok", "cancelled", "ok"]
    begun, at = [row.time for row in read_run(folder) if row.data.get("call") == 1 or row.kind == "resume"]
    assert lost.run == (at - begun) / 1e6 > 0.0 and lost.price == 3 * (at - begun) / 1e6
    assert report_run(folder).spent == pytest.approx(quick.price + lost.price + again.price)
    folded = fold(read_run(folder))
    assert {s.in_row for s in folded.view.pit.signatures()} == {0}
    assert BACK_OFF not in [row.data["action"] for row in read_run(folder) if row.kind == "action"]


def test_resume_is_refused(write_workflow: Write, bundle: Bundle, tmp_path: Path) -> None:
    folder = killed_run(write_workflow(small_workflow()), "after_done:1", "--bundle", bundle.path)
    other = Journal(folder, new=False)
    with pytest.raises(ConductorError, match="another conductor is writing this journal"):
        resume(folder)
    other.close()
    (tmp_path / "work.py").rename(tmp_path / "gone.py")
    with pytest.raises(ConductorError, match="module work of 'work:add' cannot be imported"):
        resume(folder)
    (tmp_path / "gone.py").rename(tmp_path / "work.py")
    before = len(list(read_journal(folder)))
    assert before and resume(folder).status == "solved"
    with pytest.raises(ConductorError, match=r"has ended already \(solved\)"):
        resume(folder)
    with pytest.raises(ConductorError, match="there is no journal"):
        resume(tmp_path)
