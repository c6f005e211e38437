"""Level 1 in plain Python that is written for speed: a yardstick for the kernel, of which it must never import a line.

It plays that level alone and follows `pit/README.md` and `fq_env/README.md` as far as the level needs them. There is one
place, and to start an open task is all that is ever legal: so a step is a whole call, which begins, ends, and leaves the
next decision due at once, and no queue of events is kept. Tasks have no edges, a function has one task at most, its output
is always perfect, and no call takes twice its estimate, from where on it would count as overrun. What no step changes is
found at the reset; all else is kept up to date as it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import exp, floor, sqrt
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

import pit.layout as L
from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.state import GOAL, TRUTH
from pit import state
from tests.twin.chance import WORD, mix
from tests.twin.game_score import added

N_VERBS, STANDARD = L.N_VERBS, L.STANDARD
GOLDEN, ROOT_3 = 0x9E3779B97F4A7C15, sqrt(3)
ALONE = 1 / (1 + 4)  # how a slot says that it has one member, and the run that it is one workflow
ONE_PLACE = 1 / (1 + 8)  # the same of places, and of calls in flight
SPREAD = 0.25  # of an estimate that no observation stands behind, over the estimate
NONE, WARM, BLOCKED, FAILED = (  # the columns of the last outcome
    Struct("8f").pack(*(k == outcome for k in range(len(L.OUTCOMES))))
    for outcome in (L.OUT_NONE, L.OUT_WARM, L.OUT_BLOCKED, L.OUT_FAILED)
)
# What is legal with k open tasks: to start each of them; after the end: to wait.
LEGAL = [[a % N_VERBS == STANDARD and a < k * N_VERBS for a in range(L.N_ACTIONS)] for k in range(L.N_SLOTS + 1)]
OVER = [a == L.WAIT for a in range(L.N_ACTIONS)]
# What stands between k slots and the globals: empty slots, and pools, of which the level shows nothing.
EMPTY = [bytes(4 * (L.GLOBAL_OFFSET - k * L.N_SLOT_FEATURES)) for k in range(L.N_SLOTS + 1)]
# The 25 columns of a slot and the 48 globals; x stands for bytes of those that are always 0.
pack_slot = Struct("f 4x 4f 56x 2f 4x 2f").pack
pack_globals = Struct("3f 4x 3f 4x 3f 4x 32s 16x f 4x f 4x f 28x f 32x 3f").pack


class QuickGame(NamedTuple):
    """An episode: what is seen (live, as an engine's buffer is) and legal at first, and what takes an action."""

    observation: np.ndarray  # (512,) float32
    mask: list[bool]
    step: Callable[[int], tuple[np.ndarray, list[bool], float, bool, bool]]


@cache
def rules() -> tuple[Any, ...]:
    """What no draw changes: the level, and of each function its needs as bits of functions, its code and its price."""
    level = load_level(1)
    functions, needs = level.system.functions, level.order.needs  # type: ignore[union-attr]
    names = list(functions)
    needed = [sum(1 << names.index(x) for x in needs.get(name, [])) for name in names]
    return level, needed, [f.code for f in functions.values()], [round(f.standard.price * 1e6) for f in functions.values()]


@lru_cache(maxsize=1)
def views_of(engine: Engine, i: int) -> dict[str, np.ndarray]:
    """What is read of environment i after each reset: it always lies there."""
    memory, block = engine.memory[i], engine.block
    found = {name: block.hot(memory)[name] for name in ("n_tasks", "exposure")}
    found |= {name: block.hidden(memory)[name] for name in ("noise", "have", "instance_seed")}
    found |= {name: block.rows(memory, "task_at", state.TASK, block.tasks)[name] for name in ("function", "required")}
    found["factor"] = block.rows(memory, "goal_at", GOAL, block.tasks)["factor"]
    for name, table, dtype in (("nominal", "variant_at", state.VARIANT), ("mean", "truth_at", TRUTH)):
        found[name] = block.rows(memory, table, dtype, L.N_VARIANTS * block.functions)[name][STANDARD :: L.N_VARIANTS]
    return found


def quick_game(engine: Engine, i: int = 0, max_steps: int | None = None) -> QuickGame:
    """The episode of environment i of an engine of level 1 that has just reset it; the reward is `potential`.

    `step` gives what `TwinGame.step` gives; it must not be called after the end.

    Raises:
        ValueError: the engine plays another level, or shows more of it.
    """
    level, needs, codes, prices = rules()
    views = views_of(engine, i)
    n, exposure = views["n_tasks"].item(), views["exposure"].item()
    if engine.unique != [level] or exposure != L.HIDDEN:
        raise ValueError("this twin plays level 1 alone, as its file says it, under the exposure `hidden`")

    # ------------------------------------------------------------------ what was drawn
    functions, required, factor = (views[name][:n].tolist() for name in ("function", "required", "factor"))
    nominal, mean = views["nominal"].tolist(), views["mean"].tolist()  # of standard variants
    sigma, have, durations = views["noise"].item(), views["have"].item(), mix(views["instance_seed"].item(), 1)

    # ------------------------------------------------------------------ what follows from it
    works = [nominal[f] for f in functions]  # what the Pit expects ...
    truth = [mean[f] * x for f, x in zip(functions, factor)]  # ... and what is true
    costs = [x * prices[f] / 10**6 for f, x in zip(functions, truth)]
    least = [x * r for x, r in zip(truth, required)]  # of what is needed
    tasks = [
        (truth[k], prices[f], needs[f], 1 << f, works[k], least[k], costs[k] * required[k], required[k])
        for k, f in enumerate(functions)
    ]
    keys = [durations + (k * 8192 + STANDARD + 1) * GOLDEN for k in range(n)]  # of a task's next draw
    work_left = work_total = added(works)
    unit = work_total / n
    lb = max(max(x * r for x, r in zip(works, required)), added(x * r for x, r in zip(works, required)))
    least_left, cost_left = added(least[::-1]), added(task[6] for task in tasks[::-1])
    bound, cost_low = max(*least, least_left), cost_left
    cost_high = added(costs[k] for k in reversed(range(n)) for _ in range(1 + required[k]))
    horizon, variance = floor(level.horizon * bound), 0.5 * sigma * sigma
    efficient, stable, optimal = level.score.efficiency, level.score.stability, level.score.optimization
    weights, warned = 1.0 + efficient + stable + optimal, level.system.warning_weight
    sinks = undone = sum(required)
    size, limit = n / (n + 64), max_steps or level.max_steps

    now = spent = warnings = steps = 0
    stability, attempts, waiting = 1.0, [0] * n, list(range(n))  # in the order of slots
    buffer = bytearray(4 * L.N_OBSERVATION)
    observation = np.frombuffer(buffer, np.float32)

    def row(k: int, status: float, overrun: float = 0.0) -> bytes:
        """The slot of task k."""
        tries, meant = attempts[k], 1.0 / sinks * n if required[k] else 0.0
        return pack_slot(
            ALONE, 1.0, meant / (meant + 1.0), works[k] / (works[k] + unit), SPREAD, tries / (tries + 2), overrun, status,
            codes[functions[k]],
        )  # fmt: skip

    statuses = [0.0 if r else -1.0 for r in required]
    rows = [row(k, statuses[k]) for k in range(n)]

    def observe(outcome: bytes, active: float, ready: int, flying: float = 0.0) -> None:
        """All columns: the slots of `waiting`, empty ones, pools, globals."""
        reached = (sinks - undone) / sinks
        seen = [rows[k] for k in waiting]
        seen += (
            EMPTY[len(seen)],
            pack_globals(
                now / (now + lb), 1.0, min(1.0, max(0.0, work_left / work_total)), undone / sinks, ready / (ready + 8), flying,
                1.0, 1.0, 1.0, outcome, reached, stability, warnings / (warnings + 4), active, reached, size, ONE_PLACE,
            ),
        )  # fmt: skip
        buffer[:] = b"".join(seen)

    def potential() -> float:
        """The best total that can still be reached, or that was."""
        left, due = (least_left, cost_left) if undone else (0.0, 0.0)
        if undone == 1:  # of two the longer is shorter than both, whatever was rounded
            left = max(left, *[least[k] for k in waiting])
        efficiency = min(1.0, max(0.0, (cost_high - spent - due) / (cost_high - cost_low)))
        bonus = efficient * efficiency + stable * stability + optimal * min(1.0, bound / (now + left))
        return (1.0 + bonus) / weights

    def expire(k: int, outcome: bytes, ran: int) -> tuple[np.ndarray, list[bool], float, bool, bool]:
        """The horizon, at which task k has run for `ran` microseconds: nothing is worth anything any more."""
        ready = len(waiting)
        waiting.append(k)
        rows[k] = row(k, 0.5, max(0.0, (ran - works[k]) / (ran + works[k])))
        observe(outcome, 0.0, ready, ONE_PLACE)
        return observation, OVER, 0.0 - phi, True, False

    def step(action: int) -> tuple[np.ndarray, list[bool], float, bool, bool]:
        nonlocal now, spent, warnings, steps, stability, have, undone, work_left, least_left, cost_left, phi
        steps += 1
        if 0 <= action < N_VERBS * len(waiting) and action % N_VERBS == STANDARD:
            k, outcome = waiting.pop(action // N_VERBS), WARM
        else:
            k, outcome = waiting.pop(0), BLOCKED
            warnings += 1
            stability = max(0.0, 1.0 - warned * warnings)
        true, price, needed, bit, work, own, cost, counts = tasks[k]
        x = keys[k] & WORD
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
        x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
        x ^= x >> 31
        normal = (((x & 0xFFFF) + (x >> 16 & 0xFFFF) + (x >> 32 & 0xFFFF) + (x >> 48) + 2) / 65536 - 2) * ROOT_3
        elapsed = floor(true * exp(sigma * normal - variance))
        if now + elapsed >= horizon:
            ran, now = horizon - now, horizon
            return expire(k, outcome, ran)
        now += elapsed
        spent += elapsed * price // 10**6
        if needed & have == needed:
            have |= bit
            work_left -= work
            undone -= counts
            least_left -= own
            cost_left -= cost
        else:
            outcome = FAILED
            waiting.append(k)
            attempts[k] += 1
            if attempts[k] < 1024:
                keys[k] += 8 * GOLDEN
            rows[k] = row(k, statuses[k])
            warnings += 1
            stability = max(0.0, 1.0 - warned * warnings)
        before, phi = phi, potential()
        ready = len(waiting)
        if undone:
            observe(outcome, ALONE, ready)
            return observation, LEGAL[ready], phi - before, False, steps >= limit
        observe(outcome, 0.0, ready)
        return observation, OVER, phi - before, True, False

    phi = potential()
    observe(NONE, ALONE, n)
    return QuickGame(observation, LEGAL[n], step)
