"""Reading what people write: safe YAML, and mistakes as one sentence that names the file, the key, the value and the remedy.

It must not know what the files mean.
"""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pit.errors import PitError

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_NUMBER = 1 << 20, 32, 100_000, 100
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, many times as fast, where PyYAML was built with it
_RESOLVER = yaml.SafeLoader.yaml_implicit_resolvers
_TAG = "tag:yaml.org,2002:"
_NODES = (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent, yaml.AliasEvent)
_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)
_TRUE, _FALSE = ("yes", "true", "on"), ("no", "false", "off")


class _Builder:
    """The value that YAML events describe, one by one: mappings, lists, texts, numbers, booleans and null, and nothing else.

    Refuses aliases, tags, merged mappings, keys that stand twice, deep nesting and very many values, each as soon as it is
    seen, in time that is linear in the file.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self._nodes = 0
        self._open: list[tuple[Any, list[Any]]] = []  # (list or mapping, the key that waits for its value)

    def take(self, event: Any) -> None:
        """One more event. Raises PitError."""
        kind = type(event)
        if kind not in _NODES:
            if kind in _ENDS:
                self._open.pop()
            return
        line = event.start_mark.line + 1
        if kind is yaml.AliasEvent:
            raise PitError(f"an alias (*name) in line {line}; write the value out")
        self._nodes += 1
        if len(self._open) >= MAX_DEPTH or self._nodes > MAX_NODES:
            raise PitError(f"it is nested deeper than {MAX_DEPTH} levels or has more than {MAX_NODES} values")
        if event.tag is not None and event.tag != "!":
            raise PitError(f"a tag ({shown(event.tag)}) in line {line}; a plain value is needed")
        if kind is yaml.ScalarEvent:
            self._put(_scalar(event.value, line) if event.implicit[0] else event.value, line)
        else:
            value: Any = {} if kind is yaml.MappingStartEvent else []
            self._put(value, line)
            self._open.append((value, []))

    def _put(self, value: Any, line: int) -> None:
        if not self._open:
            self.value = value
            return
        owner, waiting = self._open[-1]
        if isinstance(owner, list):
            owner.append(value)
        elif waiting:
            owner[waiting.pop()] = value
        elif isinstance(value, dict | list) or value in owner or value == "<<":
            raise PitError(f"the key {shown(value)} stands twice or is no name, in line {line}; keep one")
        else:
            waiting.append(value)


def _scalar(text: str, line: int) -> Any:
    """A plain scalar's value: the kinds of YAML 1.1, but dates and numbers in base 60 stay texts. Raises PitError."""
    tag = next((tag for tag, pattern in _RESOLVER.get(text[:1], ()) if pattern.match(text)), "")
    kind = tag.removeprefix(_TAG)
    if kind in ("int", "float") and ":" not in text:
        if len(text) > MAX_NUMBER:
            raise PitError(f"a number of {len(text)} characters in line {line}; at most {MAX_NUMBER} are taken")
        return _number(text.replace("_", "").lower(), kind)
    if kind == "null" and len(text) < 5:
        return None
    if kind == "bool" and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    return text


def _number(text: str, kind: str) -> int | float:
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
    base = 2 if digits.startswith("0b") else 16 if digits.startswith("0x") else 8 if digits[:1] == "0" else 10
    return int(sign + digits, base)


def shown(value: Any, most: int = 100) -> str:
    """A value as a message shows it: its beginning, if it is long."""
    text = repr(value[: most + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= most else f"{text[:most]}..."


def load_yaml(path: str | Path, what: str = "file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises `PitError` (file, line, remedy) if it cannot be read or is not safe."""
    path = Path(path)
    try:
        # Not blocking: a pipe would let us wait for a writer.
        with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PitError(f"{what} {path} cannot be read: it is no plain file")
            text = file.read(MAX_BYTES + 1)
        if status.st_size > MAX_BYTES or len(text) > MAX_BYTES:
            raise PitError(f"{what} {path} has more than {MAX_BYTES} bytes; split it")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PitError(f"{what} {path} cannot be read: {reason}") from None
    return mapping_of(text, f"{what} {path}")


def mapping_of(text: str, source: str) -> dict[str, Any]:
    """The mapping that is written as YAML in a text. Raises `PitError` (source, line, remedy) if it is not safe or is none."""
    builder = _Builder()
    documents = 0
    try:
        event: Any
        for event in yaml.parse(text, Loader=_PARSER):
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise PitError(f"another document begins in line {event.start_mark.line + 1}; leave one")
            builder.take(event)
    except PitError as error:
        raise PitError(f"{source} is refused: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise PitError(f"{source} is not valid YAML{line}: {getattr(error, 'problem', None) or error}") from None
    data = builder.value
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise PitError(f"{source} must hold a mapping of names to values, not {type(data).__name__}")
    return data


def load_part(data: dict[str, Any], key: str, path: str | Path, what: str) -> Path | None:
    """If `data[key]` names a YAML file, what that holds stands there afterwards; the file. Raises `PitError`.

    A file that another one names lies in its folder or beneath, also where a link leads to in the end, so that a file from
    elsewhere cannot have others read.
    """
    name = data.get(key)
    if not isinstance(name, str):
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts or not name or "\0" in name:
        raise PitError(f"{what} {path}: {key} = {shown(name)}: a file in the same folder, or beneath it, is needed")
    file = Path(path).parent / name
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(Path(path).parent)):
        raise PitError(f"{what} {path}: {key} = {shown(name)}: is a link that leads out of this folder; put the file there")
    data[key] = load_yaml(file, f"{key} file")
    return file


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Any, source: str) -> M:
    """`data` as a `model`; raises `PitError` with source, key, value and remedy for the first mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors()
        # A misspelt key is missing too: the misspelling is what helps.
        first = next((e for e in mistakes if e["type"] == "extra_forbidden"), mistakes[0])
        where = ".".join(str(x)[:100] for x in first["loc"])
        if first["type"] == "extra_forbidden":
            names = _field_names(model, first["loc"][:-1])
            if len(first["loc"]) == 1 and "system" in names:  # a file's own keys; `join_system` takes this one before
                names.append("policies")
            near = difflib.get_close_matches(str(first["loc"][-1])[:100], names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise PitError(f"{source}: unknown key {where!r}; {hint}") from None
        if first["type"] == "missing":
            raise PitError(f"{source}: the key {where!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict | list) else f" = {shown(first['input'])}"
        if first["type"] == "string_pattern_mismatch":
            message = f"a name has ASCII letters, digits, _, and inside also . - and spaces{_odd(first['input'])}"
        raise PitError(f"{source}: {where}{value}: {message}" if where else f"{source}: {message}") from None


def _odd(name: str) -> str:
    """What is wrong with a name that may look like another one."""
    odd = next((c for c in name if not c.isascii()), None)
    return f"; {odd!r} is {unicodedata.name(odd, 'a character without a name')}" if odd else ""


def _field_names(model: Any, path: tuple[Any, ...]) -> list[str]:
    """The field names of the section that a validation path leads to."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part) if isinstance(part, str) else None
        annotation = field.annotation if field is not None else model
        stack, model = [annotation], annotation
        while stack:  # the first pydantic model inside list[...], dict[...] or ... | None
            a = stack.pop(0)
            if isinstance(a, type) and issubclass(a, BaseModel):
                model = a
                break
            stack.extend(getattr(a, "__args__", ()))
    return list(getattr(model, "model_fields", {}))
