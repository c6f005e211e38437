"""Outputs of calls: files named by their sha256, kept nearer or smaller as the Pit's store says.

Hot ones lie in memory, warm ones in a file, cold ones in a compressed one, and what no task has any more is deleted; without a
store every output is a file, also one that was replaced. Whatever the tier, an output is durable before its result is
recorded; so what is lost in a crash is only that something lies nearer or takes less room than the Pit believes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from conductor.errors import ConductorError, DiskFull
from conductor.files import canonical, clear_scratch, is_digest, sync_directory, write_once
from pit.layout import TIER_COLD, TIER_HOT
from pit.spec import StoreSpec

FOLDER = "outputs"
MOST = 2**30  # bytes of an output that is read


def read_output(folder: Path, name: str) -> Any:
    """The output of a run folder with this digest. Raises ConductorError if it is missing or was changed, or is no output."""
    if not is_digest(name):
        raise ConductorError(f"{folder}: names the output {name[:80]!r}; a sha256 is needed")
    path = folder / FOLDER / name
    return _value(path, _content(path))


def _value(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConductorError(f"{path}: this output is no JSON: {error}") from error


def _cold(path: Path) -> Path:
    """Where an output whose file is `path` lies compressed."""
    return path.with_name(f"{path.name}.z")


def _content(path: Path) -> bytes:
    """The canonical JSON of an output, compressed or not. Raises ConductorError if it is missing or was changed."""
    try:
        if path.exists():
            content = _read(path)
        else:
            content = zlib.decompressobj().decompress(_read(_cold(path)), MOST + 1)  # a small file may hold endless zeros
    except OSError as error:
        raise ConductorError(f"{path}: this output cannot be read ({error.strerror})") from error
    except zlib.error:
        content = b""
    if len(content) > MOST:
        raise ConductorError(f"{path}: this output is larger than {MOST} bytes")
    if hashlib.sha256(content).hexdigest() != path.name:
        raise ConductorError(f"{path}: this output was changed after it was recorded")
    return content


def _read(path: Path) -> bytes:
    """A plain file of at most `MOST` bytes, and one more if there are more. Raises OSError, ConductorError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # a pipe would be waited for
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConductorError(f"{path}: this output is no plain file")
        return file.read(MOST + 1)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return _read(path) == content
    except (OSError, ConductorError):
        return False


class Outputs:
    """The outputs of one run, by their digests."""

    def __init__(self, folder: Path, store: StoreSpec | None) -> None:
        """`folder`: of the run, whose `outputs/` this object alone writes; `store` is the system's. Raises ConductorError."""
        self._folder = folder / FOLDER
        try:
            if self._folder.is_dir():  # its conductor may have died before the names in it were durable
                sync_directory(self._folder)
            else:
                self._folder.mkdir()
            sync_directory(folder)
        except OSError as error:
            raise ConductorError(f"{folder}: cannot be written ({error.strerror})") from error
        clear_scratch(self._folder)
        self._most = 0 if store is None else store.hot  # bytes of what may be kept in memory
        self._hot: dict[str, bytes] = {}

    def keep(self, value: Any) -> tuple[str, int]:
        """Keeps an output (any JSON value); (sha256, bytes). Durable on return, whatever lay in its place. Raises DiskFull,
        ConductorError."""
        content = canonical(value)
        name = hashlib.sha256(content).hexdigest()
        path = self._folder / name
        try:
            if not _holds(path, content):
                path.unlink(missing_ok=True)
            write_once(path, content)
            _cold(path).unlink(missing_ok=True)  # it may be damaged as well
        except OSError as error:
            raise ConductorError(f"{path}: cannot be written ({error.strerror})") from error
        if len(content) <= self._most:
            self._hot[name] = content
        return name, len(content)

    def fetch(self, name: str) -> Any:
        """The output with this digest, from wherever it lies; hot from now on if it fits. Raises ConductorError."""
        content = self._hot.get(name)
        if content is None:
            content = _content(self._folder / name)
            if len(content) <= self._most:
                self._hot[name] = content
                self._thaw(name)
        return _value(self._folder / name, content)

    def move(self, name: str, tier: int) -> None:
        """The output goes to another tier. Raises ConductorError if it cannot be read or written."""
        if tier == TIER_HOT:
            self.fetch(name)
            return
        self._hot.pop(name, None)
        path = self._folder / name
        if tier != TIER_COLD:
            self._thaw(name)
        elif path.is_file():
            content = zlib.compress(_content(path))
            with contextlib.suppress(DiskFull, OSError):  # it stays as it is
                write_once(_cold(path), content)
                path.unlink()

    def delete(self, name: str) -> None:
        """The output is gone. Raises ConductorError if it stays."""
        self._hot.pop(name, None)
        path = self._folder / name
        try:
            for file in (path, _cold(path)):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ConductorError(f"{path}: this output cannot be deleted ({error.strerror})") from error

    def _thaw(self, name: str) -> None:
        """A compressed output lies plain; if it cannot be written, it stays as it is. Raises ConductorError if it cannot be
        read."""
        path = self._folder / name
        if _cold(path).is_file():
            content = _content(path)
            with contextlib.suppress(ConductorError, OSError):
                write_once(path, content)
                _cold(path).unlink()
