"""The command instrument: a program without a shell, in a process group that is killed whole when its time is up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

from conductor.instruments.base import CallError, Instrument, Job

MAX_OUTPUT = 8 * 2**20  # bytes of stdout that are kept
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")  # a program sees these and the ones asked for
_PLACEHOLDER = re.compile(r"\{([\w.\-]+)\}")
_groups: set[int] = set()  # process groups that run now
_lock = threading.Lock()


def kill_group(group: int) -> None:
    """SIGKILL to every process of a group; one that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def kill_all() -> None:
    """End every program that this process started and that still runs."""
    with _lock:
        for group in _groups:
            kill_group(group)


class CommandInstrument(Instrument):
    """`{kind: command, argv: [ruff, check, "{inputs.draft}"]}`.

    Placeholders: `{task}`, `{function}`, `{variant}`, `{attempt}`, `{key}`, `{folder}`, `{base}`, `{args.NAME}`,
    `{inputs.TASK}`, `{python}` (this interpreter).
    The program gets `{"args": ..., "inputs": ...}` as JSON on its standard input and runs in the run's `files/`; an input
    whose task was given up or skipped is `null`. An exit status outside `codes` is an error, unless `codes` is empty. The
    output is `{"code": ..., "stdout": ..., "stderr": ...}`, or with `json: true` what stdout holds as JSON. `environment`
    names further variables that it may see.
    """

    def __init__(
        self,
        *,
        argv: list[str],
        codes: list[int] | None = None,
        json: bool = False,
        environment: list[str] | None = None,
    ) -> None:
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise ValueError(f"argv is {argv!r}; a list of strings is needed, the program first")
        if "{" not in argv[0] and shutil.which(argv[0]) is None:
            raise ValueError(f"program {argv[0]!r} is not installed here; install it or give its path")
        self._argv, self._json = argv, json
        self._codes = [0] if codes is None else codes
        self._names = (*ENVIRONMENT, *(environment or ()))

    def call(self, job: Job) -> Any:
        """Run the program for the job. Raises CallError: `timeout`, `error` for its exit status, `invalid` for its output."""
        argv = [_PLACEHOLDER.sub(lambda match: _value(job, match.group(1)), part) for part in self._argv]
        environment = {name: os.environ[name] for name in self._names if name in os.environ}
        # Files, not pipes: a grandchild that escapes the group cannot keep us waiting by holding a pipe open.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(json.dumps({"args": job.args, "inputs": job.inputs}).encode())
            stdin.seek(0)
            with _lock:
                try:
                    process = subprocess.Popen(
                        argv,
                        stdin=stdin,
                        stdout=stdout,
                        stderr=stderr,
                        cwd=job.folder,
                        env=environment,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise CallError(f"{argv[0]} cannot be started: {error.strerror}", "access") from error
                _groups.add(process.pid)
            ended = _ends(process.pid, job.seconds)
            with _lock:
                kill_group(process.pid)  # also what the program left behind; wait() below frees the group's number
                _groups.discard(process.pid)
            code = process.wait()
            if not ended:
                raise CallError(f"{argv[0]} did not end within {job.seconds:g} s", "timeout")
            out, err = _text(stdout), _text(stderr)
        if self._codes and code not in self._codes:
            raise CallError(f"{argv[0]} ended with status {code}: {(err or out).strip()[-400:]}")
        if not self._json:
            return {"code": code, "stdout": out, "stderr": err}
        try:
            return json.loads(out)
        except ValueError as error:
            raise CallError(f"{argv[0]} did not print JSON: {error}", "invalid") from error


def _ends(process: int, seconds: float) -> bool:
    """Wait for a child's end without reaping it, so that its number, and its group's, stays taken."""
    deadline, pause = time.monotonic() + seconds, 0.0005
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.02)
    return True


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT).decode(errors="replace")


def _value(job: Job, name: str) -> str:
    head, _, rest = name.partition(".")
    if rest and head in ("args", "inputs"):
        table: dict[str, Any] = getattr(job, head)
        if rest not in table:
            raise CallError(
                f"placeholder {{{name}}}: there is no {rest!r} among {', '.join(map(str, table)) or 'none'}", "precondition"
            )
        value = table[rest]
    elif name == "python":
        value = sys.executable
    elif name in ("task", "function", "variant", "attempt", "key", "folder", "base"):
        value = getattr(job, name)
    else:
        raise CallError(f"placeholder {{{name}}} is unknown", "precondition")
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list | None) else str(value)
