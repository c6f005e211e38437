"""What a program may take and reach: limits, and the best sandbox that this machine has.

The levels, from none on: `limits` (resources, the end of the whole tree, no capabilities), `landlock` (also: it writes nowhere
but in the run's `files/`, a temporary folder and /dev/shm, and makes no socket) and `bwrap` (also: process and network
namespaces of its own, a private /tmp). In the last two it does not see people's home folders, but for the workflow's folder
and this interpreter's, and never the private keys of the conductor.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from conductor.instruments.supervisor import can_filter, landlock_version

LEVELS = ("none", "limits", "landlock", "bwrap")
TEMPORARY = 256 << 20  # bytes that a program may have in its private /tmp
_HOMES = ("/root", "/home")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/shm")


@dataclass(frozen=True)
class Limits:
    """What a process may take, in MiB (`memory`: address space; `file`: the largest file), seconds of CPU time and open
    `files`; the whole tree may have so many `processes`, and ends when the run's disk has less than `spare` MiB left. None:
    no limit."""

    memory: int | None = None
    cpu: int | None = None
    file: int | None = None
    files: int | None = None
    processes: int | None = None
    spare: int | None = None

    @staticmethod
    def read(options: Any, default: Limits) -> Limits:
        """From what a person wrote. Raises ValueError with a sentence."""
        names = [field.name for field in fields(Limits)]
        if not isinstance(options, dict) or not set(options) <= set(names):
            raise ValueError(f"limits is {options!r}; numbers by these names are needed: {', '.join(names)}")
        for name, value in options.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**7):
                raise ValueError(f"limits.{name} is {value!r}; a whole number from 1 to 10,000,000, or null, is needed")
        return Limits(**{**asdict(default), **options})


@functools.cache
def _try_bwrap() -> None:
    """Raises OSError or TimeoutExpired if bwrap does not work, and then tries again when asked again: the reason may pass."""
    probe = [*_bwrap(), "--unshare-all", "true"]
    done = subprocess.run(probe, capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip()[-200:])


def available() -> tuple[str, str]:
    """The best level that this machine has now, and why no better one (`""` for the best)."""
    try:
        _try_bwrap()
        return "bwrap", ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "bwrap is not installed" if isinstance(error, FileNotFoundError) else f"bwrap does not work here: {error}"
    version = landlock_version()
    if version < 4:  # it could not forbid connections
        return "limits", f"{why}; the kernel's Landlock has version {version}, and 4 is needed"
    if not can_filter():
        return "limits", f"{why}; system calls cannot be filtered here, which Landlock needs beside it"
    return "landlock", why


def choose(asked: str | None) -> str:
    """The level for a function that asks for one at least (None: for the best). Raises ValueError if there is none so high."""
    if asked is None:
        return available()[0]
    if asked not in LEVELS:
        raise ValueError(f"sandbox is {asked!r}; choose one of {', '.join(LEVELS)}")
    if asked == "none":
        return "none"
    level, why = available()
    if LEVELS.index(level) < LEVELS.index(asked):
        raise ValueError(f"sandbox {asked} is not to be had on this machine, only {level}: {why}")
    return level


def _bwrap() -> list[str]:
    size = ["--size", str(TEMPORARY)]
    return ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *size, "--tmpfs", "/tmp"]


def confine(
    level: str, argv: list[str], folder: Path, base: Path, temporary: str, network: bool
) -> tuple[list[str], dict[str, Any] | None]:
    """(what to start for `argv` at a level, what the supervisor has to ask of Landlock). It works in `folder`."""
    hidden = _hidden()
    seen = {str(base), sys.prefix, sys.base_prefix}
    program = shutil.which(argv[0])
    if program is not None:
        seen.add(os.path.dirname(os.path.realpath(program)))
    if level == "bwrap":
        hidden |= {"/var/tmp"} if network else {"/var/tmp", "/run"}
        # What lies deeper is mounted later, over what lies about it; at one place what is shown, and last where it may write.
        # All that by real paths; where a path that somebody wrote leads over a link that is hidden now, there is one again.
        work = os.path.realpath(folder)
        shown = {path for path in map(os.path.realpath, seen) if os.path.isdir(path) and not Path(path).is_relative_to(work)}
        shown -= {"/"}
        mounts = [(_depth(path), 0, path, ["--size", str(TEMPORARY), "--tmpfs", path]) for path in hidden]
        mounts += [(_depth(path), 1, path, ["--ro-bind", path, path]) for path in shown]
        mounts.append((_depth(work), 2, work, ["--bind", work, work]))
        links = {link: to for path in (*seen, str(folder), program or "/") for link, to in _links(path)}
        places = hidden | {"/tmp"}, shown | {work}
        mounts += [(_depth(link), 3, link, ["--symlink", to, link]) for link, to in links.items() if _is_hidden(link, *places)]
        isolate = ["--unshare-all", *(["--share-net"] if network else []), "--die-with-parent", "--cap-drop", "ALL"]
        arguments = [part for *_, parts in sorted(mounts) for part in parts]
        return [*_bwrap(), *arguments, *isolate, "--chdir", str(folder), "--", *argv], None
    if level == "landlock":
        reads = [path for top in ("/", *sorted(seen)) for path in _without(os.path.realpath(top), hidden)]
        return argv, {"reads": reads, "writes": [str(folder), temporary, *_DEVICES], "network": network}
    return argv, None


def _hidden() -> set[str]:
    """The real paths of the folders that no program in a sandbox sees: people's homes, and the conductor's configuration with
    the private keys in it (these by themselves too: what lies about them may be a folder that is shown)."""
    config = os.environ.get("FQ_CONFIG", "")  # of a worker: set by `process.environment`
    folders = [*_HOMES, os.environ.get("HOME", ""), config, os.path.join(config, "keys")]
    return {os.path.realpath(path) for path in folders if os.path.isabs(path) and os.path.isdir(path)} - {"/"}


def _depth(path: str) -> int:
    return len(Path(path).parts)


def _links(path: str) -> list[tuple[str, str]]:
    """The links on the way of a path: the real path of each, and of what it leads to."""
    found, here = [], "/"
    for name in (Path.cwd() / path).parts:
        place = os.path.join(here, name)
        here = os.path.realpath(place)
        if os.path.islink(place):
            found.append((place, here))
    return found


def _is_hidden(path: str, hidden: set[str], shown: set[str]) -> bool:
    """Whether what lies nearest about a real path is hidden, not shown."""
    about = next((str(parent) for parent in Path(path).parents if str(parent) in hidden | shown), "")
    return about in hidden - shown


def _without(top: str, hidden: set[str]) -> list[str]:
    """Paths that together are `top` but for what is hidden beneath it. A rule holds for all that lies beneath a path, so the
    folders on the way to what is hidden are not among them, only what lies in them; links neither, for where they lead to has
    a path of its own."""
    if not any(path != top and Path(path).is_relative_to(top) for path in hidden):
        return [top]
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(top) as entries:
        for entry in entries:
            if entry.path not in hidden and not entry.is_symlink():
                found += _without(entry.path, hidden)
    return found
