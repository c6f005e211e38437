"""Section 9 of the rule book in plain Python: where outputs lie, what fetching them takes, which of them go."""

from __future__ import annotations

from typing import Any

import pit.layout as L
from tests.twin.estimates import OVER
from tests.twin.health import TwinHealth

NAMES = ("hot", "warm", "cold")


class TwinStore(TwinHealth):
    """Tiers of the artifacts of done tasks: `tier` of a task, and `known`, where the driver knows it to lie."""

    def fetch_of_tier(self, tier: int) -> int:
        return int(self.system["store"]["fetch"][tier])

    def fetch(self, i: int) -> int:
        """Until the inputs of task i are at hand."""
        if not self.system["store"]:
            return 0
        done = [self.tasks[j]["tier"] for j in self.tasks[i]["inputs"] if self.tasks[j]["state"] == L.DONE]
        return max((self.fetch_of_tier(tier) for tier in done), default=0)

    def capacity_of(self, tier: int) -> int:
        """0 = unlimited."""
        return int(self.system["store"][NAMES[tier]])

    def lies_in(self, tier: int) -> list[int]:
        return [i for i, task in enumerate(self.tasks) if task["state"] == L.DONE and task["tier"] == tier]

    def used_of(self, tier: int) -> int:
        return sum(max(0, self.tasks[i]["size"]) for i in self.lies_in(tier))

    def enter_hot(self, i: int) -> None:
        """The artifact of task i was just stored."""
        if not self.system["store"]:
            return
        size, warm = self.tasks[i]["size"], self.capacity_of(L.TIER_WARM)
        tier = L.TIER_HOT if size <= self.capacity_of(L.TIER_HOT) else L.TIER_WARM if not warm or size <= warm else L.TIER_COLD
        self.reached["store: stored as " + L.TIERS[tier]] += 1
        self.tasks[i].update(tier=tier, known=L.TIER_HOT)

    def fetch_inputs(self, i: int) -> None:
        """A call of task i is dispatched: it notes what its inputs are, and has them fetched."""
        inputs = [self.tasks[j] for j in self.tasks[i]["inputs"]]
        self.tasks[i]["used"] = [x["version"] if x["state"] == L.DONE else 0 for x in inputs]
        for x in inputs if self.system["store"] else ():
            if x["state"] == L.DONE and x["size"] <= self.capacity_of(L.TIER_HOT) and x["tier"] != L.TIER_HOT:
                self.reached["store: fetched from " + L.TIERS[x["tier"]]] += 1
                x.update(tier=L.TIER_HOT, known=L.TIER_HOT)

    def is_gone(self, i: int) -> bool:
        task = self.tasks[i]
        return bool(self.system["store"]) and task["state"] == L.DONE and task["tier"] == L.TIER_GONE

    def gone_inputs(self, i: int) -> set[int]:
        return {j for j in self.tasks[i]["inputs"] if self.is_gone(j)}

    # ------------------------------------------------------------------ tiers
    def need(self, i: int) -> int:
        """How much those that read the artifact of task i need it."""
        total = 0
        for j in self.tasks[i]["successors"]:
            if self.tasks[j]["state"] == L.READY:
                total += L.NEED_READY
            elif self.is_near(j):
                total += L.NEED_NEAR
            elif self.tasks[j]["state"] not in OVER:
                total += L.NEED_LATER
        return total

    def least(self, found: list[int]) -> int:
        """Of these artifacts the one of least value."""
        return min(found, key=lambda i: (self.need(i), self.tasks[i]["work"], self.tasks[i]["created"], i))

    def settle_tiers(self) -> None:
        hot, warm, cold = (self.capacity_of(tier) for tier in (L.TIER_HOT, L.TIER_WARM, L.TIER_COLD))
        while self.used_of(L.TIER_HOT) > hot:
            i = self.least([i for i in self.lies_in(L.TIER_HOT) if self.tasks[i]["size"] > 0])
            self.move(i, L.TIER_COLD if 0 < warm < self.tasks[i]["size"] else L.TIER_WARM)
        while warm and self.used_of(L.TIER_WARM) > warm:
            self.move(self.least(self.lies_in(L.TIER_WARM)), L.TIER_COLD)
        while cold and self.used_of(L.TIER_COLD) > cold and (spare := self.spare()):
            self.move(self.least(spare), L.TIER_GONE)
        self.reached["store: cold is fuller than it may be"] += cold > 0 and self.used_of(L.TIER_COLD) > cold
        for i, task in enumerate(self.tasks):
            if task["state"] == L.DONE and task["tier"] != task["known"] and len(self.out) < 2 * len(self.tasks) + L.TOLD_ROWS:
                task["known"] = task["tier"]
                gone = task["tier"] == L.TIER_GONE
                kind, tier = (L.CMD_DELETE, -1) if gone else (L.CMD_STORE, task["tier"])
                self.out.append((kind, -1, i, task["function"], -1, -1, tier, -1))

    def spare(self) -> list[int]:
        """What may go from the cold tier: nobody will read it, and it is no result."""
        tasks = self.tasks
        return [i for i in self.lies_in(L.TIER_COLD) if tasks[i]["size"] > 0 and tasks[i]["successors"] and not self.need(i)]

    def move(self, i: int, tier: int) -> None:
        self.reached[f"store: {L.TIERS[self.tasks[i]['tier']]} to {L.TIERS[tier]}"] += 1
        self.tasks[i]["tier"] = tier

    # ------------------------------------------------------------------ for those who look
    def lineage(self, i: int) -> list[tuple[Any, ...]]:
        """(version used, version now, tier now) of each input of what the output of task i was made from."""
        task = self.tasks[i]
        if task["doer"] == "fetch":
            task = self.tasks[task["maker"]]
        found = []
        for j, used in zip(task["inputs"], task["used"], strict=True):
            x = self.tasks[j]
            there = x["tier"] if self.system["store"] else L.TIER_HOT
            found.append((used, x["version"], L.TIERS[there if x["state"] == L.DONE else L.TIER_GONE]))
        return found
