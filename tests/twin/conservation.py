"""What holds after every operation, whatever the kernel says: nothing is lost or made on the way."""

from __future__ import annotations

from typing import Any

import pit.layout as L


def conserve(twin: Any) -> None:
    """Places, memory, users, money, tokens, queues, calls and artifacts add up; nothing exceeds its capacity.

    `twin` is a `TwinPit`, asked after each operation.
    """
    conserve_copies(twin)
    for p, pool in enumerate(twin.pools):
        assert pool["busy"] == sum(call["taken"].get(p, 0) for call in twin.calls.values()) <= pool["places"]
        assert 0 <= pool["tenants"] <= pool["places"]
        assert twin.free_places(p) == max(0, pool["places"] - pool["busy"] - pool["tenants"])
        if pool["period"]:
            assert 0 <= pool["stored"] <= twin.credit(p) <= pool["burst"] * pool["period"]
    conserve_money(twin)
    ended = [k for ids in twin.ended.values() for k in ids]
    assert sorted([*ended, *twin.calls]) == list(range(twin.next_call))  # one outcome of each call, or it is in flight
    conserve_tasks(twin)
    conserve_outputs(twin)
    conserve_flows(twin)
    if twin.system["store"] and twin.status == L.ON:
        conserve_tiers(twin)
    # Without money nothing may be left to do; and while a queued gang claims the pools, nothing until that ends.
    claimed = twin.system["reserve"] and twin.timers() and any(task["queued"] is not None for task in twin.tasks)
    assert any(twin.mask()) or twin.system["money"] or claimed
    row = twin.observe()
    assert all(f.low <= x <= f.high for (_, f), x in zip(L.columns(), row, strict=True))


def conserve_copies(twin: Any) -> None:
    used, users = [0] * len(twin.capacity), [0] * len(twin.copies)
    for call in twin.calls.values():
        if call["copy"] is not None:
            users[call["copy"]] += 1
    for c, copy in enumerate(twin.copies):
        if copy["state"] in (L.LOADING, L.WARM, L.ACTIVE):
            if (budget := twin.pools[copy["pool"]]["budget"]) is not None:
                used[budget] += twin.models[copy["model"]]["size"]
        assert copy["users"] == users[c] <= twin.models[copy["model"]]["conc"]
        assert copy["state"] == L.LOADING or (copy["state"] == L.ACTIVE) == (users[c] > 0)
        assert copy["state"] == L.LOADING or copy["committed"] == 0
    assert used == twin.used and all(x <= limit for x, limit in zip(used, twin.capacity, strict=True))


def conserve_money(twin: Any) -> None:
    """What was spent and promised is what was paid, and each promise kept the limit when it was made."""
    loads = [copy["committed"] for copy in twin.copies if copy["state"] == L.LOADING]
    assert twin.committed() == sum(call["committed"] for call in twin.calls.values()) + sum(loads)
    assert twin.spent == sum(twin.paid)


def conserve_tasks(twin: Any) -> None:
    """A task that runs has one call in flight, or two; a done one has an artifact; open tasks wait for what is not over."""
    for i, task in enumerate(twin.tasks):
        assert (task["state"] == L.RUNNING) == (len(twin.calls_of(i)) in (1, 2))
        assert len(twin.calls_of(i)) <= 2
        assert task["version"] >= 1 or task["state"] != L.DONE
        assert task["version"] <= 1 or (i, -1) in twin.deeds
        assert task["state"] == L.READY or (task["hold"] is None and task["queued"] is None)
        assert task["hold"] is None or task["queued"] is None
        if twin.arrived and twin.status == L.ON and task["state"] in (L.BLOCKED, L.READY):
            assert (task["state"] == L.BLOCKED) == bool(twin.open_inputs(i))


def conserve_flows(twin: Any) -> None:
    """What a workflow has left is the work of its tasks that are not over; one that has ended has no open task."""
    assert len(twin.tasks) == sum(len(flow["tasks"]) for flow in twin.flows if flow["arrived"] is not None)
    for g, flow in enumerate(twin.flows):
        if flow["arrived"] is None:
            assert flow["ended"] is None and not flow["deferred"]
            continue
        tasks = [twin.tasks[i] for i in flow["tasks"]]
        left = sum(task["work"] for task in tasks if task["state"] not in (L.DONE, L.GIVEN_UP))
        assert abs(flow["remaining"] - left) <= 1e-9 * twin.work_total
        over = all(task["state"] == L.DONE for task in tasks if not task["optional"])
        assert over == (flow["ended"] is not None) and not (over and flow["deferred"])
        if over and twin.stream:
            assert not any(task["state"] in (L.READY, L.BLOCKED) for task in tasks), g
    if twin.arrived:
        assert abs(twin.work_left - sum(flow["remaining"] for flow in twin.flows)) <= 1e-9 * twin.work_total
        assert (twin.status == L.SOLVED) == (not twin.open and twin.none_left())


def conserve_tiers(twin: Any) -> None:
    """Hot and warm are not fuller than they may be; the driver knows where all lies; what is needed is there."""
    for tier, name in ((L.TIER_HOT, "hot"), (L.TIER_WARM, "warm")):
        assert twin.used_of(tier) <= twin.system["store"][name] or (tier and not twin.system["store"][name])
    for i, task in enumerate(twin.tasks):
        if task["state"] == L.DONE:
            assert task["tier"] == task["known"]
        elif task["state"] != L.GIVEN_UP:
            assert not twin.gone_inputs(i)


def conserve_outputs(twin: Any) -> None:
    """Each task is done by one call or by one fetch at a time; who fetches has what a task of the same content once had."""
    done = [i for i, sign in twin.deeds if sign > 0]
    again = [i for i, sign in twin.deeds if sign < 0]
    assert len(done) == len(twin.ended["finished"]) + twin.reused
    assert twin.reused == twin.reached["reuse"]
    causes = ("partial re-execution", "refresh", "run again: it was gone")
    assert len(again) == sum(twin.reached[cause] for cause in causes)
    for i, task in enumerate(twin.tasks):
        assert task["version"] == done.count(i)
        assert (task["state"] == L.DONE) == (task["doer"] is not None) == (done.count(i) == again.count(i) + 1)
        assert task["doer"] in ("call", "fetch", None) and again.count(i) <= done.count(i) <= again.count(i) + 1
        if task["doer"] == "fetch":
            assert task["content"] == twin.tasks[task["source"]]["content"] > 0
            assert task["function"] == twin.tasks[task["source"]]["function"] and not twin.calls_of(i)


def conserve_fetches(twin: Any, commands: list[tuple[int, ...]]) -> None:
    """Each `fetch` that was just given names a task that is done and of the same content, and nothing but that."""
    for kind, call, i, function, variant, pool, source, model in commands:
        if kind != L.CMD_FETCH:
            continue
        task, twin_task = twin.tasks[i], twin.tasks[source]
        assert i != source and task["content"] == twin_task["content"] > 0
        assert task["state"] == twin_task["state"] == L.DONE and function == twin_task["function"]
        assert [call, variant, pool, model] == [-1] * 4
        assert [task[key] for key in ("quality", "size", "created")] == [
            twin_task[key] for key in ("quality", "size", "created")
        ]
