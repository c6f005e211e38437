"""One policy on several levels: looks at all levels in play, and in the end a table, a picture and a report over all of them.

What single levels are judged by (`experiments.evaluate`, `experiments.statistics`) is used level by level; means over levels
are means of perf, because scores of different levels do not compare.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import statistics
from experiments.algorithms import torch_logits
from experiments.config import TrainConfig
from experiments.curriculum import Curriculum, Standing, standing
from experiments.evaluate import CALIBRATED, Logits, Referee, play_policy, table
from experiments.examiner import Look, without_progress
from experiments.files import write_text, write_with

if TYPE_CHECKING:
    from fq_env.level import Level

STORED = Path(__file__).resolve().parent.parent / "results"  # of `experiments.results`: the specialists'
SHOWN = ("random", "fifo", "critical_path", CALIBRATED)  # players with a column of their own


@dataclass
class MixedLook(Look):
    """A look at the levels in play: means over them, and the standing of each by its label."""

    levels: dict[str, Standing] = field(default_factory=dict)

    def brief(self) -> str:
        """Mean perf, and of how many levels."""
        return f"perf {self.perf:.3f}, {len(self.levels)} levels"

    def words(self) -> str:
        """Mean perf, and each level's."""
        each = " ".join(f"{number}:{now.perf:.2f}" for number, now in self.levels.items())
        return f"perf {self.perf:.3f} of {len(self.levels)} levels  {each}"


class MixedExaminer:
    """Looks at the greedy policy on validation instances of each level in play, the same at every look."""

    def __init__(self, cfg: TrainConfig, referees: list[Referee], exposure: str, curriculum: Curriculum) -> None:
        self.cfg, self.referees, self.exposure, self.curriculum = cfg, referees, exposure, curriculum
        self.looks: list[MixedLook] = []
        self._labels = [referee.level.label for referee in referees]
        self._players: list[tuple[np.ndarray, np.ndarray]] = []  # of each level: totals (n,) of random and of the best known

    def prepare(self) -> dict[str, float]:
        """Lets the players play the validation instances; mean scores of the random and of the best player on each level."""
        self._players = []
        means: dict[str, float] = {}
        for referee, label in zip(self.referees, self._labels, strict=True):
            played = referee.players("validation", self.cfg.evaluation.validation)
            totals = {name: np.asarray(rows["total"], np.float64) for name, rows in played.items()}
            best = max((name for name in totals if name != statistics.EXACT), key=lambda name: float(totals[name].mean()))
            best = statistics.EXACT if statistics.EXACT in totals else best
            self._players.append((totals["random"], totals[best]))
            means |= {f"level {label} {name}": float(totals[name].mean()) for name in ("random", best)}
        return means

    def look(self, model: Any) -> tuple[MixedLook, dict[str, float]]:
        """Plays the validation instances with the model as it is now, and tells the curriculum; the look, and what to log."""
        logits, n, found = torch_logits(model), self.cfg.evaluation.validation, {}
        for k in self.curriculum.in_play():
            played = play_policy(logits, self.referees[k].level, split="validation", n=n, exposure=self.exposure)
            found[k] = standing(np.asarray(played["total"], np.float64), *self._players[k])
        frames = int(model.num_timesteps)
        self.curriculum.looked(frames, found)
        total, perf = (float(np.mean([getattr(now, name) for now in found.values()])) for name in ("total", "perf"))
        levels = {self._labels[k]: now for k, now in found.items()}
        self.looks.append(MixedLook(frames, total, perf, levels))
        figures = {f"{self.curriculum.name(k)}/{name}": v for k, now in found.items() for name, v in asdict(now).items()}
        return self.looks[-1], {"total": total, "perf": perf, **figures}

    def memory(self) -> list[dict[str, Any]]:
        """All looks, as JSON."""
        return [asdict(look) for look in self.looks]

    def recall(self, looks: list[dict[str, Any]]) -> None:
        """Puts a `memory()` back and tells the curriculum, for which a look that it remembers itself is nothing new."""
        self.looks = [
            MixedLook(**look | {"levels": {label: Standing(**now) for label, now in look["levels"].items()}}) for look in looks
        ]
        places = {label: k for k, label in enumerate(self._labels)}
        for look in self.looks:
            self.curriculum.looked(look.frames, {places[label]: now for label, now in look.levels.items()})

    @property
    def best(self) -> MixedLook:
        """The look with the highest mean perf among those at most levels, the first of equals; with `mixture.judged` the one
        with the highest score on that level, once it is in play."""
        judged = str(self.cfg.mixture.judged)

        def worth(look: MixedLook) -> tuple[bool, float, float]:
            if judged in look.levels:
                return True, look.levels[judged].total, 0.0
            return False, len(look.levels), look.perf

        return max(self.looks, key=worth)

    def verdict(self) -> str | None:
        """Why the training may stop now, or None."""
        stop, last = self.cfg.stop, self.looks[-1]
        marks = dict(zip(self._labels, (referee.level.pass_mark for referee in self.referees), strict=True))
        if not stop.when_solved or stop.patience is None:
            return None
        if any(n not in last.levels or last.levels[n].perf < mark for n, mark in marks.items()):
            return None
        whole = [look.perf for look in self.looks if len(look.levels) == len(marks)]
        if without_progress(whole, stop.progress) >= stop.patience:
            return f"solved: mean validation perf {last.perf:.3f}, no progress in {stop.patience} looks"
        return None

    # ------------------------------------------------------------------ the end
    @property
    def rule(self) -> None:
        """None: no level's fit serves them all."""
        return None

    @property
    def levels(self) -> list[Level]:
        """The levels, in their order."""
        return [referee.level for referee in self.referees]

    def test(self, logits: Logits) -> list[dict[str, Any]]:
        """The rows of `evaluate.table` of every level, each with its level's label as `level`."""
        n = self.cfg.evaluation.test
        return [
            {"level": label, **row}
            for referee, label in zip(self.referees, self._labels, strict=True)
            for row in table(logits, referee, split="test", n=n, exposure=self.exposure)
        ]

    def score(self, rows: list[dict[str, Any]]) -> float:
        """The mean test perf, or the best look's mean perf."""
        return float(np.mean([row["perf"] for row in rows if row["player"] == statistics.TRAINED] or [self.best.perf]))

    def markdown(self, rows: list[dict[str, Any]]) -> str:
        """A row a level."""
        return markdown(rows, self.levels)

    def publish(
        self,
        folder: Path,
        about: dict[str, Any],
        log: list[dict[str, float]],
        rows: list[dict[str, Any]],
        facts: dict[str, Any],
    ) -> None:
        """`curriculum.png` and `report.md`."""
        save_curve(folder / "curriculum.png", self.looks, self.levels, f"{self.cfg.curriculum}, seed {self.cfg.seed}")
        report(folder, self.cfg, about, rows, facts, self.curriculum)


# --------------------------------------------------------------------------- tables, picture, report
def called(level: Level, between: str = " ") -> str:
    """A level for people: number and name in the suite, else the name of its file."""
    return f"{level.number}{between}{level.name}" if level.of_suite else level.stem


def specialist(level: Level, folder: Path = STORED) -> dict[str, Any] | None:
    """The stored row of the policies that were trained on this level alone; None where there is none."""
    file = folder / f"level-{level.number:02d}.json" if level.of_suite else folder / f"level-{level.stem}.json"
    if not file.is_file():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["name"] != level.name:
        return None
    return next((row for row in stored["rows"] if row["player"] == statistics.TRAINED), None)


def beside_specialists(rows: list[dict[str, Any]], levels: list[Level], folder: Path = STORED) -> list[dict[str, Any]]:
    """Of each level `level`, `perf` of the policy, `specialist` (perf), their `difference`, and `solved`: 1 if the pass mark
    is reached, -1 if only the specialist reaches it, else 0. Levels without stored results have None."""
    found = []
    for level in levels:
        own = next(r for r in rows if r["level"] == level.label and r["player"] == statistics.TRAINED)["perf"]
        stored = specialist(level, folder)
        other = None if stored is None else float(stored["perf"])
        solved = 1 if own >= level.pass_mark else -1 if other is not None and other >= level.pass_mark else 0
        difference = None if other is None else own - other
        found.append({"level": level.label, "perf": own, "specialist": other, "difference": difference, "solved": solved})
    return found


def markdown(rows: list[dict[str, Any]], levels: list[Level]) -> str:
    """A row a level: the policy, players, the best known, the paired lead over it, and the specialist, as Markdown."""
    titles = ["level", "trained, mean score [95 %]", *SHOWN, "best known", "lead over it [95 %]", "perf", "pass mark"]
    titles += ["specialist, perf", "difference"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    compared = beside_specialists(rows, levels)
    for level, beside in zip(levels, compared, strict=True):
        by_name = {row["player"]: row for row in rows if row["level"] == level.label}
        own = by_name.pop(statistics.TRAINED)
        best = by_name.get(statistics.EXACT) or max(by_name.values(), key=lambda row: float(row["mean"]))
        cells = [called(level), statistics.ranged(own, "mean", "low", "high")]
        cells += [f"{by_name[name]['mean']:.4f}" if name in by_name else "–" for name in SHOWN]
        cells += [f"{best['player']} {best['mean']:.4f}"]
        cells += [statistics.ranged(best, "difference", "difference_low", "difference_high", "+.4f")]
        cells += [f"{own['perf']:.3f}{'' if beside['solved'] == 1 else ' (not solved)'}", f"{level.pass_mark:g}"]
        cells += (
            ["–", "–"] if beside["specialist"] is None else [f"{beside['specialist']:.3f}", f"{beside['difference']:+.3f}"]
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", footnote(rows, compared)])


def footnote(rows: list[dict[str, Any]], compared: list[dict[str, Any]]) -> str:
    """What the numbers are, and the mean difference to the specialists."""
    differences = [row["difference"] for row in compared if row["difference"] is not None]
    text = (
        f"{rows[0]['n']:,} instances of each level, the same for every player; intervals over instances. perf: 0 = random, "
        f"1 = best known. Mean perf {np.mean([row['perf'] for row in compared]):.3f}."
    )
    if not differences:
        return text
    lost = [row["level"] for row in compared if row["solved"] == -1]
    return (
        f"{text} Specialists (`experiments.results`, one policy for each level) differ by {np.mean(differences):+.3f} perf on "
        f"average; solved by them and not here: {', '.join(lost) or 'none'}."
    )


def save_curve(path: Path, looks: list[MixedLook], levels: list[Level], title: str) -> None:
    """`curriculum.png`: perf of each level over frames, and the pass marks' range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, level in enumerate(levels):
        label = level.label
        points = [(look.frames, now.perf) for look in looks if (now := look.levels.get(label)) is not None]
        if points:
            style = ("-", "--")[i // 10 % 2]  # Matplotlib has ten colours
            axes.plot(*zip(*points, strict=True), style, lw=1.2, label=called(level))
    axes.axhline(1.0, ls=":", lw=0.9, color="0.4")
    axes.set(xlabel="frames", ylabel="validation perf (0 random, 1 best known)", title=title)
    axes.set_ylim(bottom=max(-0.5, axes.get_ylim()[0]))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png"))


def report(
    folder: Path,
    cfg: TrainConfig,
    about: dict[str, Any],
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    curriculum: Curriculum,
) -> None:
    """`report.md`: what was trained, how it ended, the table, what became of each level, the command that gives it again."""
    levels, best = curriculum.levels, facts["best"]
    scores = markdown(rows, levels) if rows else "Not played (`evaluation.test=0`)."
    stages = "\n".join(f"* level {called(level, ', ')}: {curriculum.words(k)}" for k, level in enumerate(levels))
    resumed = "".join(f"\n* resumed {how}" for how in facts["resumed"])
    rate = facts["frames"] / max(facts["seconds"], 1e-9)
    write_text(
        folder / "report.md",
        f"""# {len(levels)} levels, one policy: {cfg.curriculum}, {cfg.algo}, seed {cfg.seed}

* {facts["frames"]:,} frames in {facts["seconds"]:.1f} s ({rate:,.0f} frames/s, {facts["cpu_seconds"]:.1f} s of CPU)
* {facts["ended"]}
* the policy that is kept: after {best["frames"]:,} frames, at the best look (mean validation perf {best["perf"]:.3f}){resumed}
* exposure {cfg.exposure or about["exposure"]}, judged at {about["exposure"]}; reward {cfg.reward}, network {cfg.network}
* commit {about["git_commit"]}, Python {about["python"]}

## Held-out instances (`test`)

{scores}

![perf of each level](curriculum.png)

## Levels

{stages}

Mastered: the 95 % lower bound of perf on {cfg.evaluation.validation} validation instances was at the pass mark in a look.

## Again

```
{about["command"]}
```
""",
    )
