"""What calls and loads took in runs that really were, beside the figures of the catalogue that policies are trained with.

A catalogue that says 0.1 s where the machine takes 0.9 teaches a policy the wrong choice, and makes decisions *far*. The
journals know better; what they say goes into the system file, and how it varied into the level's `draw`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from conductor.journal import Row, read_run
from conductor.pit_interface import PitInterface, fold
from conductor.report import report_run
from pit.layout import VERBS

ENOUGH = 3  # runs, from which on it is said how figures vary between them
SHORT = 0.01  # s: of calls that take less, the conductor's own part is too large to say how they vary
OFF = 1.5  # times the catalogue's figure, or that part of it: what is marked
MATTERS = 0.02  # of the longest mean of all: smaller differences are not marked


@dataclass
class Figure:
    """A variant of a function (`draft.lite`), or a model: what the catalogue says, and what was measured, in seconds.

    `seconds` has an array for each run in which something ended well; `failed` counts calls that ended in an error.
    """

    name: str
    catalogue: float
    is_model: bool = False
    seconds: list[np.ndarray] = field(default_factory=list)
    failed: int = 0

    @property
    def all(self) -> np.ndarray:
        """All of `seconds`, in one array."""
        return np.concatenate(self.seconds) if self.seconds else np.zeros(0)

    @property
    def ratio(self) -> float:
        """The mean over the catalogue's figure; 1 if nothing was measured or the catalogue says 0."""
        return float(self.all.mean() / self.catalogue) if self.seconds and self.catalogue > 0 else 1.0


def is_off(figure: Figure, figures: Sequence[Figure]) -> bool:
    """Whether the catalogue is wrong by `OFF` times, and by seconds that matter among these figures."""
    if not figure.seconds or 1 / OFF <= figure.ratio <= OFF:
        return False
    longest = max(float(f.all.mean()) for f in figures if f.seconds)
    return abs(float(figure.all.mean()) - figure.catalogue) > MATTERS * longest


class _Loads:
    """Collects what loads took while a journal is folded."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.view: PitInterface | None = None

    def __call__(self, row: Row, view: PitInterface) -> None:
        self.view = view
        if row.kind == "event" and row.data["kind"] == "loaded" and row.data["applied"]:
            model = list(view.workflow.system.models)[int(view.pit.copies()["model"][row.data["subject"]])]
            self.seconds[model].append(row.data["elapsed"] / 1e6)


def measure(places: Sequence[str | os.PathLike[str]]) -> list[Figure]:
    """What these runs measured, in the catalogue's order, functions first. The catalogue is the last run's.

    Raises:
        ConductorError: a journal is not whole or replays differently.
    """
    seconds: dict[str, list[np.ndarray]] = defaultdict(list)
    failed: dict[str, int] = defaultdict(int)
    for place in places:
        loads = _Loads()
        system = fold(read_run(place), loads).view.workflow.system
        once: dict[str, list[float]] = defaultdict(list)
        for call in report_run(place).calls:
            name = f"{call.function}.{call.variant}"
            if call.result == "ok":
                once[name].append(call.run)
            failed[name] += call.result not in ("ok", "running", "cancelled")
        for name, values in (*once.items(), *loads.seconds.items()):
            seconds[name].append(np.array(values))
    found = []
    for function, spec in system.functions.items():
        for verb in VERBS[:3]:
            if (variant := getattr(spec, verb)) is not None:
                name = f"{function}.{verb}"
                found.append(Figure(name, variant.seconds, False, seconds[name], failed[name]))
    return found + [Figure(name, m.load_seconds, True, seconds[name]) for name, m in system.models.items()]


def draw_of(figures: Sequence[Figure]) -> dict[str, object]:
    """Keys of a level's `draw` under which what was measured is nothing unusual: factors from run to run, the spread within.

    Empty with fewer than `ENOUGH` runs.
    """
    calls = [f for f in figures if not f.is_model and f.seconds and f.all.mean() >= SHORT]
    loads = [f for f in figures if f.is_model and f.seconds]
    draw: dict[str, object] = {}
    for key, some in (("seconds", calls), ("load_seconds", loads)):
        between = [float(run.mean() / f.all.mean()) for f in some if len(f.seconds) >= ENOUGH for run in f.seconds]
        if between:
            low, high = np.percentile(between, (5, 95))
            draw[key] = [round(min(1.0, float(low)), 2), round(max(1.0, float(high)), 2)]
    for key, some in (("noise_cv", calls), ("load_cv", loads)):
        within = [float(run.std(ddof=1) / run.mean()) for f in some for run in f.seconds if len(run) > 1 and run.mean() > 0]
        if len(within) >= ENOUGH:
            low, middle, high = (round(float(x), 2) for x in np.percentile(within, (25, 50, 75)))
            draw[key] = middle if key == "load_cv" else [low, high]
    ended = sum(len(f.all) for f in figures if not f.is_model)
    if draw and ended:
        failed = sum(f.failed for f in figures)
        draw["failure_rate"] = round(failed / (failed + ended), 2)
    return draw


def print_figures(figures: Sequence[Figure], runs: int, console: Console) -> None:
    """The table, and what to do about it."""
    table = Table("what", box=box.SIMPLE_HEAD, title=f"measured in {runs} run{'s' if runs > 1 else ''}")
    for name in ("ended well", "failed", "mean s", "5 to 95 %", "catalogue s", "mean / catalogue"):
        table.add_column(name, justify="right")
    for figure in figures:
        counts = str(len(figure.all)), "" if figure.is_model else str(figure.failed)
        name = f"load of {figure.name}" if figure.is_model else figure.name
        if not figure.seconds:
            table.add_row(name, *counts, "", "", f"{figure.catalogue:g}", "")
            continue
        low, high = np.percentile(figure.all, (5, 95))
        ratio = f"{figure.ratio:.2f}{' !' if is_off(figure, figures) else '  '}"
        table.add_row(
            name, *counts, f"{figure.all.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{figure.catalogue:g}", ratio
        )  # fmt: skip
    console.print(table)
    if any(is_off(figure, figures) for figure in figures):
        console.print(
            "! is off: put what was measured into the system file (`seconds`, `load_seconds`), then fit and train again",
            soft_wrap=True,
        )
    if draw := draw_of(figures):
        text = ", ".join(f"{key}: {value}" for key, value in draw.items())
        console.print(
            f"a level over that system has seen as much in training if it draws at least\n  draw: {{{text}}}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
    else:
        console.print(f"{ENOUGH} runs or more would also say how much a level should draw", soft_wrap=True)
