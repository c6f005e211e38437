"""Snapshots of a run, so that going on with a long one need not fold it all: a cache of the journal, never a source.

A snapshot is the Pit's memory and what `PitInterface` knows besides, in a file named by its sha256; the journal's row holds
that name and the state's hash. One that is missing or damaged costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Collection
from pathlib import Path

from conductor.errors import ConductorError
from conductor.files import is_digest, write_once
from conductor.pit_interface import PitInterface

FOLDER = "snapshots"
EVERY = 500  # rows of a run between two snapshots; a fold takes some 0.1 ms a row
MOST = 64 << 20  # bytes unpacked, ten times what the largest run needs: a journal may be a stranger's
KEEP = 2  # of the newest, in the order of the journal: the time of day may be set back


def write_snapshot(folder: Path, view: PitInterface) -> str:
    """Write a run's state into `folder`/snapshots; the name of the file. Raises DiskFull, ConductorError."""
    content = zlib.compress(view.freeze(), 1)
    name = hashlib.sha256(content).hexdigest()
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise ConductorError(f"{folder}: cannot be written ({error.strerror})") from error
    write_once(folder / FOLDER / name, content)
    return name


def read_snapshot(folder: Path, name: str, view: PitInterface) -> bool:
    """Put a snapshot into a view of the same workflow; whether it is there, whole and of this Pit."""
    if not is_digest(name):
        return False
    try:
        content = (folder / FOLDER / name).read_bytes()
    except OSError:
        return False
    if hashlib.sha256(content).hexdigest() != name:
        return False
    try:
        unpack = zlib.decompressobj()
        known = unpack.decompress(content, MOST)
        if not unpack.eof:
            return False
        view.thaw(known)
    except (zlib.error, ConductorError):
        return False
    return True


def prune_snapshots(folder: Path, keep: Collection[str]) -> None:
    """Keep these snapshots only, as far as the others can be removed."""
    with contextlib.suppress(OSError):
        for file in (folder / FOLDER).iterdir():
            if file.name not in keep:
                file.unlink(missing_ok=True)
