"""Random small systems, workflows and worlds that drive two Pits in lockstep and compare all that can be seen of them.

A world answers the commands of the first Pit as an executor might: late, twice, in vain, out of turn, several things at
one time. Everything is drawn from `random.Random(seed)`, so a failure is named by its seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import numpy as np

import pit.layout as L
from pit.spec import History
from tests.twin.conservation import conserve_fetches

Workflow = dict[str, Any]
Operation = tuple[str, Any]
Table = dict[str, Any]
TICK = 50_000  # µs; most durations are whole ticks, so that many events fall on one time


def random_variant(rng: random.Random, pools: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    pool = rng.choice(list(pools))
    places, budget = pools[pool]["places"], pools[pool]["memory"]
    here = [name for i, name in enumerate(models) if i % len(pools) == list(pools).index(pool)]  # a model lives in one pool
    model = rng.choice(here) if here and rng.random() < (0.8 if budget else 0.3) else None
    return {
        "pool": pool, "model": model, "seconds": rng.choice((0.1, 0.35, 1.0, 2.0, rng.uniform(0.05, 5.0))),
        "quality": rng.choice((1.0, rng.uniform(0.1, 1.0))), "price": rng.choice((0.0, rng.uniform(0.0, 0.01))),
        "units": 2 if places > 1 and rng.random() < 0.2 else 1,
        "tokens": rng.randint(0, pools[pool]["burst"]) if rng.random() < 0.4 else min(1, pools[pool]["burst"]), "also": {},
    }  # fmt: skip


def random_pools(rng: random.Random, budgets: Table) -> Table:
    limited = rng.random() < 0.4
    return {
        f"pool{p}": {"places": rng.randint(1, 6), "memory": rng.choice(list(budgets)) if rng.random() < 0.85 else None,
                     "rate": rng.choice((0.3, 1.0, 1.7, rng.uniform(0.1, 4.0))) if limited and rng.random() < 0.7 else None,
                     "burst": rng.randint(1, 4)}
        for p in range(rng.randint(1, 3))
    }  # fmt: skip


def random_task(rng: random.Random, i: int, names: list[str], reach: int, density: float, kind: Table) -> Table:
    """One task with random inputs among those before it; `kind` says how often joins, softness and priorities are used."""
    inputs = [f"task{j}" for j in range(max(0, i - reach), i) if rng.random() < density]
    join = "any" if inputs and rng.random() < kind["any"] else "all"
    soft = [x for x in inputs if join == "all" and rng.random() < kind["soft"]]
    rng.shuffle(inputs)
    return {
        "id": f"task{i}", "function": rng.choice(names), "args": {}, "optional": i > 0 and rng.random() < kind["optional"],
        "after": [x for x in inputs if x not in soft], "soft": soft, "join": join,
        "priority": rng.randint(0, kind["priority"]), "content": 0,
        "seconds": rng.choice((None, rng.choice((0.2, 1.0)), rng.uniform(0.05, 4.0))),
    }  # fmt: skip


def make_twins(rng: random.Random, tasks: list[Table]) -> None:
    """Some tasks get a content, most of them the one of an earlier task of the same function."""
    contents: dict[str, list[int]] = {}
    share = rng.choice((0.2, 0.5, 0.9))
    for number, task in enumerate(tasks, 1):
        known = contents.setdefault(task["function"], [])
        if rng.random() < share:
            task["content"] = rng.choice(known) if known and rng.random() < 0.85 else number
            known.append(task["content"])


def random_tasks(rng: random.Random, functions: Table, wide: bool, optional: tuple[float, ...] = (0.03, 0.2)) -> list[Table]:
    """The tasks of one workflow."""
    n = rng.randint(20, 60) if wide else rng.choice((1, rng.randint(2, 12), rng.randint(10, 40)))
    reach, density = rng.randint(1, 12), rng.choice((0.01, 0.03) if wide else (0.05, 0.2, 0.5))
    kind = {
        "any": rng.choice((0.0, 0.25, 0.6)), "soft": rng.choice((0.0, 0.3)), "optional": rng.choice(optional),
        "priority": rng.choice((0, 1, 2, 3)),
    }  # fmt: skip
    tasks = [random_task(rng, i, list(functions), reach, density, kind) for i in range(n)]
    tasks[-1]["optional"] = False
    return tasks


def random_store(rng: random.Random) -> Table:
    """Room for some of the outputs, whose sizes are 0 to 9."""
    return {
        "hot": rng.choice((3, 10, 30)), "warm": rng.choice((None, 5, 20)), "cold": rng.choice((None, 5, 20)),
        "fetch_seconds": {"warm": rng.choice((0.0, 0.2, 1.0)), "cold": rng.choice((0.5, rng.uniform(0.0, 3.0)))},
    }  # fmt: skip


def random_stream(rng: random.Random, workflow: Workflow) -> list[Workflow]:
    """Workflows that may follow on the same system; twins may stand in any of them."""
    functions = workflow["system"]["functions"]
    workflow["weight"] = rng.choice((1.0, rng.uniform(0.05, 20.0)))
    then: list[Workflow] = []
    for g in range(1, rng.choice((2, 3, 4, 6, 9))):
        tasks = random_tasks(rng, functions, False, (0.0, 0.2, 0.6))[-rng.choice((3, 8, 40)) :]
        kept = {task["id"] for task in tasks}
        for task in tasks:
            task["after"], task["soft"] = ([x for x in task[key] if x in kept] for key in ("after", "soft"))
            task["join"] = task["join"] if task["after"] else "all"
        then.append(
            {"name": f"random{g}", "weight": rng.choice((1.0, rng.uniform(0.05, 20.0))), "system": workflow["system"],
             "tasks": tasks}
        )  # fmt: skip
    tasks = [task for w in (workflow, *then) for task in w["tasks"]]
    for task in tasks:
        task["content"] = 0
    if rng.random() < 0.5:
        make_twins(rng, tasks)
    workflow["system"] |= {"heal": rng.random() < 0.5, "store": random_store(rng) if rng.random() < 0.4 else None}
    if rng.random() < 0.8 and "defer" not in workflow["system"]["verbs"]:
        workflow["system"]["verbs"].append("defer")
    return then


def random_policies(rng: random.Random, functions: Table, n: int) -> Table:
    """Each policy on in a good share of the systems, money tight enough to bind now and then."""

    def maybe(chance: float, value: Any, default: Any) -> Any:
        return value if rng.random() < chance else default

    more = random.Random(n * len(functions))  # so that what came here later changes nothing of what comes behind it
    hidden = rng.random() < 0.25
    deny = [f"{f}.{v}" for f, x in functions.items() for v in ("lite", "premium") if x[v] and rng.random() < 0.15]
    deny += [f"{f}.standard" for f, x in functions.items() if x["lite"] and f"{f}.lite" not in deny and rng.random() < 0.1]
    deny += [f for f in functions if hidden and rng.random() < 0.2]
    return {
        "order_hidden": hidden, "deny": maybe(0.5, deny, []), "money": maybe(0.3, rng.uniform(0.003, 0.02) * n, None),
        "back_off_seconds": maybe(0.6, rng.choice((0.05, 0.5, rng.uniform(0.1, 3.0))), 0.0),
        "back_off_most_seconds": more.choice((None, None, 0.4, 2.0)), "back_off_jitter": more.choice((None, 0.3, 1.0)),
        "time_out": maybe(0.3, rng.choice((1.0, 1.5, rng.uniform(1.0, 4.0))), None),
        "ageing_seconds": maybe(0.4, rng.choice((0.05, 0.5, 2.0)), 0.0), "fair": maybe(0.4, True, False),
        "fallback": maybe(0.4, True, False), "prewarm": maybe(0.3, True, False), "rebalance": maybe(0.25, True, False),
    }  # fmt: skip


def random_workflow(rng: random.Random) -> Workflow:
    """A workflow as a person writes it, every key present, tasks in topological order."""
    budgets = {f"memory{b}": rng.randint(4, 12) for b in range(rng.randint(1, 2))}
    pools = random_pools(rng, budgets)
    models = {
        f"model{m}": {"size": rng.choice((0, 1, 2, 3, 4, 4)), "serves": rng.choice((1, 1, 2, rng.randint(1, 8))),
                      "load_seconds": rng.choice((0.0, 0.5, 1.5, rng.uniform(0.1, 6.0))),
                      "price": rng.choice((0.0, rng.uniform(0.0, 0.01))),
                      "keep_alive_seconds": rng.choice((None, None, 0.05, rng.uniform(0.1, 5.0)))}
        for m in range(rng.randint(1, 5))
    }  # fmt: skip
    wide = rng.random() < 0.3  # many functions at once: groups are widened and a tail arises
    functions: dict[str, Any] = {}
    for f in range(rng.randint(12, 24) if wide else rng.randint(1, 6)):
        variants: dict[str, Any] = {"standard": random_variant(rng, pools, models)}
        for name in ("lite", "premium"):
            variants[name] = random_variant(rng, pools, models) if rng.random() < 0.5 else None
        functions[f"function{f}"] = {"code": rng.uniform(-1.0, 1.0), "fresh_seconds": None, **variants}
    tasks = random_tasks(rng, functions, wide)
    if rng.random() < 0.4:
        make_twins(rng, tasks)
    ages = rng.random() < 0.4
    for function in functions.values():
        if ages and rng.random() < 0.7:
            function["fresh_seconds"] = rng.choice((0.05, 0.5, 2.0, rng.uniform(0.1, 8.0)))
    gangs = len(pools) > 1 and rng.random() < 0.4
    for v in (f[name] for f in functions.values() for name in L.VERBS[: L.N_VARIANTS] if gangs and f[name]):
        other = rng.choice([p for p in pools if p != v["pool"]])
        v["also"] = {other: rng.randint(1, min(2, pools[other]["places"]))} if rng.random() < 0.5 else {}
    rare = 0.5 if rng.random() < 0.7 else 0.0
    system = {
        "memory": budgets, "pools": pools, "models": models, "functions": functions,
        "quality_flow": rng.choice((0.0, 0.5, rng.random())),
        "max_attempts": rng.choice((0, 0, 3, 8)), "warning_weight": rng.choice((0.05, 0.2)),
        "reserve_seconds": rng.choice((0.0, 0.5, rng.uniform(0.1, 8.0))) if gangs else 0.0,
        "stale_quality": rng.choice((0.0, 0.5, 1.0, rng.random())),
        "deadline_seconds": rng.choice((None, rng.uniform(1.0, 60.0))),
        "horizon_seconds": rng.choice((None, None, rng.uniform(5.0, 120.0))),
        **random_policies(rng, functions, len(tasks)),
    }  # fmt: skip
    system["verbs"] = [v for v in L.ENABLED if v == "standard" or rng.random() < (0.85 if v in L.DEFAULT_VERBS else rare)]
    if ages and "refresh" not in system["verbs"] and rng.random() < 0.6:
        system["verbs"].append("refresh")
    for name, function in functions.items():  # at least one variant must stay usable
        usable = [v for v in L.VERBS[: L.N_VARIANTS] if function[v] and v in system["verbs"]]
        if all(f"{name}.{v}" in system["deny"] for v in usable):
            system["deny"] = [x for x in system["deny"] if x != f"{name}.standard"]
    return {"name": "random", "weight": 1.0, "system": system, "tasks": tasks}


def random_history(rng: random.Random, workflow: Workflow) -> History | None:
    """What earlier runs might have measured; None as often as not."""
    if rng.random() < 0.5:
        return None
    durations: dict[tuple[str, str], tuple[float, float, float]] = {}
    for f, function in workflow["system"]["functions"].items():
        for name in L.VERBS[: L.N_VARIANTS]:
            if function[name] and rng.random() < 0.7:
                ratios = [rng.uniform(0.3, 2.5) for _ in range(rng.randint(1, 5))]
                durations[f, name] = (len(ratios), sum(ratios), sum(x * x for x in ratios))
    loads = {m: (2.0, rng.uniform(0.5, 5.0)) for m in workflow["system"]["models"] if rng.random() < 0.5}
    return History(durations, loads)


class World:
    """An executor without manners: it turns commands into events to come."""

    def __init__(self, rng: random.Random, workflow: Workflow, more: int = 0):
        """`more`: workflows that may follow the first."""
        self.rng, self.count = rng, 0
        self.queue: list[tuple] = []
        self.failing = rng.choice((0.0, 0.05, 0.15, 0.3))
        self.straggling = rng.choice((0.0, 0.1))
        self.spoiled = rng.choice((0.0, 0.05))  # share of events out of turn
        self.forgets_unloads = rng.random() < 0.2
        self.pace = rng.choice((0.3, 1.0, 1.0, 3.0))
        self.losing = rng.choice((0.0, 0.3, 0.6))  # share of errors that are `lost`
        self.throttling = rng.choice((0.0, 0.3))
        self.disobeys = rng.choice((0.0, 0.3))  # share of cancelled calls that are reported all the same
        system = workflow["system"]
        self.loads = [model["load_seconds"] for model in system["models"].values()]
        self.seconds = [f["standard"]["seconds"] for f in system["functions"].values()]
        self.past: list[tuple] = []
        self.nagging = 0  # illegal actions to come, one after another, until a wait is forced
        self.put(rng.choice((0, 0, 1_000, 700_000)), (L.ARRIVE, 0, 0, 0, -1.0, 0, 0))
        self.crowd([pool["places"] for pool in system["pools"].values()])
        if more:
            self.stream(more)

    def stream(self, more: int) -> None:
        """Workflows arrive, most often one after the other, and the stream is closed, most often behind the last."""
        rng, time = self.rng, 0
        gap = rng.choice((0, 2, 10, 40, 100))
        for g in range(1, more + 1):
            time += rng.randint(0, gap) * TICK
            early = rng.random() < 0.05
            self.put(rng.randint(0, time) if early else time, (L.ARRIVE, g, 0, 0, -1.0, 0, 0))
        if rng.random() < 0.9:
            end = rng.choice((time, time + rng.randint(0, 1000) * TICK, rng.randint(0, time)))
            self.put(end, (L.STREAM_CLOSED, 0, 0, 0, -1.0, 0, 0))

    def crowd(self, places: list[int]) -> None:
        """Other tenants come and go."""
        rng = self.rng
        for _ in range(rng.choice((0, 0, 0, 3, 20))):
            p = rng.randrange(len(places))
            size = rng.choice((0, 0, 1, rng.randint(0, places[p]), places[p], places[p] + 3))
            self.put(rng.randint(0, 200) * TICK, (L.TENANT_LOAD, p, 0, 0, -1.0, size, 0))

    def put(self, time: int, event: tuple) -> None:
        self.count += 1
        order = (event[0], event[1]) if self.rng.random() < 0.8 else (99, self.count)
        heapq.heappush(self.queue, (time, order, self.count, event))

    def duration(self, seconds: float) -> int:
        micros = seconds * 1e6 * self.pace * self.rng.choice((0.5, 1.0, 1.0, self.rng.uniform(0.2, 3.0)))
        if self.rng.random() < self.straggling:
            micros *= 8
        if self.rng.random() < 0.02:
            return 0
        return max(1, round(micros / TICK)) * TICK if self.rng.random() < 0.8 else round(micros)

    def obey(self, now: int, command: tuple) -> None:
        kind, call, _, function, _, _, copy, model = command
        rng = self.rng
        price = rng.choice((0, rng.randint(0, 20_000)))
        if kind == L.CMD_CANCEL:
            if rng.random() >= self.disobeys:
                about = [(kind, call) for kind in (L.STARTED, L.FINISHED, L.REJECTED)]
                self.queue = [entry for entry in self.queue if entry[3][:2] not in about]
                heapq.heapify(self.queue)
        elif kind == L.CMD_START:
            begun = now
            if rng.random() < 0.15:
                begun += rng.choice((0, TICK, self.duration(0.3)))
                self.put(begun, (L.STARTED, call, 0, 0, -1.0, 0, 0))
            if rng.random() < self.failing / 3:
                self.put(begun + rng.choice((0, TICK)), (L.REJECTED, call, rng.choice((0, 3, 5)), 0, -1.0, 0, 0))
                return
            elapsed = self.duration(self.seconds[function])
            error = self.error() if rng.random() < self.failing else L.OK
            quality = rng.choice((-1.0, -1.0, 0.0, rng.random()))
            self.put(begun + elapsed, (L.FINISHED, call, error, elapsed, quality, rng.randint(0, 9), price))
        elif kind == L.CMD_LOAD:
            elapsed = self.duration(self.loads[model])
            failed = rng.random() < self.failing / 2
            self.put(now + elapsed, (L.LOAD_FAILED if failed else L.LOADED, copy, 0, elapsed, -1.0, 0, price))
        elif kind == L.CMD_CONFIGURE:
            self.put(now + rng.randint(0, 60) * TICK, (L.CONFIG_CHANGED, 3 * function + command[4], 0, 0, -1.0, 0, 0))
        elif kind == L.CMD_UNLOAD and not self.forgets_unloads:
            self.put(now + rng.choice((0, 1_000, TICK, self.duration(1.0))), (L.UNLOADED, copy, 0, 0, -1.0, 0, 0))

    def error(self) -> int:
        x = self.rng.random()
        if x < self.losing:
            return L.ERR_LOST
        return L.ERR_THROTTLED if x < self.losing + self.throttling else self.rng.randint(1, 9)

    def stray(self) -> tuple:
        """An event that may or may not fit: an old one again, or one with a random subject."""
        rng = self.rng
        if self.past and rng.random() < 0.4:
            return rng.choice(self.past)
        kind = rng.choice((*range(len(L.EVENTS)), L.STARTED, L.FINISHED, L.REJECTED))
        subject = rng.choice((0, rng.randint(0, 3), rng.randint(0, 40), self.count, -1))
        return (kind, subject, rng.choice((0, 0, 1, 4)), rng.choice((0, 100_000)), -1.0, rng.choice((1, 1, -1)), 5)


MakeWorld = Callable[[random.Random, Workflow], World]


def random_operation(rng: random.Random, world: World, pit: Any) -> Operation:
    """What happens next: an action, an advance, or an event that is due now."""
    if world.nagging or rng.random() < 0.0003:
        world.nagging = (world.nagging or 150) - 1
        return "act", rng.choice((L.N_ACTIONS - 1, 5))
    if rng.random() < world.spoiled:
        return "apply", world.stray()
    if rng.random() < 0.01:
        return "advance", pit.now + rng.choice((-5, 0, 1, TICK, 12_345))
    if pit.decision_due() or rng.random() < 0.08:
        if pit.status != L.ON or rng.random() < 0.05:
            return "act", rng.randint(-2, L.N_ACTIONS + 2)
        legal = [a for a, yes in enumerate(pit.mask()) if yes]
        starts = [a for a in legal if a != L.WAIT]
        rare = [a for a in starts if a > L.WAIT or a % L.N_VERBS in (L.QUEUE, L.HOLD, L.HEDGE, L.CANCEL)]
        hedges = [a for a in rare if a < L.WAIT and a % L.N_VERBS == L.HEDGE]
        if not legal:
            return "act", 0
        if hedges and rng.random() < 0.6:
            return "act", rng.choice(hedges)
        if rare and rng.random() < 0.35:
            return "act", rng.choice(rare)
        return "act", rng.choice(starts) if starts and rng.random() < 0.85 else rng.choice(legal)
    due = min(world.queue[0][0] if world.queue else L.NEVER, pit.next_timer())
    if due == L.NEVER:
        return "act", L.WAIT if rng.random() < 0.9 else 0
    if due > pit.now or not world.queue or world.queue[0][0] > pit.now:
        return "advance", rng.randint(pit.now, due) if rng.random() < 0.1 else max(due, pit.now)
    event = heapq.heappop(world.queue)[-1]
    world.past.append(event)
    return "apply", event


def do(pit: Any, operation: Operation) -> Any:
    name, value = operation
    return getattr(pit, name)(value)


def look(pit: Any) -> dict[str, Any]:
    """All that is compared after every operation."""
    return {
        "now": int(pit.now), "status": int(pit.status), "next_timer": int(pit.next_timer()), "due": bool(pit.decision_due()),
        "commands": [tuple(int(x) for x in command) for command in pit.commands()],
        "mask": [a for a, yes in enumerate(pit.mask()) if yes], "observation": np.asarray(pit.observe(), np.float32),
        "signatures": [tuple(x) for x in pit.signatures()], "healings": [tuple(x) for x in pit.healings()],
    }  # fmt: skip


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    found = [f"{key}: {a[key]} != {b[key]}" for key in a if key != "observation" and a[key] != b[key]]
    x, y = a["observation"], b["observation"]
    if x.tobytes() != y.tobytes():
        unequal = np.flatnonzero(x.view(np.uint32) != y.view(np.uint32))
        names = [name for name, _ in L.columns()]
        found += [f"{names[k]}: {x[k]!r} != {y[k]!r}" for k in unequal]
    return found


def roam(pit: Any, seed: int, steps: int, workflow: Workflow, make: MakeWorld = World) -> None:
    """Drive one Pit alone through the history that `drive` would choose for it."""
    rng = random.Random(seed * 2 + 1)
    world, ended = make(rng, workflow), 0
    for _ in range(steps):
        do(pit, random_operation(rng, world, pit))
        for command in pit.commands():
            world.obey(pit.now, command)
        ended += pit.status != L.ON or not any(pit.mask())
        if ended > 20:
            break


def drive(
    a: Any, b: Any, seed: int, steps: int, workflow: Workflow, check: Any = None, make: MakeWorld = World
) -> list[Operation]:
    """Drive two Pits of one workflow, or of one stream, through one random history, in lockstep.

    Returns the operations. `make` makes the world that answers. `check(a)` is called after each operation. AssertionError at
    the first difference.
    """
    rng = random.Random(seed * 2 + 1)
    world, operations, ended = make(rng, workflow), list[Operation](), 0
    for _ in range(steps):
        operation = random_operation(rng, world, a)
        operations.append(operation)
        results = do(a, operation), do(b, operation)
        seen, other = look(a), look(b)
        found = differences(seen, other)
        if operation[0] == "apply" and bool(results[0]) != bool(results[1]):
            found.insert(0, f"applied: {results[0]} != {results[1]}")
        tale = "\n".join(map(str, operations[-12:]))
        assert not found, f"seed {seed}, operation {len(operations)}:\n{tale}\n" + "\n".join(found[:20])
        if check:
            check(a)
            conserve_fetches(a, seen["commands"])
        for command in seen["commands"]:
            world.obey(a.now, command)
        ended += seen["status"] != L.ON or not seen["mask"]
        if ended > 20:
            break
    return operations
