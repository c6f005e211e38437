"""Health: what a Pit finds, what it has done about it, and that nothing of it is noticed where nobody looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pit import layout
from pit.handle import Event, Pit, Signature
from pit.spec import WorkflowSpec

ONE = "f.standard"


def pit_of(tasks: int = 200, pools: int = 1, exposure: str = "full", **system: Any) -> Pit:
    """A chain of calls in each pool; a call that fails is simply made again."""
    names = ["f", *(f"f{p}" for p in range(1, pools))]
    given = {
        "verbs": ["standard", "back_off"],
        "pools": {f"p{p}": {"places": 1} for p in range(pools)},
        "functions": {name: {"standard": {"pool": f"p{p}", "seconds": 1.0}} for p, name in enumerate(names)},
    } | system
    chain = [
        {"id": f"{name}-{i}", "function": name, "after": [f"{name}-{i - 1}"] if i else []}
        for name in names
        for i in range(tasks)
    ]
    pit = Pit(WorkflowSpec.model_validate({"system": given, "tasks": chain}), exposure=exposure)
    pit.apply(Event(layout.ARRIVE, 0))
    return pit


def call(pit: Pit, elapsed: int = 1_000_000, error: int = layout.OK, function: int = 0, quality: float = -1.0) -> None:
    """One call of a function, from its start to its end."""
    while not (mine := [int(c["id"]) for c in pit.calls() if c["function"] == function]):
        pit.act(int(pit.mask()[: layout.WAIT].argmax()))
    pit.advance(pit.now + elapsed)
    pit.apply(Event(layout.FINISHED, mine[0], error, elapsed, quality))


def signature(pit: Pit, name: str) -> Signature:
    return next(s for s in pit.signatures() if s.name == name)


def configures(pit: Pit) -> list[tuple[int, ...]]:
    return [tuple(c) for c in pit.commands() if c.kind == layout.CMD_CONFIGURE]


def test_a_chance_is_learned_from_calls_and_leans_on_the_pool() -> None:
    pit = pit_of()
    assert signature(pit, "p0").chance == 0.03 and pit.observe()[layout.POOL_OFFSET + 5] == np.float32(0.03)
    call(pit)
    call(pit, error=layout.ERR_ERROR)
    pool = signature(pit, "p0")
    assert pool.chance == (0.06 + 1.0) / (2.0 + 1.9) and (pool.in_row, pool.last_error) == (1, "error")
    assert signature(pit, ONE).chance == (4.0 * pool.chance + 1.0) / (4.0 + 1.9)
    assert pit.observe()[layout.POOL_OFFSET + 7] == np.float32(1.0 - pool.chance)


def test_nothing_is_learned_from_a_call_that_its_driver_lost() -> None:
    """It is made again; a failure before it is still the last one."""
    pit = pit_of(max_attempts=2)
    call(pit, error=layout.ERR_THROTTLED)
    known, error = pit.signatures(), [name for name, _ in layout.columns()].index("failure_error")
    expected = pit.observe()[error]
    for _ in range(3):
        call(pit, elapsed=0, error=layout.ERR_CANCELLED)
        assert pit.signatures() == known and pit.observe()[error] == expected
    assert int(pit._hot["pools"]["in_row"][0][0]) == 1, "which sets how long a back-off lasts"
    call(pit)
    assert pit.status == layout.ON and signature(pit, "p0").in_row == 0


def test_slower_calls_are_a_degradation_and_health_shows_them() -> None:
    pit = pit_of(heal=False)
    for _ in range(30):
        call(pit)
    healthy = pit.observe()[layout.POOL_OFFSET + 7]
    calls = 0
    while not signature(pit, ONE).slow:
        call(pit, 1_500_000)
        calls += 1
    found, pool = signature(pit, ONE), signature(pit, "p0")
    assert calls <= 8 and found.pattern == pool.pattern == "degradation" and found.since == pit.now
    assert pit.observe()[layout.POOL_OFFSET + 7] < 0.75 * healthy and 1.3 < found.level < 1.5
    while signature(pit, ONE).slow:
        call(pit)
        calls += 1
    assert calls < 30 and signature(pit, ONE).pattern == "recovery" and signature(pit, "p0").pattern == "recovery"


def test_estimates_follow_a_step_there_and_back() -> None:
    """Without healing thirty calls outweigh ten; with it the estimate is where the calls are at once."""
    ratios = {}
    for heal in (False, True):
        pit = pit_of(heal=heal)
        for _ in range(40):
            call(pit)
        for _ in range(10):
            call(pit, 1_500_000)
        slow = float(pit.variants()["ratio"][1])
        for _ in range(20):
            call(pit)
        ratios[heal] = slow, float(pit.variants()["ratio"][1])
        actions = [h.action for h in pit.healings()]
        assert actions == (["adaptation"] * len(actions) if heal else [])
        assert not heal or all(h.before > 0.4 and h.after is not None and h.after < 0.1 for h in pit.healings())
    assert ratios[False][0] < 1.2 and ratios[True][0] == pytest.approx(1.5, abs=0.02)
    assert ratios[True][1] == pytest.approx(1.0, abs=0.02)


def test_failures_that_rise_are_a_degradation_until_enough_calls_are_clean() -> None:
    pit = pit_of()
    for k in range(60):
        call(pit, error=layout.ERR_ERROR if k % 20 == 10 else layout.OK)
    assert not signature(pit, ONE).failing
    for _ in range(6):
        call(pit, error=layout.ERR_ERROR)
    assert signature(pit, ONE).failing and signature(pit, "p0").pattern == "degradation"
    for k in range(layout.CLEAN_CALLS):
        assert signature(pit, ONE).failing, k
        call(pit)
    assert signature(pit, ONE).pattern == "recovery"


def test_a_changed_api_is_configured_once() -> None:
    pit = pit_of(heal=True)
    call(pit, error=layout.ERR_INVALID)
    assert configures(pit) == [] and signature(pit, ONE).pattern == "none"
    before = pit.observe()[7]
    call(pit, error=layout.ERR_INVALID)
    assert configures(pit) == [(layout.CMD_CONFIGURE, -1, -1, 0, layout.STANDARD, 0, -1, -1)]
    assert signature(pit, ONE).pattern == "api_change" and signature(pit, ONE).mending
    assert before == 0.0 and pit.observe()[7] == 0.5  # delay_standard: one mean call
    bad, ok = layout.ERR_INVALID, layout.OK
    for error in (bad, ok, bad, bad):  # found again: it is under way already
        call(pit, error=error)
    assert configures(pit) == [] and signature(pit, ONE).pattern == "api_change"
    assert pit.apply(Event(layout.CONFIG_CHANGED, 1)) and not pit.apply(Event(layout.CONFIG_CHANGED, 0))  # lite: not usable
    found = signature(pit, ONE)
    assert (found.pattern, found.mending) == ("recovery", False) and pit.observe()[7] == 0.0
    (healing,) = pit.healings()
    assert (healing.action, healing.subject) == ("config_update", ONE) and healing.before > 0.3
    assert healing.ended is not None and healing.after is not None  # the ok in between
    call(pit)
    for _ in range(2):
        call(pit, error=layout.ERR_INVALID)
    assert len(configures(pit)) == 1  # changed again


def test_an_output_that_looks_different_is_a_changed_api_too() -> None:
    pit = pit_of(heal=True)
    assert pit.apply(Event(layout.OUTPUT_CHANGED, 1)) and len(configures(pit)) == 1
    assert pit.apply(Event(layout.OUTPUT_CHANGED, 1)) and configures(pit) == []
    assert not pit.apply(Event(layout.OUTPUT_CHANGED, 2)) and not pit.apply(Event(layout.OUTPUT_CHANGED, -1))
    while pit.decision_due():
        pit.act(1)
    pit = pit_of(heal=False)
    assert pit.apply(Event(layout.OUTPUT_CHANGED, 1)) and configures(pit) == []
    assert signature(pit, ONE).pattern == "api_change"
    call(pit)
    assert signature(pit, ONE).pattern == "recovery"


def test_troubles_of_two_pools_at_once_are_a_resonance() -> None:
    pit = pit_of(pools=2)
    for _ in range(20):
        call(pit)
        call(pit, function=1)
    for function in (0, 1):
        while not signature(pit, f"p{function}").failing:
            call(pit, 100_000, layout.ERR_ERROR, function)
    assert {signature(pit, f"p{p}").pattern for p in (0, 1)} == {"resonance"}
    assert signature(pit, ONE).pattern == "degradation"


def test_back_offs_are_noted_with_what_they_achieved() -> None:
    pit = pit_of(back_off_seconds=5.0)
    call(pit, error=layout.ERR_ERROR)
    pit.act(layout.BACK_OFF)
    (healing,) = pit.healings()
    assert (healing.action, healing.subject, healing.time) == ("back_off", "p0", pit.now)
    pit.advance(pit.now + 5_000_000)
    call(pit)
    (healing,) = pit.healings()
    assert healing.after is not None and healing.after < healing.before and healing.ended == pit.now


def test_the_healing_record_keeps_the_last_ones() -> None:
    pit = pit_of(heal=True)
    for _ in range(layout.HEALINGS + 3):
        pit.apply(Event(layout.OUTPUT_CHANGED, 1))
        pit.apply(Event(layout.CONFIG_CHANGED, 1))
        pit.advance(pit.now + 1)
    times = [healing.time for healing in pit.healings()]
    assert times == list(range(3, layout.HEALINGS + 3)) and len(configures(pit)) == layout.HEALINGS + 3
    call(pit)
    assert all(healing.ended == pit.now for healing in pit.healings()) and pit._hot["open_healings"][0] == 0


def test_coherence_is_what_was_told_over_what_was_expected() -> None:
    pit = pit_of()
    call(pit, quality=0.5)
    assert signature(pit, ONE).coherence == 1.0 - 0.25 * 0.5 == signature(pit, "p0").coherence
    call(pit)
    assert signature(pit, ONE).coherence == 0.875
