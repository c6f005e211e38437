"""Runs one program and sees that nothing of it is left: `python -I -S supervisor.py SPEC CONTROL STATUS`, three descriptors.

It is a process of its own because what must happen between fork and exec is not safe where there are threads. It is the
subreaper of everything that the program starts, also of what leaves its group or session. It ends all of that when the
program has ended, has reached a limit, who asked for it is gone, or CONTROL is at its end (they want it to end), and says only
then on STATUS what happened. The standard library alone may be imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from typing import Any

TICK = 0.02  # s between looks at limits that the kernel does not hold
REST = 1.0  # s after which what has lost its parents and ended is reaped where there are none
PATIENCE = 5.0  # s in which what is killed has to be gone
_SET_PDEATHSIG, _SET_DUMPABLE, _DROP_BOUNDING, _SET_SUBREAPER, _SET_NO_NEW_PRIVS, _AMBIENT = 1, 4, 24, 36, 38, 47  # prctl
_SET_SECCOMP, _FILTER = 22, 2
_CAPABILITIES, _CAPABILITY_VERSION, _CLEAR_AMBIENT = 64, 0x20080522, 4
_RESOURCES = {
    "memory": (resource.RLIMIT_AS, 1 << 20),
    "cpu": (resource.RLIMIT_CPU, 1),
    "file": (resource.RLIMIT_FSIZE, 1 << 20),
    "files": (resource.RLIMIT_NOFILE, 1),
}
# Landlock's rights over files, by the version that brought them, and those that a thing that is no folder can have.
_READ, _WRITE, _FILE = 0b1101, 0x1FF2, 0b111
_REFER, _TRUNCATE, _TCP, _SCOPES = 1 << 13, 1 << 14, 0b11, 0b11
# Of a machine: its number for filters; system calls that make sockets, that change extended attributes, and those that are
# refused if each of some arguments (place, mask) has one of its bits set: chmod, creat, mknod and their kin with a mode, open
# and openat also with flags that make a file, and prlimit with another process than oneself.
_SETUID, _MAKES, _ANY = stat.S_ISUID, os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY, 0xFFFFFFFF
_Bits = tuple[tuple[int, int], ...]
_CALLS: dict[str, tuple[int, int, tuple[int, ...], dict[int, _Bits]]] = {
    "x86_64": (0xC000003E, 41, (188, 189, 190, 197, 198, 199, 463, 466), {
        **dict.fromkeys((85, 90, 91, 133), ((1, _SETUID),)), **dict.fromkeys((259, 268, 452), ((2, _SETUID),)),
        2: ((1, _MAKES), (2, _SETUID)), 257: ((2, _MAKES), (3, _SETUID)), 302: ((0, _ANY),),
    }),
    "aarch64": (0xC00000B7, 198, (5, 6, 7, 14, 15, 16, 463, 466), {
        52: ((1, _SETUID),), **dict.fromkeys((33, 53, 452), ((2, _SETUID),)),
        56: ((2, _MAKES), (3, _SETUID)), 261: ((0, _ANY),),
    }),
}  # fmt: skip
_OPENAT2, _IO_URING, _FOREIGN = 437, 425, 0x40000000  # the last and above: calls of another kind of program (x32)
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def landlock_version() -> int:
    """The kernel's Landlock version; 0 if it has none."""
    return max(0, int(_libc.syscall(444, None, ctypes.c_size_t(0), 1)))


def close_to_others() -> None:
    """From now on only who has capabilities sees this process's environment and memory; an exec ends it."""
    _checked(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))


def drop_capabilities() -> None:
    """Gives up all capabilities; with no_new_privs set no program gets one back, whoever's it is. With them a program of root
    would pass by what Landlock forbids: it would read the environment of every process. Raises OSError."""
    for capability in range(_CAPABILITIES):  # those that there are not, and all for who has none, are refused
        _libc.prctl(_DROP_BOUNDING, capability, 0, 0, 0)
    _checked(_libc.prctl(_AMBIENT, _CLEAR_AMBIENT, 0, 0, 0))
    _checked(_libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()))


def restrict(reads: list[str], writes: list[str], network: bool) -> None:
    """From now on this process reads beneath `reads` and `writes`, writes beneath `writes`, and opens no TCP connection unless
    `network`; it reaches no process outside by signals or abstract sockets. Raises OSError."""
    version = landlock_version()
    write = _WRITE | _REFER | (_TRUNCATE if version >= 3 else 0)
    fields = [_READ | write, 0 if network else _TCP, _SCOPES if version >= 6 else 0]
    rules = (ctypes.c_uint64 * 3)(*fields)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_libc.syscall(444, rules, ctypes.c_size_t(size), 0))
    for paths, rights in ((reads, _READ), (writes, _READ | write)):
        for path in paths:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
                allowed = rights if os.path.isdir(path) else rights & (_FILE | _TRUNCATE)
                rule = ctypes.create_string_buffer(allowed.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder), 12)
                _checked(_libc.syscall(445, ruleset, 1, rule, 0))
                os.close(handle)
    _checked(_libc.syscall(446, ruleset, 0))
    os.close(ruleset)


def can_filter() -> bool:
    """Whether `forbid_calls` works here: the machine is known, and the kernel takes filters."""
    if os.uname().machine not in _CALLS or sys.maxsize < 1 << 32:
        return False
    return bool(_libc.prctl(_SET_SECCOMP, _FILTER, None, 0, 0)) and ctypes.get_errno() == errno.EFAULT


def forbid_calls(network: bool) -> None:
    """What Landlock does not hold: from now on this process makes no socket unless `network` (pairs it may make), makes no
    program setuid, changes no extended attributes, wherever they lie, and sets no limits of other processes. io_uring and
    openat2, of which a filter sees too little, are not there, nor are the calls of programs for 32 bits. Needs no_new_privs.
    Raises OSError."""
    machine, socket, attributes, by_bits = _CALLS[os.uname().machine]
    refused = {_IO_URING: errno.ENOSYS, _OPENAT2: errno.ENOSYS, **dict.fromkeys(attributes, errno.EOPNOTSUPP)}
    if not network:
        refused[socket] = errno.EACCES
    load, equal, above, any_of, end = 0x20, 0x15, 0x35, 0x45, 0x06  # of a 32-bit word; the jumps: over so many, if, else
    allow, refuse = (end, 0, 0, 0x7FFF0000), 0x00050000
    lines = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, refuse | errno.ENOSYS)]
    lines += [(load, 0, 0, 0), (above, 0, 1, _FOREIGN), (end, 0, 0, refuse | errno.ENOSYS)]
    for call, code in refused.items():
        lines += [(equal, 0, 1, call), (end, 0, 0, refuse | code)]
    for call, bits in by_bits.items():
        rest = 2 * len(bits)  # lines that look at arguments; after them one that refuses, and one that allows
        lines.append((equal, 0, rest + 2, call))
        for done, (place, mask) in enumerate(bits, 1):
            lines += [(load, 0, 0, 16 + 8 * place), (any_of, 0, rest - 2 * done + 1, mask)]
        lines += [(end, 0, 0, refuse | errno.EPERM), allow]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in [*lines, allow]))
    _checked(_libc.prctl(_SET_SECCOMP, _FILTER, struct.pack("@HP", len(lines) + 1, ctypes.addressof(program)), 0, 0))


def children(process: int) -> list[int]:
    """The children of a process; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def descendants(stop: bool) -> list[int]:
    """What this process's children have started, and they. `stop`: each is stopped before its children are asked for, so
    that what forks as fast as it can is counted to the end."""
    found: list[int] = []
    todo = children(os.getpid())
    while todo:
        process = todo.pop()
        if stop:
            _signal(process, signal.SIGSTOP)
        found.append(process)
        todo += children(process)
    return found


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def end_tree() -> int:
    """Ends all descendants and reaps them; how many could not be ended."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for process in descendants(stop=True):
            _signal(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        if time.monotonic() > deadline:
            return max(1, len(descendants(stop=False)))
        time.sleep(0.001)


def sweep(beginning: str) -> None:
    """Removes the folders whose path begins so: who made them was ended before it could."""
    folder, name = os.path.split(beginning)
    with contextlib.suppress(OSError):
        for found in os.listdir(folder):
            if found.startswith(name):
                import shutil  # takes its time, and is seldom needed

                shutil.rmtree(os.path.join(folder, found), ignore_errors=True)


def reap(process: int) -> set[int]:
    """Reaps the children that have ended, but for one; who they were."""
    ended: set[int] = set()
    while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and child.si_pid != process:
        os.waitpid(child.si_pid, 0)
        ended.add(child.si_pid)
    return ended


def start(spec: dict[str, Any], folder: int) -> int:
    """Fork and become the program, in an open folder; its process number. Raises OSError if it cannot be started."""
    told, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        with os.fdopen(told, "rb") as file:
            code = file.read()
        if code:
            os.waitpid(process, 0)
            raise OSError(int(code), os.strerror(int(code)))
        return process
    try:
        _become(spec, folder)
    except OSError as error:
        os.write(tell, str(error.errno or 1).encode())
    finally:
        os._exit(127)


def _become(spec: dict[str, Any], folder: int) -> None:
    os.setsid()
    _checked(_libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    os.fchdir(folder)
    for name, (number, unit) in _RESOURCES.items():
        value = spec["limits"].get(name)
        if value is not None:
            hard = resource.getrlimit(number)[1]
            soft = value * unit if hard == resource.RLIM_INFINITY else min(value * unit, hard)
            later = 1 if name == "cpu" and soft == value else 0  # SIGXCPU first, which says why; then SIGKILL
            resource.setrlimit(number, (soft, soft + later))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; a program expects it
    if spec["no_new_privs"]:
        _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if spec["landlock"] is not None:
        restrict(**spec["landlock"])
        forbid_calls(spec["landlock"]["network"])
    if not spec["capabilities"]:
        drop_capabilities()
    os.execvpe(spec["argv"][0], spec["argv"], os.environ)


def watch(process: int, spec: dict[str, Any], folder: int, parent: int, control: int) -> str:
    """Waits for the program's end; why it has to end before: `time`, `processes`, `disk` (that of `folder`, which may be gone)
    or `gone` (with `parent`, or `control` is at its end, which a fork of the parent may hold open), else nothing."""
    limits = spec["limits"]
    most, spare = limits.get("processes"), limits.get("spare")
    deadline = None if spec["seconds"] is None else time.monotonic() + spec["seconds"]
    end = os.pidfd_open(process)
    poll = select.poll()
    poll.register(control, select.POLLIN | select.POLLHUP)
    poll.register(end, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        pause = REST if most is None and spare is None else TICK
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - time.monotonic()))
        ready = {number for number, _ in poll.poll(1000 * pause)}
        if end in ready:
            return ""
        if control in ready or parent in ready:
            return "gone"
        if deadline is not None and time.monotonic() >= deadline:
            return "time"
        found = [] if most is None else descendants(stop=False)
        ended = reap(process)
        if most is not None and len({*found} - ended) > most:
            return "processes"
        if spare is not None:
            disk = os.fstatvfs(folder)
            if disk.f_bavail * disk.f_frsize < spare << 20:
                return "disk"


def _run(spec: dict[str, Any], control: int) -> dict[str, Any]:
    """Starts the program and waits until it has ended or has to; what is told of that."""
    try:
        parent = os.pidfd_open(spec["parent"])
        if os.getppid() != spec["parent"]:  # it was gone before, and the number may be another's
            return {"reason": "gone"}
        folder = os.open(spec["folder"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        process = start(spec, folder)
    except OSError as error:
        return {"reason": "", "error": error.errno}
    reason = watch(process, spec, folder, parent, control)
    return {"reason": reason, "code": None if reason else os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}


def main(spec_file: int, control: int, status: int) -> None:
    """See the module's text."""
    close_to_others()
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    with os.fdopen(spec_file, "rb") as file:
        spec = json.loads(file.read())
    # What the host ignores or blocks is its own affair: without SIGCHLD nobody learns how a child ended.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _checked(_libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0))
    told: dict[str, Any] = {"code": None, "reason": "lost", "error": 0, "left": 0}
    try:
        told |= _run(spec, control)
    except Exception:  # whatever went wrong here: the tree ends, and that is said
        sys.excepthook(*sys.exc_info())
    # Where the streams of the program are ours too, let go of them: who reads them must see their end.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    told["left"] = end_tree()
    if spec["sweep"]:
        sweep(spec["sweep"])
    with contextlib.suppress(BrokenPipeError):
        os.write(status, json.dumps(told).encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
