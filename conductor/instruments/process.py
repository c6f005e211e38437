"""The conductor's end of a worker process: start it, write requests, read replies without blocking, end its whole group."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conductor.instruments.command import kill_group

MAX_LINE = 64 * 2**20  # bytes of one reply
_ROOT = Path(__file__).resolve().parents[2]  # where the package `conductor` is found


class Worker:
    """One worker process with `threads` calls at once; its prints and tracebacks go to `log`."""

    def __init__(self, base: Path, folder: Path, log: Path, threads: int = 1) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(_ROOT), environment.get("PYTHONPATH", "")) if p)
        with open(log, "ab") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "conductor.instruments.worker", str(base), str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._buffer = bytearray()
        self._next = 0
        os.set_blocking(self._stdout.fileno(), False)

    def fileno(self) -> int:
        """The descriptor that becomes readable when a reply waits."""
        return self._stdout.fileno()

    def send(self, request: dict[str, Any]) -> int:
        """Write a request; returns its number. A worker that is gone shows as the end of its replies, not here."""
        self._next += 1
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(json.dumps({**request, "id": self._next}).encode() + b"\n")
            self._stdin.flush()
        return self._next

    def receive(self) -> list[dict[str, Any]] | None:
        """The replies that have arrived; None when the worker is gone (or spoke no protocol)."""
        try:
            chunk = os.read(self.fileno(), 1 << 18)
        except BlockingIOError:
            return []
        self._buffer += chunk
        if not chunk or len(self._buffer) > MAX_LINE:
            return None
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None

    def end(self) -> int:
        """End the worker, its programs and everything in its group; returns its exit status (negative: signal)."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()  # at the end of its input it ends the programs it started, then itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        kill_group(self._process.pid)
        self._stdout.close()
        return self._process.wait()
