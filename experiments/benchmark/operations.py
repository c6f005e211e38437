"""What one operation on the Pit costs inside a kernel.

States are taken from random play, spread evenly over it; in one compiled loop each is copied and the operation done on the
copy. The same loop without the operation runs beside it in every round, and its time is subtracted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.benchmark.environments import SEED
from experiments.benchmark.pit_loop import ACT, ADVANCE, APPLY, CLONE, DUE, OBSERVE, TIMER, repeat
from experiments.benchmark.race import Contestant, length_for, race, spread
from fq_env.block import aligned
from fq_env.engine import Engine
from fq_env.state import DUE as DUE_ROW
from pit.layout import (
    ERRORS,
    EVENTS,
    FINISHED,
    GLOBAL_ACTIONS,
    N_ACTIONS,
    N_OBSERVATION,
    N_VARIANTS,
    N_VERBS,
    NEVER,
    OK,
    ON,
    VERBS,
    WAIT,
)
from pit.state import CALL, EVENT

STEPS = 1500  # decisions of play from which states are taken
MOST = 64  # states of one operation
FEWEST = 8  # fewer are no sample
WANTED = 50.0  # ns
START = "act: start"  # of any variant


class Bench:
    """Room for Pits of one size: `do` runs an operation on copies of them.

    Args:
        size: bytes of a Pit, a multiple of 64.
    """

    def __init__(self, size: int) -> None:
        self.size, self.spare = size, aligned(size)
        self.obs, self.mask = np.zeros(N_OBSERVATION, np.float32), np.zeros(N_ACTIONS, bool)

    def do(self, operation: int, pits: np.ndarray, inputs: np.ndarray, times: int = 1) -> int:
        """`times` passes over pits (count, size) uint8 with inputs (count,) int64; the last copy stays in `spare`."""
        addresses = (self.spare.ctypes.data, self.obs.ctypes.data, self.mask.ctypes.data)
        return int(repeat(operation, pits.ctypes.data, len(pits), self.size, inputs.ctypes.data, *addresses, times))

    def one(self, operation: int, pit: np.ndarray, x: int = 0) -> int:
        """The operation on one Pit (size,) uint8."""
        return self.do(operation, pit[None], np.array([x], np.int64))


@dataclass
class Sample:
    """States (bytes of Pits) and inputs of one operation: each that was met has the same chance to be among them."""

    operation: int
    seen: int = 0
    pits: list[np.ndarray] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)  # actions, times, or events

    def meet(self, rng: np.random.Generator, pit: np.ndarray, x: Any = 0) -> None:
        """One more state in which the operation can be done."""
        self.seen += 1
        if len(self.pits) < MOST:
            self.pits.append(pit.copy())
            self.inputs.append(x)
        elif (k := int(rng.integers(self.seen))) < MOST:
            self.pits[k], self.inputs[k] = pit.copy(), x

    def numbers(self) -> np.ndarray:
        """The inputs as the compiled loop takes them, int64: of events the addresses."""
        return np.array([x.ctypes.data if self.operation == APPLY else x for x in self.inputs], np.int64)


def action_kind(action: int) -> str:
    """`START` for all variants, else `act: ` and the verb or global action."""
    if action >= WAIT:
        return f"act: {GLOBAL_ACTIONS[action - WAIT]}"
    verb = action % N_VERBS
    return START if verb < N_VARIANTS else f"act: {VERBS[verb]}"


def samples(level: int, steps: int) -> tuple[Bench, dict[str, Sample]]:
    """Of every operation, states in which it can be done, from `steps` random legal decisions."""
    engine = Engine(level, 1, autoreset="same_step", seed=SEED)
    engine.reset()
    rng, bench = np.random.default_rng(SEED), Bench(engine.block.pit_size)
    found: dict[str, Sample] = {}

    def meet(kind: str, operation: int, pit: np.ndarray, x: Any = 0) -> None:
        found.setdefault(kind, Sample(operation)).meet(rng, pit, x)

    for _ in range(steps):
        pit = engine.memory[0, : bench.size]
        actions = rng.permutation(np.flatnonzero(engine.masks[0])).tolist()
        kinds = {action_kind(action): action for action in actions}
        for kind, action in kinds.items():
            meet(kind, ACT, pit, action)
        meet("encode: observation and mask", OBSERVE, pit)
        meet("next timer", TIMER, pit)
        meet_events(engine, bench, kinds.get(START), meet)
        engine.step(actions[:1])
    return bench, {kind: sample for kind, sample in sorted(found.items()) if len(sample.pits) >= FEWEST}


def coming(engine: Any, bench: Bench, start: int | None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The Pit, the next event of the simulated world and its time (us); `NEVER` if nothing will happen.

    Where nothing is under way, `start` is carried out first, and its call ends as it was estimated.
    """
    block, memory, event = engine.block, engine.memory[0], np.zeros(1, EVENT)
    pit = memory[: bench.size].copy()
    if n := int(block.hidden(memory)["n_due"][0]):
        row = block.rows(memory, "due_at", DUE_ROW, n)[-1]
        event[0] = row["event"]
        return pit, event, int(row["when"])
    if start is None:
        return pit, None, NEVER
    bench.one(ACT, pit, start)
    pit = bench.spare.copy()
    block.hot(pit)["n_commands"] = 0
    call = block.rows(pit, "call_at", CALL, 1)
    event["kind"], event["subject"], event["elapsed"], event["quality"] = FINISHED, call["id"], call["est"], -1.0
    return pit, event, int(block.hot(pit)["now"][0] + event["elapsed"][0])


def meet_events(engine: Any, bench: Bench, start: int | None, meet: Callable[..., None]) -> None:
    """What can happen next if the agent waits: a timer, the clock alone, or an event."""
    pit, event, when = coming(engine, bench, start)
    timer = bench.one(TIMER, pit)
    if timer < when:
        meet("advance: to a timer", ADVANCE, pit, timer)
    if event is None:
        return
    if timer > when:
        meet("advance: no timer is due", ADVANCE, pit, when)
    bench.one(ADVANCE, pit, when)
    before = bench.spare.copy()
    hot = engine.block.hot(before)
    hot["n_commands"] = 0
    if hot["status"][0] != ON or bench.one(APPLY, before, event.ctypes.data) == 0:
        return  # a timer has ended the call that the event is about, or the call waits for a load
    kind = EVENTS[int(event["kind"][0])]
    if event["kind"][0] == FINISHED and event["error"][0] != OK:
        kind += f" ({ERRORS[int(event['error'][0])]})"
    meet(f"apply: {kind}", APPLY, before, event)
    meet("decision due, after an event", DUE, bench.spare)


def level_table(cfg: Any, level: int) -> dict[str, Any]:
    """Nanoseconds of every operation on one level's Pits, the clone subtracted; `clone` is the copy itself."""
    bench, found = samples(level, STEPS)
    contestants = []
    for kind, sample in found.items():
        pits, inputs = np.stack(sample.pits), sample.numbers()
        times = length_for(cfg.seconds / 10, functools.partial(bench.do, sample.operation, pits, inputs))
        for operation in (CLONE, sample.operation):
            run: Any = functools.partial(bench.do, operation, pits, inputs, times)
            contestants.append(Contestant(kind, len(pits) * times, run))
    measured = race(contestants, cfg.rounds)
    rows = {kind: spread(measured[:, 2 * k + 1] - measured[:, 2 * k]) for k, kind in enumerate(found)}
    return {"bytes": bench.size, "ns": rows | {"clone": spread(np.median(measured[:, ::2], axis=1))}}


def operations_table(cfg: Any) -> dict[str, Any]:
    """Every operation: the median over the levels in which it occurs, and the levels where it costs least and most."""
    table = {f"level {level}": level_table(cfg, level) for level in cfg.levels}
    print(f"\nOne operation on the Pit in a kernel, ns, the clone it was done on subtracted (wanted {WANTED:.0f})")
    for kind in sorted({kind for part in table.values() for kind in part["ns"]}):
        medians = {level: part["ns"][kind]["median"] for level, part in table.items() if kind in part["ns"]}
        low, high, middle = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__), [*medians.values()]
        over = "" if max(middle) <= WANTED else f"   above in {sum(x > WANTED for x in middle)}"
        print(
            f"  {kind:<34} {np.median(middle):6.0f}   [{medians[low]:.0f} ({low}) .. {medians[high]:.0f} ({high})] "
            f"in {len(middle)} of {len(table)}{over}"
        )
    sizes = [part["bytes"] for part in table.values()]
    print(f"  a clone is {min(sizes) / 1e3:.1f} to {max(sizes) / 1e3:.1f} kB")
    return table
