"""A small workflow of real processes and the parts of a bundle of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from conductor.policy import MlpSpec, NetworkSpec, SlotsSpec, make_policy, tensor_shapes

MODULE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from conductor.instruments import CallError, Result

def log(job, what):
    with open(job.folder / "effects.log", "a") as file:
        file.write(f"{what} {job.task} {job.key} {job.attempt} {os.getpid()}\\n")

def load(number):
    time.sleep(0.05)
    return number

def broken_load():
    raise RuntimeError("no such weights")

def add(job):
    log(job, "begin")
    time.sleep(job.args.get("sleep", 0.05))
    log(job, "end")
    return Result(job.args.get("number", 0) + (job.model or 0) + sum(job.inputs.values()), quality=0.9)

def fail_once(job):
    if job.attempt == 1:
        raise CallError("not yet", "throttled")
    return add(job)

def fail(job):
    raise ValueError("never")

def hang_once(job):
    if job.attempt == 1:
        time.sleep(60)
    return add(job)

def die_once(job):
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(job)

def returns_a_set(job):
    return {1, 2}
"""
NETWORK = MlpSpec(kind="mlp", layers=[16, 8], activation="tanh")
SLOTS = SlotsSpec(kind="slots", widths=[12, 10], activation="relu")


def small_workflow(**functions: Any) -> dict[str, Any]:
    """a1, a2 (model A) -> b (model B; both do not fit in memory) -> c (no model); c's output is 1 + 2 + 2 * 10 + 100."""
    plan = {name: {"kind": "python", "call": "work:add", "seconds": 20} for name in ("fa", "fb", "plain")}
    return {
        "name": "small",
        "system": {
            "memory": {"ram": 2},
            "pools": {"cpu": {"places": 2, "memory": "ram"}},
            "models": {"A": {"size": 1, "load_seconds": 0.1, "price": 1.0}, "B": {"size": 2, "load_seconds": 0.1}},
            "functions": {
                "fa": {"standard": {"pool": "cpu", "model": "A", "seconds": 0.1, "price": 2.0}},
                "fb": {"standard": {"pool": "cpu", "model": "B", "seconds": 0.1}},
                "plain": {"standard": {"pool": "cpu", "seconds": 0.1}},
            },
            "max_attempts": 40,
        },
        "tasks": [
            {"id": "c", "function": "plain", "after": ["b"]},
            {"id": "a1", "function": "fa", "args": {"number": 1}},
            {"id": "a2", "function": "fa", "args": {"number": 2}},
            {"id": "b", "function": "fb", "after": ["a1", "a2"]},
        ],
        "instruments": {
            "models": {
                "A": {"load": "work:load", "args": {"number": 10}},
                "B": {"load": "work:load", "args": {"number": 100}},
            },
            "functions": {**plan, **functions},
        },
    }


def random_tensors(seed: int = 0, network: NetworkSpec = NETWORK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in tensor_shapes(network).items()}


def random_observations(count: int, seed: int = 0) -> np.ndarray:
    """Observations (count, 512) float32; the i-th has i % 17 slots in use, anywhere."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform(0.01, 1.0, (count, 512)).astype(np.float32)
    places = rng.permuted(np.tile(np.arange(16), (count, 1)), axis=1)
    obs[:, :400].reshape(count, 16, 25)[places >= np.arange(count)[:, None] % 17] = 0.0
    return obs


def bundle_parts(seed: int = 0, network: NetworkSpec = NETWORK) -> dict[str, Any]:
    """Arguments of `write_bundle` for a network of random weights."""
    tensors = random_tensors(seed, network)
    policy = make_policy(network, tensors)
    rng = np.random.default_rng(seed + 1)
    obs, mask = random_observations(64, seed), rng.random((64, 128)) < 0.3
    mask[:, 0] = True
    keep = [i for i in range(64) if np.diff(np.sort(policy.logits(obs[i])[mask[i]])[-2:])[0] > 0.01]
    action = np.array([policy.act(obs[i], mask[i]) for i in keep], np.int64)
    return {
        "tensors": tensors,
        "network": network.model_dump(),
        "golden": {"obs": obs[keep], "mask": mask[keep], "action": action},
        "system_yaml": "pools: {}\n",
        "card": "# Random weights\n",
        "levels": [11],
        "seeds": [2**63],
        "training_hash": "0" * 64,
        "git_commit": "",
        "versions": {"numpy": np.__version__},
        "evaluation": [{"level": 11, "mean": 0.5}],
    }


def conductor(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "conductor", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def output_of(folder: Path, digest: str) -> Any:
    """An output by its digest."""
    return json.loads((folder / "outputs" / digest).read_text())
