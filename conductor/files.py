"""Canonical JSON and files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from conductor.errors import ConductorError, DiskFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def canonical(value: Any, *, sort: bool = True) -> bytes:
    """JSON with sorted keys, no white space, no NaN, ASCII, one newline at the end: equal values give equal bytes.

    `sort=False` keeps the order of keys, where it means something: pools, models and functions are numbered by it.
    """
    return (json.dumps(value, sort_keys=sort, separators=(",", ":"), allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def is_digest(value: Any) -> bool:
    """Whether a value is a sha256 as it is written here, and so a file's name that leads nowhere else."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def parse_canonical(content: bytes, where: str, *, sort: bool = True) -> Any:
    """Read canonical JSON. Raises ConductorError, naming `where`, for anything else (double keys, NaN, spaces)."""
    try:
        value = json.loads(content.decode("ascii"))  # bytes would be searched for other encodings
        same = canonical(value, sort=sort) == content
    except (ValueError, RecursionError) as error:
        raise ConductorError(f"{where}: is not canonical JSON: {error}") from error
    if not same:
        keys = "sorted keys" if sort else "no key twice"
        raise ConductorError(f"{where}: is not canonical JSON ({keys}, no white space, one newline at the end)")
    return value


def has_room(folder: Path, size: int) -> bool:
    """Whether so many bytes can be made durable in a folder; False only if the disk is full or a quota is used up."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, with durable names; one that exists is left as it is. Raises
    OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def write_once(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole and durable, or not at all; one that exists already is left as it is, and its name
    taken for durable.

    Raises:
        DiskFull: there is no room for it; what was written of it is gone again.
        ConductorError: its folder cannot be written.
    """
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    written = scratch
    try:
        try:
            with open(scratch, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(scratch, path)
            written = path
            sync_directory(path.parent)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    except OSError as error:
        kind = DiskFull if error.errno in _NO_ROOM else ConductorError
        raise kind(f"{path.parent}: cannot be written ({error.strerror}); make room and resume") from error


def clear_scratch(folder: Path) -> None:
    """Remove what `write_once` left in a folder when its process was killed; nobody else may be writing there."""
    for file in folder.glob(".*"):
        file.unlink(missing_ok=True)


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that it appears whole and durable in the place of an older one, with this mode from the first moment."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(path.parent)
