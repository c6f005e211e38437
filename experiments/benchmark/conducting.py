"""What the conductor costs: a decision beside stable-baselines3's, rows and fsyncs of the journal, a task, many workflows at
once, and an installation. Everything is run for real, functions that do nothing included.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from conductor.advice import Advice
from conductor.decision_maker import DecisionMaker
from conductor.guard import RangeGuard
from conductor.journal import KINDS, Journal, read_journal
from conductor.manifest import RangesSpec, ranges_of
from conductor.pit_interface import look
from conductor.session import begin_all
from conductor.workflow import Workflow, load_workflow
from pit import state
from pit.handle import Pit

STATES = 500  # of level 20, in which decisions are timed
COMMITS = 200
STEPS = 5
CHAIN = 100
WARM = 50  # first decisions of a round that are not counted
EVENT = {key: "x" * 8 for key in KINDS["event"]}


class _Seen(Pit):
    """A Pit in a state that the game was in."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory, self._address = memory, memory.ctypes.data
        self._event = np.zeros(1, state.EVENT)
        self._observation, self._mask = np.zeros(512, np.float32), np.zeros(128, np.uint8)
        self._seen_at = self._observation.ctypes.data, self._mask.ctypes.data
        self._hot = memory[: state.PIT.itemsize].view(state.PIT)
        self._offsets = {"task_at": int(self._hot["task_at"][0])}
        self._counts = {"tasks": int(self._hot["n_tasks"][0])}
        self._commands = []


def _states(level: int) -> list[_Seen]:
    """States of random legal play in which a decision is due."""
    from experiments.benchmark.environments import random_legal
    from fq_env.engine import Engine

    engine, rng, found = Engine(level, 1, autoreset="same_step", seed=7), np.random.default_rng(7), []
    engine.reset()
    for _ in range(STATES):
        found.append(_Seen(engine.memory[0].copy()))
        engine.step(random_legal(engine.masks, rng.random(1)))
    return found


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50_us": float(p50), "p99_us": float(p99)}


def decision_table(level: int, rounds: int) -> dict[str, Any]:
    """Microseconds from a state to an action, by the conductor and by SB3's `predict` on the same observation and mask.

    In a row: many decisions of one kind, as in play. Taking turns: each decision of the conductor after one of SB3, which has
    filled the processor's caches with other things, as real work does between two decisions.
    """
    import torch
    from pydantic import TypeAdapter
    from sb3_contrib import MaskablePPO

    from conductor.policy import NetworkSpec, make_policy
    from experiments.export import network_of, tensors_of
    from experiments.networks import policy_of
    from fq_env.sb3 import make_sb3_env

    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    kind: Any = SimpleNamespace(network="symphony", net_arch=None, activation="relu", algo="maskable_ppo")
    policy, policy_kwargs = policy_of(kind)
    env = make_sb3_env(level, 1, 0)
    model = MaskablePPO(policy, env, policy_kwargs=policy_kwargs, device="cpu", n_steps=2, batch_size=2)
    spec: NetworkSpec = TypeAdapter(NetworkSpec).validate_python(network_of(model))
    pits = _states(level)
    ranges = RangesSpec.model_validate(ranges_of(np.array([look(pit)[0] for pit in pits])))
    bare = DecisionMaker("adaptive", make_policy(spec, tensors_of(model)), None)
    guarded = DecisionMaker("adaptive", make_policy(spec, tensors_of(model)), None, guard=RangeGuard(ranges))
    whole = {bare: "conductor, whole decision", guarded: "conductor, whole decision with guard"}
    names = "observation and mask", *whole.values(), "SB3 predict"
    turns: dict[str, list[float]] = {name: [] for name in names}
    row: dict[str, list[float]] = {name: [] for name in names[1:]}
    for round_ in range(rounds):
        for k, pit in enumerate(pits):
            maker = (bare, guarded)[(round_ + k) % 2]
            began = time.perf_counter_ns()
            observation, mask, seen = _decide(maker, pit)
            decided = time.perf_counter_ns()
            _predict(model, observation, mask)
            predicted = time.perf_counter_ns()
            if round_ or k >= WARM:
                which = "observation and mask", whole[maker], "SB3 predict"
                for name, span in zip(which, (seen - began, decided - began, predicted - decided)):
                    turns[name].append(span / 1e3)
        for maker, name in whole.items():
            row[name] += _micros(partial(_decide, maker), pits)
        looks = [look(pit) for pit in pits]
        row["SB3 predict"] += _micros(lambda seen: _predict(model, *seen), looks)
    kinds = {"in a row": row, "taking turns": turns}
    return {kind: {name: _percentiles(values) for name, values in times.items()} for kind, times in kinds.items()}


def _decide(maker: DecisionMaker, pit: Pit) -> tuple[np.ndarray, np.ndarray, int]:
    """What was seen, and when (ns), in a decision from the state to the action."""
    pit._hot["slots_valid"] = 0  # as after the events that made it due
    observation, mask = look(pit)
    seen = time.perf_counter_ns()
    maker.choose(pit, observation, mask)
    return observation, mask, seen


def _predict(model: Any, observation: np.ndarray, mask: np.ndarray) -> None:
    model.predict(observation, action_masks=mask, deterministic=True)


def _micros(decide: Callable[[Any], Any], among: Iterable[Any]) -> list[float]:
    """Microseconds of each of several decisions in a row; the first ones are left out."""
    times = []
    for x in among:
        began = time.perf_counter_ns()
        decide(x)
        times.append((time.perf_counter_ns() - began) / 1e3)
    return times[WARM:]


def _write(folder: str, live: int, commits: int) -> None:
    """One event of each live workflow a tick, which is one commit; prints us per event."""
    journal = Journal(Path(folder), new=True)
    for run in range(live):
        journal.add("run", 0, dict.fromkeys(KINDS["run"], ""), run)
    journal.commit()
    began = time.perf_counter()
    for tick in range(commits):
        for run in range(live):
            journal.add("event", tick, EVENT, run)
        journal.commit()
    print((time.perf_counter() - began) / (commits * live) * 1e6)
    journal.close()


def journal_table(rounds: int, commits: int = COMMITS) -> dict[str, Any]:
    """Microseconds and fsyncs per event with 1 and 16 live workflows; fsyncs are counted by strace, where it is installed."""
    table: dict[str, Any] = {}
    for live in (1, 16):
        code = f"from experiments.benchmark.conducting import _write; _write({{!r}}, {live}, {commits})"
        with TemporaryDirectory() as scratch:
            run = partial(subprocess.run, capture_output=True, text=True, check=True)
            times = [float(run([sys.executable, "-c", code.format(f"{scratch}/{i}")]).stdout) for i in range(rounds)]
            fsyncs = None
            if shutil.which("strace"):
                trace = [shutil.which("strace") or "", "-f", "-e", "trace=fsync,fdatasync", "-o", f"{scratch}/trace"]
                run([*trace, sys.executable, "-c", code.format(f"{scratch}/traced")])
                calls = len(re.findall(r"\bf(?:data)?sync\(", Path(scratch, "trace").read_text()))
                fsyncs = calls / (commits * live)
        spread = {"us_per_event": float(np.median(times)), "range": [min(times), max(times)]}
        table[f"{live} live"] = {**spread, "fsyncs_per_event": fsyncs}
    return table


def noop(job: Any) -> int:
    """A function that does nothing."""
    return 0


def chain_of(steps: int, folder: Path) -> Workflow:
    """A workflow of so many calls, one after the other, that do nothing."""
    tasks = [{"id": f"t{i}", "function": "noop", "after": [f"t{i - 1}"] if i else []} for i in range(steps)]
    workflow = {
        "name": "noop",
        "system": {
            "pools": {"cpu": {"places": 1}},
            "functions": {"noop": {"standard": {"pool": "cpu", "seconds": 0.001}}},
            "max_attempts": 3,
        },
        "tasks": tasks,
        "instruments": {"functions": {"noop": {"kind": "python", "call": "experiments.benchmark.conducting:noop"}}},
    }
    path = folder / f"chain-{steps}.yaml"
    path.write_text(json.dumps(workflow))
    return load_workflow(path)


def task_table(rounds: int, steps: int = CHAIN) -> dict[str, float]:
    """Milliseconds of a task beyond what its function took: deciding, recording, handing over, waking up."""
    found = []
    with TemporaryDirectory() as scratch:
        workflow = chain_of(steps, Path(scratch))
        for i in range(rounds):
            (result,) = begin_all([workflow], Path(scratch) / str(i), Advice("parallel"))
            rows = list(read_journal(result.folder.parent))
            first = next(row.time for row in rows if row.kind == "event" and row.data["kind"] == "finished")  # it also imports
            worked = [row.data["elapsed"] for row in rows if row.kind == "event" and row.data["kind"] == "finished"][1:]
            found.append((rows[-1].time - first - sum(worked)) / len(worked) / 1e3)
    return {"ms_per_task": float(np.median(found)), "least": min(found), "most": max(found)}


def _peak() -> float:
    """MiB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many_table(workflows: int, steps: int = STEPS) -> dict[str, Any]:
    """So many workflows at once that do nothing, in a process of their own: throughput, rows, and the conductor's memory."""
    code = f"import json; from experiments.benchmark.conducting import _many; print(json.dumps(_many({workflows}, {steps})))"
    found: dict[str, Any] = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    return found


def _many(workflows: int, steps: int) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        workflow, before = chain_of(steps, Path(scratch)), _peak()
        began = time.perf_counter()
        results = begin_all([workflow] * workflows, Path(scratch) / "runs", Advice("parallel"))
        seconds = time.perf_counter() - began
        rows = sum(1 for _ in read_journal(results[0].folder.parent))
    solved = sum(result.status == "solved" for result in results)
    return {
        "workflows": workflows, "solved": solved, "seconds": seconds, "tasks_per_second": workflows * steps / seconds,
        "rows": rows, "peak_mib": _peak(), "peak_mib_before": before, "workers": min(workflows, 4 * (os.cpu_count() or 1)),
    }  # fmt: skip


def install_table() -> dict[str, Any]:
    """Packages that a conductor imports, and MB of their files."""
    code = (
        "import sys; sys.modules['scipy'] = None\n"  # Numba takes it along where it is, and can do without
        "import conductor.__main__, conductor.session, conductor.instruments.worker\n"
        "import cryptography.hazmat.primitives.asymmetric.ed25519\n"  # when a signature is looked at
        "from pit.handle import Pit\n"
        "print(' '.join(sorted({name.partition('.')[0] for name, module in sys.modules.items() if module})))"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    owners = packages_distributions()
    names = sorted({owner for module in modules for owner in owners.get(module, ())} - {"function-quest"})
    sizes = {}
    for name in names:
        files = [Path(str(file.locate())) for file in distribution(name).files or ()]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    return {"packages": len(names), "mb": sum(sizes.values()), "of": sizes, "torch": "torch" in modules}


def conductor_tables(cfg: Any) -> dict[str, Any]:
    """Every table, printed as it comes."""
    figures: dict[str, Any] = {}

    def tell(name: str, table: dict[str, Any]) -> None:
        figures[name] = table
        print(f"\n{name}: {json.dumps(table, indent=2)}", flush=True)

    tell("decision", decision_table(20, cfg.rounds))
    tell("journal", journal_table(cfg.rounds))
    tell("task", task_table(cfg.rounds))
    tell("many", many_table(cfg.workflows))
    tell("install", install_table())
    return figures
