"""What a program in a sandbox may leave in a run's `files/` that would lead a later step out of it: a link to elsewhere, by
which a trusted function would write there, and what is neither file nor folder.

Others may change the folder meanwhile, so that no link is followed here: every folder is entered from the one above it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

MAX_DEPTH = 100  # folders in folders, and
MAX_PATH = 4000  # bytes of a path, which the kernel could follow no further
_SHOWN = 5  # leftovers that an error names
_LOOKS = 100
_KINDS = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a named pipe"}
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK, _CHANGE = 0o500, 0o700  # what its owner must be allowed in a folder


class Leftover(NamedTuple):
    """Where it lies in the folder, what it is, and for a link where it leads to in the end."""

    parts: tuple[str, ...]
    what: str
    leads: str = ""


def find(folder: Path) -> set[Leftover]:
    """All that there is now. A folder that nobody could look through is one as well."""
    found: set[Leftover] = set()
    links: list[tuple[tuple[str, ...], str]] = []
    top = _enter(str(folder), None, _LOOK)
    todo: list[tuple[str, ...]] = [()]
    try:
        while todo:
            parts = todo.pop()
            if len(parts) > MAX_DEPTH or len(os.fsencode(os.path.join(folder, *parts))) > MAX_PATH:
                found.add(Leftover(parts, "a folder that lies too deep"))
                continue
            try:
                handle = _descend(top, parts, _LOOK)
            except (FileNotFoundError, NotADirectoryError):  # it was there just now: another program is at work
                continue
            except OSError:
                found.add(Leftover(parts, "a folder that cannot be read"))
                continue
            try:
                with os.scandir(handle) as entries:
                    for entry in entries:
                        here = (*parts, entry.name)
                        with contextlib.suppress(FileNotFoundError):
                            if entry.is_dir(follow_symlinks=False):
                                todo.append(here)
                            elif entry.is_symlink():
                                try:
                                    links.append((here, os.readlink(entry.name, dir_fd=handle)))
                                except OSError as error:
                                    if error.errno != errno.EINVAL:
                                        raise
                                    todo.append(here)  # it is none any more
                            elif not entry.is_file(follow_symlinks=False):
                                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                                found.add(Leftover(here, _KINDS.get(kind, "a device")))
            finally:
                os.close(handle)
    finally:
        os.close(top)
    inside = os.path.realpath(folder)
    for here, target in links:  # when every folder could be entered
        leads = _end(os.path.join(folder, *here))
        if not Path(leads).is_relative_to(inside):
            found.add(Leftover(here, f"a link to {target}", leads))
    return found


def remove(folder: Path, leftovers: set[Leftover]) -> str:
    """Removes them (no folders); the words for an error, empty if there is none."""
    told = []
    for leftover in sorted(leftovers):
        words = f"{'/'.join(leftover.parts)} ({leftover.what}"
        with contextlib.suppress(OSError):
            top = _enter(str(folder), None, _LOOK)
            try:
                handle = _descend(top, leftover.parts[:-1], _CHANGE)
            finally:
                os.close(top)
            try:
                os.unlink(leftover.parts[-1], dir_fd=handle)
                words += ", removed"
            finally:
                os.close(handle)
        told.append(words + ")")
    more = [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    return ", ".join(told[:_SHOWN] + more)


def _end(path: str) -> str:
    """Where a link leads to in the end; nowhere, if that changes whenever it is looked at."""
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError):  # what was a link is none any more
            return os.path.realpath(path)
    return ""


def _descend(top: int, parts: tuple[str, ...], rights: int) -> int:
    """A folder beneath another, a new descriptor; the last has the rights. Raises OSError, also where a link is on the way."""
    handle = _enter(".", top, rights if not parts else _LOOK)
    for place, part in enumerate(parts, 1):
        try:
            deeper = _enter(part, handle, rights if place == len(parts) else _LOOK)
        finally:
            os.close(handle)
        handle = deeper
    return handle


def _enter(name: str, parent: int | None, rights: int) -> int:
    """Opens a folder, whose program may have taken the rights to it away. Raises OSError."""
    handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if mode & rights != rights:
            os.chmod(f"/proc/self/fd/{handle}", mode | rights)
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
    finally:
        os.close(handle)
