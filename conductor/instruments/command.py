"""The command instrument: a program without a shell, limited, in a sandbox, and ended with everything that it has started."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection
from typing import Any

from conductor.instruments import leftovers
from conductor.instruments.base import CallError, Instrument, Job
from conductor.instruments.hiding import Secrets
from conductor.instruments.sandbox import Limits, choose, confine
from conductor.instruments.supervised import Outcome, Supervised

KEPT = {"stdout": 8 << 20, "stderr": 1 << 20}  # bytes of what a program prints; the rest is read and thrown away
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "USER")  # a program sees these and the ones asked for
LIMITS = Limits(file=1024, files=1024, processes=256, spare=64)
# A name in braces, as many on each side as there are: a task's or an argument's may hold spaces inside.
_PLACEHOLDER = re.compile(r"(?<!\{)(\{+)((?:inputs?|args)\.[\w.\- ]*[\w.\-]|[\w.\-]+)(\}+)")
_OF_JOB = ("task", "function", "variant", "attempt", "key", "folder", "base")
_REASONS = {
    "processes": "had more than {limits.processes} processes (limits.processes)",
    "disk": "left less than {limits.spare} MiB on the disk of the run (limits.spare)",
    "gone": "was ended with its worker",
    "lost": "was lost with its supervisor",
}
_SIGNALS = {
    signal.SIGXCPU: ("cpu", "took more than {limits.cpu} s of CPU time (limits.cpu)"),
    signal.SIGXFSZ: ("file", "wrote more than {limits.file} MiB into one file (limits.file)"),
}


class CommandInstrument(Instrument):
    """`{kind: command, argv: [ruff, check, "{inputs.draft}"]}`.

    Placeholders: `{task}`, `{function}`, `{variant}`, `{attempt}`, `{key}`, `{folder}`, `{base}`, `{args.NAME}`,
    `{inputs.TASK}`, `{input}` (of the task's only input), `{input.NAME}` (what stands in it), `{python}` (this interpreter).
    Doubled braces stand for single ones: `{{task}}` is the text `{task}`. Braces without a name between them are text.
    The program gets `{"args": ..., "inputs": ...}` as JSON on its standard input, or the text `stdin`, which may hold
    placeholders, and runs in the run's `files/`; an input whose task was given up or skipped is `null`. An exit status outside
    `codes` is an error, unless `codes` is empty. The output is `{"code": ..., "stdout": ..., "stderr": ...}` (and `cut`: bytes
    that were printed, of a stream that was too long), or with `json: true` what stdout holds as JSON.

    It sees `ENVIRONMENT` and the variables that the plan's `environment` names. `limits` (see `Limits`) replaces some of
    `LIMITS`, `sandbox` is the level that the machine must have at least (`none`: it runs in none), and only with
    `network: true` may it open connections where a sandbox can forbid that. In a sandbox it may leave no links that lead out
    of `files/`, nor sockets, named pipes and devices: they are removed, and the call fails with `invalid`.
    """

    def __init__(
        self,
        *,
        argv: list[str],
        codes: list[int] | None = None,
        json: bool = False,
        stdin: str | None = None,
        limits: dict[str, int | None] | None = None,
        sandbox: str | None = None,
        network: bool = False,
    ) -> None:
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise ValueError(f"argv is {argv!r}; a list of strings is needed, the program first")
        if "{" not in argv[0] and shutil.which(argv[0]) is None:
            raise ValueError(f"program {argv[0]!r} is not installed here; install it or give its path")
        if codes is not None and not (isinstance(codes, list) and all(type(code) is int for code in codes)):
            raise ValueError(f"codes is {codes!r}; a list of whole numbers is needed, [0, 1] for example, or [] for any")
        if stdin is not None and not isinstance(stdin, str):
            raise ValueError(f"stdin is {stdin!r}; a text is needed, or null for the job as JSON")
        for name, value in (("json", json), ("network", network)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; true or false is needed")
        self._argv, self._json, self._stdin, self._network = argv, json, stdin, network
        self._codes = [0] if codes is None else codes
        self._limits = LIMITS if limits is None else Limits.read(limits, LIMITS)
        self.level = choose(sandbox)

    def call(self, job: Job) -> Any:
        """Run the program for the job. Raises CallError: `timeout`, `error` for its exit status, `invalid` for its output."""
        argv = [fill(part, job) for part in self._argv]
        text = json.dumps({"args": job.args, "inputs": job.inputs}) if self._stdin is None else fill(self._stdin, job)
        confined = self.level in ("landlock", "bwrap")
        before = leftovers.find(job.folder) if confined else set()
        left = ""
        # If this worker is ended meanwhile, its supervisor removes what begins like that.
        top, beginning = os.path.split(os.environ.get("FQ_TEMPORARY", "conductor-"))
        try:
            with tempfile.TemporaryDirectory(prefix=beginning, dir=top or None, ignore_cleanup_errors=True) as temporary:
                outcome, kept, printed = self._run(job, argv, text.encode(), temporary)
        finally:
            if confined:
                left = leftovers.remove(job.folder, leftovers.find(job.folder) - before)
        self._judge(argv[0], job, outcome, kept)
        if left:
            raise CallError(f"{argv[0]} left in files/ what leads out of it, or is no file: {left}", "invalid")
        cut = {name: count for name, count in printed.items() if count > KEPT[name]}
        if not self._json:
            return {"code": outcome.code, **kept, **({"cut": cut} if cut else {})}
        if "stdout" in cut:
            raise CallError(f"{argv[0]} printed {cut['stdout']} bytes; at most {KEPT['stdout']} are taken as JSON", "invalid")
        try:
            return json.loads(kept["stdout"])
        except (ValueError, RecursionError) as error:
            raise CallError(f"{argv[0]} did not print JSON: {error}", "invalid") from error

    def _run(self, job: Job, argv: list[str], text: bytes, temporary: str) -> tuple[Outcome, dict[str, str], dict[str, int]]:
        """(how it ended, what is kept of its streams, how many bytes it printed on them)."""
        home = {"HOME": temporary} if self.level == "landlock" else {}
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {**home, "TMPDIR": "/tmp" if self.level == "bwrap" else temporary, **job.environment}
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise CallError(f"{argv[0]} cannot be started: there is no such program", "access")
        started, rules = confine(self.level, argv, job.folder, job.base, temporary, self._network)
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b"))
            stdin.write(text)
            stdin.seek(0)
            pipes = {name: os.pipe() for name in KEPT}
            readers = {name: stack.enter_context(os.fdopen(pipe[0], "rb", buffering=0)) for name, pipe in pipes.items()}
            try:
                program = Supervised(
                    started,
                    folder=job.folder,
                    environment=environment,
                    limits=self._limits if self.level != "none" else Limits(),
                    stdin=stdin,
                    stdout=pipes["stdout"][1],
                    stderr=pipes["stderr"][1],
                    seconds=job.seconds,
                    no_new_privs=self.level != "none",
                    capabilities=self.level in ("none", "bwrap"),  # bwrap needs some, and drops them all itself
                    landlock=rules,
                )
            finally:
                for _, writer in pipes.values():
                    os.close(writer)
            kept, printed = _collect(program, readers)
            texts = {name: _text(content, printed[name] > KEPT[name], job.secrets) for name, content in kept.items()}
            return program.outcome(), texts, printed

    def _judge(self, name: str, job: Job, outcome: Outcome, kept: dict[str, str]) -> None:
        """Raises CallError unless the program ended as it should."""
        if outcome.error:
            raise CallError(f"{name} cannot be started: {os.strerror(outcome.error)}", "access")
        if outcome.left:
            kind = "timeout" if outcome.reason == "time" else "error"
            raise CallError(f"{name} is over, but {outcome.left} of its processes could not be ended", kind)
        if outcome.reason == "time":
            raise CallError(f"{name} did not end within {job.seconds:g} s", "timeout")
        if outcome.reason:
            raise CallError(f"{name} {_REASONS[outcome.reason].format(limits=self._limits)}")
        code = outcome.code or 0
        for number, (limit, words) in _SIGNALS.items():
            limited = self.level != "none" and getattr(self._limits, limit) is not None
            if limited and code in (-number, 128 + number):  # itself, or as a sandbox tells it
                raise CallError(f"{name} {words.format(limits=self._limits)}")
        if self._codes and code not in self._codes:
            said = job.secrets.hide(kept["stderr"] or kept["stdout"]).strip()
            raise CallError(f"{name} ended with status {code}: {said[-400:]}")


def _text(content: bytearray, cut: bool, secrets: Secrets) -> str:
    if not cut:
        return content.decode(errors="replace")
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(content)  # a character that was cut is left out
    return secrets.hide_before_cut(whole)


def _collect(program: Supervised, readers: dict[str, Any]) -> tuple[dict[str, bytearray], dict[str, int]]:
    """What a program prints until everything is over. A pipe that somebody still holds open then is left."""
    kept = {name: bytearray() for name in readers}
    printed = dict.fromkeys(readers, 0)
    with selectors.DefaultSelector() as selector:
        for name, reader in readers.items():
            os.set_blocking(reader.fileno(), False)
            selector.register(reader, selectors.EVENT_READ, name)
        selector.register(program.status_file(), selectors.EVENT_READ, "")
        over = False
        while True:
            ready = selector.select(0 if over else None)
            over = over or any(key.data == "" for key, _ in ready)
            streams = [key for key, _ in ready if key.data]
            for key in streams:
                chunk = key.fileobj.read(1 << 16)  # type: ignore[union-attr]
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                printed[key.data] += len(chunk)
                kept[key.data] += chunk[: KEPT[key.data] - len(kept[key.data])]
            if over and not streams:
                return kept, printed


def fill(text: str, job: Job) -> str:
    """A text with its placeholders filled. Raises CallError `precondition` for one that there is not, or that no program can
    be given."""
    filled = _PLACEHOLDER.sub(lambda match: _filled(match, job), text)
    try:
        filled.encode()
    except UnicodeEncodeError as error:
        raise CallError(f"{text!r} would hold half a character: {error.reason}", "precondition") from error
    if "\0" in filled:
        raise CallError(f"{text!r} would hold the character 0, which no program can be given", "precondition")
    return filled


def _filled(match: re.Match[str], job: Job) -> str:
    left, name, right = match.groups()
    pairs = min(len(left), len(right))
    middle = _value(job, name) if pairs % 2 else name
    return f"{left[pairs:]}{'{' * (pairs // 2)}{middle}{'}' * (pairs // 2)}{right[pairs:]}"


def check_placeholders(text: str, task: str, args: Collection[str], inputs: Collection[str], one: bool) -> None:
    """Raises ValueError for a placeholder of which it is known before a task begins that it cannot be filled. `one`: whether
    the task may begin with one of its inputs alone."""
    for left, name, right in _PLACEHOLDER.findall(text):
        if min(len(left), len(right)) % 2 == 0 or name == "python" or name in _OF_JOB:
            continue
        head, _, rest = name.partition(".")
        known = {"args": args, "inputs": inputs}.get(head) if rest else None
        if known is not None:
            why = "" if rest in known else f"there is no {rest!r} among {', '.join(known) or 'none'}"
        elif head == "input":
            why = "" if one or len(inputs) == 1 else f"the task has {len(inputs)} inputs, not one"
        else:
            why = f"it is unknown; for the text {{{name}}} write {{{{{name}}}}}"
        if why:
            raise ValueError(f"placeholder {{{name}}}, of task {task}: {why}")


def _value(job: Job, name: str) -> str:
    head, _, rest = name.partition(".")
    if rest and head in ("args", "inputs"):
        table: dict[str, Any] = getattr(job, head)
        if rest not in table:
            raise CallError(
                f"placeholder {{{name}}}: there is no {rest!r} among {', '.join(map(str, table)) or 'none'}", "precondition"
            )
        value = table[rest]
    elif head == "input":
        if len(job.inputs) != 1:
            raise CallError(f"placeholder {{{name}}}: the task has {len(job.inputs)} inputs, not one", "precondition")
        (value,) = job.inputs.values()
        if rest and (not isinstance(value, dict) or rest not in value):
            raise CallError(f"placeholder {{{name}}}: the input has no {rest!r}", "precondition")
        value = value[rest] if rest else value
    elif name == "python":
        value = sys.executable
    elif name in _OF_JOB:
        value = getattr(job, name)
    else:
        raise CallError(f"placeholder {{{name}}} is unknown", "precondition")
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list | None) else str(value)
