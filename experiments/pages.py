"""A page for each level and their index, made from the level files and the stored results: `python -m experiments.pages`.

Nothing on them is written by hand: what a level says about itself stands in its YAML file, what was measured in `results/`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING
from pydantic import BaseModel

from experiments import cli, readme
from experiments.errors import ExperimentError
from experiments.files import read_json, write_text, write_with
from experiments.page_words import DRAWS, ORDERS, POLICIES, STREAMS, VERBS, WORKFLOWS
from fq_env.level_files import LEVELS

if TYPE_CHECKING:
    from fq_env.level import Gate, Level
    from fq_env.workflows import Workflow

NOT_MEASURED = "Not measured yet."
PICTURE_COLOURS = 128  # of a page's picture: enough for what is drawn, and a third of the bytes


@dataclass
class PagesConfig:
    """Keys of the command; explained in `configs/pages.yaml`."""

    levels: Any = MISSING
    results: str = MISSING
    out: str = MISSING
    pictures: bool = MISSING


# --------------------------------------------------------------------------- Markdown
def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def shown(value: Any) -> str:
    """A value of a level file as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " to ".join(map(shown, value)) if value[0] != value[-1] else shown(value[0])
    if isinstance(value, BaseModel):
        return ", ".join(f"{key} {shown(getattr(value, key))}" for key in chosen(value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(value)


def chosen(spec: BaseModel) -> list[str]:
    """The keys of a section that differ from their default, or that have none."""
    fields = type(spec).model_fields
    return [
        key
        for key, field in fields.items()
        if field.is_required() or getattr(spec, key) != field.get_default(call_default_factory=True)
    ]


def specs(head: Sequence[str], found: Mapping[tuple[str, ...], BaseModel]) -> str:
    """One row for each named section, one column for each key that any of them sets."""
    keys = [
        key for key in type(next(iter(found.values()))).model_fields if any(key in chosen(spec) for spec in found.values())
    ]
    rows = [[*names, *(shown(getattr(spec, key)) for key in keys)] for names, spec in found.items()]
    return table([*head, *(key.replace("_", " ") for key in keys)], rows)


def explained(spec: BaseModel, words: Mapping[str, str], leave: Sequence[str] = ()) -> str:
    """The keys that a section sets, with their values and what they mean."""
    rows = [[f"`{key}`", shown(getattr(spec, key)), words.get(key, "")] for key in chosen(spec) if key not in leave]
    return table(["key", "value", "meaning"], rows)


# --------------------------------------------------------------------------- sections
def world(level: Level) -> str:
    """The catalogue, the workflow or the hidden order, and what every instance draws."""
    system = level.system
    parts = ["**Pools**", specs(["pool"], {(name,): pool for name, pool in system.pools.items()})]
    if system.memory:
        parts.append(f"Memory, in units: {shown(system.memory)}.")
    if system.models:
        parts += ["**Models**", specs(["model"], {(name,): model for name, model in system.models.items()})]
    variants: dict[tuple[str, ...], BaseModel]
    variants = {(name, kind): v for name, f in system.functions.items() for kind, v in f.variants()}
    parts += ["**Functions**", specs(["function", "variant"], variants)]
    catalogue = ("memory", "pools", "models", "functions", "verbs")
    if set(chosen(system)) - set(catalogue):
        parts += ["**Policies**", explained(system, POLICIES, catalogue)]
    if level.workflow is not None:
        parts += ["**Workflow**", *workflow(level.workflow)]
    if level.order is not None:
        parts += [
            "**Order**, never shown",
            order(level),
            explained(level.order, ORDERS, ("needs", "soft", "prefers", "spoils")),
        ]
    if chosen(level.draw):
        parts += ["**Drawn for every instance**", explained(level.draw, DRAWS)]
    if level.gates:
        parts += ["**Gates**, never shown", *(f"* {gate_words(gate)}" for gate in level.gates)]
    parts.append(f"An episode expires at {level.horizon:g} × the lower bound and is truncated after {level.max_steps} steps.")
    return "\n\n".join(parts)


def workflow(drawn: Workflow) -> list[str]:
    """The one workflow that is given, or what is drawn, with the stages of the blueprints among the shapes."""
    if drawn.given is not None:
        tasks = drawn.given.tasks
        inputs = sum(len(task.inputs) for task in tasks)
        return [f"One given workflow of {len(tasks)} tasks and {inputs} edges; its durations are {drawn.given.durations}."]
    parts = [explained(drawn, WORKFLOWS, ("given", "blueprints", "stream"))]
    if drawn.stream is not None:
        parts += ["**Stream** of such workflows", explained(drawn.stream, STREAMS)]
    for name, blueprint in drawn.drawn().items():
        rows = [[stage, str(s.count), s.function or "drawn", shown(s.after) or "–"] for stage, s in blueprint.stages.items()]
        parts += [f"Stages of `{name}`:", table(["stage", "tasks", "function", "after"], rows)]
    return parts


def order(level: Level) -> str:
    """Which function needs which, in a level of hidden order."""
    hidden = level.order
    assert hidden is not None
    lists = {key: getattr(hidden, key) for key in ("soft", "prefers", "spoils")}
    rows = []
    for name in level.system.functions:
        needs = " or ".join(" and ".join(names) for names in hidden.alternatives(name))
        cells = [needs, *(", ".join(found.get(name, [])) for found in lists.values())]
        if any(cells):
            rows.append([name, *(cell or "–" for cell in cells)])
    return table(["function", "needs", "waits for or skips", "prefers", "spoils"], rows)


def gate_words(gate: Gate) -> str:
    """When a gate opens, and what becomes of a call that finds it closed."""
    where = "" if gate.at is None else f" in {gate.at}"
    state = f"a copy of {gate.model} is loaded" if gate.pool is None else f"{gate.pool} has {gate.free} more free"
    return f"`{gate.verb}`{where} works only while {state}; else it fails after {gate.after:g} of its duration."


def action_table(level: Level) -> str:
    """The verbs and globals that the level enables."""
    from pit import layout

    kinds = {kind for f in level.system.functions.values() for kind, _ in f.variants()}
    missing = set(layout.VERBS[: layout.N_VARIANTS]) - kinds
    enabled = [v for v in (*layout.VERBS, *layout.GLOBAL_ACTIONS) if v in level.system.verbs and v not in missing]
    slots = min(layout.N_SLOTS, level.max_tasks)
    rows = []
    for name in [*enabled, "wait"]:
        slot = name in layout.VERBS
        number = (
            f"slot × {layout.N_VERBS} + {layout.VERBS.index(name)}"
            if slot
            else str(layout.WAIT + layout.GLOBAL_ACTIONS.index(name))
        )
        rows.append([f"`{name}`", number, VERBS.get(name, "")])
    text = f"`Discrete({layout.N_ACTIONS})`; at most {slots} of {layout.N_SLOTS} slots are filled here. All else is masked."
    return f"{text}\n\n{table(['action', 'number', 'does'], rows)}"


def columns(level: Level) -> str:
    """Which columns of the observation can be other than zero."""
    from fq_env.live import live_columns
    from pit import layout

    live = live_columns(level)
    counts = ", ".join(f"{exposure} {int(live_columns(level, exposure).sum())}" for exposure in layout.EXPOSURES)
    names = [name for (name, _), alive in zip(layout.columns(), live, strict=True) if alive]
    blocks = {"slot": "one slot", "pool": "one pool", "": "globals"}
    rows = []
    for block, title in blocks.items():
        prefix = f"{block}0." if block else ""
        own = [n.removeprefix(prefix) for n in names if (n.startswith(prefix) if block else "." not in n)]
        rows.append([title, str(len(own)), ", ".join(f"`{name}`" for name in own) or "–"])
    text = (
        f"`Box(-1, 1, ({layout.N_OBSERVATION},), float32)`, exposure **{level.exposure}**: {int(live.sum())} columns can be "
        f"other than 0 (by exposure: {counts}). Formulas: [the rule book](../../pit/README.md), section 10."
    )
    return f"{text}\n\n{table(['block', 'live', 'features'], rows)}"


def score(level: Level) -> str:
    """The score's formula with the level's weights, and the pass mark."""
    weights = level.score.model_dump(exclude={"late"})
    bonus = " + ".join(f"{value:g}·{name}" for name, value in weights.items() if value)
    ignored = [name for name, value in weights.items() if not value]
    text = f"`total = base × (1 + {bonus}) / {1 + sum(weights.values()):g}`"
    if ignored:
        text += f"; {' and '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no weight here"
    if level.score.late < 1.0:
        text += f"; the quality of what comes after the deadline counts {level.score.late:g}"
    return (
        f"{text}. The parts are defined on [the rule page](../../fq_env/README.md), section 4. The level counts as solved "
        f"from perf **{level.pass_mark:g}** on (0 = random, 1 = the best known)."
    )


def probe(level: Level, found: Measured) -> str:
    """The behaviour that shows whether the teaching was learned, as measured."""
    from experiments.probes import PROBES

    known = PROBES.get(level.probe)
    text = f"`{level.probe}`"
    if known is not None:
        text += f": {known.words}; {'more' if known.better > 0 else 'less'} is better"
    rows = (found.result or found.headroom or {}).get("rows", [])
    values = [(row["player"], row.get(level.probe, row.get("probe"))) for row in rows]
    measured = [f"{player} {value:.2f}" for player, value in values if value is not None]
    return f"{text}. {', '.join(measured)}." if measured else f"{text}. {NOT_MEASURED}"


def bounds(level: Level, result: dict[str, Any] | None) -> str:
    """What limits every player."""
    text = (
        "No makespan is below the lower bound LB of the instance (critical path, area, unavoidable load), so `optimization` "
        "is at most 1; `phi0` in `info` is the best total that is reachable at the start."
    )
    proven = [row for row in (result or {}).get("rows", []) if row["bound"]]
    if proven:
        return (
            f"{text} The optimum is proven by exhaustive search: {proven[0]['mean']:.3f} on average (`{proven[0]['player']}`)."
        )
    return f"{text} No optimum is stored for this level: perf 1 is the best player that is not trained."


def headroom(found: dict[str, Any] | None) -> str:
    """What players that are not trained reach."""
    if found is None:
        return NOT_MEASURED
    cells = [[row["player"], *(_number(row.get(key), form) for key, form in HEADROOM.items())] for row in found["rows"]]
    gap = f"The best tuned rule leaves {found['headroom']:.2f} of perf to the best known player."
    return f"{table(['player', 'total', 'perf', 'makespan (s)'], cells)}\n\n{gap}"


HEADROOM = {"total": ".3f", "perf": ".3f", "makespan": ".1f"}


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def how_to_beat(level: Level, found: Measured) -> str:
    """The level's hint, and which player that is not trained is best, as far as that was measured."""
    rows = (found.result or {}).get("rows", [])
    means = {row["player"]: row["mean"] for row in rows if not row["policy"] and not row["bound"]}
    means = means or {row["player"]: row["total"] for row in (found.headroom or {}).get("rows", [])}
    if not means:
        return level.hint
    best = max(means, key=lambda name: float(means[name]))
    trained = [row for row in rows if row["policy"]]
    lead = f"; the trained policies reach {trained[0]['mean']:.3f} (perf {trained[0]['perf']:.2f})" if trained else ""
    return f"{level.hint}\n\nOf the players that are not trained, `{best}` is best with {means[best]:.3f} on average{lead}."


def speed(found: dict[str, Any] | None) -> str:
    """What was measured about the level's speed."""
    if found is None:
        return f"{NOT_MEASURED} `python -m experiments.benchmark env` measures it."
    return table(
        ["what", "measured"], [[key.replace("_", " "), shown(value)] for key, value in found.items() if key != "level"]
    )


# --------------------------------------------------------------------------- pages
@dataclass(frozen=True)
class Measured:
    """What is stored about one level; None where nothing is."""

    result: dict[str, Any] | None = None
    headroom: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None


def measured(folder: Path, number: int) -> Measured:
    """What `results/` says about a level: level-NN.json, and its entries among `levels` of headroom.json and speed.json."""

    def entry(name: str) -> dict[str, Any] | None:
        levels = read_json(folder / name)["levels"] if (folder / name).is_file() else []
        return next((dict(found) for found in levels if found["level"] == number), None)

    file = folder / f"level-{number:02d}.json"
    result = read_json(file) if file.is_file() else None
    return Measured(result, entry("headroom.json"), entry("speed.json"))


def page(level: Level, found: Measured) -> str:
    """A level's page, Markdown."""
    sections = {
        "What it teaches": f"{level.teaching}\n\n![The level in the middle of an episode](level-{level.number:02d}.png)",
        "The world": world(level),
        "Actions": action_table(level),
        "Observation": columns(level),
        "Score": score(level),
        "Probe": probe(level, found),
        "Known bounds": bounds(level, found.result),
        "Headroom": headroom(found.headroom),
        "How to beat it": how_to_beat(level, found),
        "Results": NOT_MEASURED if found.result is None else readme.section(found.result),
        "Speed": speed(found.speed),
        "Version history": "\n".join(f"* {line}" for line in level.history or ["v0: first version"]),
    }
    head = f"# Level {level.number}: {level.title}\n\n`{level.env_id}`, made by `python -m experiments.pages`."
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def index(levels: Sequence[Level], results: Path) -> str:
    """The table of all levels, Markdown."""
    rows = []
    for level in levels:
        found = measured(results, level.number)
        number = f"{level.number:02d}"
        tasks = f"at most {level.max_tasks}" if level.order is not None else str(level.max_tasks)
        if level.workflow is not None and level.workflow.given is None:
            tasks = shown(level.workflow.tasks)
        trained = [row["perf"] for row in (found.result or {}).get("rows", []) if row["policy"]]
        rows.append([
            str(level.number),
            f"[{level.name}](pages/level-{number}.md)",
            level.teaching,
            tasks,
            level.exposure,
            f"{level.pass_mark:g}",
            "–" if found.headroom is None else readme.headroom_shown(found.headroom, ".2f"),
            f"{trained[0]:.2f}" if trained else "–",
        ])  # fmt: skip
    head = ["n", "name", "teaches", "tasks", "exposure", "pass mark", "headroom", "trained"]
    return (
        "# Levels\n\nOne YAML file each; the pages and this table are made by `python -m experiments.pages`. Pass mark,\n"
        "headroom and trained are in perf: 0 = random, 1 = the best known. Headroom is what the best tuned rule leaves;\n"
        "– is not measured, or beside a proven optimum of a hidden order, which no rule can know.\n\n"
        f"{table(head, rows)}\n"
    )


def middle_of_an_episode(level: Level) -> dict[str, Any]:
    """The view with most calls in flight in the middle third of an episode that the critical-path rule plays."""
    from experiments.watch import rule_player
    from fq_env.engine import Engine

    engine = Engine(level, 1, autoreset="disabled")
    engine.reset(split="train", instances=0)
    choose = rule_player("critical_path", level, 1)
    views, ended = [engine.pit_view(0)], False
    while not ended:
        ended = bool(engine.step_one(choose(engine)))
        views.append(engine.pit_view(0))
    third = len(views) // 3
    return max(views[third : len(views) - third] or views, key=lambda view: len(view["calls"]))


def draw_picture(level: Level, path: Path) -> Path:
    """A level's picture, as PNG."""
    from PIL import Image

    from fq_env.picture import render_picture

    image = Image.fromarray(np.asarray(render_picture(middle_of_an_episode(level))))
    image = image.quantize(PICTURE_COLOURS, dither=Image.Dither.NONE)
    return write_with(path, lambda temporary: image.save(temporary, optimize=True))


def pages(cfg: PagesConfig) -> list[Path]:
    """The command: the pages of the wanted levels, and the index of all; the files that were written."""
    from experiments.config import level_of, levels_of

    out, results = Path(cfg.out), Path(cfg.results)
    if not out.is_dir():
        raise ExperimentError(f"out={out}: is no folder; name the one of the level files")
    (out / "pages").mkdir(exist_ok=True)
    written = []
    for level in levels_of(cfg.levels):
        stem = out / "pages" / f"level-{level.number:02d}"
        written.append(write_text(stem.with_suffix(".md"), page(level, measured(results, level.number))))
        if cfg.pictures:
            written.append(draw_picture(level, stem.with_suffix(".png")))
    written.append(write_text(out / "README.md", index([level_of(number) for number in sorted(LEVELS)], results)))
    return written


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    written = cli.guarded(lambda: pages(cli.read("pages", PagesConfig, sys.argv[1:], __doc__ or "")), PagesConfig)
    print("\n".join(f"written: {path}" for path in written))


if __name__ == "__main__":
    main()
