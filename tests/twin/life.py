"""Section 6 of the rule book in plain Python: what becomes of a call."""

from __future__ import annotations

import pit.layout as L
from tests.twin.estimates import Table
from tests.twin.tracking import TwinTracking

UNMENDABLE = (L.ERR_PRECONDITION, L.ERR_ACCESS)  # another variant would fail as well


class TwinLife(TwinTracking):
    """A call from `before_call` to `after_call`."""

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
        for p, units in call["taken"].items():
            self.change_busy(p, -units)
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
        fetch, committed = self.fetch(i), self.call_cost(i, v)
        self.fetch_inputs(i)
        p, m, hedge = variant["pool"], variant["model"], task["state"] == L.RUNNING
        task.update(state=L.RUNNING, queued=None)
        self.reached["gang: begun"] += len(variant["taken"]) > 1
        for place, units in variant["taken"].items():
            self.change_busy(place, units)
        if self.pools[p]["period"]:
            self.store_credit(p, self.credit(p) - variant["tokens"] * self.pools[p]["period"])
        k, self.next_call = self.next_call, self.next_call + 1
        call = self.calls[k] = {
            "task": i, "function": task["function"], "variant": v, "pool": p, "taken": variant["taken"], "queued": queued,
            "copy": None if m is None else c, "cold": case in "bc", "start": None, "end": 0.0, "hedge": hedge,
            "est": self.est(i, v) + fetch, "spread": self.spread(i, v), "base": self.base(i, v), "committed": committed,
            "fetch": fetch, "overrun": 0, "limit": 0, "stale": sum(self.is_stale(j) for j in task["inputs"]),
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
            known = quality if quality >= 0 else self.own_quality(call) * self.quality_factor(call)
            task.update(quality=known, size=size, version=task["version"] + 1, created=self.now)
            self.enter_hot(call["task"])
            self.track_ok(call)
        elif self.calls_of(call["task"]):
            self.reached["hedge: an error leaves the other call"] += 1
            task["attempts"] += error != L.ERR_CANCELLED
        else:
            self.track_error(call["task"], error)
        self.release(call)
        self.pay(price)
        if error == L.ERR_CANCELLED:
            self.reached["lost by its driver"] += 1
            return
        self.log(call, error, elapsed, quality)
        if error != L.OK:
            self.outcome = L.OUT_DENIED if error == L.ERR_ACCESS else L.OUT_FAILED
            self.fall_back(call, error)

    def own_quality(self, call: Table) -> float:
        return float(self.functions[call["function"]]["variants"][call["variant"]]["quality"])

    def quality_factor(self, call: Table) -> float:
        """What the quality of a task's inputs, and their age, leaves of its own."""
        a, task = self.system["quality_flow"], self.tasks[call["task"]]
        inputs = [x for x in (self.tasks[j] for j in task["inputs"]) if not task["any"] or x["state"] == L.DONE]
        total = 0.0
        for x in inputs:
            total += x["quality"]
        mean = total / len(inputs) if inputs else 1.0
        if call["stale"]:
            loss = 1.0 - self.system["stale_quality"]
            self.reached["stale inputs: quality lost"] += a > 0 and loss > 0
            mean *= 1.0 - call["stale"] / len(task["inputs"]) * loss
        return 1.0 - a + a * mean

    def track_ok(self, call: Table) -> None:
        i = call["task"]
        task = self.tasks[i]
        for other in self.calls_of(i):
            self.cancel_call(other)
            self.reached["hedge: the first call wins"] += not call["hedge"]
            self.reached["hedge: the second call wins"] += call["hedge"]
        self.reached["priority: finished above 0"] += task["priority"] > 0
        self.finishes += 1
        self.is_done(i, "call")

    def track_error(self, i: int, error: int) -> None:
        task = self.tasks[i]
        task["attempts"] += error != L.ERR_CANCELLED
        if self.stream and self.flow_of(i)["ended"] is not None:
            self.reached["stream: a call fails after the end"] += 1
            self.give_up_quietly(i)
            return
        if error == L.ERR_LOST:
            self.lose_an_input(i)
        if 0 < self.system["max_attempts"] <= task["attempts"]:
            self.give_up(i)
        else:
            self.open_again(i)

    def log(self, call: Table, error: int, elapsed: int, quality: float) -> None:
        f, v = call["function"], call["variant"]
        self.log_health(call, error, elapsed, quality)
        if error == L.OK:
            self.duration_error = self.averaged_error(self.duration_error, elapsed, call["est"])
            if v == L.STANDARD and self.has_drifted(f):
                self.drifted = True
            if self.drifted and self.finishes >= max(L.RANK_EVERY_MIN, len(self.tasks) // L.RANK_EVERY_SHARE):
                self.compute_ranks()
                self.compute_buckets()
        self.warnings += error in L.WARNED_ERRORS
        pool = self.pools[call["pool"]]
        pool["row"] = pool["row"] + 1 if error != L.OK else 0
        if error == L.ERR_THROTTLED and pool["period"]:
            self.reached["throttled: credit gone"] += 1
            self.store_credit(call["pool"], 0)
        self.hint_cold, self.hint_queued = int(call["cold"]), int(call["queued"])
        self.hint_throttled, self.hint_stale = int(error == L.ERR_THROTTLED), int(call["stale"] > 0)

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
                self.note(L.FELL_BACK, 3 * call["function"] + other)
                self.before_call(i, other)
                self.outcome = L.OUT_FAILED
                return
