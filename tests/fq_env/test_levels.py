"""What holds for every level: golden traces, levels mixed in one vector, bounds of the score, and probes that tell skill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml

from experiments.calibrate import fitted_weights
from experiments.probes import PROBES, probe
from fq_env.engine import Engine
from fq_env.errors import FQError
from fq_env.level import Level, Order, Probe, load_level
from fq_env.level_files import LEVELS
from fq_env.oracle import Search, carry_out
from fq_env.players import calibrated, lookahead, play
from pit.layout import ON, SOLVED
from pit.rules import weights_of
from tests.fq_env.golden import FILE, trace
from tests.fq_env.workflow_levels import level_data, wfformat

ORDERED = [n for n in LEVELS if load_level(n).order is not None]


@pytest.mark.parametrize("level", LEVELS)
def test_a_trace_is_golden(level: int) -> None:
    kept = json.loads(FILE.read_text())[f"level-{level:02d}"]
    assert trace(level) == kept, "what agents see, may do or earn has changed: see tests/fq_env/golden.py"


def test_levels_mix_in_one_vector() -> None:
    numbers = [*LEVELS, *reversed(LEVELS)]
    rows = np.arange(len(numbers))
    mixed = Engine(numbers, len(numbers), exposure="full", autoreset="disabled")
    mixed.reset(split="validation", instances=rows)
    alone = [Engine(number, 1, exposure="full", autoreset="disabled") for number in numbers]
    for i, engine in enumerate(alone):
        engine.reset(split="validation", instances=[i])
    rng = np.random.default_rng(0)
    ended = np.zeros(len(numbers), bool)
    for _ in range(60):
        live = ~ended
        actions = np.where(mixed.masks, rng.random(mixed.masks.shape), -1).argmax(axis=1)
        mixed.step(actions)
        for i in rows[live]:
            alone[i].step(actions[i : i + 1])
            assert mixed.obs[i].tobytes() == alone[i].obs[0].tobytes()
            assert mixed.masks[i].tobytes() == alone[i].masks[0].tobytes()
            assert mixed.rewards[i] == alone[i].rewards[0]
            assert (mixed.terminated[i], mixed.truncated[i]) == (alone[i].terminated[0], alone[i].truncated[0])
        ended |= mixed.terminated | mixed.truncated
    assert ended.any()


@pytest.mark.parametrize("level", LEVELS)
def test_an_instance_does_not_depend_on_what_was_played_before(level: int) -> None:
    used, rng = Engine(level, 1, autoreset="disabled"), np.random.default_rng(level)
    for instance in range(12):
        fresh = Engine(level, 1, autoreset="disabled")
        for engine in (used, fresh):
            engine.reset(split="train", instances=[instance])
        while not (used.terminated[0] or used.truncated[0]):
            actions = np.where(used.masks, rng.random(used.masks.shape), -1).argmax(axis=1)
            for engine in (used, fresh):
                engine.step(actions)
            assert used.obs.tobytes() == fresh.obs.tobytes() and used.rewards[0] == fresh.rewards[0]
        assert used.episodes.tobytes() == fresh.episodes.tobytes()


@pytest.mark.parametrize("exposure", ("hidden", "partial", "full"))
@pytest.mark.parametrize("level", LEVELS)
def test_an_observation_keeps_nothing_of_what_was_in_its_buffer(level: int, exposure: str) -> None:
    """Written over the one before it or into a buffer full of rubbish: the same bits."""
    kept, renewed = (Engine(level, 8, seed=level, exposure=exposure) for _ in range(2))
    rng = np.random.default_rng(level)
    for engine in (kept, renewed):
        engine.reset()
    for _ in range(150):
        renewed.renew_obs()
        renewed.obs.fill(np.nan)
        actions = np.where(kept.masks, rng.random(kept.masks.shape), -1).argmax(axis=1)
        for engine in (kept, renewed):
            engine.step(actions)
        assert kept.obs.tobytes() == renewed.obs.tobytes() and kept.masks.tobytes() == renewed.masks.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_the_score_stays_within_its_bounds(level: int) -> None:
    """No run is quicker than the lower bound or cheaper than the least cost; at the end the potential is the score."""
    still = {"noise_cv": (0.0, 0.0), "load_cv": 0.0, "straggler_rate": (0.0, 0.0), "failure_rate": 0.0}
    chosen = load_level(level)
    calm = chosen.model_copy(update={"draw": chosen.draw.model_copy(update=still)})
    for player in ("random", "critical_path"):
        r = play(calm, player, split="train", n=64)
        done = r["status"] == SOLVED
        assert (r["makespan"] >= r["lb"] * (1 - 1e-5))[done].all()
        assert (r["cost"] >= r["cost_low"] * (1 - 1e-5) - 1e-3)[done].all()
        for part in ("total", "base", "efficiency", "stability", "optimization"):
            assert ((r[part] >= 0) & (r[part] <= 1)).all()
        over = r["status"] != ON
        np.testing.assert_allclose(r["reward_sum"][over], (r["total"] - r["phi0"])[over], atol=1e-9)


@pytest.mark.parametrize("level", ORDERED)
def test_nobody_beats_the_proven_best(level: int) -> None:
    """Random plays of useful calls alone come near the optimum, sometimes reach it, and never pass it."""
    chosen, rng = load_level(level), np.random.default_rng(level)
    engine = Engine(level, 1, autoreset="disabled")
    reached = 0
    for instance in range(6):
        engine.reset(split="train", instances=[instance])
        search = Search(engine, chosen)
        bound, path = search.best()
        carry_out(engine, path)
        best = float(engine.episodes["total"][0])
        assert engine.episodes["status"][0] == SOLVED and abs(best - bound) < 1e-9
        for _ in range(40):
            s = search.start
            while not search.solved(s) and (options := search.children(s)):
                s = options[rng.integers(len(options))]
            if not search.solved(s):
                continue  # what it needed was skipped
            engine.reset(split="train", instances=[instance])
            carry_out(engine, s.path)
            total = float(engine.episodes["total"][0])
            assert abs(total - search.total(s.now, s.spent, s.poor)) < 1e-9 and total <= best + 1e-12
            reached += total > best - 1e-12
    assert reached > 0


def skilled(level: int) -> np.ndarray:
    """Episodes of a player that has the level's skill: the optimum's plan, or the fitted rule."""
    chosen = load_level(level)
    if chosen.order is None:
        table = fitted_weights(chosen)
        assert table is not None, "results/rules is out of date: python -m experiments.calibrate"
        rule = calibrated(weights_of(table))
        stream = chosen.workflow is not None and chosen.workflow.stream is not None
        players = (rule,) if stream else (rule, lookahead(rule))  # looking ahead takes long in streams
        tried = [play(level, player, split="validation", n=128) for player in players]
        return max(tried, key=lambda episodes: float(episodes["total"].mean()))
    engine, found = Engine(level, 1, autoreset="disabled"), []
    for instance in range(64):
        engine.reset(split="validation", instances=[instance])
        carry_out(engine, Search(engine, chosen).best()[1])
        found.append(engine.episodes.copy())
    return np.concatenate(found)


@pytest.mark.parametrize("level", LEVELS)
def test_the_probe_tells_who_has_the_skill(level: int) -> None:
    name = load_level(level).probe
    rule = "sequential" if name == "overlap" else "fifo"
    with_skill, without = probe(name, skilled(level)), probe(name, play(level, rule, split="validation", n=128))
    assert with_skill is not None and without is not None
    better, worse = (with_skill, without) if PROBES[name].better > 0 else (without, with_skill)
    assert better > 1.15 * worse, f"{name}: with the skill {with_skill:.3f}, without it {without:.3f}"


@pytest.mark.parametrize(("name", "right"), [("flow.yaml", "{given: 'flow.yaml'}"), ("flow.json", "{file: 'flow.json'}")])
def test_a_file_in_place_of_a_workflow_is_told_where_it_belongs(tmp_path: Path, name: str, right: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(level_data({}) | {"workflow": name}))
    with pytest.raises(FQError) as caught:
        load_level(path)
    assert f"own.yaml: workflow = {name!r}: a section is needed; for the tasks of a file, {right}" in str(caught.value)


@pytest.mark.parametrize(
    ("needs", "soft", "said"),
    [
        ({"check": ["write"]}, {"write": ["check"]}, "check needs write needs check"),
        ({"send": ["write"]}, {"write": ["check"], "check": ["send"]}, "check needs send needs write needs check"),
        ({"check": ["write"], "write": ["check"]}, {}, "needs: check needs write needs check"),
        ({"check": [["other"], ["write"]]}, {"write": ["other"], "other": ["read"]}, None),
    ],
)
def test_an_order_that_waits_for_itself_is_refused(needs: dict[str, list[str]], soft: dict[str, list[str]], said: str | None):
    data = yaml.safe_load(LEVELS[1].read_text())
    (seconds,) = {json.dumps(x) for x in list(data["system"]["functions"].values())[:1]}
    data["system"]["functions"] = {name: json.loads(seconds) for name in ("read", "write", "check", "send", "other")}
    data["order"] |= {"needs": needs, "soft": soft, "prefers": {}, "spoils": {}, "distractors": [0, 0]}
    data["order"]["goals"] = ["send" if "send" in needs else "check"]
    if said is None:
        assert Level.model_validate({"name": "own", **data}).order is not None
        return
    with pytest.raises(ValueError, match=f"{said}: a circle; remove one of these needs"):
        Level.model_validate({"name": "own", **data})


def test_circles_are_looked_for_once_in_each_function() -> None:
    """Of 40 functions, each waits softly for all before it: as many ways as 2 to the power of 39, and no circle."""
    names = [f"f{i}" for i in range(40)]
    order = Order(
        needs={}, soft={name: names[:i] for i, name in enumerate(names)}, goals=names[-1:], held=0.0, distractors=[0, 0]
    )
    cleared: set[str] = set()
    order.check_circles(names[-1], cleared)
    assert cleared == {*names}


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("draw", "seconds", 1.0, r"draw.seconds = 1.0: a list of two numbers is needed, \[low, high\].* \[1.0, 1.0\]"),
        ("draw", "seconds", [1.0], r"draw.seconds: a list of two numbers"),
        ("draw", "earlier", 3, r"draw.earlier = 3: a list of numbers is needed, .* such as \[0, 3\]"),
        ("workflow", "shapes", ["layered"], r"workflow.shapes: a weight for each shape is needed, .*\{layered: 1\}"),
    ],
)
def test_a_value_of_another_form_is_told_the_right_one(tmp_path: Path, section: str, key: str, value: object, said: str):
    data = yaml.safe_load(LEVELS[11].read_text())
    data[section][key] = value
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(FQError, match=said):
        load_level(tmp_path / "own.yaml")


def test_a_probe_that_nobody_measures_is_refused(tmp_path: Path) -> None:
    assert set(get_args(Probe)) == set(PROBES)
    file = tmp_path / "own.yaml"
    file.write_text(LEVELS[11].read_text().replace("cold_starts_per_call", "cold_start"))
    with pytest.raises(FQError, match=r"own.yaml: probe = 'cold_start': .*'cold_starts_per_call'"):
        load_level(file)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_ends_under_every_exposure(level: int) -> None:
    """Exposure hides columns and changes nothing else: masks, rewards and ends are the same for the same actions."""
    engines = [Engine(level, 2, exposure=e, autoreset="disabled") for e in ("hidden", "partial", "full")]
    for engine in engines:
        engine.reset(split="train", instances=[0, 1])
    rng = np.random.default_rng(0)
    for _ in range(4000):
        first = engines[0]
        actions = np.where(first.masks, rng.random(first.masks.shape), -1).argmax(axis=1)
        for engine in engines:
            engine.step(actions)
            assert engine.masks.tobytes() == first.masks.tobytes() and engine.rewards.tobytes() == first.rewards.tobytes()
        if (first._hots["status"] != ON).all():
            break
    assert all((e._hots["status"] != ON).all() for e in engines)


def test_a_file_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    """And so is each file that it names; as long as all are what they were, the level is the same object."""
    data = level_data({"file": "recorded.json"})
    system, data["system"] = data["system"], "system.yaml"
    tasks = [{"id": "a", "function": "carve", "seconds": 2.0}, {"id": "b", "function": "polish", "after": ["a"]}]
    own, recorded, given = tmp_path / "own.yaml", tmp_path / "recorded.json", tmp_path / "given.yaml"
    (tmp_path / "system.yaml").write_text(yaml.safe_dump(system))
    given.write_text(yaml.safe_dump({"tasks": tasks}))
    own.write_text(yaml.safe_dump(data | {"workflow": {"given": "given.yaml"}}))
    first = load_level(own)
    assert load_level(str(own)) is first
    own.write_text(own.read_text().replace("horizon: 40", "horizon: 50"))
    assert load_level(own).horizon == 50
    (tmp_path / "system.yaml").write_text(yaml.safe_dump(system | {"quality_flow": 0.25}))
    assert load_level(own).system.quality_flow == 0.25
    given.write_text(yaml.safe_dump({"tasks": tasks[:1]}))
    assert load_level(own).max_tasks == 1
    recorded.write_text(json.dumps(wfformat([1.0], [[]])))
    own.write_text(yaml.safe_dump(data | {"workflow": {"file": "recorded.json"}, "system": {}}))
    assert load_level(own).max_tasks == 1 == load_level(recorded).max_tasks
    recorded.write_text(json.dumps(wfformat([1.0, 1.0], [[], [0]])))
    assert load_level(own).max_tasks == 2 == load_level(recorded).max_tasks
    given.unlink()
    own.unlink()
    with pytest.raises(FQError, match=r"own.yaml cannot be read"):
        load_level(own)
