"""Section 8 of the rule book in plain Python: what is known of the health of variants and pools, and what heals them."""

from __future__ import annotations

from typing import Any

import pit.layout as L
from tests.twin.estimates import Table
from tests.twin.flows import TwinFlows

SICK = (L.ERR_ERROR, L.ERR_TIMEOUT, L.ERR_LOAD)  # errors that tell of a variant's or pool's own trouble


class TwinHealth(TwinFlows):
    """Records: row 3 x function + variant of each usable variant, then one of each pool."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        n, variants = 3 * len(self.functions), self.functions
        names = [f"{f}.{v}" for f in self.system.get("names", range(len(variants))) for v in L.VERBS[: L.N_VARIANTS]]
        self.names = names + list(self.system.get("pool_names", range(len(self.pools))))
        self.rows = [3 * f + v for f, function in enumerate(variants) for v in self.usable_variants(function)]
        self.records: dict[int, Table] = {
            r: dict.fromkeys(
                ("calls", "fails", "known", "bad", "seen", "met", "rise", "allow", "clean", "drag", "late", "sum_y", "sum_z",
                 "factor", "half", "back", "calm", "scale", "invalid", "in_row", "last_error", "pattern", "since"), 0
            ) | {"level": 1.0, "coherence": 1.0, "failing": False, "slow": False, "mended": False}
            for r in (*self.rows, *range(n, n + len(self.pools)))
        }  # fmt: skip
        self.healed: list[Table] = []  # actions that were to mend something, the oldest first

    def pool_record(self, p: int) -> Table:
        return self.records[3 * len(self.functions) + p]

    def pool_of_row(self, r: int) -> int:
        return int(self.functions[r // 3]["variants"][r % 3]["pool"])

    def chance(self, r: int) -> float:
        """That the next call of the variant or pool fails."""
        x = self.records[r]
        if r >= 3 * len(self.functions):
            return float((L.CHANCE_PRIOR + x["fails"]) / (L.CHANCE_COUNT + x["calls"]))
        pool = self.chance(3 * len(self.functions) + self.pool_of_row(r))
        return float((L.CHANCE_SHARE * pool + x["fails"]) / (L.CHANCE_SHARE + x["calls"]))

    def take_calm(self, r: int) -> None:
        """The row's estimate is what it takes when all is well."""
        ratio = self.ratio(r // 3, r % 3)
        self.records[r].update(calm=ratio, scale=1.0 / max(self.deviation(r // 3, r % 3), L.CALM_FLOOR * ratio))

    def set_pattern(self, r: int, pattern: int) -> None:
        self.reached["health: " + L.PATTERNS[pattern] + (", a pool" if r >= 3 * len(self.functions) else "")] += 1
        self.records[r].update(pattern=pattern, since=self.now)

    # ------------------------------------------------------------------ log
    def log_health(self, call: Table, error: int, elapsed: int, quality: float) -> None:
        """What the end of a call says of its variant and of its (first) pool."""
        r, both, taken = self.row_of(call), self.both_of(call), elapsed - call["fetch"]
        failed = 0.0 if error == L.OK else 1.0
        self.failure_error += L.EWMA * (abs(failed - self.chance(r)) - self.failure_error)
        own = self.functions[call["function"]]["variants"][call["variant"]]["quality"]
        for x in (self.records[k] for k in both):
            x["calls"], x["fails"] = L.CHANCE_MEMORY * x["calls"] + 1.0, L.CHANCE_MEMORY * x["fails"] + failed
            x["in_row"] = x["in_row"] + 1 if failed else 0
            x["last_error"] = error or x["last_error"]
            if error == L.OK and quality >= 0 and own > 0:
                x["coherence"] += L.LEVEL_EWMA * (min(1.0, quality / own) - x["coherence"])
        self.count_invalid(r, error)
        if error == L.OK:
            self.end_healings(both, taken / call["base"] if taken > 0 else None, r)
        if error == L.OK or error in SICK:
            for k in both:
                self.watch(k, lambda k=k: self.count_failure(k, int(error != L.OK)))  # type: ignore[misc]
        if error == L.OK and taken > 0:
            self.look_at_duration(r, both, taken / call["base"])

    def row_of(self, call: Table) -> int:
        return int(3 * call["function"] + call["variant"])

    def both_of(self, call: Table) -> tuple[int, int]:
        """The records of a call: its row's, then its pool's."""
        return self.row_of(call), 3 * len(self.functions) + call["pool"]

    def watch(self, k: int, step: Any) -> None:
        """Does a step of record k, and notes whether it brought trouble or ended it."""
        x = self.records[k]
        before = x["failing"] or x["slow"]
        step()
        after = x["failing"] or x["slow"]
        if after and not before:
            self.set_pattern(k, L.DEGRADATION)
            self.resonate(k)
        elif before and not after:
            self.set_pattern(k, L.RECOVERY)

    def resonate(self, k: int) -> None:
        """A pool that comes into trouble together with others."""
        first = 3 * len(self.functions)
        others = [first + p for p in range(len(self.pools)) if first + p != k] if k >= first else []
        troubled = [x for x in (self.records[j] for j in others) if x["failing"] or x["slow"]]
        together = [x for x in troubled if self.now - x["since"] <= L.TOGETHER * self.unit]
        self.reached["health: in trouble for too long to resonate"] += len(together) < len(troubled)
        if together:
            self.set_pattern(k, L.RESONANCE)
            for x in together:
                x["pattern"] = L.RESONANCE

    def count_failure(self, k: int, sick: int) -> None:
        x = self.records[k]
        if x["failing"]:
            x["clean"] = 0 if sick else x["clean"] + 1
            if x["clean"] == L.CLEAN_CALLS:
                self.reached["health: failing no more"] += 1
                x.update(failing=False, rise=0.0)
        elif not sick and x["rise"] == 0:
            x["known"] += 1
        else:
            if x["rise"] == 0:
                allow = L.RISE_FACTOR * (L.KNOWN_BAD + x["bad"]) / (L.KNOWN_CALLS + x["known"]) + L.RISE_MARGIN
                x.update(allow=allow, seen=0, met=0)
            x["rise"] = max(0.0, x["rise"] + sick - x["allow"])
            x["seen"] += 1
            x["met"] += sick
            if x["rise"] == 0:
                self.reached["health: a rise of failures passes"] += 1
                x["known"] += x["seen"]
                x["bad"] += x["met"]
            if x["rise"] > L.RISE_LIMIT:
                self.reached["health: failing"] += 1
                x.update(failing=True, clean=0)

    def look_at_duration(self, r: int, both: tuple[int, int], ratio: float) -> None:
        row, pool = (self.records[k] for k in both)
        y, z = ratio / row["calm"], max(-L.Z_MOST, min(L.Z_MOST, (ratio - row["calm"]) * row["scale"]))
        n, s, ss = self.seen[divmod(r, 3)]
        self.seen[divmod(r, 3)] = (n + 1, s + ratio, ss + ratio * ratio)
        for k, x in zip(both, (row, pool), strict=True):
            was = x["slow"]
            x["level"] += L.LEVEL_EWMA * (min(y, L.LEVEL_MOST) - x["level"])
            self.watch(k, lambda x=x: self.count_slowness(x, y, z))  # type: ignore[misc]
            if x["slow"] != was and self.system["heal"]:
                self.adapt_after(k, pool["slow"] and k == r)
        if not row["slow"] and not pool["slow"]:
            if row["drag"] == 0 or self.seen[divmod(r, 3)][0] < L.CALM_COUNT:
                self.take_calm(r)
            else:
                self.reached["health: a suspicion freezes calm"] += 1

    def count_slowness(self, x: Table, y: float, z: float) -> None:
        if x["slow"]:
            x["back"] = max(0.0, x["back"] + x["half"] - z)
            if x["back"] > L.BACK_LIMIT:
                self.reached["health: slow no more"] += 1
                x.update(slow=False, drag=0.0)
            return
        x["drag"] = max(0.0, x["drag"] + z - L.DRAG_ALLOWED)
        if x["drag"] == 0:
            x.update(late=0, sum_y=0.0, sum_z=0.0)
        else:
            x.update(late=x["late"] + 1, sum_y=x["sum_y"] + y, sum_z=x["sum_z"] + z)
        if x["drag"] > L.DRAG_LIMIT:
            self.reached["health: slow"] += 1
            x.update(slow=True, factor=x["sum_y"] / x["late"], half=x["sum_z"] / x["late"] / 2.0, back=0.0)
            x.update(late=0, sum_y=0.0, sum_z=0.0)

    # ------------------------------------------------------------------ healing
    def count_invalid(self, r: int, error: int) -> None:
        """Errors `invalid` in a row say that the API of a variant has changed."""
        x = self.records[r]
        if error == L.OK:
            x["invalid"] = 0
            if x["pattern"] == L.API_CHANGE:
                self.reached["health: an ok ends api_change"] += 1
                self.set_pattern(r, L.RECOVERY)
        elif error == L.ERR_INVALID:
            x["invalid"] += 1
            if x["invalid"] == L.INVALID_CALLS:
                self.api_changes(r)

    def api_changes(self, r: int) -> None:
        self.set_pattern(r, L.API_CHANGE)
        x = self.records[r]
        self.reached["health: changed again while it is mended"] += x["mended"]
        if self.system["heal"] and not x["mended"] and self.status == L.ON:
            self.note(L.CONFIG_UPDATE, r)
            x["mended"] = True
            self.out.append((L.CMD_CONFIGURE, -1, -1, r // 3, r % 3, self.pool_of_row(r), -1, -1))

    def output_changed(self, r: int) -> None:
        x = self.records[r]
        self.reached["health: output changed, known already"] += x["invalid"] >= L.INVALID_CALLS
        if x["invalid"] < L.INVALID_CALLS:
            x["invalid"] = L.INVALID_CALLS
            self.api_changes(r)

    def config_changed(self, r: int) -> None:
        x = self.records[r]
        self.reached["health: configured unasked"] += not x["mended"]
        x.update(mended=False, invalid=0, calls=0.0, fails=0.0)
        if x["pattern"] == L.API_CHANGE:
            self.set_pattern(r, L.RECOVERY)

    def adapt_after(self, k: int, pool_slow: bool) -> None:
        """Record k has become slow, or is slow no more; `pool_slow`: it is a row's and its pool is slow."""
        first, x = 3 * len(self.functions), self.records[k]
        if pool_slow:
            self.reached["health: no adaptation in a slow pool"] += 1
            return
        if x["slow"]:
            self.note(L.ADAPTATION, k)
        rows = [k] if k < first else [r for r in self.rows if self.pool_of_row(r) == k - first and not self.records[r]["slow"]]
        for r in rows:
            self.adapt(r, x["factor"] if x["slow"] else 1.0)

    def adapt(self, r: int, g: float) -> None:
        x, (f, v), count = self.records[r], divmod(r, 3), L.ADAPT_COUNT + L.PRIOR_COUNT
        w, d = x["calm"] * g, g / x["scale"]
        self.seen[f, v] = (L.ADAPT_COUNT, count * w - L.PRIOR_COUNT, count * (d * d + w * w) - L.PRIOR_SQUARE)
        self.reached["health: adapted" + (" back" if g == 1 else "")] += 1
        if v == L.STANDARD and self.has_drifted(f):
            self.reached["health: adaptation drifts"] += not self.drifted
            self.drifted = True

    def note(self, kind: int, k: int) -> None:
        """An action that is to mend record k begins."""
        before = self.records[k]["factor"] - 1.0 if kind == L.ADAPTATION else self.chance(k)
        action = {"time": self.now, "kind": kind, "subject": k, "before": before, "ended": None, "after": None}
        self.healed = [*self.healed, action][-L.HEALINGS :]

    def end_healings(self, both: tuple[int, int], ratio: float | None, r: int) -> None:
        """A call of these records has succeeded, `ratio` times its base (None: not known)."""
        for action in self.healed:
            if action["ended"] is not None or action["subject"] not in both:
                continue
            if action["kind"] != L.ADAPTATION:
                action.update(ended=self.now, after=self.chance(action["subject"]))
            elif ratio is not None:
                action.update(ended=self.now, after=abs(ratio / self.ratio(*divmod(r, 3)) - 1.0))
            self.reached["health: an action ends"] += action["ended"] is not None

    # ------------------------------------------------------------------ for those who look
    def signatures(self) -> list[tuple[Any, ...]]:
        """(name, chance, level, coherence, failing, slow, mending, in a row, last error, pattern, since) of each record."""
        return [
            (self.names[k], self.chance(k), x["level"], x["coherence"], x["failing"], x["slow"], x["mended"], x["in_row"],
             L.ERRORS[x["last_error"]], L.PATTERNS[x["pattern"]], x["since"])
            for k, x in self.records.items() if self.arrived
        ]  # fmt: skip

    def healings(self) -> list[tuple[Any, ...]]:
        """(time, action, subject, before, ended, after) of the last actions."""
        return [
            (x["time"], L.HEALING_ACTIONS[x["kind"]], self.names[x["subject"]], x["before"], x["ended"], x["after"])
            for x in self.healed
        ]

    def mended_rows(self) -> list[int]:
        return [r for r in self.rows if self.records[r]["mended"]]
