"""From a trained policy to a bundle that the conductor runs: `python -m experiments.export run=RUNDIR`.

The bundle holds the policy's tower and its action head, recorded decisions that every runtime must reproduce, the ranges of
what the policy saw, the system it was trained for, the fitted rule to fall back on, and a card for people. `run=BUNDLE` takes
a bundle instead, and measures its ranges anew.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.calibrate import fitted_weights
from experiments.errors import ExperimentError
from experiments.evaluate import CALIBRATED, WARM_WAIT, Logits, Referee, greedy, play_policy

if TYPE_CHECKING:
    from conductor.bundle import Bundle
    from experiments.run_folder import Run
    from fq_env.level import Level

RECORDED_EPISODES = 64  # validation instances whose decisions are recorded for golden vectors and verification; for the ranges
RANGED_EPISODES, RANGED_DECISIONS = 256, 20_000  # up to so many, until there are so many decisions: rare columns must show
VERIFIED = 4000  # recorded decisions on which torch and the bundle are compared, at most
# Columns that any real work moves, and the keys of `draw` by which training does. (`failure_error` moves in either.)
MOVED_BY = {"duration_error": ("noise_cv", "belief_cv"), "load_error": ("load_cv", "belief_cv")}


@dataclass
class ExportConfig:
    """Keys of the command; explained in `configs/export.yaml`."""

    run: str = MISSING
    out: str | None = MISSING
    golden: int = MISSING
    sign: str | None = MISSING


def _layers(model: Any) -> list[Any]:
    """The linear layers of the policy's MLP, without the action head."""
    from torch import nn

    return [module for module in model.policy.mlp_extractor.policy_net if isinstance(module, nn.Linear)]


def _is_slots(model: Any) -> bool:
    from experiments.networks import SlotsExtractor

    return isinstance(model.policy.mlp_extractor, SlotsExtractor)


def network_of(model: Any) -> dict[str, Any]:
    """The network of a learner's policy as a manifest describes it: kind, sizes, activation."""
    from experiments.networks import ACTIVATIONS

    activation = next(name for name, kind in ACTIVATIONS.items() if kind is model.policy.activation_fn)
    if _is_slots(model):
        return {"kind": "slots", "widths": list(model.policy.net_arch), "activation": activation}
    return {"kind": "mlp", "layers": [layer.out_features for layer in _layers(model)], "activation": activation}


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """The policy's half of a learner's network, with the action head, named as a bundle names it (float32)."""
    policy = model.policy
    if _is_slots(model):
        parts = [("", policy.mlp_extractor.actor), ("", policy.action_net)]
    else:
        parts = [(f"policy.{i}.", layer) for i, layer in enumerate(_layers(model))] + [("action.", policy.action_net)]
    return {f"{prefix}{name}": tensor.numpy().copy() for prefix, part in parts for name, tensor in part.state_dict().items()}


def record(logits: Logits, level: Level, exposure: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The policy's play on validation instances: observations (k, 512) float32 and masks (k, 128) bool of k <= `VERIFIED`
    decisions, spread over it, and the ranges of all of them."""
    from conductor.manifest import ranges_of

    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    first = 0
    while first < RECORDED_EPISODES or (first < RANGED_EPISODES and sum(len(x) for x, _ in blocks) < RANGED_DECISIONS):
        seen: list[tuple[np.ndarray, np.ndarray]] = []
        play_policy(
            logits, level, split="validation", n=RECORDED_EPISODES, first=first, exposure=exposure,
            watch=lambda obs, masks, actions, seen=seen: seen.append((obs.copy(), masks.copy())),  # type: ignore[misc]
        )  # fmt: skip
        obs, masks = (np.concatenate(part) for part in zip(*seen, strict=True))
        blocks.append((obs, masks))
        first += RECORDED_EPISODES
    obs, masks = blocks[0]
    rows = np.linspace(0, len(obs) - 1, min(VERIFIED, len(obs))).astype(np.int64)
    return obs[rows], masks[rows], ranges_of(np.concatenate([x for x, _ in blocks]))


def margins(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """By how much the best legal logit leads the next legal one, (k,); infinite where only one action is legal."""
    ordered = np.sort(np.where(masks, logits, -np.inf), axis=1)
    return np.where(masks.sum(axis=1) > 1, ordered[:, -1] - ordered[:, -2], np.inf)


def choose_golden(logits: np.ndarray, masks: np.ndarray, count: int) -> np.ndarray:
    """Indices of up to `count` decisions clear enough to be the same on every machine; those with a choice first."""
    from conductor.bundle import MIN_MARGIN

    clear = margins(logits, masks) >= 2 * MIN_MARGIN  # torch and NumPy differ by some 1e-6
    candidates = np.flatnonzero(clear & (masks.sum(axis=1) > 1))
    if not candidates.size:
        candidates = np.flatnonzero(clear)
    if not candidates.size:
        raise ExperimentError("no decision of this policy is clear enough for a golden vector; train it longer")
    return candidates[np.linspace(0, candidates.size - 1, min(count, candidates.size)).astype(np.int64)]


def fallback(level: Level, warm_wait: dict[str, Any]) -> dict[str, Any]:
    """The rule that acts where the policy cannot: the one fitted for the level, or else `critical_path_warm_wait`."""
    weights = fitted_weights(level)
    if weights is not None:
        return {"name": CALIBRATED, "params": {"weights": weights}}
    return {"name": WARM_WAIT, "params": {key: float(value) for key, value in warm_wait.items()}}


def still(columns: Collection[str], exposure: str, levels: list[Level]) -> str:
    """What to tell people of live `columns` without some that real work moves: to the range guard every decision is far
    then. "" if none is missing."""
    loads = any(model.load_seconds > 0 for level in levels for model in level.system.models.values())
    dead = [name for name in MOVED_BY if name not in columns and (loads or name != "load_error")]
    if exposure != "full" or not dead:
        return ""
    drawn = {name for name in dead if any(np.any(getattr(level.draw, key)) for level in levels for key in MOVED_BY[name])}
    said = []
    if keys := " and ".join(f"`{name}` ({' or '.join(MOVED_BY[name])})" for name in dead if name not in drawn):
        said.append(
            f"Always 0 in training, and never in real work, where the range guard will call every decision far: {keys}; "
            "set what is named in the level's `draw` and train again."
        )
    if "load_error" in drawn:
        said.append("The policy loaded no model in training, so `load_error` stayed 0: work that loads one is far.")
    return " ".join(said)


def export_model(
    model: Any,
    run: Run,
    levels: list[Level],
    out: Path,
    *,
    golden: int,
    table: list[dict[str, Any]],
    rule: dict[str, Any] | None = None,
    key: str | None = None,
) -> Bundle:
    """Writes the bundle, loads it back and compares its decisions with torch's.

    Args:
        levels: those that were trained. With several, a row of `table` names its level, the bundle's system is a YAML document
            for each level, and the rule to fall back on is one that needs no fit: `critical_path`.
        table: rows of `statistics.compare`.
        rule: fitted parameters of `critical_path_warm_wait`; not needed with several levels.
        key: name of the key that signs it; None: nobody does.

    Raises:
        ConductorError: the folder exists or cannot be written, or there is no such key.
        ExperimentError: no decision is clear enough, or the loaded bundle decides otherwise than torch.
    """
    import yaml

    from conductor.bundle import MIN_MARGIN, load_bundle, write_bundle
    from conductor.manifest import widest
    from conductor.trust import ANYONE
    from experiments.algorithms import torch_logits
    from experiments.config import names_of

    names = names_of(run.config["level"])
    logits, network = torch_logits(model), network_of(model)
    played = [record(logits, level, run.exposure) for level in levels]
    obs, masks = (np.concatenate(part) for part in list(zip(*played, strict=True))[:2])
    values = logits(obs)
    actions = greedy(values, masks)
    chosen = choose_golden(values, masks, golden)
    ranges = widest([ranges for _, _, ranges in played])
    note = still(ranges["columns"], run.exposure, levels)
    write_bundle(
        out,
        tensors=tensors_of(model),
        network=network,
        golden={"obs": obs[chosen], "mask": masks[chosen].astype(np.uint8), "action": actions[chosen]},
        system_yaml=yaml.safe_dump_all(
            (level.system.model_dump(mode="json", exclude_none=True) for level in levels), sort_keys=False
        ),
        card=card(run, levels, table, int(model.num_timesteps), network, note),
        levels=names,
        seeds=[int(run.config["seed"])],
        training_hash=run.versions["configuration"],
        git_commit=run.versions["git_commit"],
        versions={"python": run.versions["python"], **run.versions["packages"]},
        evaluation=[{"level": names[0], "split": "test", **row} for row in table],
        exposure=run.exposure,
        rule=fallback(levels[0], rule or {}) if len(levels) == 1 else {"name": "critical_path", "params": {}},
        ranges=ranges,
        key=key,
    )
    bundle = load_bundle(out, ANYONE)
    clear = np.flatnonzero(margins(values, masks) >= MIN_MARGIN)
    alone = np.array([bundle.policy.act(obs[i], masks[i]) for i in clear])
    together = greedy(bundle.policy.logits_many(obs), masks)[clear]
    wrong = int(((alone != actions[clear]) | (together != actions[clear])).sum())
    if wrong:
        raise ExperimentError(f"{out}: decides otherwise than the trained network in {wrong} of {len(clear)} decisions")
    if note:
        print(f"{out}: {note}")
    return bundle


def card(
    run: Run, levels: list[Level], table: list[dict[str, Any]], frames: int, network: Mapping[str, Any], note: str = ""
) -> str:
    """The model card: what it is, what it scored, where its limits are; `note` is one of them."""
    from experiments.mixture import called, markdown

    about, config = run.versions, run.config
    sizes = ", ".join(str(value) for value in network.values())
    scores = "Not evaluated: the training was interrupted."
    if len(levels) == 1:
        subject, teaching = f"level {levels[0].number}, {levels[0].name}", levels[0].teaching
        scores = statistics.markdown(table, levels[0].probe) if table else scores
    else:
        subject = f"{len(levels)} levels"
        teaching = "\n".join(f"* level {called(level, ', ')}: {level.teaching}" for level in levels)
        scores = markdown(table, levels) if table else scores
    return f"""# Conductor for {subject}

{teaching}

A policy network ({sizes}) from 512 features of the Pit to 128 actions, trained
with {config["algo"]} for {frames:,} frames (seed {config["seed"]}, exposure {run.exposure}, commit {about["git_commit"]}).

## Held-out instances

{scores}

## Limits

* Trained in simulation on {subject}: the range of workflows, pools, models and loads there. Outside of it expect less.
* It reads the exposure `{run.exposure}`; the runtime blanks the columns that it never saw.
* The score is the game's. Where a rule is as good, prefer the rule: it can be explained.
* It must choose among legal actions only; the mask is part of its input.{f"{chr(10)}* {note}" if note else ""}

## Again

`{about["command"]}`
"""


def measure(place: Path, out: Path, key: str | None) -> Bundle:
    """A copy of a bundle whose ranges are measured anew, on the levels that it names, by the policy itself.

    Raises:
        ConductorError: it is not whole, or `out` cannot be written.
        ExperimentError: one of its levels is not to be found here.
    """
    from conductor.bundle import load_bundle, write_bundle
    from conductor.manifest import widest
    from conductor.trust import ANYONE
    from experiments.config import trained_levels

    old = load_bundle(place, ANYONE)
    about, logits = old.manifest, old.policy.logits_many
    levels = [level for name in about.levels for level in trained_levels(name)]
    ranges = widest([record(logits, level, about.exposure)[2] for level in levels])
    if note := still(ranges["columns"], about.exposure, levels):
        print(f"{out}: {note}")
    return write_bundle(
        out,
        tensors=old.tensors("policy.safetensors"),
        network=about.network.model_dump(),
        golden=old.tensors("golden.safetensors"),
        system_yaml=old.system_yaml,
        card=old.card,
        levels=about.levels,
        seeds=about.seeds,
        training_hash=about.training,
        git_commit=about.git_commit,
        versions=about.versions,
        evaluation=about.evaluation,
        exposure=about.exposure,
        rule=about.rule.model_dump(),
        ranges=ranges,
        key=key,
    )


def export(cfg: ExportConfig) -> Bundle:
    """The command: from a run folder's checkpoint and results to a bundle."""
    from conductor.bundle import MAX_GOLDEN
    from conductor.trust import private_key
    from experiments.algorithms import load_model, prepare_torch
    from experiments.config import for_runtime, trained_levels
    from experiments.run_folder import read_run

    if not 1 <= cfg.golden <= MAX_GOLDEN:
        raise ExperimentError(f"golden={cfg.golden}: must lie between 1 and {MAX_GOLDEN}")
    if cfg.sign is not None:
        private_key(cfg.sign)  # missing it is told now, not after the play
    place = Path(cfg.run)
    again = (place / "manifest.json").is_file()
    out = Path(cfg.out) if cfg.out is not None else place / "bundle"
    if again and cfg.out is None:
        raise ExperimentError("out=null: name a folder for the new bundle")
    if out.exists():
        made = " (a training makes one at its end)" if cfg.out is None else ""
        raise ExperimentError(
            f"out={out}: exists already{made} and is not overwritten; `conductor sign {shlex.quote(str(out))} --key "
            f"{cfg.sign or 'NAME'}` signs a bundle that is there, out=DIR names another folder"
        )
    if again:
        bundle = measure(place, out, cfg.sign)
    else:
        run = read_run(place)
        levels = [for_runtime(level, "bundle") for level in trained_levels(run.config["level"])]
        prepare_torch(1)
        model = load_model(run.folder, run.config["algo"])
        finished = run.folder / "results.json"
        facts = json.loads(finished.read_text(encoding="utf-8")) if finished.is_file() else {"test": [], "rule": None}
        rule = facts["rule"]
        if rule is None and len(levels) == 1:
            rule = Referee(levels[0], int(run.config["evaluation"]["fit"])).fitted
        bundle = export_model(model, run, levels, out, golden=cfg.golden, table=facts["test"], rule=rule, key=cfg.sign)
    print(f"bundle: {out} (sha256 of its manifest {bundle.digest[:16]}; {bundle.signature.words()})")
    return bundle


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(lambda: export(cli.read("export", ExportConfig, sys.argv[1:], __doc__ or "")), ExportConfig)


if __name__ == "__main__":
    main()
