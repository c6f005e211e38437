"""What a journal tells of is still there after a power loss: names were forced to the disk before they were told of."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.advice import Advice
from conductor.errors import DiskFull
from conductor.files import canonical, digest
from conductor.journal import Journal
from conductor.orchestrator import begin
from conductor.session import begin_all
from conductor.tiers import Outputs
from conductor.workflow import load_workflow
from tests.conductor.helpers import small_workflow

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Every name that is forced to the disk: those that are in a folder when that is."""
    names: set[Path] = set()
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if place.is_dir():
            names.update(place.iterdir())

    monkeypatch.setattr(os, "fsync", noted)
    return names


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_have_durable_names_before_they_are_recorded(
    write_workflow: Write, monkeypatch: pytest.MonkeyPatch, durable: set[Path], count: int
) -> None:
    """And so have all folders around them that were made."""
    path = write_workflow(small_workflow())
    runs = path.parent / "some" / "runs"
    recorded: list[Path] = []
    commit = Journal.commit

    def checked(journal: Journal) -> None:
        folders = [journal.folder] if count == 1 else sorted(journal.folder.glob("00*"))
        for _, run, _, _, payload, _ in journal._pending:
            if output := json.loads(payload).get("output"):
                recorded.append(folders[run] / "outputs" / output)
                around = recorded[-1].relative_to(path.parent).parents
                assert {recorded[-1], *(path.parent / folder for folder in around if folder != Path())} <= durable
        commit(journal)

    monkeypatch.setattr(Journal, "commit", checked)
    if count == 1:
        results = [begin(load_workflow(path), runs, strategy="parallel")]
    else:
        results = begin_all([load_workflow(path)] * count, runs, Advice("parallel"))
    assert [result.status for result in results] == ["solved"] * count and len(recorded) == 4 * count


def test_what_a_conductor_that_died_had_written_has_a_durable_name(tmp_path: Path, durable: set[Path]) -> None:
    """It died before the name was: the next one to keep the same output does not write it again."""
    (tmp_path / "outputs").mkdir()
    file = tmp_path / "outputs" / digest("x")
    file.write_bytes(canonical("x"))
    before = file.stat()
    assert Outputs(tmp_path, None).keep("x")[0] == file.name
    assert {file, file.parent} <= durable and file.stat() == before


def test_a_name_that_could_not_be_made_durable_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: set[Path]
) -> None:
    """The disk is full when the folder is forced to it, and then it is not any more."""
    outputs = Outputs(tmp_path, None)
    fsync = os.fsync

    def full(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")) == tmp_path / "outputs":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            with pytest.raises(DiskFull, match="No space left"):
                outputs.keep("x")
    assert not list((tmp_path / "outputs").iterdir()) and not durable & {tmp_path / "outputs" / digest("x")}
    outputs.keep("x")
    assert tmp_path / "outputs" / digest("x") in durable
