"""A run's folder: made once, never overwritten; everything in it is whole or absent.

`config.yaml` (resolved), `versions.json`, `metrics.csv`, `checkpoint.zip`, `results.json`, `curve.png`, `report.md`,
`tensorboard/`, `bundle/`.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments import statistics
from experiments.config import TrainConfig
from experiments.errors import ExperimentError
from experiments.files import new_folder, write_json, write_text, write_with

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
    level = f"{cfg.level:02d}" if isinstance(cfg.level, int) else Path(str(cfg.level)).stem
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-seed{cfg.seed}"
    parent = Path(cfg.runs) / f"level-{level}"
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
    """sha256 of a configuration without the keys that only say where records go."""
    records = ("runs", "folder", "progress_bar", "tensorboard", "wandb")
    kept = {key: value for key, value in sorted(config.items()) if key not in records}
    return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(kept), sort_keys=True).encode()).hexdigest()


def begin(folder: Path, cfg: TrainConfig, about: dict[str, Any]) -> None:
    """Writes what is known before the training starts."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    write_json(folder / "versions.json", about)


def point_latest(folder: Path) -> Path:
    """Makes `latest` beside a complete run folder lead to it (a symbolic link, replaced in one step); the link's path."""
    link = folder.parent / "latest"
    scratch = folder.parent / f".latest-{folder.name}"
    scratch.symlink_to(folder.name)
    scratch.replace(link)
    return link


def read_run(folder: Path) -> Run:
    """Reads a run folder's configuration. Raises ExperimentError if it is none."""
    import json

    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        about = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        assert isinstance(config, dict)
        return Run(folder, {str(key): value for key, value in config.items()}, about["exposure"], about)
    except (OSError, ValueError, KeyError, AssertionError):
        raise ExperimentError(
            f"run={folder}: is no run folder (config.yaml and versions.json); name one that a training made"
        ) from None


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
    level = facts["level"]
    rate = facts["frames"] / max(facts["seconds"], 1e-9)
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in ("numba", "torch") if name in about["packages"])
    text = f"""# Level {level.number}, {level.name}: {cfg.algo}, seed {cfg.seed}

{level.teaching}

* {facts["frames"]:,} frames in {facts["seconds"]:.1f} s ({rate:,.0f} frames/s); {facts["ended"]}
* exposure {about["exposure"]}, reward {cfg.reward}, network {list(cfg.net_arch)} {cfg.activation}
* pass mark: perf {level.pass_mark}
* commit {about["git_commit"]}, Python {about["python"]}, {packages}

## Held-out instances (`test`)

{statistics.markdown(table, level.probe)}

![learning curve](curve.png)

## Again

```
{about["command"]}
```

The same command on the same machine and versions gives the same weights. What was used is in `config.yaml` and
`versions.json`. The bundle for the conductor is in `bundle/`.
"""
    write_text(folder / "report.md", text)
    return text
