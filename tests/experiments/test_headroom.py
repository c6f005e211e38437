"""The table of what is to be gained, with few instances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import cli, headroom
from experiments.errors import ExperimentError
from experiments.evaluate import Referee
from experiments.headroom import HeadroomConfig
from experiments.readme import AUTO, BEGIN, END, HEADROOM, STUDIES, headroom_text, readme_of, shown
from fq_env.level import load_level


def config(**changes: object) -> HeadroomConfig:
    given = {
        "levels": "1,12", "split": "validation", "n": 16, "lookahead": 6, "rollouts": 2, "fit": 8, "jobs": 2, "fast": False,
        "out": None, "readme": None,
    }  # fmt: skip
    return HeadroomConfig(**(given | changes))  # type: ignore[arg-type]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "headroom.json"
    found = headroom.headroom(config(out=str(out)))
    headroom.headroom(config(levels="1", out=str(out)))
    kept = json.loads(out.read_text())["levels"]
    assert [row["level"] for row in kept] == [1, 12] and kept[1] == found[1]
    by_level = {row["level"]: {r["player"]: r for r in row["rows"]} for row in found}
    assert by_level[1]["exact_best"]["perf"] == 1.0 and "lookahead" not in by_level[1]
    assert {"random", "fifo", "calibrated", "lookahead", "critical_path_warm_wait"} <= set(by_level[12])
    for row in found:
        perfs = [r["perf"] for r in row["rows"]]
        assert max(perfs) == 1.0 and by_level[row["level"]]["random"]["perf"] == 0.0
        assert row["gain"] > 0 and 0 <= row["headroom"] <= 1
    assert by_level[12]["lookahead"]["n"] == 6 and by_level[12]["lookahead"]["over"] == "calibrated"
    assert "| 12 three_voices | lookahead |" in capsys.readouterr().out
    optimum = by_level[1]["exact_best"]  # on all instances, so its mean is no estimate and never above 1
    totals = Referee(load_level(1)).players("validation", 16, names=["exact_best"])["exact_best"]["total"]
    assert optimum["n"] == 16 and optimum["total"] == pytest.approx(totals.mean()) and optimum["total"] <= 1.0


def test_the_table_of_the_readme_is_made_from_what_is_stored(tmp_path: Path) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "headroom.json"
    readme.write_text("before\n" + "\n".join(HEADROOM) + "\nbehind\n")
    found = headroom.headroom(config(levels="12", out=str(out), readme=str(readme)))
    assert shown(readme, HEADROOM) == headroom_text(found) and readme.read_text().startswith("before\n")
    rows = {row["player"]: row["total"] for row in found[0]["rows"]}
    assert f"| 12 three_voices | {rows['random']:.3f} | {rows['fifo']:.3f} |" in readme.read_text()
    readme.write_text("no markers")
    with pytest.raises(ExperimentError, match="headroom:begin"):
        headroom.headroom(config(readme=str(readme)))


def test_another_out_leaves_the_readme_of_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the table is written only where all levels are stored, and where its markers are."""
    monkeypatch.chdir(tmp_path)
    assert cli.default("headroom", "readme") == AUTO and cli.default("headroom", "out") == "results/headroom.json"
    Path("results").mkdir()
    changes = {"levels": "12", "lookahead": 4, "rollouts": 1, "readme": AUTO}
    headroom.headroom(config(**changes, out="results/headroom.json"))  # no README.md is there
    for text in ("no markers", HEADROOM[1] + HEADROOM[0]):
        Path("README.md").write_text(text)
        headroom.headroom(config(**changes, out="results/headroom.json"))
        assert Path("README.md").read_text() == text
    Path("README.md").write_text(ours := "before\n" + "\n".join(HEADROOM) + "\nbehind\n")
    for out in ("x.json", None):
        headroom.headroom(config(**changes, out=out))
        assert Path("README.md").read_text() == ours
    headroom.headroom(config(**changes, out="results/headroom.json"))
    assert "| 12 three_voices |" in shown(Path("README.md"), HEADROOM)


@pytest.mark.parametrize(("command", "marks"), [("results", (BEGIN, END)), ("study", STUDIES)])
def test_so_do_results_and_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, marks: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.default(command, "readme") == AUTO
    own = cli.default(command, "out")
    assert readme_of(AUTO, command, own, marks) is None
    Path("README.md").write_text("\n".join(marks))
    assert readme_of(AUTO, command, own, marks) == "README.md"
    assert readme_of(AUTO, command, str(tmp_path / "o"), marks) is None
    assert readme_of("README.md", command, str(tmp_path / "o"), marks) == "README.md"
    with pytest.raises(ExperimentError, match="needs the lines"):
        readme_of("other.md", command, own, marks)


def test_the_table_of_this_readme_is_the_stored_one() -> None:
    root = Path(__file__).parents[2]
    stored = json.loads((root / "results" / "headroom.json").read_text())["levels"]
    assert shown(root / "README.md", HEADROOM) == headroom_text(stored)


def test_the_table_of_levels_shows_the_same_headroom() -> None:
    root = Path(__file__).parents[2]
    ours, levels = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
        for text in (shown(root / "README.md", HEADROOM), (root / "levels" / "README.md").read_text())
    )
    one = {row[0].split()[0]: row[-1] for row in ours[1:]}
    other = {row[0]: row[levels[0].index("headroom")] for row in levels if row[0].isdigit()}
    assert one.keys() == other.keys()
    assert {n for n in one if one[n] == "–"} == {n for n in other if other[n] == "–"} == {"1", "2", "3", "4", "5"}
    assert all(other[n] == "–" or abs(float(one[n]) - float(other[n])) <= 0.0051 for n in one)


@pytest.mark.parametrize(("changes", "said"), [({"split": "test"}, "split=test"), ({"n": 3}, "n=3"), ({"jobs": 0}, "jobs=0")])
def test_what_makes_no_table_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        headroom.headroom(config(**changes))
