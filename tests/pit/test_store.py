"""The store: which artifacts leave a full tier, what fetching them costs, what is deleted and made again, and what was made
from what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pit import layout as L
from pit import state
from pit.errors import PitError
from pit.handle import Command, Event, Pit
from pit.layout import DONE, FINISHED, N_VERBS, STANDARD, TIERS
from pit.spec import SystemSpec, WorkflowSpec

SECONDS = 10**6


def system(store: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """One function `make` of 10 s, and a slow one of 20 s, on a bench of eight places."""
    functions = {
        "make": {"standard": {"pool": "bench", "seconds": 10.0, "price": 1.0}},
        "forge": {"standard": {"pool": "bench", "seconds": 20.0, "price": 1.0}},
    }
    return {"verbs": ["standard", "refresh"], "pools": {"bench": {"places": 8}}, "functions": functions, "store": store} | more


class Run:
    """A Pit, driven by the ids of its tasks."""

    def __init__(self, tasks: dict[str, Any], store: dict[str, Any] | None, **more: Any) -> None:
        """`tasks`: id -> inputs, or the whole of a task."""
        rows = [{"id": i, "function": "make"} | (t if isinstance(t, dict) else {"after": t.split()}) for i, t in tasks.items()]
        self.pit = Pit(WorkflowSpec.model_validate({"system": system(store, **more), "tasks": rows}))
        self.pit.apply(Event(L.ARRIVE, 0))
        self.told: list[str] = []

    def __getitem__(self, task: str) -> int:
        return self.pit.task_ids.index(task)

    def start(self, *tasks: str) -> None:
        for task in tasks:
            self.pit.decision_due()
            slots = self.pit._hot["slots"]["head"][0][: int(self.pit._hot["n_slots"][0])].tolist()
            self.pit.act(slots.index(self[task]) * N_VERBS + STANDARD)
            self.note(self.pit.commands())

    def finish(self, *tasks: str, size: int = 0, error: int = L.OK, elapsed: int = 10 * SECONDS) -> None:
        for task in tasks:
            call = next(int(c["id"]) for c in self.pit.calls() if c["task"] == self[task])
            self.pit.apply(Event(FINISHED, call, error, elapsed, -1.0, size, 0))
            self.note(self.pit.commands())

    def make(self, task: str, size: int) -> None:
        self.start(task)
        self.pit.advance(self.pit.now + SECONDS)
        self.finish(task, size=size)

    def note(self, commands: list[Command]) -> None:
        ids = self.pit.task_ids
        about = [c for c in commands if c.kind in (L.CMD_STORE, L.CMD_DELETE)]
        self.told += [f"{ids[c.task]} {'deleted' if c.kind == L.CMD_DELETE else TIERS[c.copy]}" for c in about]

    def tiers(self) -> dict[str, str]:
        tiers = self.pit.artifacts()["tier"]
        return {task: TIERS[tiers[i]] for i, task in enumerate(self.pit.task_ids) if self.pit.task_state(i) == DONE}

    def used(self) -> list[int]:
        rows: np.ndarray = self.pit._table("store_at", state.STORE, 1)["used"][0]
        return rows.tolist()


def test_what_is_read_least_and_latest_leaves_first() -> None:
    """b is read once and later, c by one that is ready, a by two of which one is ready."""
    tasks = {"a": "", "b": "", "c": "", "x": "", "ac": "a c", "ax": "a x", "bx": "b x"}
    run = Run(tasks, {"hot": 20})
    for task in "abc":
        run.make(task, 10)
    assert run.tiers() == {"a": "hot", "b": "warm", "c": "hot"} and run.told == ["b warm"] and run.used() == [20, 10, 0]


def test_what_is_read_soon_stays_before_what_is_read_later() -> None:
    """na lacks only what runs already, so a stays although it is older; lb has not begun to get near."""
    slow = {"function": "forge"}
    run = Run({"a": "", "b": "", "p": slow, "q": slow, "na": "a p", "lb": "b q"}, {"hot": 10})
    run.start("p")
    run.make("a", 10)
    run.make("b", 10)
    assert run.told == ["b warm"]


def test_what_costs_less_leaves_before_what_costs_more_and_then_what_is_older() -> None:
    tasks = {"a": {"function": "forge"}, "b": "", "c": "", "end": "a b c d", "d": ""}
    run = Run(tasks, {"hot": 10})
    for task, left in (("a", ""), ("b", "b warm"), ("c", "c warm")):
        run.make(task, 6)
        assert run.told[-1:] == ([left] if left else [])  # the forged one stays: making it again takes longest
    run = Run(tasks, {"hot": 12})
    for task in "bcd":
        run.make(task, 6)
    assert run.told == ["b warm"]


def reader(task: np.void) -> int:
    """What a task in this state adds to the need of its inputs' artifacts."""
    if task["state"] == L.BLOCKED:
        return L.NEED_NEAR if task["near"] else L.NEED_LATER
    return {L.READY: L.NEED_READY, L.RUNNING: L.NEED_LATER}.get(int(task["state"]), 0)


@pytest.mark.parametrize("seed", range(6))
def test_what_was_counted_of_needs_is_what_they_are(seed: int) -> None:
    """Calls begin, end, fail and lose inputs at random: a need that is kept is the one that would be counted now."""
    rng = np.random.default_rng(seed)
    tasks = {f"t{i}": " ".join(f"t{j}" for j in range(max(0, i - 5), i) if rng.random() < 0.4) for i in range(20)}
    run, kept = Run(tasks, {"hot": 25, "warm": 40, "cold": 60}), 0
    for _ in range(120):
        calls = run.pit.calls()
        run.pit.decision_due()
        heads = run.pit._hot["slots"]["head"][0][: int(run.pit._hot["n_slots"][0])]
        if len(heads) and len(calls) < 4 and rng.random() < 0.6:
            run.start(run.pit.task_ids[rng.choice(heads)])
        elif len(calls):
            error = int(rng.choice([L.OK, L.OK, L.OK, L.ERR_ERROR, L.ERR_LOST]))
            run.pit.advance(run.pit.now + SECONDS)
            run.finish(run.pit.task_ids[int(rng.choice(calls)["task"])], size=int(rng.integers(1, 20)), error=error)
        states = run.pit._table("task_at", state.TASK, 20)
        for i, counted in enumerate(run.pit._table("artifact_at", state.ARTIFACT, 20)["need"]):
            if counted > 0:
                name = run.pit.task_ids[i]
                assert counted - 1 == sum(reader(states[run[task]]) for task, after in tasks.items() if name in after.split())
                kept += 1
    assert kept > 100


def test_what_fits_nowhere_goes_to_where_it_does() -> None:
    run = Run({"a": "", "b": "", "c": "", "end": "a b c"}, {"hot": 10, "warm": 20})
    run.make("a", 5)
    run.make("b", 15)
    run.make("c", 25)
    assert run.tiers() == {"a": "hot", "b": "warm", "c": "cold"} and run.told == ["b warm", "c cold"]
    assert run.used() == [5, 15, 25]


def test_a_call_fetches_its_inputs_first() -> None:
    """The longest of them counts; it is expected, limits what may be spent, and is not learned as the function's duration."""
    store = {"hot": 10, "warm": 10, "fetch_seconds": {"warm": 3.0, "cold": 7.0}}
    run = Run({"a": "", "b": "", "c": "", "end": "a b c"}, store)
    plain = Run({"a": "", "b": "", "c": "", "end": "a b c"}, None)
    for task in "abc":
        run.make(task, 10)
        plain.make(task, 10)
    assert run.tiers() == {"a": "cold", "b": "warm", "c": "hot"} and run.told == ["a warm", "a cold", "b warm"]
    delay = [r.pit.observe()[7] for r in (run, plain)]
    unit = 10.0
    assert delay[0] == pytest.approx(7.0 / (7.0 + unit)) and delay[1] == 0.0
    run.start("end")
    (call,) = run.pit.calls()
    assert call["fetch"] == 7 * SECONDS and call["expected_end"] - run.pit.now == pytest.approx(17 * SECONDS)
    assert run.tiers() == {"a": "cold", "b": "warm", "c": "hot"} and run.told[3:] == ["a cold", "b warm"]  # and down again
    before = float(run.pit.variants()["n"][STANDARD])
    run.finish("end", elapsed=14 * SECONDS)
    row = run.pit.variants()[STANDARD]
    assert row["n"] == before + 1 and row["s"] == pytest.approx(3 * 1.0 + 0.7)


def test_money_must_suffice_for_fetching_too() -> None:
    store = {"hot": 10, "fetch_seconds": {"warm": 5.0}}
    tasks = {"a": "", "b": "", "end": "a b"}
    for money, may in ((14.9, False), (15.1, True)):  # nothing is paid for a and b here
        run = Run(tasks, store, money=money)
        run.make("a", 10)
        run.make("b", 10)
        assert bool(run.pit.mask()[STANDARD]) == may


def test_only_what_nobody_needs_is_deleted() -> None:
    """The cold tier holds 10: a goes once `b` is done, which alone reads it; the result r is nobody's and stays."""
    run = Run({"r": "", "a": "", "c": "", "b": "a", "end": "b c"}, {"hot": 1, "warm": 1, "cold": 10})
    for task in ("r", "a", "c"):
        run.make(task, 10)
    assert run.tiers() == {"r": "cold", "a": "cold", "c": "cold"} and run.used() == [0, 0, 30]
    run.make("b", 10)
    assert run.tiers() == {"r": "cold", "a": "gone", "c": "cold", "b": "cold"}
    assert run.told[-2:] == ["a deleted", "b cold"]


def test_what_is_gone_is_made_again_when_it_is_needed_again() -> None:
    """b is lost, and with it what b was made from; nothing else runs again."""
    run = Run({"a": "", "c": "", "b": "a", "end": "b c"}, {"hot": 1, "warm": 1, "cold": 10})
    for task in ("a", "c", "b"):
        run.make(task, 10)
    assert run.tiers()["a"] == "gone"
    run.start("end")
    run.pit.advance(run.pit.now + SECONDS)
    created = run.pit.artifacts()["created"][run["c"]]
    assert created < run.pit.artifacts()["created"][run["b"]]
    run.finish("end", error=L.ERR_LOST)  # c is the oldest of its inputs
    states = {task: run.pit.task_state(run[task]) for task in ("a", "b", "c")}
    assert states == {"a": DONE, "b": DONE, "c": L.READY}
    run.make("c", 10)
    run.start("end")
    run.pit.advance(run.pit.now + SECONDS)
    run.finish("end", error=L.ERR_LOST)
    assert [run.pit.task_state(run[task]) for task in ("a", "b", "c", "end")] == [L.READY, L.BLOCKED, DONE, L.BLOCKED]
    run.make("a", 10)
    assert run.pit.task_state(run["b"]) == L.READY and run.tiers() == {"a": "cold", "c": "cold"}
    run.make("b", 10)
    run.make("end", 10)
    assert run.pit.status == L.SOLVED


@pytest.mark.parametrize("store", [None, {"hot": 1000}])
def test_lineage_tells_versions(store: dict[str, Any] | None) -> None:
    run = Run({"a": "", "b": "", "c": "a b", "d": "c a"}, store)
    run.make("a", 1)
    run.make("b", 1)
    run.make("c", 1)
    assert [tuple(x) for x in run.pit.lineage(run["c"])] == [("a", 1, 1, "hot"), ("b", 1, 1, "hot")]
    run.start("d")
    run.finish("d", error=L.ERR_LOST)  # a runs again, and c stays as it was made
    assert [tuple(x) for x in run.pit.lineage(run["c"])] == [("a", 1, 1, "gone"), ("b", 1, 1, "hot")]
    run.make("a", 1)
    assert [tuple(x) for x in run.pit.lineage(run["c"])] == [("a", 1, 2, "hot"), ("b", 1, 1, "hot")]
    run.start("d")
    assert [x.version for x in run.pit.lineage(run["d"])] == [1, 2]


def test_a_reused_output_lies_where_its_source_does_and_has_its_lineage() -> None:
    twins = {"x": {"content": 1, "after": ["a"]}, "y": {"content": 1, "after": ["b"]}}
    run = Run({"a": "", "b": "", **twins, "end": "x y"}, {"hot": 5, "warm": 100})
    run.make("a", 1)
    run.make("x", 20)
    assert run.tiers() == {"a": "hot", "x": "warm"} and run.told == ["x warm"]
    run.make("b", 1)
    assert run.tiers() == {"a": "hot", "b": "hot", "x": "warm", "y": "warm"} and run.used() == [2, 40, 0]
    assert run.told == ["x warm"]  # y's is the same output, so it is known where it lies
    assert [x.task for x in run.pit.lineage(run["y"])] == ["a"]


def test_where_artifacts_lie_is_told_as_far_as_there_is_room() -> None:
    """No command is lost: what found no room is told later, so the driver knows in the end."""
    n = 12
    tasks = {f"t{i}": "" for i in range(n)} | {"end": " ".join(f"t{i}" for i in range(n))}
    run = Run(tasks, {"hot": 5})
    for start in range(0, n, 6):
        names = [f"t{i}" for i in range(start, start + 6)]
        run.start(*names)
        for name in names:
            run.finish(name, size=5)
    assert run.told == [f"t{i} warm" for i in range(n - 1)]


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ({}, "store.hot"),
        ({"hot": 0}, "store.hot"),
        ({"hot": 1, "warm": 0}, "store.warm"),
        ({"hot": 1, "fetch_seconds": {"hot": 1}}, "fetch_seconds"),
        ({"hot": 1, "fetch_seconds": {"cold": -1}}, "store.fetch_seconds.cold"),
    ],
)
def test_mistakes_in_a_store_are_named(store: dict[str, Any], told: str) -> None:
    from pit.files import parse

    with pytest.raises(PitError, match=told):
        parse(SystemSpec, system(store), "system file x.yaml")
