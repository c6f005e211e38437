"""The tables in the README: made from stored result files alone, each between two markers, never by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.evaluate import CALIBRATED
from experiments.files import write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
HEADROOM = ("<!-- headroom:begin -->", "<!-- headroom:end -->")
AUTO, README = "auto", "README.md"
LOOKAHEAD = "lookahead"
WIDE, WORSE = 0.05, 0.02  # perf: headroom that counts, and how far behind the rule counts as worse
PLAIN = "plain"  # folder, in that of the results, of those of PPO alone
STUDIES = ("<!-- studies:begin -->", "<!-- studies:end -->")
INTRODUCTION = """Held-out instances, the same for everybody. IQM: mean of the middle half of the scores of all seeds. In
brackets 95 % intervals over training seeds (Student's t) and instances; leads are paired differences of means. perf: 0 =
random, 1 = the proven optimum or, where none is known, the best player that is not trained. The way to lookahead: the lead
over `calibrated` as a share of lookahead's (which draws futures from the true means), from the table of headroom. PPO alone:
perf of `recipe=plain` where the level's own recipe is another. Levels' pages have all players."""


def readme_of(readme: str | None, command: str, out: str | None, marks: tuple[str, str] = (BEGIN, END)) -> str | None:
    """Before the work is done: the file that a command with these `readme=` and `out=` will refresh, if any.

    `auto` is README.md in the current folder, if `out` is the command's own, so that all that is stored is shown, and the
    markers are there. A file that is named must hold them. Raises ExperimentError.
    """
    if readme == AUTO:
        if out is None or Path(out) != Path(cli.default(command, "out")) or not Path(README).is_file():
            return None
        text = Path(README).read_text(encoding="utf-8")
        return README if marks[1] in text.partition(marks[0])[2] else None
    if readme is not None:
        _split(Path(readme), marks)
    return readme


def _split(readme: Path, marks: tuple[str, str]) -> tuple[str, str, str]:
    """What stands before, between and behind the markers."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(marks[0])
    between, end, behind = rest.partition(marks[1])
    if not begin or not end:
        raise ExperimentError(f"readme={readme}: needs the lines {marks[0]} and {marks[1]}, between which the results go")
    return before, between, behind


def shown(readme: Path, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """What stands between the markers. Raises ExperimentError if they are not there."""
    return _split(readme, marks)[1].strip()


def write_between(readme: Path, text: str, marks: tuple[str, str]) -> None:
    """Puts the text between the markers, atomically. Raises ExperimentError if they are not there."""
    before, _, behind = _split(readme, marks)
    write_text(readme, f"{before}{marks[0]}\n{text}\n{marks[1]}{behind}")


def refresh(readme: Path, folder: Path) -> None:
    """Puts the stored results of `folder` between the markers, atomically. Raises ExperimentError if they are not there."""
    write_between(readme, text_of(folder), (BEGIN, END))


def headroom_shown(level: dict[str, Any], form: str = ".3f") -> str:
    """A stored level's headroom; `–` beside a proven optimum of a hidden order, which no rule can know."""
    hard = [row for row in level["rows"] if "lead" in row]
    known = not hard or max(hard, key=lambda row: row["total"])["player"] == LOOKAHEAD
    return format(level["headroom"], form) if known else "–"


def headroom_text(levels: list[dict[str, Any]]) -> str:
    """The table of headroom, a row a level, from the rows that `experiments.headroom` stores."""
    lines = [
        "| level | random | fifo | best rule | lookahead or optimum | instances, futures | headroom, perf |",
        "|---|---|---|---|---|---|---|",
    ]
    for level in levels:
        rows = {row["player"]: row for row in level["rows"]}
        hard = [row for row in level["rows"] if "lead" in row]
        rule = max((row for row in level["rows"] if "lead" not in row), key=lambda row: row["total"])
        best = max(hard, key=lambda row: row["total"])
        seen = f"{best['n']}, {level['rollouts']}" if best["player"] == LOOKAHEAD else f"{best['n']}, –"
        cells = [
            f"{level['level']} {level['name']}", f"{rows['random']['total']:.3f}", f"{rows['fifo']['total']:.3f}",
            f"{rule['player']} {rule['total']:.3f}", f"{best['total']:.3f}", seen,
            headroom_shown(level),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def refresh_studies(readme: Path, folder: Path) -> None:
    """Puts what the stored studies of `folder` conclude between their markers. Raises ExperimentError without these."""
    write_between(readme, studies_of(folder, readme.parent), STUDIES)


def studies_of(folder: Path, home: Path) -> str:
    """A paragraph for each stored study of `folder`, with a link from a file in `home` to its page."""
    stored = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    if not stored:
        return "No study is stored yet."
    page = os.path.relpath(folder, home)
    return "\n\n".join(
        f"**[{stem.replace('_', ' ')}]({page}/{stem}.md)**, `{study['command']}`: {study['conclusion']}"
        for stem, study in stored.items()
    )


def text_of(folder: Path) -> str:
    """The text that the stored result files of `folder` give: a row a level."""
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("level-*.json"))]
    if not stored:
        return "No results are stored yet; `python -m experiments.results` makes them."
    room, plain = headroom_of(folder), plain_of(folder)
    lines = [
        INTRODUCTION,
        "",
        "| level | trained, IQM | perf | PPO alone | best rule, IQM | lead over it | of the way to lookahead | proven optimum "
        "| probe: rule → trained | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row_of(result, room, plain) for result in stored),
        *conclusion(stored, room),
        *unsolved(stored, plain),
    ]
    return "\n".join(lines)


def plain_of(folder: Path) -> dict[int, dict[str, Any]]:
    """Level -> the stored result of PPO alone."""
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / PLAIN).glob("level-*.json"))]
    return {result["level"]: result for result in stored}


def perf_of(result: dict[str, Any]) -> float:
    """perf of the trained policies."""
    return float(next(row["perf"] for row in result["rows"] if row["policy"]))


def unsolved(stored: list[dict[str, Any]], plain: dict[int, dict[str, Any]]) -> list[str]:
    """Which levels PPO alone does not solve (reach the pass mark), and whether the levels' own recipes do; nothing if it was
    not tried."""
    if not plain:
        return []
    missed = [level for level, result in plain.items() if perf_of(result) < result["pass_mark"]]
    solved = {result["level"] for result in stored if perf_of(result) >= result["pass_mark"]}
    rest = [level for level in missed if level not in solved]
    one = next(iter(plain.values()))
    frames, seeds = np.median([training["frames"] for training in one["trainings"]]), len(one["trainings"])
    solving = "their own recipes solve all of them" if len(missed) > 1 else "its own recipe solves it"
    fate = "nor do their own recipes on " + ", ".join(map(str, rest)) if rest else solving
    names = f"level{'s' * (len(missed) > 1)} {', '.join(map(str, missed))}; {fate}" if missed else "no level"
    return [
        "",
        f"PPO alone ({frames:,.0f} frames, {seeds} training seed{'s' * (seeds > 1)}, {one['n']:,} instances) stays below the "
        f"pass mark on {names}.",
    ]


def headroom_of(folder: Path) -> dict[int, dict[str, float]]:
    """Level -> `gap` (score of lookahead minus that of `calibrated`, validation instances) and `headroom` (perf), of levels
    in which lookahead is the best player known, as `experiments.headroom` stored them in `folder`."""
    file = folder / "headroom.json"
    levels = json.loads(file.read_text(encoding="utf-8"))["levels"] if file.is_file() else []
    found = {}
    for level in levels:
        totals = {row["player"]: row["total"] for row in level["rows"]}
        if {LOOKAHEAD, CALIBRATED} <= totals.keys():
            found[level["level"]] = {"gap": totals[LOOKAHEAD] - totals[CALIBRATED], "headroom": level["headroom"]}
    return found


def conclusion(stored: list[dict[str, Any]], room: dict[int, dict[str, float]]) -> list[str]:
    """How the trained policies did against `calibrated` over all levels together; nothing if none has such a rule."""
    rivals = {result["level"]: {row["player"]: row for row in result["rows"]} for result in stored}
    leads = {level: rows[CALIBRATED] for level, rows in rivals.items() if CALIBRATED in rows and room.get(level)}
    wide = {level: row for level, row in leads.items() if room[level]["headroom"] >= WIDE}
    if not wide:
        return []
    p = statistics.holm({level: row["p"] for level, row in wide.items()})
    ahead = [level for level, row in wide.items() if row["difference"] > 0]
    held = [level for level in ahead if p[level] < 0.05]
    unsure = [f"{level} ({p[level]:.2g})" for level in wide if level not in held]
    behind = [level for level, rows in rivals.items() if CALIBRATED in rows and
              rows[CALIBRATED]["perf"] - rows[statistics.TRAINED]["perf"] > WORSE]  # fmt: skip
    rest = f"; not on {', '.join(unsure)} (in brackets the corrected p)" if unsure else ", that is on all of them"
    rest += f"; the largest corrected p of those on which it holds is {max(p[level] for level in held):.2g}" if held else ""
    return [
        "",
        f"On {len(ahead)} of the {len(wide)} levels in which lookahead is at least {WIDE} perf ahead of `calibrated`, the "
        f"trained policies have the higher mean. Together, at 95 % over training seeds and instances (Holm's correction over "
        f"{len(wide)}), the lead holds on {len(held)}: {', '.join(map(str, held)) or 'none'}{rest}. Worse by more than "
        f"{WORSE} perf: {', '.join(map(str, behind)) or 'none'}.",
    ]


def row_of(result: dict[str, Any], room: dict[int, dict[str, float]], plain: dict[int, dict[str, Any]]) -> str:
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
        f"{perf_of(plain[result['level']]):.3f}" if result["level"] in plain else "–", f"{rule['player']} {rule['iqm']:.3f}",
        statistics.ranged(rule, "difference", "difference_low", "difference_high", "+.3f"),
        way_to_lookahead(rows, room.get(result["level"])),
        "–" if bound is None else f"{bound['iqm']:.3f}", f"{rule[probe]:.2f} → {trained[probe]:.2f}", f"{cpu:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def way_to_lookahead(rows: dict[str, dict[str, Any]], room: dict[str, float] | None) -> str:
    """The trained policies' lead over `calibrated` as a share of lookahead's, in words; `–` where it has none."""
    if room is None or room["gap"] <= 0 or CALIBRATED not in rows:
        return "–"
    return f"{rows[CALIBRATED]['difference'] / room['gap']:.0%}"


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
