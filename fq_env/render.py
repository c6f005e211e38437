"""One environment as text, from `Engine.pit_view`: clock, score so far, pools, calls in flight, what can be started.

It reads the view and nothing else; times are seconds.
"""

from __future__ import annotations

from typing import Any

PARTS = ("base", "efficiency", "stability", "optimization")
SHOWN_TASKS = 24  # rows of the task table; large workflows are summed up by state


def seconds(value: float) -> str:
    """A time as people read it: `0.42 s`, `17.3 s`, `412 s`."""
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def render_text(view: dict[str, Any]) -> str:
    """The state of one environment as a block of text without a final newline."""
    lines = [clock_line(view), score_line(view), *flow_lines(view), *(pool_line(pool) for pool in view["pools"])]
    for call in view["calls"]:
        ends = "waits for its model, done" if call["start"] is None else "done"
        left = max(0.0, call["expected_end"] - view["now"])
        lines.append(f"call    {call['function']} ({call['variant']}): {ends} in about {seconds(left)}")
    lines += [f"slot {slot['slot']:<2} {slot_words(slot)}{' held' if slot['held'] else ''}" for slot in view["slots"]]
    return "\n".join(lines + task_lines(view["tasks"]))


def clock_line(view: dict[str, Any]) -> str:
    """Clock, when the episode expires, status, last outcome."""
    limit = "" if view["horizon"] is None else f" of {seconds(view['horizon'])}"
    return f"clock   {seconds(view['now'])}{limit} | {view['status']} | last outcome: {view['outcome'].replace('_', ' ')}"


def score_line(view: dict[str, Any]) -> str:
    """The best score still reachable, or, at the end, the score and its parts."""
    spent = f"warnings {view['warnings']} | spent {view['spent']:.1f}"
    if view["episode"] is None:
        return f"score   at best {view['reachable']:.3f} (at the start {view['phi0']:.3f}) | {spent}"
    parts = ", ".join(f"{name} {view['episode'][name]:.3f}" for name in PARTS)
    return f"score   {view['episode']['total']:.3f} ({parts}) | {spent}"


def flow_lines(view: dict[str, Any]) -> list[str]:
    """A stream's workflows that are not done, and how many are."""
    if view["stream"] is None:
        return []
    lines, done = [], 0
    for g, flow in enumerate(view["workflows"]):
        done += flow["ended"] is not None
        if flow["ended"] is None:
            left = sum(view["tasks"][k]["state"] not in ("done", "given_up") for k in flow["tasks"])
            words = f"{left} of {len(flow['tasks'])} tasks left, {seconds(view['now'] - flow['arrived'])} old"
            lines.append(f"flow {g:<2} weight {flow['weight']:g}: {words}{', deferred' if flow['deferred'] else ''}")
    coming = "more may come" if view["stream"] else "no more will come"
    return [f"stream  {len(view['workflows'])} workflows so far, {done} done, {coming}", *lines]


def pool_line(pool: dict[str, Any]) -> str:
    """One pool: places, and the copies that it holds."""
    copies = ", ".join(f"{c['model']} {c['state']}" for c in pool["copies"])
    return f"pool    {pool['name']}: {pool['busy']} of {pool['places']} places busy | {copies or 'nothing loaded'}"


def slot_words(slot: dict[str, Any]) -> str:
    """What a slot stands for: its function, how many members, how long one takes."""
    members = "" if slot["members"] == 1 else f" x{slot['members']}"
    optional = ", optional" if slot["optional"] else ""
    return f"{slot['function']}{members} (about {seconds(slot['duration'])}{optional})"


def task_lines(tasks: list[dict[str, Any]]) -> list[str]:
    """The task table, or counts by state where it would be long."""
    if len(tasks) > SHOWN_TASKS:
        states = [task["state"] for task in tasks]
        counts = ", ".join(f"{states.count(state)} {state.replace('_', ' ')}" for state in dict.fromkeys(states))
        return [f"tasks   {counts}"]
    return [
        f"task    {t['index']} {t['function']}: {t['state'].replace('_', ' ')}"
        + (f", {t['attempts']} failed" if t["attempts"] else "")
        for t in tasks
    ]
