"""`kill -9` at random moments, as a command; `FQ_KILLS=500` asks for as many over all examples together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_random_kills_lose_nothing(root: Path) -> None:
    command = [sys.executable, "-m", "tests.conductor.kills", "--kills", os.environ.get("FQ_KILLS", "12")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("0 lost, 0 twice, all right") == len(list(root.glob("examples/*/workflow.yaml")))
