"""Section 10 of the rule book in plain Python: the features of the observation, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

import pit.layout as L
from tests.twin.estimates import OVER
from tests.twin.slots import TwinSlots


def clip(x: float, low: float, high: float) -> float:
    return low if x < low else high if x > high else x


def contrast(a: float, b: float) -> float:
    return (a - b) / (a + b)


class TwinObservation(TwinSlots):
    """What the run looks like to a policy."""

    def observe(self) -> np.ndarray:
        """(512,) float32."""
        row = np.zeros(L.N_OBSERVATION, np.float32)
        if not self.arrived:
            return row
        slots, tail = self.slots()
        for s, members in enumerate(slots):
            self.write(row, s * L.N_SLOT_FEATURES, L.SLOT_FEATURES, self.slot_features(members))
        for p in range(len(self.pools)):
            self.write(row, L.POOL_OFFSET + p * L.N_POOL_FEATURES, L.POOL_FEATURES, self.pool_features(p))
        self.write(row, L.GLOBAL_OFFSET, L.GLOBAL_FEATURES, self.global_features(slots, tail))
        return row

    def write(self, row: np.ndarray, at: int, features: Sequence[L.Feature], values: Iterable[float]) -> None:
        for k, (feature, value) in enumerate(zip(features, values, strict=True)):
            if feature.exposure <= self.exposure:
                row[at + k] = np.float32(clip(value, feature.low, feature.high))

    def sq(self, t: float) -> float:
        t = max(t, 0.0)
        return t / (t + self.unit)

    def deadline(self) -> int | None:
        return self.t0 + self.system["deadline"] if self.system["deadline"] else None

    def ready_demand(self, m: int) -> int:
        return sum(self.variant(i, L.STANDARD)["model"] == m for i in self.ready_tasks())

    def near(self, m: int) -> float:
        total = 0.0
        for i, task in enumerate(self.tasks):
            if self.is_near(i) and self.variant(i, L.STANDARD)["model"] == m:
                total += self.unit / (self.unit + max(0.0, task["near"] - self.now))
        return total

    def slot_features(self, members: list[int]) -> list[float]:
        i = members[0]
        task, variants = self.tasks[i], self.functions[self.tasks[i]["function"]]["variants"]
        lite, standard, premium = variants
        est = [self.est(i, v) if variants[v] else 0.0 for v in range(3)]
        cp, deadline, m = self.cp_left(), self.deadline(), standard["model"]
        rank = 0.0 if self.system["order_hidden"] or cp <= 0 else min(1.0, task["rank"] / cp)
        slack = 1.0 if deadline is None else clip((deadline - self.now - task["rank"]) / self.lb, -1.0, 1.0)
        if self.stream:
            urgency = L.URGENCY_SCALE * self.urgency(task["flow"]) * self.unit
            slack = urgency / (urgency + 1.0)
        shown = set(self.usable(i))
        influence = task["influence"] * len(self.flow_of(i)["tasks"])
        delays = [self.sq(self.delay(i, v)) if v in shown else -1.0 for v in range(3)]
        busy, copies, ready, near, victims = 1.0, 0, 0, 0.0, 0.0
        if m is not None:
            free = self.free_in(standard)
            busy = 1.0 if free is None else self.sq(free)
            copies = sum(x["model"] == m and x["state"] in (L.LOADING, L.WARM, L.ACTIVE) for x in self.copies)
            ready, near = self.ready_demand(m), self.near(m)
            for c in self.copy_for(standard)[2] if L.STANDARD in shown else ():
                victims += self.ready_demand(self.copies[c]["model"]) + self.near(self.copies[c]["model"])

        def price(v: int) -> float:
            if v not in shown:
                return 0.0
            mine, usual = est[v] * variants[v]["price"], est[L.STANDARD] * standard["price"]
            return 0.0 if mine == 0 and usual == 0 else contrast(mine, usual)

        return [
            len(members) / (len(members) + 4), rank, slack, influence / (influence + 1.0),
            self.sq(est[1]), clip(self.spread(i, 1) / est[1], 0.0, 1.0), *delays,
            busy, copies / (copies + 2), ready / (ready + 4), near / (near + 4.0), victims / (victims + 4.0),
            contrast(est[0], est[1]) if L.LITE in shown else 0.0,
            contrast(est[2], est[1]) if L.PREMIUM in shown else 0.0,
            lite["quality"] - standard["quality"] if L.LITE in shown else 0.0,
            premium["quality"] - standard["quality"] if L.PREMIUM in shown else 0.0,
            price(0), price(2), task["attempts"] / (task["attempts"] + 2), self.overrun(i), self.freshness(i),
            self.shown_status(i), self.code_or_twins(i),
        ]  # fmt: skip

    def overrun(self, i: int) -> float:
        own = [self.calls[k] for k in self.calls_of(i)]
        if not own or own[0]["start"] is None:
            return 0.0
        return max(0.0, contrast(self.now - own[0]["start"], own[0]["est"]))

    def freshness(self, i: int) -> float:
        """How old the oldest input is; if none ages, how soon the task's own output will be."""
        oldest = 0.0
        for j in self.tasks[i]["inputs"]:
            if self.tasks[j]["state"] == L.DONE and self.fresh(j) > 0:
                oldest = max(oldest, min(1.0, (self.now - self.tasks[j]["created"]) / self.fresh(j)))
        if oldest == 0 and self.fresh(i) > 0:
            return -self.unit / (self.unit + self.fresh(i))
        return oldest

    def code_or_twins(self, i: int) -> float:
        if self.system["order_hidden"]:
            return float(self.functions[self.tasks[i]["function"]]["code"])
        c = sum(self.tasks[j]["state"] not in OVER for j in self.twins(i))
        return -c / (c + 4) if self.twin_runs(i) else c / (c + 4)

    def shown_status(self, i: int) -> float:
        kind = self.task_class(i)
        if kind in (L.HELD, L.QUEUED):
            return 1.0
        if kind == L.OVERDUE:
            return 0.5
        if not self.tasks[i]["optional"]:
            return 0.0
        return -1.0 if "skip" not in self.system["verbs"] or self.skippable()[:1] == [i] else -0.5

    def money_left(self) -> float:
        if not self.system["money"]:
            return 1.0
        x = max(0.0, float(self.system["money"] - self.spent - self.committed()))
        need = max(0.0, self.cost_left)
        return x / (x + need) if x or need else 0.0

    def tokens_left(self) -> float:
        limited = [p for p, pool in enumerate(self.pools) if pool["period"]]
        return min((self.credit(p) / (self.pools[p]["burst"] * self.pools[p]["period"]) for p in limited), default=1.0)

    def pool_features(self, p: int) -> list[float]:
        pool = self.pools[p]
        loading, warm = (sum((x["pool"], x["state"]) == (p, s) for x in self.copies) for s in (L.LOADING, L.WARM))
        chance = self.chance(3 * len(self.functions) + p)
        return [
            pool["places"] / (pool["places"] + 8), self.free_places(p) / pool["places"],
            loading / (loading + 2), warm / (warm + 2), len(self.queued_in(p)) / (len(self.queued_in(p)) + 4),
            chance, self.utilisation(p), (1.0 - chance) / max(1.0, self.pool_record(p)["level"]),
        ]  # fmt: skip

    def expected_next(self) -> float | None:
        """Expected time to the next event."""
        times = [call["end"] - self.now for call in self.calls.values() if call["start"] is not None]
        times += [copy["expected"] - self.now for copy in self.copies if copy["state"] == L.LOADING]
        times += [float(task["hold"] - self.now) for task in self.tasks if task["hold"] is not None]
        return min(times, default=None)

    def first_slot(self, slots: list[list[int]]) -> tuple[float, float]:
        """(first_slot_warm, first_slot_room)."""
        if not slots:
            return 1.0, 1.0
        standard, warm, room = self.variant(slots[0][0], L.STANDARD), 0.0, 0.0
        if L.STANDARD in self.usable(slots[0][0]) and self.copy_for(standard)[0] not in ("no model", "a"):
            free = self.free_in(standard)
            warm = 1.0 if free is None else self.sq(free)
        if lacking := self.lacking(standard):
            room = self.sq(max(self.next_place(p) for p in lacking))
        return warm, room

    def optimization(self, places: int) -> float:
        """What the bound is of the time that all will have taken by the look of things."""
        if not self.stream:
            left = self.now - self.t0 + max(self.cp_left(), self.work_left / places)
            return min(1.0, self.lb / left) if left > 0 else 1.0
        bound = flow = 0.0
        for g in self.flows[: len(self.arrivals)]:
            end = g["ended"] if g["ended"] is not None else self.now
            bound += g["weight"] * g["lb"]
            flow += g["weight"] * (end - g["arrived"] + (g["remaining"] / places if g["ended"] is None else 0.0))
        return min(1.0, bound / flow) if flow > 0 else 1.0

    def flow_features(self) -> tuple[float, float, float, float]:
        """Active workflows, how often they come, how irregularly, and whether more may come."""
        active = sum(g["arrived"] is not None and g["ended"] is None for g in self.flows) if self.status == L.ON else 0
        gaps = [float(b - a) for a, b in itertools.pairwise(self.arrivals)]
        k, rate, cv = len(gaps), 0.0, 0.0
        if k:
            m = sum(gaps) / k  # of whole numbers
            rate = self.lb / (self.lb + m)
            squares = 0.0
            for gap in gaps:
                squares += gap * gap
            c = math.sqrt(max(squares / k - m * m, 0.0)) / m if k >= 2 and m > 0 else 0.0
            cv = c / (c + 1.0)
        return active / (active + 4), rate, cv, float(self.open)

    def global_features(self, slots: list[list[int]], tail: list[int]) -> list[float]:
        e, cp, lb, deadline, limit = self.now - self.t0, self.cp_left(), self.lb, self.deadline(), self.system["max_attempts"]
        places = sum(pool["places"] for pool in self.pools)
        required = self.required()
        undone = sum(self.tasks[i]["state"] != L.DONE for i in required)
        ready, flying = len(self.ready_tasks()), len(self.calls)
        late = sum(
            call["start"] is not None and self.now - call["start"] > 1.5 * call["est"] + 2.0 * call["spread"]
            for call in self.calls.values()
        )
        most = max((t["attempts"] for t in self.tasks if t["state"] not in OVER), default=0)
        reached = sum(self.tasks[i]["state"] == L.DONE for i in self.sinks)
        expected, full = self.expected_next(), sum(self.free_places(p) == 0 for p in range(len(self.pools)))
        tail_work = 0.0
        for i in tail:
            tail_work += self.tasks[i]["work"]
        tail_rank = max((self.tasks[i]["rank"] for i in tail), default=0.0)
        return [
            e / (e + lb),
            1.0 if deadline is None else clip((deadline - self.now) / (deadline - self.t0), -1.0, 1.0),
            clip(self.work_left / self.work_total, 0.0, 1.0), cp / (cp + lb), undone / len(required),
            ready / (ready + 8), flying / (flying + 8), late / (late + 2), self.money_left(), self.tokens_left(),
            max(0.0, 1.0 - most / limit) if limit else 1.0, self.actions_here / (self.actions_here + 8),
            *(float(self.outcome == o) for o in range(len(L.OUTCOMES))),
            self.hint_cold, self.hint_queued, self.hint_throttled, self.hint_stale,
            self.quality_done / len(self.sinks) if self.sinks else 0.0,
            clip(1.0 - self.spent / self.upper_cost, 0.0, 1.0) if self.upper_cost > 0 else 1.0,
            max(0.0, 1.0 - self.system["warning_weight"] * self.warnings), self.optimization(places),
            self.warnings / (self.warnings + 4), 1.0 if expected is None else self.sq(expected), *self.first_slot(slots),
            full / len(self.pools), self.duration_error, self.load_error, self.failure_error,
            *self.flow_features(),
            len(tail) / (len(tail) + 8), tail_work / (tail_work + lb),
            min(1.0, tail_rank / cp) if tail and cp > 0 else 0.0,
            self.sq(self.now - min(self.tasks[i]["ready"] for i in tail)) if tail else 0.0,
            clip(1.0 - cp / self.cp_start, 0.0, 1.0) if self.cp_start > 0 else 0.0,
            reached / len(self.sinks) if self.sinks else 0.0, len(self.tasks) / (len(self.tasks) + 64), places / (places + 8),
        ]  # fmt: skip
