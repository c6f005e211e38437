"""What an instrument is: one class with one method, made and called inside a worker process.

An installed package adds a kind with an entry point of the group `function_quest.instruments` (name = kind, value = the
class); a workflow then says `instruments: {functions: {draft: {kind: NAME, ...}}}`, its other keys are the class's arguments.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any

from conductor.instruments.hiding import Secrets

GROUP = "function_quest.instruments"
MAX_REPLY = 64 << 20  # bytes of one output as JSON
MAX_DEPTH = 100  # levels of lists and objects in one another in an output
MAX_PARTS = 1 << 22  # lists and objects in an output, each as often as it stands there
ERRORS = ("error", "timeout", "throttled", "precondition", "access", "invalid", "lost")  # of a CallError
COMMON = ("seconds", "configure", "environment", "secrets", "variants")  # keys of every function, which are no instrument's
BUILT_IN = {
    "python": "conductor.instruments.python:PythonInstrument",
    "command": "conductor.instruments.command:CommandInstrument",
    "proxy": "conductor.instruments.proxy:ProxyInstrument",
}


@dataclass(frozen=True)
class Job:
    """One call, as an instrument sees it."""

    key: str  # idempotency key, the same in every attempt: a side effect that was done under it need not be done again
    task: str
    function: str
    variant: str  # "lite", "standard" or "premium"
    attempt: int  # 1, 2, ...
    args: dict[str, Any]  # of the task
    # Task id -> output, for `after` and `soft`: None if that task was given up or skipped. With `join: any` only those done.
    inputs: dict[str, Any]
    seconds: float  # time limit; an instrument may end the call itself then, a second later its worker is killed
    folder: Path  # `files/` of the run: where files may be written
    base: Path  # the folder of the workflow file
    model: Any = None  # what the model's `load` returned, in this very process
    # The variables that the plan's `environment` and `secrets` name; the latters' values are taken out of what the call gives.
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    # For who cuts, changes or encodes a text before it is given away, after which no secret would be found in it any more:
    # `job.secrets.hide(text)` first.
    secrets: Secrets = field(default_factory=Secrets, repr=False)


@dataclass(frozen=True)
class Result:
    """An output (any JSON value) with its measured quality in [0, 1]; None if nothing measured it."""

    value: Any
    quality: float | None = None


class CallError(Exception):
    """Ends a call with one of the Pit's errors: `error`, `timeout`, `throttled`, `precondition`, `access`, `invalid`, or
    `lost`: what an input names is gone, so the oldest input is made again first."""

    def __init__(self, text: str, kind: str = "error") -> None:
        super().__init__(text)
        self.kind = kind


class Instrument(ABC):
    """One way to run functions. The constructor takes the workflow's keys; ValueError with a sentence if they are wrong."""

    level = "none"  # of `sandbox.LEVELS`: what it runs in, which the journal records

    @abstractmethod
    def call(self, job: Job) -> Any:
        """Do the work; returns a JSON value or a `Result`. An exception fails the call, `CallError` with a chosen error."""


def too_deep(value: Any) -> str:
    """Why a value is no output, if it is none: it has more than `MAX_DEPTH` levels, so that who looks into it one by one
    would come to no end, or more than `MAX_PARTS` lists and objects, as what leads back to itself may."""
    level = [value] if isinstance(value, dict | list | tuple) else []
    left = MAX_PARTS
    for _ in range(MAX_DEPTH):
        if not level:
            return ""
        left -= len(level)
        parts = (part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole))
        level = list(islice((part for part in parts if isinstance(part, dict | list | tuple)), left + 1))
        if len(level) > left:
            return f"more than {MAX_PARTS} lists and objects"
    return f"more than {MAX_DEPTH} levels of lists and objects in one another" if level else ""


def resolve(name: str) -> Any:
    """`"module:function"` -> the object. Raises ValueError with a sentence if there is none."""
    module_name, colon, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not colon or not module_name or not attribute:
        raise ValueError(f"{name!r} is not of the form module:function")
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ValueError(f"module {module_name} of {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name} has no {attribute} (from {name!r})")
    return getattr(module, attribute)


def resolve_callable(name: str) -> Callable[..., Any]:
    """As `resolve`, for something that can be called."""
    function = resolve(name)
    if not callable(function):
        raise ValueError(f"{name!r} is a {type(function).__name__}, not a function")
    return function


def make_instrument(kind: str, options: dict[str, Any]) -> Instrument:
    """The instrument of a kind. Raises ValueError with a sentence for an unknown kind or wrong options."""
    if kind in BUILT_IN:
        found = resolve(BUILT_IN[kind])
    else:
        entries = {entry.name: entry for entry in entry_points(group=GROUP)}
        if kind not in entries:
            raise ValueError(f"kind {kind!r} is unknown; known are {', '.join(sorted({*BUILT_IN, *entries}))}")
        found = entries[kind].load()
    keys = inspect.signature(found).parameters
    if not any(key.kind is key.VAR_KEYWORD for key in keys.values()):
        unknown = [f"has no key {key!r}" for key in options if key not in keys]
        missing = [f"needs the key {name!r}" for name, key in keys.items() if key.default is key.empty and name not in options]
        if common := next((key for key in options if key in COMMON and key not in keys), None):
            raise ValueError(f"{common!r} is no key of kind {kind!r}; it belongs to the function, beside its own `kind`")
        if wrong := unknown + missing:
            own, any_ones = ", ".join(keys), ", ".join(COMMON)
            raise ValueError(f"kind {kind!r} {wrong[0]}; its own keys are {own}, and any function's {any_ones}")
    try:
        return found(**options)
    except TypeError as error:
        raise ValueError(f"kind {kind!r}: {error}") from error
