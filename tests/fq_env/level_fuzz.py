"""Files with mistakes: sound level files and recordings, each with one to three random mutations, read and played.

`python -m tests.fq_env.level_fuzz FIRST LAST` tries the mutations of these seeds and prints one line for each: `refused`
with the sentence, or `played`. Whoever starts it watches for a line that does not come. Anything but a PitError is a fault.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from pit.errors import PitError
from tests.fq_env.workflow_levels import level_data, wfformat

STEPS = 30
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of libyaml, where it is there: most of a mutation's time was this
NUMBERS = (
    float("nan"), float("inf"), -float("inf"), -1, -0.5, 0, 0.0, 1, 0.5, 1e-300, 1e-6, 1e6, 1e9, 1e18, 1e300, 2**31, 2**63,
    10**40, 32_000, 33_000,
)  # fmt: skip
VALUES = (None, True, False, "", "x", "standard", "nan", "1e9", [], {}, [[]], [1, 2], {"a": 1}, "\x00", "é" * 100, "9" * 400)


@functools.cache
def sources() -> list[tuple[str, Any]]:
    """(suffix, data) of sound files: the levels of the suite, one of every shape, one given, a recording and one around it."""
    found = [(".yaml", yaml.safe_load(path.read_text())) for path in LEVELS.values()]
    shapes = {name: 1 for name in ("map_reduce", "series_parallel", "in_tree", "rag", "own")}
    own = {"stages": {"a": {"count": 3}, "b": {"count": "items", "after": {"a": "window"}, "window": 2, "function": "carve"}}}
    marks = {"optional": [0.1, 0.4], "any_join": [0.1, 0.4], "priorities": [0, 3]}
    drawn = {"shapes": shapes, "blueprints": {"own": own}, "tasks": [10, 40], "width": [2, 6], "siblings": [0.1, 0.9], **marks}
    tasks = [
        {"id": str(i), "function": "carve", "seconds": 1.0 + i, "after": [str(j) for j in range(i // 2)], "optional": i == 2}
        for i in range(6)
    ]
    joined = {"id": "any", "function": "polish", "after": ["3", "4"], "join": "any", "priority": 2}
    draw = {
        "seconds": [0.5, 2],
        "hint_cv": [0.1, 0.2],
        "noise_cv": [0.1, 0.3],
        "task_cv": 0.3,
        "earlier": [0, 5],
        "failure_rate": 0.1,
        "api_change": {"bench": 0.5},
        "change_onset": [0.1, 0.5],
        "change_after": 0.2,
        "config_seconds": 5.0,
    }
    found += [(".yaml", level_data(drawn, draw=draw)), (".yaml", level_data({"given": {"tasks": [*tasks, joined]}}))]
    stored = copy.deepcopy(level_data(drawn, draw=draw | {"size": [1, 100]}, gates=[{"verb": "standard", "pool": "bench"}]))
    stored["system"]["store"] = {"hot": 200, "warm": 300, "cold": 100, "fetch_seconds": {"warm": 1, "cold": 5}}
    found.append((".yaml", stored))
    recording = wfformat([4.0, 2.0, 0.0, 3.5, 1.25, 7.0], [[], [0], [0], [1, 2], [1], [3, 4]])
    around = {
        "workflow": {"file": "sound.json", "durations": "estimated", "workers": 3},
        "draw": {"belief_cv": 0.4},
        "horizon": 30,
    }
    return [*found, *[(".json", recording)] * 3, (".yaml", around)]


def places(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside."""
    inner = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [path for key, value in inner for path in ((*above, key), *places(value, (*above, key)))]


def mutate(rng: random.Random, data: Any) -> None:
    """One change in place."""
    path = rng.choice(places(data))
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    key, value = path[-1], owner[path[-1]]
    kind = rng.choice(("remove", "rename", "type", "number", "number", "number", "swap", "nest", "empty", "copy"))
    if kind == "remove":
        del owner[key]
    elif kind == "rename" and isinstance(owner, dict):
        owner[str(key) + rng.choice(("s", "_", " ", ""))[:1] if rng.random() < 0.7 else rng.choice(NUMBERS)] = owner.pop(key)
    elif kind == "number":
        numbers = [p for p in places(data) if isinstance(value_at(data, p), int | float)] or [path]
        path = rng.choice(numbers)
        old = value_at(data, path)
        new = rng.choice(
            (*NUMBERS, old * 1000 if isinstance(old, int | float) else 3, -old if isinstance(old, int | float) else 4)
        )
        value_at(data, path[:-1])[path[-1]] = new
    elif kind == "swap":
        owner[key] = copy.deepcopy(value_at(data, rng.choice(places(data))))
    elif kind == "nest":
        for _ in range(rng.choice((1, 40, 140))):
            value = [value] if rng.random() < 0.5 else {"x": value}
        owner[key] = value
    elif kind == "empty" and isinstance(value, dict | list):
        owner[key] = type(value)()
    elif kind == "copy" and isinstance(owner, list):
        owner.insert(rng.randrange(len(owner) + 1), copy.deepcopy(value))
    else:
        owner[key] = copy.deepcopy(rng.choice(VALUES))


def value_at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def mutated(seed: int, sound: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """(suffix, file) of the mutation of this seed of one of some sound files, each (suffix, data)."""
    rng = random.Random(seed)
    suffix, data = copy.deepcopy(rng.choice(sound))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if places(data):
            mutate(rng, data)
    try:
        text = json.dumps(data, indent=1) if suffix == ".json" else yaml.dump(data, Dumper=DUMPER, sort_keys=False)
    except RecursionError:
        text = "[" * 10_000
    lines = text.splitlines(keepends=True)
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if lines and rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))  # most often a key that stands twice
        raw = bytearray("".join(lines).encode("utf-8", "surrogatepass"))
    if raw and rng.random() < 0.1:
        for _ in range(rng.choice((1, 1, 4))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return suffix, bytes(raw)


def attempt(seed: int, folder: Path) -> str:
    """What becomes of the mutation of this seed; raises what should never be raised."""
    suffix, raw = mutated(seed, sources())
    path = folder / f"m{seed}{suffix}"
    path.write_bytes(raw)
    try:
        level = load_level(path)
        engine = Engine(level, 1, autoreset="same_step", seed=seed)
    except PitError as error:
        told = str(error).replace("\n", "\\n")
        assert str(folder) in told, f"no file is named: {told}"
        assert len(told) < 2000 + len(str(path)), f"too long: {told[:300]}"
        return f"refused {told.replace(str(folder), '')}"
    finally:
        path.unlink()
    rng = np.random.default_rng(seed)
    engine.reset()
    for step in range(STEPS + 1):
        seen = (engine.obs, engine.rewards, engine.final_obs, engine.phi0)
        assert all(np.isfinite(x).all() for x in seen), f"a number is not finite at step {step}"
        assert (abs(engine.obs) <= 1).all() and engine.masks.any(), f"out of range, or no legal action at step {step}"
        if step < STEPS:
            engine.step(rng.choice(np.flatnonzero(engine.masks[0]), 1))
    return "played"


def main(first: int, last: int) -> None:
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sound.json").write_text(json.dumps(wfformat([4.0, 2.0, 1.0], [[], [0], [0]])))
        Engine(load_level(1), 1)  # compiled or loaded before the watch begins
        print("ready", flush=True)
        for seed in range(first, last):
            try:
                print(seed, attempt(seed, folder), flush=True)
            except Exception as error:
                text = str(error).replace("\n", "\\n")
                print(seed, f"fault {type(error).__name__}: {text}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
