"""The levels' pages: what is committed is what the command makes, and they say what files and results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments import cli, pages
from experiments.errors import ExperimentError
from fq_env.level import Level, load_level
from fq_env.level_files import LEVELS

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = [
    "What it teaches", "The world", "Actions", "Observation", "Score", "Probe", "Known bounds", "Headroom", "How to beat it",
    "Results", "Speed", "Version history",
]  # fmt: skip
AGAIN = "make it again: python -m experiments.pages"


def settings(*words: str) -> pages.PagesConfig:
    return cli.read("pages", pages.PagesConfig, list(words), "")


def empty(number: int) -> str:
    return pages.page(load_level(number), pages.Measured())


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_the_committed_page_is_what_the_command_makes(number: int) -> None:
    file = ROOT / "levels" / "pages" / f"level-{number:02d}.md"
    text = pages.page(load_level(number), pages.measured(ROOT / "results", number))
    assert file.read_text(encoding="utf-8") == text, AGAIN
    assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (file.parent / link).is_file(), f"{link}: {AGAIN}"
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.size == (960, 540)


def test_the_committed_index_is_what_the_command_makes() -> None:
    levels = [load_level(number) for number in sorted(LEVELS)]
    text = pages.index(levels, ROOT / "results")
    assert (ROOT / "levels" / "README.md").read_text(encoding="utf-8") == text, AGAIN
    assert len(re.findall(r"^\| \d+ \|", text, re.M)) == len(levels)


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_every_table_is_whole(number: int) -> None:
    rows = [line for line in empty(number).splitlines() if line.startswith("|")]
    blocks, width = 0, 0
    for before, line in zip(["", *rows], rows, strict=False):
        if set(line) == set("| -"):  # the line below a head
            width, blocks = before.count("|"), blocks + 1
        assert not width or line.count("|") == width or line in heads(rows), line
    assert blocks >= 4


def heads(rows: list[str]) -> list[str]:
    return [rows[k - 1] for k, line in enumerate(rows) if set(line) == set("| -")]


def test_a_page_tells_what_the_level_file_says() -> None:
    text = empty(11)
    assert "| draft | lite | forge | tinder | 9 | 0.85 | 0.8 |" in text
    assert "| `tasks` | 12 to 40 | how many |" in text
    assert "`total = base × (1 + 3·efficiency + 6·optimization) / 10`; stability has no weight here" in text
    assert "| `hold` | slot × 7 + 4 |" in text and "`premium`" not in text.split("## Actions")[1].split("## Observation")[0]
    assert text.count(pages.NOT_MEASURED) == 4  # probe, headroom, results, speed
    hidden = empty(1)
    assert "| unlock_door | find_key |" in hidden and "at most 7 of 16 slots" in hidden and "exposure **hidden**" in hidden


def test_workflows_that_are_given_or_follow_a_blueprint() -> None:
    data = load_level(6).model_dump(exclude_unset=True)
    stages = {"split": {"count": 1}, "read": {"count": "items", "after": {"split": "all"}, "function": "dye"}}
    data["workflow"] |= {"shapes": {"books": 1}, "blueprints": {"books": {"stages": stages}}}
    text = pages.page(Level.model_validate(data), pages.Measured())
    assert "Stages of `books`:" in text
    assert "| split | 1 | drawn | – |" in text and "| read | items | dye | split all |" in text
    tasks = [{"id": "a", "function": "dye", "seconds": 2.0}, {"id": "b", "function": "dye", "seconds": 1.0, "after": ["a"]}]
    data["workflow"] = {"given": {"tasks": tasks, "durations": "estimated"}}
    given = Level.model_validate(data)
    assert "One given workflow of 2 tasks and 1 edges; its durations are estimated." in pages.page(given, pages.Measured())
    assert "| 2 | full |" in pages.index([given], ROOT / "nowhere")


def test_a_page_tells_what_was_measured(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"player": "random", "total": 0.4, "perf": 0.0, "makespan": 200.0},
        {"player": "fifo", "total": 0.5, "perf": 0.5, "makespan": 150.0, "probe": 0.5},
        {"player": "critical_path", "total": 0.55, "perf": 0.75, "makespan": None},
        {"player": "lookahead", "total": 0.6, "perf": 1.0, "makespan": 120.0},
    ]
    (tmp_path / "headroom.json").write_text(
        json.dumps({"levels": [{"level": 11, "headroom": 0.25, "rows": rows}]}), encoding="utf-8"
    )
    (tmp_path / "speed.json").write_text(json.dumps({"levels": [{"level": 11, "steps_per_second": 1.3e6}]}), encoding="utf-8")
    found = pages.measured(tmp_path, 11)
    assert found.result is None and pages.measured(tmp_path, 1) == pages.Measured()
    text = pages.page(load_level(11), found)
    assert "| fifo | 0.500 | 0.500 | 150.0 |" in text and "| critical_path | 0.550 | 0.750 | – |" in text
    assert (
        "leaves 0.25 of perf" in text and "| steps per second | 1.3e+06 |" in text and "`lookahead` is best with 0.600" in text
    )
    assert "cold starts per call; less is better. fifo 0.50." in text
    assert "| 0.25 | – |" in pages.index([load_level(11)], tmp_path)
    stored = json.loads((ROOT / "results" / "level-11.json").read_text(encoding="utf-8"))
    best = max((row for row in stored["rows"] if not row["policy"] and not row["bound"]), key=lambda row: row["mean"])
    text = pages.page(load_level(11), pages.measured(ROOT / "results", 11))
    assert f"`{best['player']}` is best with {best['mean']:.3f}" in text


def test_the_command_writes_pages_pictures_and_the_index(tmp_path: Path) -> None:
    written = pages.pages(settings("levels=1", f"out={tmp_path}", f"results={tmp_path}"))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in written) == [
        "README.md", "pages/level-01.md", "pages/level-01.png",
    ]  # fmt: skip
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with Image.open(tmp_path / "pages" / "level-01.png") as picture:
        assert picture.size == (960, 540) and len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    pages.pages(settings("levels=11", f"out={tmp_path}", f"results={tmp_path}", "pictures=false"))
    assert not (tmp_path / "pages" / "level-11.png").exists()
    with pytest.raises(ExperimentError, match=r"out=.*nowhere: is no folder"):
        pages.pages(settings(f"out={tmp_path}/nowhere"))
