"""The conductor's end of a worker process: start it, write requests and read replies without blocking, end its whole tree."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conductor.errors import ConductorError, printable
from conductor.instruments.base import ERRORS, MAX_REPLY, too_deep
from conductor.instruments.sandbox import Limits
from conductor.instruments.supervised import Outcome, Supervised
from conductor.trust import config_folder

WORDS = 400  # bytes of a log's end that an error tells
SILENCE = 2.0  # s from the end of a worker's replies to its own
MAX_ELAPSED = 10**15  # us: no call takes longer
_ROOT = Path(__file__).resolve().parents[2]  # where the package `conductor` is found
# What a worker sees of the conductor's environment; a plan's `environment` names more. Whole families of names
# only where no secret goes by such a name, as one does by NVIDIA_API_KEY.
_SEEN = re.compile(
    "PATH|HOME|LANG|LANGUAGE|USER|LOGNAME|SHELL|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    "|XDG_((CONFIG|DATA|CACHE|STATE)_HOME|(CONFIG|DATA)_DIRS|RUNTIME_DIR)"
    "|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES|TF32_OVERRIDE)|(LC_|PYTHON)[A-Z0-9]+|(OMP|MKL|OPENBLAS|NUMBA|CUDA)_[A-Z0-9_]+"
)


def environment(named: Sequence[str] = ()) -> dict[str, str]:
    """The variables that a worker sees."""
    seen = {n: v for n, v in os.environ.items() if n in named or _SEEN.fullmatch(n)}
    seen["PYTHONPATH"] = os.pathsep.join(path for path in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if path)
    with contextlib.suppress(ConductorError):  # a system's service has no home, and no keys there
        seen["FQ_CONFIG"] = os.path.abspath(config_folder())  # which sandboxes hide
    return seen


def _temporary() -> str:
    """How the paths of the temporary folders begin that a worker makes for its programs."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # none in which there is room now
        folder = "/tmp"
    return os.path.join(folder, f"conductor-{secrets.token_hex(6)}-")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _reply(line: bytearray) -> dict[str, Any]:
    """A worker's line as a reply. Raises ValueError for anything else: code that runs there can write what it likes."""
    reply = json.loads(line, parse_float=_number, parse_constant=_constant)
    if not isinstance(reply, dict) or reply.keys() != {"id", "error", "text", "value", "quality", "elapsed"}:
        raise ValueError("it has other keys than a reply")
    quality = reply["quality"]
    if not (
        type(reply["id"]) is int
        and reply["error"] in ("ok", *ERRORS)
        and isinstance(reply["text"], str)
        and (quality is None or (type(quality) in (int, float) and 0 <= quality <= 1))
        and type(reply["elapsed"]) is int
        and 0 < reply["elapsed"] <= MAX_ELAPSED
    ):
        raise ValueError("a key of it holds what no reply does")
    if wrong := too_deep(reply["value"]):
        raise ValueError(f"its value has {wrong}")
    return reply


class Worker:
    """One worker process with `threads` calls at once; its prints and tracebacks go to `log`."""

    def __init__(
        self,
        base: Path,
        folder: Path,
        log: Path,
        threads: int = 1,
        limits: Limits | None = None,
        named: Sequence[str] = (),
    ) -> None:
        """`named`: variables that it sees besides the usual ones."""
        self._limits = limits or Limits()
        temporary = _temporary()
        with open(log, "ab") as log_file:
            self.log, self._log_begins = log, log_file.tell()
            self._run = Supervised(
                [sys.executable, "-P", "-m", "conductor.instruments.worker", str(base), str(folder), str(threads)],
                folder=folder,
                environment={**environment(named), "FQ_TEMPORARY": temporary},
                limits=self._limits,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                no_new_privs=False,
                capabilities=True,
                sweep=temporary,
            )
        process = self._run.process
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self.fault = ""  # what the worker wrote that is no reply; else, when replies are over, it has ended
        self.outcome: Outcome | None = None  # how it ended, after `end`
        self._silent = False  # whether its replies are over
        self._unread, self._unsent = bytearray(), bytearray()
        self._next = 0
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        """The descriptor that becomes readable when a reply waits."""
        return self._stdout.fileno()

    def request_file(self) -> int:
        """The descriptor that becomes writable when `flush` can go on."""
        return self._stdin.fileno()

    def send(self, request: dict[str, Any]) -> int:
        """Hand a request over; returns its number. A worker that is gone shows as the end of its replies, not here."""
        self._next += 1
        self._unsent += json.dumps({**request, "id": self._next}).encode() + b"\n"
        self.flush()
        return self._next

    def flush(self) -> bool:
        """Write what the worker takes now of what was handed over; whether that was all. A worker may be too busy to read."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._unsent.clear()
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """The replies that have arrived; None when the worker is gone, or has written what is no reply (`fault`)."""
        try:
            chunk = os.read(self.fileno(), 1 << 18)
        except BlockingIOError:
            return []
        self._unread += chunk
        if not chunk:
            self._silent = True
            return None
        if len(self._unread) > MAX_REPLY + (1 << 18):
            self.fault = f"more than {MAX_REPLY} bytes in one line"
            return None
        if b"\n" not in chunk:
            return []
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        try:
            return [_reply(line) for line in lines]
        except (ValueError, RecursionError) as error:
            self.fault = str(error)[:200]
            return None

    def last_words(self) -> str:
        """The end of what stands in its log of it, as one line that is safe for a terminal."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(self._log_begins, file.seek(0, os.SEEK_END) - WORDS))
            return printable(" ".join(file.read().decode(errors="replace").split()))
        return ""

    def ending(self) -> str:
        """What is known of how it ended, when nobody here has ended it; after `end`."""
        (code, reason, *_), limits = self.outcome or Outcome(None, "lost", 0), self._limits
        if reason == "processes":
            return f"it had more than {limits.processes} processes, instruments.limits.processes"
        if reason == "disk":
            return f"it left less than {limits.spare} MiB on the disk of the run, instruments.limits.spare"
        if reason == "lost":
            return "its supervisor was killed"
        if code is None:
            return "it closed the pipe of its replies"
        if code >= 0:
            return f"exit status {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            if -code == signal.SIGXFSZ and limits.file is not None:
                return f"{name}: it wrote more than {limits.file} MiB into one file, instruments.limits.file"
            if -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS) and limits.memory is not None:
                return f"{name}; it may have had too little memory, instruments.limits.memory is {limits.memory} MiB"
            return f"signal {-code}, {name}"
        return f"signal {-code}"

    def speaking(self, seconds: float) -> bool:
        """Whether it has begun a reply, and more of it comes within so long."""
        watch = select.poll()
        watch.register(self.fileno(), select.POLLIN)
        return bool(self._unread and watch.poll(1000 * seconds))

    def quiet(self) -> bool:
        """Whether it has neither ended nor said anything that was not heard yet: so is one of which nothing was asked."""
        watch = select.poll()
        for file in (self.fileno(), self._run.status_file()):
            watch.register(file, select.POLLIN)
        return not watch.poll(0)

    def end(self) -> int | None:
        """End the worker and everything that it has started; returns its exit status (negative: signal; None: ended here)."""
        if self.outcome is not None:
            return self.outcome.code
        if self._silent:  # it has ended, or is about to: its supervisor knows how, if it is not told to end it first
            over = select.poll()
            over.register(self._run.status_file(), select.POLLIN)
            over.poll(1e3 * SILENCE)
        self._run.end()
        self._unsent.clear()
        self._stdin.close()
        self._stdout.close()
        self.outcome = self._run.outcome()
        return self.outcome.code
