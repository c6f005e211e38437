"""The score's bounds against optima that CP-SAT proves, on small workflows in a calm world.

Without noise a call takes its true mean, rounded down to whole microseconds, and so do loads and prices: by no more than that
may a bound lie above an optimum. Optima are whole numbers, and no player may be better by a single one.
"""

from __future__ import annotations

import numpy as np
import pytest
from ortools.sat.python import cp_model

from fq_env.engine import Engine
from fq_env.level import Level, load_level
from fq_env.players import PLAYERS, lookahead, play_on
from pit.layout import LITE, SOLVED
from tests.twin.game_twin import TwinGame

INSTANCES = 8  # of each level
RANDOM_PLAYS = 64  # of each instance
QUICK = PLAYERS["critical_path_warm_wait"]._replace(variant=LITE)
EVERYBODY = (*PLAYERS.values(), QUICK, lookahead(PLAYERS["critical_path"], 4), lookahead(PLAYERS["random"], 4))


def small_and_calm(number: int) -> Level:
    level = load_level(number)
    assert level.workflow is not None
    still = {"noise_cv": (0.0, 0.0), "load_cv": 0.0, "straggler_rate": (0.0, 0.0), "failure_rate": 0.0}
    workflow = level.workflow.model_copy(update={"tasks": (6, 10)})
    return level.model_copy(update={"draw": level.draw.model_copy(update=still), "workflow": workflow})


def whole(mean: float) -> int:
    """What a call or a load takes in a calm world, us."""
    return max(1, int(mean))


def price(mean: float, per_second: int) -> int:
    """What it costs, micro-units."""
    return whole(mean) * per_second // 10**6


def proven_minimum(model: cp_model.CpModel, what: cp_model.LinearExprT) -> int:
    model.minimize(what)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = 120.0  # on the wall, of which it takes one at most
    solver.solve(model)
    assert solver.status_name() == "OPTIMAL"
    return round(solver.objective_value)


def least_makespan(game: TwinGame) -> int:
    """us; a call waits for its model's first load, other waits for models are left out (no schedule gets longer by that)."""
    pit, model = game.pit, cp_model.CpModel()
    n = len(pit.tasks)
    assert pit.required() == list(range(n)) and not any(task["soft"] for task in pit.tasks)
    latest = sum(whole(game.mean(i, v)) for i in range(n) for v in pit.usable(i)) + sum(map(whole, game.load_truth))
    places: list[list[list[cp_model.IntervalVar]]] = [[[] for _ in range(pool["places"])] for pool in pit.pools]
    makespan, ends = model.new_int_var(0, latest, "makespan"), list[cp_model.LinearExprT]()
    for i, task in enumerate(pit.tasks):
        start, takes, ways = model.new_int_var(0, latest, f"start {i}"), [], []
        for v in pit.usable(i):
            variant, lasts = pit.variant(i, v), whole(game.mean(i, v))
            assert variant["taken"] == {variant["pool"]: 1}
            for k, place in enumerate(places[variant["pool"]][: i + 1]):  # places are alike: task i needs no later one
                chosen = model.new_bool_var(f"task {i} variant {v} place {k}")
                place.append(model.new_optional_fixed_size_interval_var(start, lasts, chosen, f"call {i} {v} {k}"))
                if variant["model"] is not None:
                    model.add(start >= whole(game.load_truth[variant["model"]])).only_enforce_if(chosen)
                ways.append(chosen)
                takes.append(lasts * chosen)
        model.add_exactly_one(ways)
        for j in task["inputs"]:
            model.add(start >= ends[j])
        ends.append(start + sum(takes))
        model.add(makespan >= ends[i])
    for place in (place for pool in places for place in pool):
        model.add_no_overlap(place)
    return proven_minimum(model, makespan)


def least_cost(game: TwinGame) -> int:
    """Micro-units; each model that is used is loaded once."""
    pit, model = game.pit, cp_model.CpModel()
    loaded = [model.new_bool_var(f"model {m}") for m in range(len(pit.models))]
    paid = [price(game.load_truth[m], pit.models[m]["price"]) * loaded[m] for m in range(len(loaded))]
    for i in range(len(pit.tasks)):
        ways = {v: model.new_bool_var(f"task {i} variant {v}") for v in pit.usable(i)}
        model.add_exactly_one(ways.values())
        for v, chosen in ways.items():
            variant = pit.variant(i, v)
            paid.append(price(game.mean(i, v), variant["price"]) * chosen)
            if variant["model"] is not None:
                model.add_implication(chosen, loaded[variant["model"]])
    return proven_minimum(model, sum(paid))


def rounded_off(game: TwinGame) -> tuple[int, float]:
    """By how much whole numbers may lie below true means: (us, micro-units) of all calls and one load."""
    pit = game.pit
    prices = [pit.variant(i, v)["price"] for i in range(len(pit.tasks)) for v in pit.usable(i)]
    most = max(prices + [m["price"] for m in pit.models])
    return len(pit.tasks) + 1, (len(pit.tasks) + 1) * (1 + most / 10**6)


def at_random(engine: Engine, instance: int) -> np.ndarray:
    """The instance once in each environment: legal actions alone, each play others."""
    rng = np.random.default_rng(instance)
    engine.reset(split="train", instances=[instance] * engine.n)
    over = np.zeros(engine.n, bool)
    while not over.all():
        engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
        over |= engine.terminated | engine.truncated
    return engine.episodes.copy()


@pytest.mark.parametrize("number", [6, 11, 12, 14])
def test_bounds_hold_against_proven_optima(number: int) -> None:
    """Bound <= proven optimum <= what any player reaches; no play scores more than the optima or the first potential allow."""
    level = small_and_calm(number)
    engine, many = Engine(level, 1, autoreset="disabled"), Engine(level, RANDOM_PLAYS, autoreset="disabled")
    quickest, cheapest = 0, 0  # instances in which somebody reached the optimum
    for instance in range(INSTANCES):
        engine.reset(split="train", instances=[instance])
        game = TwinGame(engine)
        makespan, cost = least_makespan(game), least_cost(game)
        ideal = game.formula(game.base(game.best_quality().__getitem__), cost, makespan)["total"]
        runs = [play_on(engine, player, split="train", n=1, first=instance) for player in EVERYBODY]
        played = np.concatenate([*runs, at_random(many, instance)])
        first, (time_off, cost_off) = played[0], rounded_off(game)
        assert (played["status"] == SOLVED).all()
        assert 0 < first["lb"] * 1e6 <= makespan + time_off
        assert 0 < first["cost_low"] * 1e6 <= cost + cost_off
        best_time, best_cost = (round(played[name].min() * 1e6) for name in ("makespan", "cost"))
        assert makespan <= best_time and cost <= best_cost
        assert played["total"].max() <= ideal + 1e-9 and ideal <= first["phi0"] + 1e-9
        quickest += makespan == best_time
        cheapest += cost == best_cost
    assert cheapest > 0 and (quickest > 0 or level.system.models)  # waits for models are more than what is proven here
