"""A worker process: loads a model, makes instruments, does calls. JSON lines: requests on stdin, replies on what was stdout.

It runs under a supervisor, which ends it and everything that it has started when the conductor wants that or is gone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from conductor.instruments.base import (
    ERRORS,
    MAX_REPLY,
    CallError,
    Instrument,
    Job,
    Result,
    make_instrument,
    resolve_callable,
    too_deep,
)
from conductor.instruments.hiding import Secrets
from conductor.instruments.sandbox import LEVELS

MAX_TEXT = 2000  # characters of an error's text


class _Log(io.TextIOBase):
    """What a user's code prints, without secrets, also if one is printed in parts."""

    def __init__(self, stream: TextIO, secrets: Secrets) -> None:
        self._stream, self._secrets = stream, secrets
        self._held = ""  # the beginning of a secret, perhaps: it waits for what is printed next
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Writes it on; where there is no room for it, it is lost, and the call goes on."""
        with self._lock:
            plain = self._secrets.hide(self._held + text)
            end = self._secrets.begun(plain)
            self._held = plain[end:]
            with contextlib.suppress(OSError):
                self._stream.write(plain[:end])
                self._stream.flush()
        return len(text)


class Server:
    """One process, at most one model, `threads` calls at once."""

    def __init__(self, base: Path, folder: Path, threads: int) -> None:
        self._base, self._folder = base, folder
        self._model: Any = None
        self._instruments: dict[str, Instrument] = {}
        self._making: dict[str, threading.Lock] = {}  # one for each instrument: importing a module may take long
        self._secrets = Secrets()
        self._replying = threading.Lock()
        self._pool = ThreadPoolExecutor(threads)
        # Requests and replies get descriptors of their own; what a user's code prints goes to the log, what it reads is empty.
        self._requests = os.fdopen(os.dup(0), "rb")
        self._replies = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        sys.stdout, sys.stderr = _Log(sys.stdout, self._secrets), _Log(sys.stderr, self._secrets)

    def serve(self) -> None:
        """Read requests until the conductor closes the pipe or is gone."""
        for line in self._requests:
            request = json.loads(line)
            self._pool.submit(self._answer, request)
        os._exit(0)

    def _answer(self, request: dict[str, Any]) -> None:
        begin = time.perf_counter_ns()
        reply: dict[str, Any] = {"id": request["id"], "error": "ok", "text": "", "value": None, "quality": None}
        try:
            result = getattr(self, f"_do_{request['do']}")(request)
            if isinstance(result, Result):
                reply["quality"] = _quality(result.quality)
                result = result.value
            reply["value"] = result
            if wrong := too_deep(result):
                raise CallError(f"the output has {wrong}", "invalid")
            line = json.dumps({**reply, "value": self._secrets.hide_in(result)}, allow_nan=False)
            if len(line) > MAX_REPLY:
                raise CallError(f"the output has {len(line)} bytes as JSON; at most {MAX_REPLY} are taken", "invalid")
        except BaseException as error:  # a user's code may raise anything, also SystemExit
            line = self._failure(reply, error)
        elapsed = max(1, (time.perf_counter_ns() - begin) // 1000)
        with self._replying:
            self._replies.write(f'{{"elapsed":{elapsed},{line[1:]}\n'.encode())
            self._replies.flush()

    def _failure(self, reply: dict[str, Any], error: BaseException) -> str:
        """The reply for an error; its text may come to stand on a terminal, which it must not command."""
        try:
            kind, text = _words(error, reply["value"] is not None)
        except BaseException as other:  # an exception of a user's may not even be told
            kind, text = "error", f"{type(error).__name__}, whose text raises {type(other).__name__}"
        if not isinstance(error, CallError):
            with contextlib.suppress(BaseException):  # their `sys.stderr`, perhaps
                traceback.print_exception(error)
        plain = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in self._secrets.hide(text)[:MAX_TEXT])
        return json.dumps({**reply, "error": kind, "text": plain, "value": None, "quality": None})

    def _do_check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make every instrument and find every loader: the sentences of those that cannot be, the sandbox of each function."""
        faults, levels = [], {}
        for name, spec in request["functions"].items():
            try:
                levels[name] = self._instrument(name, spec).level
            except Exception as error:  # a kind of somebody else's may raise anything
                words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                faults.append(f"instruments.functions.{spec['where']}: {words}")
        for name, spec in request["models"].items():
            try:
                resolve_callable(spec["load"])
            except ValueError as error:
                faults.append(f"instruments.models.{name}: {error}")
        for name, hook in request["configure"].items():
            try:
                resolve_callable(hook)
            except ValueError as error:
                faults.append(f"instruments.functions.{name}.configure: {error}")
        return {"faults": faults, "levels": levels}

    def _do_load(self, request: dict[str, Any]) -> None:
        self._model = resolve_callable(request["load"])(**request["args"])

    def _do_configure(self, request: dict[str, Any]) -> None:
        resolve_callable(request["call"])(function=request["function"], variant=request["variant"])

    def _do_call(self, request: dict[str, Any]) -> Any:
        self._secrets.learn(request["secrets"])
        environment = {**request["environment"], **request["secrets"]}
        folder = self._folder
        if "folder" in request:  # of the run that leases this worker, which does one call at a time, for this call
            folder = Path(request["folder"])
            os.chdir(folder)
        known = {"base": self._base, "model": self._model, "environment": environment, "secrets": self._secrets}
        job = Job(**request["job"], folder=folder, **known)
        return self._instrument(request["name"], request["instrument"], request.get("level", "none")).call(job)

    def _instrument(self, name: str, spec: dict[str, Any], level: str = "none") -> Instrument:
        """Made when it is first asked for. Raises CallError if its sandbox is a lower one than `level`, which is on record."""
        with self._making.setdefault(name, threading.Lock()):
            made = self._instruments.get(name) or make_instrument(spec["kind"], spec["options"])
            if made.level != level and LEVELS.index(made.level) < LEVELS.index(level):
                raise CallError(f"{name} would now run in the sandbox {made.level}, and the run began with {level}")
            self._instruments[name] = made
            return made


def _words(error: BaseException, answered: bool) -> tuple[str, str]:
    """The kind and the text of an error; `answered`: there was an output already."""
    if isinstance(error, CallError):
        if error.kind in ERRORS:
            return error.kind, str(error)
        return "error", f"{error} (its CallError has the kind {error.kind!r}; known are {', '.join(ERRORS)})"
    if answered and isinstance(error, TypeError | ValueError | RecursionError):
        return "invalid", f"the output is no JSON value: {error}"
    return "error", f"{type(error).__name__}: {error}"


def _quality(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CallError(f"quality is {value!r}; a number in [0, 1] is needed", "invalid")
    return float(value)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    Server(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).serve()
