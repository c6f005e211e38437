"""Figures of an evaluation as PNG files (performance profiles, intervals), and rendered pictures as GIF or PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import statistics
from experiments.files import write_with

TAUS = np.linspace(0.0, 1.0, 201)  # score thresholds of a profile
BAND_RESAMPLES = 1000  # of a profile's band, which is looked at and not quoted
MIN_FRAME_SECONDS = 0.05  # of an animation: browsers slow down what is faster
LAST_FRAMES = 8  # times that an animation shows its end


def _figure(height: float) -> tuple[Any, Any]:
    """A figure and its axes, without a window and without Matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def draw_profiles(axes: Any, scores: Mapping[str, np.ndarray]) -> None:
    """One step line and one 95 % band per player: the share of its scores (seeds, n) above each of `TAUS`."""

    def profile(values: np.ndarray) -> np.ndarray:
        return statistics.performance_profile(values, TAUS)

    for i, (name, values) in enumerate(scores.items()):
        style = ("-", "--", ":")[i // 10 % 3]  # Matplotlib has ten colours
        (line,) = axes.step(TAUS, profile(values), where="post", lw=1.3, label=name, ls=style)
        low, high = np.clip(statistics.confidence(profile, values, resamples=BAND_RESAMPLES), 0.0, 1.0)
        axes.fill_between(TAUS, low, high, step="post", color=line.get_color(), alpha=0.2, lw=0)
    least = min(float(values.min()) for values in scores.values())
    most = max(float(values.max()) for values in scores.values())
    axes.set(xlabel="score τ", ylabel="share of instances with a score > τ", xlim=(least - 0.01, most + 0.01))


def draw_intervals(axes: Any, table: list[dict[str, Any]]) -> None:
    """Interquartile mean and its 95 % interval of every row of a table (`statistics.compare`), best at the top."""
    rows = sorted(table, key=lambda row: row["iqm"])
    for place, row in enumerate(rows):
        axes.plot((row["iqm_low"], row["iqm_high"]), (place, place), lw=7, alpha=0.4, solid_capstyle="butt", color="C0")
        axes.plot(row["iqm"], place, "|", ms=14, mew=2, color="C0" if row["policy"] else "0.3")
    axes.set_yticks(range(len(rows)), [row["player"] for row in rows])


def profiles(path: Path, scores: Mapping[str, np.ndarray], title: str) -> Path:
    """Performance profiles of players as PNG, from their scores (seeds, n)."""
    figure, axes = _figure(4.5 + 0.2 * len(scores))
    draw_profiles(axes, scores)
    axes.set_title(title)
    figure.legend(fontsize=8, loc="outside lower left")  # long names must not cover the curves
    return write_with(path, lambda temporary: figure.savefig(temporary, format="png"))


def intervals(path: Path, table: list[dict[str, Any]], title: str) -> Path:
    """The intervals of a table's rows as PNG."""
    figure, axes = _figure(1.2 + 0.4 * len(table))
    draw_intervals(axes, table)
    figure.suptitle(title)  # of the figure, whose width does not shrink with long names
    figure.supxlabel("interquartile mean of the score, with 95 % interval")
    return write_with(path, lambda temporary: figure.savefig(temporary, format="png"))


def picture(path: Path, pixels: np.ndarray) -> Path:
    """Pixels, uint8 (height, width, 3), as PNG."""
    from matplotlib.image import imsave

    return write_with(path, lambda temporary: imsave(temporary, pixels))


def animation(path: Path, pictures: Sequence[np.ndarray], seconds: float) -> Path:
    """Pictures, uint8 (height, width, 3) each, as a GIF that shows each for so many seconds and the last for longer."""
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = pictures[0].shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    shown = figure.figimage(pictures[0])
    writer = PillowWriter(fps=1 / max(seconds, MIN_FRAME_SECONDS))  # type: ignore[arg-type]  # its stub says int

    def write(temporary: Path) -> None:
        with writer.saving(figure, str(temporary), 100):
            for pixels in [*pictures, *[pictures[-1]] * LAST_FRAMES]:
                shown.set_data(pixels)
                writer.grab_frame()

    return write_with(path, write)
