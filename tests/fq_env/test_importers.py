"""Recorded workflows become levels: tasks, edges and run times as they stand in the file, mistakes in one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fq_env
from fq_env.engine import Engine
from fq_env.env import FunctionQuestEnv
from fq_env.errors import FQError
from fq_env.importers import wfformat
from fq_env.level import load_level, recorded_level
from fq_env.play import Game
from fq_env.players import play
from fq_env.vector import FunctionQuestVectorEnv
from tests.fq_env.workflow_levels import edges, graph
from tests.fq_env.workflow_levels import wfformat as recording

# The second task's number is that of the last in order: the file is not in topological order.
SECONDS = [4.0, 2.0, 0.0, 3.5, 1.25]
PARENTS = [[], [3, 2], [0], [0], [0]]


def write(folder: Path, data: Any, name: str = "recorded.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_tasks_edges_and_run_times_are_those_of_the_file(tmp_path, version):
    data = recording(SECONDS, PARENTS)
    data["schemaVersion"] = version
    data["workflow"]["specification"]["metrics"] = {"taskCount": 5}
    level = load_level(write(tmp_path, data))
    assert list(level.system.functions) == ["split", "work"] and level.name == "small_recorded" and level.number == 0
    assert level.max_tasks == 5 and level.max_edges == 5
    engine = Engine(level, 1, autoreset="disabled")
    engine.reset(split="validation")
    nodes = graph(engine)
    assert [node.hint for node in nodes] == [4e6, 10, 3.5e6, 1.25e6, 2e6]  # no run time counts as 10 us
    assert edges(nodes) == {(0, 1), (0, 2), (0, 3), (1, 4), (2, 4)}
    episode = play(level, "critical_path", split="validation", n=1)[0]
    assert episode["makespan"] == pytest.approx(9.5, abs=1e-5) and episode["lb"] == pytest.approx(9.5, abs=1e-5)


def test_hints_and_true_times_are_exact_to_the_microsecond(tmp_path):
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.001, 100, 300).round(6)
    level = load_level(write(tmp_path, recording(seconds.tolist(), [[]] * 300, [f"f{i % 7}_{i}" for i in range(300)])))
    engine = Engine(level, 1, autoreset="disabled")
    engine.reset(split="validation")
    assert [node.hint for node in graph(engine)] == (seconds * 1e6).round().tolist()
    alone = recorded_level(tmp_path / "recorded.json", workers=1)
    assert play(alone, "fifo", split="validation", n=1)["makespan"][0] == pytest.approx(seconds.sum(), abs=1e-9)


def test_known_durations_are_the_same_in_every_instance_and_estimated_ones_only_seem_different(tmp_path):
    path = write(tmp_path, recording([3.0] + [float(x) for x in range(1, 25)], [[], *[[0]] * 24]))
    known = Engine(recorded_level(path, workers=2), 8, autoreset="disabled")
    estimated = Engine(recorded_level(path, "estimated", 2), 8, autoreset="disabled")
    for engine, told in ((known, True), (estimated, False)):
        engine.reset(split="validation")
        assert all((node.hint > 0) == told for i in range(8) for node in graph(engine, i))
    assert (known.obs == known.obs[0]).all() and not (estimated.obs == estimated.obs[0]).all()
    bounds = [play(e.levels[0], "critical_path", split="validation", n=8)["lb"] for e in (known, estimated)]
    assert np.allclose(bounds, (3 + 300) / 2, atol=1e-4)  # the truth is that of the file either way
    best = play(recorded_level(path, workers=2), "critical_path", split="validation", n=1)["makespan"][0]
    assert best == pytest.approx(153, abs=1e-3)  # 3 s, then 300 s of work on two places, longest first


def test_a_level_file_names_a_recording_and_says_what_is_different(tmp_path):
    write(tmp_path, recording(SECONDS, PARENTS))
    text = (
        "workflow: {file: recorded.json, durations: estimated, workers: 3}\nexposure: partial\ndraw: {belief_cv: 0.5}\n"
        "system:\n  pools: {gpu: {places: 1}}\n  functions: {work: {standard: {pool: gpu, seconds: 2.5}}}\n"
    )
    level = load_level(write(tmp_path, text, "around.yaml"))
    assert level.exposure == "partial" and level.draw.belief_cv == 0.5
    assert {name: pool.places for name, pool in level.system.pools.items()} == {"workers": 3, "gpu": 1}
    assert level.system.functions["work"].standard.pool == "gpu" and level.system.functions["split"].standard.pool == "workers"
    assert (play(level, "fifo", split="validation", n=4)["status"] == 1).all()
    with pytest.raises(FQError, match="unknown key 'worker'; did you mean 'workers'"):
        load_level(write(tmp_path, "workflow: {file: recorded.json, worker: 3}\n", "wrong.yaml"))


def test_policies_stand_beside_a_recording(tmp_path):
    """In the level file or in one of their own, with a section `system` and without."""
    write(tmp_path, recording(SECONDS, PARENTS))
    (tmp_path / "policies.yaml").write_text("quality_flow: 0.25\n")
    for name, more in (
        ("a.yaml", "policies: {quality_flow: 0.25}\n"),
        ("b.yaml", "policies: policies.yaml\nsystem: {pools: {gpu: {places: 1}}}\n"),
    ):
        level = load_level(write(tmp_path, "workflow: {file: recorded.json, workers: 3}\n" + more, name))
        assert level.system.quality_flow == 0.25 and level.system.pools["workers"].places == 3
        assert ("gpu" in level.system.pools) == (name == "b.yaml")
    twice = "workflow: {file: recorded.json}\npolicies: {quality_flow: 0.25}\nsystem: {quality_flow: 0.5}\n"
    with pytest.raises(FQError, match=r"policies.quality_flow stands in `system`, too"):
        load_level(write(tmp_path, twice, "twice.yaml"))


def test_every_surface_takes_a_recording(tmp_path):
    path = write(tmp_path, recording(SECONDS, PARENTS))
    import gymnasium

    for env in (gymnasium.make(fq_env.env_id(1), level=path), FunctionQuestEnv(str(path))):
        _, info = env.reset(seed=0)
        ended = False
        while not ended:
            _, _, terminated, truncated, info = env.step(np.flatnonzero(info["action_mask"])[0])
            ended = terminated or truncated
        assert info["makespan"] == pytest.approx(9.5, abs=1e-5)
    envs = FunctionQuestVectorEnv(3, path)
    assert envs.reset(seed=0)[0].shape == (3, 512)
    assert Game(str(path), "validation", 0, "full").level.max_tasks == 5


@pytest.mark.parametrize(
    ("name", "program", "function"),
    [
        ("mDiffFit_ID0000012", "mDiffFit", "mDiffFit"),
        ("mDiffFit_ID0000012", "", "mDiffFit"),
        ("map_map_lane_1_ID0000007", "map", "map"),
        ("mapMerge_lane_ID0000007", "map", "mapMerge_lane"),
        ("individuals_merge_00000011", "individuals_merge", "individuals_merge"),
        ("RNASEQ.ALIGN.BWA_MEM", "bwa mem \\", "BWA_MEM"),
        ("RNASEQ:ALIGN (x)", "", "RNASEQ_ALIGN__x_"),
        ("tool.v1.2_3", "", "tool.v1.2"),
        ("_12", "", "_12"),
        (".x" * 60, "", ("_x" + ".x" * 60)[:80]),
    ],
)
def test_a_task_calls_the_function_of_its_name(name, program, function):
    assert wfformat.category(name, program) == function


def at(data: Any, *keys: Any) -> Any:
    for key in keys:
        data = data[key]
    return data


SPEC, RUNS = ("workflow", "specification", "tasks"), ("workflow", "execution", "tasks")


def changed(path: tuple[Any, ...], key: Any, value: Any) -> Callable[[Any], None]:
    return lambda data: at(data, *path).__setitem__(key, value)


MISTAKES: list[tuple[Callable[[Any], Any], str]] = [
    (changed((), "schemaVersion", "1.4"), "schemaVersion = '1.4': Input should be '1.5' or '1.6'"),
    (lambda data: data["workflow"].pop("execution"), "the key 'workflow.execution' is missing"),
    (lambda data: at(data, *RUNS, 2).pop("runtimeInSeconds"), "'workflow.execution.tasks.2.runtimeInSeconds' is missing"),
    (
        changed((*RUNS, 2), "runtimeInSeconds", -3.0),
        "tasks.2.runtimeInSeconds = -3.0: Input should be greater than or equal to 0",
    ),
    (
        changed((*RUNS, 2), "runtimeInSeconds", 1e30),
        "tasks.2.runtimeInSeconds = 1e+30: Input should be less than or equal to 1",
    ),
    (changed((*RUNS, 2), "runtimeInSeconds", float("nan")), "the value NaN is no number of JSON"),
    (changed((*RUNS, 2), "runtimeInSeconds", "3"), "tasks.2.runtimeInSeconds = '3': Input should be a valid number"),
    (changed((*RUNS, 2), "id", "other"), "tasks.2.id 'id_2' is missing in workflow.execution.tasks"),
    (lambda data: at(data, *RUNS).append({"id": "z", "runtimeInSeconds": 1}), "execution.tasks.5.id 'z' is no specified task"),
    (changed((*RUNS, 2), "id", "id_1"), "tasks.2.id 'id_1' stands twice, first in task 1"),
    (changed((*SPEC, 2), "id", "id_1"), "specification.tasks.2.id 'id_1' stands twice, first in task 1"),
    (changed((*SPEC, 1), "parents", ["id_9"]), "tasks.1.parents.0 'id_9' is no task's id"),
    (changed((*SPEC, 2), "parents", ["id_0", "id_0"]), "tasks.2.parents.1 'id_0' stands there twice"),
    (changed((*SPEC, 2), "parents", []), "tasks.0.children names 'id_2', whose `parents` lack 'id_0'; name both or none"),
    (changed((*SPEC, 4), "children", ["id_1"]), "tasks.4.children names 'id_1', whose `parents` lack 'id_4'"),
    (changed(SPEC[:2], "tasks", []), "workflow.specification.tasks: List should have at least 1 item"),
    (changed((*SPEC, 0), "name", ""), "tasks.0.name = '': String should have at least 1 character"),
]


@pytest.mark.parametrize(("change", "told"), MISTAKES)
def test_a_mistake_is_one_sentence_with_file_key_value_and_remedy(tmp_path, change, told):
    data = copy.deepcopy(recording(SECONDS, PARENTS))
    change(data)
    path = write(tmp_path, data)
    with pytest.raises(FQError) as refused:
        load_level(path)
    assert told in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "must hold an object"),
        ('{"name": "x", "name": "y"}', "the key 'name' stands twice in one object"),
        ('{"name": ', "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": ' + "9" * 5000 + "}", "is not valid JSON"),
        ('{"name": 1e999}', "name = inf: Input should be a valid string"),
    ],
)
def test_text_that_is_no_sound_json_is_refused(tmp_path, text, told):
    with pytest.raises(FQError, match=told):
        load_level(write(tmp_path, text))


def test_bytes_and_names_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(FQError, match="it is not UTF-8 text"):
        load_level(tmp_path / "x.json")
    with pytest.raises(FQError, match="cannot be read: No such file"):
        load_level(tmp_path / "absent.json")
    with pytest.raises(FQError, match="nor a WfFormat file"):
        load_level(tmp_path / "x.txt")
    many = recording([1.0] * 130, [[]] * 130, [f"k{i}k_1" for i in range(130)])
    with pytest.raises(FQError, match=r"tasks of 130 different names \(numbers apart\); at most 128"):
        load_level(write(tmp_path, many, "many.json"))


def test_a_cycle_is_named(tmp_path):
    data = recording(SECONDS, [[1], [2], [1], [], []])
    with pytest.raises(FQError, match=r"parents of 'id_0', 'id_1', 'id_2' lead round in a cycle"):
        load_level(write(tmp_path, data))
