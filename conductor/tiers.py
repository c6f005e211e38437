"""Where a run's outputs lie, as the Pit's store says: hot in memory, warm in a file, cold in a compressed one.

Without a store every output is a file. Whatever the tier, an output is durable before its result is recorded; so what is lost
in a crash is only that something lies nearer or takes less room than the Pit believes.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from conductor.errors import ConductorError
from conductor.files import canonical, write_once
from conductor.journal import Journal, cold_path, read_content
from pit.layout import TIER_COLD, TIER_HOT
from pit.spec import StoreSpec


class Outputs:
    """The outputs of one run, by their digests."""

    def __init__(self, journal: Journal, store: StoreSpec | None) -> None:
        """`journal` writes and reads the files; `store` is the system's."""
        self._journal, self._folder = journal, journal.folder
        self._most = 0 if store is None else store.hot  # bytes of what may be kept in memory
        self._hot: dict[str, bytes] = {}

    def keep(self, value: Any) -> tuple[str, int]:
        """Keeps an output (any JSON value); (sha256, bytes). Durable on return. Raises ConductorError."""
        name, size = self._journal.store(value)
        if size <= self._most:
            self._hot[name] = canonical(value)
        return name, size

    def fetch(self, name: str) -> Any:
        """The output with this digest, from wherever it lies; hot from now on if it fits. Raises ConductorError."""
        content = self._hot.get(name)
        if content is None:
            content = read_content(self._folder, name)
            if len(content) <= self._most:
                self._hot[name] = content
                self._thaw(name)
        return json.loads(content)

    def move(self, name: str, tier: int) -> None:
        """The output goes to another tier. Raises ConductorError if it cannot be read or written."""
        if tier == TIER_HOT:
            self.fetch(name)
            return
        self._hot.pop(name, None)
        path = self._folder / "outputs" / name
        if tier == TIER_COLD and path.is_file():
            self._write(cold_path(path), zlib.compress(read_content(self._folder, name)))
            path.unlink()
        elif tier != TIER_COLD:
            self._thaw(name)

    def delete(self, name: str) -> None:
        """The output is gone."""
        self._hot.pop(name, None)
        path = self._folder / "outputs" / name
        for file in (path, cold_path(path)):
            file.unlink(missing_ok=True)

    def _thaw(self, name: str) -> None:
        path = self._folder / "outputs" / name
        if cold_path(path).is_file():
            self._write(path, read_content(self._folder, name))
            cold_path(path).unlink()

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_once(path, content)
        except OSError as error:
            raise ConductorError(f"{path.parent}: cannot be written ({error.strerror}); make room and resume") from error
