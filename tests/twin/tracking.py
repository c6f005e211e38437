"""Section 6 of the rule book in plain Python: what a task's end means for those that wait for it."""

from __future__ import annotations

import pit.layout as L
from tests.twin.estimates import OVER
from tests.twin.observation import TwinObservation


class TwinTracking(TwinObservation):
    """A task is done, ready again, given up, or must run again, and others are told."""

    def is_done(self, i: int, doer: str) -> None:
        """Task i is done, by a `call` or by a `fetch`."""
        task = self.tasks[i]
        task.update(state=L.DONE, done=self.now, doer=doer)
        self.deeds.append((i, 1))
        self.count_work(i, -1)
        if i in self.sinks:
            self.quality_done += task["quality"]
        for j in task["successors"]:
            self.tell(j)
        if all(self.tasks[x]["state"] == L.DONE for x in self.required_of(task["flow"])):
            self.flow_ends(task["flow"])
        if self.status == L.ON and not self.open and self.none_left():
            self.status = L.SOLVED

    def open_again(self, i: int) -> None:
        """A task that ran, or was done, is ready again, or blocked if an input is missing."""
        task = self.tasks[i]
        task["state"] = L.BLOCKED if self.open_inputs(i) else L.READY
        task["ready"] = self.now if task["state"] == L.READY else task["ready"]

    def tell(self, j: int) -> None:
        """Task j is told that one of its inputs is done, or as good as done."""
        task = self.tasks[j]
        if task["state"] != L.BLOCKED or self.open_inputs(j):
            return
        task.update(state=L.READY, ready=self.now)
        if task["any"]:
            self.release_alternatives(j)

    def release_alternatives(self, j: int) -> None:
        """What only served to reach the join j is optional from now on."""
        todo = set(self.tasks[j]["inputs"])
        while todo:
            i = max(todo)
            todo.remove(i)
            task = self.tasks[i]
            if not task["optional"] and task["state"] not in OVER and all(self.can_do_without(x) for x in task["successors"]):
                self.reached["alternative released"] += 1
                self.reached["alternative released: running"] += task["state"] == L.RUNNING
                self.reached["alternative released: input of one"] += i not in self.tasks[j]["inputs"]
                task["optional"] = True
                todo |= set(task["inputs"])

    def can_do_without(self, x: int) -> bool:
        task = self.tasks[x]
        return bool(task["state"] in OVER or task["optional"] or (task["any"] and task["state"] != L.BLOCKED))

    def give_up(self, i: int) -> None:
        """Task i will never be done, and those who cannot do without it neither."""
        falling = {i}
        while falling and self.status == L.ON:
            i = min(falling)
            falling.remove(i)
            task = self.tasks[i]
            task.update(state=L.GIVEN_UP, hold=None, queued=None, quality=0.0)
            self.count_work(i, -1)
            if not task["optional"]:
                self.status = L.FAILED
                return
            falling |= {j for j in task["successors"] if self.falls_with(j, i)}

    def falls_with(self, j: int, i: int) -> bool:
        """Task j cannot do without its input i, which is given up; if it can, it is told."""
        task = self.tasks[j]
        if i in task["soft"] or task["state"] != L.BLOCKED:
            self.reached["soft input given up"] += i in task["soft"]
            self.reached["hard input given up while it ran"] += i not in task["soft"] and task["state"] == L.RUNNING
            self.tasks[i]["told"].add(j)
            self.tell(j)
            return False
        falls = not task["any"] or all(self.tasks[x]["state"] == L.GIVEN_UP for x in task["inputs"])
        self.reached["falls: " + ("any" if task["any"] else "all")] += falls
        return bool(falls)

    def lose_an_input(self, i: int) -> None:
        """The oldest artifact that task i has used is gone: its producer must run once more."""
        done = [j for j in self.tasks[i]["inputs"] if self.tasks[j]["state"] == L.DONE]
        if not done:
            return
        self.reached["partial re-execution"] += 1
        self.run_again(min(done, key=lambda j: (self.tasks[j]["created"], j)))

    def run_again(self, i: int) -> None:
        """A done task must run again, and what it needs and is gone; what else is done stays done."""
        self.run_one_again(i)
        todo = self.gone_inputs(i)
        while todo:
            j = max(todo)
            todo.remove(j)
            self.reached["run again: it was gone"] += 1
            self.run_one_again(j)
            todo |= self.gone_inputs(j)

    def run_one_again(self, i: int) -> None:
        task = self.tasks[i]
        states = [self.tasks[j]["state"] for j in task["successors"]]
        for state in states:
            self.reached["run again: successor is " + L.TASK_STATES[state]] += 1
        self.reached["run again: several use it"] += sum(state in (L.READY, L.RUNNING) for state in states) > 1
        self.reached["run again: a fetched task"] += task["doer"] == "fetch"
        task["doer"] = None
        self.deeds.append((i, -1))
        self.open_again(i)
        self.reached["run again: it is blocked"] += task["state"] == L.BLOCKED
        self.count_work(i, 1)
        for j in task["successors"]:
            if self.tasks[j]["state"] == L.READY and self.open_inputs(j):
                self.tasks[j].update(state=L.BLOCKED, hold=None, queued=None)
