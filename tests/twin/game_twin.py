"""The game once more, in plain Python: what the world does around `TwinPit`, and the score, as `fq_env/README.md` says it.

A drawn instance is read as data out of an engine's memory right after its reset (places, figures, workflow, true means,
seeds); what the draws should have been is not repeated here, all that follows from them is. Bounds, potential and
score are computed anew from the whole state each time, never kept up to date. It must never import a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import pit.layout as L
from fq_env.engine import Engine
from fq_env.state import GOAL, LOAD_TRUTH, TRUTH
from pit import state
from tests.twin.estimates import Table
from tests.twin.observation import clip
from tests.twin.pit_twin import TwinPit

WORD = 2**64 - 1


def mix(seed: int, key: int) -> int:
    """A hash of 64 bits."""
    x = (seed + (key + 1) * 0x9E3779B97F4A7C15) & WORD
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & WORD
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def uniform(x: int) -> float:
    return (x >> 11) * 2.0**-53


def normal(x: int) -> float:
    parts = sum(x >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    return ((parts + 2) / 65536 - 2) * math.sqrt(3)


def noise(x: int, sigma: float) -> float:
    return math.exp(sigma * normal(x) - 0.5 * sigma * sigma) if sigma > 0 else 1.0


def added(values: Iterable[float]) -> float:
    """The sum, each addition rounded (from Python 3.12 on, `sum` rounds floats once)."""
    total = 0.0
    for x in values:
        total += x
    return total


def bit_names(bits: int, names: Iterable[str]) -> set[str]:
    return {name for k, name in enumerate(names) if bits >> k & 1}


def read_pit(engine: Engine, i: int) -> TwinPit:
    """The Pit of environment i as it was before its workflow arrived; the environment has just been reset."""
    memory, block = engine.memory[i], engine.block
    hot = block.hot(memory)[0]
    n, n_functions, n_models = (int(hot[name]) for name in ("n_tasks", "n_functions", "n_models"))
    tasks = block.rows(memory, "task_at", state.TASK, n)
    inputs = block.rows(memory, "pred_at", state.INDEX, block.edges)["task"].tolist()
    rows = block.rows(memory, "variant_at", state.VARIANT, L.N_VARIANTS * n_functions)
    models = block.rows(memory, "model_at", state.MODEL, n_models)

    def variant(row: np.void) -> Table | None:
        if row["pool"] < 0:
            return None
        return {
            "pool": int(row["pool"]), "model": None if row["model"] < 0 else int(row["model"]), "units": int(row["units"]),
            "nominal": float(row["nominal"]), "quality": float(row["quality"]), "price": int(row["price"]),
        }  # fmt: skip

    def after_arrival(name: str) -> int:
        return 0 if hot[name] >= L.NEVER else int(hot[name] - hot["t0"])

    system = {
        "rows": int(hot["n_copies"]),
        "budgets": hot["budgets"]["capacity"][: int(hot["n_budgets"])].tolist(),
        "pools": [
            {"places": int(p["places"]), "budget": None if p["budget"] < 0 else int(p["budget"])}
            for p in hot["pools"][: int(hot["n_pools"])]
        ],
        "models": [
            {"size": int(m["size"]), "conc": int(m["serves"]), "load": float(m["nominal"]), "price": int(m["price"])}
            for m in models
        ],
        "functions": [
            {"code": float(rows[3 * f + L.STANDARD]["code"]), "variants": [variant(rows[3 * f + v]) for v in range(3)]}
            for f in range(n_functions)
        ],
        "verbs": bit_names(int(hot["verbs"]), L.VERBS),
        "deadline": after_arrival("deadline"),
        "horizon": after_arrival("horizon"),
        "order_hidden": bool(hot["order_hidden"]),
        "quality_flow": float(hot["quality_flow"]),
        "max_attempts": int(hot["max_attempts"]),
        "warning_weight": float(hot["warning_weight"]),
    }
    workflow = [
        {"function": int(t["function"]), "hint": float(t["hint"]), "optional": not t["required"],
         "after": inputs[int(t["pred_from"]) : int(t["pred_to"])]}
        for t in tasks
    ]  # fmt: skip
    seen = {(f, v): rows[3 * f + v][["n", "s", "ss"]].item() for f in range(n_functions) for v in range(3)}
    loads_seen = {m: models[m][["n", "s"]].item() for m in range(n_models)}
    return TwinPit(system, workflow, L.EXPOSURES[int(hot["exposure"])], seen, loads_seen)


class TwinGame:
    """One episode of environment i of an engine that has just reset it, by the rule page.

    Args:
        reward: one of `potential`, `sparse`, `makespan`, `conductor`.
        max_steps: after these steps an episode is truncated; None takes the level's own.
    """

    def __init__(self, engine: Engine, i: int = 0, reward: str = "potential", max_steps: int | None = None):
        level, memory, block = engine.levels[i], engine.memory[i], engine.block
        world = block.hidden(memory)[0]
        self.pit = pit = read_pit(engine, i)
        self.draw, self.weights, self.max_steps = level.draw, level.score, max_steps or level.max_steps
        self.reward_kind = reward
        functions, n = list(level.system.functions), len(pit.tasks)
        needs = level.order.needs if level.order else {}
        self.needs = [{functions.index(name) for name in needs.get(key, [])} for key in functions]
        self.have = {f for f in range(len(functions)) if int(world["have"]) >> f & 1}
        self.truth = block.rows(memory, "truth_at", TRUTH, 3 * len(functions))["mean"].tolist()
        self.factor = block.rows(memory, "goal_at", GOAL, n)["factor"].tolist()
        self.load_truth = block.rows(memory, "load_truth_at", LOAD_TRUTH, len(pit.models))["mean"].tolist()
        self.sigma, self.instance_seed = float(world["noise"]), int(world["instance_seed"])
        self.durations, self.failures, self.loads = (mix(self.instance_seed, s) for s in (1, 2, 3))
        self.load_sigma = math.sqrt(math.log(1.0 + level.draw.load_cv * level.draw.load_cv))
        self.loads_so_far = [0] * len(pit.models)
        self.queue: list[tuple[int, int, int, tuple[Any, ...]]] = []  # (time, kind, subject, event)
        self.load_paid, self.wrong = False, 0
        self.steps = self.cold_starts = self.waits = self.holds = 0
        self.started, self.outcomes, self.paid = list[int](), list[int](), list[int]()  # for conservation
        self.set_bounds()
        self.horizon = math.floor(level.horizon * self.lb)
        pit.apply((L.ARRIVE, 0, 0, 0, -1.0, 0, 0))
        self.settle()
        self.phi0 = self.phi = self.potential()
        self.left_before, self.now_before, self.reward_sum = self.left(), pit.now, 0.0

    # ------------------------------------------------------------------ section 1: a step
    def step(self, action: int) -> tuple[np.ndarray, list[bool], float, bool, bool]:
        """(observation (512,) float32, mask, reward, terminated, truncated)."""
        pit = self.pit
        calls = pit.next_call
        pit.act(action)
        if pit.waiting:
            self.waits += 1
        elif pit.status == L.ON and pit.next_call == calls:
            self.holds += 1
        self.settle()
        self.steps += 1
        reward = self.reward()
        self.reward_sum += reward
        terminated = pit.status != L.ON
        return pit.observe(), pit.mask(), reward, terminated, self.steps >= self.max_steps and not terminated

    def settle(self) -> None:
        """Until a decision is due."""
        pit = self.pit
        self.carry_out()
        while True:
            event = min(self.queue)[0] if self.queue else L.NEVER
            time = min(pit.next_timer(), event)
            if time > pit.now and pit.decision_due():
                return
            if time == L.NEVER:
                pit.status = L.FAILED
                return
            if pit.next_timer() <= event:
                pit.advance(time)
            else:
                self.happen()
            self.carry_out()

    def happen(self) -> None:
        entry = min(self.queue)
        self.queue.remove(entry)
        time, kind, subject, event = entry
        self.pit.advance(time)
        call = self.pit.calls.get(subject)
        if not self.pit.apply(event):
            return
        self.paid.append(event[6])
        if kind == L.LOADED:
            self.load_paid = True
        elif kind == L.FINISHED and call is not None:
            self.outcomes.append(subject)
            if event[2] == L.OK:
                self.have.add(call["function"])
                self.take_off(call["task"])

    # ------------------------------------------------------------------ section 3: commands
    def carry_out(self) -> None:
        for kind, k, task, f, v, _, c, m in self.pit.commands():
            if kind == L.CMD_START:
                self.start(k, task, f, v)
            elif kind == L.CMD_LOAD:
                self.load(c, m)
            elif kind == L.CMD_UNLOAD:
                self.pit.apply((L.UNLOADED, c, 0, 0, -1.0, 0, 0))

    def put(self, kind: int, subject: int, error: int, elapsed: int, price: int) -> None:
        event = (kind, subject, error, elapsed, -1.0, 0, math.floor(elapsed * price / 10**6))
        self.queue.append((self.pit.now + elapsed, kind, subject, event))

    def start(self, k: int, i: int, f: int, v: int) -> None:
        self.started.append(k)
        self.cold_starts += self.pit.calls[k]["cold"]
        task, error = self.pit.tasks[i], L.OK
        key = (i * 1024 + min(task["attempts"], 1023)) * 4 + v
        mean = self.truth[3 * f + v] * self.factor[i]
        elapsed = max(1, math.floor(mean * noise(mix(self.durations, key), self.sigma)))
        if self.pit.system["order_hidden"]:
            if not self.needs[f] <= self.have:
                error = L.ERR_PRECONDITION
            self.wrong += error != L.OK or task["optional"]
        elif (rate := self.draw.failure_rate) > 0:
            u = uniform(mix(self.failures, key))
            if u < rate:
                error, elapsed = L.ERR_ERROR, max(1, math.floor(elapsed * (u / rate)))
        self.put(L.FINISHED, k, error, elapsed, self.pit.functions[f]["variants"][v]["price"])

    def load(self, c: int, m: int) -> None:
        key = m * 65536 + self.loads_so_far[m]
        self.loads_so_far[m] += 1
        elapsed = max(1, math.floor(self.load_truth[m] * noise(mix(self.loads, key), self.load_sigma)))
        self.put(L.LOADED, c, L.OK, elapsed, self.pit.models[m]["price"])

    # ------------------------------------------------------------------ section 4: bounds
    def mean(self, i: int, v: int) -> float:
        return float(self.truth[3 * self.pit.tasks[i]["function"] + v] * self.factor[i])

    def cost(self, i: int, v: int) -> float:
        return self.mean(i, v) * self.pit.variant(i, v)["price"] / 10**6

    def load_of(self, i: int, v: int) -> tuple[float, float]:
        """(true mean, price) of loading the variant's model."""
        m = self.pit.variant(i, v)["model"]
        return (0.0, 0.0) if m is None else (self.load_truth[m], self.load_truth[m] * self.pit.models[m]["price"] / 10**6)

    def least_of(self, value: Callable[[int, int], float]) -> list[float]:
        """Of each task, the minimum over its usable variants."""
        return [min(value(i, v) for v in self.pit.usable(i)) for i in range(len(self.pit.tasks))]

    def set_bounds(self) -> None:
        pit = self.pit
        n, required = len(pit.tasks), pit.required
        self.least, self.least_cost = self.least_of(self.mean), self.least_of(self.cost)
        self.rank, needed = [0.0] * n, [not task["optional"] for task in pit.tasks]
        for i in reversed(range(n)):
            successors = pit.tasks[i]["successors"]
            needed[i] = needed[i] or any(needed[j] for j in successors)
            if needed[i]:
                self.rank[i] = self.least[i] + max((self.rank[j] for j in successors), default=0.0)
        self.places = sum(pool["places"] for pool in pit.pools)
        loads, prices = (self.least_of(lambda i, v, k=k: self.load_of(i, v)[k]) for k in (0, 1))  # type: ignore[misc]
        backwards = required[::-1]
        self.work_left = work = added(self.least[i] for i in backwards)
        self.lb = max(max(self.rank), work / self.places) + min(loads[i] for i in required)
        self.load_price = min(prices[i] for i in required)
        self.cost_left = added(self.least_cost[i] for i in backwards)
        self.cost_low = self.cost_left + self.load_price
        usual = [self.cost(i, L.STANDARD) + self.load_of(i, L.STANDARD)[1] for i in range(n)]
        hidden = pit.system["order_hidden"]
        terms = [[usual[i]] * (hidden + (i in required)) for i in reversed(range(n))]
        self.cost_high = added(x for term in terms for x in term)

    # ------------------------------------------------------------------ section 4: score, potential, reward
    @property
    def elapsed(self) -> int:
        return self.pit.now - self.pit.t0

    def base(self, quality: Callable[[int], float]) -> float:
        return added(quality(i) for i in self.pit.sinks) / len(self.pit.sinks)

    def formula(self, base: float, due: float, makespan: float) -> Table:
        """Score and parts; `due` is what must still be paid."""
        low, high, w = self.cost_low, self.cost_high, self.weights
        efficiency = clip((high - self.pit.spent - due) / (high - low), 0.0, 1.0) if high > low else 1.0
        stability = max(0.0, 1.0 - self.pit.system["warning_weight"] * self.pit.warnings)
        optimization = min(1.0, self.lb / makespan) if makespan > 0 else 1.0
        bonus = w.efficiency * efficiency + w.stability * stability + w.optimization * optimization
        total = base * (1.0 + bonus) / (1.0 + w.efficiency + w.stability + w.optimization)
        return {
            "total": total, "base": base, "efficiency": efficiency, "stability": stability, "optimization": optimization,
        }  # fmt: skip

    def score(self) -> Table:
        base = self.base(lambda i: self.pit.tasks[i]["quality"]) if self.pit.status == L.SOLVED else 0.0
        return self.formula(base, 0.0, self.elapsed)

    def best_quality(self) -> list[float]:
        """Of each task's output: reached, or the best that its inputs still allow."""
        best, a = list[float](), self.pit.system["quality_flow"]
        for i, task in enumerate(self.pit.tasks):
            if task["state"] in (L.DONE, L.GIVEN_UP):
                best.append(task["quality"])
                continue
            own = max(self.pit.variant(i, v)["quality"] for v in self.pit.usable(i))
            inputs = task["after"]
            mean = added(best[j] for j in inputs) / len(inputs) if inputs else 1.0
            best.append(own * (1.0 - a + a * mean))
        return best

    def done_of(self, call: Table) -> int:
        """min(time since start, floor of least) of a call in flight."""
        return 0 if call["start"] is None else min(self.pit.now - call["start"], math.floor(self.least[call["task"]]))

    def take_off(self, i: int) -> None:
        """Task i has ended: if it is required and done, less is left."""
        task = self.pit.tasks[i]
        if not task["optional"] and task["state"] == L.DONE:
            self.cost_left -= self.least_cost[i]
            self.work_left -= self.least[i]

    def left(self) -> float:
        pit = self.pit
        calls = sorted(pit.calls.values(), key=lambda call: call["task"])
        paths = [self.rank[i] for i in pit.ready_tasks()] + [self.rank[c["task"]] - self.done_of(c) for c in calls]
        work = self.work_left - sum(self.done_of(call) for call in calls if not pit.tasks[call["task"]]["optional"])
        return 0.0 if pit.status == L.SOLVED else max([*paths, work / self.places, 0.0])

    def potential(self) -> float:
        if self.pit.status == L.SOLVED:
            return self.score()["total"]
        if self.pit.status != L.ON:
            return 0.0
        best = self.best_quality()
        due = self.cost_left + (0.0 if self.load_paid else self.load_price)
        return self.formula(self.base(best.__getitem__), due, self.elapsed + self.left())["total"]

    def reward(self) -> float:
        pit = self.pit
        phi, left, ended = self.potential(), self.left(), pit.status != L.ON
        rewards = {
            "potential": phi - self.phi,
            "sparse": self.score()["total"] if ended else 0.0,
            "makespan": -(pit.now - self.now_before + left - self.left_before) / self.lb,
            "conductor": 0.0,
        }
        if pit.status == L.SOLVED:
            rewards["conductor"] = (1.0 - self.elapsed / (self.elapsed + self.lb)) * self.score()["base"]
        self.phi, self.left_before, self.now_before = phi, left, pit.now
        return rewards[self.reward_kind]

    def episode(self) -> Table:
        """What an engine records of a finished episode."""
        return self.score() | {
            "phi0": self.phi0, "reward_sum": self.reward_sum, "makespan": self.elapsed / 1e6, "lb": self.lb / 1e6,
            "cost": self.pit.spent / 1e6, "steps": self.steps, "calls": len(self.started), "cold_starts": self.cold_starts,
            "loads": sum(self.loads_so_far), "wrong_calls": self.wrong, "warnings": self.pit.warnings, "waits": self.waits,
            "holds": self.holds, "instance_seed": self.instance_seed, "status": self.pit.status,
        }  # fmt: skip
