"""Reading what people write: safe YAML, and mistakes as one sentence that names the file, the key, the value and the remedy.

It must not know what the files mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pit.errors import PitError

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 20, 32, 200_000


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, duplicate keys, deep nesting and very large documents."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = super().peek_event()  # type: ignore[no-untyped-call]
            raise PitError(f"an alias (*name) in line {event.start_mark.line + 1}; write the value out")
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise PitError(f"it is nested deeper than {MAX_DEPTH} levels or has more than {MAX_NODES} values")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, Hashable) or name in seen:
                raise PitError(f"the key {name!r} stands twice or is no name, in line {key.start_mark.line + 1}; keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path, what: str = "file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises `PitError` (file, line, remedy) if it cannot be read or is not safe."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PitError(f"{what} {path} has more than {MAX_BYTES} bytes; split it")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PitError(f"{what} {path} cannot be read: {reason}") from None
    loader = None
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except PitError as error:
        raise PitError(f"{what} {path} is refused: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise PitError(f"{what} {path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise PitError(f"{what} {path} must hold a mapping of names to values, not {type(data).__name__}")
    return data


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Any, source: str) -> M:
    """`data` as a `model`; raises `PitError` with source, key, value and remedy for the first mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors()
        # A misspelt key is missing too: the misspelling is what helps.
        first = next((e for e in mistakes if e["type"] == "extra_forbidden"), mistakes[0])
        where = ".".join(str(x) for x in first["loc"])
        if first["type"] == "extra_forbidden":
            names = _field_names(model, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise PitError(f"{source}: unknown key {where!r}; {hint}") from None
        if first["type"] == "missing":
            raise PitError(f"{source}: the key {where!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict | list) else f" = {first['input']!r}"
        raise PitError(f"{source}: {where}{value}: {message}" if where else f"{source}: {message}") from None


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
