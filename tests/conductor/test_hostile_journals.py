"""Journals that somebody has rewritten, hash chain and all: commands that only read refuse one in a sentence, or say what it
says without a control character. `FQ_MUTATIONS=10000` tries as many, `FQ_SEED` others.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conductor import tiers
from conductor.__main__ import main
from conductor.bundle import write_bundle
from conductor.files import canonical, digest
from conductor.journal import _GENESIS, FILE, Row, _chain, read_journal
from conductor.orchestrator import begin
from conductor.workflow import load_workflow
from tests.conductor.helpers import MODULE, bundle_parts, small_workflow

MUTATIONS = int(os.environ.get("FQ_MUTATIONS", "60"))
ESCAPE = "\x1b]0;x\x07\x1b[2J\r\n\u202e"
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        -1e300,
        1e300,
        2**31,
        2**62,
        2**63,
        2**70,
        -(2**70),
        10**400,
        "",
        "x",
        "[/q]",
        "[bold]x[/bold",
    ),
    *(
        ESCAPE,
        "\ud800",
        "/dev/zero",
        "../../../../etc/passwd",
        "f" * 64,
        "F" * 64,
        "x" * 100_000,
        [],
        {},
        [[]],
        {"x": ESCAPE},
        ["x"],
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a policy decided beside a shadow, with a call that failed once."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "work.py").write_text(MODULE)
    (folder / "workflow.yaml").write_text(
        json.dumps(small_workflow(plain={"kind": "python", "call": "work:fail_once", "seconds": 20}))
    )
    bundle = write_bundle(folder / "bundle", **bundle_parts())
    workflow = load_workflow(folder / "workflow.yaml")
    return begin(workflow, folder / "runs", bundle=bundle, shadow=bundle).folder


def forge(run: Path, place: Path, change: Callable[[list[Row]], None]) -> Path:
    """A copy of a run whose rows were changed and chained again, without the head that would tell."""
    rows = list(read_journal(run))
    change(rows)
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("journal.*"))
    shutil.copy(run / FILE, place / FILE)
    with sqlite3.connect(place / FILE) as connection:
        connection.execute("DROP TRIGGER no_update")
        previous = _GENESIS
        for row in rows:
            payload = canonical(row.data, sort=False).decode()[:-1]
            previous = _chain(previous, row.seq, row.run, row.kind, row.time, payload)
            connection.execute("UPDATE rows SET payload = ?, hash = ? WHERE seq = ?", (payload, previous, row.seq))
    connection.close()
    return place


def ask(place: Path, capsys: pytest.CaptureFixture[str], *commands: str) -> list[str]:
    """What the commands print; none of it may be a trace or hold a control character."""
    said = []
    for command in commands:
        words = command.split()
        status = main([*words[:2], str(place), *words[2:]] if words[0] in ("journal", "audit") else [command, str(place)])
        out, error = capsys.readouterr()
        assert (status, error.count("\n")) in ((0, 0), (2, 1)), (command, error)
        assert status == 0 or error.startswith("conductor: "), error
        assert not [c for c in out + error if not c.isprintable() and c != "\n"], (command, out, error)
        said.append(out + error)
    return said


ALL = ("show", "journal show", "journal verify", "measure", "audit verify", "audit explain", "audit explain 1")


def test_a_run_that_is_as_it_was_is_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ask(forge(run, tmp_path / "same", lambda rows: None), capsys, *ALL)
    assert (
        "solved: 4 of 4 tasks" in said[0] and "replayed bit for bit" in said[2] and not any("conductor: " in x for x in said)
    )


def test_a_value_that_no_conductor_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere, of another type, out of range, with an escape, a path or markup in it."""
    rows = list(read_journal(run))
    rng = np.random.default_rng(int(os.environ.get("FQ_SEED", "1")))
    for number in range(MUTATIONS):
        seq = int(rng.integers(len(rows)))
        key = str(rng.choice(sorted(rows[seq].data)))
        value = VALUES[int(rng.integers(len(VALUES)))]

        def change(rows: list[Row], seq: int = seq, key: str = key, value: Any = value) -> None:
            data = rows[seq].data
            if isinstance(data[key], dict) and rng.random() < 0.7:  # deep inside
                data = data[key]
                while (inner := [k for k, v in data.items() if isinstance(v, dict) and v]) and rng.random() < 0.8:
                    data = data[str(rng.choice(inner))]
                key = str(rng.choice(sorted(data))) if data else "x"
            data[key] = value
            rows[0].data["workflow_digest"] = digest(rows[0].data["workflow"])

        place = forge(run, tmp_path / str(number), change)
        ask(place, capsys, *ALL)
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("event", "output", "/dev/zero", "output is '/dev/zero', which no conductor writes"),
        ("event", "output", "../" * 20 + "etc/passwd", "(event): output is '../"),
        ("event", "elapsed", 2**70, "elapsed is '1180591620717411303424'"),
        ("action", "action", "x", "action is 'x'"),
        ("action", "action", 128, "action is '128'"),
        ("action", "distance", "x", "distance is 'x'"),
        ("action", "by", "\x1b[2J", "by is '\\x1b[2J'"),
        ("run", "id", "\x1b[2J", "id is '\\x1b[2J'"),
    ],
)
def test_file_and_row_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, key: str, value: Any, words: str
) -> None:
    row = next(row for row in read_journal(run) if row.kind == kind)
    place = forge(run, tmp_path / "run", lambda rows: rows[row.seq].data.update({key: value}))
    for said in ask(place, capsys, *ALL):
        assert f"{place / FILE}: row {row.seq}" in said and words in said.replace("\\\\", "\\"), said


def test_names_with_markup_are_printed_as_they_are(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(rows: list[Row]) -> None:
        for row in rows:
            row.data.update(
                {key: f"[/{key}]" for key in ("began", "signature", "shadow_signature", "note") if key in row.data}
            )

    said = ask(forge(run, tmp_path / "run", change), capsys, "show", "journal show", "measure")
    empty = forge(run, tmp_path / "empty", lambda rows: rows[0].data.update(strategy=""))
    ask(empty, capsys, *ALL)
    assert "[/signature]" in said[0] and "[/shadow_signature]" in said[0] and "[/note]" in said[0] + said[1]


def test_an_output_is_a_plain_file_of_a_bounded_size(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = forge(run, tmp_path / "run", lambda rows: None)
    output = next(file for file in (place / "outputs").iterdir())
    output.unlink()
    for target in ("/dev/zero", "pipe"):
        output.symlink_to(target) if target != "pipe" else os.mkfifo(output)
        assert "this output is no plain file" in ask(place, capsys, "journal verify")[0]
        output.unlink()
    monkeypatch.setattr(tiers, "MOST", 2**20)
    Path(f"{output}.z").write_bytes(zlib.compress(bytes(2**24)))
    assert "this output is larger than 1048576 bytes" in ask(place, capsys, "journal verify")[0]
