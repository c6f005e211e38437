"""Ablations: the recipe with all its parts, and once more without each of them; what each part is worth on each level.

The curriculum is no part of the recipe, which trains one level at a time: there PPO alone on the level is compared with PPO on
the level and its neighbours, with as many frames in all, the same settings, and the best look at that level kept.
"""

from __future__ import annotations

import json
from typing import Any

from experiments import cli, statistics
from experiments.results import composed
from experiments.study.arms import Arm, Trained, train_arms, wanted
from experiments.study.report import Scale, lead, overall, ranged, scale_of, shown, write
from experiments.study.settings import Settings

WHOLE, ALONE, NEIGHBOURS = "whole", "ppo-alone", "curriculum"
SAID = {
    "masks": "the policy learns without being told what is legal; in PPO illegal actions are warned of and become a wait, "
    "in its visits none is played",
    "slots": "network=mlp, two flat towers, instead of one encoder for all slots",
    "hold": "the level lacks the verb `hold`; teacher and verifier have the whole level's rule, and no `hold` in it",
    "history": "features that carry history read 0: attempts, failures, errors of estimates, hints, the last outcome",
    "supervised": "PPO from scratch, with the recipe's settings; nothing is held to",
    "kl": "PPO is not held to the supervised policy",
    "curriculum": "PPO alone on the level; on: PPO on it and its neighbours, staged, with as many frames in all, the level's "
    "own settings, and the best look at this level kept",
}


def neighbours(number: int) -> list[int]:
    """A level with the ones before and after it."""
    from fq_env.level_files import LEVELS

    numbers = sorted(LEVELS)
    at = numbers.index(number)
    return numbers[max(0, at - 1) : at + 2]


def of_level(settings: Settings, number: int) -> tuple[str, ...]:
    """What a level's file sets for PPO alone on it, as overrides: several levels together have other settings of their own."""
    from omegaconf import OmegaConf

    from experiments.config import shown

    cfg = composed([f"level={number}", f"total_timesteps={settings.frames}", *settings.cfg.overrides, "recipe=plain"])
    raw = OmegaConf.to_container(OmegaConf.load(cli.configs_dir() / "train.yaml"), resolve=False)
    assert isinstance(raw, dict)
    found = {str(key): getattr(cfg, str(key)) for key, value in raw.items() if str(value).startswith("${training:")}
    found |= {"exposure": shown(cfg), "evaluation.validation": cfg.evaluation.validation}
    return tuple(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in found.items())


def arms_of(settings: Settings, number: int) -> dict[str, Arm]:
    """The arms of one level by name: the whole recipe, and for each part that is asked for the arms it takes."""
    from experiments.config import level_of

    cfg, own = settings.cfg, str(number)
    recipe = (
        "recipe=srl_rlvr",
        f"recipe_options.teacher.episodes={cfg.teacher}",
        f"recipe_options.visits.episodes={cfg.teacher}",
        f"recipe_options.teacher.rollouts={cfg.rollouts}",
    )
    no_kl, alone = "recipe_options.kl.use=false", of_level(settings, number)
    levels = ",".join(map(str, neighbours(number)))
    possible = {
        "masks": ((own, own, (*recipe, "masks=false")),),
        "slots": ((own, own, (*recipe, "network=mlp")),),
        "hold": ((f"no-hold-{own}",) * 2 + (recipe,),) if "hold" in level_of(own).system.verbs else (),
        "history": ((f"no-history-{own}",) * 2 + (recipe,),),
        "supervised": ((own, own, (*recipe, "recipe_options.supervised.use=false", no_kl)),),
        "kl": ((own, own, (*recipe, no_kl)),),
        "curriculum": ((own, own, alone), (own, f"[{levels}]", (*alone, "curriculum=staged", f"mixture.judged={own}"))),
    }
    arms = {WHOLE: Arm(WHOLE, "the whole recipe", own, own, settings.frames, recipe)}
    for part in settings.parts:
        names = (ALONE, NEIGHBOURS) if part == NEIGHBOURS else (f"no-{part}",)
        for name, (plays, level, overrides) in zip(names, possible[part], strict=False):
            arms[name] = Arm(name, SAID[part], plays, level, settings.frames, overrides)
    return arms


def judged(settings: Settings, number: int, arms: dict[str, Trained], scale: Scale) -> dict[str, Any]:
    """A level's result: its arms, and what each part is worth: the score with it less the score without, paired."""
    n = settings.cfg.n
    records = {name: trained.played(n) for name, trained in arms.items()}
    totals = {name: statistics.totals(found) for name, found in records.items()}
    worth = {}
    for part in settings.parts:
        on, off = pair_of(part)
        if on in totals and off in totals:
            worth[part] = lead(totals[on], totals[off], scale) | {"on": scale.perf(totals[on]), "off": scale.perf(totals[off])}
    return {
        "level": number,
        "random": scale.random,
        "best": scale.best,
        "players": scale.players,
        "arms": {
            name: trained.account(records[name])
            | {"perf": scale.perf(totals[name]), "score": statistics.summary(records[name])}
            for name, trained in arms.items()
        },
        "worth": worth,
    }


def pair_of(part: str) -> tuple[str, str]:
    """The arms with and without a part."""
    return (NEIGHBOURS, ALONE) if part == NEIGHBOURS else (WHOLE, f"no-{part}")


def table(levels: list[dict[str, Any]], sums: dict[str, dict[str, float]]) -> list[str]:
    """A row for each part and level: with it, without it, and the difference."""
    columns = ("part", "level", "perf with", "perf without", "worth, perf [95 %]", "P(better with) [95 %]", "shown")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    said = {1: "it helps", 0: "no", -1: "it harms"}
    for part, total in sums.items():
        for level in levels:
            found, cells = level["worth"].get(part), [part, str(level["level"])]
            if found is None:
                cells += ["–", "–", "the level has none", "–", "–"]
            else:
                chance = ranged(found, "probability", ".3f")
                cells += [f"{found['on']:.3f}", f"{found['off']:.3f}", ranged(found), chance, said[shown(found)]]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(f"| **{part}** | mean | | | **{ranged(total)}** | | **{said[shown(total)]}** |")
    return lines


def conclude(settings: Settings, sums: dict[str, dict[str, float]]) -> str:
    """What the study says, in words."""
    order = sorted(sums, key=lambda part: -sums[part]["perf"])
    groups = {sign: [f"{part} {ranged(sums[part])}" for part in order if shown(sums[part]) == sign] for sign in (1, 0, -1)}
    words = {1: "Shown to help, in mean perf", 0: "No difference is shown for", -1: "Shown to harm"}
    found = ". ".join(f"{words[sign]}: {', '.join(parts)}" for sign, parts in groups.items() if parts)
    levels = ", ".join(map(str, settings.numbers))
    budget = f"{settings.frames:,} frames a training, {settings.seeds} seeds"
    return f"{found}. Levels {levels}, {budget}: a larger budget may say otherwise."


def draw(canvas: Any, levels: list[dict[str, Any]], sums: dict[str, dict[str, float]]) -> None:
    """What each part is worth, with its interval: a row of points for each part, the mean in black."""
    axes = canvas.subplots()
    parts = list(sums)[::-1]
    for place, part in enumerate(parts):
        rows = [(f"level {level['level']}", level["worth"].get(part)) for level in levels] + [("mean", sums[part])]
        for k, (name, found) in enumerate(rows):
            if found is None:
                continue
            y, colour = place + 0.3 - 0.6 * k / max(1, len(rows) - 1), "black" if name == "mean" else f"C{k}"
            axes.plot((found["perf_low"], found["perf_high"]), (y, y), color=colour, lw=2, alpha=0.6)
            axes.plot(found["perf"], y, "o", ms=4, color=colour, label=name if place == len(parts) - 1 else None)
    axes.set_yticks(range(len(parts)), parts)
    axes.axvline(0.0, color="0.5", lw=1)
    axes.grid(alpha=0.25)
    axes.set_xlabel("worth of the part: perf with it less perf without it, 95 % intervals")
    axes.legend(fontsize=8)


def study(settings: Settings) -> dict[str, Any]:
    """The command: trains, plays, compares, concludes and writes; the result."""
    arms = {
        number: {name: wanted(settings, number, arm) for name, arm in arms_of(settings, number).items()}
        for number in settings.numbers
    }
    train_arms(settings, [trained for found in arms.values() for trained in found.values()])
    scales = {number: scale_of(str(number), settings.cfg.n) for number in settings.numbers}
    levels = [judged(settings, number, arms[number], scales[number]) for number in settings.numbers]
    sums = {}
    for part in settings.parts:
        pairs = [
            (
                *(statistics.totals(arms[level["level"]][name].played(settings.cfg.n)) for name in pair_of(part)),
                scales[level["level"]],
            )
            for level in levels
            if part in level["worth"]
        ]
        if pairs:
            sums[part] = overall(pairs)  # type: ignore[arg-type]
    cpu = sum(training["cpu_seconds"] for level in levels for arm in level["arms"].values() for training in arm["trainings"])
    result = {"levels": levels, "overall": sums, "conclusion": conclude(settings, sums), "cpu_seconds": round(cpu, 1)}
    height = 1.5 + 0.8 * len(sums)
    return write(settings, result, text_of(settings, levels, sums, cpu), lambda canvas: draw(canvas, levels, sums), height)


def text_of(settings: Settings, levels: list[dict[str, Any]], sums: dict[str, dict[str, float]], cpu: float) -> list[str]:
    """The page: the budget, the table, what the parts are."""
    cfg = settings.cfg
    before = f"""{cfg.n:,} test instances, the same for every arm, {settings.seeds} training seeds, {settings.frames:,} frames
of PPO a training (a reduced budget: the levels' own are in their files), the policy of the best of its looks at validation
instances. The teacher plays {cfg.teacher} train instances, the learner as many in each of its rounds, and each action is
tried in {cfg.rollouts} drawn futures. All trainings took {cpu / 60:.0f} CPU minutes. perf: 0 = random, 1 = the best known;
intervals over seeds and instances, paired. All policies are judged with the mask."""
    return [before, "", *table(levels, sums), "", "## Without it", "", *(f"* **{part}**: {SAID[part]}" for part in sums)]
