"""The door of every command: reads its YAML, its schema and its `key=value` arguments, and turns a user's mistake
into one sentence and exit code 2, Ctrl-C into one and 130. Anything else that goes wrong is a fault of ours and keeps its
traceback.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.errors import ExperimentError

Schema = TypeVar("Schema")

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended


def configs_dir() -> Path:
    """The folder of YAML files: beside this package in a checkout, inside it in a wheel."""
    inside = Path(__file__).resolve().parent / "_configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def default(name: str, key: str) -> Any:
    """What `configs/NAME.yaml` gives for a key."""
    return OmegaConf.select(OmegaConf.load(configs_dir() / f"{name}.yaml"), key)


def keys_of(schema: type, prefix: str = "") -> list[str]:
    """All keys of a dataclass schema, dotted: `["level", "evaluation", "evaluation.every", ...]`."""
    keys = []
    instance = OmegaConf.structured(schema)
    for field in dataclasses.fields(schema):
        keys.append(prefix + field.name)
        inner = OmegaConf.get_type(instance, field.name)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            keys += keys_of(inner, f"{prefix}{field.name}.")
    return keys


def unknown_key(key: str, schema: type) -> ExperimentError:
    """The error for a key that the schema lacks, with the nearest name that it has."""
    near = difflib.get_close_matches(key, keys_of(schema), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys_of(schema))}."
    return ExperimentError(f"unknown key `{key}`: {hint}")


def sentence(error: Exception, schema: type) -> str | None:
    """What to tell the user about `error`; None if it was not the user's mistake."""
    from conductor.errors import ConductorError
    from fq_env.errors import FQError
    from pit.errors import PitError

    if isinstance(error, (ExperimentError, FQError, PitError, ConductorError)):
        return str(error)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    from_hydra = type(error).__module__ == "hydra.errors"
    if isinstance(cause, OmegaConfBaseException) or from_hydra:
        first_line, cause_line = str(error).splitlines()[0], str(cause).splitlines()[0]
        missing = re.match(r"Could not (?:override|delete|append to config\.?) '?([\w.\[\]]+)", first_line)
        if missing or re.match(r"Key '.*' not in", cause_line):
            return str(unknown_key(missing[1] if missing else str(getattr(cause, "full_key", "?")), schema))
        key = getattr(cause, "full_key", None)
        given = re.match(r"Error merging override (.*)", first_line)
        where = given[1] if given else key
        if absent := re.search(r"missing mandatory value: ([\w.]+)", cause_line):
            return f"{absent[1]}= is missing; it must be given (see --help)"
        if key is not None and "is not a subclass of" in cause_line:
            inner = ", ".join(f"{name}=" for name in keys_of(schema) if name.startswith(f"{key}."))
            return f"{where}: is a section; give one of its keys: {inner}"
        if key is not None and "is not a ListConfig" in cause_line:
            return f"{where}: a list in brackets is needed, {key}=[A,B]"
        return f"{where}: {cause_line}" if where else f"{first_line}; arguments are of the form key=value (see --help)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    return None


def guarded(work: Callable[[], Any], schema: type, interrupted: str | None = "interrupted") -> Any:
    """Runs `work`; a user's mistake ends the process with one sentence on stderr and exit code 2, a reader of its output who
    has gone away (`| head`) with 141 and no word. So does Ctrl-C, with its own sentence or `interrupted`, and its own code or
    130; None: it is passed on."""
    try:
        result = work()
        sys.stdout.flush()
        return result
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt as stop:
        if interrupted is None:
            raise
        print(f"\n{str(stop) or interrupted}", file=sys.stderr)
        raise SystemExit(getattr(stop, "code", INTERRUPTED)) from None
    except Exception as error:
        text = sentence(error, schema)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None


def show_help(name: str, intro: str) -> NoReturn:
    """Prints what the command does and its YAML file, whose comments explain every key; exits with 0."""
    text = (configs_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(defaults|hydra):\n(?:[ ].*\n)*\n?", "", text)
    print(f"{intro.strip()}\n\nKeys, given as key=value, with their defaults:\n\n{text.strip()}")
    raise SystemExit(0)


def read(name: str, schema: type[Schema], arguments: list[str], intro: str) -> Schema:
    """The configuration of a command without Hydra: schema, then `configs/NAME.yaml`, then the arguments."""
    if "--help" in arguments or "-h" in arguments:
        show_help(name, intro)
    config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(configs_dir() / f"{name}.yaml"))
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ExperimentError(f"`{argument}` is not of the form key=value (see --help)")
        if key not in keys_of(schema):
            raise unknown_key(key, schema)
        try:
            config.merge_with_dotlist([argument])
        except YAMLError:  # not YAML, such as the pattern */bundle: taken as it stands
            OmegaConf.update(config, key, text)
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def one_thread_per_process() -> None:
    """Before torch and NumPy are first imported: their pools get one thread, unless the user's environment says otherwise.

    Two threads of two processes on two cores cost a factor of five; sweeps run as parallel processes instead.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
