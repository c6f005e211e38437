"""The README's system of one's own: its files, as printed there, make a game that can be played and a run that is solved."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium

from conductor.orchestrator import begin
from conductor.places import GRACE
from conductor.report import report_run
from conductor.workflow import load_workflow
from fq_env.level import load_level


def test_the_files_of_the_readme(root: Path, tmp_path: Path) -> None:
    found = re.findall(r"```(?:yaml|python)\n# mine/(\S+): .*?\n```", (root / "README.md").read_text(), re.DOTALL)
    blocks = re.findall(r"```(?:yaml|python)\n(# mine/\S+: .*?)\n```", (root / "README.md").read_text(), re.DOTALL)
    assert found == ["system.yaml", "workflow.yaml", "work.py", "mine_level.yaml"]
    for name, block in zip(found, blocks, strict=True):
        (tmp_path / name).write_text(block + "\n")
    level = load_level(tmp_path / "mine_level.yaml")
    assert level.name == "mine_level"
    env = gymnasium.make("FunctionQuest/Level-11-v0", level=level)
    _, info = env.reset(seed=0)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(info["action_mask"].argmax())
        ended = terminated or truncated
    assert info["total"] > 0
    report = report_run(begin(load_workflow(tmp_path / "workflow.yaml"), tmp_path / "runs", strategy="parallel").folder)
    assert report.status == "solved" and report.done == 3 and report.score["base"] > 0.8


def test_the_grace_of_a_call_is_told(root: Path) -> None:
    assert GRACE == 1.0 and "has one second more before its worker is killed" in (
        root / "conductor" / "instruments" / "README.md"
    ).read_text().replace("\n", " ")
