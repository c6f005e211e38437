"""One Pit as a Python object, for the conductor, for tests and for the curious; the kernels behind it are `pit.interface`.

Whoever drives it owns the clock and carries out the commands. The rule book is `pit/README.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pit import observation, rules, state
from pit.build import build_pit
from pit.compiled import announce
from pit.errors import PitError
from pit.health import FAILING, SLOW
from pit.interface import ACT, ADVANCE, APPLY, DUE, OBSERVE, RULE, TIMER, drive
from pit.layout import (
    ACTIVE,
    CHANCE_SHARE,
    DONE,
    ERRORS,
    EXPOSURES,
    HEALING_ACTIONS,
    HEALINGS,
    N_ACTIONS,
    N_OBSERVATION,
    NEVER,
    PATTERNS,
    SOLVED,
    STATUSES,
    TIER_GONE,
    TIER_HOT,
    TIERS,
    VERBS,
    WARM,
)
from pit.spec import History, WorkflowSpec

# Fields of the hot record that can be computed from the rest.
_CACHES = (
    "stale_at",
    "slots",
    "slots_valid",
    "any_near",
    "any_start",
    "any_short",
    "n_slots",
    "n_tail",
    "skipped",
    "victim_budget",
    "victim_size",
    "victim_demand",
    "keys",
)


class Event(NamedTuple):
    """What happened outside (rule book, section 4); codes of `pit.layout`, times in us, money in micro-units."""

    kind: int
    subject: int
    error: int = 0
    elapsed: int = 0
    quality: float = -1.0
    size: int = 0
    price: int = 0


class Command(NamedTuple):
    """What the Pit wants done; -1 where a field does not apply."""

    kind: int
    call: int
    task: int
    function: int
    variant: int
    pool: int
    copy: int
    model: int


class Signature(NamedTuple):
    """Health of one variant (`function.variant`) or pool; times in us.

    `chance` that its next call fails; `level` of durations over calm ones; `coherence` of told qualities with expected ones, 1
    where none was told; `pattern` since `since` (`none` since 0); how often it failed in a row, and the last error.
    """

    name: str
    chance: float
    level: float
    coherence: float
    failing: bool
    slow: bool
    mending: bool
    in_row: int
    last_error: str
    pattern: str
    since: int


class Healing(NamedTuple):
    """An action that was to mend something: when (us), on which variant or pool, and what it achieved by `ended`.

    `before`, `after`: chance of a failure; of an `adaptation` how far estimates were off, as a share. None: not known yet.
    """

    time: int
    action: str
    subject: str
    before: float
    ended: int | None
    after: float | None


class Input(NamedTuple):
    """An input of an output that was made: its task and version (0: it was not done); its version and tier now, "gone" if it
    was deleted or must be made again. Another version now says that the output was made from an older one."""

    task: str
    version: int
    newest: int
    tier: str


class Pit:
    """One Pit in memory of its own, as Python sees it.

    Args:
        workflow: tasks and system; tasks are put in topological order.
        exposure: `hidden`, `partial` or `full`: which columns of the observation are filled.
        history: what earlier runs measured (durations, loads); None starts from the nominal values.
        salt: what makes this run's jitter another than other runs' (0 to 2^64 - 1).
        then: workflows that may follow, over the same system: a stream. Each comes by an event `arrive` with its number.

    Raises:
        PitError: the workflow or system is not valid, or the exposure is unknown.
    """

    def __init__(
        self,
        workflow: WorkflowSpec,
        *,
        exposure: str = "full",
        history: History | None = None,
        then: Sequence[WorkflowSpec] = (),
        salt: int = 0,
    ) -> None:
        if exposure not in EXPOSURES:
            raise PitError(f"exposure {exposure!r} is unknown; choose one of {', '.join(EXPOSURES)}")
        announce("drive")
        built = build_pit(workflow, EXPOSURES.index(exposure), history, then, salt)
        self.workflow = built.workflow
        self.task_ids, self.function_names = built.task_ids, built.function_names
        self.pool_names, self.model_names = built.pool_names, built.model_names
        self._memory = built.memory
        self._offsets, self._counts = built.offsets, built.counts
        self._address = self._memory.ctypes.data
        self._event = np.zeros(1, state.EVENT)
        self._observation = np.zeros(N_OBSERVATION, np.float32)
        self._mask = np.zeros(N_ACTIONS, np.uint8)
        self._seen_at = self._observation.ctypes.data, self._mask.ctypes.data  # asking for an address takes a microsecond
        self._hot = self._memory[: state.PIT.itemsize].view(state.PIT)
        self._commands: list[Command] = []

    def _call(
        self,
        operation: int,
        value: int = 0,
        first: int = 0,
        second: int = 0,
        event: int = 0,
        theta: float = 0.0,
        weights: int = 0,
    ) -> int:
        result = int(drive(self._address, operation, value, event, first, second, theta, weights))
        if n := int(self._hot["n_commands"][0]):  # the kernel's buffer holds what one operation can say: empty it each time
            rows = self._table("command_at", state.COMMAND, n)
            self._commands += [Command(*(int(x) for x in row)) for row in rows.tolist()]
            self._hot["n_commands"] = 0
        return result

    def act(self, action: int) -> None:
        """One decision, 0..127."""
        self._call(ACT, int(action))

    def advance(self, t: int) -> None:
        """The clock goes to t (us); timers up to t fire."""
        while (timer := self.next_timer()) < t:  # one after the other: the kernel's buffer holds what one of them can say
            self._call(ADVANCE, timer)
        self._call(ADVANCE, int(t))

    def apply(self, event: Event | tuple[Any, ...]) -> bool:
        """One event; False if it did not fit the state and was ignored."""
        self._event[0] = tuple(event)
        return bool(self._call(APPLY, event=self._event.ctypes.data))

    def next_timer(self) -> int:
        """us of the next timer, `NEVER` if none."""
        return self._call(TIMER)

    def decision_due(self) -> bool:
        """Whether an action is wanted now (or the run has ended)."""
        return bool(self._call(DUE))

    def _encode(self) -> None:
        self._call(OBSERVE, 0, *self._seen_at)

    def observe(self) -> np.ndarray:
        """The observation, float32 (512,)."""
        self._encode()
        return self._observation.copy()

    def mask(self) -> np.ndarray:
        """Legal actions, bool (128,)."""
        self._encode()
        return self._mask.astype(bool)

    def slots(self) -> list[tuple[int, int]]:
        """Of each slot in use, in order: the task at its head (an index), and how many tasks it stands for."""
        self._encode()
        rows = self._hot["slots"][0][: int(self._hot["n_slots"][0])]
        return [(int(row["head"]), int(row["count"])) for row in rows]

    def rule(self, name: str, **params: Any) -> int:
        """The action that a rule player would take now (see `pit.rules.RULES`)."""
        code, theta, variant, weights = rules.parameters(name, params)
        address = 0 if weights is None else weights.ctypes.data
        return self._call(RULE, code, *self._seen_at, event=variant, theta=theta, weights=address)

    def commands(self) -> list[Command]:
        """The commands since the last call, in order."""
        commands, self._commands = self._commands, []
        return commands

    def _table(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        start = self._offsets[name]
        return self._memory[start : start + count * dtype.itemsize].view(dtype)

    @property
    def now(self) -> int:
        """us since the run began."""
        return int(self._hot["now"][0])

    @property
    def status(self) -> int:
        """0 running, 1 solved, 2 failed, 3 expired."""
        return int(self._hot["status"][0])

    def task_state(self, i: int) -> int:
        """State of task i (codes of `pit.layout.TASK_STATES`)."""
        return int(self.tasks()["state"][i])

    def tasks(self) -> np.ndarray:
        """The task table (a live view; do not write)."""
        return self._table("task_at", state.TASK, self._counts["tasks"])

    def artifacts(self) -> np.ndarray:
        """The artifact table, row = task (a live view; do not write)."""
        return self._table("artifact_at", state.ARTIFACT, self._counts["tasks"])

    def lineage(self, i: int) -> list[Input]:
        """What the output of task i was made from, as its latest call found it (a reused output: as its source's did)."""
        tasks, artifacts, stored = self.tasks(), self.artifacts(), bool(self._hot["any_store"][0])
        source = int(artifacts["source"][i])
        row = tasks[source if source >= 0 else i]
        links = self._table("pred_at", state.LINK, int(tasks["pred_to"].max(initial=0)))
        found = []
        for j, _, used in links[row["pred_from"] : row["pred_to"]].tolist():
            there = tasks["state"][j] == DONE
            tier = TIERS[artifacts["tier"][j] if stored else TIER_HOT] if there else TIERS[TIER_GONE]
            found.append(Input(self.task_ids[j], used, int(tasks["version"][j]), tier))
        return found

    def copies(self) -> np.ndarray:
        """The copy table (a live view; do not write)."""
        return self._table("copy_at", state.COPY, self._counts["copies"])

    def calls(self) -> np.ndarray:
        """The calls in flight (rows copied)."""
        rows = self._table("call_at", state.CALL, self._counts["places"])
        return rows[rows["id"] >= 0].copy()

    def variants(self) -> np.ndarray:
        """The variant table, row = function * 3 + variant (a live view; do not write)."""
        return self._table("variant_at", state.VARIANT, 3 * self._counts["functions"])

    def models(self) -> np.ndarray:
        """The model table (a live view; do not write)."""
        return self._table("model_at", state.MODEL, self._counts["models"])

    def _subjects(self) -> list[str]:
        """Names of the rows of the record of health."""
        return [*(f"{f}.{v}" for f in self.function_names for v in VERBS[:3]), *self.pool_names]

    def patterns(self) -> np.ndarray:
        """Pattern of every variant (row = function * 3 + variant), then of every pool: codes of `pit.layout.PATTERNS` (a live
        view; do not write)."""
        rows = 3 * self._counts["functions"] + len(self.pool_names)
        return self._table("signature_at", state.SIGNATURE, rows)["pattern"]

    def chance(self, row: int) -> float:
        """The chance that the next call of the variant or pool of this row of `patterns` fails."""
        chances, variants = self._hot["pools"]["failures"][0], self.variants()
        if row >= len(variants):
            return float(chances[row - len(variants)])
        h = self._table("vital_at", state.VITAL, len(variants))[row]
        return float((CHANCE_SHARE * chances[variants["pool"][row]] + h["fails"]) / (CHANCE_SHARE + h["calls"]))

    def signatures(self) -> list[Signature]:
        """Health of every usable variant, then of every pool; empty before the arrival."""
        names, variants, hot = self._subjects(), self.variants(), self._hot[0]
        vitals = self._table("vital_at", state.VITAL, len(names))
        rows = self._table("signature_at", state.SIGNATURE, len(names))
        found = []
        for r, name in enumerate(names) if hot["arrived"] else ():
            h, g, pool = vitals[r], rows[r], r - len(variants)
            if pool < 0 and not variants["usable"][r]:
                continue
            mending, bits = pool < 0 and bool(variants["mending"][r]), int(h["state"])
            in_row = int(h["in_row"] if pool < 0 else hot["pools"]["in_row"][pool])
            found.append(
                Signature(
                    name, self.chance(r), float(h["level"]), float(g["coherence"]), bool(bits & FAILING), bool(bits & SLOW),
                    mending, in_row, ERRORS[g["last_error"]], PATTERNS[g["pattern"]], int(g["since"]),
                )
            )  # fmt: skip
        return found

    def healings(self) -> list[Healing]:
        """The last healing actions, the oldest first."""
        names, count = self._subjects(), int(self._hot["n_healings"][0])
        rows = self._table("healing_at", state.HEALING, HEALINGS)
        found = []
        for k in range(max(0, count - HEALINGS), count):
            row = rows[k % HEALINGS]
            ended = int(row["ended"])
            known = (ended, float(row["after"])) if ended < NEVER else (None, None)
            found.append(
                Healing(int(row["time"]), HEALING_ACTIONS[row["kind"]], names[row["subject"]], float(row["before"]), *known)
            )
        return found

    def snapshot(self) -> bytes:
        """The whole memory."""
        return self._memory.tobytes()

    def restore(self, data: bytes) -> None:
        """Puts a snapshot of the same workflow back."""
        if len(data) != self._memory.size:
            raise PitError(f"the snapshot has {len(data)} bytes; this workflow's Pit has {self._memory.size}")
        self._memory[:] = np.frombuffer(data, np.uint8)

    def state_hash(self) -> str:
        """sha256 of the memory without what is only a cache of the rest (slots, near demand, old commands)."""
        memory = self._memory.copy()
        hot = memory[: state.PIT.itemsize].view(state.PIT)
        for cache in _CACHES:
            hot[cache] = np.zeros((), hot[cache].dtype)
        hot["pools"]["room"] = 0.0
        start = self._offsets["model_at"]
        models = memory[start : start + self._counts["models"] * state.MODEL.itemsize].view(state.MODEL)
        models["near"] = 0
        tasks = memory[self._offsets["task_at"] :][: self._counts["tasks"] * state.TASK.itemsize].view(state.TASK)
        tasks["slot"] = 0
        tasks["key"] = tasks["octave"] = 0  # a running task's are made when slots are looked for
        memory[self._offsets["members_at"] : self._offsets["ready_at"]] = 0
        kept = memory[self._offsets["artifact_at"] :][: self._counts["tasks"] * state.ARTIFACT.itemsize].view(state.ARTIFACT)
        kept["need"] = 0
        ready = self._offsets["ready_at"]
        rows = memory[ready : ready + self._counts["tasks"] * state.INDEX.itemsize].view(state.INDEX)
        rows[int(hot["n_ready"][0]) :] = 0  # behind the ready tasks stand late ones
        memory[self._offsets["command_at"] :] = 0
        return hashlib.sha256(memory.tobytes()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Plain numbers for people and reports: clock (s), status, counts, spending, and the score as the Pit estimates it."""
        hot, tasks, copies = self._hot[0], self.tasks(), self.copies()
        score = observation.score_parts(self.observe_full())
        return {
            "now_seconds": self.now / 1e6,
            "elapsed_seconds": (self.now - int(hot["t0"])) / 1e6 if hot["arrived"] else 0.0,
            "status": STATUSES[self.status],
            "tasks": len(tasks),
            "done": int((tasks["state"] == DONE).sum()),
            "calls": int(hot["next_call"]),
            "in_flight": int(hot["n_calls"]),
            "spent": int(hot["spent"]) / 1e6,
            "warnings": int(hot["warnings"]),
            "actions": int(hot["actions"]),
            "ignored": int(hot["ignored"]),
            "copies_loaded": int(np.isin(copies["state"], (WARM, ACTIVE)).sum()),
            "lb_seconds": float(hot["lb"]) / 1e6,
            **score,
            "solved": self.status == SOLVED,
        }

    def observe_as(self, exposure: str) -> np.ndarray:
        """The observation with the columns that are filled under another exposure than the Pit's own, float32 (512,)."""
        kept = int(self._hot["exposure"][0])
        self._hot["exposure"] = EXPOSURES.index(exposure)
        try:
            return self.observe()
        finally:
            self._hot["exposure"] = kept

    def observe_full(self) -> np.ndarray:
        """The observation with every column filled, whatever the exposure, float32 (512,)."""
        return self.observe_as(EXPOSURES[-1])
