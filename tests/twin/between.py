"""Section 6 of the rule book in plain Python: what the Pit does of itself between calls."""

from __future__ import annotations

from typing import Any

import pit.layout as L
from tests.twin.life import TwinLife


class TwinBetween(TwinLife):
    """Reuse, queues, and loads ahead of calls."""

    def between_calls(self) -> None:
        self.reuse()
        outcome = self.outcome
        for p in range(len(self.pools)):
            self.serve_queue(p)
        self.outcome = outcome
        if self.system["rebalance"]:
            self.rebalance()
        if self.system["prewarm"]:
            self.prewarm()
        if self.system["store"] and self.status == L.ON:
            self.settle_tiers()

    def reuse(self) -> None:
        """Ready tasks take the output of a done twin."""
        while self.status == L.ON and (pair := self.reusable()):
            i, source = pair
            task, twin = self.tasks[i], self.tasks[source]
            self.reached["reuse"] += 1
            self.reached["reuse: of what was reused"] += twin["doer"] == "fetch"
            self.reached["reuse: of the latest of several"] += len(self.sources(i)) > 1
            self.reached["reuse: where it had run before"] += task["version"] > 0
            self.out.append((L.CMD_FETCH, -1, i, task["function"], -1, -1, source, -1))
            task.update(
                quality=twin["quality"], size=twin["size"], created=twin["created"], version=task["version"] + 1,
                source=source, tier=twin["tier"], known=twin["known"],
                maker=twin["maker"] if twin["doer"] == "fetch" else source,
            )  # fmt: skip
            self.reused += 1
            self.is_done(i, "fetch")
            self.reached["reuse: solves the run"] += self.status == L.SOLVED

    def reusable(self) -> tuple[int, int] | None:
        """(task, source): the first plain ready task with a done twin that is not stale, and the youngest of such twins."""
        for i in self.ready_in_order():
            done = [j for j in self.twins(i) if self.tasks[j]["state"] == L.DONE]
            sources = self.sources(i)
            self.reached["reuse: refused, all are stale"] += bool(done) and not sources
            if self.task_class(i) != L.PLAIN:
                self.reached["reuse: refused to a queued task"] += bool(sources) and self.task_class(i) == L.QUEUED
            elif sources:
                return i, min(sources, key=lambda j: (-self.tasks[j]["created"], j))
        return None

    def sources(self, i: int) -> list[int]:
        """Done twins that are not stale, and not gone."""
        done = [j for j in self.twins(i) if self.tasks[j]["state"] == L.DONE]
        self.reached["reuse: refused, it is gone"] += any(self.is_gone(j) for j in done)
        return [j for j in done if not self.is_stale(j) and not self.is_gone(j)]

    def serve_queue(self, p: int) -> None:
        while self.status == L.ON and (queued := self.queued_in(p)):
            best = min(queued, key=self.queue_order)
            if not self.can_begin(best, L.STANDARD):
                return
            f, calls = self.tasks[best]["function"], self.next_call
            since = {i: self.tasks[i]["queued"] for i in queued}
            self.before_call(best, L.STANDARD, queued=True)
            if self.next_call > calls:
                self.from_queue[f] += 1
                self.reached["begun from a queue"] += 1
                self.reached["begun from a queue: not the oldest"] += since[best] > min(since.values())

    def queue_order(self, i: int) -> tuple[Any, ...]:
        task, ageing = self.tasks[i], self.system["ageing"]
        aged = (self.now - task["queued"]) // ageing if ageing > 0 else 0
        begun = self.from_queue[task["function"]] if self.system["fair"] else 0
        return (-(task["priority"] + aged), begun, -task["rank"], task["queued"], i)

    def automatic_load(self) -> bool:
        return any(copy["state"] == L.LOADING and copy["automatic"] for copy in self.copies)

    def live(self, m: int) -> bool:
        return any(copy["model"] == m and copy["state"] in (L.LOADING, L.WARM, L.ACTIVE) for copy in self.copies)

    def pool_of(self, m: int) -> int:
        variants = [v for f in self.functions for v in f["variants"] if v]
        return int(next((v["pool"] for v in variants if v["model"] == m), -1))

    def upcoming(self, m: int) -> int:
        waiting = [i for i, task in enumerate(self.tasks) if task["state"] == L.READY or self.is_near(i)]
        return sum(self.variant(i, L.STANDARD)["model"] == m for i in waiting)

    def load_ahead(self, m: int, evictable: list[int]) -> tuple[int, int, list[int]] | None:
        """(row, pool, evicted copies) if model m could be loaded without a call."""
        p, row = self.pool_of(m), self.idle_row()
        if self.live(m) or row is None or not self.affordable(self.load_cost(m)):
            return None
        evicted = self.evicted_for(p, m, evictable)
        return None if evicted is None else (row, p, evicted)

    def rebalance(self) -> None:
        if self.status != L.ON or self.automatic_load():
            return
        demand = [self.upcoming(m) for m in range(len(self.models))]
        for m in sorted(range(len(self.models)), key=lambda m: (-demand[m], m)):
            if demand[m] < 1:
                return
            warm = self.warm_copies(self.pools[self.pool_of(m)]["budget"])
            if place := self.load_ahead(m, [c for c in warm if demand[self.copies[c]["model"]] == 0]):
                self.reached["rebalance: load"] += 1
                self.reached["rebalance: evicted"] += len(place[2])
                self.dispatch_load(place[0], place[1], m, place[2], users=0)
                return

    def prewarm(self) -> None:
        if self.status != L.ON or self.automatic_load() or self.last_model is None:
            return
        often = [self.follows[self.last_model, x] for x in range(len(self.models))]
        x = often.index(max(often))
        if often[x] >= L.PREWARM_AFTER and (place := self.load_ahead(x, [])):
            self.reached["prewarm: load"] += 1
            self.dispatch_load(place[0], place[1], x, place[2], users=0)
