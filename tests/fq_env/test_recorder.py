"""The recorder of the game: what it tells is what the kernel played, event by event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fq_env.engine import Engine
from fq_env.errors import FQError
from fq_env.level import Level, load_level
from fq_env.level_files import LEVELS
from fq_env.players import PLAYERS, play
from fq_env.recorder import Double, chooser, record_episode
from pit import record, state

# Fields of the tables that hold no state, only what the last look found.
CACHES = {"task_at": ["slot"], "model_at": ["near"]}


def begun(level: int, instance: int = 0, **options: Any) -> Engine:
    engine = Engine(level, 1, autoreset="disabled", **options)
    engine.reset(split="validation", instances=instance)
    return engine


def recorded(engine: Engine, player: str = "random") -> list[record.Row]:
    return list(record_episode(engine, chooser(PLAYERS[player], 0), player=player, by="rule"))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("player", ["critical_path", "random"])
def test_the_rows_add_up_to_the_episode(level: int, player: str) -> None:
    for instance in range(3):
        engine = begun(level, instance)
        rows, episode = recorded(engine, player), engine.episodes[0]
        operations = [o for row in rows for o in row["operations"]]
        assert len(rows) == episode["steps"] and [row["decision"] for row in rows] == list(range(len(rows)))
        assert sum(o["kind"] == "start" for o in operations) == episode["calls"]
        assert sum(row["loads"] for row in rows) == sum(o["kind"] == "load" for o in operations) == episode["loads"]
        assert sum(row["reward"] for row in rows) == pytest.approx(episode["reward_sum"], abs=1e-12)
        assert sum(row["money"] for row in rows) == pytest.approx(episode["cost"])
        assert sum(row["seconds"] for row in rows) == pytest.approx(episode["makespan"])
        assert [row["after"] for row in rows[:-1]] == [row["before"] for row in rows[1:]]
        assert [o["time_s"] for o in operations] == sorted(o["time_s"] for o in operations)
        assert all(row["before"]["time_s"] <= o["time_s"] <= row["after"]["time_s"] for row in rows for o in row["operations"])
        assert all(row["legal"] and row["legal_actions"] > 0 for row in rows)
        assert rows[-1]["after"]["score"]["stability"] == pytest.approx(episode["stability"])
        assert rows[-1]["after"]["warnings"] == episode["warnings"] and rows[-1]["instance"] == instance


@pytest.mark.parametrize("player", sorted(set(PLAYERS) - {"random"}))
def test_a_recorded_episode_is_the_one_that_is_played(player: str) -> None:
    engine = begun(11, 4)
    recorded(engine, player)
    assert engine.episodes[0] == play(11, player, split="validation", n=1, first=4)[0]


@pytest.mark.parametrize("level", LEVELS)
def test_the_double_comes_to_the_kernels_state(level: int) -> None:
    """Every table of the Pit and counters of the world, after each step: more than the fields that are checked at run time."""
    engine = begun(level, 7)
    double, choose, block, ended = Double(engine), chooser(PLAYERS["random"], 0), engine.block, False
    tables = {"task_at": state.TASK, "model_at": state.MODEL, "copy_at": state.COPY, "call_at": state.CALL}
    counts = {"task_at": "n_tasks", "model_at": "n_models", "copy_at": "n_copies", "call_at": "n_calls"}
    while not ended:
        double.state()
        action = choose(engine)
        double.follow(action)
        ended = bool(engine.step_one(action))
        for table, dtype in tables.items():
            count = int(block.hot(engine.memory[0])[counts[table]][0])
            ours, theirs = (block.rows(memory, table, dtype, count).copy() for memory in (double.memory, engine.memory[0]))
            for cache in CACHES.get(table, []):
                ours[cache] = theirs[cache]
            np.testing.assert_array_equal(ours, theirs)
        for name in ("n_due", "load_count", "calls", "cold_starts", "wrong_calls", "have"):
            assert block.hidden(double.memory)[name] == block.hidden(engine.memory[0])[name]
        double.catch_up()


@pytest.mark.parametrize(
    ("keep_alive", "system"),
    [
        (3.0, {}),
        (None, {"time_out": 1.2}),
        (None, {"verbs": ["lite", "standard", "premium", "queue", "hold"]}),
        (None, {"prewarm": True, "rebalance": True, "fallback": True}),
    ],
)
def test_what_timers_and_the_automatic_layers_do_is_told_once(keep_alive: float | None, system: dict[str, Any]) -> None:
    """Unloads, time-outs, queues and loads ahead of calls happen between decisions, some of them at no event."""
    data = load_level(11).model_dump()
    data["system"] |= system
    for model in data["system"]["models"].values():
        model["keep_alive_seconds"] = keep_alive
    engine = Engine(Level.model_validate(data), 1, autoreset="disabled")
    for instance in range(3):
        engine.reset(split="validation", instances=instance)
        rows = recorded(engine)
        calls = [(o["kind"], o["call"]) for row in rows for o in row["operations"] if o["call"] is not None]
        assert len(calls) == len(set(calls))
        assert sum(kind == "start" for kind, _ in calls) == engine.episodes["calls"][0]
        ahead = sum(rows[0]["before"][name] for name in ("loading", "warm", "active"))  # loads before the first decision
        assert ahead + sum(row["loads"] for row in rows) == engine.episodes["loads"][0]


def test_busy_places_are_what_calls_take() -> None:
    """Level 1 has no models: each call takes its places from its start to its end, and every end is an event."""
    rows = recorded(begun(1), "critical_path")
    calls = [o for row in rows for o in row["operations"]]
    assert sum(row["events"] for row in rows) == len(calls) > 0
    assert len({row["before"]["busy"][0] for row in rows}) == 1  # one call at a time, and decisions between them
    assert sum(row["busy_place_seconds"][0] for row in rows) == pytest.approx(rows[-1]["after"]["time_s"])


def test_the_context_is_the_pits_whatever_the_player_sees() -> None:
    hidden, full = (recorded(begun(11, exposure=exposure), "critical_path") for exposure in ("hidden", "full"))
    own = {"exposure", "observation"}
    assert [{k: v for k, v in row.items() if k not in own and k != "mask"} for row in hidden] == [
        {k: v for k, v in row.items() if k not in own and k != "mask"} for row in full
    ]
    assert [row["mask"].tolist() for row in hidden] == [row["mask"].tolist() for row in full]
    assert any((a["observation"] != b["observation"]).any() for a, b in zip(hidden, full, strict=True))


@pytest.mark.parametrize("exposure", ["hidden", "partial", "full"])
def test_the_observation_is_what_the_player_saw(exposure: str) -> None:
    engine, seen = begun(11, exposure=exposure), []
    choose = chooser(PLAYERS["random"], 0)

    def watched(engine: Engine) -> int:
        seen.append((engine.obs[0].copy(), engine.masks[0].copy()))
        return choose(engine)

    rows = list(record_episode(engine, watched, player="random", by="random"))
    for row, (observation, mask) in zip(rows, seen, strict=True):
        np.testing.assert_array_equal(row["observation"], observation)
        np.testing.assert_array_equal(row["mask"], mask)
        assert row["exposure"] == exposure


def test_an_illegal_action_is_told_as_it_was_chosen() -> None:
    engine = begun(11)
    first = next(record_episode(engine, lambda engine: 127, player="wrong", by="random"))
    assert (first["action"], first["legal"], first["outcome"], first["slot"]) == (127, False, "blocked", None)
    assert first["after"]["warnings"] == 1


def test_a_double_that_errs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = begun(11)
    monkeypatch.setattr(Double, "follow", lambda self, action: self.act(127))
    with pytest.raises(RuntimeError, match="the recorder and the kernel differ in"):
        recorded(engine)


@pytest.mark.parametrize(("n", "autoreset"), [(2, "disabled"), (1, "same_step")])
def test_other_engines_are_refused(n: int, autoreset: str) -> None:
    engine = Engine(1, n, autoreset=autoreset)
    engine.reset()
    with pytest.raises(FQError, match="n = 1 and autoreset = 'disabled'"):
        next(record_episode(engine, chooser(PLAYERS["random"], 0), player="random", by="random"))
