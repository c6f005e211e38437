"""The Pit once more, in plain Python: dicts, lists and the sentences of `pit/README.md`, in their order.

It shares nothing with the kernels but the numbers of `pit/layout.py`, so the two can only agree by following the same
rules. It is slow and made for reading; it must never import a kernel. Sections 2 and 3 stand in `estimates.py`, slots
and legality (5) in `slots.py`, the observation (7) in `observation.py`; here is what happens: 4, actions of 5, and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pit.layout as L
from tests.twin.estimates import Table
from tests.twin.observation import TwinObservation


class TwinPit(TwinObservation):
    """One run of one workflow, by the rule book; see `TwinEstimates` for what it is made from."""

    # ------------------------------------------------------------------ section 4: events, timers
    def apply(self, event: Sequence[Any]) -> bool:
        """One event (kind, subject, error, elapsed, quality, size, price); False if it was ignored."""
        kind, subject, error, elapsed, quality, size, price = event
        copy = self.copies[subject] if 0 <= subject < len(self.copies) else {"state": None}
        call = self.calls.get(subject)
        fits = {
            L.ARRIVE: not self.arrived,
            L.STARTED: call is not None and call["start"] is not None,
            L.LOADED: copy["state"] == L.LOADING,
            L.LOAD_FAILED: copy["state"] == L.LOADING,
            L.UNLOADED: copy["state"] == L.COOLDOWN,
            L.FINISHED: call is not None and call["start"] is not None,
            L.REJECTED: call is not None and call["start"] is not None,
        }
        if self.status != L.ON or (not self.arrived and kind != L.ARRIVE) or not fits.get(kind, False):
            self.ignored += 1
            return False
        self.waiting = False
        if kind == L.ARRIVE:
            self.arrive()
        elif kind == L.STARTED:
            self.begin(subject)
        elif kind == L.LOADED:
            self.loaded(subject, elapsed, price)
        elif kind == L.LOAD_FAILED:
            self.load_failed(subject, price)
        elif kind == L.UNLOADED:
            copy["state"] = L.IDLE
        elif kind == L.FINISHED:
            self.after_call(subject, error, elapsed, quality, size, price)
        else:
            self.after_call(subject, error if error != L.OK else L.ERR_THROTTLED, 0, -1.0, 0, 0)
        return True

    def arrive(self) -> None:
        self.arrived, self.t0 = True, self.now
        for pool in self.pools:
            pool["settled"] = self.now
        self.compute_ranks()
        self.work_total = self.work_left
        total = 0.0
        for task in self.tasks:
            total += task["work"]
        self.unit = total / len(self.tasks)
        self.lb = self.lower_bound()
        self.compute_buckets()
        for i in self.required:
            standard = self.variant(i, L.STANDARD)
            cost = self.tasks[i]["work"] * standard["price"] / 1e6
            if standard["model"] is not None:
                cost += self.load_est(standard["model"]) * self.models[standard["model"]]["price"] / 1e6
            self.upper_cost += cost
        for task in self.tasks:
            if task["open"] == 0:
                task["state"], task["ready"] = L.READY, self.now
        self.cp_start = self.cp_left()

    def begin(self, call_id: int) -> None:
        call = self.calls[call_id]
        call["start"] = self.now
        self.expect_end(call, self.now + call["est"])

    def expect_end(self, call: Table, end: float) -> None:
        call["end"] = end
        for j in self.tasks[call["task"]]["successors"]:
            self.tasks[j]["near"] = max(self.tasks[j]["near"], end)

    def waiting_calls(self, c: int) -> list[int]:
        return [k for k in sorted(self.calls) if self.calls[k]["copy"] == c and self.calls[k]["start"] is None]

    def loaded(self, c: int, elapsed: int, price: int) -> None:
        copy = self.copies[c]
        copy["state"] = L.ACTIVE if copy["users"] else L.WARM
        for k in self.waiting_calls(c):
            self.begin(k)
            self.command_start(k)
        nominal = self.models[copy["model"]]["load"]
        if nominal > 0 and elapsed > 0:
            n, s = self.loads_seen[copy["model"]]
            self.loads_seen[copy["model"]] = (n + 1, s + elapsed / nominal)
        self.load_error = self.averaged_error(self.load_error, elapsed, copy["est"])
        self.spent += price
        self.end_holds(c)

    def load_failed(self, c: int, price: int) -> None:
        waiting = self.waiting_calls(c)
        self.leave_memory(c)
        self.copies[c].update(state=L.IDLE, users=0)
        self.spent += price
        for k in waiting:
            self.after_call(k, L.ERR_LOAD, 0, -1.0, 0, 0, release_copy=False)

    @staticmethod
    def averaged_error(average: float, elapsed: int, estimate: float) -> float:
        if estimate <= 0 or elapsed <= 0:
            return average
        return average + L.EWMA * (min(1.0, abs(elapsed / estimate - 1.0)) - average)

    def timers(self) -> list[tuple[int, int, int]]:
        """(time, 0, task) of every hold, (time, 1, 0) of the horizon: sorted, they stand in firing order."""
        if not self.arrived or self.status != L.ON:
            return []
        timers = [(task["hold"], 0, i) for i, task in enumerate(self.tasks) if task["hold"] is not None]
        if self.system["horizon"]:
            timers.append((self.t0 + self.system["horizon"], 1, 0))
        return sorted(timers)

    def next_timer(self) -> int:
        timers = self.timers()
        return timers[0][0] if timers else L.NEVER

    def advance(self, t: int) -> None:
        if t < self.now:
            return
        while self.next_timer() <= t:
            time, kind, i = self.timers()[0]
            self.move_clock(time)
            self.waiting = False
            if kind == 0:
                self.tasks[i]["hold"] = None
            else:
                self.status = L.EXPIRED
        self.move_clock(t)

    def move_clock(self, t: int) -> None:
        if t > self.now:
            self.now, self.actions_here = t, 0

    def commands(self) -> list[tuple[int, ...]]:
        """(kind, call, task, function, variant, pool, copy, model), -1 where it does not apply; drained."""
        out, self.out = self.out, []
        return out

    def command_start(self, k: int) -> None:
        call = self.calls[k]
        c = -1 if call["copy"] is None else call["copy"]
        model = self.functions[call["function"]]["variants"][call["variant"]]["model"]
        m = -1 if model is None else model
        self.out.append((L.CMD_START, k, call["task"], call["function"], call["variant"], call["pool"], c, m))

    def command_copy(self, kind: int, c: int) -> None:
        self.out.append((kind, -1, -1, -1, -1, self.copies[c]["pool"], c, self.copies[c]["model"]))

    # ------------------------------------------------------------------ section 5: actions
    def act(self, action: int) -> None:
        if not self.arrived or self.status != L.ON:
            return
        self.actions_here += 1
        self.actions += 1
        mask, blocked = self.mask(), False
        if self.actions_here > 4 * len(self.ready_tasks()) + 64 and mask[L.WAIT]:
            action = L.WAIT
        elif not (0 <= action < L.N_ACTIONS and mask[action]):
            self.warnings += 1
            if not any(mask):
                return
            action, blocked = L.WAIT if mask[L.WAIT] else mask.index(True), True
        if action == L.WAIT:
            self.waiting, self.outcome = True, L.OUT_WAITED
        else:
            members, verb = self.slots()[0][action // L.N_VERBS], action % L.N_VERBS
            if verb == L.HOLD:
                self.hold(members)
            else:
                self.before_call(members[0], verb)
        if blocked:
            self.outcome = L.OUT_BLOCKED

    def hold(self, members: Sequence[int]) -> None:
        until = self.now + int(self.load_est(self.variant(members[0], L.STANDARD)["model"]))
        for i in members:
            self.tasks[i]["hold"] = until
        self.outcome = L.OUT_QUEUED

    def end_holds(self, c: int) -> None:
        copy = self.copies[c]
        if copy["state"] in (L.WARM, L.ACTIVE) and copy["users"] < self.models[copy["model"]]["conc"]:
            for i, task in enumerate(self.tasks):
                standard = self.variant(i, L.STANDARD)
                if (standard["pool"], standard["model"]) == (copy["pool"], copy["model"]):
                    task["hold"] = None

    # ------------------------------------------------------------------ section 6: a call's life
    def change_busy(self, p: int, units: int) -> None:
        self.pools[p].update(use=self.utilisation(p), settled=self.now)
        self.pools[p]["busy"] += units

    def take_memory(self, p: int, size: int) -> None:
        budget = self.pools[p]["budget"]
        if budget is not None:
            self.used[budget] += size

    def leave_memory(self, c: int) -> None:
        self.take_memory(self.copies[c]["pool"], -self.models[self.copies[c]["model"]]["size"])

    def before_call(self, i: int, v: int) -> None:
        task, variant = self.tasks[i], self.variant(i, v)
        case, c, evicted = self.copy_for(variant)
        p, m = variant["pool"], variant["model"]
        task["state"] = L.RUNNING
        self.change_busy(p, variant["units"])
        k, self.next_call = self.next_call, self.next_call + 1
        call = self.calls[k] = {
            "task": i, "function": task["function"], "variant": v, "pool": p, "units": variant["units"],
            "copy": None if m is None else c, "cold": case in "bc", "start": None, "end": 0.0,
            "est": self.est(i, v), "spread": self.spread(i, v), "base": self.base(i, v),
        }  # fmt: skip
        for j in task["successors"]:
            self.tasks[j]["running"] += 1
        if case == "a":
            self.copies[c].update(state=L.ACTIVE, users=self.copies[c]["users"] + 1, last_used=self.now)
        elif case == "b":
            self.copies[c]["users"] += 1
        elif case == "c":
            for victim in evicted:
                self.leave_memory(victim)
                self.copies[victim]["state"] = L.COOLDOWN
                self.command_copy(L.CMD_UNLOAD, victim)
            load = self.load_est(m)
            self.copies[c].update(state=L.LOADING, pool=p, model=m, users=1, est=load, expected=self.now + load)
            self.take_memory(p, self.models[m]["size"])
            self.command_copy(L.CMD_LOAD, c)
        if call["cold"]:
            self.expect_end(call, self.copies[c]["expected"] + call["est"])
            self.outcome = L.OUT_COLD
        else:
            self.begin(k)
            self.command_start(k)
            self.outcome = L.OUT_WARM

    def after_call(
        self, k: int, error: int, elapsed: int, quality: float, size: int, price: int, release_copy: bool = True
    ) -> None:
        call = self.calls.pop(k)
        task, f, v = self.tasks[call["task"]], call["function"], call["variant"]
        # store
        if error == L.OK:
            if quality < 0:
                a, inputs = self.system["quality_flow"], [self.tasks[j] for j in task["after"]]
                total = 0.0
                for x in inputs:
                    total += x["quality"]
                mean = total / len(inputs) if inputs else 1.0
                quality = self.functions[f]["variants"][v]["quality"] * (1.0 - a + a * mean)
            task.update(quality=quality, size=size, version=task["version"] + 1, created=self.now)
        # track
        for j in task["successors"]:
            self.tasks[j]["running"] -= 1
        if error == L.OK:
            task["state"] = L.DONE
            self.work_left -= task["work"]
            self.finishes += 1
            self.open_successors(task)
        else:
            task["attempts"] += 1
            if 0 < self.system["max_attempts"] <= task["attempts"]:
                task["state"] = L.GIVEN_UP
                self.work_left -= task["work"]
                if task["optional"]:
                    self.open_successors(task)
                else:
                    self.status = L.FAILED
            else:
                task["state"], task["ready"] = L.READY, self.now
        if self.status == L.ON and all(self.tasks[i]["state"] == L.DONE for i in self.required):
            self.status = L.SOLVED
        # release
        self.change_busy(call["pool"], -call["units"])
        if call["copy"] is not None and release_copy:
            copy = self.copies[call["copy"]]
            copy.update(users=copy["users"] - 1, last_used=self.now)
            if copy["state"] == L.ACTIVE and copy["users"] == 0:
                copy["state"] = L.WARM
            self.end_holds(call["copy"])
        # log
        self.spent += price
        if error == L.OK:
            if elapsed > 0:
                n, s, ss = self.seen[f, v]
                x = elapsed / call["base"]
                self.seen[f, v] = (n + 1, s + x, ss + x * x)
            self.duration_error = self.averaged_error(self.duration_error, elapsed, call["est"])
            if v == L.STANDARD and abs(self.ratio(f, v) - self.mark[f]) > L.RANK_DRIFT * self.mark[f]:
                self.drifted = True
            if self.drifted and self.finishes >= max(L.RANK_EVERY_MIN, len(self.tasks) // L.RANK_EVERY_SHARE):
                self.compute_ranks()
                self.compute_buckets()
        if error in L.WARNED_ERRORS:
            self.warnings += 1
        pool, failed = self.pools[call["pool"]], 0.0 if error == L.OK else 1.0
        self.failure_error += L.EWMA * (abs(failed - pool["failures"]) - self.failure_error)
        pool["failures"] += L.EWMA * (failed - pool["failures"])
        self.hint_cold, self.hint_throttled = int(call["cold"]), int(error == L.ERR_THROTTLED)
        if error != L.OK:
            self.outcome = L.OUT_DENIED if error == L.ERR_ACCESS else L.OUT_FAILED

    def open_successors(self, task: Table) -> None:
        for j in task["successors"]:
            successor = self.tasks[j]
            successor["open"] -= 1
            if successor["open"] == 0:
                successor["state"], successor["ready"] = L.READY, self.now
