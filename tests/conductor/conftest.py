"""A small workflow and a bundle of random weights, written for a test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conductor.bundle import Bundle, write_bundle
from pit.handle import Pit
from pit.spec import WorkflowSpec
from tests.conductor import restarts
from tests.conductor.helpers import MODULE, bundle_parts, running, small_workflow


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """The kernels are there before a test reads what a command says; the first compilation announces itself."""
    Pit(WorkflowSpec.model_validate(small_workflow())).decision_due()


@pytest.fixture(autouse=True)
def restarts_if_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`FQ_RESTART=1`: every conductor in this process forgets all it knows after every tick (`restarts`); but for those of the
    simulation, whose journals are not files and which dies at moments of its own."""
    if os.environ.get("FQ_RESTART") and not request.node.nodeid.startswith("tests/conductor/test_simulation.py"):
        restarts.install(monkeypatch)


@pytest.fixture
def write_workflow(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes a workflow beside the module of its functions; returns the file."""

    def write(workflow: dict[str, Any]) -> Path:
        (tmp_path / "work.py").write_text(MODULE)
        path = tmp_path / "workflow.yaml"
        path.write_text(yaml.safe_dump(workflow, sort_keys=False))
        return path

    return write


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of random weights."""
    return write_bundle(tmp_path / "bundle", **bundle_parts())


@pytest.fixture
def mark() -> Iterator[str]:
    """Seconds that nobody else sleeps; whatever sleeps so long is ended after the test."""
    text = f"{600 + os.getpid()}.{time.monotonic_ns()}"
    yield text
    for process in running(text):
        os.kill(process, signal.SIGKILL)
