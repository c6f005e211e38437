"""The command that records: what stands in the file is what was played."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from experiments import cli
from experiments import record as command
from experiments.errors import ExperimentError
from experiments.evaluate import WARM_WAIT, Referee, open_bundle, play_method
from fq_env.level import load_level
from pit import record
from tests.experiments.bundles import random_bundle


def settings(*words: str) -> command.RecordConfig:
    return cli.read("record", command.RecordConfig, [*words, "fit=8"], "")


def recorded(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    out = tmp_path / "rows.parquet"
    count = command.record(settings(*words, f"out={out}"))
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    assert len(rows) == count
    return rows


def returns(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Instance -> sum of rewards."""
    sums: dict[int, float] = {}
    for row in rows:
        sums[row["instance"]] = sums.get(row["instance"], 0.0) + row["reward"]
    return sums


@pytest.mark.parametrize("player", ["fifo", "critical_path", WARM_WAIT])
def test_a_rule_is_recorded_as_it_is_evaluated(tmp_path: Path, player: str) -> None:
    rows = recorded(tmp_path, "level=11", f"player={player}", "n=3", "first=5", "split=test")
    expected = Referee(load_level(11), 8).players("test", 3, 5, [player])[player]
    assert returns(rows) == pytest.approx(dict(zip((5, 6, 7), expected["reward_sum"], strict=True)))
    assert {(row["source"], row["level"], row["split"], row["player"], row["by"]) for row in rows} == {
        ("game", "warm_forge", "test", player, "rule")
    }
    assert list(dict.fromkeys(row["run"] for row in rows)) == [f"warm_forge/test/{i}" for i in (5, 6, 7)]


def test_random_is_recorded_the_same_each_time(tmp_path: Path) -> None:
    one, two = (recorded(tmp_path, "level=11", "player=random", "n=2") for _ in range(2))
    assert one == two and {row["by"] for row in one} == {"random"}
    (alone,) = {tuple(row["action"] for row in one if row["instance"] == 1)}
    assert tuple(row["action"] for row in recorded(tmp_path, "level=11", "player=random", "n=1", "first=1")) == alone


def test_a_bundle_is_recorded_as_it_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = random_bundle(tmp_path / "bundle", weights=0, seed=0)
    monkeypatch.setattr(
        sys, "argv", ["record", f"bundle={bundle}", "n=2", "observations=true", f"out={tmp_path / 'rows.parquet'}"]
    )
    command.main()
    table = pq.read_table(tmp_path / "rows.parquet")
    assert f"{table.num_rows} decisions in 2 episodes" in capsys.readouterr().out
    assert table.schema.equals(record.arrow_schema(observations=True), check_metadata=True)
    expected = play_method([open_bundle(bundle)], load_level(1), split="validation", n=2)[0]
    rows = table.to_pylist()
    assert returns(rows) == pytest.approx(dict(enumerate(expected["reward_sum"])))
    assert {row["by"] for row in rows} == {"policy"} and {len(row["observation"]) for row in rows} == {512}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["level=11"], "player=null run=null bundle=null: exactly one plays"),
        (["level=11", "player=fifo", "bundle=b"], "player=fifo bundle=b: exactly one plays"),
        (["level=11", "player=ghost"], "player=ghost: must be one of random"),
        (["player=fifo"], "level=null: no policy names one"),
        (["level=11", "player=fifo", "split=all"], "split=all: must be one of train"),
        (["level=11", "player=fifo", "n=0"], "n=0: must be at least 1"),
        (["level=11", "player=fifo", "first=-1"], "first=-1: must be at least 0"),
        (["level=11", "player=fifo", "out=rows.csv"], "out=rows.csv: a Parquet file is written; name it rows.parquet"),
        (["level=11", "player=fifo", "out=null"], "out=null: name the file to write"),
        (["level=11", "player=fifo", "out=away/rows.parquet"], "out=away/rows.parquet: its folder does not exist"),
        (["run=."], "run=.: is neither a run folder"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError, match=said.replace("(", r"\(")):
        command.record(settings("out=rows.parquet", *words))
    assert not list(tmp_path.iterdir())
