"""Implicit against explicit infrastructure: does an agent that does not manage calls train faster, and decide better?

Two arms play the same instances with `standard` and `wait` alone. In one an action begins a call, in the other each call takes
six stages (`fq_env/README.md`, section 7), and its actions are masked to the stage that is due, which favours it. The explicit
arm is trained twice: with as many frames, and with as many frames as give it the same number of calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments import statistics
from experiments.study.arms import Arm, Trained, train_arms, wanted
from experiments.study.report import Scale, lead, overall, ranged, scale_of, shown, write
from experiments.study.settings import Settings

REACHED = 0.9  # of the perf that the implicit arm has at its best look: the mark that is raced for
EPISODES = 256  # train instances on which the steps of a call are counted
FASTER = 1.2  # times the CPU time from which on the implicit arm counts as faster
IMPLICIT, FRAMES, CALLS, NO_MASK = "implicit", "explicit, same frames", "explicit, same calls", ", no mask"
COLOURS = {IMPLICIT: "C0", FRAMES: "C1", CALLS: "C3"}


class Race(NamedTuple):
    """A level's arms by name, how many explicit steps a plain one is, and what perf is measured by."""

    number: int
    arms: dict[str, Trained]
    ratio: float
    scale: Scale


def steps_per_plain(number: int) -> float:
    """Explicit steps for one plain step: both arms play the same train instances, always the first legal action."""
    from experiments.evaluate import first_legal
    from fq_env.level import explicit_level, plain_level

    plain, explicit = (
        first_legal(level, split="train", n=EPISODES)["steps"].sum() for level in (plain_level(number), explicit_level(number))
    )
    return float(explicit / plain)


def arms_of(settings: Settings, number: int, ratio: float) -> dict[str, Trained]:
    """The arms of one level. Lambda of the explicit ones counts their steps, so that credit reaches as many calls."""
    frames, implicit, explicit = settings.frames, f"plain-{number}", f"explicit-{number}"
    found = {}
    for masked in (True, False) if settings.cfg.unmasked else (True,):
        end, options = ("", ()) if masked else (NO_MASK, ("masks=false",))
        arm = Arm(f"{IMPLICIT}{end}", "an action begins a call", implicit, implicit, frames, options)
        found[arm.name] = base = wanted(settings, number, arm)
        credit = f"gae_lambda={base.configurations[0].gae_lambda ** (1 / ratio):.5f}"
        for name, budget in ((FRAMES, frames), (CALLS, round(ratio * frames))):
            words = f"six stages a call, {budget:,} frames"
            arm = Arm(f"{name}{end}", words, explicit, explicit, budget, (credit, *options))
            found[arm.name] = wanted(settings, number, arm)
    return found


def curve(trained: Trained) -> dict[str, list[float]]:
    """perf at the looks of an arm's trainings: frames, and the mean, least and largest over the seeds."""
    looks = [facts["validation"] for facts in trained.facts()]
    perf = np.array([[look["perf"] for look in seed] for seed in looks])
    return {
        "frames": [look["frames"] for look in looks[0]],
        "perf": perf.mean(axis=0).tolist(),
        "low": perf.min(axis=0).tolist(),
        "high": perf.max(axis=0).tolist(),
    }


def reached(trained: Trained, mark: float, per_call: float) -> list[dict[str, float] | None]:
    """Frames, calls and CPU seconds up to the first look at which each seed's perf is at the mark; None if it never is."""
    found: list[dict[str, float] | None] = []
    for facts in trained.facts():
        frames = next((look["frames"] for look in facts["validation"] if look["perf"] >= mark), None)
        if frames is None:
            found.append(None)
        else:
            seconds = frames / facts["frames"] * facts["cpu_seconds"]
            found.append({"frames": frames, "calls": frames / per_call, "cpu_seconds": seconds})
    return found


def base_of(name: str) -> str:
    """The implicit arm with which an arm is compared."""
    return IMPLICIT + (NO_MASK if name.endswith(NO_MASK) else "")


def judged(settings: Settings, race: Race) -> dict[str, Any]:
    """A level's result: the arms with scores, curves and how soon they reach the mark, and the implicit arm's leads."""
    n = settings.cfg.n
    records = {name: trained.played(n) for name, trained in race.arms.items()}
    totals = {name: statistics.totals(found) for name, found in records.items()}
    arms: dict[str, Any] = {}
    for name, trained in race.arms.items():
        base = base_of(name)
        mark = REACHED * float(np.mean([facts["best"]["perf"] for facts in race.arms[base].facts()]))
        per_call = float(records[name]["steps"].sum() / max(1, records[name]["calls"].sum()))
        arms[name] = trained.account(records[name]) | {
            "steps_per_call": per_call,
            "perf": race.scale.perf(totals[name]),
            "score": statistics.summary(records[name]),
            "curve": curve(trained),
            "mark": mark,
            "reached": reached(trained, mark, per_call),
        }
        if name != base:
            arms[name]["lead"] = lead(totals[base], totals[name], race.scale)
    return {
        "level": race.number,
        "ratio": race.ratio,
        "random": race.scale.random,
        "best": race.scale.best,
        "players": race.scale.players,
        "arms": arms,
    }


def times(levels: list[dict[str, Any]], what: str, end: str) -> np.ndarray:
    """How many times as much of `what` the explicit arm takes to the mark, by level (of medians over seeds); infinite where
    half of its seeds do not get there. Levels where the implicit arm's do not are left out."""

    def median(level: dict[str, Any], name: str) -> float:
        return float(np.median([np.inf if one is None else one[what] for one in level["arms"][name]["reached"]]))

    pairs = [(median(level, f"{CALLS}{end}"), median(level, f"{IMPLICIT}{end}")) for level in levels]
    return np.array([a / b for a, b in pairs if np.isfinite(b)])


def conclude(levels: list[dict[str, Any]], sums: dict[str, dict[str, float]], end: str = "") -> str:
    """What the study says, in words; `end` names the arms with or without a mask."""

    def leads(name: str) -> str:
        signs = [shown(level["arms"][name]["lead"]) for level in levels]
        where = f"surely ahead on {signs.count(1)}, surely behind on {signs.count(-1)} of {len(levels)} levels"
        return f"{ranged(sums[name])} perf on average ({where})"

    race = {what: times(levels, what, end) for what in ("frames", "calls", "cpu_seconds")}
    middle = {what: float(np.median(found)) if len(found) else np.nan for what, found in race.items()}
    late = int(np.isinf(race["frames"]).sum())
    speed = "trains faster" if middle["cpu_seconds"] > FASTER else "is not shown to train faster"
    better = {1: "decides better, too", 0: "is not shown to decide better", -1: "decides worse"}[shown(sums[f"{CALLS}{end}"])]
    ratios = sorted(level["ratio"] for level in levels)
    more = f"{ratios[0]:.1f} to {ratios[-1]:.1f}" if len(ratios) > 1 else f"{ratios[0]:.1f}"
    told = (
        f"Implicit infrastructure {speed}; with as many calls it {better}. With the same frames it leads by "
        f"{leads(f'{FRAMES}{end}')}; with the same calls, for which the explicit arm gets {more} times the frames, by "
        f"{leads(f'{CALLS}{end}')}."
    )
    if np.isfinite(middle["frames"]):
        told += (
            f" To {REACHED:.0%} of what the implicit arm reaches, the explicit one takes {middle['frames']:.1f} × the frames, "
            f"{middle['calls']:.1f} × the calls and {middle['cpu_seconds']:.1f} × the CPU time (median over levels)."
        )
    if late:
        told += f" On {late} of {len(levels)} levels half of its seeds do not get there within their budget."
    return told


COLUMNS = (
    "level", "arm", "frames", "score, mean [95 %]", "perf", "lead of implicit, perf [95 %]", "steps a call",
    "to the mark: frames, CPU s", "CPU s a training",
)  # fmt: skip


def table(levels: list[dict[str, Any]]) -> list[str]:
    """Rows of arms, level by level."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for level in levels:
        for name, arm in level["arms"].items():
            there, all_seeds = [one for one in arm["reached"] if one is not None], len(arm["reached"])
            medians = (f"{np.median([one[key] for one in there]):,.0f}" for key in ("frames", "cpu_seconds") if there)
            mark = ", ".join(medians) or "never"
            mark += f" ({len(there)} of {all_seeds})" if len(there) < all_seeds else ""
            cpu = np.median([training["cpu_seconds"] for training in arm["trainings"]])
            ahead = ranged(arm["lead"]) if "lead" in arm else "–"
            score = statistics.ranged(arm["score"], "mean", "low", "high", ".3f")
            cells = [level["level"], name, f"{arm['frames']:,}", score, f"{arm['perf']:.3f}", ahead]
            cells += [f"{arm['steps_per_call']:.2f}", mark, f"{cpu:.0f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def draw(canvas: Any, levels: list[dict[str, Any]]) -> None:
    """perf at the looks, over frames and over calls: a column for each level; arms without a mask are dashed."""
    from matplotlib.ticker import NullFormatter

    axes = canvas.subplots(2, len(levels), squeeze=False)
    for column, level in enumerate(levels):
        for row, what in enumerate(("frames", "calls")):
            panel = axes[row][column]
            for name, arm in level["arms"].items():
                found, masked, colour = arm["curve"], not name.endswith(NO_MASK), COLOURS[name.removesuffix(NO_MASK)]
                x = np.array(found["frames"]) / (1 if row == 0 else arm["steps_per_call"])
                panel.plot(x, found["perf"], color=colour, lw=1.4, ls="-" if masked else "--", label=name)
                if masked:
                    panel.fill_between(x, found["low"], found["high"], color=colour, alpha=0.15, lw=0)
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.25)
            panel.set_xlabel(what)
            panel.axhline(level["arms"][IMPLICIT]["mark"], color="0.5", ls=":", lw=1)
        axes[0][column].set_title(f"level {level['level']}")
    for row in axes:
        row[0].set_ylabel("perf on validation instances")
    canvas.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)


def text_of(settings: Settings, levels: list[dict[str, Any]]) -> list[str]:
    """The page: how to read figure and table, the table, what is compared."""
    before = f"""The figure: perf at looks at validation instances (mean over seeds, band from the worst to the best, dotted
the mark). The table: {settings.cfg.n:,} test instances, the same for every arm, {settings.seeds} training seeds, the policy
of the best look; intervals over seeds and instances; leads are paired. perf: 0 = random, 1 = the proven optimum or the best
player that is not trained, on the plain level."""
    after = f"""## What is compared

* Both arms know of `standard` and `wait` alone and play the same worlds; what the Pit would begin by itself is off. Levels
  {", ".join(map(str, settings.numbers))}.
* The explicit arm is favoured where there was a choice: stages take no simulated time and cannot fail, only the stage that is
  due is legal, and nothing else is while a call is to be closed. What is left of the old model is six steps a call, and a
  longer way from an action to what follows.
* `no mask`: trained without being told what is legal, so the stages can be done in a wrong order; judged with the mask.
* Hyper-parameters are those of the level for both arms, found for the implicit one; only lambda of the explicit arms is lifted
  so that credit reaches as many calls. `same calls` gets as many times the frames as a plain step has explicit ones.
* The mark is {REACHED:.0%} of the implicit arm's perf at its best looks. It is looked for at looks alone, so what is reached
  before the first one counts as reached there."""
    return [before, "", *table(levels), "", after]


def study(settings: Settings) -> dict[str, Any]:
    """The command: trains, plays, compares, concludes and writes; the result."""
    ratios = {number: steps_per_plain(number) for number in settings.numbers}
    arms = {number: arms_of(settings, number, ratios[number]) for number in settings.numbers}
    train_arms(settings, [trained for found in arms.values() for trained in found.values()])
    races = [Race(k, arms[k], ratios[k], scale_of(f"plain-{k}", settings.cfg.n)) for k in settings.numbers]
    levels = [judged(settings, race) for race in races]
    sums = {}
    for name in levels[0]["arms"]:
        base = base_of(name)
        if name != base:
            both = [[statistics.totals(race.arms[x].played(settings.cfg.n)) for x in (base, name)] for race in races]
            sums[name] = overall([(a, b, race.scale) for (a, b), race in zip(both, races, strict=True)])
    conclusion = conclude(levels, sums)
    if settings.cfg.unmasked:
        conclusion += f" Trained without the mask: {conclude(levels, sums, NO_MASK)}"
    result = {"levels": levels, "overall": sums, "conclusion": conclusion}
    return write(settings, result, text_of(settings, levels), lambda canvas: draw(canvas, levels), 6.5)
