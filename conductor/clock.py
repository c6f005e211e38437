"""The clock of a conductor and how it waits: monotonic time, and the workers' descriptors of any number of runs."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import time
from typing import Protocol

LONGEST = 86_400.0  # s: of one wait; what the system is asked for at once must stay below 2^31 ms


class Waitable(Protocol):
    """What can be waited for: a descriptor that becomes readable when something happened."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


class Clock:
    """Real time. Another class with these methods lets a test run in a time of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def now(self) -> int:
        """Microseconds since some moment; never goes back, whatever is done to the time of day."""
        return time.monotonic_ns() // 1000

    def watch(self, thing: Waitable) -> None:
        """`wait` returns it from now on when it has something."""
        self._selector.register(thing.fileno(), selectors.EVENT_READ, thing)

    def forget(self, thing: Waitable) -> None:
        """It is not waited for any more; before its descriptor is closed."""
        self._selector.unregister(thing.fileno())

    def wait(self, microseconds: int | None) -> list[Waitable]:
        """What has something, at the latest after so long (None: however long it takes) or a day; `wake` ends it, too."""
        timeout = None if microseconds is None else min(max(0, microseconds) / 1e6, LONGEST)
        found = [key.data for key, _ in self._selector.select(timeout)]
        if None in found:
            self._hear()
        return [thing for thing in found if thing is not None]

    def pause(self, microseconds: int) -> None:
        """Nothing for so long, whatever happens to what is watched; `wake` ends it, too."""
        woken = select.poll()  # `select.select` takes no descriptors above 1023
        woken.register(self._woken, select.POLLIN)
        if woken.poll(microseconds / 1e3):
            self._hear()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def wake(self) -> None:
        """End a `wait`, now or the next one; from any thread or signal handler. Nothing if the clock was closed."""
        with contextlib.suppress(OSError):  # one that is full wakes, too
            self._wake.send(b".")

    def close(self) -> None:
        """Let go of every descriptor."""
        self._selector.close()
        self._woken.close()
        self._wake.close()
