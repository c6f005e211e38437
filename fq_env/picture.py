"""One environment as a picture, from `Engine.pit_view`: tasks as tiles coloured by state, pools with places and copies.

It reads the view and nothing else; Matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fq_env.render import clock_line, score_line

SIZE, DPI = (8.0, 4.5), 80  # inches, dots per inch: 640 x 360 pixels
TASK_COLOURS = {
    "blocked": "#d9d9d9",
    "ready": "#ffd166",
    "running": "#4dabf7",
    "done": "#69db7c",
    "given up": "#868e96",
}
COPY_COLOURS = {"loading": "#ffa94d", "warm": "#ffe3e3", "active": "#ff6b6b", "cooldown": "#dee2e6"}


def render_picture(view: dict[str, Any]) -> np.ndarray:
    """The state of one environment as a picture, uint8 (360, 640, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(SIZE, DPI)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.02, 0.95, clock_line(view).removeprefix("clock").strip(), fontsize=9, weight="bold")
    figure.text(0.02, 0.90, score_line(view).removeprefix("score").strip(), fontsize=8)
    _tasks(figure.add_axes((0.02, 0.10, 0.60, 0.76)), view["tasks"])
    _pools(figure.add_axes((0.65, 0.10, 0.33, 0.76)), view["pools"])
    for k, (state, colour) in enumerate(TASK_COLOURS.items()):
        figure.text(0.02 + 0.12 * k, 0.03, f"■ {state}", color=colour, fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _tasks(axes: Any, tasks: list[dict[str, Any]]) -> None:
    """A tile for each task, in their order; optional ones are smaller, failed attempts are counted."""
    columns = max(3, math.ceil(math.sqrt(len(tasks) * 0.9)))
    rows = max(2, math.ceil(len(tasks) / columns))
    for k, task in enumerate(tasks):
        x, y = k % columns, rows - 1 - k // columns
        margin = 0.05 if task["required"] else 0.2
        colour = TASK_COLOURS[task["state"].replace("_", " ")]
        axes.add_patch(_box(x + margin, y + margin, 1 - 2 * margin, 1 - 2 * margin, colour))
        label = task["function"] + (f"\n{task['attempts']} failed" if task["attempts"] else "")
        axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=max(3.5, min(8.0, 40 / columns)), clip_on=True)
    axes.set_xlim(0, columns)
    axes.set_ylim(0, rows)
    axes.axis("off")


def _pools(axes: Any, pools: list[dict[str, Any]]) -> None:
    """For each pool its places (filled = busy) and the copies that it holds."""
    top = 0.0
    for pool in pools:
        axes.text(0, top - 0.2, f"{pool['name']}: {pool['busy']} of {pool['places']} places", fontsize=9, va="top")
        width = min(1.0, 8 / pool["places"])
        for k in range(pool["places"]):
            axes.add_patch(_box(k * width, top - 1.5, 0.85 * width, 0.7, "#4dabf7" if k < pool["busy"] else "#f1f3f5"))
        top -= 1.9
        for copy in pool["copies"]:
            axes.add_patch(_box(0, top - 0.6, 5, 0.55, COPY_COLOURS.get(copy["state"], "#ffffff")))
            axes.text(0.15, top - 0.33, f"{copy['model']} {copy['state']}", fontsize=8, va="center")
            top -= 0.7
        top -= 0.4
    axes.set_xlim(0, 8)
    axes.set_ylim(min(top, -8), 0)
    axes.axis("off")


def _box(x: float, y: float, width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, edgecolor="#495057", linewidth=0.6)
