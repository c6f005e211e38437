"""Plain workers that many runs share: those of one plan, in one folder of modules, under one set of limits.

A run alone keeps its own. Of a thousand runs each leases a worker for the duration of a call; at most so many work at once,
and the others wait for their turn, in the order in which they have asked. Turns are given between two ticks (`hand_out`), when
those who have ended or are cancelled in a tick wait no more. Nobody gets a worker that knows another plan's secrets.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

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

    def take_turn(self, call: int) -> bool:
        """A worker can be had now for a call that waits; False if it turns out that none can be made, and it waits on."""
        ...


class Workshop:
    """Idle workers by the key of what they may serve. They live until `close`, also those of plans that no run uses any more:
    who brings ever new plans to one conductor should close it from time to time."""

    def __init__(self, folder: Path, most: int) -> None:
        """`folder`: of the journal, gets the workers' `logs/`; `most`: workers of one key."""
        self.folder, self._most = folder, most
        self.checked: dict[str, dict[str, str]] = {}  # what was made once (`checked_key`), and what each of it runs in
        self._idle: dict[str, list[Worker]] = defaultdict(list)
        self._count: Counter[str] = Counter()
        self._waiting: dict[str, OrderedDict[tuple[Waiting, int], None]] = defaultdict(OrderedDict)
        self._age: Counter[str] = Counter()  # how often workers had to begin anew

    def free(self, key: str) -> bool:
        """Whether `take` has a worker for somebody who has not waited: nobody waits, and not so many work already."""
        return not self._waiting[key] and self._can_be_had(key)

    def _can_be_had(self, key: str) -> bool:
        return bool(self._idle[key]) or self._count[key] < self._most

    def take(self, key: str, make: Callable[[Path], Worker]) -> tuple[Worker, int] | None:
        """A worker for one call, and its age; for who has found one `free`, or has its turn. None if no more can be made
        beside those that work. `make` is given a log. Raises OSError if not even one can be made."""
        while self._idle[key]:
            worker = self._idle[key].pop()
            if worker.quiet():
                return worker, self._age[key]
            worker.end()  # nobody watches the idle ones: it has died
            self._count[key] -= 1
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

    def wait(self, key: str, who: Waiting, call: int) -> None:
        """`who` takes its turn with a call when a worker can be had."""
        self._waiting[key][who, call] = None

    def leave(self, key: str, who: Waiting, call: int) -> None:
        """A call does not wait any more: a turn that nobody takes would be lost to all others."""
        del self._waiting[key][who, call]

    def give(self, key: str, worker: Worker, age: int) -> None:
        """The call has ended well, and the worker is idle."""
        if age == self._age[key]:
            self._idle[key].append(worker)
        else:
            worker.end()
            self._count[key] -= 1

    def gone(self, key: str) -> None:
        """A leased worker was ended."""
        self._count[key] -= 1

    def renew(self, key: str) -> None:
        """Workers begin anew: idle ones end now, the others when their calls have."""
        self._age[key] += 1
        while self._idle[key]:
            self._idle[key].pop().end()
            self._count[key] -= 1

    def hand_out(self) -> list[Waiting]:
        """Those who wait take their turns, as far as there are workers; returns who did."""
        served = []
        for key, waiting in self._waiting.items():
            while waiting and self._can_be_had(key):
                who, call = next(iter(waiting))
                if not who.take_turn(call):
                    break
                del waiting[who, call]
                served.append(who)
        return served

    def close(self) -> None:
        """End every idle worker; the leased ones are their holders'."""
        for key in list(self._idle):
            self.renew(key)
