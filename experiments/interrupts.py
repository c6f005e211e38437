"""Ctrl-C and SIGTERM while a training runs: the running rollout is finished first, so that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `code` is what the process exits with."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.number, self.code = number, 128 + number


class Interrupts:
    """Within `with`: while `waiting`, a first SIGINT or SIGTERM is only noted, so that the running rollout and its update
    can be finished; a second one, or any while not waiting, raises Interrupted at once.

    Signals reach the main thread alone; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.waiting or self.noted is not None:
            raise Interrupted(number)
        self.noted = number
        os.write(2, b"\nfinishing this rollout first; once more stops at once\n")
