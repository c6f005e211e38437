"""A run's folder: made once, never overwritten; everything in it is whole or absent.

`config.yaml` (resolved), `versions.json`, `metrics.csv`, `tensorboard/`, `checkpoint.zip` (to go on from), `best.zip` (the
learner at its best look); once complete `curve.png`, `report.md`, `bundle/` and, last of all, `results.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import sources, statistics
from experiments.config import TrainConfig, finished, title_of, trained_levels
from experiments.errors import ExperimentError
from experiments.files import new_folder, write_json, write_text, write_with
from experiments.recipes.told import lines
from fq_env.level import OuterLevel

PACKAGES = (
    *("function-quest", "numpy", "numba", "gymnasium", "torch", "stable-baselines3", "sb3-contrib"),
    *("hydra-core", "pydantic", "safetensors"),
)


@dataclass(frozen=True)
class Run:
    """A run folder that was read: its resolved configuration and the exposure that was trained under."""

    folder: Path
    config: dict[str, Any]
    exposure: str
    versions: dict[str, Any]


def make(cfg: TrainConfig) -> Path:
    """The new folder of a run. A named one must not exist; a default one gets a number if its second is taken."""
    if cfg.folder is not None:
        return new_folder(Path(cfg.folder), "folder")
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-seed{cfg.seed}"
    parent = Path(cfg.runs) / f"level-{title_of(cfg.level)}"
    names = [name, *(f"{name}-{i}" for i in range(2, 100))]
    return new_folder(next((parent / n for n in names if not (parent / n).exists()), parent / name), "runs")


def versions(cfg: TrainConfig, exposure: str, command: str) -> dict[str, Any]:
    """What a result depends on beside the configuration: packages, commit, Python, seeds and the command itself."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": command,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "packages": found,
        "git_commit": git_commit(),
        "seed": cfg.seed,
        "exposure": exposure,
        "configuration": configuration_hash(asdict(cfg)),
        "code": code_hashes(),
        "level": _sha256("".join(level.model_dump_json(exclude={"training"}) for level in trained_levels(cfg.level))),
        "rule": sources.rule_digest(trained_levels(cfg.level)),
        "wandb_id": secrets.token_hex(4),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git_commit() -> str:
    """The commit of this checkout, with `-dirty` if files differ from it; `unknown` outside of one."""
    house = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(house), *arguments), capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def configuration_hash(config: dict[str, Any]) -> str:
    """sha256 of a configuration without its seed, so that runs which differ in it alone are one method, and without the keys
    that only say where records go."""
    records = ("runs", "folder", "sign", "progress_bar", "tensorboard", "wandb", "checkpoint", "resume")
    left_out: tuple[str, ...] = ("seed", *records)
    if config.get("recipe", "plain") == "plain":
        left_out = (*left_out, "recipe", "recipe_options")  # nothing of it is used
    if config.get("masks", True):
        left_out = (*left_out, "masks")
    kept = {key: value for key, value in sorted(config.items()) if key not in left_out}
    return _sha256(OmegaConf.to_yaml(OmegaConf.create(kept), sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def code_hashes() -> dict[str, str]:
    """Package -> sha256 of those of its sources that a training imports."""
    digests: dict[str, Any] = {}
    for file in sources.sources():
        name = file.relative_to(sources.ROOT)
        digest = digests.setdefault(name.parts[0], hashlib.sha256())
        digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return {package: digest.hexdigest() for package, digest in digests.items()}


def changes(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], bool]:
    """How two `versions` differ in what decides the bits of a training, as phrases for people; and whether the world (the
    Pit, the game or the level) is among it."""
    found = [
        f"{name} {now[name]} instead of {then.get(name)}" for name in ("python", "machine") if now[name] != then.get(name)
    ]
    for name, value in now["packages"].items():
        if value != then["packages"].get(name):
            found.append(f"{name} {value} instead of {then['packages'].get(name)}")
    before = then.get("code", {}) | {"level": then.get("level")}
    changed = [name for name, value in (now["code"] | {"level": now["level"]}).items() if value != before.get(name)]
    found += ["another version of the level" if name == "level" else f"other code in {name}/" for name in changed]
    if now["rule"] != then.get("rule", now["rule"]):  # runs of before did not note it
        found.append("another fitted rule")
    return found, bool({"pit", "fq_env", "level"} & set(changed))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else trains in the folder meanwhile; the lock ends with the process. Raises ExperimentError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock a folder
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExperimentError(f"{folder}: another process is training in it; wait until it has ended") from None
        yield
    finally:
        os.close(handle)


def begin(folder: Path, cfg: TrainConfig, about: dict[str, Any]) -> None:
    """Writes what is known before the training starts."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    write_json(folder / "versions.json", about)


def tidy(folder: Path) -> None:
    """Removes what a killed process left half-written: everything under a temporary name."""
    for path in folder.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def point_latest(folder: Path) -> Path:
    """Makes `latest` beside a complete run folder lead to it (a symbolic link, replaced in one step); the link's path."""
    link = folder.parent / "latest"
    scratch = folder.parent / f".latest-{folder.name}"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(folder.name)
    scratch.replace(link)
    return link


def begun(parent: Path) -> list[Path]:
    """The run folders in `parent`, in the order in which they were begun; `latest`, a link to one of them, is left out."""
    found = [file for file in parent.glob("*/config.yaml") if not file.parent.is_symlink()]
    return [file.parent for file in sorted(found, key=lambda file: (file.stat().st_mtime_ns, file.parent.name))]


def unfinished(parent: Path) -> str:
    """For the end of a sentence: the run of `parent` begun last of those that are not complete; "" if all are."""
    left = [folder for folder in begun(parent) if not (folder / "results.json").is_file()]
    return f"; not complete: {left[-1]} (python -m experiments.train resume={left[-1]})" if left else ""


def read_run(folder: Path, key: str = "run") -> Run:
    """Reads a run folder's configuration; `key` is what named it. Raises ExperimentError if it is none."""
    import json

    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        about = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        assert isinstance(config, dict)
        return Run(folder, {str(key): value for key, value in config.items()}, about["exposure"], about)
    except (OSError, ValueError, KeyError, AssertionError):
        raise ExperimentError(
            f"{key}={folder}: is no run folder (config.yaml and versions.json); name one that a training made"
            f"{unfinished(folder.parent)}"
        ) from None


def configuration(run: Run) -> TrainConfig:
    """The checked configuration of a run that goes on. Raises ExperimentError if it is not of this version."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), run.config)
        assert isinstance(config, DictConfig)
        return finished(config)
    except (OmegaConfBaseException, ExperimentError) as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"resume={run.folder}: its config.yaml is not of this version ({reason}); train anew") from None


def save_curve(path: Path, rows: list[dict[str, float]], players: dict[str, float], title: str) -> None:
    """The learning curve as PNG: training episodes, validation score, and the players' validation scores as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("episode/total", "training episodes", "-"), ("validation/total", "validation, greedy", "o-")):
        points = [(row["frames"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=3, lw=1.2, label=label)
    shades = ("0.75", "0.6", "0.45", "0.3", "0.0")
    for (name, score), shade in zip(sorted(players.items(), key=lambda p: p[1]), shades, strict=False):
        axes.axhline(score, ls="--", lw=0.9, color=shade, label=name)
    axes.set(xlabel="frames", ylabel="score", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png"))


def report(folder: Path, cfg: TrainConfig, about: dict[str, Any], table: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """`report.md`: what was trained, how it ended, the table, and the command that gives it again."""
    level, best = facts["level"], facts["best"]
    scores = statistics.markdown(table, level.probe) if table else "Not played (`evaluation.test=0`)."
    again = "The same command on the same machine and versions gives the same weights. " if not facts["resumed"] else ""
    resumed = "".join(f"\n* resumed {how}" for how in facts["resumed"])
    phases = lines(facts["recipe"])
    widths = f" {cfg.net_arch}" if cfg.net_arch else ""
    bundle = " The bundle for the conductor is in `bundle/`." if table and not isinstance(level, OuterLevel) else ""
    rate = facts["frames"] / max(facts["seconds"], 1e-9)
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in ("numba", "torch") if name in about["packages"])
    text = f"""# Level {level.number}, {level.name}: {cfg.algo}, seed {cfg.seed}

{level.teaching}

* {facts["frames"]:,} frames in {facts["seconds"]:.1f} s ({rate:,.0f} frames/s); {facts["ended"]}
* the policy that is kept: after {best["frames"]:,} frames, at the best look (validation {best["total"]:.4f}){resumed}{phases}
* exposure {about["exposure"]}, reward {cfg.reward}, network {cfg.network}{widths} {cfg.activation}
* pass mark: perf {level.pass_mark}
* commit {about["git_commit"]}, Python {about["python"]}, {packages}

## Held-out instances (`test`)

{scores}

![learning curve](curve.png)

## Again

```
{about["command"]}
```

{again}What was used is in `config.yaml` and
`versions.json`.{bundle}
"""
    write_text(folder / "report.md", text)
    return text
