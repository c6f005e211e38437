"""Many workflows at once: one journal, one commit a tick, workers that are shared; and going on after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from conductor import Conductor
from conductor.__main__ import main
from conductor.advice import Advice
from conductor.bundle import Bundle
from conductor.errors import ConductorError, Stopped
from conductor.journal import read_journal
from conductor.orchestrator import VOID, resume_all
from conductor.report import report_run, verify_journal
from conductor.run import Run
from conductor.session import Session, begin_all
from conductor.workflow import Workflow, load_workflow
from tests.conductor.helpers import conductor, few_descriptors, output_of, small_workflow
from tests.conductor.test_crash import finished
from tests.conductor.test_health import chain

Write = Callable[[dict[str, Any]], Path]


def steps(count: int = 5, **plan: Any) -> dict[str, Any]:
    """A chain of calls without a model, each of which gives how many came before it."""
    workflow = small_workflow(plain={"kind": "python", "call": "work:add", "seconds": 20, **plan})
    workflow["name"] = "steps"
    workflow["tasks"] = [
        {"id": f"t{i}", "function": "plain", "after": [f"t{i - 1}"] if i else [], "args": {"number": 1, "sleep": 0}}
        for i in range(count)
    ]
    return workflow


def check(folder: Path, runs: int, count: int = 5) -> None:
    """Every run is solved, with its own right output, and the journal replays."""
    verified = verify_journal(folder)
    assert len(verified.runs) == runs and all(folded.view.status() == "solved" for folded in verified.runs)
    for folded in verified.runs:
        place = folder / folded.run["folder"]
        assert output_of(place, folded.view.outputs[f"t{count - 1}"]) == count
        assert finished(place) == dict.fromkeys((f"t{i}" for i in range(count)), 1)
        assert {key for *_, key in keys(place)} == {f"{folder.name}/{place.name}/t{i}" for i in range(count)}


def keys(place: Path) -> list[tuple[str, str, str]]:
    lines = [line.split() for line in (place / "files" / "effects.log").read_text().splitlines()]
    return [(line[0], line[4], " ".join(line[2:3])) for line in lines]


def test_runs_share_workers_and_commits(write_workflow: Write) -> None:
    """Twelve runs over three workers, each in its own folder; far fewer commits than ticks of single runs would take."""
    path = write_workflow(steps())
    results = begin_all([load_workflow(path)] * 12, path.parent / "runs", Advice("parallel"), workers=3)
    (folder,) = (path.parent / "runs").iterdir()
    assert [result.folder.name for result in results] == [f"{i:03}-steps" for i in range(12)]
    check(folder, 12)
    workers = {process for result in results for _, process, _ in keys(result.folder)}
    assert 1 <= len(workers) <= 3
    rows = list(read_journal(folder))
    assert Counter(row.run for row in rows if row.kind == "end") == dict.fromkeys(range(12), 1)
    assert report_run(results[3].folder).done == 5
    with pytest.raises(ConductorError, match="holds several runs"):
        report_run(folder)


def test_different_workflows_at_once(write_workflow: Write, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_workflow(small_workflow())
    other = path.with_name("other.yaml")
    write_workflow(steps()).rename(other)
    write_workflow(small_workflow())
    runs = path.parent / "runs"
    assert main(["run", str(path), str(other), "--bundle", str(bundle.path), "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "solved: 4 of 4 tasks" in out and "solved: 5 of 5 tasks" in out and "001 t4" in out
    (folder,) = runs.iterdir()
    assert output_of(folder / "000-small", report_run(folder / "000-small").outputs["c"]) == 123
    assert main(["journal", "verify", str(folder)]) == 0 and main(["show", str(folder / "001-steps")]) == 0
    assert main(["run", str(path), str(other), "--compare"]) == 2
    assert main(["resume", str(folder)]) == 2


def test_from_threads_and_event_loops(write_workflow: Write, tmp_path: Path) -> None:
    path = write_workflow(steps())

    async def several() -> list[Any]:
        return await asyncio.gather(*(many.run_async(workflow) for workflow in [load_workflow(path)] * 4))

    with Conductor(strategy="parallel", runs=tmp_path / "runs", workers=2) as many:
        results = asyncio.run(several())
        with pytest.raises(ConductorError, match="cannot be read"):
            many.run(tmp_path / "none.yaml")
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(many.run(path))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bad = load_workflow(path)
        broken = Workflow(bad.spec, bad.plan.model_copy(deep=True), bad.limits, tmp_path / "elsewhere")
        with pytest.raises(ConductorError, match=r"instruments cannot be checked|module work"):
            many.run(broken)
    assert {result.status for result in [*results, *found]} == {"solved"}
    (folder,) = (tmp_path / "runs").iterdir()
    check(folder, 7)
    with pytest.raises(ConductorError, match="takes no more workflows: it was closed"):
        many.run(path)


def test_workers_that_cannot_be_started_end_nothing(write_workflow: Write, tmp_path: Path) -> None:
    """The descriptors run out while two workflows are under way: both come to their ends with the workers that there are."""
    path = write_workflow(steps(1, call="work:until_told", seconds=60))
    waits = load_workflow(path)
    wide = steps(6)
    for task in wide["tasks"][1:]:
        task["after"] = ["t0"]
    wide["system"]["max_attempts"] = 3
    with contextlib.ExitStack() as lack:

        def observer(kind: str, time: int, text: str) -> None:
            if kind == "finished" and text.startswith("t0 "):
                lack.enter_context(few_descriptors(3))  # an output can be written, and no worker started

        with Conductor(strategy="parallel", runs=tmp_path / "runs", workers=4, observer=observer) as many:
            first = many.submit(waits)
            while not list(tmp_path.glob("runs/*/*/files/effects.log")):
                time.sleep(0.02)
            assert many.submit(write_workflow(wide)).result(timeout=60).status == "solved"
            lack.close()
            for place in tmp_path.glob("runs/*/000-*/files"):
                (place / "told").touch()
            assert first.result(timeout=60).status == "solved"


def test_nobody_waits_for_others(write_workflow: Write, tmp_path: Path) -> None:
    """A cancelled future, an observer that fails, a module that is slow to import: what is under way goes on."""

    def observer(kind: str, time: int, text: str) -> None:
        raise ValueError(f"{kind}: no")

    path = write_workflow(steps(1, call="work:until_told", seconds=60))
    plain = load_workflow(path)
    slow = steps(1, call="slow:give")
    gate = path.parent / "gate"
    (path.parent / "slow.py").write_text(
        "import time\nfrom pathlib import Path\n"
        f"while not Path({str(gate)!r}).exists():\n    time.sleep(0.02)\ndef give(job):\n    return 1\n"
    )
    with (
        pytest.warns(RuntimeWarning, match="an observer failed and is asked no more: ValueError"),
        Conductor(strategy="parallel", runs=tmp_path / "runs", workers=2, observer=observer) as many,
    ):
        first = many.submit(path)

        async def impatient() -> None:
            waiting = asyncio.ensure_future(many.run_async(path))
            while len(list(tmp_path.glob("runs/*/*/files/effects.log"))) < 2:
                await asyncio.sleep(0.02)
            waiting.cancel()
            await waiting

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(impatient())
        assert not first.cancel()  # it has begun
        late, never = many.submit(write_workflow(slow)), many.submit(plain)
        assert never.cancel()
        for place in tmp_path.glob("runs/*/*/files"):
            (place / "told").touch()
        assert first.result(timeout=60).status == "solved" and not late.done()
        gate.touch()
        assert late.result(timeout=60).status == "solved"
    (folder,) = (tmp_path / "runs").iterdir()
    verified = verify_journal(folder)
    assert [folded.view.status() for folded in verified.runs] == ["solved"] * 3  # the one whose waiter went away, too


def test_a_callback_may_submit_while_the_loop_ends(write_workflow: Write, tmp_path: Path) -> None:
    """A workflow that arrives between the loop's last look and its end is told so, and what is called back then may submit."""
    path = write_workflow(steps(1, call="work:straggle_once", seconds=60))
    many = Conductor(strategy="parallel", runs=tmp_path / "runs")
    first = many.submit(path)
    while not list(tmp_path.glob("runs/*/*/files/effects.log")):
        assert not first.done(), first.exception()
        time.sleep(0.02)
    assert many._session is not None
    loop, told, arrived = many._session.loop, [], threading.Event()
    stop = loop._stop

    def again(future: Future[Any]) -> None:
        with pytest.raises(ConductorError, match="takes no more") as refused:
            many.submit(path)
        told.append(str(refused.value))

    def late() -> None:
        many.submit(path).add_done_callback(again)
        arrived.set()
        while not loop.inbox:
            time.sleep(0.02)
        stop()

    loop._stop = late  # type: ignore[method-assign]
    many.stop()
    assert arrived.wait(60)
    ending = threading.Thread(target=many.close, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive() and len(told) == 1
    with pytest.raises(Stopped):
        first.result(timeout=60)


def test_a_workflow_that_cannot_be_waited_for_leaves_nothing(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_workflow(steps(1))
    session = Session(Advice("parallel"), path.parent / "runs")
    with monkeypatch.context() as patch:
        error = OSError(errno.ENOSPC, "too many are watched")
        patch.setattr(session.loop.clock, "watch", Mock(side_effect=error))
        with pytest.raises(OSError, match="too many are watched"):
            session.enter(load_workflow(path))
    session.enter(load_workflow(path))
    assert [result.status for result in session.loop.serve()] == ["solved"]
    check(session.folder, 1, 1)


@pytest.mark.parametrize(("call", "horizon", "status"), [("add", None, "solved"), ("until_told", 0.5, "expired")])
def test_who_decides_without_end_keeps_nobody_waiting(
    write_workflow: Write, monkeypatch: pytest.MonkeyPatch, call: str, horizon: float | None, status: str
) -> None:
    """The calls and the timers of another run are looked at, too."""
    over = threading.Event()
    decide, until = Run._decide, time.monotonic() + 60

    def restless(run: Run, now: int) -> None:
        """The first run has always used up its decisions, until the other one has ended."""
        decide(run, now)
        if run.number == 0 and not over.is_set():
            assert time.monotonic() < until, "the other run is kept waiting"
            run.undecided = True

    def observer(kind: str, at: int, text: str) -> None:
        if kind == "end":
            over.set()
            for place in runs.glob("*/*/files"):
                (place / "told").touch()

    monkeypatch.setattr(Run, "_decide", restless)
    path = write_workflow(steps(1, call="work:until_told", seconds=100))
    runs, first, other = path.parent / "runs", load_workflow(path), steps(1, call=f"work:{call}")
    if horizon is not None:
        other["system"]["horizon_seconds"] = horizon
    workflows = [first, load_workflow(write_workflow(other))]
    results = begin_all(workflows, runs, Advice("parallel"), observers=[None, observer])
    assert [result.status for result in results] == ["solved", status]


def test_stopping_many_and_going_on(write_workflow: Write, tmp_path: Path) -> None:
    path = write_workflow(steps(1, call="work:straggle_once", seconds=60))
    many = Conductor(strategy="parallel", runs=tmp_path / "runs", workers=2)
    futures = [many.submit(path) for _ in range(3)]
    # The third has begun, too, and waits for a worker.
    while len(list(tmp_path.glob("runs/*/00?-steps/files"))) < 3 or len(list(tmp_path.glob("runs/*/*/files/effects.log"))) < 2:
        assert not any(future.done() for future in futures), [future.exception() for future in futures if future.done()]
        time.sleep(0.02)
    many.stop()
    for future in futures:
        with pytest.raises(Stopped):
            future.result(timeout=60)
    many.close()
    (folder,) = (tmp_path / "runs").iterdir()
    results = resume_all(folder)
    assert len(results) == 3 and {result.status for result in results} == {"solved"}
    check(folder, 3, 1)


@pytest.mark.parametrize("at", ["after_intent:4", pytest.param("after_done:7", marks=pytest.mark.slow)])
def test_many_killed_at_once(write_workflow: Write, at: str) -> None:
    path = write_workflow(steps())
    runs = path.parent / "runs"
    done = conductor("run", *[path] * 4, "--runs", runs, FQ_KILL_AT=at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = runs.iterdir()
    before = [finished(folder / f"{i:03}-steps") for i in range(4)]
    resume_all(folder)
    check(folder, 4)
    assert any(before)


@pytest.mark.parametrize("strategy", ["parallel", pytest.param("sequential", marks=pytest.mark.slow)])
def test_a_back_off_is_waited_for(write_workflow: Write, strategy: str) -> None:
    """After each failure a pool is left alone for twice as long as before, on the real clock, as the Pit's timers say."""
    workflow = steps(1, call="work:fail_twice")
    workflow["system"].update(back_off_seconds=0.1, back_off_jitter=0.0, verbs=["standard", "wait", "back_off"])
    path = write_workflow(workflow)
    (result,) = begin_all([load_workflow(path)], path.parent / "runs", Advice(strategy))
    rows = list(read_journal(result.folder.parent))
    starts = [row.time for row in rows if row.kind == "intent"]
    failed = [row.time for row in rows if row.kind == "event" and row.data["error"] == "throttled"]
    assert result.status == "solved" and len(starts) == 3
    assert starts[1] - failed[0] >= 100_000 and starts[2] - failed[1] >= 200_000


def test_nothing_is_kept_of_what_has_ended(write_workflow: Write, tmp_path: Path) -> None:
    """Neither a run, nor its result, nor its timers, however far ahead they were, while another one goes on."""
    path = write_workflow(steps(seconds=36_000))
    quick = load_workflow(path)
    long = load_workflow(write_workflow(steps(1, call="work:until_told", seconds=100)))
    with Conductor(strategy="parallel", runs=tmp_path / "runs", workers=2) as many:
        last = many.submit(long)
        for _ in range(20):
            assert many.run(quick).status == "solved"
        assert many._session is not None
        loop = many._session.loop
        while sum(type(thing) is Run and tmp_path in thing.folder.parents for thing in gc.get_objects()) > 1:
            gc.collect()
            assert not last.done(), "what has ended is kept for as long as the other one goes on"
        assert loop._results == [] and len(loop._timers) <= 2 + VOID
        for place in tmp_path.glob("runs/*/*/files"):
            (place / "told").touch()
        assert last.result(timeout=60).status == "solved"


def test_shared_workers_begin_anew_when_configured(write_workflow: Write) -> None:
    """The worker that served before does not serve afterwards, idle as it was."""
    path = write_workflow(chain("changed", tasks=4, configure="work:configure"))
    (result,) = begin_all([load_workflow(path)], path.parent / "runs", Advice("parallel"), workers=1)
    told = [row.data["kind"] for row in read_journal(result.folder.parent) if row.kind == "event" and row.data["applied"]]
    assert result.status == "solved" and told.count("config_changed") == 1
    processes = [line.split()[4] for line in (result.folder / "files" / "effects.log").read_text().splitlines()]
    assert processes[0] == processes[2] != processes[-1]
