"""Players on recorded workflows: the command's figures are those of plain list schedules, whatever the workflow."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from experiments import recorded as command
from experiments.errors import ExperimentError
from experiments.recorded import geometric, list_schedule, ratio
from fq_env.importers import wfformat
from fq_env.level import recorded_level
from tests.fq_env.workflow_levels import wfformat as recording


def random_recording(seed: int, n: int = 60) -> dict[str, object]:
    """A random graph whose run times are all different, so that no rule has to break a tie."""
    rng = random.Random(seed)
    parents = [sorted(rng.sample(range(i), min(i, rng.randint(0, 3)))) for i in range(n)]
    return recording([rng.uniform(0.5, 20) for _ in range(n)], parents, [f"f{rng.randint(0, 4)}_{i}" for i in range(n)])


def test_a_list_schedule_on_paper():
    # a 4 s; b 1 s; c 3 s after b; d 3 s after b. Two places: rank takes a and b, then c, then d at 4 s, until 7 s.
    tasks = [("f", 4.0, []), ("f", 1.0, []), ("f", 3.0, [1]), ("f", 3.0, [1])]
    bound = 11 / 2
    assert list_schedule(tasks, 2, by_rank=True) * bound == pytest.approx(7)
    assert list_schedule(tasks, 1, by_rank=False) == pytest.approx(1)
    # Rank starts the long chain first, the file's order starts it last.
    tasks = [("f", 2.0, []), ("f", 2.0, []), ("f", 1.0, []), ("f", 5.0, [2])]
    assert list_schedule(tasks, 2, by_rank=True) * 6 == pytest.approx(6)
    assert list_schedule(tasks, 2, by_rank=False) * 6 == pytest.approx(8)


@pytest.mark.parametrize("seed", range(8))
def test_critical_path_in_the_game_is_list_scheduling_by_rank(tmp_path, seed):
    path = tmp_path / "random.json"
    path.write_text(json.dumps(random_recording(seed)))
    for workers in (1, 2, 5):
        plain = list_schedule(wfformat.read(path).tasks, workers, by_rank=True)
        assert ratio(recorded_level(path, workers=workers), "critical_path", 1) == pytest.approx(plain, rel=1e-6)


def test_the_command_prints_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    for seed in range(2):
        (tmp_path / f"w{seed}.json").write_text(json.dumps(random_recording(seed)))
    out = tmp_path / "out" / "figures.json"
    out.parent.mkdir()
    monkeypatch.setattr(sys, "argv", ["recorded", f"folder={tmp_path}", "workers=3", "n=4", f"out={out}"])
    command.main()
    figures = json.loads(out.read_text())
    assert set(figures) == {"known", "estimated"} and set(figures["known"]) == {"w0", "w1"}
    for row in figures["known"].values():
        assert row["critical_path"] == pytest.approx(row["list: rank"], rel=1e-6)
        assert row["tasks"] == 60 and 1 <= row["critical_path"] <= row["random"]
    assert figures["estimated"]["w0"]["critical_path"] != figures["known"]["w0"]["critical_path"]
    mean = geometric([row["random"] for row in figures["known"].values()])
    assert f"**{mean:.3f}**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"folder": "nowhere"}, "folder=nowhere: holds no WfFormat file"),
        ({"workers": 0}, "workers=0: must lie between 1 and 64"),
        ({"players": ["best"]}, "players=.'best'.: must be a list of random"),
        ({"durations": []}, "durations=..: must be a list of known, estimated"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path: Path, change, told):
    (tmp_path / "w.json").write_text(json.dumps(random_recording(0)))
    keys = {"folder": str(tmp_path), "workers": 8, "durations": ["known"], "players": ["fifo"], "n": 1, "out": None}
    with pytest.raises(ExperimentError, match=told):
        command.recorded(command.RecordedConfig(**(keys | change)))
