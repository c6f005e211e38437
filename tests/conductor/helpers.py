"""A small workflow of real processes and the parts of a bundle of random weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conductor.files import canonical
from conductor.policy import MlpSpec, NetworkSpec, SlotsSpec, make_policy, tensor_shapes
from pit.layout import action_name

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

def fail_twice(job):
    if job.attempt < 3:
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

def straggle_once(job):
    if job.attempt == 1:
        log(job, "begin")
        time.sleep(60)
    return add(job)

def together(job):  # two calls that run at once end at once, each with its own output
    Path(job.folder / f"here-{job.attempt}").touch()
    while len(list(job.folder.glob("here-*"))) < 2:
        time.sleep(0.01)
    return job.attempt

def lose_once(job):
    if job.attempt == 1:
        raise CallError("the file is gone", "lost")
    return add(job)

def gather(job):
    return job.inputs

def begun_twice(job):  # goes on until it has begun once more
    log(job, "begin")
    until = time.monotonic() + 15
    while (job.folder / "effects.log").read_text().count(f"begin {job.task} ") < 2 and time.monotonic() < until:
        time.sleep(0.02)
    log(job, "end")
    return job.args["number"] + job.model

def until_told(job):
    log(job, "begin")
    until = time.monotonic() + 100
    while not (job.folder / "told").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return 1

def configure(function, variant):
    with open("configured", "a") as file:
        file.write(f"{function}.{variant}\\n")

def broken_configure(function, variant):
    raise RuntimeError("no such settings")

def wait(job, seconds, what="configured"):  # until somebody has left this file, at most so long
    until = time.monotonic() + seconds
    while not (job.folder / what).exists() and time.monotonic() < until:
        time.sleep(0.02)

def changed(job):  # invalid from its third task on until it is configured
    log(job, "call")
    if not (job.folder / "configured").exists() and len((job.folder / "effects.log").read_text().splitlines()) > 2:
        if job.attempt > 2:
            wait(job, job.args["wait"])
        raise CallError("unknown field", "invalid")
    return 1

def reshaped(job):
    if job.args["number"] > 6:
        wait(job, job.args["wait"], "told")
    return {"text": "x"} if job.args["number"] < 6 else {"body": "x", "pages": 2}

def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

def witness(job):  # does the worker in which a task has begun first still live, in spite of all patience?
    lines = [line.split() for line in (job.folder / "effects.log").read_text().splitlines()]
    process = [line[4] for line in lines if line[:2] == ["begin", job.args["of"]]][0]
    until = time.monotonic() + 15
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return alive(process)
"""
NAMESPACE = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    sys.executable,
    "-c",
]  # a program that may mount disks of its own
NO_DISK = "no user namespace with a disk of its own is to be had here (unshare --user --mount)"
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


def whole_workflow() -> dict[str, Any]:
    """Every verb and join: `s` hangs at first, `alt` is an alternative that hangs, too, `o` may be skipped.

    Only what hangs overruns, also on a slow machine: all else takes a small part of what is expected of it.
    The end gathers `first` (any of q1 and alt), s = 4, a = 1 + 10, and o, 7 or null. Model A leaves memory when unused.
    """
    calls = {"fa": "add", "ask": "add", "slow": "straggle_once", "alt": "hang_once", "gather": "gather", "witness": "witness"}
    return {
        "name": "whole",
        "system": {
            "verbs": ["standard", "queue", "hedge", "cancel", "skip"],
            "memory": {"ram": 2},
            "pools": {"cpu": {"places": 3, "memory": "ram"}, "api": {"places": 2, "rate": 20, "burst": 1}},
            "models": {"A": {"size": 1, "load_seconds": 0.1, "price": 1.0, "keep_alive_seconds": 0.2}},
            "functions": {
                "fa": {"standard": {"pool": "cpu", "model": "A", "seconds": 2.0, "price": 2.0}},
                "ask": {"standard": {"pool": "api", "seconds": 2.0, "price": 1.0}},
                "slow": {"standard": {"pool": "cpu", "seconds": 1.0, "price": 1.0}},
                "alt": {"standard": {"pool": "cpu", "seconds": 3.0}},
                "gather": {"standard": {"pool": "cpu", "seconds": 2.0}},
                "witness": {"standard": {"pool": "cpu", "seconds": 20.0}},
            },
            "money": 100.0,
            "time_out": 20.0,
            "max_attempts": 8,
        },
        "tasks": [
            {"id": "a", "function": "fa", "args": {"number": 1}},
            {"id": "s", "function": "slow", "args": {"number": 4}},
            {"id": "q1", "function": "ask", "args": {"number": 3}},
            {"id": "q2", "function": "ask", "priority": 2, "optional": True},
            {"id": "o", "function": "ask", "args": {"number": 7}, "optional": True},
            {"id": "alt", "function": "alt"},
            {"id": "first", "function": "gather", "after": ["q1", "alt"], "join": "any"},
            {"id": "workers", "function": "witness", "after": ["s"], "args": {"of": "s"}},
            {"id": "end", "function": "gather", "after": ["first", "s", "a", "workers"], "soft": ["o", "q2"]},
        ],
        "instruments": {
            "models": {"A": {"load": "work:load", "args": {"number": 10}}},
            "functions": {name: {"kind": "python", "call": f"work:{call}", "seconds": 20} for name, call in calls.items()},
        },
    }


def preferring(*names: str) -> dict[str, Any]:
    """Arguments of `write_bundle` for a policy that takes the first of these verbs and globals that is legal anywhere."""
    network = MlpSpec(kind="mlp", layers=[], activation="relu")
    bias = np.zeros(128, np.float32)
    for action in range(128):
        name = action_name(action).split()[-1]
        bias[action] = len(names) - names.index(name) if name in names else 0.0
    mask = np.zeros((1, 128), bool)
    mask[0, 112] = True
    golden = {"obs": np.zeros((1, 512), np.float32), "mask": mask, "action": np.array([112])}
    tensors = {"action.weight": np.zeros((128, 512), np.float32), "action.bias": bias}
    return {**bundle_parts(), "tensors": tensors, "network": network.model_dump(), "golden": golden}


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


def own_disk() -> bool:
    """Whether `NAMESPACE` is to be had."""
    try:
        return subprocess.run([*NAMESPACE, "pass"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def reseal(folder: Path, **changes: Any) -> None:
    """Make sizes and hashes fit again after a change, as an attacker would; `changes` are keys of the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_bytes(canonical({**manifest, **changes}))


def output_of(folder: Path, digest: str) -> Any:
    """An output by its digest."""
    return json.loads((folder / "outputs" / digest).read_text())


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """So many files may be opened in here and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(free + 1)]
    for handle in opened:
        os.close(handle)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def running(mark: str) -> list[int]:
    """The processes whose command line holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state != "Z" else []
    return found
