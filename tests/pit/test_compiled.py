"""The compile cache: told to the user while it is empty, silent afterwards, and never a reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = "from pit.compiled import announce, cache_folder; announce('engine'); print(cache_folder())"


def ask(root: Path) -> tuple[str, str]:
    """(stdout, stderr) of a process that asks for the cache under `root`."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | {"FQ_CACHE_DIR": str(root)}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_the_first_compile_is_announced(tmp_path: Path) -> None:
    folder, told = ask(tmp_path)
    assert "compiles its kernels" in told and Path(folder).is_relative_to(tmp_path)
    (Path(folder) / "kernel.engine-1.py311.nbi").touch()
    assert ask(tmp_path) == (folder, "")


def test_a_folder_that_cannot_be_written_is_passed_over() -> None:
    folder, _ = ask(Path("/proc/nowhere"))
    assert Path(folder).is_dir() and not folder.startswith("/proc")
