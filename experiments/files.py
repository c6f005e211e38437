"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError


def write_with(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write(temporary)` make the file (the suffix is kept), then renames it to `path`."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text atomically."""
    return write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON atomically; a number that is not finite is an error, not `NaN`."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ExperimentError for one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExperimentError(f"{path}: is not sound JSON ({error}); make it again") from None


def write_folder(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write(temporary)` fill a new folder beside `path`, then renames it to `path`; a folder there is replaced."""
    temporary, aside = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in ("", ".old"))
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if path.exists():
            path.rename(aside)
        temporary.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def check_out(out: str | None) -> None:
    """Before the work is done: refuses an `out=` file whose folder does not exist. Raises ExperimentError."""
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise ExperimentError(f"out={out}: its folder does not exist; make it or name another file")


def check_out_folder(out: str | None) -> None:
    """Before the work is done: refuses an `out=` folder that exists, or that has none to stand in. Raises ExperimentError."""
    check_out(out)
    if out is not None and Path(out).exists():
        raise ExperimentError(f"out={out}: exists already and is not overwritten; name another folder")


def new_folder(path: Path, key: str) -> Path:
    """Makes a folder that must not exist yet.

    Raises:
        ExperimentError: it exists, or it cannot be made; the sentence names `key` and the path.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise ExperimentError(f"{key}={path}: exists already and is not overwritten; name another folder") from None
    except OSError as error:
        raise ExperimentError(f"{key}={path}: cannot be made ({error.strerror}); name a folder that can be written") from None
    return path
