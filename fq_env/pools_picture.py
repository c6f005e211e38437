"""The pools of a picture: places and who is in them, memory, tokens, and what each pool holds, loads or lacks."""

from __future__ import annotations

from typing import Any

from fq_env.canvas import GREY, INK, LINE, Canvas, fitted, wrapped
from fq_env.render import seconds

COPIES = {"loading": "#ffd8a8", "warm": "#fff3bf", "active": "#ffa94d", "cooldown": "#d0ebff"}  # no red: nothing is wrong
COPY_WORDS = {"warm": "warm, unused", "active": "warm, in use", "cooldown": "cools down"}
BUSY, FREE, COLD, COLD_INK = "#a5d8ff", "white", "#e7f5ff", "#1971c2"
TITLE, GAP = 22, 8  # pixels
LEAST_ROW, LARGEST_ROW = 17.0, 24.0
LISTED_PLACES = 6  # with more places than these, they are squares
SQUARE = 13
NARROW = 200
COLD_SIZE = 11
Row = tuple[str, Any]


def draw_pools(canvas: Canvas, view: dict[str, Any], area: tuple[float, ...]) -> None:
    """All pools within an area (left, top, width, height): below each other, or shorter and in two columns."""
    left, top, wide, high = area
    drawn = [(pool, rows_of(view, pool, wide)) for pool in view["pools"]]
    if _total(drawn) <= high or len(drawn) == 1:
        _column(canvas, drawn, area)
        return
    each = (wide - GAP) / 2
    short = [(pool, rows_of(view, pool, each, short=True)) for pool in view["pools"]]
    split = min(range(1, len(short)), key=lambda k: max(_total(short[:k]), _total(short[k:])))
    _column(canvas, short[:split], (left, top, each, high))
    _column(canvas, short[split:], (left + each + GAP, top, each, high))


def _total(drawn: list[tuple[dict[str, Any], list[Row]]]) -> float:
    return sum(_height(len(rows), LEAST_ROW) for _, rows in drawn)


def _column(canvas: Canvas, drawn: list[tuple[dict[str, Any], list[Row]]], area: tuple[float, ...]) -> None:
    """Pools below each other, their rows as high as there is room; what is too much is taken from all of them."""
    left, top, wide, high = area
    space = high - _height(0, 0) * len(drawn)
    row = min(LARGEST_ROW, max(LEAST_ROW, space / max(1, sum(len(rows) for _, rows in drawn))))
    y, bottom = top, top + high
    for k, (pool, rows) in enumerate(drawn):
        rest = sum(_height(len(others), row) for _, others in drawn[k + 1 :])
        room = min(_height(len(rows), row), max(bottom - y - rest, (bottom - y) / (len(drawn) - k)))
        _pool(canvas, pool, rows, row, (left, y, wide, room - GAP))
        y += room


def _height(rows: int, row: float) -> float:
    return TITLE + 4 + row * rows + GAP


def rows_of(view: dict[str, Any], pool: dict[str, Any], wide: float, short: bool = False) -> list[Row]:
    """What is shown of a pool, one row each: (kind, content); `short` sums up free places, copies and what is not loaded."""
    rows: list[Row] = []
    if pool["closed_for"] > 0:
        rows.append(("alert", f"closed for {seconds(pool['closed_for'])} (backs off)"))
    calls = [call for call in view["calls"] if call["pool"] == pool["name"]]
    calls += [{**call, "units": call["also_units"]} for call in view["calls"] if call["also"] == pool["name"]]
    if pool["places"] > LISTED_PLACES or short:
        across = int((wide - 12) // SQUARE)
        rows += [("squares", (first, across)) for first in range(0, pool["places"], across)]
    rows += [("place", call) for call in calls]
    if pool["places"] <= LISTED_PLACES and not short:
        rows += [("place", None)] * (pool["places"] - pool["busy"])
    if pool["queued"]:
        rows.append(("alert", f"queue: {pool['queued']} waiting for a place"))
    if pool["tokens"] is not None:
        rows.append(("bar", (f"tokens: {pool['tokens']:.1f} of {pool['burst']:.0f} left", pool["tokens"] / pool["burst"])))
    if pool["memory"] is not None:
        used, capacity = pool["memory"]["used"], pool["memory"]["capacity"]
        rows.append(("bar", (f"memory: {used} of {capacity} used", used / capacity)))
    alike: dict[tuple[str, str], int] = {}
    for copy in pool["copies"]:
        key = (copy["model"], copy["state"])
        alike[key] = alike.get(key, 0) + 1
        if not short or alike[key] == 1:
            rows.append(("copy", (copy, len([c for c in pool["copies"] if (c["model"], c["state"]) == key]) if short else 1)))
    if pool["cold"]:
        nothing = not any(copy["state"] != "cooldown" for copy in pool["copies"])
        label = f"{'all ' if nothing else ''}cold{'' if short else ' (not loaded)'}:"
        lines = wrapped([f"{label} {pool['cold'][0]}", *pool["cold"][1:]], wide - 40, COLD_SIZE)
        lines = [" ".join(lines)] if short else lines
        rows += [("cold", (k == 0, line)) for k, line in enumerate(lines)]
    elif not pool["copies"]:
        rows.append(("words", "needs no models"))
    return rows


def _pool(canvas: Canvas, pool: dict[str, Any], rows: list[Row], row: float, area: tuple[float, ...]) -> None:
    """One pool: its name, how many places are free, and its rows, as many as there is room for."""
    x, y, wide, high = area
    canvas.box(x, y, wide, high, "#f8f9fa", INK, 1.2)
    free = pool["places"] - pool["busy"]
    words = f"Pool {pool['name']}: {free} of {pool['places']} places free"
    if wide < NARROW:
        words = f"{pool['name']}: {free} of {pool['places']} free"
    text, size = fitted(words, wide - 14, 13, 9, bold=True)
    canvas.text(x + 7, y + 12, text, size, bold=True)
    fit = int((high - TITLE) // row)
    if len(rows) > fit:
        hidden = len(rows) - max(0, fit - 1)
        rows = [*rows[: max(0, fit - 1)], ("words", f"and {hidden} more")][: max(fit, 0)]
    for k, (kind, what) in enumerate(rows):
        _row(canvas, pool, kind, what, (x + 6, y + TITLE + k * row, wide - 12, row - 3))


def _row(canvas: Canvas, pool: dict[str, Any], kind: str, what: Any, area: tuple[float, ...]) -> None:
    """One row of a pool."""
    x, y, wide, high = area
    if kind == "place":
        _place(canvas, what, area)
    elif kind == "copy":
        _copy(canvas, what, area)
    elif kind == "cold":
        _cold(canvas, what, area)
    elif kind == "squares":
        first, across = what
        for k in range(first, min(first + across, pool["places"])):
            canvas.box(x + (k - first) * SQUARE, y + (high - 11) / 2, 11, 11, BUSY if k < pool["busy"] else FREE, LINE)
    else:
        if kind == "bar":
            what, share = what
            canvas.bar(x, y, wide, high, share, "#d0bfff", FREE)
        elif kind == "alert":
            canvas.box(x, y, wide, high, "#ffe066", LINE)
        _text(canvas, what, x + 6, area, GREY if kind == "words" else INK)


def _text(canvas: Canvas, text: str, left: float, area: tuple[float, ...], colour: str = INK) -> None:
    """The words of a row, from `left` on, as large as the row allows."""
    x, y, wide, high = area
    text, size = fitted(text, x + wide - left - 4, min(12, int(high * 0.72)), 8)
    canvas.text(left, y + high / 2, text, size, colour)


def _place(canvas: Canvas, call: dict[str, Any] | None, area: tuple[float, ...]) -> None:
    """A place of a pool: free, or the call that is in it."""
    x, y, wide, high = area
    if call is None:
        canvas.box(x, y, wide, high, FREE, LINE, dashed=True)
        _text(canvas, "free place", x + 6, area, GREY)
        return
    places = "" if call["units"] == 1 else f", {call['units']} places"
    name = f"#{call['task']} {call['function']}{places}"
    if call["start"] is None:
        canvas.box(x, y, wide, high, COPIES["loading"], LINE)
        canvas.mark("hourglass", x + 11, y + high / 2, 9)
        name = f"#{call['task']} waits for {call['model']}" if wide < NARROW else f"{name}: waits for model {call['model']}"
    else:
        canvas.bar(x, y, wide, high, call["progress"], BUSY, FREE)
        canvas.mark(call["variant"][0].upper(), x + 11, y + high / 2, 9, "#1864ab")
        name = f"{name}: {'over time' if call['progress'] >= 1 else format(call['progress'], '.0%')}"
    _text(canvas, name, x + 21, area)


def _copy(canvas: Canvas, what: tuple[dict[str, Any], int], area: tuple[float, ...]) -> None:
    """A copy of a model (or several alike): what it is, its state, and, while it loads, how far that is."""
    copy, count = what
    x, y, wide, high = area
    if copy["progress"] is None:
        canvas.box(x, y, wide, high, COPIES[copy["state"]], LINE)
        words = COPY_WORDS[copy["state"]]
        if copy["state"] == "active" and copy["serves"] > 1 and count == 1:
            words += f" by {copy['users']}"
    else:
        canvas.bar(x, y, wide, high, copy["progress"], COPIES["loading"], FREE)
        words = f"loading, {copy['progress']:.0%}" + (f", {seconds(copy['left'])} left" if wide > NARROW else "")
    prefix = "" if wide < NARROW else "model "
    _text(canvas, f"{prefix}{copy['model']}: {words}{f' ×{count}' if count > 1 else ''}", x + 6, area)


def _cold(canvas: Canvas, what: tuple[bool, str], area: tuple[float, ...]) -> None:
    """One line of the models that are not loaded."""
    first, words = what
    x, y, wide, high = area
    canvas.box(x, y - (0 if first else 3), wide, high + (0 if first else 3), COLD)
    if first:
        canvas.mark("cross", x + 10, y + high / 2, 7, COLD_INK)
    text, size = fitted(words, wide - 24, COLD_SIZE, 8)
    canvas.text(x + 20, y + high / 2, text, size, COLD_INK)
