"""The results of the README: `python -m experiments.results levels=1,11 seeds=5`.

Trains each level from several seeds with the default configuration, lets all of them and the players play the same held-out
instances, and keeps a small JSON file and the best bundle of each level (best on validation instances, never on test).
Nothing is trained twice: what is stored for the same configuration and the same code is used again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.files import write_folder, write_json
from experiments.readme import readme_of, refresh
from experiments.side_by_side import Job, run_all
from experiments.sources import code_digest

if TYPE_CHECKING:
    from experiments.config import TrainConfig

MAX_BUNDLE = 600_000  # bytes of a bundle that is kept in the repository
DECIDED = ("level", "seed", "folder", "runs", "resume")  # keys of a training that are not to be overridden
QUIET = ("progress_bar=false", "tensorboard=false")


@dataclass
class ResultsConfig:
    """Keys of the command; explained in `configs/results.yaml`."""

    levels: Any = MISSING
    seeds: int = MISSING
    n: int = MISSING
    jobs: int = MISSING
    overrides: list[str] = MISSING
    runs: str = MISSING
    out: str = MISSING
    bundles: str = MISSING
    readme: str | None = MISSING


@dataclass(frozen=True)
class Wanted:
    """The trainings of one level: `configurations[seed]`, and what their results depend on beside the seed; `name`: what its
    files and folders are called."""

    name: str
    number: int
    configurations: list[TrainConfig]
    configuration: str
    code: str


def composed(overrides: list[str]) -> TrainConfig:
    """A training's checked configuration, from `configs/train.yaml`. Raises ExperimentError."""
    from hydra import compose, initialize_config_dir

    from experiments.config import TrainConfig, finished, register

    register()
    try:
        with initialize_config_dir(str(cli.configs_dir()), version_base="1.3"):
            return finished(compose("train", overrides))
    except Exception as error:
        text = cli.sentence(error, TrainConfig)
        if text is None:
            raise
        raise ExperimentError(text) from None


def wanted(cfg: ResultsConfig, level: str) -> Wanted:
    """The trainings of one level. Raises ExperimentError for a configuration that cannot be trained."""
    from experiments.config import folder_of, level_of
    from experiments.run_folder import configuration_hash

    for override in cfg.overrides:
        if override.partition("=")[0] in DECIDED:
            raise ExperimentError(f"overrides=[{override}]: results decides this key; leave it out")
    found = level_of(level)
    configurations = [composed([f"level={level}", f"seed={seed}", *QUIET, *cfg.overrides]) for seed in range(cfg.seeds)]
    configuration = configuration_hash(asdict(configurations[0]))
    code = code_digest(found)
    for seed, configured in enumerate(configurations):
        name = f"seed{seed}-{configuration[:8]}-{code[:8]}"
        configured.folder = str(Path(cfg.runs) / folder_of(level) / name)
    return Wanted(folder_of(level), found.number, configurations, configuration, code)


# --------------------------------------------------------------------------- what is there, and what has to be trained
def complete(folder: Path) -> bool:
    """Whether a training in this folder reached its end; its results are written last."""
    return (folder / "results.json").is_file()


def stored(cfg: ResultsConfig, level: Wanted) -> dict[str, Any] | None:
    """The stored result of a level if it is of this configuration and code, of as many seeds and instances, and whole."""
    file = path_of(cfg, level.name)
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = (result["configuration"], result["code"], result["n"]) == (level.configuration, level.code, cfg.n)
        kept = result["kept"] is None or (Path(cfg.bundles) / level.name / "manifest.json").is_file()
        return result if same and kept and len(result["trainings"]) >= cfg.seeds else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ExperimentError(f"{file}: is no result of this command; move it away") from None


def path_of(cfg: ResultsConfig, name: str) -> Path:
    """The file of a level's result."""
    return Path(cfg.out) / f"{name}.json"


def train_one(configuration: TrainConfig, command: str) -> None:
    """One training."""
    from experiments.train import train

    train(configuration, command)


def train_all(todo: list[tuple[TrainConfig, str]], jobs: int) -> None:
    """Trains, `jobs` processes at a time. Raises ExperimentError if a training ended before its time."""
    run_all(
        [
            Job(
                f"level {configuration.level} seed {configuration.seed}",
                partial(train_one, configuration, command),
                partial(told_of, configuration),
            )
            for configuration, command in todo
        ],
        jobs,
    )


def told_of(configuration: TrainConfig) -> str:
    """What a whole training took, in words."""
    return spent(facts_of(configuration))


def facts_of(configuration: TrainConfig) -> dict[str, Any]:
    """`results.json` of a run."""
    facts: dict[str, Any] = json.loads((Path(str(configuration.folder)) / "results.json").read_text(encoding="utf-8"))
    return facts


def spent(facts: dict[str, Any]) -> str:
    """What a training took, in words."""
    cpu, wall = facts["cpu_seconds"], facts["seconds"]
    return f"{facts['frames']:,} frames in {cpu:.0f} s of CPU, {wall:.0f} s of wall time; {facts['ended']}"


# --------------------------------------------------------------------------- a level's result
def judge(cfg: ResultsConfig, level: Wanted) -> dict[str, Any]:
    """Lets the trained policies and the players play, keeps the best bundle and writes the level's file; its content."""
    from experiments.config import level_of
    from experiments.evaluate import Referee, open_run, play_method
    from experiments.run_folder import read_run

    folders = [Path(str(configuration.folder)) for configuration in level.configurations]
    policies = [open_run(folder) for folder in folders]
    about = read_run(folders[0]).versions
    played = level_of(level.configurations[0].level)
    validation = statistics.totals(play_method(policies, played, split="validation", n=cfg.n)).mean(axis=1)
    test = play_method(policies, played, split="test", n=cfg.n)
    referee = Referee(played, level.configurations[0].evaluation.fit)
    trainings = [
        {"seed": seed, "validation": float(validation[seed]), "test": float(test[seed]["total"].mean())}
        | {key: facts[key] for key in ("frames", "seconds", "cpu_seconds", "ended")}
        for seed, facts in enumerate(map(facts_of, level.configurations))
    ]
    rows = statistics.compare({statistics.TRAINED: test, **referee.players("test", cfg.n)})
    result = {
        "level": level.number,
        "name": played.name,
        "probe": played.probe,
        "pass_mark": played.pass_mark,
        "command": command_of(cfg, str(level.configurations[0].level)),
        "configuration": level.configuration,
        "code": level.code,
        "versions": {"python": about["python"], **about["packages"]},
        "split": "test",
        "n": cfg.n,
        "rule": referee.fitted,
        "trainings": trainings,
        "kept": keep(cfg, level, folders, int(np.argmax(validation))),
        "rows": rows,
    }
    write_json(path_of(cfg, level.name), result)
    return result


def command_of(cfg: ResultsConfig, level: str) -> str:
    """The command that gives a level's result again."""
    words = ["python", "-m", "experiments.results", f"levels={level}", f"seeds={cfg.seeds}", f"n={cfg.n}"]
    return shlex.join([*words, f"overrides=[{','.join(cfg.overrides)}]"] if cfg.overrides else words)


def keep(cfg: ResultsConfig, level: Wanted, folders: list[Path], best: int) -> dict[str, Any] | None:
    """Copies the bundle of the seed with the best validation score; None, with a word about it, if it is too large."""
    source = folders[best] / "bundle"
    size = sum(file.stat().st_size for file in source.iterdir())
    if size > MAX_BUNDLE:
        print(
            f"level {level.number}: the bundle of seed {best} has {size:,} bytes and is not kept; at most {MAX_BUNDLE:,} are"
        )
        return None
    target = Path(cfg.bundles) / level.name
    write_folder(target, lambda folder: [shutil.copy2(file, folder) for file in source.iterdir()])
    return {"seed": best, "bytes": size}


def results(cfg: ResultsConfig) -> list[dict[str, Any]]:
    """The command: the results of all wanted levels, trained, judged, stored and shown."""
    from experiments.config import level_words

    for key, low in (("seeds", 1), ("n", 2), ("jobs", 1)):
        if getattr(cfg, key) < low:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be at least {low}")
    levels = [wanted(cfg, level) for level in level_words(cfg.levels)]
    readme = readme_of(cfg.readme, "results", cfg.out)
    found = {level.name: stored(cfg, level) for level in levels}
    todo = []
    for level in levels:
        if found[level.name] is not None:
            print(f"level {level.number}: {path_of(cfg, level.name)} is of this configuration and code, and is used again")
            continue
        for configuration in level.configurations:
            folder = Path(str(configuration.folder))
            if complete(folder):
                print(f"level {level.number} seed {configuration.seed}: {folder} is used again")
                continue
            if (folder / "versions.json").is_file():
                print(f"level {level.number} seed {configuration.seed}: {folder} goes on where it was interrupted")
                configuration = replace(configuration, resume=str(folder))
            elif folder.exists():
                shutil.rmtree(folder)  # interrupted before anything was written
            todo.append((configuration, command_of(cfg, str(configuration.level))))
    if todo:
        print(f"{len(todo)} trainings, {min(cfg.jobs, len(todo))} at a time", flush=True)
        train_all(todo, cfg.jobs)
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    made = [found[level.name] or judge(cfg, level) for level in levels]
    for result in made:
        print(f"\nlevel {result['level']}, {result['name']}\n\n{statistics.markdown(result['rows'], result['probe'])}")
    if readme is not None:
        refresh(Path(readme), Path(cfg.out))
        print(f"\nrefreshed: {readme}")
    return made


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: results(cli.read("results", ResultsConfig, sys.argv[1:], __doc__ or "")),
        ResultsConfig,
        "interrupted: whole trainings stay and are used again by the same command",
    )


if __name__ == "__main__":
    main()
