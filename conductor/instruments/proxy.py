"""The proxy instrument: another instrument, with faults that a seed draws: for trying what a workflow stands."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from conductor.instruments.base import CallError, Instrument, Job, Result, make_instrument
from conductor.instruments.hiding import Secrets

FAULTS = ("delay", "drop", "corrupt", "schema", "throttle", "error", "exit")


class ProxyInstrument(Instrument):
    """`{kind: proxy, of: {kind: python, call: "work:f"}, seed: 1, faults: {throttle: 0.1, exit: 0.02}}`.

    `faults` gives the chance of each, independently, for one attempt at one task; the same seed, task and attempt meet the
    same fate in every run. Before the call: `delay` by `delay_seconds` [from, to], `throttle` and `error` (it fails and is not
    called), `exit` (the worker process ends with status 137). After it: `drop` (its result never comes: the time limit ends
    it), `corrupt` (one text or number of the output is another one), `schema` (the output stands in an envelope).
    """

    def __init__(
        self, *, of: dict[str, Any], faults: dict[str, float], seed: int = 0, delay_seconds: Sequence[float] = (0.1, 1.0)
    ) -> None:
        if not isinstance(of, dict) or not isinstance(of.get("kind"), str):
            raise ValueError(f"of is {of!r}; another instrument is needed, with its kind")
        if not isinstance(faults, dict) or not set(faults) <= set(FAULTS):
            raise ValueError(f"faults is {faults!r}; chances by these names are needed: {', '.join(FAULTS)}")
        for name, chance in faults.items():
            if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
                raise ValueError(f"faults.{name} is {chance!r}; a chance from 0 to 1 is needed")
        if type(seed) is not int:
            raise ValueError(f"seed is {seed!r}; a whole number is needed")
        pair = isinstance(delay_seconds, list | tuple) and [type(x) in (int, float) for x in delay_seconds] == [True, True]
        if not pair or not 0 <= delay_seconds[0] <= delay_seconds[1] < math.inf:
            raise ValueError(f"delay_seconds is {delay_seconds!r}; [shortest, longest] is needed")
        self._inner = make_instrument(of["kind"], {name: value for name, value in of.items() if name != "kind"})
        self._faults, self._seed, self._delay = faults, seed, delay_seconds
        self.level = self._inner.level

    def call(self, job: Job) -> Any:
        """What the other instrument gives, unless a fault comes in between. Raises CallError, also as the other does."""
        source = random.Random(f"{self._seed}/{job.task}/{job.attempt}")
        drawn = {name: source.random() < self._faults.get(name, 0.0) for name in FAULTS}
        if drawn["delay"]:
            time.sleep(source.uniform(*self._delay))
        if drawn["exit"]:
            os._exit(137)
        if drawn["throttle"]:
            raise CallError("the proxy says: too many calls", "throttled")
        if drawn["error"]:
            raise CallError("the proxy says: internal error")
        result = self._inner.call(job)
        if drawn["drop"]:
            time.sleep(job.seconds + 3600.0)
        value, quality = (result.value, result.quality) if isinstance(result, Result) else (result, None)
        if drawn["corrupt"]:
            value = _corrupt(source, value, job.secrets)
        return Result({"version": 2, "data": value} if drawn["schema"] else value, quality)


def _corrupt(source: random.Random, value: Any, secrets: Secrets) -> Any:
    """The value with one text, number or truth in it changed, if there is one; a secret in it is hidden before."""
    if isinstance(value, dict | list) and value:
        key = source.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = _corrupt(source, value[key], secrets)
        return copy
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float | str):
        value = secrets.hide_in(value)
    if isinstance(value, int | float):
        return value + 1 if value == 0 else -value
    if isinstance(value, str):
        place = source.randrange(len(value)) if value else 0
        return f"{value[:place]}\ufffd{value[place + 1 :]}"
    return value
