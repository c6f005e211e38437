"""What studies share when they are written down: perf, sure differences, words for them, files, versions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import statistics
from experiments.files import write_json, write_text, write_with
from experiments.study.arms import command_of
from experiments.study.settings import Settings

LIMIT = 0.0  # a difference counts as shown where its 95 % interval lies on one side of this


class Scale(NamedTuple):
    """What perf is measured by on a level's test instances: mean totals of the random player and of the best known."""

    random: float
    best: float
    players: dict[str, float]

    def perf(self, totals: np.ndarray) -> float:
        """perf of scores (seeds, n)."""
        return statistics.perf(float(totals.mean()), self.random, self.best)


def scale_of(level: str, n: int) -> Scale:
    """The scale of a level; the best known is the proven optimum, or else the best player that is not trained."""
    from experiments.config import any_level
    from experiments.evaluate import Referee

    records = Referee(any_level(level), 256).players("test", n)
    players = {name: float(found["total"].mean()) for name, found in records.items()}
    return Scale(players["random"], players.get(statistics.EXACT, max(players.values())), players)


def lead(a: np.ndarray, b: np.ndarray, scale: Scale) -> dict[str, float]:
    """`statistics.lead` of scores `a` over `b` (seeds, n), and the difference of means in perf."""
    found = statistics.lead(a, b)
    span = scale.best - scale.random
    return found | {f"perf{end}": found[f"difference{end}"] / span if span else 0.0 for end in ("", "_low", "_high")}


def overall(pairs: Sequence[tuple[np.ndarray, np.ndarray, Scale]]) -> dict[str, float]:
    """The mean over levels of how far the first of each pair is ahead in perf, with its 95 % interval."""
    spans = [scale.best - scale.random or 1.0 for *_, scale in pairs]
    scores = [values / span for (a, b, _), span in zip(pairs, spans, strict=True) for values in (a, b)]

    def ahead(*arrays: np.ndarray) -> np.ndarray:
        means = np.stack([statistics.mean(x) for x in arrays])
        answer: np.ndarray = (means[::2] - means[1::2]).mean(axis=0)
        return answer

    low, high = statistics.confidence(ahead, *scores)
    return {"perf": float(ahead(*(s[None] for s in scores))[0]), "perf_low": float(low), "perf_high": float(high)}


def shown(found: Mapping[str, float], key: str = "perf") -> int:
    """1 if the first is surely ahead, -1 if it is surely behind, 0 if no difference is shown."""
    return int(found[f"{key}_low"] > LIMIT) - int(found[f"{key}_high"] < -LIMIT)


def ranged(found: Mapping[str, float], key: str = "perf", form: str = "+.3f") -> str:
    """A difference with its interval."""
    return statistics.ranged(found, key, f"{key}_low", f"{key}_high", form)


def write(
    settings: Settings, result: dict[str, Any], text: Sequence[str], draw: Callable[[Any], None], height: float
) -> dict[str, Any]:
    """Writes STEM.json, STEM.md and STEM.png, and refreshes the README's list of studies; the whole result.

    Args:
        text: lines of Markdown, without title, command and figure.
        draw: draws the figure, whose height in inches is given.
    """
    from experiments import readme
    from experiments.run_folder import git_commit

    cfg, out = settings.cfg, Path(settings.cfg.out)
    whole = {
        "name": cfg.name,
        "command": command_of(settings),
        "seeds": settings.seeds,
        "frames": settings.frames,
        "n": cfg.n,
        "split": "test",
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
    } | result
    out.mkdir(parents=True, exist_ok=True)
    figure(out / f"{settings.stem}.png", draw, height)
    write_json(out / f"{settings.stem}.json", whole)
    title = cfg.name.replace("_", " ")
    lines = [
        f"# Study: {title}",
        "",
        result["conclusion"],
        "",
        f"`{whole['command']}`",
        "",
        f"![{title}]({settings.stem}.png)",
        "",
        *text,
    ]
    write_text(out / f"{settings.stem}.md", "\n".join(lines) + "\n")
    if cfg.readme is not None:
        readme.refresh_studies(Path(cfg.readme), out)
    print("\n".join(lines))
    print(f"\nwritten: {out / settings.stem}.json, .md, .png" + (f"; refreshed: {cfg.readme}" if cfg.readme else ""))
    return whole


def figure(path: Path, draw: Callable[[Any], None], height: float) -> None:
    """A figure of that height (inches) as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, height), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    draw(canvas)
    write_with(path, lambda temporary: canvas.savefig(temporary, format="png"))
