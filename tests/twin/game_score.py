"""Sections 4 and 5 of the game's rule page in plain Python: bounds, score, potential and rewards.

All of it is computed anew from the whole state each time, but for the sums that the page wants kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pit.layout as L
from tests.twin.estimates import Table
from tests.twin.observation import clip
from tests.twin.pit_twin import TwinPit


def added(values: Iterable[float]) -> float:
    """The sum, each addition rounded (from Python 3.12 on, `sum` rounds floats once)."""
    total = 0.0
    for x in values:
        total += x
    return total


class TwinScore:
    """What an episode is worth, under true means."""

    pit: TwinPit
    weights: Any  # of the level's score
    truth: list[float]  # us, row = 3 x function + variant
    factor: list[float]  # of each task's true mean over its function's
    load_truth: list[float]  # us, per model
    plans: list[set[int]]  # hidden order: functions
    reward_kind: str
    load_paid: bool
    phi: float
    flow_before: float  # of the step before: the sum of weighted flow times ...
    lefts: list[float]  # ... what was left of each workflow ...
    now_before: int  # ... and when that was
    credited: int  # deeds of the Pit that the sums know of

    def mean(self, i: int, v: int) -> float:
        return float(self.truth[3 * self.pit.table[i]["function"] + v] * self.factor[i])

    def cost(self, i: int, v: int) -> float:
        return self.mean(i, v) * self.pit.variant(i, v)["price"] / 10**6

    def load_of(self, i: int, v: int) -> tuple[float, float]:
        """(true mean, price) of loading the variant's model."""
        m = self.pit.variant(i, v)["model"]
        return (0.0, 0.0) if m is None else (self.load_truth[m], self.load_truth[m] * self.pit.models[m]["price"] / 10**6)

    def least_of(self, value: Callable[[int, int], float]) -> list[float]:
        """Of each task, the minimum over its usable variants."""
        return [min(value(i, v) for v in self.pit.usable(i)) for i in range(len(self.pit.table))]

    def set_bounds(self) -> None:
        pit, tasks = self.pit, self.pit.table
        n, hidden = len(tasks), pit.system["order_hidden"]
        needed_of = [pit.needed_tasks(g) for g in range(len(pit.flows))]
        self.needed = [i for own in needed_of for i in own]
        self.sinks = [i for flow in pit.flows for i in flow["sinks"]]
        self.least, self.least_cost = self.least_of(self.mean), self.least_of(self.cost)
        self.rank = [0.0] * n
        for i in reversed(self.needed):
            after = [j for j in tasks[i]["successors"] if not tasks[j]["any"] and i in pit.hard_inputs(j)]
            own = 0.0 if self.all_twins(i) else self.least[i]
            self.rank[i] = own + max((self.rank[j] for j in after), default=0.0)
        for i in range(n):
            if any(j in self.needed and self.serves(j, i) for j in self.all_twins(i)):
                self.least[i] = self.least_cost[i] = 0.0
        self.places = sum(pool["places"] for pool in pit.pools)
        loads, prices = (self.least_of(lambda i, v, k=k: self.load_of(i, v)[k]) for k in (0, 1))  # type: ignore[misc]
        self.load_price = min(prices[i] for i in self.needed)
        self.cost_left = added(self.least_cost[i] for own in needed_of for i in own[::-1])
        self.works_left = [added(self.least[i] for i in own[::-1]) for own in needed_of]
        self.works = [self.unfinished_work(g) for g in range(len(pit.flows))]
        paths = [max(self.rank[i] for i in flow["tasks"]) for flow in pit.flows]
        self.bounds = [
            max(path, work / self.places) + min(loads[i] for i in own)
            for path, work, own in zip(paths, self.works, needed_of, strict=True)
        ]
        self.cost_low = self.unfinished_cost() + self.load_price
        usual = [self.cost(i, L.STANDARD) + self.load_of(i, L.STANDARD)[1] for i in range(n)]
        backwards = [i for flow in pit.flows for i in reversed(flow["tasks"])]
        terms = [[usual[i]] * (hidden + (not tasks[i]["optional"])) for i in backwards]
        self.cost_high = added(x for term in terms for x in term)

    def all_twins(self, i: int) -> list[int]:
        """The other tasks of equal content, in whatever workflow."""
        content = self.pit.table[i]["content"]
        return [j for j, task in enumerate(self.pit.table) if j != i and 0 < content == task["content"]]

    def serves(self, j: int, i: int) -> bool:
        """Task i counts nothing beside its twin j: that is a later one of its workflow, or one of an earlier workflow."""
        mine, other = self.pit.table[i]["flow"], self.pit.table[j]["flow"]
        return other < mine or (other == mine and j > i)

    def cheapest_plan(self, values: list[float]) -> float:
        """The least over the goal's plans of the sum over their tasks that are not done."""
        sums = []
        for plan in self.plans:
            todo = [i for i, task in enumerate(self.pit.table) if task["function"] in plan and task["state"] != L.DONE]
            sums.append(added(values[i] for i in todo[::-1]))
        return min(sums)

    def several_plans(self) -> bool:
        return self.pit.system["order_hidden"] and len(self.plans) > 1

    def unfinished_work(self, g: int) -> float:
        return self.cheapest_plan(self.least) if self.several_plans() else self.works_left[g]

    def unfinished_cost(self) -> float:
        return self.cheapest_plan(self.least_cost) if self.several_plans() else self.cost_left

    # ------------------------------------------------------------------ section 4: score, potential, reward
    @property
    def elapsed(self) -> int:
        return self.pit.now - self.pit.t0

    def base(self, quality: Callable[[int], float]) -> float:
        return added(quality(i) * self.timeliness(i) for i in self.sinks) / len(self.sinks)

    def timeliness(self, i: int) -> float:
        """What the quality of a required sink counts: less than 1 if it was done after the deadline, or will be."""
        task, deadline = self.pit.table[i], self.pit.deadline()
        done = task["done"] if task["state"] == L.DONE else self.pit.now + self.least[i]
        return 1.0 if deadline is None or done <= deadline else float(self.weights.late)

    def late_sinks(self) -> int:
        done = [self.pit.table[i]["done"] for i in self.sinks if self.pit.table[i]["state"] == L.DONE]
        deadline = self.pit.deadline()
        return 0 if deadline is None else sum(time > deadline for time in done)

    def formula(self, base: float, due: float, flow: float) -> Table:
        """Score and parts; `due` is what must still be paid, `flow` the sum of weighted flow times."""
        low, high, w = self.cost_low, self.cost_high, self.weights
        efficiency = clip((high - self.pit.spent - due) / (high - low), 0.0, 1.0) if high > low else 1.0
        stability = max(0.0, 1.0 - self.pit.system["warning_weight"] * self.pit.warnings)
        optimization = min(1.0, self.weighted(self.bounds) / flow) if flow > 0 else 1.0
        bonus = w.efficiency * efficiency + w.stability * stability + w.optimization * optimization
        total = base * (1.0 + bonus) / (1.0 + w.efficiency + w.stability + w.optimization)
        return {
            "total": total, "base": base, "efficiency": efficiency, "stability": stability, "optimization": optimization,
        }  # fmt: skip

    def score(self) -> Table:
        base = self.base(lambda i: self.pit.table[i]["quality"]) if self.pit.status == L.SOLVED else 0.0
        return self.formula(base, 0.0, self.flow() if self.pit.stream else self.elapsed)

    def best_quality(self) -> list[float]:
        """Of each task's output: reached, or the best that its inputs still allow."""
        best, a = list[float](), self.pit.system["quality_flow"]
        for i, task in enumerate(self.pit.table):
            if task["state"] in (L.DONE, L.GIVEN_UP):
                best.append(task["quality"])
                continue
            own = max(self.pit.variant(i, v)["quality"] for v in self.pit.usable(i))
            inputs = task["inputs"]
            mean = added(best[j] for j in inputs) / len(inputs) if inputs else 1.0
            if task["any"]:
                mean = max(best[j] for j in inputs if self.pit.table[j]["state"] != L.GIVEN_UP)
            best.append(own * (1.0 - a + a * mean))
        return best

    def done_of(self, call: Table) -> int:
        """min(time since start, floor of least) of a call in flight."""
        return 0 if call["start"] is None else min(self.pit.now - call["start"], math.floor(self.least[call["task"]]))

    def count_left(self) -> None:
        """Of the tasks that were done or must run again since the last look, in that order."""
        for i, sign in self.pit.deeds[self.credited :]:
            if i in self.needed:
                self.cost_left -= sign * self.least_cost[i]
                self.works_left[self.pit.table[i]["flow"]] -= sign * self.least[i]
        self.credited = len(self.pit.deeds)

    def left(self, g: int) -> float:
        """Lower bound of the time that workflow g still takes."""
        pit, flow = self.pit, self.pit.flows[g]
        if flow["arrived"] is None:
            return self.bounds[g]
        if flow["ended"] is not None:
            return 0.0
        oldest = [pit.calls[own[0]] for i in flow["tasks"] if (own := pit.calls_of(i))]
        paths = [self.rank[i] for i in pit.ready_tasks() if i in flow["tasks"]]
        paths += [self.rank[c["task"]] - self.done_of(c) for c in oldest]
        work = self.unfinished_work(g) - sum(self.done_of(call) for call in oldest if call["task"] in self.needed)
        return max([*paths, work / self.places, 0.0])

    def flow_time(self, g: int) -> float:
        """How long workflow g takes from its arrival to its end, at least."""
        flow = self.pit.flows[g]
        if flow["arrived"] is None:
            return self.bounds[g]
        if flow["ended"] is not None:
            return float(flow["ended"] - flow["arrived"])
        return float(self.pit.now - flow["arrived"] + self.left(g))

    def weighted(self, values: Iterable[float]) -> float:
        """The sum of weight x value over the workflows, in order."""
        return added(flow["weight"] * x for flow, x in zip(self.pit.flows, values, strict=True))

    def flow(self) -> float:
        return self.weighted(self.flow_time(g) for g in range(len(self.pit.flows)))

    def potential(self) -> float:
        if self.pit.status == L.SOLVED:
            return self.score()["total"]
        if self.pit.status != L.ON:
            return 0.0
        best = self.best_quality()
        due = self.unfinished_cost() + (0.0 if self.load_paid else self.load_price)
        return self.formula(self.base(best.__getitem__), due, self.flow())["total"]

    def reward(self) -> float:
        pit, bound = self.pit, self.weighted(self.bounds)
        phi, flow, ended = self.potential(), self.flow(), pit.status != L.ON
        lefts = [self.left(g) for g in range(len(pit.flows))]
        if pit.stream:
            longer = flow - self.flow_before
        else:
            longer = pit.now - self.now_before + lefts[0] - self.lefts[0]
        rewards = {
            "potential": phi - self.phi,
            "sparse": self.score()["total"] if ended else 0.0,
            "makespan": -longer / bound,
            "conductor": 0.0,
        }
        if pit.status == L.FAILED:
            rewards["makespan"] -= float(self.horizon - self.elapsed) * self.weighted([1.0] * len(pit.flows)) / bound
        if pit.status == L.SOLVED:
            rewards["conductor"] = (1.0 - flow / (flow + bound)) * self.score()["base"]
        self.phi, self.flow_before, self.lefts, self.now_before = phi, flow, lefts, pit.now
        return rewards[self.reward_kind]

    def flow_figures(self) -> Table:
        """Mean weighted flow time, us, and how much longer than its bound it is."""
        weights, times = added(flow["weight"] for flow in self.pit.flows), [self.flow_time(g) for g in range(len(self.bounds))]
        slower = added(
            flow["weight"] * time / bound if bound > 0 else 0.0
            for flow, time, bound in zip(self.pit.flows, times, self.bounds, strict=True)
        )
        return {"flow": self.flow() / weights / 1e6, "slowdown": slower / weights, "workflows": len(self.pit.arrivals)}
