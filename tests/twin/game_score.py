"""Section 4 of the game's rule page in plain Python: bounds, score, potential and rewards.

All of it is computed anew from the whole state each time, but for two sums that the page wants kept.
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
    left_before: float
    now_before: int
    credited: int  # deeds of the Pit that the two sums know of

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
            own = 0.0 if pit.twins(i) else self.least[i]
            self.rank[i] = own + max((self.rank[j] for j in after), default=0.0)
        for i in range(n):
            if any(j > i and j in self.needed for j in pit.twins(i)):
                self.least[i] = self.least_cost[i] = 0.0
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
        return added(quality(i) * self.timeliness(i) for i in self.pit.sinks) / len(self.pit.sinks)

    def timeliness(self, i: int) -> float:
        """What the quality of a required sink counts: less than 1 if it was done after the deadline, or will be."""
        task, deadline = self.pit.tasks[i], self.pit.deadline()
        done = task["done"] if task["state"] == L.DONE else self.pit.now + self.least[i]
        return 1.0 if deadline is None or done <= deadline else float(self.weights.late)

    def late_sinks(self) -> int:
        done = [self.pit.tasks[i]["done"] for i in self.pit.sinks if self.pit.tasks[i]["state"] == L.DONE]
        deadline = self.pit.deadline()
        return 0 if deadline is None else sum(time > deadline for time in done)

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

    def count_left(self) -> None:
        """Of the tasks that were done or must run again since the last look, in that order."""
        for i, sign in self.pit.deeds[self.credited :]:
            if i in self.needed:
                self.cost_left -= sign * self.least_cost[i]
                self.work_left -= sign * self.least[i]
        self.credited = len(self.pit.deeds)

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
