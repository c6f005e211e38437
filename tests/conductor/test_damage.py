"""Damage to a journal's files, wherever it hits: what is read is what was written, or nothing is and the reason is told.

`FQ_STEP=1` cuts at every offset, `FQ_FLIPS=1000` flips as many bits in each file; the defaults are smaller.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conductor.errors import ConductorError
from conductor.head import FILE as HEAD
from conductor.journal import FILE, KINDS, Journal, Row, read_journal

STEP = int(os.environ.get("FQ_STEP", "397"))
FLIPS = int(os.environ.get("FQ_FLIPS", "100"))
WAL = f"{FILE}-wal"
RUN: dict[str, Any] = {key: {} if key in ("workflow", "tables", "rule", "sandbox") else "" for key in KINDS["run"]}


@pytest.fixture(scope="module", params=["closed", "killed"])
def journal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A folder with a journal as a conductor leaves it that ended, or that was killed (with a write-ahead log); its rows."""
    folder = tmp_path_factory.mktemp("journal")
    writer = Journal(folder / "live", new=True)
    writer.add("run", 0, RUN)
    for i in range(8):
        writer.add("reload", 10 * i, {"copy": i, "model": "A" * (100 * i), "reason": "ü"})
        writer.commit()
    left = folder / "left"
    if request.param == "killed":
        shutil.copytree(folder / "live", left, ignore=shutil.ignore_patterns("*-shm"))
    writer.close()
    if request.param == "closed":
        shutil.copytree(folder / "live", left)
    assert (left / WAL).exists() == (request.param == "killed")
    return left, list(read_journal(folder / "live"))


def read(left: Path, place: Path, changed: str, content: bytes, head: bool = True) -> list[Row] | str:
    """The rows of the journal with one file changed, or the sentence with which it is refused."""
    place.mkdir()  # a fresh folder each time: SQLite believes what it has just read
    try:
        for name in (FILE, WAL, HEAD):
            if (left / name).exists() and (head or name != HEAD):
                (place / name).write_bytes(content if name == changed else (left / name).read_bytes())
        return list(read_journal(place))
    except ConductorError as error:
        return str(error)
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("name", [FILE, WAL, HEAD])
def test_cut_anywhere(journal: tuple[Path, list[Row]], tmp_path: Path, name: str) -> None:
    """With the head beside it a cut journal is whole or refused; without, what is read is a beginning of it."""
    left, rows = journal
    if not (left / name).exists():
        return
    content = (left / name).read_bytes()
    step = min(STEP, 7) if name == HEAD else STEP
    told: Counter[str] = Counter()
    for size in [*range(0, len(content), step), len(content)]:
        found = read(left, tmp_path / "cut", name, content[:size])
        told[found.split(": ")[-1][:30] if isinstance(found, str) else "whole"] += 1
        assert found == rows if not isinstance(found, str) else found.startswith(str(tmp_path)), size
        if name != HEAD:
            alone = read(left, tmp_path / "cut", name, content[:size], head=False)
            assert isinstance(alone, str) or alone == rows[: len(alone)], size
    assert read(left, tmp_path / "cut", name, content) == rows
    assert len(told) > 1 and told.total() > told["whole"] > 0


@pytest.mark.parametrize("name", [FILE, WAL, HEAD])
def test_a_bit_flipped_anywhere(journal: tuple[Path, list[Row]], tmp_path: Path, name: str) -> None:
    """Also where there is no head: then the end may be missing behind a damaged place in the log, and nothing else."""
    left, rows = journal
    if not (left / name).exists():
        return
    content = (left / name).read_bytes()
    rng = np.random.default_rng(len(content))
    refused = 0
    for bit in rng.integers(0, 8 * len(content), FLIPS).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        found = read(left, tmp_path / "flipped", name, bytes(flipped))
        assert isinstance(found, str) or found == rows, bit
        refused += isinstance(found, str)
        if name != HEAD:
            alone = read(left, tmp_path / "flipped", name, bytes(flipped), head=False)
            assert isinstance(alone, str) or alone == rows[: len(alone)], bit
    print(f"{name}: {refused} of {FLIPS} refused, the others changed nothing")
    assert refused > FLIPS / 20 or ((left / WAL).exists() and name == FILE)  # whose pages all stand in the log as well
