"""Ctrl-C in a terminal reaches a command and all its processes: one sentence, exit code 130, and nothing is waited for."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.side_by_side import pool

WAIT = 120.0  # seconds for a command to end that would go on for hours


START = "import importlib, sys; m = importlib.import_module(sys.argv[1]); sys.argv = sys.argv[1:]; "
START += "print('imported', file=sys.stderr, flush=True); m.main()"


def ended(command: list[str], folder: Path, under_way: str, seconds: float = 0.0) -> tuple[int, str]:
    """Starts a command, sends Ctrl-C to its process group some seconds after a line with `under_way` is out: exit code,
    and stderr without the lines before."""
    with subprocess.Popen(
        [sys.executable, "-c", START, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert any(under_way in line for line in process.stderr), "never got under way"
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=WAIT)
        return process.returncode, err


def test_what_headroom_has_measured_stays(root: Path, tmp_path: Path) -> None:
    """Level 1 is done long before level 11, which is asked for first."""
    out = tmp_path / "headroom.json"
    words = ["levels=11,1", "n=64", "lookahead=64", "rollouts=64", f"out={out}", "readme=null"]
    code, err = ended(["experiments.headroom", *words], root, "level 1:")
    assert (code, "Traceback" in err) == (130, False), err
    assert err.strip().startswith("interrupted; the levels")
    assert [row["level"] for row in json.loads(out.read_text())["levels"]] == [1]


@pytest.mark.parametrize(
    "command",
    [
        ["experiments.calibrate", "levels=11", "force=true", "evaluations=100000"],
        ["experiments.record", "level=11", "player=fifo", "n=1000000", "out=rows.parquet"],
    ],
)
def test_commands_end_at_once(tmp_path: Path, command: list[str]) -> None:
    code, err = ended(command, tmp_path, "imported", 2.0)
    assert (code, "Traceback" in err, err.count("interrupted")) == (130, False, 1), err


def tell_late(file: Path) -> None:
    time.sleep(20)
    file.touch()


def test_an_error_ends_the_other_works(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), pool(2) as workers:
        workers.submit(tell_late, tmp_path / "told")
        workers.submit(divmod, 1, 0).result()
    for process in multiprocessing.active_children():
        process.join()
    assert not (tmp_path / "told").exists()
