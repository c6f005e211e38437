"""What calls and loads took in runs that really were, beside the figures of the catalogue that policies are trained with.

A catalogue that says 0.1 s where the machine takes 0.9 teaches a policy the wrong choice, and makes decisions *far*. The
journals know better; what they say goes into the system file, and how it varied into the level's `draw`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conductor.errors import ConductorError
from conductor.journal import Row, read_run
from conductor.pit_interface import PitInterface, fold
from pit.layout import N_VARIANTS, VERBS

ENOUGH = 3  # runs, from which on it is said how figures vary between them
SHORT = 0.01  # s: of calls that take less, the conductor's own part is too large to say how they vary
OFF = 1.5  # times the catalogue's figure, or that part of it: what is marked
MATTERS = 0.02  # of the longest mean of all: smaller differences are not marked
UNLIKE = 0.05  # by so much a quality is off
MOST_CV, MOST_FAILURES = 2.0, 0.9  # that a level can draw


@dataclass
class Figure:
    """A variant of a function (`draft.lite`), or a model: what the catalogue says, and what was measured.

    `seconds` has an array for each run in which something ended well; `qualities` are those that functions measured
    themselves, over what their inputs left them; `failed` counts calls that ended in an error.
    """

    name: str
    catalogue: float  # seconds
    quality: float | None = None  # the catalogue's; None: a model
    seconds: list[np.ndarray] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def all(self) -> np.ndarray:
        """All of `seconds`, in one array."""
        return np.concatenate(self.seconds) if self.seconds else np.zeros(0)

    @property
    def ratio(self) -> float:
        """The mean over the catalogue's figure; 1 if nothing was measured or the catalogue says 0."""
        return float(self.all.mean() / self.catalogue) if self.seconds and self.catalogue > 0 else 1.0

    @property
    def is_misjudged(self) -> bool:
        """Whether the catalogue's quality is wrong by more than `UNLIKE`."""
        return bool(self.qualities) and abs(float(np.mean(self.qualities)) - float(self.quality or 0.0)) > UNLIKE


def is_off(figure: Figure, figures: Sequence[Figure]) -> bool:
    """Whether the catalogue is wrong by `OFF` times, and by seconds that matter among these figures."""
    if not figure.seconds or 1 / OFF <= figure.ratio <= OFF:
        return False
    longest = max(float(f.all.mean()) for f in figures if f.seconds)
    return abs(float(figure.all.mean()) - figure.catalogue) > MATTERS * longest


class _Watch:
    """Collects what calls and loads came to while a journal is folded; a variant is told by (function, variant), a model by
    its name alone."""

    def __init__(self) -> None:
        self.seconds: dict[Any, list[float]] = defaultdict(list)
        self.qualities: dict[Any, list[float]] = defaultdict(list)
        self.failed: Counter[Any] = Counter()
        self._calls: dict[int, dict[str, Any]] = {}
        self._fetch: dict[int, int] = {}  # us of each call's time that fetching its inputs takes, as the Pit has it

    def __call__(self, row: Row, view: PitInterface) -> None:
        data = row.data
        if row.kind == "run":
            self.id, self.began, self.system = data["id"], data["began"], view.workflow.system
        elif row.kind == "intent":
            self._calls[data["call"]] = data
            self._fetch.update((int(call["id"]), int(call["fetch"])) for call in view.pit.calls())
        elif row.kind == "event" and data["applied"] and data["kind"] == "loaded":
            model = list(view.workflow.system.models)[int(view.pit.copies()["model"][data["subject"]])]
            self.seconds[model].append(data["elapsed"] / 1e6)
        elif row.kind == "event" and data["applied"] and data["kind"] == "finished" and data["subject"] in self._calls:
            call = self._calls[data["subject"]]
            variant = call["function"], call["variant"]
            if data["error"] != "ok":
                self.failed[variant] += data["error"] != "cancelled"  # by the conductor's own death
                return
            self.seconds[variant].append(max(0, data["elapsed"] - self._fetch.get(data["subject"], 0)) / 1e6)
            if data["quality"] >= 0:
                self.qualities[variant].append(min(1.0, data["quality"] / max(1e-9, _left(view, call["task"]))))


def _left(view: PitInterface, name: str) -> float:
    """What a task's inputs leave of its variant's quality: 1 - a + a mean(inputs), a the quality flow, see `pit/README.md`."""
    flow, ids = view.workflow.system.quality_flow, view.pit.task_ids
    inputs = next(task.inputs for task in view.workflow.tasks if task.id == name)
    known = view.pit.tasks()["quality"]
    return 1.0 - flow + flow * float(np.mean([known[ids.index(x)] for x in inputs])) if inputs else 1.0


@dataclass
class Measured:
    """What some runs of one system measured, in the order of its catalogue, functions first: that of the run begun last."""

    runs: int
    last: str  # the id of that run
    figures: list[Figure]


def measure(places: Sequence[str | os.PathLike[str]]) -> Measured:
    """What these runs measured; one that is named twice counts once.

    Raises:
        ConductorError: a journal is not whole or replays differently, or a run is of another system.
    """
    known: dict[str, _Watch] = {}
    for place in places:
        watch = _Watch()
        fold(read_run(place), watch)
        known[watch.id] = watch
    runs = sorted(known.values(), key=lambda run: (run.began, run.id))
    last = runs[-1]
    system = last.system
    for run in runs:
        if {*run.system.functions, *run.system.models} != {*system.functions, *system.models}:
            raise ConductorError(f"{run.id} is a run of another system than {last.id}; measure the runs of one at a time")

    def figure(name: str, key: Any, catalogue: float, quality: float | None = None) -> Figure:
        seconds = [np.array(run.seconds[key]) for run in runs if key in run.seconds]
        qualities = [x for run in runs for x in run.qualities.get(key, ())]
        return Figure(name, catalogue, quality, seconds, qualities, sum(run.failed[key] for run in runs))

    variants = (
        (f"{function}.{verb}", (function, verb), variant)
        for function, spec in system.functions.items()
        for verb in VERBS[:N_VARIANTS]
        if (variant := getattr(spec, verb)) is not None
    )
    found = [figure(name, key, variant.seconds, variant.quality) for name, key, variant in variants]
    found += [figure(name, name, model.load_seconds) for name, model in system.models.items()]
    return Measured(len(runs), last.id, found)


def draw_of(figures: Sequence[Figure]) -> dict[str, object]:
    """Keys of a level's `draw` under which what was measured is nothing unusual: factors from run to run, the spread within.

    Empty unless something was measured in `ENOUGH` runs.
    """
    if all(len(f.seconds) < ENOUGH for f in figures):
        return {}
    calls = [f for f in figures if f.quality is not None and f.seconds and f.all.mean() >= SHORT]
    loads = [f for f in figures if f.quality is None and f.seconds]
    draw: dict[str, object] = {}
    for key, some in (("seconds", calls), ("load_seconds", loads)):
        between = [float(run.mean() / f.all.mean()) for f in some if len(f.seconds) >= ENOUGH for run in f.seconds]
        if between:
            low, high = np.percentile(between, (5, 95))
            draw[key] = [max(0.01, round(min(1.0, float(low)), 2)), round(max(1.0, float(high)), 2)]
    for key, some in (("noise_cv", calls), ("load_cv", loads)):
        within = [float(run.std(ddof=1) / run.mean()) for f in some for run in f.seconds if len(run) > 1 and run.mean() > 0]
        if len(within) >= ENOUGH:
            low, middle, high = (min(MOST_CV, round(float(x), 2)) for x in np.percentile(within, (5, 50, 95)))
            draw[key] = middle if key == "load_cv" else [low, high]
    ended = sum(len(f.all) for f in figures if f.quality is not None)
    if draw and ended:
        failed = sum(f.failed for f in figures)
        draw["failure_rate"] = min(MOST_FAILURES, round(failed / (failed + ended), 2))
    return draw


def _mark(off: bool) -> str:
    return " !" if off else "  "


def print_figures(measured: Measured, console: Console) -> None:
    """The table, and what to do about it."""
    figures, runs = measured.figures, measured.runs
    title = f"measured in {runs} run{'s' if runs > 1 else ''}; the catalogue is that of {escape(measured.last)}"
    table = Table("what", box=box.SIMPLE_HEAD, title=title)
    for name in ("ended well", "failed", "mean s", "5 to 95 %", "catalogue s", "quality", "catalogue"):
        table.add_column(name, justify="right")
    for figure in figures:
        is_model = figure.quality is None
        seconds = span = quality = ""
        if figure.seconds:
            low, high = np.percentile(figure.all, (5, 95))
            seconds, span = f"{figure.all.mean():.2g}{_mark(is_off(figure, figures))}", f"{low:.2g} to {high:.2g}"
        if figure.qualities:
            quality = f"{np.mean(figure.qualities):.2f}{_mark(figure.is_misjudged)}"
        name, failed, told = (
            (f"load of {figure.name}", "", "") if is_model else (figure.name, str(figure.failed), f"{figure.quality:g}")
        )
        table.add_row(name, str(len(figure.all)), failed, seconds, span, f"{figure.catalogue:g}", quality, told)
    console.print(table)
    said = []
    if any(is_off(figure, figures) or figure.is_misjudged for figure in figures):
        said.append("! is off: what was measured belongs into the system file; then fit and train")
    if any(figure.qualities for figure in figures):
        said.append("quality: what functions told of themselves, over what the qualities of their inputs left (quality_flow)")
    if missing := [figure.name for figure in figures if not figure.seconds]:
        said.append(f"never ended well, so nothing is known of: {', '.join(missing)}")
        said.append("  (parallel starts standard variants only: runs with a bundle start others, too; measure them as well)")
    if draw := draw_of(figures):
        text = ", ".join(f"{key}: {value}" for key, value in draw.items())
        said.append(f"in a level over that system, such a draw shows in training what was seen here\n  draw: {{{text}}}")
    else:
        said.append(f"{ENOUGH} runs or more would also say how much a level should draw")
    console.print("\n".join(said), soft_wrap=True, markup=False, highlight=False)
