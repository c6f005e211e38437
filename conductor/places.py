"""What a model manager knows of each of its workers, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from conductor.instruments.process import Worker

GRACE = 1.0  # s between a call's time limit and the end of its worker


class Report(NamedTuple):
    """What happened: `loaded`, `load_failed`, `unloaded`, `reload` name a copy, `finished` and `started` (later than asked,
    because its copy was loaded again) a call, `config_changed` the row of a variant; `elapsed` in us."""

    kind: str
    subject: int
    error: str = "ok"
    elapsed: int = 0
    value: Any = None
    quality: float | None = None
    text: str = ""


class Call(NamedTuple):
    """A call and what its worker must know of it."""

    number: int
    request: dict[str, Any]
    seconds: float  # time limit


@dataclass
class Place:
    """A worker and what it does: requests in flight, and for a copy its model and the calls that wait for a reload."""

    worker: Worker
    alive: bool = True
    writing: bool = False  # whether a request waits until the worker reads
    model: str = ""
    copy: int = -1
    row: int = -1  # variant that is configured here
    age: int = -1  # of a worker that is leased from a workshop
    # "loading" (the Pit waits), "reloading" (the Pit does not know), "configuring", "ready", "old" (a plain worker from
    # before a configuration: it ends when its call has)
    state: str = "ready"
    load: int = -1  # request number of the load or configuration in flight
    load_until: float = 0.0
    begun: float = 0.0
    calls: dict[int, tuple[Call, float]] = field(default_factory=dict)  # request -> (call, since when: monotonic s)
    waiting: list[Call] = field(default_factory=list)

    def late(self, now: float) -> list[int]:
        """The calls whose time is over at `now` (monotonic s), by their numbers."""
        return [call.number for call, since in self.calls.values() if since + call.seconds + GRACE <= now]

    def limits(self) -> list[float]:
        """When (monotonic s) what it does has to be over."""
        limits = [since + call.seconds + GRACE for call, since in self.calls.values()]
        return limits + ([self.load_until] if self.load >= 0 else [])
