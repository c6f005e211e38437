"""Histories in which health matters: many calls of few functions, whose variants and pools have good and bad times."""

from __future__ import annotations

import random

import pit.layout as L
from tests.twin.driver import TICK, Workflow, World, random_task, random_workflow


def moody_workflow(rng: random.Random) -> Workflow:
    """Up to 90 tasks, nearly all of them ready at once, on a random system with few limits."""
    workflow = random_workflow(rng)
    system = workflow["system"]
    names = list(system["functions"])[: rng.choice((1, 1, 2, 3))]
    kind = {"any": 0.1, "soft": 0.3, "optional": 0.05, "priority": 1}
    workflow["tasks"] = [random_task(rng, i, names, 3, 0.03, kind) for i in range(rng.choice((40, 90)))]
    workflow["tasks"][-1]["optional"] = False
    for task in workflow["tasks"]:
        task["seconds"] = rng.choice((None, 1.0, rng.uniform(0.5, 2.0)))
    system |= {
        "heal": rng.random() < 0.75, "max_attempts": 0, "money": None, "horizon_seconds": None, "order_hidden": False,
        "time_out": rng.choice((None, None, 3.0)), "fallback": rng.random() < 0.5, "deny": [],
        "back_off_seconds": 0.3, "back_off_most_seconds": None, "back_off_jitter": None,
    }  # fmt: skip
    for pool in system["pools"].values():
        pool["rate"] = pool["rate"] if rng.random() < 0.2 else None
    return workflow


class MoodyWorld(World):
    """An executor whose variants and pools are slow, failing or changed for a while, alone or together."""

    def __init__(self, rng: random.Random, workflow: Workflow, more: int = 0):
        super().__init__(rng, workflow, more)
        self.failing, self.straggling, self.losing, self.throttling = 0.0, 0.0, 0.1, 0.05
        self.moods: dict[tuple[str, int], str] = {}  # of ("row", 3 x function + variant) and ("pool", index)
        self.restless = rng.choice((0.01, 0.03, 0.08))
        self.steady = rng.choice((0.02, 0.1, 0.3))
        self.told = rng.random() < 0.5
        self.heard = rng.choice((0.0, 0.6, 1.0))  # how often a variant is configured when that is wanted
        self.nominal: dict[int, float] = {
            3 * f + v: function[name]["seconds"]
            for f, function in enumerate(workflow["system"]["functions"].values())
            for v, name in enumerate(L.VERBS[: L.N_VARIANTS]) if function[name]
        }  # fmt: skip
        self.pools = len(workflow["system"]["pools"])

    def change_mood(self, row: int, pool: int) -> None:
        rng = self.rng
        mood = rng.choice(("good", "slow", "very slow", "failing", "changed", "fast"))
        if rng.random() < 0.3:
            for p in range(self.pools) if rng.random() < 0.6 else (pool,):
                self.moods["pool", p] = mood if mood != "changed" else "good"
        else:
            self.moods["row", row] = mood

    def obey(self, now: int, command: tuple) -> None:
        kind, call, _, function, variant, pool, _, _ = command
        rng, row = self.rng, 3 * function + variant
        if kind == L.CMD_CONFIGURE:
            if rng.random() < self.heard:
                self.put(now + rng.choice((0, 5, 40)) * TICK, (L.CONFIG_CHANGED, row, 0, 0, -1.0, 0, 0))
                self.moods.pop(("row", row), None)
            return
        if kind != L.CMD_START:
            super().obey(now, command)
            return
        if rng.random() < self.restless:
            self.change_mood(row, pool)
        if rng.random() < 0.01:
            event = rng.choice((L.CONFIG_CHANGED, L.OUTPUT_CHANGED, L.OUTPUT_CHANGED))
            self.put(now + rng.choice((0, TICK)), (event, rng.choice((row, row, 0, 200)), 0, 0, -1.0, 0, 0))
        moods = {self.moods.get(("row", row)), self.moods.get(("pool", pool))}
        pace = {"slow": 1.8, "very slow": 9.0, "fast": 0.5}
        seconds = self.nominal[row]
        for mood in moods:
            seconds *= pace.get(mood or "", 1.0)
        elapsed = max(1, round(seconds * 1e6 * rng.uniform(1.0 - self.steady, 1.0 + self.steady)))
        error = L.OK
        if rng.random() < (0.8 if "failing" in moods else 0.02):
            error = rng.choice((L.ERR_ERROR, L.ERR_TIMEOUT, L.ERR_LOAD, L.ERR_ERROR, L.ERR_LOST, L.ERR_CANCELLED))
        if "changed" in moods:
            error = L.ERR_INVALID
        elapsed = 0 if rng.random() < 0.02 else elapsed
        quality = rng.choice((-1.0, 0.0, rng.random())) if self.told else -1.0
        self.put(now + elapsed, (L.FINISHED, call, error, elapsed, quality, 1, rng.choice((0, 300))))
