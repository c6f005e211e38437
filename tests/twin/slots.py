"""Section 5 of the rule book in plain Python: slots, and what is legal in them."""

from __future__ import annotations

import math

import pit.layout as L
from tests.twin.estimates import Table, TwinEstimates


class TwinSlots(TwinEstimates):
    """Ready tasks as slots, and where a start would get its copy."""

    def slots(self) -> tuple[list[list[int]], list[int]]:
        """(members of each slot, tail), heads first."""
        ready = sorted(self.ready_tasks(), key=lambda i: (-self.tasks[i]["rank"], self.tasks[i]["ready"], i))
        for width in (1, 2, len(L.RANK_EDGES) + 1):
            groups: dict[tuple, list[int]] = {}
            for i in ready:
                t = self.tasks[i]
                key = (t["function"], t["bucket"] // width, t["attempts"] > 0, t["hold"] is not None)
                groups.setdefault(key, []).append(i)
            if len(groups) <= L.N_SLOTS:
                break
        members = list(groups.values())
        tail = {i for group in members[L.N_SLOTS :] for i in group}
        return members[: L.N_SLOTS], sorted(tail)

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
        b, evicted = self.pools[p]["budget"], list[int]()
        free: float = math.inf if b is None else self.capacity[b] - self.used[b]
        evictable = [c for c, x in enumerate(self.copies) if x["state"] == L.WARM and self.pools[x["pool"]]["budget"] == b]
        for c in sorted(evictable, key=lambda c: (self.copies[c]["last_used"], c)):
            if free >= self.models[m]["size"]:
                break
            free += self.models[self.copies[c]["model"]]["size"]
            evicted.append(c)
        idle = [c for c, x in enumerate(self.copies) if x["state"] == L.IDLE]
        if free < self.models[m]["size"] or not idle:
            return "none", -1, []
        return "c", idle[0], evicted

    def start_legal(self, i: int, v: int) -> bool:
        if self.tasks[i]["hold"] is not None or v not in self.usable(i):
            return False
        variant = self.variant(i, v)
        pool = self.pools[variant["pool"]]
        return pool["places"] - pool["busy"] >= variant["units"] and self.copy_for(variant)[0] != "none"

    def delay(self, variant: Table) -> float:
        case, c, _ = self.copy_for(variant)
        if case in ("no model", "a"):
            return 0.0
        return max(0.0, self.copies[c]["expected"] - self.now) if case == "b" else self.load_est(variant["model"])

    def free_in(self, variant: Table) -> float | None:
        """Time until a busy copy of the variant's pool and model is expected to have room."""
        ends = []
        for call in self.calls.values():
            if call["copy"] is not None and call["start"] is not None:
                copy = self.copies[call["copy"]]
                if (copy["pool"], copy["model"]) == (variant["pool"], variant["model"]):
                    ends.append(max(0.0, call["end"] - self.now))
        return min(ends, default=None)

    def hold_legal(self, i: int) -> bool:
        if "hold" not in self.system["verbs"] or not self.start_legal(i, L.STANDARD):
            return False
        standard = self.variant(i, L.STANDARD)
        free = self.free_in(standard)
        return self.copy_for(standard)[0] in "bc" and free is not None and free <= self.load_est(standard["model"])

    def wait_legal(self) -> bool:
        moving = any(copy["state"] in (L.LOADING, L.COOLDOWN) for copy in self.copies)
        return bool(self.calls) or moving or any(task["hold"] is not None for task in self.tasks)

    def mask(self) -> list[bool]:
        mask = [False] * L.N_ACTIONS
        if not self.arrived or self.status != L.ON:
            mask[L.WAIT] = True
            return mask
        for s, members in enumerate(self.slots()[0]):
            for v in range(3):
                mask[s * L.N_VERBS + v] = self.start_legal(members[0], v)
            mask[s * L.N_VERBS + L.HOLD] = self.hold_legal(members[0])
        mask[L.WAIT] = self.wait_legal()
        return mask

    def decision_due(self) -> bool:
        if self.status != L.ON:
            return True
        if not self.arrived or self.waiting:
            return False
        return any(self.start_legal(members[0], v) for members in self.slots()[0] for v in range(3))
