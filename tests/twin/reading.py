"""A drawn instance, read as data out of an engine's memory right after its reset."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

import pit.layout as L
from fq_env.engine import Engine
from pit import state
from tests.twin.estimates import PLAIN_KEYS, Table
from tests.twin.pit_twin import TwinPit

READ_KEYS = ("money", "back_off", "back_off_most", "jitter", "salt", "ageing", "reserve", "time_out")


def bit_names(bits: int, names: Iterable[str]) -> set[str]:
    return {name for k, name in enumerate(names) if bits >> k & 1}


def read_pit(engine: Engine, i: int) -> TwinPit:
    """The Pit of environment i as it was before its workflow arrived; the environment has just been reset."""
    memory, block = engine.memory[i], engine.block
    hot = block.hot(memory)[0]
    n_functions, n_models = int(hot["n_functions"]), int(hot["n_models"])
    flows = block.rows(memory, "flow_at", state.FLOW, int(hot["flow_rows"]))
    n = int(flows["last"][-1])
    tasks = block.rows(memory, "task_at", state.TASK, n)
    links = block.rows(memory, "pred_at", state.LINK, block.edges)
    artifacts = block.rows(memory, "artifact_at", state.ARTIFACT, n)
    rows = block.rows(memory, "variant_at", state.VARIANT, L.N_VARIANTS * n_functions)
    models = block.rows(memory, "model_at", state.MODEL, n_models)

    def variant(row: np.void) -> Table | None:
        if row["pool"] < 0:
            return None
        also = {int(row["also"]): int(row["also_units"])} if row["also"] >= 0 else {}
        return {
            "pool": int(row["pool"]), "model": None if row["model"] < 0 else int(row["model"]), 
            "taken": {int(row["pool"]): int(row["units"])} | also,
            "tokens": int(row["tokens"]), "nominal": float(row["nominal"]), "quality": float(row["quality"]),
            "price": int(row["price"]),
        }  # fmt: skip

    def after_arrival(name: str) -> int:
        return 0 if hot[name] >= L.NEVER else int(hot[name] - hot["t0"])

    system = {
        "rows": int(hot["n_copies"]),
        "budgets": hot["budgets"]["capacity"][: int(hot["n_budgets"])].tolist(),
        "pools": [
            {
                "places": int(p["places"]),
                "budget": None if p["budget"] < 0 else int(p["budget"]),
                "period": int(p["period"]) or None,
                "burst": int(p["full"]) // int(p["period"]) if p["period"] else 1,
            }
            for p in hot["pools"][: int(hot["n_pools"])]
        ],
        "models": [
            {
                "size": int(m["size"]),
                "conc": int(m["serves"]),
                "load": float(m["nominal"]),
                "price": int(m["price"]),
                "keep_alive": int(m["keep_alive"]),
            }
            for m in models
        ],
        "functions": [
            {
                "code": float(rows[3 * f + L.STANDARD]["code"]),
                "fresh": int(rows[3 * f + L.STANDARD]["fresh"]),
                "variants": [variant(rows[3 * f + v]) for v in range(3)],
                "forbidden": bool(rows[3 * f + L.STANDARD]["forbidden"]),
                "denied": {v for v in range(3) if not rows[3 * f + v]["usable"]},
            }
            for f in range(n_functions)
        ],
        "verbs": bit_names(int(hot["verbs"]), L.ENABLED),
        "deadline": after_arrival("deadline"),
        "horizon": after_arrival("horizon"),
    } | {key: hot[key].item() for key in (*PLAIN_KEYS, *READ_KEYS)}
    system["store"] = None
    if hot["any_store"]:
        capacity, fetch = (block.rows(memory, "store_at", state.STORE, 1)[name][0].tolist() for name in ("capacity", "fetch"))
        system["store"] = dict(zip(("hot", "warm", "cold"), capacity, strict=True)) | {"fetch": fetch}
    workflow = []
    for t, artifact in zip(tasks, artifacts, strict=True):
        own = links[int(t["pred_from"]) : int(t["pred_to"])]
        workflow.append(
            {"function": int(t["function"]), "hint": float(artifact["hint"]), "optional": not t["required"],
             "priority": int(t["priority"]), "any": bool(t["join_any"]), "content": int(artifact["content"]),
             "inputs": own["task"].tolist(),
             "soft": set(own["task"][own["soft"] != 0].tolist())}
        )  # fmt: skip
    seen = {(f, v): rows[3 * f + v][["n", "s", "ss"]].item() for f in range(n_functions) for v in range(3)}
    loads_seen = {m: models[m][["n", "s"]].item() for m in range(n_models)}
    weights = [(float(flow["weight"]), int(flow["last"] - flow["first"])) for flow in flows]
    return TwinPit(system, workflow, L.EXPOSURES[int(hot["exposure"])], seen, loads_seen, weights, bool(hot["stream"]))
