"""Workers that runs share: whose turn it is, and what becomes of the turn of one who is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from conductor import Conductor
from conductor.errors import Stopped
from conductor.instruments.process import Worker
from conductor.instruments.sandbox import Limits
from conductor.model_manager import ModelManager
from conductor.places import Report
from conductor.workflow import Plan
from conductor.workshop import Workshop
from tests.conductor.helpers import MODULE
from tests.conductor.test_many import steps
from tests.conductor.test_model_manager import job, until

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """Has one worker."""
    workshop = Workshop(tmp_path, 1)
    yield workshop
    workshop.close()


@pytest.fixture
def managers(tmp_path: Path, workshop: Workshop) -> Iterator[list[ModelManager]]:
    """Three runs that share the worker."""
    (tmp_path / "work.py").write_text(MODULE)
    plan = Plan.model_validate({"functions": {"ask": {"kind": "python", "call": "work:until_told", "seconds": 60}}})
    found = []
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
        found.append(ModelManager(plan, {}, tmp_path, tmp_path / name, Limits(), workshop))
    yield found
    for manager in found:
        manager.close()


def tell(folder: Path) -> None:
    """What waits to be told is told."""
    for place in folder.glob("**/files"):
        (place / "told").touch()


def test_the_turn_of_a_cancelled_call_is_the_next_ones(
    workshop: Workshop, managers: list[ModelManager], tmp_path: Path
) -> None:
    """Those who stand before and after it keep their places, also others of the same run."""
    works, waits, last = managers
    works.start(1, -1, job("a"))
    for number in (1, 2):
        waits.start(number, -1, job(f"b{number}"))
    last.start(1, -1, job("c"))
    waits.start(3, -1, job("b3"))
    waits.cancel(1)
    waits.cancel(3)
    tell(tmp_path)
    until(works, "finished")
    works.start(2, -1, job("a"))  # it has waited for nothing, and overtakes nobody
    assert workshop.hand_out() == [waits] and waits.poll(0) == [Report("started", 2)]
    until(waits, "finished")
    assert workshop.hand_out() == [last]
    until(last, "started", "finished")


def test_the_turn_of_a_run_that_has_ended_is_the_next_ones(write_workflow: Write, tmp_path: Path) -> None:
    """A run's time is up while its call waits for the only worker: who stands behind it is served."""
    workflow = steps(1, call="work:until_told", seconds=60)
    path = write_workflow(workflow)
    workflow["system"]["horizon_seconds"] = 1.0
    brief = path.with_name("brief.yaml")
    write_workflow(workflow).rename(brief)
    write_workflow(steps(1, call="work:until_told", seconds=60))
    many = Conductor(strategy="parallel", runs=tmp_path / "runs", workers=1)
    try:
        works, waits, last = [many.submit(file) for file in (path, brief, path)]
        assert waits.result(timeout=60).status == "expired"
        tell(tmp_path)
        assert works.result(timeout=60).status == last.result(timeout=60).status == "solved"
    finally:
        many.stop()
        many.close()


def test_who_is_told_to_stop_begins_nothing_more(
    write_workflow: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that wait do not get the workers of those that are ended before them."""
    made: list[Path] = []
    make = ModelManager._make

    def count(manager: ModelManager, log: Path) -> Worker:
        made.append(log)
        return make(manager, log)

    monkeypatch.setattr(ModelManager, "_make", count)
    path = write_workflow(steps(1, call="work:until_told", seconds=60))
    asked: SimpleQueue[str] = SimpleQueue()
    many = Conductor(
        strategy="parallel",
        runs=tmp_path / "runs",
        workers=2,
        observer=lambda kind, at, text: asked.put(kind) if kind == "start" else None,
    )
    futures = [many.submit(path) for _ in range(6)]
    for _ in futures:
        asked.get(timeout=60)
    many.stop()
    for future in futures:
        with pytest.raises(Stopped):
            future.result(timeout=60)
    many.close()
    assert len(made) == 2
