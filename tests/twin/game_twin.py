"""The game once more, in plain Python: what the world does around `TwinPit`, and the score, as `fq_env/README.md` says it.

A drawn instance is read as data out of an engine's memory right after its reset (places, figures, workflow, true means,
seeds); what the draws should have been is not repeated here, all that follows from them is. Bounds, potential and
score (`game_score.py`) are computed anew from the whole state each time. It must never import a kernel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

import pit.layout as L
from fq_env.engine import Engine
from fq_env.state import GOAL, LOAD_TRUTH, TRUTH
from tests.twin.chance import mix, noise, uniform
from tests.twin.estimates import Table
from tests.twin.game_score import TwinScore
from tests.twin.order import alternatives, plans_of, useful_for
from tests.twin.reading import read_pit

COUNTED = (
    "steps", "cold_starts", "waits", "holds", "hedges", "queued", "cancels", "skips", "refreshes", "defers", "overflow",
    "short", "reused", "fetches", "moved", "deleted", "wrong_calls", "poor_calls", "stragglers", "outage_calls",
    "decayed_calls", "changed_calls", "gated_calls", "stale_calls", "echo_calls", "critical_quality",
)  # fmt: skip
FAR = 64  # windows in which the next change among the tenants is looked for


class TwinGame(TwinScore):
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
        functions, n = list(level.system.functions), len(pit.table)
        if level.order:
            self.set_order(level.order, functions, int(world["goal_index"]))
        self.have = {f for f in range(len(functions)) if int(world["have"]) >> f & 1}
        truth = block.rows(memory, "truth_at", TRUTH, 3 * len(functions))
        self.truth, self.change = truth["mean"].tolist(), truth["change"].tolist()
        self.factor = block.rows(memory, "goal_at", GOAL, n)["factor"].tolist()
        self.load_truth = block.rows(memory, "load_truth_at", LOAD_TRUTH, len(pit.models))["mean"].tolist()
        self.sigma, self.instance_seed = float(world["noise"]), int(world["instance_seed"])
        self.durations, self.failures, self.loads = (mix(self.instance_seed, s) for s in (1, 2, 3))
        self.stragglers, self.outages, self.tenants, self.gaps, self.sizes = (
            mix(self.instance_seed, s) for s in (5, 6, 7, 9, 11)
        )
        self.gates, self.model_names = level.gates, list(level.system.models)
        self.pool_names = list(level.system.pools)
        self.straggler_rate = float(world["straggler_rate"])
        self.onset, self.decay = world["onset"].tolist(), world["decay"].tolist()
        self.load_sigma = math.sqrt(math.log(1.0 + level.draw.load_cv * level.draw.load_cv))
        self.loads_so_far = [0] * len(pit.models)
        self.queue: list[tuple[int, int, int, tuple[Any, ...]]] = []  # (time, kind, subject, event)
        self.load_paid, self.credited = False, 0
        self.count: Counter[str] = Counter()  # figures of the episode, by the names of its record
        self.started = list[int]()
        self.set_bounds()
        self.lefts = list(self.bounds)
        self.set_arrivals(float(world["load"]), float(world["gap_noise"]))
        self.horizon = math.floor(level.horizon * self.lb)
        self.arrive(0)
        for p in range(len(pit.pools)):
            if size := self.crowd(p, 0):
                pit.apply((L.TENANT_LOAD, p, 0, 0, -1.0, size, 0))
        for p, name in enumerate(self.pool_names):
            if self.draw.crowded.get(name, 0.0) > 0:
                self.await_tenants(p, 0)
        self.settle()
        self.phi0 = self.phi = self.potential()
        self.flow_before, self.now_before, self.reward_sum = self.flow(), pit.now, 0.0
        self.lefts = [self.left(g) for g in range(len(pit.flows))]

    def set_arrivals(self, load: float, sigma: float) -> None:
        """When each workflow after the first comes, and the bound of the whole instance."""
        time, ends = 0, [self.bounds[0]]
        for g in range(1, len(self.bounds)):
            scale = self.works[g - 1] / self.places / load
            time += max(1, math.floor(scale * noise(mix(self.gaps, g), sigma)))
            self.queue.append((time, L.ARRIVE, g, (L.ARRIVE, g, 0, 0, -1.0, 0, 0)))
            ends.append(time + self.bounds[g])
        self.lb = max(ends)

    def arrive(self, g: int) -> bool:
        came = self.pit.apply((L.ARRIVE, g, 0, 0, -1.0, 0, 0))
        if came and self.pit.stream and g == len(self.bounds) - 1:
            self.pit.apply((L.STREAM_CLOSED, 0, 0, 0, -1.0, 0, 0))
        return came

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
            self.count["waits"] += pit.carried == L.WAIT
            self.count["holds"] += pit.carried < L.WAIT and pit.carried % L.N_VERBS == L.HOLD
            self.count["refreshes"] += pit.carried == L.REFRESH
            self.count["defers"] += pit.carried == L.DEFER
            self.count["skips"] += pit.carried == L.SKIP
        self.settle()
        self.count["overflow"] += bool(pit.slots()[1])
        if pit.status == L.ON:
            self.count["short"] += any(pit.refused_for_means_alone(members[0]) for members in pit.slots()[0])
        if self.given_up() > given_up and pit.status == L.ON and pit.system["order_hidden"]:
            lost = {pit.tasks[i]["function"] for i in self.given_up()}
            if all(plan & lost for plan in self.plans):
                pit.status = L.FAILED
        self.count["steps"] += 1
        reward = self.reward()
        self.reward_sum += reward
        terminated = pit.status != L.ON
        return pit.observe(), pit.mask(), reward, terminated, self.count["steps"] >= self.max_steps and not terminated

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
        if kind == L.CONFIG_CHANGED and self.has_changed(subject):
            self.change[subject] = L.NEVER
        if kind == L.TENANT_LOAD:
            self.await_tenants(subject, time // self.crowd_window())
        if not (self.arrive(subject) if kind == L.ARRIVE else self.pit.apply(event)):
            return
        if kind == L.LOADED:
            self.load_paid = True
        if kind == L.FINISHED and call is not None and event[2] == L.OK and self.pit.system["order_hidden"]:
            self.have.add(call["function"])
            self.have -= self.spoils[call["function"]]

    def given_up(self) -> set[int]:
        return {i for i, task in enumerate(self.pit.tasks) if task["state"] == L.GIVEN_UP}

    # ------------------------------------------------------------------ section 3: commands
    def carry_out(self) -> None:
        for kind, k, task, f, v, _, c, m in self.pit.commands():
            if kind == L.CMD_START:
                self.start(k, task, f, v)
            elif kind == L.CMD_CANCEL:
                self.count["cancels"] += 1
                self.queue = [entry for entry in self.queue if entry[1:3] != (L.FINISHED, k)]
            elif kind == L.CMD_LOAD:
                self.load(c, m)
            elif kind == L.CMD_UNLOAD:
                self.pit.apply((L.UNLOADED, c, 0, 0, -1.0, 0, 0))
            elif kind == L.CMD_FETCH:
                self.count["reused"] += 1
            elif kind in (L.CMD_STORE, L.CMD_DELETE):
                self.count["moved"] += kind == L.CMD_STORE
                self.count["deleted"] += kind == L.CMD_DELETE
            elif kind == L.CMD_CONFIGURE:
                event = (L.CONFIG_CHANGED, 3 * f + v, 0, 0, -1.0, 0, 0)
                self.queue.append((self.pit.now + math.floor(self.draw.config_seconds * 10**6), *event[:2], event))
        self.count_left()

    def put(self, kind: int, subject: int, error: int, elapsed: int, price: int, quality: float = -1.0, size: int = 0) -> None:
        event = (kind, subject, error, elapsed, quality, size, elapsed * price // 10**6)
        self.queue.append((self.pit.now + elapsed, kind, subject, event))

    def start(self, k: int, i: int, f: int, v: int) -> None:
        self.started.append(k)
        self.count["cold_starts"] += self.pit.calls[k]["cold"]
        self.count["hedges"] += self.pit.calls[k]["hedge"]
        self.count["queued"] += self.pit.calls[k]["queued"]
        self.count["fetches"] += self.pit.calls[k]["fetch"] > 0
        self.count["stale_calls"] += self.pit.calls[k]["stale"] > 0
        self.count["echo_calls"] += self.pit.twin_runs(i)
        task, p, error, quality = self.pit.tasks[i], self.pit.calls[k]["pool"], L.OK, -1.0
        key = (i * 1024 + min(task["attempts"], 1023)) * 8 + 4 * self.pit.calls[k]["hedge"] + v
        mean = self.truth[3 * f + v] * self.factor[i] * noise(mix(self.durations, key), self.sigma)
        if self.straggler_rate > 0:
            mean *= self.late(key, p)
        if decayed := bool(self.draw.drift) and self.elapsed >= self.onset[p]:
            self.count["decayed_calls"] += 1
            mean *= self.decay[p]
        elapsed = max(1, math.floor(mean))
        if gate := self.closed_gate(v, p):
            self.count["gated_calls"] += 1
            error, elapsed = L.ERR_PRECONDITION, max(1, math.floor(elapsed * gate.after))
        elif self.has_changed(3 * f + v):
            self.count["changed_calls"] += 1
            error, elapsed = L.ERR_INVALID, max(1, math.floor(elapsed * self.draw.change_after))
        elif self.pit.system["order_hidden"]:
            error, quality = self.try_out(f)
        else:
            u, rate, lost, after = uniform(mix(self.failures, key)), self.draw.failure_rate, self.draw.lost_rate, 1.0
            if decayed:
                rate = max(rate, self.draw.drift_failure)
            if self.is_out(p):
                self.count["outage_calls"] += 1
                rate, after = self.draw.outage_failure, self.draw.outage_after
            if u < rate:
                error, elapsed = L.ERR_ERROR, max(1, math.floor(elapsed * ((u / rate) * after)))
            elif u < rate + lost:
                error, elapsed = L.ERR_LOST, max(1, math.floor(elapsed * ((u - rate) / lost)))
        variant = self.pit.functions[f]["variants"][v]
        elapsed += self.pit.calls[k]["fetch"]
        self.put(L.FINISHED, k, error, elapsed, variant["price"], quality, self.size(i))
        self.count["busy"] += elapsed
        if not task["optional"] and self.rank[i] >= 0.9 * self.lefts[task["flow"]]:
            self.count["critical_wait"] += self.pit.now - task["ready"]
            self.count["critical_quality"] += variant["quality"]
            self.count["critical_cost"] += elapsed * variant["price"] // 10**6

    def closed_gate(self, v: int, p: int) -> Any:
        """The first gate of the file that is closed to a call of variant v in pool p which is begun now."""
        for gate in self.gates:
            if gate.verb != L.VERBS[v] or gate.at not in (None, self.pool_names[p]):
                continue
            if gate.pool is not None and self.pit.free_places(self.pool_names.index(gate.pool)) < gate.free:
                return gate
            loaded = [copy["model"] for copy in self.pit.copies if copy["state"] in (L.WARM, L.ACTIVE)]
            if gate.model is not None and self.model_names.index(gate.model) not in loaded:
                return gate
        return None

    def size(self, i: int) -> int:
        """Bytes of the output of task i; twins have the same."""
        if self.draw.size is None:
            return 0
        (low, high), content = self.draw.size, self.pit.table[i]["content"]
        return math.floor(low + (high - low) * uniform(mix(self.sizes, 2**20 + content if content else i)))

    def has_changed(self, r: int) -> bool:
        """The variant has another API by now, and the Pit has not been configured for it."""
        return bool(self.draw.api_change) and self.change[r] <= self.elapsed

    def is_out(self, p: int) -> bool:
        """The pool, or rather its fault domain, has an outage now."""
        name, window = self.pool_names[p], math.floor(self.draw.outage_seconds * 10**6)
        domain = self.draw.fault_domains.get(name, p)
        return uniform(mix(mix(self.outages, domain), self.pit.now // window)) < self.draw.outages.get(name, 0.0)

    def crowd_window(self) -> int:
        return math.floor(self.draw.crowd_seconds * 10**6)

    def crowd(self, p: int, k: int) -> int:
        """Places of pool p that other tenants take in window k."""
        stream, (low, high) = mix(self.tenants, p), self.draw.crowd
        if uniform(mix(stream, 2 * k)) >= self.draw.crowded.get(self.pool_names[p], 0.0):
            return 0
        return math.floor(self.pit.pools[p]["places"] * (low + (high - low) * uniform(mix(stream, 2 * k + 1))))

    def await_tenants(self, p: int, told: int) -> None:
        """The next change among the tenants of pool p after window `told` is an event to come."""
        windows = range(told + 1, told + FAR + 1)
        k = next((k for k in windows if self.crowd(p, k) != self.crowd(p, k - 1)), windows[-1])
        event = (L.TENANT_LOAD, p, 0, 0, -1.0, self.crowd(p, k), 0)
        self.queue.append((k * self.crowd_window(), L.TENANT_LOAD, p, event))

    def late(self, key: int, p: int) -> float:
        """By how much a call that begins now in pool p takes longer."""
        draw, rate, slow = self.draw, self.straggler_rate, False
        if draw.slow_share > 0:
            window = math.floor(draw.slow_seconds * 10**6)
            slow = uniform(mix(mix(self.stragglers, p), 2 * (self.pit.now // window) + 1)) < draw.slow_share
        own = mix(self.stragglers, 1000 + key)
        if uniform(mix(own, 0)) >= min(1.0, rate * (draw.slow_factor if slow else 1.0)):
            return 1.0
        self.count["stragglers"] += 1
        low, high = draw.straggler_factor
        return float(low + (high - low) * uniform(mix(own, 1)))

    def try_out(self, f: int) -> tuple[int, float]:
        """(error, quality) of a call in hidden order that begins now."""
        works = any(way <= self.have for way in self.needs[f]) and all(self.can_miss(g) for g in self.soft[f])
        self.count["wrong_calls"] += not works or f not in self.useful
        if not works:
            return L.ERR_PRECONDITION, -1.0
        if self.prefers[f] <= self.have:
            return L.OK, -1.0
        self.count["poor_calls"] += 1
        return L.OK, self.pit.functions[f]["variants"][L.STANDARD]["quality"] * self.poor

    def can_miss(self, g: int) -> bool:
        """Function g is held, or nobody will deliver it."""
        return g in self.have or all(task["state"] == L.GIVEN_UP for task in self.pit.tasks if task["function"] == g)

    def load(self, c: int, m: int) -> None:
        key = m * 65536 + self.loads_so_far[m]
        self.loads_so_far[m] += 1
        elapsed = max(1, math.floor(self.load_truth[m] * noise(mix(self.loads, key), self.load_sigma)))
        self.put(L.LOADED, c, L.OK, elapsed, self.pit.models[m]["price"])

    def episode(self) -> Table:
        """What an engine records of a finished episode."""
        micro = ("busy", "critical_wait", "critical_cost")
        counted = {name: self.count[name] for name in COUNTED} | {name: self.count[name] / 1e6 for name in micro}
        return self.score() | self.flow_figures() | counted | {
            "phi0": self.phi0, "reward_sum": self.reward_sum, "makespan": self.elapsed / 1e6, "lb": self.lb / 1e6,
            "cost": self.pit.spent / 1e6, "cost_low": self.cost_low / 1e6, "calls": len(self.started),
            "loads": sum(self.loads_so_far), "warnings": self.pit.warnings, "instance_seed": self.instance_seed,
            "status": self.pit.status, "late": self.late_sinks(),
        }  # fmt: skip
