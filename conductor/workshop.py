"""Plain workers that many runs share: those of one plan, in one folder of modules, under one set of limits.

A run alone keeps its own. Of a thousand runs each leases a worker for the duration of a call; at most so many work at once,
and the others wait for their turn, which they are told of. Nobody gets a worker that knows another plan's secrets.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from conductor.files import digest
from conductor.instruments.process import Worker
from conductor.instruments.sandbox import Limits
from conductor.workflow import Plan


def shared_key(plan: Plan, base: Path, limits: Limits) -> str:
    """What a workshop knows plain workers by: only runs with the same key may share them."""
    return digest([plan.model_dump(mode="json"), str(base), repr(limits)])


def checked_key(key: str, functions: dict[str, list[str]], models: list[str]) -> str:
    """What a workshop knows instruments by that were made once; `functions`, `models` as `ModelManager.check` has them."""
    return digest([key, functions, models])


class Waiting(Protocol):
    """Who waits for a worker."""

    def take_turn(self) -> None:
        """A worker can be had now."""
        ...


class Workshop:
    """Idle workers by the key of what they may serve."""

    def __init__(self, folder: Path, most: int) -> None:
        """`folder`: of the journal, gets the workers' `logs/`; `most`: workers of one key."""
        self.folder, self._most = folder, most
        self.checked: dict[str, dict[str, str]] = {}  # what was made once (`checked_key`), and what each of it runs in
        self.turns: set[Any] = set()  # whose waiting call was sent since this was last emptied
        self._idle: dict[str, list[Worker]] = defaultdict(list)
        self._count: Counter[str] = Counter()
        self._waiting: dict[str, deque[Waiting]] = defaultdict(deque)
        self._age: Counter[str] = Counter()  # how often workers had to begin anew

    def take(self, key: str, make: Callable[[Path], Worker]) -> tuple[Worker, int] | None:
        """A worker for one call, and its age; None if so many work already, or no more can be made beside those that work.
        `make` is given a log. Raises OSError if not even one can be made."""
        while self._idle[key]:
            worker = self._idle[key].pop()
            if worker.quiet():
                return worker, self._age[key]
            worker.end()  # nobody watches the idle ones: it has died
            self._count[key] -= 1
        if self._count[key] >= self._most:
            return None
        logs = self.folder / "logs"
        try:
            logs.mkdir(exist_ok=True)
            worker = make(logs / f"worker-{self._count.total() + 1}.log")
        except OSError:
            if self._count[key]:
                return None
            raise
        self._count[key] += 1
        return worker, self._age[key]

    def wait(self, key: str, who: Waiting) -> None:
        """`who` takes its turn when a worker can be had, once for each time that it has asked."""
        self._waiting[key].append(who)

    def give(self, key: str, worker: Worker, age: int) -> None:
        """The call has ended well, and the worker is idle."""
        if age == self._age[key]:
            self._idle[key].append(worker)
        else:
            worker.end()
            self._count[key] -= 1
        self._next(key)

    def gone(self, key: str) -> None:
        """A leased worker was ended."""
        self._count[key] -= 1
        self._next(key)

    def renew(self, key: str) -> None:
        """Workers begin anew: idle ones end now, the others when their calls have."""
        self._age[key] += 1
        while self._idle[key]:
            self._idle[key].pop().end()
            self._count[key] -= 1

    def _next(self, key: str) -> None:
        if self._waiting[key]:
            who = self._waiting[key].popleft()
            who.take_turn()
            self.turns.add(who)

    def close(self) -> None:
        """End every idle worker; the leased ones are their holders'."""
        for key in list(self._idle):
            self.renew(key)
