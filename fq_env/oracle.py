"""The proven best play of one instance of a level of hidden order, by branch and bound with the instance's own durations.

What the world draws for a call does not depend on when it is made, so a plan can be searched without the engine: which useful
functions are called, in which order, on how many places, and what is skipped. Calls that fail or serve no plan only cost;
they are left out. The found play is then carried out by the engine, whose total is the answer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_env.engine import Engine
from fq_env.errors import FQError
from fq_env.level import Level, load_level
from fq_env.state import GOAL, TRUTH
from pit import state
from pit.layout import N_VERBS, SKIP, SOLVED, STANDARD, WAIT

_WORD = 2**64 - 1


def _mix(seed: int, key: int) -> int:
    """The hash of `fq_env.randomness`, on Python's integers."""
    x = (seed + (key + 1) * 0x9E3779B97F4A7C15) & _WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
    return x ^ x >> 31


def _noise(x: int, sigma: float) -> float:
    parts = sum(x >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    normal = ((float(parts) + 2.0) / 65536.0 - 2.0) * math.sqrt(3.0)
    return math.exp(sigma * normal - 0.5 * sigma * sigma) if sigma > 0 else 1.0


class Call(NamedTuple):
    """One useful function of the instance: its task, bit, duration (us), price (micro-units), what it asks for, as bits."""

    task: int
    bit: int
    lasts: int
    price: int
    required: bool
    needs: tuple[int, ...]
    soft: int
    prefers: int
    spoils: int


class State(NamedTuple):
    """A point of the search. `doing`: (end, index of the call) of calls under way, by end; `path`: actions so far."""

    now: int
    spent: int
    have: int
    done: int
    skipped: int
    poor: int
    doing: tuple[tuple[int, int], ...]
    path: tuple[int, ...]


class Search:
    """Branch and bound over one instance that an engine of one environment has just reset."""

    def __init__(self, engine: Engine, level: Level) -> None:
        if level.order is None:
            raise FQError(f"level {level.number} has no proven optimum; the search serves levels of hidden order")
        if len(level.system.pools) > 1 or any(gate.pool is None for gate in level.gates):
            raise FQError(f"level {level.number} has several pools or a gate that asks for a model; the search knows neither")
        self.level, order = level, level.order
        memory, block = engine.memory[0], engine.block
        hot, world = block.hot(memory)[0], block.hidden(memory)[0]
        functions = list(level.system.functions)
        tasks = block.rows(memory, "task_at", state.TASK, int(hot["n_tasks"]))
        truth = block.rows(memory, "truth_at", TRUTH, 3 * len(functions))["mean"]
        factor = block.rows(memory, "goal_at", GOAL, len(tasks))["factor"]
        useful, seed, sigma = int(world["useful"]), int(world["durations"]), float(world["noise"])

        def bits(names: list[str]) -> int:
            return sum(1 << functions.index(name) for name in set(names))

        self.calls: list[Call] = []
        self.others: list[int] = []  # bits of tasks that are of no use
        for i, t in enumerate(tasks):
            f = int(t["function"])
            name = functions[f]
            if not useful >> f & 1:
                self.others.append(i)
                continue
            mean = float(truth[3 * f + STANDARD]) * float(factor[i])
            lasts = max(1, int(mean * _noise(_mix(seed, i * 1024 * 8 + STANDARD), sigma)))
            price = lasts * round(level.system.functions[name].standard.price * 1e6) // 1_000_000
            needs = tuple(bits(x) for x in order.alternatives(name))
            asks = (bits(getattr(order, key).get(name, [])) for key in ("soft", "prefers", "spoils"))
            self.calls.append(Call(i, 1 << f, lasts, price, bool(t["required"]), needs, *asks))
        self.kept = max((gate.free for gate in level.gates if gate.verb == "standard"), default=0)
        self.places, self.quality = int(hot["all_places"]) - self.kept, order.poor  # a call beyond meets a closed gate
        self.lb, self.low, self.high = float(world["lb"]), float(world["cost_low"]), float(world["cost_high"])
        self.start = State(0, 0, int(world["have"]), 0, 0, 0, (), ())
        self.required = sum(1 << k for k, c in enumerate(self.calls) if c.required)
        goal = int(world["goal_index"])
        self.plans = [
            sum(1 << k for k, c in enumerate(self.calls) if functions[c.bit.bit_length() - 1] in plan)
            for plan in order.plans(order.goals[goal])
        ]
        self.present = sum(c.bit for c in self.calls)

    def total(self, makespan: float, spent: float, poor: int) -> float:
        """The score of a run that ends so, with `poor` required outputs of poor quality."""
        w = self.level.score
        n = bin(self.required).count("1")
        base = (n - poor + poor * self.quality) / n
        saved = min(1.0, max(0.0, (self.high - spent) / (self.high - self.low))) if self.high > self.low else 1.0
        quick = min(1.0, self.lb / makespan) if makespan > 0 else 1.0
        bonus = w.efficiency * saved + w.stability + w.optimization * quick
        return base * (1.0 + bonus) / (1.0 + w.efficiency + w.stability + w.optimization)

    def bound(self, s: State) -> float:
        """No play from here scores more: the cheapest plan's rest, spread over all places."""
        begun = s.done | sum(1 << k for _, k in s.doing)
        work, price = math.inf, math.inf
        for plan in self.plans:
            rest = [c for k, c in enumerate(self.calls) if plan >> k & 1 and not begun >> k & 1]
            work = min(work, sum(c.lasts for c in rest) + sum(end - s.now for end, k in s.doing if plan >> k & 1))
            price = min(price, sum(c.price for c in rest))
        flying = sum(self.calls[k].price for _, k in s.doing)
        needed = [end for end, k in s.doing if self.required >> k & 1]
        return self.total(max([s.now + work / self.places, *needed]), s.spent + flying + price, s.poor)

    def solved(self, s: State) -> bool:
        return self.required & ~s.done == 0

    def works(self, s: State, c: Call) -> bool:
        if c.needs and all(need & ~s.have for need in c.needs):
            return False
        return c.soft & self.present & ~s.have & ~s.skipped == 0

    def children(self, s: State) -> list[State]:
        """The points after one decision."""
        busy = s.done | sum(1 << k for _, k in s.doing)
        found = []
        if len(s.doing) < self.places:
            for k, c in enumerate(self.calls):
                if busy >> k & 1 or s.skipped & c.bit or not self.works(s, c):
                    continue
                poor = s.poor + (c.required and c.prefers & ~s.have != 0)
                doing = tuple(sorted((*s.doing, (s.now + c.lasts, k))))
                after = s._replace(poor=poor, doing=doing, path=(*s.path, c.task))
                if len(doing) == self.places:  # nothing more can begin: only a gate leaves a decision, which is to wait
                    after = self.wait(after._replace(path=(*after.path, -1)) if self.kept else after)
                found.append(after)
            found += self.skips(s, busy)
        if s.doing:
            found.append(self.wait(s._replace(path=(*s.path, -1))))
        return found

    def skips(self, s: State, busy: int) -> list[State]:
        """Giving up what something waits for softly: the optional tasks before it fall with it, in order of index."""
        if "skip" not in self.level.system.verbs:
            return []
        own = [(c.task, k) for k, c in enumerate(self.calls) if not c.required and not busy >> k & 1 and not s.skipped & c.bit]
        others = [(i, -1) for i in self.others[self.fallen(s) :]]
        gone, found = s.skipped, []
        for steps, (_, k) in enumerate(sorted(own + others), 1):
            if k >= 0:
                gone |= self.calls[k].bit
                if any(c.soft & self.calls[k].bit for c in self.calls):
                    found.append(s._replace(skipped=gone, path=(*s.path, *([-2] * steps))))
        return found

    def fallen(self, s: State) -> int:
        """How many useless tasks have been skipped already: those before the last useful one that was."""
        last = max((c.task for c in self.calls if s.skipped & c.bit), default=-1)
        return sum(1 for i in self.others if i < last)

    def wait(self, s: State) -> State:
        """The next call under way ends (and all that end at the same time)."""
        end = s.doing[0][0]
        for when, k in s.doing:
            if when == end:
                c = self.calls[k]
                s = s._replace(have=(s.have | c.bit) & ~c.spoils, done=s.done | 1 << k, spent=s.spent + c.price)
        return s._replace(now=end, doing=tuple(x for x in s.doing if x[0] > end))

    def best(self) -> tuple[float, tuple[int, ...]]:
        """The best total and the actions that reach it: tasks to start, -1 wait, -2 skip."""
        best = -1.0
        found: tuple[int, ...] = ()
        seen: set[tuple[object, ...]] = set()
        stack = [(self.bound(self.start), self.start)]
        while stack:
            limit, s = stack.pop()
            if limit <= best:
                continue
            if self.solved(s):
                best, found = max((best, found), (self.total(s.now, s.spent, s.poor), s.path), key=lambda x: x[0])
                continue
            nodes = []
            for child in self.children(s):
                key = child[:7]
                if key not in seen and (limit := self.bound(child)) > best:
                    seen.add(key)
                    nodes.append((limit, child))
            stack += sorted(nodes, key=lambda x: x[0])
        return best, found


def exact_best(level: int | str | Path | Level, split: str, instance: int) -> float:
    """The best total of one instance of a level of hidden order. Raises FQError for other levels."""
    level = load_level(level)
    engine = Engine(level, 1, split=split, autoreset="disabled")
    return exact_on(engine, level, split, instance)


def exact_on(engine: Engine, level: Level, split: str, instance: int) -> float:
    """`exact_best` on an engine (of one environment) that is there already."""
    engine.reset(split=split, instances=[instance])
    search = Search(engine, level)
    _, path = search.best()
    carry_out(engine, path)
    if engine.episodes["status"][0] != SOLVED:
        raise AssertionError(f"level {level.number}, {split} instance {instance}: the plan {path} does not solve it")
    return float(engine.episodes["total"][0])


def carry_out(engine: Engine, path: tuple[int, ...]) -> None:
    """Plays the actions of a plan in the engine."""
    for step in path:
        engine.step(np.array([action_of(engine, step)]))


def action_of(engine: Engine, step: int) -> int:
    """The action of a plan's next step in the engine as it is now: -1 waits, -2 skips, a task is started."""
    if step < 0:
        return WAIT if step == -1 else SKIP
    hot = engine.block.hot(engine.memory[0])[0]
    heads: list[int] = hot["slots"]["head"][: int(hot["n_slots"])].tolist()
    return heads.index(step) * N_VERBS + STANDARD
