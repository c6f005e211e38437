"""Sets of tasks hold what a look at all tasks would find, at every decision of random episodes."""

from __future__ import annotations

import numpy as np
import pytest

from fq_env.engine import Engine
from pit import members, state
from pit.layout import BLOCKED, DONE, N_VARIANTS, NEVER, ON, READY, STANDARD, TIER_GONE


def sets_of(engine: Engine, n: int) -> np.ndarray:
    """Which tasks of environment 0 are in each set, bool (sets, n)."""
    words = engine.block.rows(engine.memory[0], "members_at", state.MEMBERS, -(-n // 64))["sets"]
    bits = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, n:].any()
    return bits[:, :n].astype(bool)


def check(engine: Engine, seen: dict[str, int]) -> None:
    memory, block = engine.memory[0], engine.block
    hot = block.hot(memory)[0]
    n = int(hot["n_tasks"])
    tasks, kept = block.rows(memory, "task_at", state.TASK, n), block.rows(memory, "artifact_at", state.ARTIFACT, n)
    functions = int(tasks["function"].max()) + 1
    fresh_for = block.rows(memory, "variant_at", state.VARIANT, N_VARIANTS * functions)["fresh"][STANDARD::N_VARIANTS]
    found, done = sets_of(engine, n), tasks["state"] == DONE
    np.testing.assert_array_equal(found[members.OPTIONAL], (tasks["state"] == BLOCKED) & (tasks["required"] == 0))
    if hot["any_store"]:
        for tier in range(TIER_GONE):
            np.testing.assert_array_equal(found[members.IN_TIER + tier], done & (kept["tier"] == tier))
            seen[f"tier {tier}"] += int(found[members.IN_TIER + tier].sum())
        assert not (done & (kept["tier"] != kept["told"]) & ~found[members.UNTOLD]).any()
    spoils = fresh_for[tasks["function"]]
    ends = np.where(done & (spoils > 0), kept["created"] + spoils, NEVER)
    fresh, stale = found[members.FRESH], found[members.STALE]
    assert not (fresh & stale & (ends > hot["now"])).any() and not ((fresh | stale) & (ends == NEVER)).any()
    links = block.rows(memory, "succ_at", state.LINK, int(tasks["succ_to"].max(initial=0)))["task"]
    wanted = np.array([(tasks["state"][links[t["succ_from"] : t["succ_to"]]] <= READY).any() for t in tasks])
    assert not ((ends < NEVER) & wanted & ~fresh & ~stale).any()  # only what nobody wants may be in neither
    later = ends[(ends < NEVER) & (ends > hot["now"])]
    assert hot["stale_at"] <= later.min(initial=NEVER)
    for name, count in (("optional", found[members.OPTIONAL]), ("fresh", fresh), ("stale", stale)):
        seen[name] += int(count.sum())


@pytest.mark.parametrize(("level", "names"), [(10, "fresh,stale"), (20, "optional,fresh,stale,tier 0,tier 1,tier 2")])
def test_sets_hold_what_all_tasks_say(level: int, names: str) -> None:
    engine, rng = Engine(level, 1, autoreset="disabled"), np.random.default_rng(3)
    seen = dict.fromkeys(("optional", "fresh", "stale", "tier 0", "tier 1", "tier 2"), 0)
    for instance in range(3):
        engine.reset(split="train", instances=[instance])
        while engine._hots["status"][0] == ON and not engine.truncated[0]:
            check(engine, seen)
            engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
    assert all(seen[name] > 5 for name in names.split(",")), seen
