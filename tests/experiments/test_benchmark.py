"""The benchmark measures what it says: every part runs in small, and what it times is what it claims to time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import conducting, environments, growth, operations, parts, peers, race
from fq_env.engine import Engine
from pit.state import CALL, PIT

SMALL = ("levels=[1]", "rounds=2", "seconds=0.005", "tasks=[4,8]")


def spreads(figures: Any) -> list[dict[str, float]]:
    """All spreads in a tree of figures."""
    if not isinstance(figures, dict):
        return []
    return [figures] if "median" in figures else [found for value in figures.values() for found in spreads(value)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`python -m experiments.benchmark env` with further arguments, and what it writes."""

    def command(*arguments: str) -> Any:
        out = tmp_path / "speed.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", "env", *SMALL, *arguments, f"out={out}"])
        benchmark.main()
        return json.loads(out.read_text())

    monkeypatch.setattr(environments, "SIZES", (8, 16))
    monkeypatch.setattr(parts, "SIZES", (8, 16))
    for name in ("ADAPTER_N", "SYNC_N", "THREADS_N"):
        monkeypatch.setattr(environments, name, 8)
    monkeypatch.setattr(peers, "TWIN_N", 8)
    monkeypatch.setattr(growth, "N", 4)
    monkeypatch.setattr(operations, "STEPS", 100)
    return command


# --------------------------------------------------------------------------- contestants
def test_random_legal_actions_are_legal_and_even() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((1, 128)) < 0.05
    masks[0, 3] = True
    drawn = np.bincount(environments.random_legal(np.repeat(masks, 20_000, axis=0), rng.random(20_000)), minlength=128)
    assert (drawn[~masks[0]] == 0).all()
    share = drawn[masks[0]] / 20_000
    assert share == pytest.approx(np.full(share.size, 1 / share.size), abs=0.02)


def test_a_race_counts_with_the_clock_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0]

    def waits(nanoseconds: int) -> Any:
        def run() -> None:
            now[0] += nanoseconds

        return run

    fast, slow = race.Contestant("fast", 10, waits(500)), race.Contestant("slow", 5, waits(1000))
    found = race.versus("both", fast, slow, 3, clock=lambda: now[0])
    assert found["ratio"] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert found["ns_per_step"]["slow"]["median"] == 200.0
    assert "4.00 [4.00..4.00] x   (fast 50 [50..50] ns, slow 200 [200..200] ns)" in capsys.readouterr().out


def test_a_replay_that_goes_another_way_is_refused() -> None:
    engine, actions = environments.recorded_engine(1, 4, 0.001)
    environments.replay("the same", engine, actions, engine.obs.copy())
    with pytest.raises(RuntimeError, match="another: recorded actions"):
        environments.replay("another", engine, actions, engine.obs + 1)


def test_workflows_of_the_growth_table_have_the_size_they_are_listed_under() -> None:
    engine = Engine(growth.layered(33), 3, seed=0)
    engine.reset()
    assert [int(engine.block.hot(memory)["n_tasks"][0]) for memory in engine.memory] == [33, 33, 33]
    (steps, resets), facts = growth.contestants_of(5)
    assert facts["steps_per_episode"] >= 5 and steps.steps % growth.N == 0 and resets.steps == growth.RESETS * growth.N


# --------------------------------------------------------------------------- operations on the Pit
@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        (1, {"act: start", "apply: finished", "decision due, after an event", "encode: observation and mask", "next timer"}),
        (14, {"act: hedge", "act: cancel", "act: wait", "apply: loaded", "advance: to a timer", "advance: no timer is due"}),
    ],
)
def test_operations_are_done_where_they_can_be_done(level: int, kinds: set[str]) -> None:
    engine = Engine(level, 1)
    bench, found = operations.samples(level, 400)
    assert kinds <= set(found)
    for kind, sample in found.items():
        pits, inputs = np.stack(sample.pits), sample.numbers()
        before, answers = pits.copy(), bench.do(sample.operation, pits, inputs, 2)
        assert np.array_equal(pits, before)
        assert operations.FEWEST <= len(pits) <= min(operations.MOST, sample.seen)
        if sample.operation == operations.APPLY:
            assert answers == 2 * len(pits), kind  # every event fits
        if kind == "apply: finished":
            assert all(lasted(engine, *pair) == pair[1]["elapsed"][0] for pair in zip(pits, sample.inputs, strict=True))
        for pit, x in zip(pits, inputs.tolist(), strict=True):
            bench.one(sample.operation, pit, x)
            then, after = hot(pit), hot(bench.spare)
            if sample.operation == operations.ACT:
                assert after["actions"] == then["actions"] + 1 and after["warnings"] == then["warnings"]  # legal
            elif sample.operation == operations.ADVANCE:
                assert after["now"] == x > then["now"]
            elif sample.operation == operations.DUE:
                assert then["slots_valid"] == 0  # else there would be nothing to find
            elif sample.operation == operations.OBSERVE:
                assert bench.mask.any() and np.abs(bench.obs).sum() > 0


def lasted(engine: Engine, pit: np.ndarray, event: np.ndarray) -> int:
    """How long the call that the event is about has run by now, us."""
    calls = engine.block.rows(pit, "call_at", CALL, int(hot(pit)["n_calls"]))
    return int(hot(pit)["now"] - calls["start"][calls["id"] == event["subject"][0]][0])


def hot(pit: np.ndarray) -> Any:
    """The record of a Pit."""
    return pit[: PIT.itemsize].view(PIT)[0]


def test_a_clone_is_the_whole_pit() -> None:
    bench = operations.Bench(640)
    pits = np.random.default_rng(0).integers(0, 256, (3, 640)).astype(np.uint8)
    bench.do(operations.CLONE, pits, np.zeros(3, np.int64))
    assert np.array_equal(bench.spare, pits[2])


def test_a_sample_is_spread_over_all_that_was_met() -> None:
    sample, rng = operations.Sample(operations.ACT), np.random.default_rng(0)
    for x in range(4000):
        sample.meet(rng, np.zeros(1, np.uint8), x)
    assert len(sample.inputs) == operations.MOST
    assert np.mean(sample.inputs) == pytest.approx(2000, abs=600) and max(sample.inputs) > 3000


# --------------------------------------------------------------------------- the command
@pytest.mark.parametrize("part", [name for name in parts.PARTS if name != "threads"])
def test_every_part_in_small(run: Any, part: str) -> None:
    figures = run(f"part={part}")
    assert set(parts.PARTS) & set(figures) == {part}
    found = spreads(figures[part])
    assert found
    for row in found:
        assert row["min"] <= row["median"] <= row["max"]
        assert row["max"] > 0 or part in ("operations", "adapter")  # differences may be lost in noise
    assert figures["levels"][0]["level"] == 1


@pytest.mark.slow
def test_two_threads_in_small(run: Any) -> None:
    figures = run("part=threads")
    assert set(figures["threads"]["level 1"]["ns_per_step"]) == {"one", "two"}
    assert figures["levels"] == [{"level": 1, "two_threads_over_one": pytest.approx(0.5, abs=5)}]


def test_the_headlines_are_what_was_measured(run: Any) -> None:
    figures = run("part=kernel")
    ns = figures["kernel"]["level 1"]["n = 8"]["ns_per_step"]["median"]
    (row,) = figures["levels"]
    assert row["ns_per_step"] == round(ns, 1) and row["steps_per_cpu_second"] == round(1e9 / ns)
    assert row["wanted_steps_per_cpu_second"] == 4_000_000


def test_plain_python_is_the_twin_written_for_speed(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It plays level 1 alone: no other level has the figure."""
    figures = run("part=twin", "levels=[1,2]")
    first, second = figures["twin"]["level 1"], figures["twin"]["level 2"]
    assert set(first["ratios"]) == {"for reading", "for speed"} and set(second["ratios"]) == {"for reading"}
    assert first["ratios"]["for reading"]["median"] > first["ratios"]["for speed"]["median"] > 1
    assert figures["levels"][0]["times_plain_python"] == round(first["ratios"]["for speed"]["median"], 2)
    assert "times_plain_python" not in figures["levels"][1]
    assert capsys.readouterr().out.count("for speed ") == 1


def test_what_is_not_installed_is_said(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("jumanji", "minigrid", "tests.twin.game_twin"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("part=twin")["twin"] == {}
    assert "not measured: there is no folder tests/" in capsys.readouterr().out
    single = run("part=single")["single"]
    assert {name for name, figures in single.items() if figures is None} == {peers.MINIGRID, f"Jumanji {peers.JUMANJI}"}
    assert capsys.readouterr().out.count("not installed") == 2


@pytest.mark.parametrize("argument", ["part=kernels", "tasks=[]", "tasks=[1]", "tasks=[40000]", "levels=[]", "levels=[99]"])
def test_a_mistake_is_one_sentence(run: Any, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(argument)
    name = argument.split("=")[0].rstrip("s")
    assert stopped.value.code == 2
    assert name in (message := capsys.readouterr().err) and message.count("\n") == 1


def test_what_the_conductor_costs(tmp_path: Path) -> None:
    """Each table in small: what is timed was really done."""
    decided = conducting.decision_table(20, 5)  # so many that a maker looks whether it goes round
    turns = decided["taking turns"]
    assert 0 < turns["observation and mask"]["p50_us"] < turns["conductor, whole decision"]["p50_us"]
    assert decided["in a row"].keys() == turns.keys() - {"observation and mask"}
    many = conducting.many_table(3, 2)
    assert many["solved"] == 3 and many["rows"] > 3 * 2 * 4 and many["peak_mib"] > 10
    assert conducting.task_table(1, 4)["ms_per_task"] > 0
    journal = conducting.journal_table(1, 5)
    if (fsyncs := journal["1 live"]["fsyncs_per_event"]) is not None:  # strace is installed
        assert fsyncs > journal["16 live"]["fsyncs_per_event"] >= 1 / 16
    installed = conducting.install_table()
    assert "scipy" not in installed["of"], "nothing needs it"
    assert not installed["torch"] and {"numpy", "numba", "cryptography"} <= set(installed["of"]) and installed["mb"] > 50
