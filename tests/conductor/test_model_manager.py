"""The lifecycle of real copies: load, warm, active, cooldown, unload, and what becomes of one that dies or does not load."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.instruments.sandbox import Limits
from conductor.model_manager import DEATHS, ModelManager
from conductor.places import Report
from conductor.workflow import Plan
from conductor.workshop import Workshop
from tests.conductor.helpers import few_descriptors
from tests.conductor.test_instruments import FORGER

MODELS = """
import os, time
from pathlib import Path
def load(seconds=0.0, needs=None):
    time.sleep(seconds)
    if needs is not None and not Path(needs).exists():
        raise RuntimeError("no weights")
    Path("loaded").write_text(str(os.getpid()))
    return os.getpid()
def recite(job):
    Path(f"begun-{job.task}-{job.attempt}").touch()
    return job.task * 300_000
def die(job):
    os._exit(7)
def ask(job):
    Path(f"begun-{job.task}-{job.attempt}").touch()
    while job.args.get("until") and not Path(job.args["until"]).exists():
        time.sleep(0.01)
    return [job.model, os.getpid()]
def configure(function, variant):
    pass
"""

LEAKS = sys.version_info < (3, 11, 4)  # Python's own subprocess loses a pipe there if it cannot make the next one (gh-87474)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ModelManager]:
    """A model `m` that serves two calls at once, one that loads slowly, one that loads only if `files/weights` is there."""
    (tmp_path / "models.py").write_text(MODELS)
    plan = Plan.model_validate({
        "functions": {
            "ask": {"kind": "python", "call": "models:ask", "seconds": 60},
            "die": {"kind": "python", "call": "models:die", "seconds": 60},
            "recite": {"kind": "python", "call": "models:recite", "seconds": 60},
            "anew": {"kind": "python", "call": "models:ask", "seconds": 60, "configure": "models:configure"},
            "forge": {"kind": "python", "call": "forger:f", "seconds": 60},
        },
        "models": {
            "m": {"load": "models:load"},
            "slow": {"load": "models:load", "args": {"seconds": 60.0}, "seconds": 0.5},
            "picky": {"load": "models:load", "args": {"needs": "weights"}},
        },
    })  # fmt: skip
    manager = ModelManager(plan, {"m": 2, "slow": 1, "picky": 1}, tmp_path, tmp_path, Limits())
    yield manager
    manager.close()


def job(task: str, attempt: int = 1, **args: Any) -> dict[str, Any]:
    fields = {"key": task, "task": task, "function": "ask", "variant": "standard", "attempt": attempt}
    return {**fields, "args": args, "inputs": {}, "seconds": 60}


def until(manager: ModelManager, *kinds: str) -> list[Report]:
    """Reports until those of these kinds have come, in this order among all."""
    found: list[Report] = []
    while [report.kind for report in found] != list(kinds):
        reports = manager.poll(60.0)
        assert reports, f"only {found} within a minute"
        found += reports
        assert [report.kind for report in found] == list(kinds)[: len(found)], found
    return found


def held() -> tuple[list[str], str]:
    """This process's descriptors and the processes that its main thread has started."""
    process = os.getpid()
    return sorted(os.listdir("/proc/self/fd")), Path(f"/proc/{process}/task/{process}/children").read_text()


def alive(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(path: Path, manager: ModelManager) -> None:
    for _ in range(6000):
        if path.exists():
            return
        manager.poll(0.01)
    raise AssertionError(f"{path.name} did not come within a minute")


def test_a_copy_lives_from_its_load_to_its_unload(manager: ModelManager, tmp_path: Path) -> None:
    """One process: it loads, waits warm, serves, waits again, and is gone before its memory is said to be free."""
    manager.load(0, "m")
    (loaded,) = until(manager, "loaded")
    assert (loaded.subject, loaded.error) == (0, "ok") and loaded.elapsed > 0
    assert manager.poll(0.05) == []  # warm
    manager.start(1, 0, job("a"))
    (first,) = until(manager, "finished")
    manager.start(2, 0, job("b"))
    (second,) = until(manager, "finished")
    assert first.value == second.value and first.value[0] == first.value[1]  # the model was loaded where it serves, once
    assert alive(first.value[0])
    manager.unload(0)
    assert not alive(first.value[0])
    assert until(manager, "unloaded")[0].subject == 0


def test_a_load_that_takes_too_long_has_failed(manager: ModelManager) -> None:
    manager.load(3, "slow")
    (failed,) = until(manager, "load_failed")
    assert (failed.subject, failed.error) == (3, "timeout") and "model slow did not load within its time limit" in failed.text
    manager.unload(3)
    assert until(manager, "unloaded")[0].subject == 3


def test_a_copy_that_dies_while_it_is_warm_is_loaded_again(manager: ModelManager) -> None:
    manager.load(0, "m")
    until(manager, "loaded")
    manager.start(1, 0, job("a"))
    before = until(manager, "finished")[0].value[0]
    os.kill(before, signal.SIGKILL)
    (reload,) = until(manager, "reload")
    assert (reload.subject, reload.value) == (0, "m") and "ended unasked (signal 9, SIGKILL)" in reload.text
    manager.start(2, 0, job("b"))
    _, after = until(manager, "started", "finished")
    assert after.value[0] == after.value[1] != before


@pytest.mark.parametrize("kind", ["copy", "plain", "shared"])
def test_a_worker_that_died_while_nobody_listened_gets_no_call(manager: ModelManager, tmp_path: Path, kind: str) -> None:
    workshop = Workshop(tmp_path, 1)
    shared = ModelManager(manager._plan, {}, tmp_path, tmp_path, Limits(), workshop)
    used, copy = (shared if kind == "shared" else manager), (0 if kind == "copy" else -1)
    if kind == "copy":
        manager.load(copy, "m")
        until(manager, "loaded")
    used.start(1, copy, job("a"))
    before = until(used, "finished")[0].value[1]
    os.kill(before, signal.SIGKILL)
    while Path(f"/proc/{before}").exists():  # until its last thread has ended, too
        time.sleep(0.01)
    used.start(2, copy, job("b"))
    found = until(used, *(["reload", "started"] if kind == "copy" else []), "finished")
    assert found[-1].error == "ok" and found[-1].value[1] != before
    shared.close()
    workshop.close()


@pytest.mark.parametrize(
    ("code", "limits", "words"),
    [
        ("os.kill(os.getpid(), 9)", Limits(), "(signal 9, SIGKILL)"),
        ("os.kill(os.getppid(), 9); time.sleep(30)", Limits(), "(its supervisor was killed)"),
        ("os._exit(3)", Limits(), "(exit status 3)"),
        # raised in the thread that runs the call, as a fault is: `kill` may choose another, and this one answers first
        ("signal.raise_signal(11)", Limits(), "(signal 11, SIGSEGV)"),
        ("signal.raise_signal(11)", Limits(memory=4000), "instruments.limits.memory is 4000 MiB"),
        (
            "ctypes.CDLL(None).signal(25, None); open('x', 'wb').write(bytes(3 << 20))",
            Limits(file=1),
            "more than 1 MiB into one file, instruments.limits.file",
        ),
        ("[os.fork() or time.sleep(30) for _ in range(5)]; time.sleep(30)", Limits(processes=4), "more than 4 processes"),
    ],
)
def test_how_a_worker_ended_is_said_as_far_as_it_is_known(tmp_path: Path, code: str, limits: Limits, words: str) -> None:
    (tmp_path / "ends.py").write_text(f"import ctypes, os, signal, time\ndef f(job):\n    {code}\n")
    plan = Plan.model_validate({"functions": {"ask": {"kind": "python", "call": "ends:f", "seconds": 60}}})
    manager = ModelManager(plan, {}, tmp_path, tmp_path, limits)
    manager.start(1, -1, job("a"))
    (finished,) = until(manager, "finished")
    manager.close()
    assert finished.error == "error" and words in finished.text
    assert ("instruments.limits" in finished.text) == (limits != Limits())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('half', 'a word', chr(27)); os._exit(9)", r"(exit status 9); it printed: half a word \x1b"),
        ("os._exit(9)", "(exit status 9)"),
        ("print('x' * 10_000); os.kill(os.getpid(), 9)", f"(signal 9, SIGKILL); it printed: {'x' * 399}"),
    ],
)
def test_a_check_tells_how_its_worker_ended(tmp_path: Path, code: str, words: str) -> None:
    """All of it: the folder of its log will be gone. What an earlier worker wrote there is not its own."""
    (tmp_path / "ends.py").write_text(f"import os\n{code}\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("of another time\n")
    plan = Plan.model_validate({"functions": {"ask": {"kind": "python", "call": "ends:f", "seconds": 60}}})
    manager = ModelManager(plan, {}, tmp_path, tmp_path, Limits())
    with pytest.raises(ConductorError) as told:
        manager.check({"ask": ["standard"]}, [], "w.yaml")
    manager.close()
    assert str(told.value) == f"w.yaml: instruments cannot be checked: a worker process ended {words}"


def test_an_error_names_the_log_of_its_worker(tmp_path: Path) -> None:
    """Also of one that is shared, whose log is not in the run's folder."""
    (tmp_path / "models.py").write_text(MODELS)
    plan = Plan.model_validate({"functions": {"ask": {"kind": "python", "call": "models:die", "seconds": 60}}})
    (tmp_path / "run").mkdir()
    workshop = Workshop(tmp_path, 1)
    manager = ModelManager(plan, {}, tmp_path, tmp_path / "run", Limits(), workshop)
    manager.start(1, -1, job("a"))
    text = until(manager, "finished")[0].text
    manager.close()
    assert text.endswith(f"see {tmp_path / 'logs' / 'worker-1.log'}") and (tmp_path / "logs" / "worker-1.log").exists()


@pytest.mark.parametrize("copy", [0, -1])
def test_a_worker_that_writes_what_is_no_reply_is_replaced(manager: ModelManager, tmp_path: Path, copy: int) -> None:
    """Its call ends in an error, and the next one is served."""
    (tmp_path / "forger.py").write_text(FORGER)
    if copy >= 0:
        manager.load(copy, "m")
        until(manager, "loaded")
    again = ["reload"] if copy >= 0 else []
    manager.start(1, copy, {**job("a", write="[1]"), "function": "forge"})
    finished = until(manager, "finished", *again)[0]
    assert (finished.subject, finished.error) == (1, "error") and "wrote what is no reply" in finished.text
    manager.start(2, copy, {**job("a", attempt=2), "function": "forge"})
    assert until(manager, *(["started"] if again else []), "finished")[-1].value == 2


def test_a_reload_that_fails_is_tried_again_with_the_next_call(manager: ModelManager, tmp_path: Path) -> None:
    weights = tmp_path / "files" / "weights"
    weights.touch()
    manager.load(0, "picky")
    until(manager, "loaded")
    manager.start(1, 0, job("a"))
    before = until(manager, "finished")[0].value[0]
    weights.unlink()
    os.kill(before, signal.SIGKILL)
    until(manager, "reload")
    manager.start(2, 0, job("b"))
    (failed,) = until(manager, "finished")
    assert (failed.subject, failed.error) == (2, "load") and "no weights" in failed.text
    weights.touch()
    manager.start(3, 0, job("c"))
    found = until(manager, "reload", "started", "finished")
    assert "the last reload failed" in found[0].text and found[2].error == "ok"


def test_a_copy_that_dies_after_each_load_is_not_loaded_for_ever(manager: ModelManager, tmp_path: Path) -> None:
    """After the third time it is loaded again only when a call wants it; one that has answered is trusted again."""

    def kill() -> None:
        while manager._copies[0].state != "ready":
            assert manager.poll(0.01) == []
        os.kill(int((tmp_path / "files" / "loaded").read_text()), signal.SIGKILL)

    def dead() -> bool:
        return 0 not in manager._copies and manager.deadline() is None

    def wear_out() -> None:
        for _ in range(DEATHS - 1):
            kill()
            assert "ended unasked (signal 9, SIGKILL)" in until(manager, "reload")[0].text
        kill()
        while not dead():
            assert manager.poll(0.01) == []

    manager.load(0, "m")
    until(manager, "loaded")
    wear_out()
    for number in (1, 2):
        manager.start(number, 0, {**job("a"), "function": "die"})
        reload, started, finished = until(manager, "reload", "started", "finished")
        how = "signal 9, SIGKILL" if number == 1 else "exit status 7"
        assert f"ended unasked ({how})" in reload.text and "times, with no call answered in between" in reload.text
        assert (started.subject, finished.subject, finished.error) == (number, number, "error") and dead()
    manager.start(3, 0, job("a"))
    assert until(manager, "reload", "started", "finished")[2].error == "ok"
    wear_out()
    manager.unload(0)
    manager.load(0, "m")
    until(manager, "unloaded", "loaded")  # another copy
    wear_out()


@pytest.mark.parametrize("late", [True, False])
def test_a_reply_that_has_begun_is_heard_out(manager: ModelManager, late: bool) -> None:
    """A call whose output is longer than a pipe has ended, though nobody listened until its time was up or it is cancelled."""
    manager.load(0, "m")
    until(manager, "loaded")
    manager.start(1, 0, {**job("a"), "function": "recite", "seconds": 0.1})
    assert select.select([manager.fileno()], [], [], 60.0)[0]
    while late and (limit := manager.deadline()) is not None and 1e6 * time.monotonic() < limit:
        time.sleep(0.01)
    if not late:
        manager.cancel(1)
    (finished,) = until(manager, "finished")
    assert (finished.error, finished.value) == ("ok", "a" * 300_000)
    manager.start(2, 0, job("b"))
    assert until(manager, "finished")[0].error == "ok"  # on the same copy


def test_a_reply_without_an_end_is_not_waited_for(manager: ModelManager, tmp_path: Path) -> None:
    (tmp_path / "forger.py").write_text(FORGER)
    manager.start(1, -1, {**job("a", write='{"id"', end=""), "function": "forge", "seconds": 0.1})
    assert until(manager, "finished")[0].error == "timeout"


def test_a_call_that_is_cancelled_takes_its_copy_and_no_other_call(manager: ModelManager, tmp_path: Path) -> None:
    """What else ran on the copy begins again on the next one, and nothing is said of the cancelled call."""
    manager.load(0, "m")
    until(manager, "loaded")
    manager.start(1, 0, job("a", until="go"))
    manager.start(2, 0, job("b", until="go"))
    for name in ("a", "b"):
        wait_for(tmp_path / "files" / f"begun-{name}-1", manager)
    manager.cancel(1)
    (tmp_path / "files" / "go").touch()
    reports = until(manager, "reload", "started", "finished")
    assert [report.subject for report in reports] == [0, 2, 2] and reports[2].error == "ok"


def test_a_worker_that_cannot_be_started_fails_one_call_or_load(manager: ModelManager) -> None:
    """Wherever descriptors run out: nothing of the worker is left, and the next one is started."""
    manager.start(1, -1, job("a"))  # whatever is imported for the first one
    manager.cancel(1)
    before = held()
    short = 0
    while True:
        with few_descriptors(short):
            manager.start(1, -1, job("a"))
        if not manager.pending():
            break
        (finished,) = until(manager, "finished")
        assert (finished.subject, finished.error) == (1, "error")
        assert "a worker process could not be started: [Errno 24] Too many open files" in finished.text
        before = held() if LEAKS else before
        assert held() == before
        short += 1
    manager.cancel(1)  # it could be started, and may itself lack descriptors
    manager.poll(0)
    assert short > 8 and held() == before
    with few_descriptors(0):
        manager.load(0, "m")
        manager.configure(0, "anew", "standard", None)
        manager.reload(1, "m", "the conductor was started again")
        manager.start(2, 1, job("b"))
    failed, configured, finished = until(manager, "load_failed", "config_changed", "finished")
    assert (failed.subject, failed.error, configured.subject, configured.error) == (0, "error", 0, "error")
    assert (finished.subject, finished.error) == (2, "load")
    assert all("could not be started" in report.text for report in (failed, configured, finished))
    assert held() == before
    manager.start(3, 1, job("c"))
    reload, _, finished = until(manager, "reload", "started", "finished")
    assert "the last reload failed: a worker process could not be started" in reload.text and finished.error == "ok"
    with few_descriptors(0), pytest.raises(ConductorError, match=r"w\.yaml: instruments cannot be checked: .*Too many open"):
        manager.check({"ask": ["standard"]}, [], "w.yaml")


def test_a_shared_worker_that_cannot_be_started_is_not_counted(tmp_path: Path) -> None:
    """A call fails if nobody works whom it could wait for."""
    (tmp_path / "models.py").write_text(MODELS)
    plan = Plan.model_validate({"functions": {"ask": {"kind": "python", "call": "models:ask", "seconds": 60}}})
    workshop = Workshop(tmp_path, 2)
    first, second = (ModelManager(plan, {}, tmp_path, tmp_path, Limits(), workshop) for _ in range(2))
    for number in range(3):
        with few_descriptors(0):
            first.start(number, -1, job("a"))
        assert until(first, "finished")[0].error == "error"
    first.start(3, -1, job("a", until="go"))
    with few_descriptors(0):
        second.start(4, -1, job("b"))
        assert workshop.hand_out() == []
    assert not second.pending()
    (tmp_path / "files" / "go").touch()
    (one,) = until(first, "finished")
    assert workshop.hand_out() == [second]
    started, other = until(second, "started", "finished")
    assert (started.subject, other.subject) == (4, 4) and one.value[1] == other.value[1]
    first.close()
    second.close()
    workshop.close()
