"""A program under a supervisor, as a thread sees it: started, ended with everything that it has started, and how it went."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from conductor.instruments.sandbox import Limits

_SCRIPT = str(Path(__file__).with_name("supervisor.py"))
_Stream = int | IO[bytes]


class Outcome(NamedTuple):
    """How a program ended: its exit status (negative: signal; None if it was ended), why it was ended (`time`, `processes`,
    `disk`, `gone`, or `lost` with its supervisor; else nothing), the errno if it could not be started (else 0), and how many
    of its processes could not be ended."""

    code: int | None
    reason: str
    error: int
    left: int = 0


class Supervised:
    """One program, from its start on. Everything that it starts ends with it."""

    def __init__(
        self,
        argv: list[str],
        *,
        folder: Path,
        environment: dict[str, str],
        limits: Limits,
        stdin: _Stream,
        stdout: _Stream,
        stderr: _Stream,
        seconds: float | None = None,
        no_new_privs: bool = True,
        capabilities: bool = False,
        landlock: dict[str, Any] | None = None,
        sweep: str = "",
    ) -> None:
        """Starts it in `folder`. `capabilities`: it keeps those that the conductor has. `landlock`: what `sandbox.confine`
        gave. `sweep`: folders whose path begins so are removed when all is over."""
        spec = {
            "parent": os.getpid(),
            "argv": argv,
            "folder": str(folder),
            "limits": asdict(limits),
            "seconds": seconds,
            "no_new_privs": no_new_privs,
            "capabilities": capabilities,
            "landlock": landlock,
            "sweep": sweep,
        }
        handles: list[int] = []
        try:
            handles.append(os.memfd_create("spec"))
            with os.fdopen(os.dup(handles[0]), "wb") as file:
                file.write(json.dumps(spec).encode())
                file.flush()
                file.seek(0)
            handles += os.pipe()
            handles += os.pipe()
            specification, control, self._control, self._status, status = handles
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SCRIPT, str(specification), str(control), str(status)],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
                pass_fds=(specification, control, status),
            )
        except BaseException:
            for handle in handles:
                os.close(handle)
            raise
        for handle in (specification, control, status):
            os.close(handle)

    def status_file(self) -> int:
        """The descriptor that becomes readable when everything is over."""
        return self._status

    def end(self) -> None:
        """Ask for the end of the program and everything that it has started; `outcome` waits for it."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def outcome(self) -> Outcome:
        """Waits until everything is over. Once only."""
        told = os.read(self._status, select.PIPE_BUF)  # all in one piece; a fork of this process may keep the pipe open
        os.close(self._status)
        self.end()
        with contextlib.suppress(ChildProcessError):
            self.process.wait()
        if not told:
            return Outcome(None, "lost", 0)
        return Outcome(**json.loads(told))
