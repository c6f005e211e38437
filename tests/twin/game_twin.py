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
from tests.twin.estimates import Table
from tests.twin.observation import clip
from tests.twin.order import alternatives, plans_of, useful_for
from tests.twin.reading import read_pit

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
        if level.order:
            self.set_order(level.order, functions, int(world["goal_index"]))
        self.have = {f for f in range(len(functions)) if int(world["have"]) >> f & 1}
        self.truth = block.rows(memory, "truth_at", TRUTH, 3 * len(functions))["mean"].tolist()
        self.factor = block.rows(memory, "goal_at", GOAL, n)["factor"].tolist()
        self.load_truth = block.rows(memory, "load_truth_at", LOAD_TRUTH, len(pit.models))["mean"].tolist()
        self.sigma, self.instance_seed = float(world["noise"]), int(world["instance_seed"])
        self.durations, self.failures, self.loads, self.stragglers = (mix(self.instance_seed, s) for s in (1, 2, 3, 5))
        self.straggler_rate = float(world["straggler_rate"])
        self.load_sigma = math.sqrt(math.log(1.0 + level.draw.load_cv * level.draw.load_cv))
        self.loads_so_far = [0] * len(pit.models)
        self.queue: list[tuple[int, int, int, tuple[Any, ...]]] = []  # (time, kind, subject, event)
        self.load_paid, self.wrong, self.poor_calls, self.late_calls = False, 0, 0, 0
        self.steps = self.cold_starts = self.waits = self.holds = self.hedges = self.queued = 0
        self.cancels = 0
        self.started = list[int]()
        self.set_bounds()
        self.horizon = math.floor(level.horizon * self.lb)
        pit.apply((L.ARRIVE, 0, 0, 0, -1.0, 0, 0))
        self.settle()
        self.phi0 = self.phi = self.potential()
        self.left_before, self.now_before, self.reward_sum = self.left(), pit.now, 0.0

    def set_order(self, order: Any, functions: list[str], goal: int) -> None:
        """Hidden order: needs, plans and what is useful, as indices of functions."""

        def indices(names: Iterable[str]) -> set[int]:
            return {functions.index(name) for name in names}

        needs = {f: alternatives(ways) for f, ways in order.needs.items()}
        name = order.goals[goal]
        self.needs = [[indices(way) for way in needs.get(f, [set()])] for f in functions]
        self.soft, self.prefers, self.spoils = (
            [indices(table.get(f, [])) for f in functions] for table in (order.soft, order.prefers, order.spoils)
        )
        self.plans, self.useful = [indices(x) for x in plans_of(name, needs)], indices(useful_for(name, order, needs))
        self.poor = order.poor

    # ------------------------------------------------------------------ section 1: a step
    def step(self, action: int) -> tuple[np.ndarray, list[bool], float, bool, bool]:
        """(observation (512,) float32, mask, reward, terminated, truncated)."""
        pit = self.pit
        given_up = self.given_up()
        pit.act(action)
        if pit.carried is not None:
            self.waits += pit.carried == L.WAIT
            self.holds += pit.carried < L.WAIT and pit.carried % L.N_VERBS == L.HOLD
        self.settle()
        if self.given_up() > given_up and pit.status == L.ON and pit.system["order_hidden"]:
            lost = {pit.tasks[i]["function"] for i in self.given_up()}
            if all(plan & lost for plan in self.plans):
                pit.status = L.FAILED
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
        call, done = self.pit.calls.get(subject), self.done_tasks()
        if not self.pit.apply(event):
            return
        if kind == L.LOADED:
            self.load_paid = True
        for i in self.done_tasks() - done:
            self.count_left(i, -1)
        for i in done - self.done_tasks():
            self.count_left(i, 1)
        if kind == L.FINISHED and call is not None and event[2] == L.OK and self.pit.system["order_hidden"]:
            self.have.add(call["function"])
            self.have -= self.spoils[call["function"]]

    def done_tasks(self) -> set[int]:
        return {i for i, task in enumerate(self.pit.tasks) if task["state"] == L.DONE}

    def given_up(self) -> set[int]:
        return {i for i, task in enumerate(self.pit.tasks) if task["state"] == L.GIVEN_UP}

    # ------------------------------------------------------------------ section 3: commands
    def carry_out(self) -> None:
        for kind, k, task, f, v, _, c, m in self.pit.commands():
            if kind == L.CMD_START:
                self.start(k, task, f, v)
            elif kind == L.CMD_CANCEL:
                self.cancels += 1
                self.queue = [entry for entry in self.queue if entry[1:3] != (L.FINISHED, k)]
            elif kind == L.CMD_LOAD:
                self.load(c, m)
            elif kind == L.CMD_UNLOAD:
                self.pit.apply((L.UNLOADED, c, 0, 0, -1.0, 0, 0))

    def put(self, kind: int, subject: int, error: int, elapsed: int, price: int, quality: float = -1.0) -> None:
        event = (kind, subject, error, elapsed, quality, 0, math.floor(elapsed * price / 10**6))
        self.queue.append((self.pit.now + elapsed, kind, subject, event))

    def start(self, k: int, i: int, f: int, v: int) -> None:
        self.started.append(k)
        self.cold_starts += self.pit.calls[k]["cold"]
        self.hedges += self.pit.calls[k]["hedge"]
        self.queued += self.pit.calls[k]["queued"]
        task, error, quality = self.pit.tasks[i], L.OK, -1.0
        key = (i * 1024 + min(task["attempts"], 1023)) * 8 + 4 * self.pit.calls[k]["hedge"] + v
        mean = self.truth[3 * f + v] * self.factor[i] * noise(mix(self.durations, key), self.sigma)
        if self.straggler_rate > 0:
            mean *= self.late(key, self.pit.calls[k]["pool"])
        elapsed = max(1, math.floor(mean))
        if self.pit.system["order_hidden"]:
            error, quality = self.try_out(f)
        elif (rate := self.draw.failure_rate) > 0 or self.draw.lost_rate > 0:
            u, lost = uniform(mix(self.failures, key)), self.draw.lost_rate
            if u < rate:
                error, elapsed = L.ERR_ERROR, max(1, math.floor(elapsed * (u / rate)))
            elif u < rate + lost:
                error, elapsed = L.ERR_LOST, max(1, math.floor(elapsed * ((u - rate) / lost)))
        self.put(L.FINISHED, k, error, elapsed, self.pit.functions[f]["variants"][v]["price"], quality)

    def late(self, key: int, p: int) -> float:
        """By how much a call that begins now in pool p takes longer."""
        draw, rate, slow = self.draw, self.straggler_rate, False
        if draw.slow_share > 0:
            window = math.floor(draw.slow_seconds * 10**6)
            slow = uniform(mix(mix(self.stragglers, p), 2 * (self.pit.now // window) + 1)) < draw.slow_share
        own = mix(self.stragglers, 1000 + key)
        if uniform(mix(own, 0)) >= min(1.0, rate * (draw.slow_factor if slow else 1.0)):
            return 1.0
        self.late_calls += 1
        low, high = draw.straggler_factor
        return float(low + (high - low) * uniform(mix(own, 1)))

    def try_out(self, f: int) -> tuple[int, float]:
        """(error, quality) of a call in hidden order that begins now."""
        works = any(way <= self.have for way in self.needs[f]) and all(self.can_miss(g) for g in self.soft[f])
        self.wrong += not works or f not in self.useful
        if not works:
            return L.ERR_PRECONDITION, -1.0
        if self.prefers[f] <= self.have:
            return L.OK, -1.0
        self.poor_calls += 1
        return L.OK, self.pit.functions[f]["variants"][L.STANDARD]["quality"] * self.poor

    def can_miss(self, g: int) -> bool:
        """Function g is held, or nobody will deliver it."""
        return g in self.have or all(task["state"] == L.GIVEN_UP for task in self.pit.tasks if task["function"] == g)

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
        n, required, hidden = len(pit.tasks), pit.required(), pit.system["order_hidden"]
        self.needed = pit.needed_tasks()
        self.least, self.least_cost = self.least_of(self.mean), self.least_of(self.cost)
        self.rank = [0.0] * n
        for i in reversed(self.needed):
            after = [j for j in pit.tasks[i]["successors"] if not pit.tasks[j]["any"] and i in pit.hard_inputs(j)]
            self.rank[i] = self.least[i] + max((self.rank[j] for j in after), default=0.0)
        self.places = sum(pool["places"] for pool in pit.pools)
        loads, prices = (self.least_of(lambda i, v, k=k: self.load_of(i, v)[k]) for k in (0, 1))  # type: ignore[misc]
        self.load_price = min(prices[i] for i in self.needed)
        self.work_left, self.cost_left = (added(x[i] for i in self.needed[::-1]) for x in (self.least, self.least_cost))
        self.lb = max(max(self.rank), self.unfinished_work() / self.places) + min(loads[i] for i in self.needed)
        self.cost_low = self.unfinished_cost() + self.load_price
        usual = [self.cost(i, L.STANDARD) + self.load_of(i, L.STANDARD)[1] for i in range(n)]
        terms = [[usual[i]] * (hidden + (i in required)) for i in reversed(range(n))]
        self.cost_high = added(x for term in terms for x in term)

    def cheapest_plan(self, values: list[float]) -> float:
        """The least over the goal's plans of the sum over their tasks that are not done."""
        sums = []
        for plan in self.plans:
            todo = [i for i, task in enumerate(self.pit.tasks) if task["function"] in plan and task["state"] != L.DONE]
            sums.append(added(values[i] for i in todo[::-1]))
        return min(sums)

    def several_plans(self) -> bool:
        return self.pit.system["order_hidden"] and len(self.plans) > 1

    def unfinished_work(self) -> float:
        return self.cheapest_plan(self.least) if self.several_plans() else self.work_left

    def unfinished_cost(self) -> float:
        return self.cheapest_plan(self.least_cost) if self.several_plans() else self.cost_left

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
            inputs = task["inputs"]
            mean = added(best[j] for j in inputs) / len(inputs) if inputs else 1.0
            if task["any"]:
                mean = max(best[j] for j in inputs if self.pit.tasks[j]["state"] != L.GIVEN_UP)
            best.append(own * (1.0 - a + a * mean))
        return best

    def done_of(self, call: Table) -> int:
        """min(time since start, floor of least) of a call in flight."""
        return 0 if call["start"] is None else min(self.pit.now - call["start"], math.floor(self.least[call["task"]]))

    def count_left(self, i: int, sign: int) -> None:
        """Task i is done (sign −1) or to be done again (+1)."""
        if i in self.needed:
            self.cost_left += sign * self.least_cost[i]
            self.work_left += sign * self.least[i]

    def left(self) -> float:
        pit = self.pit
        oldest = [pit.calls[own[0]] for i in range(len(pit.tasks)) if (own := pit.calls_of(i))]
        paths = [self.rank[i] for i in pit.ready_tasks()] + [self.rank[c["task"]] - self.done_of(c) for c in oldest]
        work = self.unfinished_work() - sum(self.done_of(call) for call in oldest if call["task"] in self.needed)
        return 0.0 if pit.status == L.SOLVED else max([*paths, work / self.places, 0.0])

    def potential(self) -> float:
        if self.pit.status == L.SOLVED:
            return self.score()["total"]
        if self.pit.status != L.ON:
            return 0.0
        best = self.best_quality()
        due = self.unfinished_cost() + (0.0 if self.load_paid else self.load_price)
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
            "poor_calls": self.poor_calls, "hedges": self.hedges, "cancels": self.cancels,
            "queued": self.queued, "stragglers": self.late_calls, "cost_low": self.cost_low / 1e6,
        }  # fmt: skip
