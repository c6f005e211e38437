"""Streams of calls through a real Pit, calm or with trouble put in at a known place: what the detectors are judged on.

A stream is a chain of tasks for each pool of one place; calls are counted by pool. Nothing here looks at what the Pit thinks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pit import layout
from pit.handle import Event, Pit
from pit.spec import History, WorkflowSpec

NOMINAL = 1_000_000  # us of every function
CONFIG = 3 * NOMINAL  # us that a configuration takes
BELIEF = 0.2  # CV of true mean over nominal
FAILED_AFTER = 0.3  # of a call's duration, when it fails
STANDARD = layout.VERBS[layout.STANDARD]


class Trouble(NamedTuple):
    """What is wrong with a pool, or with one function of it (-1: all), during its calls first .. last - 1.

    `factor` on durations, reached after `ramp` calls; `failures`: the chance of one; `changed`: its API, until it is
    configured anew.
    """

    pool: int
    first: int
    last: int
    function: int = -1
    factor: float = 1.0
    ramp: int = 0
    failures: float = 0.0
    changed: bool = False


@dataclass
class Plan:
    """One stream. `calls`: of each pool; `rate`: usual chance of a failure; `cv`: of durations; `earlier`: observations;
    `timed`: troubles count nominal durations since the arrival, not calls."""

    kind: str
    seed: int
    pools: int
    functions: int
    calls: int
    cv: float
    earlier: int
    rate: float
    timed: bool = False
    troubles: list[Trouble] = field(default_factory=list)


KINDS = ("calm", "step", "variant", "ramp", "failures", "api", "outages")
EARLIER, RATES = (0, 3, 30), (0.0, 0.02, 0.05)


def draw(kind: str, seed: int) -> Plan:
    """The stream of this kind and seed: noise, functions and history are drawn, and where the trouble begins and ends."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    functions, cv = int(rng.integers(1, 7)), float(rng.uniform(0.05, 0.4))
    plan = Plan(kind, seed, 1, functions, 1000, cv, int(rng.choice(EARLIER)), float(rng.choice(RATES)))
    first = int(rng.integers(250, 400))
    last = first + int(rng.integers(150, 250))
    end = last + 200
    if kind == "step":
        plan.troubles, plan.calls = [Trouble(0, first, last, factor=1.5)], end
    elif kind == "variant":  # one function of several, so that it has calls enough
        plan.functions, plan.calls = max(2, functions), end + last - first
        plan.troubles = [Trouble(0, first, 2 * last - first, function=0, factor=1.5)]
    elif kind == "ramp":
        plan.troubles, plan.calls = [Trouble(0, first, last + 100, factor=2.0, ramp=150)], end + 100
    elif kind == "failures":
        plan.troubles, plan.calls = [Trouble(0, first, last, failures=float(rng.uniform(0.3, 0.7)))], end
    elif kind == "api":
        plan.troubles = [Trouble(0, first, 1 << 30, function=int(rng.integers(functions)), changed=True)]
        plan.calls = first + 200
    elif kind == "outages":  # two of three pools within a few calls; now and then one alone
        both = rng.random() < 0.7
        plan.pools, plan.calls, plan.timed = 3, first + 250, True
        plan.troubles = [Trouble(p, first, first + 30, failures=0.9) for p in range(2 if both else 1)]
    return plan


class Call(NamedTuple):
    """A call that has ended: its pool, function, number in its pool (from 0), error, and what the Pit had expected of it."""

    pool: int
    function: int
    number: int
    error: int
    chance: float  # of a failure
    off: float  # |elapsed / estimate - 1|


class Stream:
    """A plan as it runs. `calls()` gives its calls one after the other; the Pit is then as it stands after that call."""

    def __init__(self, plan: Plan, heal: bool = True) -> None:
        self.plan, self._rng = plan, np.random.default_rng([plan.seed, 1])
        names = [f"f{p}_{f}" for p in range(plan.pools) for f in range(plan.functions)]
        rng, self._sigma = self._rng, math.sqrt(math.log(1.0 + plan.cv * plan.cv))
        sigma = math.sqrt(math.log(1.0 + BELIEF * BELIEF))
        self._truth = np.exp(sigma * rng.standard_normal(len(names)))
        system = {
            "verbs": ["standard"], "heal": heal, "pools": {f"p{p}": {"places": 1} for p in range(plan.pools)},
            "functions": {n: {"standard": {"pool": f"p{k // plan.functions}", "seconds": 1.0}} for k, n in enumerate(names)},
        }  # fmt: skip
        tasks = []
        for p in range(plan.pools):
            for i in range(plan.calls):
                name = names[p * plan.functions + int(rng.integers(plan.functions))]
                tasks.append({"id": f"{p}.{i}", "function": name, "after": [f"{p}.{i - 1}"] if i else []})
        history = History({(name, STANDARD): self._earlier(k) for k, name in enumerate(names)}, {}) if plan.earlier else None
        self.pit = Pit(WorkflowSpec.model_validate({"system": system, "tasks": tasks}), history=history)
        self.cured: set[int] = set()  # functions that were configured after their change
        self._counts = [0] * plan.pools
        self._events: list[tuple[int, int, Event]] = []

    def _earlier(self, k: int) -> tuple[float, float, float]:
        n, mean = self.plan.earlier, self._truth[k]
        mean *= math.exp(self._sigma / math.sqrt(n) * self._rng.standard_normal())
        return float(n), n * mean, n * mean * mean * (1.0 + self._sigma**2)

    def wrong(self, pool: int, function: int, number: int) -> list[Trouble]:
        """What is wrong with a function (its index in the pool; -1: anything) of a pool at its call of this number."""
        return [
            t
            for t in self.plan.troubles
            if t.pool == pool and t.first <= number < t.last and (function < 0 or t.function in (-1, function))
            if not (t.changed and pool * self.plan.functions + t.function in self.cured)
        ]

    def calls(self) -> Iterator[Call]:
        """Runs to the end."""
        pit = self.pit
        pit.apply(Event(layout.ARRIVE, 0))
        open_calls: dict[int, Call] = {}
        while pit.status == layout.ON:
            while pit.decision_due() and pit.status == layout.ON:
                pit.act(int(pit.mask()[: layout.WAIT].argmax()))
            for command in pit.commands():
                if command.kind == layout.CMD_START:
                    open_calls[command.call] = self._start(command.call, command.pool, command.function)
                elif command.kind == layout.CMD_CONFIGURE:
                    self._later(CONFIG, Event(layout.CONFIG_CHANGED, 3 * command.function + command.variant))
            if not self._events:
                return
            when, _, event = heapq.heappop(self._events)
            pit.advance(when)
            if event.kind == layout.CONFIG_CHANGED:
                self.cured.add(event.subject // 3)
                pit.apply(event)
                continue
            call = open_calls.pop(event.subject)
            pit.apply(event)
            self._counts[call.pool] += 1
            yield call if not self.plan.timed else call._replace(number=pit.now // NOMINAL)
            if max(self._counts) >= self.plan.calls:
                return

    def _later(self, elapsed: int, event: Event) -> None:
        heapq.heappush(self._events, (self.pit.now + elapsed, event.subject, event))

    def _start(self, number: int, pool: int, function: int) -> Call:
        """Draws what will become of a call that begins now."""
        rng, row = self._rng, 3 * function + layout.STANDARD
        at = self.pit.now // NOMINAL if self.plan.timed else self._counts[pool]
        lasts = NOMINAL * self._truth[function] * math.exp(self._sigma * rng.standard_normal() - 0.5 * self._sigma**2)
        rate, error = self.plan.rate, layout.OK
        for trouble in self.wrong(pool, function % self.plan.functions, at):
            grown = min(1.0, (at - trouble.first + 1) / trouble.ramp) if trouble.ramp else 1.0
            lasts *= 1.0 + (trouble.factor - 1.0) * grown
            rate = max(rate, trouble.failures)
            error = layout.ERR_INVALID if trouble.changed else error
        failed = rng.random() < rate
        if error == layout.OK and failed:
            error = layout.ERR_ERROR
        elapsed = max(1, int(lasts * (FAILED_AFTER if error else 1.0)))
        off = abs(elapsed / (NOMINAL * float(self.pit.variants()["ratio"][row])) - 1.0)
        self._later(elapsed, Event(layout.FINISHED, number, error, elapsed))
        return Call(pool, function % self.plan.functions, at, error, self.pit.chance(row), off)
