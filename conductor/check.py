"""Every instrument that a workflow may need is made once, in a worker, before anything runs."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

from conductor.errors import ConductorError
from conductor.instruments.process import Worker
from conductor.workflow import Plan

CHECK_SECONDS = 300.0  # importing a user's modules may take its time
CANNOT = "instruments cannot be checked"


def call_name(function: str, variant: str) -> str:
    """What a worker and a journal know the instrument of a variant by."""
    return f"{function} ({variant})"


def levels_of(worker: Worker, plan: Plan, functions: Mapping[str, Sequence[str]], models: Sequence[str]) -> dict[str, str]:
    """The level of the sandbox that each instrument gets, by `call_name`; `functions`: the variants of each.

    Raises ConductorError with the sentence of the first that cannot be made, or with how the worker ended."""
    specs = {}
    for name, variants in functions.items():
        own = plan.functions[name]
        for variant in sorted(variants, key=lambda variant: variant in own.variants):  # what they share comes first
            where = f"{name}.variants.{variant}" if variant in own.variants else name
            specs[call_name(name, variant)] = {**own.instrument(variant), "where": where}
    worker.send({
        "do": "check",
        "functions": specs,
        "models": {name: {"load": plan.models[name].load} for name in models},
        "configure": {name: hook for name in functions if (hook := plan.functions[name].configure) is not None},
    })  # fmt: skip
    reply = _answer(worker)
    found = reply["value"]
    if reply["error"] != "ok":
        raise ConductorError(f"{CANNOT}: {reply['text']}")
    if not isinstance(found, dict) or found.keys() != {"faults", "levels"}:
        raise ConductorError(f"{CANNOT}: a worker wrote what is no reply")
    if found["faults"]:
        raise ConductorError(found["faults"][0])
    return dict(found["levels"])


def _answer(worker: Worker) -> dict[str, Any]:
    """The worker's one reply. Without one the worker is ended, and the ConductorError tells all that is known of it, as who
    begins or checks a workflow removes the folder of its log."""
    replies: list[dict[str, Any]] | None = []
    until = time.monotonic() + CHECK_SECONDS
    while replies == [] and time.monotonic() < until:
        watch = select.poll()
        watch.register(worker.fileno(), select.POLLIN)
        if not worker.flush():
            watch.register(worker.request_file(), select.POLLOUT)
        watch.poll(1000)
        replies = worker.receive()
    if replies:
        return replies[0]
    worker.end()
    text = f"a worker process did not answer within {CHECK_SECONDS:.0f} s"
    if worker.fault:
        text = f"a worker process wrote what is no reply ({worker.fault})"
    elif replies is None:
        text = f"a worker process ended ({worker.ending()})"
    words = worker.last_words()
    raise ConductorError(f"{CANNOT}: {text}; it printed: {words}" if words else f"{CANNOT}: {text}")
