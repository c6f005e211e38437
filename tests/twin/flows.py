"""Section 7 of the rule book in plain Python: workflows that come one after the other, are urgent, are deferred and end."""

from __future__ import annotations

import pit.layout as L
from tests.twin.estimates import Table, TwinEstimates


class TwinFlows(TwinEstimates):
    """A single workflow is a closed stream of one."""

    def flow_of(self, i: int) -> Table:
        return self.flows[self.table[i]["flow"]]

    def urgency(self, g: int) -> float:
        return float(self.flows[g]["weight"] / max(self.flows[g]["remaining"], 1.0))

    def urgency_order(self, i: int) -> tuple[float, int]:
        """What comes before rank where tasks are ordered."""
        g = self.table[i]["flow"]
        return (-self.urgency(g), g)

    def octave(self, g: int) -> int:
        """How many powers of 2 from 1 on the remaining work of the workflow reaches, in mean calls."""
        return sum(2.0**k <= self.flows[g]["remaining"] / self.unit for k in range(L.MAX_OCTAVE))

    def count_work(self, i: int, sign: int) -> None:
        """Task i is no longer to be done (-1), or is so again (1)."""
        task = self.tasks[i]
        self.work_left += sign * task["work"]
        self.cost_left += sign * task["cost"]
        self.flow_of(i)["remaining"] += sign * task["work"]

    # ------------------------------------------------------------------ arrival, end
    def flow_arrives(self, g: int) -> None:
        flow = self.flows[g]
        self.reached["stream: a workflow arrives"] += g > 0
        flow["arrived"] = self.now
        self.arrivals.append(self.now)
        self.tasks += (self.table[i] for i in flow["tasks"])
        self.compute_ranks()
        work = 0.0
        for i in flow["tasks"]:
            work += self.tasks[i]["work"]
        self.work_total += work
        self.unit = self.work_total / len(self.tasks)
        flow["lb"] = self.lower_bound(g)
        bounds = 0.0
        for other in self.flows[: g + 1]:
            bounds += other["lb"]
        self.lb = bounds / (g + 1)
        self.compute_buckets()
        self.compute_influence(g)
        self.sinks += flow["sinks"]
        for i in self.required_of(g):
            standard = self.variant(i, L.STANDARD)
            cost = self.tasks[i]["work"] * standard["price"] / 1e6
            if standard["model"] is not None:
                cost += self.load_est(standard["model"]) * self.models[standard["model"]]["price"] / 1e6
            self.upper_cost += cost
        for task in (self.tasks[i] for i in flow["tasks"]):
            if not task["inputs"]:
                task["state"], task["ready"] = L.READY, self.now
        self.cp_start = max(self.cp_start, self.cp_left())
        self.end_deferral()

    def flow_ends(self, g: int) -> None:
        """All required tasks of workflow g are done."""
        flow = self.flows[g]
        if flow["ended"] is not None:
            return
        flow["ended"] = self.now
        self.end_deferral()
        if not self.stream:
            return
        self.reached["stream: a workflow ends"] += 1
        for i in flow["tasks"]:
            self.reached["stream: a call goes on after the end"] += self.tasks[i]["state"] == L.RUNNING
            if self.tasks[i]["state"] in (L.READY, L.BLOCKED):
                self.give_up_quietly(i)

    def give_up_quietly(self, i: int) -> None:
        """Task i of a workflow that has ended will not be done, and nobody minds."""
        task = self.tasks[i]
        self.reached["stream: given up at the end, " + L.TASK_STATES[task["state"]]] += 1
        task.update(state=L.GIVEN_UP, hold=None, queued=None)
        self.count_work(i, -1)

    def none_left(self) -> bool:
        """All required tasks of the workflows that have arrived are done."""
        return all(self.tasks[i]["state"] == L.DONE for i in self.required())

    def close_stream(self) -> None:
        self.open = False
        if self.none_left():
            self.reached["stream: closed with none left"] += 1
            self.status = L.SOLVED

    # ------------------------------------------------------------------ defer
    def deferrable(self) -> list[int]:
        """Workflows that are active, not deferred and have a ready task; the first one is deferred if there are two."""
        flows = {self.tasks[i]["flow"] for i in self.ready_tasks()}
        found = [g for g in flows if self.flows[g]["ended"] is None and not self.flows[g]["deferred"]]
        return sorted(found, key=lambda g: (self.urgency(g), -g))

    def defer(self) -> None:
        g = self.deferrable()[0]
        self.reached["defer"] += 1
        self.reached["defer: a second one"] += any(flow["deferred"] for flow in self.flows)
        self.flows[g]["deferred"] = True

    def end_deferral(self) -> None:
        for flow in self.flows:
            self.reached["defer: over"] += flow["deferred"]
            flow["deferred"] = False
