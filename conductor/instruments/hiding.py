"""What a user's code was given as `secrets`, and how it is taken out of what that code gives away."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

MIN_SECRET = 6  # characters: shorter values are in too many texts by chance


class Secrets:
    """Values that a user's code was given and must not give away: `[NAME]` stands for each."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # value -> name
        self._values = re.compile("(?!)")  # any of them, the longest first
        self._lock = threading.Lock()

    def learn(self, secrets: dict[str, str]) -> None:
        """One more call's, by their names."""
        with self._lock:
            names = {**self._names, **{value: name for name, value in secrets.items() if len(value) >= MIN_SECRET}}
            if names.keys() != self._names.keys():
                self._names = names
                self._values = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def hide(self, text: str) -> str:
        """The text without them."""
        return self._values.sub(lambda match: f"[{self._names[match.group()]}]", text)

    def hide_before_cut(self, text: str) -> str:
        """The text, whose end was cut off, without them and without what may be the beginning of one at its end."""
        plain = self.hide(text)
        return plain[: self.begun(plain)]

    def begun(self, text: str) -> int:
        """Where, at the text's end, one may have begun of which the rest is still to come; else where the text ends."""
        found = len(text)
        for value in self._names:
            start = text.find(value[0], max(0, len(text) - len(value) + 1))
            while 0 <= start < found and not value.startswith(text[start:]):
                start = text.find(value[0], start + 1)
            found = min(found, start) if start >= 0 else found
        return found

    def hide_in(self, value: Any) -> Any:
        """A JSON value without them: in its texts and keys, and in place of a number that is one, digit for digit. Other
        numbers may hold the digits of one by chance. Raises what `json.dumps` does."""
        if not self._names:
            return value
        text = json.dumps(value, allow_nan=False)
        return self._walk(
            json.loads(text, parse_int=lambda n: self._number(n, int), parse_float=lambda n: self._number(n, float))
        )

    def _number(self, digits: str, kind: Callable[[str], Any]) -> Any:
        return f"[{self._names[digits]}]" if digits in self._names else kind(digits)

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self._walk(part) for part in value]
        if isinstance(value, dict):
            return {self.hide(key): self._walk(part) for key, part in value.items()}
        return value
