"""A workflow in several files: the same as in one, and each mistake is told with the file and the key in which it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from conductor.decision_maker import STRATEGIES
from conductor.errors import ConductorError
from conductor.workflow import load_workflow
from fq_env.level import load_level
from pit.spec import PARTS
from tests.conductor.helpers import MODULE, whole_workflow

EXAMPLES = ("code_forge", "data", "documents")


def write(folder: Path, **change: Any) -> Path:
    """A workflow in four files; `change`: other contents of some."""
    whole = whole_workflow()
    system = {key: value for key, value in whole["system"].items() if key in PARTS}
    policies = {key: value for key, value in whole["system"].items() if key not in PARTS}
    names = {"system": "system.yaml", "policies": "more/policies.yaml", "instruments": "instruments.yaml"}
    files = {"system": system, "policies": policies, "instruments": whole["instruments"], "workflow": {**whole, **names}}
    (folder / "more").mkdir(exist_ok=True)
    (folder / "work.py").write_text(MODULE)
    for name, content in {**files, **change}.items():
        if name == "workflow":
            content = {**files["workflow"], **content}
        (folder / names.get(name, "workflow.yaml")).write_text(yaml.safe_dump(content))
    return folder / "workflow.yaml"


def test_a_workflow_in_files_is_the_same_as_in_one(tmp_path: Path) -> None:
    apart = load_workflow(write(tmp_path))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(whole_workflow()))
    assert apart == load_workflow(tmp_path / "one.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": {"pools": {}}}, "system file {0}/system.yaml with {0}/more/policies.yaml: pools: Dictionary should have"),
        ({"system": ["pools"]}, "system file {0}/system.yaml must hold a mapping of names to values, not list"),
        ({"policies": {"verbs": "all"}}, "system.yaml with {0}/more/policies.yaml: verbs = 'all'"),
        ({"policies": {"fair": True, "pools": {}}}, "{0}/more/policies.yaml: policies.pools belongs to `system`"),
        ({"policies": {"fairr": True}}, "unknown key 'fairr'; did you mean 'fair'?"),
        ({"workflow": {"policies": {"memory": {}}}}, "workflow file {0}/workflow.yaml: policies.memory belongs to `system`"),
        ({"workflow": {"verbs": ["hold"]}}, "'verbs'; known are name, weight, system, tasks, instruments, policies"),
        ({"workflow": {"policy": {}}}, "unknown key 'policy'; did you mean 'policies'?"),
        ({"workflow": {"policies": ["fair"]}}, "policies and system must each hold keys with values"),
        ({"workflow": {"policies": "none.yaml"}}, "policies file {0}/none.yaml cannot be read: No such file"),
        (
            {"workflow": {"system": "/etc/passwd"}},
            "system = '/etc/passwd': a file in the same folder, or beneath it, is needed",
        ),
        ({"workflow": {"instruments": "../x.yaml"}}, "instruments = '../x.yaml': a file in the same folder, or beneath it"),
        ({"workflow": {"instruments": "x\0.yaml"}}, "instruments = 'x\\x00.yaml': a file in the same folder, or beneath it"),
        ({"workflow": {"system": ""}}, "system = '': a file in the same folder"),
    ],
)
def test_a_mistake_is_told_with_its_file(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConductorError) as caught:
        load_workflow(write(tmp_path, **change))
    assert words.format(tmp_path) in str(caught.value)


def test_a_policy_stands_in_one_place(tmp_path: Path) -> None:
    path = write(tmp_path)
    system = yaml.safe_load((tmp_path / "system.yaml").read_text())
    (tmp_path / "system.yaml").write_text(yaml.safe_dump({**system, "money": 1.0}))
    with pytest.raises(ConductorError, match=r"policies\.money stands in `system`, too \(.*system\.yaml\); keep one"):
        load_workflow(path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_level_is_about_the_system_that_really_runs(root: Path, name: str) -> None:
    """And about its tasks, without what only real calls need."""
    folder = root / "examples" / name
    level, workflow = load_level(folder / f"{name}_level.yaml"), load_workflow(folder / "workflow.yaml").spec
    assert level.system == workflow.system and level.workflow is not None and level.workflow.given is not None
    for part in ("pools", "models", "functions"):  # numbered in observations in the order of the file: equal is not enough
        assert list(getattr(level.system, part)) == list(getattr(workflow.system, part))
    bare = [task.model_copy(update={"args": {}}) for task in workflow.tasks]
    assert sorted(level.workflow.given.tasks, key=lambda task: task.id) == sorted(bare, key=lambda task: task.id)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_says_of_itself_is_so(root: Path, name: str) -> None:
    """Its hint of lite variants, and what its README says that `--compare` runs."""
    folder = root / "examples" / name
    level = load_level(folder / f"{name}_level.yaml")
    pairs = [(f.lite, f.standard) for f in level.system.functions.values() if f.lite is not None and f.standard is not None]
    worse = all(lite.seconds < standard.seconds and lite.quality < standard.quality for lite, standard in pairs)
    assert pairs and ("What is quicker is worse" in level.hint) == worse
    line = next(line for line in (folder / "README.md").read_text().splitlines() if "--compare" in line)
    assert line.startswith("python -m conductor run ") and line.count(",") == len(STRATEGIES) - 1
