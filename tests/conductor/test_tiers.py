"""Outputs in tiers: memory, files, compressed files, nowhere; and whole runs whose store is too small."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.orchestrator import begin
from conductor.report import report_run, verify_run
from conductor.tiers import Outputs, read_output
from conductor.workflow import load_workflow
from pit.layout import TIER_COLD, TIER_HOT, TIER_WARM
from pit.spec import StoreSpec
from tests.conductor.helpers import output_of, small_workflow

VALUE = {"words": ["ü"] * 200}
Write = Callable[[dict[str, Any]], Path]
TINY = {"hot": 4, "warm": 3, "cold": 2, "fetch_seconds": {"warm": 0.01, "cold": 0.02}}  # of outputs such as 123 and a newline


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "outputs").iterdir())


def test_outputs_are_named_by_their_content(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, None)
    name, size = outputs.keep({"b": [1, 2.5, None], "a": "ü"})
    assert outputs.keep({"a": "ü", "b": [1, 2.5, None]}) == (name, size)
    assert outputs.fetch(name) == {"a": "ü", "b": [1, 2.5, None]} and size == (tmp_path / "outputs" / name).stat().st_size
    (tmp_path / "outputs" / name).write_text("{}\n")
    with pytest.raises(ConductorError, match="was changed after it was recorded"):
        read_output(tmp_path, name)


def test_an_output_is_the_same_in_every_tier(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outputs = Outputs(tmp_path / "run", StoreSpec(hot=10_000))
    name, size = outputs.keep(VALUE)
    file = tmp_path / "run" / "outputs" / name
    for tier, there in (
        (TIER_WARM, name),
        (TIER_COLD, f"{name}.z"),
        (TIER_COLD, f"{name}.z"),
        (TIER_WARM, name),
        (TIER_HOT, name),
    ):
        outputs.move(name, tier)
        assert files(tmp_path / "run") == [there] and read_output(tmp_path / "run", name) == VALUE
    outputs.move(name, TIER_COLD)
    assert (file.with_name(f"{name}.z")).stat().st_size < size / 4
    value = outputs.fetch(name)
    assert value == VALUE and files(tmp_path / "run") == [name]
    file.unlink()
    value["words"].clear()
    assert outputs.fetch(name) == VALUE  # from memory, whatever was done to what it gave before
    outputs.delete(name)
    assert files(tmp_path / "run") == []
    with pytest.raises(ConductorError, match="cannot be read"):
        outputs.fetch(name)


def test_memory_keeps_no_more_than_one_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for store in (None, StoreSpec(hot=10)):
        outputs = Outputs(tmp_path / "run", store)
        name, _ = outputs.keep(VALUE)
        assert outputs.fetch(name) == VALUE and not outputs._hot


def test_a_compressed_output_that_was_changed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outputs = Outputs(tmp_path / "run", StoreSpec(hot=10_000))
    name, _ = outputs.keep(VALUE)
    outputs.move(name, TIER_COLD)
    cold = tmp_path / "run" / "outputs" / f"{name}.z"
    for content in (zlib.compress(b"{}\n"), b"rubbish"):
        cold.write_bytes(content)
        with pytest.raises(ConductorError, match="was changed after it was recorded"):
            read_output(tmp_path / "run", name)


def test_a_run_deletes_what_it_needs_no_more(write_workflow: Write) -> None:
    """The outputs of a1, a2 (3 bytes each) and b (4) do not all fit: one of the first two is gone, and the run verifies."""
    workflow = small_workflow()
    workflow["system"]["store"] = TINY
    path = write_workflow(workflow)
    seen: list[tuple[str, str]] = []
    result = begin(
        load_workflow(path),
        path.parent / "runs",
        strategy="parallel",
        observer=lambda kind, _, text: seen.append((kind, text)),
    )
    report = report_run(result.folder)
    assert report.status == "solved" and output_of(result.folder, report.outputs["c"]) == 123
    moved = [text for kind, text in seen if kind == "store"]
    gone = [text for kind, text in seen if kind == "delete"]
    assert moved and gone and verify_run(result.folder).view.deleted
    left = {file.removesuffix(".z") for file in files(result.folder)}
    assert report.outputs["c"] in left and not left & verify_run(result.folder).view.deleted
