"""Section 6 of the rule book in plain Python: what becomes of a call, of its task and of those that wait for it."""

from __future__ import annotations

from typing import Any

import pit.layout as L
from tests.twin.estimates import OVER, Table
from tests.twin.observation import TwinObservation

UNMENDABLE = (L.ERR_PRECONDITION, L.ERR_ACCESS, L.ERR_CANCELLED)  # another variant would fail as well


class TwinLife(TwinObservation):
    """A call from `before_call` to `after_call`, and what happens `between_calls`."""

    # ------------------------------------------------------------------ commands out
    def command_call(self, kind: int, k: int) -> None:
        call = self.calls[k]
        c = -1 if call["copy"] is None else call["copy"]
        model = self.functions[call["function"]]["variants"][call["variant"]]["model"]
        m = -1 if model is None else model
        self.out.append((kind, k, call["task"], call["function"], call["variant"], call["pool"], c, m))

    def command_copy(self, kind: int, c: int) -> None:
        self.out.append((kind, -1, -1, -1, -1, self.copies[c]["pool"], c, self.copies[c]["model"]))

    # ------------------------------------------------------------------ places, memory, money
    def change_busy(self, p: int, units: int) -> None:
        self.pools[p].update(use=self.utilisation(p), settled=self.now)
        self.pools[p]["busy"] += units

    def take_memory(self, p: int, size: int) -> None:
        budget = self.pools[p]["budget"]
        if budget is not None:
            self.used[budget] += size

    def store_credit(self, p: int, credit: int) -> None:
        self.pools[p].update(stored=credit, stored_at=self.now)

    def leave_memory(self, c: int) -> None:
        self.take_memory(self.copies[c]["pool"], -self.models[self.copies[c]["model"]]["size"])

    def unload(self, c: int) -> None:
        """A warm copy leaves memory."""
        self.leave_memory(c)
        self.copies[c]["state"] = L.COOLDOWN
        self.command_copy(L.CMD_UNLOAD, c)

    def dispatch_load(self, c: int, p: int, m: int, evicted: list[int], users: int) -> None:
        for victim in evicted:
            self.unload(victim)
        load = self.load_est(m)
        self.copies[c].update(
            state=L.LOADING, pool=p, model=m, users=users, est=load, expected=self.now + load, committed=self.load_cost(m),
            automatic=users == 0,
        )  # fmt: skip
        self.take_memory(p, self.models[m]["size"])
        self.command_copy(L.CMD_LOAD, c)

    def release(self, call: Table) -> None:
        """Places and copy of a call that has left the table."""
        self.change_busy(call["pool"], -call["units"])
        if call["copy"] is None:
            return
        copy = self.copies[call["copy"]]
        copy["users"] -= 1
        if copy["state"] == L.ACTIVE:
            copy.update(last_used=self.now, state=L.ACTIVE if copy["users"] else L.WARM)
            self.end_holds(call["copy"])

    def end_holds(self, c: int) -> None:
        copy = self.copies[c]
        if copy["state"] in (L.WARM, L.ACTIVE) and copy["users"] < self.models[copy["model"]]["conc"]:
            for i, task in enumerate(self.tasks):
                standard = self.variant(i, L.STANDARD)
                if (standard["pool"], standard["model"]) == (copy["pool"], copy["model"]):
                    task["hold"] = None

    # ------------------------------------------------------------------ before_call
    def begin(self, k: int, told: bool = True) -> None:
        """A call starts now, or was reported to: its timers run from here."""
        call = self.calls[k]
        call.update(start=self.now, overrun=0, limit=max(1, int(1.5 * call["est"] + 2.0 * call["spread"])))
        self.expect_end(call, self.now + call["est"], told)

    def expect_end(self, call: Table, end: float, told: bool) -> None:
        """`told`: those who wait for the task learn of it."""
        call["end"] = end
        for j in self.tasks[call["task"]]["successors"] if told else ():
            self.tasks[j]["near"] = max(self.tasks[j]["near"], end)

    def denied(self, i: int) -> bool:
        """Access: is the function forbidden? Then there is no call."""
        task = self.tasks[i]
        if not self.functions[task["function"]]["forbidden"]:
            return False
        self.reached["denied"] += 1
        task["attempts"] += 1
        task["queued"] = None
        self.warnings += 1
        self.outcome = L.OUT_DENIED
        if 0 < self.system["max_attempts"] <= task["attempts"]:
            self.give_up(i)
        return True

    def before_call(self, i: int, v: int, queued: bool = False) -> None:
        if self.denied(i):
            return
        task, variant = self.tasks[i], self.variant(i, v)
        case, c, evicted = self.copy_for(variant)
        p, m, hedge = variant["pool"], variant["model"], task["state"] == L.RUNNING
        task.update(state=L.RUNNING, queued=None)
        self.change_busy(p, variant["units"])
        if self.pools[p]["period"]:
            self.store_credit(p, self.credit(p) - variant["tokens"] * self.pools[p]["period"])
        k, self.next_call = self.next_call, self.next_call + 1
        call = self.calls[k] = {
            "task": i, "function": task["function"], "variant": v, "pool": p, "units": variant["units"], "queued": queued,
            "copy": None if m is None else c, "cold": case in "bc", "start": None, "end": 0.0, "hedge": hedge,
            "est": self.est(i, v), "spread": self.spread(i, v), "base": self.base(i, v), "committed": self.call_cost(i, v),
            "overrun": 0, "limit": 0,
        }  # fmt: skip
        if case == "a":
            self.copies[c].update(state=L.ACTIVE, users=self.copies[c]["users"] + 1, last_used=self.now)
        elif case == "b":
            self.copies[c]["users"] += 1
            self.reached["joined an automatic load"] += self.copies[c]["automatic"]
        elif case == "c":
            self.dispatch_load(c, p, m, evicted, users=1)
        if m is not None:
            if self.last_model is not None:
                self.follows[self.last_model, m] += 1
            self.last_model = m
        if call["cold"]:
            self.expect_end(call, self.copies[c]["expected"] + call["est"], told=not hedge)
            self.outcome = L.OUT_COLD
        else:
            self.begin(k, told=not hedge)
            self.command_call(L.CMD_START, k)
            self.outcome = L.OUT_WARM

    # ------------------------------------------------------------------ after_call
    def cancel_call(self, k: int) -> None:
        """A call ends before its time: nothing is learned or counted from it."""
        self.command_call(L.CMD_CANCEL, k)
        call = self.calls.pop(k)
        price = self.functions[call["function"]]["variants"][call["variant"]]["price"]
        if call["start"] is None:
            self.reached["cancelled while it waited for its load"] += 1
        else:
            self.pay((self.now - call["start"]) * price // 10**6)
        self.release(call)
        self.ended["cancelled"].append(k)

    def after_call(self, k: int, error: int, elapsed: int, quality: float, size: int, price: int) -> None:
        """store, track, release, log."""
        call = self.calls.pop(k)
        task = self.tasks[call["task"]]
        self.ended["failed" if error else "finished"].append(k)
        if error == L.OK:
            if quality < 0:
                quality = self.own_quality(call) * self.quality_factor(call["task"])
            task.update(quality=quality, size=size, version=task["version"] + 1, created=self.now)
            self.track_ok(call)
        elif self.calls_of(call["task"]):
            self.reached["hedge: an error leaves the other call"] += 1
            task["attempts"] += 1
        else:
            self.track_error(call["task"], error)
        self.release(call)
        self.log(call, error, elapsed, price)
        if error != L.OK:
            self.outcome = L.OUT_DENIED if error == L.ERR_ACCESS else L.OUT_FAILED
            self.fall_back(call, error)

    def own_quality(self, call: Table) -> float:
        return float(self.functions[call["function"]]["variants"][call["variant"]]["quality"])

    def quality_factor(self, i: int) -> float:
        """What the quality of a task's inputs leaves of its own."""
        a, task = self.system["quality_flow"], self.tasks[i]
        inputs = [x for x in (self.tasks[j] for j in task["inputs"]) if not task["any"] or x["state"] == L.DONE]
        total = 0.0
        for x in inputs:
            total += x["quality"]
        return 1.0 - a + a * (total / len(inputs) if inputs else 1.0)

    def track_ok(self, call: Table) -> None:
        i = call["task"]
        task = self.tasks[i]
        for other in self.calls_of(i):
            self.cancel_call(other)
            self.reached["hedge: the first call wins"] += not call["hedge"]
            self.reached["hedge: the second call wins"] += call["hedge"]
        self.reached["priority: finished above 0"] += task["priority"] > 0
        task["state"] = L.DONE
        self.work_left -= task["work"]
        self.cost_left -= task["cost"]
        self.finishes += 1
        if i in self.sinks:
            self.quality_done += task["quality"]
        for j in task["successors"]:
            self.tell(j)
        if self.status == L.ON and all(self.tasks[x]["state"] == L.DONE for x in self.required()):
            self.status = L.SOLVED

    def track_error(self, i: int, error: int) -> None:
        task = self.tasks[i]
        task["attempts"] += 1
        if error == L.ERR_LOST:
            self.lose_an_input(i)
        if 0 < self.system["max_attempts"] <= task["attempts"]:
            self.give_up(i)
        else:
            self.open_again(i)

    def open_again(self, i: int) -> None:
        """A task that ran, or was done, is ready again, or blocked if an input is missing."""
        task = self.tasks[i]
        task["state"] = L.BLOCKED if self.open_inputs(i) else L.READY
        task["ready"] = self.now if task["state"] == L.READY else task["ready"]

    def log(self, call: Table, error: int, elapsed: int, price: int) -> None:
        f, v = call["function"], call["variant"]
        self.pay(price)
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
        self.warnings += error in L.WARNED_ERRORS
        pool, failed = self.pools[call["pool"]], 0.0 if error == L.OK else 1.0
        self.failure_error += L.EWMA * (abs(failed - pool["failures"]) - self.failure_error)
        pool["failures"] += L.EWMA * (failed - pool["failures"])
        pool["row"] = pool["row"] + 1 if failed else 0
        if error == L.ERR_THROTTLED and pool["period"]:
            self.reached["throttled: credit gone"] += 1
            self.store_credit(call["pool"], 0)
        self.hint_cold, self.hint_queued = int(call["cold"]), int(call["queued"])
        self.hint_throttled = int(error == L.ERR_THROTTLED)

    @staticmethod
    def averaged_error(average: float, elapsed: int, estimate: float) -> float:
        if estimate <= 0 or elapsed <= 0:
            return average
        return average + L.EWMA * (min(1.0, abs(elapsed / estimate - 1.0)) - average)

    def fall_back(self, call: Table, error: int) -> None:
        i, v = call["task"], call["variant"]
        if not self.system["fallback"] or error in UNMENDABLE or self.status != L.ON or self.tasks[i]["state"] != L.READY:
            return
        for other in ((v + 1) % 3, (v + 2) % 3):
            if self.can_begin(i, other):
                self.reached["fallback"] += 1
                self.before_call(i, other)
                self.outcome = L.OUT_FAILED
                return

    # ------------------------------------------------------------------ those who wait for a task
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
            self.work_left -= task["work"]
            self.cost_left -= task["cost"]
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
        lost = min(done, key=lambda j: (self.tasks[j]["created"], j))
        producer = self.tasks[lost]
        self.reached["partial re-execution"] += 1
        states = [self.tasks[j]["state"] for j in producer["successors"]]
        self.reached["partial re-execution: another user"] += sum(state in (L.READY, L.RUNNING) for state in states) > 1
        self.open_again(lost)
        self.reached["partial re-execution: producer is blocked"] += producer["state"] == L.BLOCKED
        self.work_left += producer["work"]
        self.cost_left += producer["cost"]
        for j in producer["successors"]:
            if self.tasks[j]["state"] == L.READY and self.open_inputs(j):
                self.tasks[j].update(state=L.BLOCKED, hold=None, queued=None)

    # ------------------------------------------------------------------ between_calls
    def between_calls(self) -> None:
        outcome = self.outcome
        for p in range(len(self.pools)):
            self.serve_queue(p)
        self.outcome = outcome
        if self.system["rebalance"]:
            self.rebalance()
        if self.system["prewarm"]:
            self.prewarm()

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
