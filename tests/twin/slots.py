"""Section 5 of the rule book in plain Python: slots, and what is legal in them."""

from __future__ import annotations

import math

import pit.layout as L
from tests.twin.estimates import Table
from tests.twin.store import TwinStore


class TwinSlots(TwinStore):
    """Open tasks as slots, what a call would need, and where it would get its copy."""

    # ------------------------------------------------------------------ slots
    def ready_in_order(self) -> list[int]:
        tasks = self.tasks
        return sorted(self.ready_tasks(), key=lambda i: (*self.urgency_order(i), -tasks[i]["rank"], tasks[i]["ready"], i))

    def overdue_tasks(self) -> list[int]:
        """Tasks that run and stand in slots: all with hidden order, else those that have overrun where that matters."""
        if self.system["order_hidden"]:
            late = {call["task"] for call in self.calls.values()}
        elif {"hedge", "cancel"} & self.system["verbs"]:
            late = {call["task"] for call in self.calls.values() if call["overrun"] >= 1}
        else:
            return []
        return sorted(late, key=lambda i: (*self.urgency_order(i), -self.tasks[i]["rank"], i))

    def task_class(self, i: int) -> int:
        task = self.tasks[i]
        if task["state"] == L.RUNNING:
            return L.OVERDUE
        return L.HELD if task["hold"] is not None else L.QUEUED if task["queued"] is not None else L.PLAIN

    def slots(self) -> tuple[list[list[int]], list[int]]:
        """(members of each slot, tail), heads first."""
        members = [i for i in self.ready_in_order() + self.overdue_tasks() if not self.flow_of(i)["deferred"]]
        octaves = [self.octave(g) for g in range(len(self.arrivals))]
        for width in (1, 2, len(L.RANK_EDGES) + 1):
            groups: dict[tuple, list[int]] = {}
            for i in members:
                t = self.tasks[i]
                echo = t["state"] == L.READY and self.twin_runs(i)
                place = (t["bucket"] // width, octaves[t["flow"]]) if width <= 2 else ()
                key = (t["function"], t["priority"], *place, t["attempts"] > 0, self.task_class(i), echo)
                groups.setdefault(key, []).append(i)
            if len(groups) <= L.N_SLOTS:
                break
        self.reached["slots: an echo has its own"] += any(key[-1] and (*key[:-1], False) in groups for key in groups)
        slots = list(groups.values())
        return slots[: L.N_SLOTS], sorted(i for group in slots[L.N_SLOTS :] for i in group)

    # ------------------------------------------------------------------ what a call needs
    def credit(self, p: int) -> int:
        """Token credit of a rate-limited pool, in microseconds."""
        pool = self.pools[p]
        return int(min(pool["burst"] * pool["period"], pool["stored"] + self.now - pool["stored_at"]))

    def most_tokens(self, p: int) -> int:
        """The most tokens that a usable variant of the pool takes."""
        kinds = [(f, v) for f in self.functions for v in self.usable_variants(f)]
        return max((f["variants"][v]["tokens"] for f, v in kinds if f["variants"][v]["pool"] == p), default=0)

    def short_of_tokens(self, p: int) -> bool:
        pool = self.pools[p]
        return bool(pool["period"]) and self.credit(p) < self.most_tokens(p) * pool["period"]

    def missing_credit(self, variant: Table) -> int:
        period = self.pools[variant["pool"]]["period"]
        return max(0, variant["tokens"] * period - self.credit(variant["pool"])) if period else 0

    def is_closed(self, p: int) -> bool:
        """The pool is backed off."""
        return self.pools[p]["closed"] is not None

    def committed(self) -> int:
        """Money promised to calls and loads under way."""
        return int(sum(x["committed"] for x in [*self.calls.values(), *self.copies]))

    def affordable(self, cost: int) -> bool:
        return not self.system["money"] or self.spent + self.committed() + cost <= self.system["money"]

    def call_cost(self, i: int, v: int) -> int:
        return math.floor((self.est(i, v) + self.fetch(i)) * self.variant(i, v)["price"] / 1e6)

    def load_cost(self, m: int) -> int:
        return math.floor(self.load_est(m) * self.models[m]["price"] / 1e6)

    def idle_row(self) -> int | None:
        return next((c for c, x in enumerate(self.copies) if x["state"] == L.IDLE), None)

    def evicted_for(self, p: int, m: int, evictable: list[int]) -> list[int] | None:
        """The copies that must leave memory before model m fits beside the pool's budget; None if it does not fit."""
        b, evicted = self.pools[p]["budget"], list[int]()
        free: float = math.inf if b is None else self.capacity[b] - self.used[b]
        for c in sorted(evictable, key=lambda c: (self.copies[c]["last_used"], c)):
            if free >= self.models[m]["size"]:
                break
            free += self.models[self.copies[c]["model"]]["size"]
            evicted.append(c)
        return evicted if free >= self.models[m]["size"] else None

    def warm_copies(self, b: int | None) -> list[int]:
        """Warm copies that take memory of the budget."""
        return [c for c, x in enumerate(self.copies) if x["state"] == L.WARM and self.pools[x["pool"]]["budget"] == b]

    def copy_for(self, variant: Table) -> tuple[str, int, list[int]]:
        """How a start would get its copy: (case, copy, copies evicted), case "no model", "a", "b", "c" or "none"."""
        m, p = variant["model"], variant["pool"]
        if m is None:
            return "no model", -1, []
        conc = self.models[m]["conc"]
        own = [c for c, x in enumerate(self.copies) if (x["pool"], x["model"]) == (p, m) and x["users"] < conc]
        for case, states in (("a", (L.WARM, L.ACTIVE)), ("b", (L.LOADING,))):
            for c in own:
                if self.copies[c]["state"] in states:
                    return case, c, []
        row, evicted = self.idle_row(), self.evicted_for(p, m, self.warm_copies(self.pools[p]["budget"]))
        return ("none", -1, []) if row is None or evicted is None else ("c", row, evicted)

    def free_places(self, p: int) -> int:
        pool = self.pools[p]
        return int(max(0, pool["places"] - pool["busy"] - pool["tenants"]))

    def lacking(self, variant: Table) -> list[int]:
        """Pools that have fewer free places than the variant takes of them."""
        lacking = [p for p, units in variant["taken"].items() if self.free_places(p) < units]
        for pool, units in ((self.pools[p], variant["taken"][p]) for p in lacking):
            tenants = units <= pool["places"] - pool["busy"]
            self.reached["refused: for tenants alone"] += tenants
            self.reached["refused: for tenants alone, no call in flight"] += tenants and pool["busy"] == 0
        self.reached["gang: refused by its second pool alone"] += bool(lacking) and variant["pool"] not in lacking
        return lacking

    def claimants(self, p: int) -> list[int]:
        """Queued gangs that claim the pool, the one that counts first."""
        reserve, found = self.system["reserve"], list[int]()
        for i, task in enumerate(self.tasks):
            taken = self.variant(i, L.STANDARD)["taken"]
            if task["queued"] is not None and len(taken) > 1 and p in taken and self.now < task["queued"] + reserve:
                found.append(i)
        return sorted(found, key=lambda i: (-self.tasks[i]["rank"], i))

    def claimed(self, i: int, variant: Table) -> bool:
        """Some pool of the variant is claimed by a task that goes before task i."""
        first = [own[0] for p in variant["taken"] if (own := self.claimants(p))]
        order = (-self.tasks[i]["rank"], i)
        return any((-self.tasks[j]["rank"], j) < order for j in first)

    def can_begin(self, i: int, v: int) -> bool:
        """A call of task i with variant v can begin."""
        if v not in self.usable(i):
            return False
        variant = self.variant(i, v)
        case = self.copy_for(variant)[0]
        if any(self.is_closed(p) for p in variant["taken"]) or self.lacking(variant) or case == "none":
            return False
        if self.claimed(i, variant):
            self.reached["gang: a claim keeps others out"] += 1
            return False
        if self.missing_credit(variant) > 0:
            self.reached["refused: no token"] += 1
            return False
        if not self.affordable(self.call_cost(i, v) + (self.load_cost(variant["model"]) if case == "c" else 0)):
            self.reached["refused: no money"] += 1
            return False
        return True

    def refused_for_means_alone(self, i: int) -> bool:
        """Some start in the slot of head i would be legal but for tokens or money."""
        if self.task_class(i) != L.PLAIN:
            return False
        for v in self.usable(i):
            variant = self.variant(i, v)
            case = self.copy_for(variant)[0]
            closed = any(self.is_closed(p) for p in variant["taken"])
            if not (closed or self.lacking(variant) or case == "none" or self.claimed(i, variant)) and not self.can_begin(
                i, v
            ):
                return True
        return False

    def queued_in(self, p: int) -> list[int]:
        marked = [i for i, task in enumerate(self.tasks) if task["queued"] is not None]
        return [i for i in marked if self.variant(i, L.STANDARD)["pool"] == p]

    def delay(self, i: int, v: int) -> float:
        variant = self.variant(i, v)
        case, c, _ = self.copy_for(variant)
        copy = 0.0
        if case == "b":
            copy = max(0.0, self.copies[c]["expected"] - self.now)
        elif case in ("c", "none"):
            copy = self.load_est(variant["model"])
        places = [
            self.next_place(p) + len(self.queued_in(p)) * self.unit / self.pools[p]["places"] for p in self.lacking(variant)
        ]
        closed = [float(max(0, self.pools[p]["closed"] - self.now)) for p in variant["taken"] if self.is_closed(p)]
        mend = self.unit if 3 * self.tasks[i]["function"] + v in self.mended_rows() else 0.0
        return max([copy, float(self.missing_credit(variant)), *places, *closed, mend]) + self.fetch(i)

    def next_place(self, p: int) -> float:
        """Time until a call that takes places of the pool is expected to end; without one the mean call."""
        ends = [call["end"] - self.now for call in self.calls.values() if p in call["taken"]]
        return max(0.0, min(ends)) if ends else self.unit

    def free_in(self, variant: Table) -> float | None:
        """Time until a busy copy of the variant's pool and model is expected to have room."""
        ends = []
        for call in self.calls.values():
            if call["copy"] is not None and call["start"] is not None:
                copy = self.copies[call["copy"]]
                if (copy["pool"], copy["model"]) == (variant["pool"], variant["model"]):
                    ends.append(max(0.0, call["end"] - self.now))
        return min(ends, default=None)

    # ------------------------------------------------------------------ legality
    def has_overrun(self, i: int) -> bool:
        """A call of task i in flight has overrun."""
        return any(self.calls[k]["overrun"] >= 1 for k in self.calls_of(i))

    def verb_legal(self, i: int, verb: int) -> bool:
        """The verb is legal for the slot whose head is task i."""
        kind, standard = self.task_class(i), self.variant(i, L.STANDARD)
        if verb < L.N_VARIANTS:
            return kind == L.PLAIN and self.can_begin(i, verb)
        if L.VERBS[verb] not in self.system["verbs"]:
            return False
        if verb == L.QUEUE:
            return (
                kind == L.PLAIN
                and L.STANDARD in self.usable(i)
                and (bool(self.lacking(standard)) or self.claimed(i, standard))
            )
        if verb == L.HOLD:
            if kind != L.PLAIN or not self.can_begin(i, L.STANDARD):
                return False
            free = self.free_in(standard)
            return self.copy_for(standard)[0] in "bc" and free is not None and free <= self.load_est(standard["model"])
        if verb == L.HEDGE:
            own = self.calls_of(i)
            return self.has_overrun(i) and len(own) == 1 and self.can_begin(i, self.calls[own[0]]["variant"])
        limit = self.system["max_attempts"]
        if kind == L.QUEUED:
            news = self.tasks[i]["queued"] < self.now
            self.reached["cancel: nothing new since it was queued"] += not news
            return news or not self.wait_legal()
        return self.has_overrun(i) and (limit == 0 or self.tasks[i]["attempts"] + 1 < limit)

    def failing_pools(self) -> list[int]:
        """Pools that could be backed off, the one with most failed calls in a row first."""
        pools = [p for p, pool in enumerate(self.pools) if pool["row"] >= 1 and not self.is_closed(p)]
        return sorted(pools, key=lambda p: (-self.pools[p]["row"], p))

    def skippable(self) -> list[int]:
        """Optional tasks that could be skipped, the one that would be first."""
        ready = [i for i in self.ready_in_order() if self.tasks[i]["optional"]]
        return ready + [i for i, task in enumerate(self.tasks) if task["optional"] and task["state"] == L.BLOCKED]

    def refreshable(self) -> list[int]:
        """Stale tasks that somebody still waits for, the one that would be refreshed first."""
        waits = (L.READY, L.BLOCKED)
        tasks = [
            i for i, task in enumerate(self.tasks)
            if self.is_stale(i) and any(self.tasks[j]["state"] in waits for j in task["successors"])
        ]  # fmt: skip
        return sorted(tasks, key=lambda i: (-((self.now - self.tasks[i]["created"]) / self.fresh(i)), i))

    def something_under_way(self) -> bool:
        """A call in flight, a copy that loads or cools down, a variant that is mended, or places held by tenants."""
        moving = any(copy["state"] in (L.LOADING, L.COOLDOWN) for copy in self.copies)
        return bool(self.calls or self.mended_rows()) or moving or any(pool["tenants"] for pool in self.pools)

    def wait_legal(self) -> bool:
        if self.open or self.something_under_way() or any(task["hold"] is not None for task in self.tasks):
            return True
        return any(self.is_closed(p) or self.short_of_tokens(p) for p in range(len(self.pools)))

    def mask(self) -> list[bool]:
        mask, verbs = [False] * L.N_ACTIONS, self.system["verbs"]
        if not self.arrived or self.status != L.ON:
            mask[L.WAIT] = True
            return mask
        for s, members in enumerate(self.slots()[0]):
            for verb in range(L.N_VERBS):
                mask[s * L.N_VERBS + verb] = self.verb_legal(members[0], verb)
        mask[L.WAIT] = self.wait_legal()
        back_off = self.system["back_off"] > 0 and bool(self.failing_pools())
        mask[L.BACK_OFF] = back_off and "back_off" in verbs
        mask[L.BACK_OFF_LONG] = back_off and "back_off_long" in verbs
        mask[L.SKIP] = "skip" in verbs and bool(self.skippable())
        mask[L.REFRESH] = "refresh" in verbs and bool(self.refreshable())
        mask[L.DEFER] = "defer" in verbs and len(self.deferrable()) >= 2
        return mask
