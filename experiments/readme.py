"""The results in the README: made from stored result files alone, between two markers, never by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments import statistics
from experiments.errors import ExperimentError
from experiments.files import write_text

RESULTS = BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
STUDIES = "<!-- studies:begin -->", "<!-- studies:end -->"
INTRODUCTION = """Held-out instances, the same for everybody. IQM: mean of the middle half of the scores of all seeds. In
brackets 95 % intervals, bootstrap over training seeds and instances; leads are paired differences of means. perf: 0 = random,
1 = the proven optimum or, where none is known, the best player that is not trained. Levels' pages have all players."""


def check_readme(readme: str | None) -> None:
    """Before the work is done: refuses a file without the two markers. Raises ExperimentError."""
    if readme is not None:
        _split(Path(readme))


def check_studies(readme: str | None) -> None:
    """The same for the list of studies. Raises ExperimentError."""
    if readme is not None:
        _split(Path(readme), STUDIES)


def _split(readme: Path, markers: tuple[str, str] = RESULTS) -> tuple[str, str, str]:
    """What stands before, between and behind two markers."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(markers[0])
    between, end, behind = rest.partition(markers[1])
    if not begin or not end:
        raise ExperimentError(f"readme={readme}: needs the lines {markers[0]} and {markers[1]}, between which the results go")
    return before, between, behind


def shown(readme: Path) -> str:
    """What stands between the markers. Raises ExperimentError if they are not there."""
    return _split(readme)[1].strip()


def refresh(readme: Path, folder: Path) -> None:
    """Puts the stored results of `folder` between the markers, atomically. Raises ExperimentError if they are not there."""
    before, _, behind = _split(readme)
    write_text(readme, f"{before}{BEGIN}\n{text_of(folder)}\n{END}{behind}")


def refresh_studies(readme: Path, folder: Path) -> None:
    """Puts what the stored studies of `folder` conclude between their markers. Raises ExperimentError without these."""
    before, _, behind = _split(readme, STUDIES)
    write_text(readme, f"{before}{STUDIES[0]}\n{studies_of(folder, readme.parent)}\n{STUDIES[1]}{behind}")


def studies_of(folder: Path, home: Path) -> str:
    """A paragraph for each stored study of `folder`, with a link from a file in `home` to its page."""
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    if not stored:
        return "No study is stored yet."
    page = os.path.relpath(folder, home)
    return "\n\n".join(
        f"**[{study['name'].replace('_', ' ')}]({page}/{study['name']}.md)**, `{study['command']}`: {study['conclusion']}"
        for study in stored
    )


def text_of(folder: Path) -> str:
    """The text that the stored result files of `folder` give: a row a level."""
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("level-*.json"))]
    if not stored:
        return "No results are stored yet; `python -m experiments.results` makes them."
    lines = [
        INTRODUCTION,
        "",
        "| level | trained, IQM | perf | best rule, IQM | lead over it | proven optimum | probe: rule → trained | CPU s |",
        "|---|---|---|---|---|---|---|---|",
        *(row_of(result) for result in stored),
    ]
    return "\n".join(lines)


def row_of(result: dict[str, Any]) -> str:
    """One level in one row: the trained policies beside the best that was not trained."""
    rows = {row["player"]: row for row in result["rows"]}
    trained = next(row for row in result["rows"] if row["policy"])
    bound = next((row for row in result["rows"] if row["bound"]), None)
    rule = max((row for row in rows.values() if not row["policy"] and not row["bound"]), key=lambda row: row["mean"])
    probe = result["probe"]
    cpu = np.median([training["cpu_seconds"] for training in result["trainings"]])
    page = f"[{result['level']} {result['name']}](levels/pages/level-{result['level']:02d}.md)"
    cells = [
        page, statistics.ranged(trained, "iqm", "iqm_low", "iqm_high", ".3f"), f"{trained['perf']:.3f}",
        f"{rule['player']} {rule['iqm']:.3f}",
        statistics.ranged(rule, "difference", "difference_low", "difference_high", "+.3f"),
        "–" if bound is None else f"{bound['iqm']:.3f}", f"{rule[probe]:.2f} → {trained[probe]:.2f}", f"{cpu:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def section(result: dict[str, Any]) -> str:
    """One level: its table, and what the trainings took."""
    trainings = result["trainings"]
    cpu, wall = ([training[key] for training in trainings] for key in ("cpu_seconds", "seconds"))
    frames = np.median([training["frames"] for training in trainings])
    probe = result["probe"]
    lines = [
        f"**Level {result['level']}, {result['name']}**: {len(trainings)} training seeds, {result['n']:,} instances, "
        f"`{result['command']}`",
        "",
        f"| player | IQM | mean | perf | makespan (s) | {probe.replace('_', ' ')} | lead of the trained policies |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: -row["iqm"]):
        name = f"**{row['player']}**" if row["policy"] else row["player"] + (" (bound)" if row["bound"] else "")
        cells = [name, statistics.ranged(row, "iqm", "iqm_low", "iqm_high", ".3f"), f"{row['mean']:.3f}", f"{row['perf']:.3f}"]
        cells += ["–" if row[key] is None else format(row[key], form) for key, form in (("makespan", ".1f"), (probe, ".2f"))]
        cells.append(
            statistics.ranged(row, "difference", "difference_low", "difference_high", "+.3f") if "against" in row else ""
        )
        lines.append("| " + " | ".join(cells) + " |")
    by_seed = ", ".join(f"{training['test']:.3f}" for training in trainings)
    return "\n".join([
        *lines,
        "",
        f"Mean score by seed: {by_seed}. A training takes {np.median(cpu):.0f} s of CPU [{min(cpu):.0f}..{max(cpu):.0f}], "
        f"{np.median(wall):.0f} s of wall time [{min(wall):.0f}..{max(wall):.0f}], {frames:,.0f} frames (medians).",
    ])  # fmt: skip
