"""What a sweep leaves when it is done: `report.md`, `best.yaml`, `trials.csv`, `history.png`, `importance.png`."""

from __future__ import annotations

import csv
import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from omegaconf import OmegaConf
from optuna.trial import TrialState

from experiments import statistics
from experiments.files import write_text, write_with
from experiments.sweep.study import DEFAULT, Study
from experiments.sweep.worker import changes, confirmed_in, describe, name_of


@dataclass
class Confirmed:
    """A candidate on fresh seeds and instances: its mean score, and its lead over the configuration as given with half the
    width of that lead's interval (0 for the configuration as given itself)."""

    candidate: int
    score: float
    lead: float = 0.0
    margin: float = 0.0


def margin(leads: np.ndarray, comparisons: int) -> float:
    """Half the width of the 95 % interval of the mean of `leads` (seeds, instances), if so many are looked at together.

    The interval of everything that is averaged over training seeds (`statistics.error`), with Bonferroni's share of the 5 %
    for each of the comparisons.
    """
    return float(statistics.error(statistics.mean, leads).half(0.05 / comparisons))


def confirmed(study: Study) -> list[Confirmed]:
    """The candidates that were trained on every confirmation seed, best first; empty without the configuration as given."""
    done = study.confirmations()
    totals: dict[int, np.ndarray] = {}
    for candidate in study.candidates():
        trials = [done.get((candidate, seed)) for seed in study.confirm_seeds()]
        whole = [t for t in trials if t is not None and t.state == TrialState.COMPLETE]
        if whole and len(whole) == len(trials):
            totals[candidate] = np.stack([np.load(confirmed_in(study.folder, t.number) / "totals.npy") for t in whole])
    if DEFAULT not in totals:
        return []
    found = [Confirmed(DEFAULT, float(totals[DEFAULT].mean()))]
    for candidate, scores in totals.items():
        if candidate != DEFAULT:
            leads = scores - totals[DEFAULT]
            half = margin(leads, len(totals) - 1)
            found.append(Confirmed(candidate, float(scores.mean()), float(leads.mean()), half))
    return sorted(found, key=lambda c: -c.score)


def verdict(study: Study, ranked: list[Confirmed]) -> tuple[int, str]:
    """The candidate to use, and a sentence about how sure that is."""
    if not ranked:
        best = study.best()
        if not best:
            return DEFAULT, "no trial was completed"
        number = DEFAULT if best[0].params == study.default else best[0].number
        return number, f"{name_of(number)} has the best validation score of the search, {best[0].value:.4f}; not confirmed"
    definition, first = study.definition, ranked[0]
    on = f"{definition.confirm} fresh seeds, {definition.instances:,} fresh validation instances"
    if first.candidate == DEFAULT:
        return DEFAULT, f"the configuration as given is confirmed: none of the best trials leads it ({on})"
    interval = f"95 %: {first.lead - first.margin:+.4f} to {first.lead + first.margin:+.4f}; {on}"
    if first.lead > first.margin:
        return (
            first.candidate,
            f"{name_of(first.candidate)} is better than the configuration as given by {first.lead:.4f} ({interval})",
        )
    return first.candidate, (
        f"{name_of(first.candidate)} leads the configuration as given by {first.lead:.4f}, which is within chance ({interval})"
    )


def write_report(study: Study, finished: bool, command: str) -> str:
    """Writes everything, each file atomically; what to say in the end."""
    write_trials(study)
    save_history(study)
    importance = save_importance(study)
    ranked = confirmed(study) if finished else []
    number, sentence = verdict(study, ranked)
    if not finished:
        sentence = f"not finished; so far: {sentence}"
    params = study.candidates().get(number, study.default)
    again = shlex.join(["python", "-m", "experiments.train", "--config-dir", str(study.folder), "--config-name", "best"])
    write_best(study, params, sentence, again)
    rows = "\n".join(
        f"| {name_of(c.candidate)} | {c.score:.4f} | {f'{c.lead:+.4f} ± {c.margin:.4f}' if c.candidate != DEFAULT else '–'} |"
        for c in ranked
    )
    table = f"| candidate | score | lead over the configuration as given [95 %, all together] |\n|---|---|---|\n{rows}\n\n"
    states = [t.state for t in study.finished()]
    base = study.definition.base
    text = f"""# Sweep: level {base["level"]}, {base["total_timesteps"]:,} frames

{sentence[0].upper()}{sentence[1:]}.

{describe(params)}

{table if ranked else ""}{states.count(TrialState.COMPLETE)} trials complete, {states.count(TrialState.PRUNED)} pruned.
The test split was never played.

![history](history.png)
{"![importance](importance.png)" if importance else ""}

## Again

```
{command}
{again}
```
"""
    write_text(study.folder / "report.md", text)
    return f"{sentence}\n{describe(params)}\n\nreport: {study.folder / 'report.md'}\ntrain:  {again}"


def write_best(study: Study, params: dict[str, Any], sentence: str, command: str) -> None:
    """`best.yaml`: a Hydra configuration over that of training, which `train` takes as it is."""
    config = OmegaConf.create({"defaults": ["train", "_self_"]})
    for key, value in changes(study.definition, params).items():
        OmegaConf.update(config, key, value, force_add=True)
    write_text(study.folder / "best.yaml", f"# {sentence}\n# {command}\n{OmegaConf.to_yaml(config)}")


def write_trials(study: Study) -> None:
    """`trials.csv`: one row per trial that was ever begun."""
    keys = list(study.definition.space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "state", "score", "seconds", "retry_of", "refused", *keys])
    for trial in study.search.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        facts = [trial.number, trial.state.name.lower(), trial.value, seconds, attrs.get("retry_of"), attrs.get("refused")]
        writer.writerow([*facts, *(trial.params.get(key) for key in keys)])
    write_text(study.folder / "trials.csv", text.getvalue())


def _figure(path: Path, draw: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    write_with(path, lambda temporary: figure.savefig(temporary, format="png"))


def save_history(study: Study) -> None:
    """`history.png`: every finished trial's score by its number, the best so far, and the configuration as given."""
    finished = [t for t in study.finished() if t.value is not None]

    def draw(axes: Any) -> None:
        for state, marker, label in ((TrialState.COMPLETE, "o", "complete"), (TrialState.PRUNED, "x", "pruned, last look")):
            points = [(t.number, t.value) for t in finished if t.state == state]
            if points:
                axes.plot(*zip(*points, strict=True), marker, ms=4, label=label)
        complete = [t for t in finished if t.state == TrialState.COMPLETE]
        if complete:
            best = np.maximum.accumulate([t.value or 0.0 for t in complete])
            axes.step([t.number for t in complete], best, where="post", lw=1.2, label="best so far")
        for trial in complete:
            if "default" in trial.user_attrs:
                axes.axhline(trial.value, ls="--", lw=0.9, color="0.5", label="the configuration as given")
        axes.set(xlabel="trial", ylabel="validation score", title=f"level {study.definition.base['level']}")
        axes.grid(alpha=0.25)
        if finished:
            axes.legend(fontsize=8, loc="lower right")

    _figure(study.folder / "history.png", draw)


def save_importance(study: Study) -> bool:
    """`importance.png`: how much each key has to do with being among the best quarter of the complete trials.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023). False, and no figure, with fewer than eight complete trials.
    """
    if len(study.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 8:
        return False
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    found = optuna.importance.get_param_importances(study.search, evaluator=evaluator)

    def draw(axes: Any) -> None:
        axes.barh(list(found)[::-1], list(found.values())[::-1])
        axes.set(xlabel="share of the importance (PED-ANOVA, best quarter)", title=f"level {study.definition.base['level']}")
        axes.grid(alpha=0.25, axis="x")

    _figure(study.folder / "importance.png", draw)
    return True
