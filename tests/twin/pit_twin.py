"""The Pit once more, in plain Python: dicts, lists and the sentences of `pit/README.md`, in their order.

It shares nothing with the kernels but the numbers of `pit/layout.py`, so the two can only agree by following the same
rules. It is slow and made for reading; it must never import a kernel. Sections 2 and 3 stand in `estimates.py`, slots
and legality (5) in `slots.py`, a call's life (6) in `life.py`, `tracking.py` and `between.py`, streams (7) in `flows.py`,
health (8) in `health.py`, the store (9) in `store.py`, the observation (10) in `observation.py`; here are events, timers (4)
and actions (5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pit.layout as L
from tests.twin.between import TwinBetween

TIMERS = ("hold ends", "claim ends", "token", "pool opens", "keep-alive", "grows stale", "overrun", "time-out", "horizon")
HOLD_ENDS, CLAIM_ENDS, TOKEN, POOL_OPENS, KEEP_ALIVE, GROWS_STALE, OVERRUN, TIME_OUT, HORIZON = range(
    9
)  # in their order at one time


class TwinPit(TwinBetween):
    """One run of one workflow or of a stream, by the rule book; see `TwinEstimates` for what it is made from."""

    # ------------------------------------------------------------------ section 4: events, timers
    def apply(self, event: Sequence[Any]) -> bool:
        """One event (kind, subject, error, elapsed, quality, size, price); False if it was ignored."""
        kind, subject, error, elapsed, quality, size, price = event
        copy = self.copies[subject] if 0 <= subject < len(self.copies) else {"state": None}
        call = self.calls.get(subject)
        fits = {
            L.ARRIVE: not self.arrived or (self.open and subject == len(self.arrivals) < len(self.flows)),
            L.STARTED: call is not None and call["start"] is not None,
            L.LOADED: copy["state"] == L.LOADING,
            L.LOAD_FAILED: copy["state"] == L.LOADING,
            L.UNLOADED: copy["state"] == L.COOLDOWN,
            L.FINISHED: call is not None and call["start"] is not None,
            L.REJECTED: call is not None and call["start"] is not None,
            L.TENANT_LOAD: 0 <= subject < len(self.pools) and size >= 0,
            L.CONFIG_CHANGED: subject in self.rows,
            L.STREAM_CLOSED: self.open,
            L.OUTPUT_CHANGED: subject in self.rows,
        }
        if self.status != L.ON or (not self.arrived and kind != L.ARRIVE) or not fits.get(kind, False):
            self.ignored += 1
            return False
        self.waiting = False
        if kind == L.ARRIVE:
            self.arrive(len(self.arrivals))
        elif kind == L.STREAM_CLOSED:
            self.close_stream()
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
        elif kind == L.TENANT_LOAD:
            self.tenant_load(subject, size)
        elif kind == L.CONFIG_CHANGED:
            self.config_changed(subject)
        elif kind == L.OUTPUT_CHANGED:
            self.output_changed(subject)
        else:
            self.after_call(subject, error if error != L.OK else L.ERR_THROTTLED, 0, -1.0, 0, 0)
        if self.status == L.ON:
            self.between_calls()
        return True

    def arrive(self, g: int) -> None:
        if not self.arrived:
            self.arrived, self.t0 = True, self.now
            for pool in self.pools:
                pool.update(settled=self.now, stored=pool["burst"] * (pool["period"] or 0), stored_at=self.now)
            for r in self.rows:
                self.take_calm(r)
        self.flow_arrives(g)

    def tenant_load(self, p: int, size: int) -> None:
        pool = self.pools[p]
        self.reached["tenants: leave"] += size == 0 < pool["tenants"]
        self.reached["tenants: want more than all"] += size > pool["places"]
        self.reached["tenants: crowd calls in flight"] += pool["busy"] > 0 and pool["busy"] + size > pool["places"]
        pool.update(use=self.utilisation(p), settled=self.now, tenants=min(size, pool["places"]))

    def waiting_calls(self, c: int) -> list[int]:
        return [k for k in sorted(self.calls) if self.calls[k]["copy"] == c and self.calls[k]["start"] is None]

    def loaded(self, c: int, elapsed: int, price: int) -> None:
        copy = self.copies[c]
        waiting = self.waiting_calls(c)
        self.reached["loaded: nobody waits"] += not waiting
        copy.update(state=L.ACTIVE if waiting else L.WARM, committed=0)
        if not waiting:
            copy["last_used"] = self.now
        for k in waiting:
            self.begin(k)
            self.command_call(L.CMD_START, k)
        nominal = self.models[copy["model"]]["load"]
        if nominal > 0 and elapsed > 0:
            n, s = self.loads_seen[copy["model"]]
            self.loads_seen[copy["model"]] = (n + 1, s + elapsed / nominal)
        self.load_error = self.averaged_error(self.load_error, elapsed, copy["est"])
        self.pay(price)
        self.end_holds(c)

    def load_failed(self, c: int, price: int) -> None:
        waiting = self.waiting_calls(c)
        self.reached["load failed: nobody waits"] += not waiting
        self.leave_memory(c)
        self.copies[c].update(state=L.IDLE, users=0, committed=0)
        self.pay(price)
        for k in waiting:
            self.calls[k]["copy"] = None  # it is idle: nothing to release
        for k in waiting:
            if k in self.calls:
                self.after_call(k, L.ERR_LOAD, 0, -1.0, 0, 0)

    # ------------------------------------------------------------------ timers
    def timers(self) -> list[tuple[int, int, int]]:
        """(time, kind, subject) of all that may fire: sorted, they stand in firing order."""
        if not self.arrived or self.status != L.ON:
            return []
        timers = [(task["hold"], HOLD_ENDS, i) for i, task in enumerate(self.tasks) if task["hold"] is not None]
        for i, task in enumerate(self.tasks):
            gang, reserve = len(self.variant(i, L.STANDARD)["taken"]) > 1, self.system["reserve"]
            if gang and reserve and task["queued"] is not None and task["queued"] + reserve > self.now:
                timers.append((task["queued"] + reserve, CLAIM_ENDS, i))
        for p, pool in enumerate(self.pools):
            if self.short_of_tokens(p):
                timers.append((self.now + pool["period"] - self.credit(p) % pool["period"], TOKEN, p))
            if self.is_closed(p):
                timers.append((pool["closed"], POOL_OPENS, p))
        for c, copy in enumerate(self.copies):
            if copy["state"] == L.WARM and (keep_alive := self.models[copy["model"]]["keep_alive"]):
                timers.append((copy["last_used"] + keep_alive, KEEP_ALIVE, c))
        if "refresh" in self.system["verbs"]:
            for i, task in enumerate(self.tasks):
                if task["state"] == L.DONE and self.fresh(i) and task["created"] + self.fresh(i) > self.now:
                    timers.append((task["created"] + self.fresh(i), GROWS_STALE, i))
        for k, call in self.calls.items():
            if call["start"] is None:
                continue
            if {"hedge", "cancel"} & self.system["verbs"]:
                timers.append((call["start"] + call["limit"], OVERRUN, k))
            if self.system["time_out"]:
                timers.append((call["start"] + max(1, int(self.system["time_out"] * call["est"])), TIME_OUT, k))
        if self.system["horizon"]:
            timers.append((self.t0 + self.system["horizon"], HORIZON, 0))
        return sorted(timers)

    def fire(self, kind: int, subject: int) -> None:
        self.waiting = False
        self.reached[f"timer: {TIMERS[kind]}"] += 1
        if kind == HOLD_ENDS:
            self.tasks[subject]["hold"] = None
        elif kind == POOL_OPENS:
            self.pools[subject]["closed"] = None
        elif kind == KEEP_ALIVE:
            self.unload(subject)
        elif kind == OVERRUN:
            call = self.calls[subject]
            call.update(overrun=call["overrun"] + 1, limit=2 * call["limit"])
        elif kind == TIME_OUT:
            call = self.calls[subject]
            elapsed = self.now - call["start"]
            price = self.functions[call["function"]]["variants"][call["variant"]]["price"]
            self.command_call(L.CMD_CANCEL, subject)
            self.after_call(subject, L.ERR_TIMEOUT, elapsed, -1.0, 0, elapsed * price // 10**6)
        elif kind == HORIZON:
            self.status = L.EXPIRED

    def next_timer(self) -> int:
        timers = self.timers()
        return timers[0][0] if timers else L.NEVER

    def advance(self, t: int) -> None:
        if t < self.now:
            return
        while (time := self.next_timer()) <= t:
            due = [(kind, subject) for when, kind, subject in self.timers() if when == time]
            self.move_clock(time)
            for kind, subject in due:
                if self.status == L.ON:
                    self.fire(kind, subject)
            if self.status == L.ON:
                self.between_calls()
        self.move_clock(t)

    def decision_due(self) -> bool:
        if self.status != L.ON:
            return True
        if not self.arrived or self.waiting:
            return False
        useful = (*range(L.N_VARIANTS), L.HEDGE)
        for members in self.slots()[0]:
            i, running = members[0], self.tasks[members[0]]["state"] == L.RUNNING
            if any(self.verb_legal(i, verb) for verb in useful) or (running and self.verb_legal(i, L.CANCEL)):
                return True
        if "refresh" in self.system["verbs"] and self.refreshable():
            return True
        alarmed = any(kind != HORIZON for _, kind, _ in self.timers())
        return not self.something_under_way() and not self.open and not alarmed and any(self.mask())

    def move_clock(self, t: int) -> None:
        if t > self.now:
            self.now, self.actions_here = t, 0

    def commands(self) -> list[tuple[int, ...]]:
        """(kind, call, task, function, variant, pool, copy, model), -1 where it does not apply; drained."""
        out, self.out = self.out, []
        return out

    # ------------------------------------------------------------------ section 5: actions
    def act(self, action: int) -> None:
        self.carried = None
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
        self.carried = action
        self.carry_out_action(action)
        if blocked:
            self.outcome = L.OUT_BLOCKED
        if action != L.WAIT and self.status == L.ON:
            self.between_calls()

    def carry_out_action(self, action: int) -> None:
        if action < L.WAIT:
            self.use_slot(self.slots()[0][action // L.N_VERBS], action % L.N_VERBS)
        elif action == L.WAIT:
            self.waiting, self.outcome = True, L.OUT_WAITED
        elif action == L.SKIP:
            i = self.skippable()[0]
            self.reached["skip: " + L.TASK_STATES[self.tasks[i]["state"]]] += 1
            self.outcome = L.OUT_NONE
            self.give_up(i)
        elif action == L.DEFER:
            self.outcome = L.OUT_NONE
            self.defer()
        elif action == L.REFRESH:
            self.reached["refresh"] += 1
            self.outcome = L.OUT_NONE
            self.run_again(self.refreshable()[0])
        else:
            p = self.failing_pools()[0]
            pool = self.pools[p]
            self.note(L.BACKED_OFF, 3 * len(self.functions) + p)
            self.reached[L.GLOBAL_ACTIONS[action - L.WAIT]] += 1
            doublings = min(pool["row"], L.MAX_DOUBLINGS) - 1
            wait = self.system["back_off"] * 2**doublings * (4 if action == L.BACK_OFF_LONG else 1)
            if wait > self.system["back_off_most"]:
                self.reached["back_off: at most"] += 1
                wait = self.system["back_off_most"]
            if self.system["jitter"]:
                self.reached["back_off: jitter"] += 1
                wait -= int(wait * (self.system["jitter"] * self.lot(p)))
            pool["closed"] = self.now + wait
            self.outcome = L.OUT_NONE

    def lot(self, p: int) -> float:
        """The number in [0, 1) of pool p that stands for chance here."""
        most = 2**64 - 1
        x = (self.system["salt"] + (64 * self.actions + p) * 0x9E3779B97F4A7C15) & most
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & most
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & most
        return ((x ^ x >> 31) >> 11) / 2**53

    def use_slot(self, members: Sequence[int], verb: int) -> None:
        i = members[0]
        if verb == L.HOLD:
            self.hold(members)
        elif verb == L.QUEUE:
            self.reached["queue"] += 1
            self.tasks[i]["queued"], self.outcome = self.now, L.OUT_QUEUED
        elif verb == L.HEDGE:
            self.reached["hedge"] += 1
            self.before_call(i, self.calls[self.calls_of(i)[0]]["variant"])
        elif verb == L.CANCEL:
            self.cancel(i)
        else:
            self.before_call(i, verb)

    def cancel(self, i: int) -> None:
        task, self.outcome = self.tasks[i], L.OUT_NONE
        if task["queued"] is not None:
            self.reached["cancel: queued"] += 1
            task["queued"] = None
            return
        self.reached["cancel: running"] += 1
        for k in self.calls_of(i):
            self.cancel_call(k)
        task["attempts"] += 1
        if self.stream and self.flow_of(i)["ended"] is not None:
            self.reached["stream: a call is cancelled after the end"] += 1
            self.give_up_quietly(i)
        else:
            self.open_again(i)

    def hold(self, members: Sequence[int]) -> None:
        until = self.now + int(self.load_est(self.variant(members[0], L.STANDARD)["model"]))
        for i in members:
            self.tasks[i]["hold"] = until
        self.outcome = L.OUT_QUEUED
