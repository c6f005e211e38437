"""Ctrl-C in a terminal reaches a command and all its processes: one sentence, exit code 130, and soon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.side_by_side import pool

WAIT = 120.0  # seconds for a command to get under way


def ended(command: list[str], root: Path, under_way: str) -> tuple[int, str, float]:
    """Starts `python -m`, sends Ctrl-C to its process group once a line with `under_way` is out (at once for ""): exit code,
    stderr without the lines before, and the seconds that its end took."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        if under_way:
            assert any(under_way in line for line in process.stderr), "never got under way"
        else:
            time.sleep(4.0)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=WAIT)
        return process.returncode, err, time.monotonic() - began


def test_what_headroom_has_measured_stays(root: Path, tmp_path: Path) -> None:
    """Level 1 is done long before level 11, which is asked for first."""
    out = tmp_path / "headroom.json"
    words = ["levels=11,1", "n=64", "lookahead=64", "rollouts=64", f"out={out}", "readme=null"]
    code, err, seconds = ended(["experiments.headroom", *words], root, "level 1:")
    assert (code, "Traceback" in err) == (130, False), err
    assert err.strip().startswith("interrupted; the levels") and seconds < 5
    assert [row["level"] for row in json.loads(out.read_text())["levels"]] == [1]


@pytest.mark.parametrize(
    "command",
    [
        ["experiments.calibrate", "levels=11", "force=true", "evaluations=100000"],
        ["experiments.evaluate", "level=11", "players=lookahead", "n=4096"],
    ],
)
def test_commands_end_at_once(root: Path, command: list[str]) -> None:
    code, err, seconds = ended(command, root, "")
    assert (code, "Traceback" in err, err.count("interrupted")) == (130, False, 1), err
    assert seconds < 5


def test_an_error_ends_the_other_works() -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), pool(2) as workers:
        workers.submit(time.sleep, 60)
        workers.submit(divmod, 1, 0).result()
    assert time.monotonic() - began < 10
