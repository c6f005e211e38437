"""Sections 2 and 3 of the rule book in plain Python: what a run is given, what it remembers, what it estimates."""

from __future__ import annotations

import copy as copying
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pit.layout as L
from pit.build import copy_rows
from pit.spec import History, order_tasks

VARIANT_NAMES = L.VERBS[: L.N_VARIANTS]
PLAIN_KEYS = (
    "order_hidden", "quality_flow", "max_attempts", "warning_weight", "stale_quality", "fair", "fallback", "prewarm",
    "rebalance", "heal",
)  # fmt: skip
OVER = (L.DONE, L.GIVEN_UP)
Table = dict[str, Any]


def micro(x: float) -> int:
    """Seconds to microseconds, price to micro-units."""
    return round(x * 1e6)


class TwinEstimates:
    """One run of one workflow, or of a stream of them, by the rule book.

    `system` and `tasks` are plain data with indices, microseconds and micro-units; `plain()` makes them from workflows
    as people write them. `seen` maps (f, v) to (count, sum, sum of squares), `loads_seen` maps m to (count, sum).
    `flows`: (weight, number of tasks) of each workflow whose tasks stand in the table, in order; `stream`: more than the first
    may come. `table` holds all tasks, `tasks` those of the workflows that have arrived, the first ones of them.
    `reached` counts the rarer sentences that were followed, so that a test can see that its histories reach them all.
    """

    def __init__(
        self, system: Table, tasks: Sequence[Table], exposure: str, seen: Mapping, loads_seen: Mapping,
        flows: Sequence[tuple[float, int]] = (), stream: bool = False,
    ):  # fmt: skip
        self.system, self.exposure = system, L.EXPOSURES.index(exposure)
        self.functions, self.models, self.capacity = system["functions"], system["models"], system["budgets"]
        self.seen, self.loads_seen = dict(seen), dict(loads_seen)
        self.table: list[Table] = [
            dict(task, successors=[], told=set(), state=L.BLOCKED, near=0.0, ready=0, hold=None, queued=None, attempts=0,
                 quality=0.0, size=0, version=0, created=0, done=0, doer=None, work=0.0, cost=0.0, rank=0.0, bucket=0,
                 influence=0.0, tier=None, known=None, used=[0] * len(task["inputs"]))
            for task in tasks
        ]  # fmt: skip
        for i, task in enumerate(self.table):
            for j in task["inputs"]:
                self.table[j]["successors"].append(i)
        self.tasks: list[Table] = []
        self.set_flows(flows or [(1.0, len(self.table))])
        self.stream = self.open = stream
        self.sinks: list[int] = []  # required ones, of the workflows that have arrived
        self.arrivals: list[int] = []
        unused: Table = {
            "busy": 0,
            "tenants": 0,
            "use": 0.0,
            "settled": 0,
            "row": 0,
            "closed": None,
            "stored": 0,
        }
        self.pools: list[Table] = [dict(p, **unused, stored_at=0) for p in system["pools"]]
        self.used = [0] * len(self.capacity)
        idle = {"state": L.IDLE, "pool": -1, "model": -1, "users": 0, "last_used": 0, "committed": 0, "automatic": False}
        self.copies: list[Table] = [dict(idle) for _ in range(system["rows"])]
        self.calls: dict[int, Table] = {}  # in flight, by id
        self.now = self.t0 = self.spent = self.warnings = self.actions = self.actions_here = self.ignored = 0
        self.arrived, self.waiting, self.status, self.outcome = False, False, L.ON, L.OUT_NONE
        self.next_call = self.finishes = self.reused = 0
        self.hint_cold = self.hint_queued = self.hint_throttled = self.hint_stale = 0
        self.quality_done = 0.0
        self.from_queue = [0] * len(self.functions)  # calls begun from a queue
        self.follows: Counter[tuple[int, int]] = Counter()
        self.last_model: int | None = None
        self.duration_error = self.load_error = self.failure_error = 0.0
        self.drifted, self.mark = False, [0.0] * len(self.functions)
        self.work_left = self.cost_left = self.work_total = self.unit = self.lb = self.cp_start = self.upper_cost = 0.0
        self.out: list[tuple[int, ...]] = []
        self.carried: int | None = None  # the action that the last `act` carried out
        self.reached: Counter[str] = Counter()
        self.ended: dict[str, list[int]] = {"finished": [], "failed": [], "cancelled": []}  # calls by how they ended
        self.paid: list[int] = []
        self.deeds: list[tuple[int, int]] = []  # (task, 1 if it was done, -1 if it must run again), in their order

    def set_flows(self, flows: Sequence[tuple[float, int]]) -> None:
        """Workflow g has the tasks that follow those of workflow g - 1 in the table."""
        self.flows: list[Table] = []
        first = 0
        for g, (weight, n) in enumerate(flows):
            tasks = range(first, first := first + n)
            self.flows.append(
                {"weight": weight, "tasks": tasks, "arrived": None, "ended": None, "deferred": False, "lb": 0.0,
                 "remaining": 0.0,
                 "sinks": [i for i in tasks if not self.table[i]["optional"] and not self.table[i]["successors"]]}
            )  # fmt: skip
            for i in tasks:
                self.table[i]["flow"] = g

    @classmethod
    def plain(
        cls, workflow: Table, exposure: str = "full", history: History | None = None, rows: int = 64,
        then: Sequence[Table] = (),
    ) -> Self:  # fmt: skip
        """From workflows as a person writes them (names, seconds, prices), tasks already in topological order."""
        s, workflows = workflow["system"], [workflow, *then]
        budgets, pools, models = list(s["memory"]), list(s["pools"]), list(s["models"])
        functions = list(s["functions"])

        def variant(v: Table | None) -> Table | None:
            return v and {
                "pool": pools.index(v["pool"]), "model": None if v["model"] is None else models.index(v["model"]),
                "taken": {pools.index(p): units for p, units in ({v["pool"]: v["units"]} | v["also"]).items()},
                "tokens": v["tokens"], "nominal": micro(v["seconds"]), "quality": v["quality"],
                "price": micro(v["price"]),
            }  # fmt: skip

        system = {
            "rows": rows,
            "budgets": list(s["memory"].values()),
            "names": functions,
            "pool_names": pools,
            "pools": [
                {"places": p["places"], "budget": None if p["memory"] is None else budgets.index(p["memory"]),
                 "period": p["rate"] and round(1e6 / p["rate"]), "burst": p["burst"]}
                for p in s["pools"].values()
            ],
            "models": [
                {"size": m["size"], "conc": m["serves"], "load": micro(m["load_seconds"]), "price": micro(m["price"]),
                 "keep_alive": micro(m["keep_alive_seconds"] or 0)}
                for m in s["models"].values()
            ],
            "functions": [
                {"code": f["code"], "fresh": micro(f["fresh_seconds"] or 0),
                 "variants": [variant(f.get(name)) for name in VARIANT_NAMES],
                 "forbidden": key in s["deny"],
                 "denied": {v for v, name in enumerate(VARIANT_NAMES) if f"{key}.{name}" in s["deny"]}}
                for key, f in s["functions"].items()
            ],
            "verbs": set(s["verbs"]),
            "deadline": micro(s["deadline_seconds"] or 0),
            "horizon": micro(s["horizon_seconds"] or 0),
            "money": max(1, micro(s["money"])) if s["money"] else 0,
            "back_off": micro(s["back_off_seconds"]),
            "back_off_most": L.NEVER if s["back_off_most_seconds"] is None else micro(s["back_off_most_seconds"]),
            "jitter": s["back_off_jitter"] or 0.0,
            "salt": 0,
            "reserve": micro(s["reserve_seconds"]),
            "ageing": micro(s["ageing_seconds"]),
            "time_out": s["time_out"] or 0.0,
            "store": s["store"] and {
                "hot": s["store"]["hot"], "warm": s["store"]["warm"] or 0, "cold": s["store"]["cold"] or 0,
                "fetch": [0, *(micro(s["store"]["fetch_seconds"][tier]) for tier in ("warm", "cold"))],
            },
        } | {key: s[key] for key in PLAIN_KEYS}  # fmt: skip
        tasks: list[Table] = []
        for w in workflows:
            index = {t["id"]: i for i, t in enumerate(w["tasks"], len(tasks))}
            tasks += [
                {"function": functions.index(t["function"]), "hint": micro(t["seconds"] or 0), "optional": t["optional"],
                 "priority": t["priority"], "any": t["join"] == "any", "content": t["content"],
                 "inputs": [index[name] for name in dict.fromkeys([*t["after"], *t["soft"]])],
                 "soft": {index[name] for name in t["soft"]}}
                for t in w["tasks"]
            ]  # fmt: skip
        for task in tasks:
            if not task["any"]:
                task["soft"] |= {j for j in task["inputs"] if tasks[j]["optional"]}
        past = history or History({}, {})
        seen = {
            (f, v): past.durations.get((function, name), (0, 0.0, 0.0))
            for f, function in enumerate(functions)
            for v, name in enumerate(VARIANT_NAMES)
        }
        loads_seen = {m: past.loads.get(model, (0, 0.0)) for m, model in enumerate(models)}
        flows = [(w["weight"], len(w["tasks"])) for w in workflows]
        return cls(system, tasks, exposure, seen, loads_seen, flows, bool(then))

    @classmethod
    def from_workflow(
        cls, spec: Any, exposure: str = "full", history: History | None = None, then: Sequence[Any] = ()
    ) -> Self:
        """From `pit.spec.WorkflowSpec`s, their tasks put in the topological order that the Pit uses."""
        first, *others = (order_tasks(x).model_dump() for x in (spec, *then))
        return cls.plain(first, exposure, history, copy_rows(spec.system), others)

    # ------------------------------------------------------------------ section 3: estimates
    def variant(self, i: int, v: int) -> Table:
        return self.functions[self.table[i]["function"]]["variants"][v]

    def usable(self, i: int) -> list[int]:
        return self.usable_variants(self.functions[self.table[i]["function"]])

    def usable_variants(self, function: Table) -> list[int]:
        allowed = {v for v in range(3) if VARIANT_NAMES[v] in self.system["verbs"]} - function["denied"]
        return [v for v, x in enumerate(function["variants"]) if x and v in allowed]

    def required(self) -> list[int]:
        """Tasks that are required now, of the workflows that have arrived."""
        return [i for i, task in enumerate(self.tasks) if not task["optional"]]

    def hard_inputs(self, i: int) -> list[int]:
        return [j for j in self.table[i]["inputs"] if j not in self.table[i]["soft"]]

    def base(self, i: int, v: int) -> float:
        nominal, hint = float(self.variant(i, v)["nominal"]), float(self.table[i]["hint"])
        return nominal if hint == 0 else hint * nominal / float(self.variant(i, L.STANDARD)["nominal"])

    def ratio(self, f: int, v: int) -> float:
        n, s, _ = self.seen[f, v]
        return (2.0 + s) / (2.0 + n)

    def est(self, i: int, v: int) -> float:
        return self.base(i, v) * self.ratio(self.table[i]["function"], v)

    def spread(self, i: int, v: int) -> float:
        f = self.table[i]["function"]
        return self.base(i, v) * self.deviation(f, v)

    def deviation(self, f: int, v: int) -> float:
        n, _, ss = self.seen[f, v]
        var = (2.0 * (1.0 + 1.0 / 16.0) + ss) / (2.0 + n) - self.ratio(f, v) * self.ratio(f, v)
        return math.sqrt(max(var, 0.0))

    def has_drifted(self, f: int) -> bool:
        """The function takes another time than when ranks were computed."""
        return abs(self.ratio(f, L.STANDARD) - self.mark[f]) > L.RANK_DRIFT * self.mark[f]

    def load_est(self, m: int) -> float:
        n, s = self.loads_seen[m]
        return self.models[m]["load"] * ((2.0 + s) / (2.0 + n))

    def variant_load(self, variant: Table) -> float:
        return 0.0 if variant["model"] is None else self.load_est(variant["model"])

    def upward(self, work: Sequence[float]) -> list[float]:
        rank = [0.0] * len(work)
        for i in reversed(range(len(work))):
            rank[i] = work[i] + max((rank[j] for j in self.tasks[i]["successors"]), default=0.0)
        return rank

    def compute_ranks(self) -> None:
        ranks = self.upward([self.est(i, L.STANDARD) for i in range(len(self.tasks))])
        self.work_left = self.cost_left = 0.0
        for i, task in enumerate(self.tasks):
            task["work"], task["rank"] = self.est(i, L.STANDARD), 0.0 if self.system["order_hidden"] else ranks[i]
            task["cost"] = task["work"] * self.variant(i, L.STANDARD)["price"] / 1e6
            if task["state"] not in OVER:
                self.work_left += task["work"]
                self.cost_left += task["cost"]
        for flow in self.flows:
            flow["remaining"] = 0.0
            for task in (self.table[i] for i in flow["tasks"] if flow["arrived"] is not None):
                flow["remaining"] += task["work"] if task["state"] not in OVER else 0.0
        self.mark = [self.ratio(f, L.STANDARD) for f in range(len(self.functions))]
        self.drifted, self.finishes = False, 0

    def compute_buckets(self) -> None:
        for task in self.tasks:
            lb = self.flows[task["flow"]]["lb"]
            task["bucket"] = sum(edge > task["rank"] / lb for edge in L.RANK_EDGES)

    def required_of(self, g: int) -> list[int]:
        """Tasks of workflow g that are required now."""
        return [i for i in self.flows[g]["tasks"] if not self.table[i]["optional"]]

    def needed_tasks(self, g: int) -> list[int]:
        """Tasks without which the required sinks of workflow g cannot be reached."""
        free = not any(self.table[i]["any"] for i in self.flows[g]["tasks"])
        needed: set[int] = set()
        for i in reversed(self.required_of(g)):
            users = self.table[i]["successors"]
            if free or not users or any(j in needed and not self.table[j]["any"] and i in self.hard_inputs(j) for j in users):
                needed.add(i)
        return sorted(needed)

    def longest_path(self, g: int) -> float:
        fin: dict[int, float] = {}
        for i in self.flows[g]["tasks"]:
            before = [fin[j] for j in self.hard_inputs(i)]
            begin = min(before) if self.table[i]["any"] else max(before, default=0.0)
            fin[i] = begin + min(self.est(i, v) for v in self.usable(i))
        return max(fin[i] for i in self.required_of(g))

    def lower_bound(self, g: int) -> float:
        needed, areas = self.needed_tasks(g), []
        self.reached["needed: fewer than required"] += len(needed) < len(self.required_of(g))
        for p, pool in enumerate(self.pools):
            area = 0.0
            for i in needed:
                taken = {v: self.variant(i, v)["taken"].get(p, 0) for v in self.usable(i)}
                if all(taken.values()):
                    area += min(self.est(i, v) * units for v, units in taken.items())
            areas.append(area / pool["places"])
        loads = (min(self.variant_load(self.variant(i, v)) for v in self.usable(i)) for i in needed)
        return max(self.longest_path(g), *areas) + min(loads, default=0.0)

    def compute_influence(self, g: int) -> None:
        a, sinks = self.system["quality_flow"], self.flows[g]["sinks"]
        for i in reversed(self.flows[g]["tasks"]):
            x = 1.0 / len(sinks) if i in sinks else 0.0
            for j in self.tasks[i]["successors"]:
                x += a * self.tasks[j]["influence"] / len(self.tasks[j]["inputs"])
            self.tasks[i]["influence"] = x

    def ready_tasks(self) -> list[int]:
        return [i for i, task in enumerate(self.tasks) if task["state"] == L.READY]

    def calls_of(self, i: int) -> list[int]:
        """Ids of the calls of a task in flight, oldest first."""
        return [k for k in sorted(self.calls) if self.calls[k]["task"] == i]

    def open_inputs(self, i: int) -> list[int]:
        """Join all: the inputs that are neither done nor given up (and told so). Join any: all of them, until one is done."""
        task = self.tasks[i]
        if task["any"]:
            return [] if any(self.tasks[j]["state"] == L.DONE for j in task["inputs"]) else task["inputs"]
        return [j for j in task["inputs"] if self.tasks[j]["state"] != L.DONE and i not in self.tasks[j]["told"]]

    def fresh(self, i: int) -> int:
        """How long an artifact of the task stays fresh, 0 = for ever."""
        return int(self.functions[self.tasks[i]["function"]]["fresh"])

    def is_stale(self, i: int) -> bool:
        task = self.tasks[i]
        return task["state"] == L.DONE and 0 < self.fresh(i) <= self.now - task["created"]

    def twins(self, i: int) -> list[int]:
        """The other tasks of equal content."""
        content = self.tasks[i]["content"]
        return [j for j, task in enumerate(self.tasks) if j != i and task["content"] == content] if content else []

    def twin_runs(self, i: int) -> bool:
        return any(self.tasks[j]["state"] == L.RUNNING for j in self.twins(i))

    def is_near(self, i: int) -> bool:
        if self.tasks[i]["state"] != L.BLOCKED:
            return False
        running = [self.tasks[j]["state"] == L.RUNNING for j in self.open_inputs(i)]
        return any(running) if self.tasks[i]["any"] else all(running)

    def cp_left(self) -> float:
        values = [self.tasks[i]["rank"] for i in self.ready_tasks()]
        for call in self.calls.values():
            task = self.tasks[call["task"]]
            done = 0.0 if call["start"] is None else min(float(self.now - call["start"]), task["work"])
            values.append(task["rank"] - done)
        return max([0.0, *values])

    def utilisation(self, p: int) -> float:
        pool = self.pools[p]
        d = self.now - pool["settled"]
        taken = min(1.0, (pool["busy"] + pool["tenants"]) / pool["places"])
        return pool["use"] + (taken - pool["use"]) * (d / (d + L.UTILISATION_WINDOW * self.unit))

    def pay(self, price: int) -> None:
        self.spent += price
        self.paid.append(price)

    def state(self) -> Table:
        """Everything that the run remembers, as nested plain values."""
        fixed = ("system", "functions", "models", "capacity", "exposure")
        return copying.deepcopy({key: value for key, value in vars(self).items() if key not in fixed})
