"""One environment as a picture, from `Engine.pit_view`: the workflow's graph, the pools with what they hold, clock and score.

It reads the view and nothing else. What a colour says, a mark says too, and a legend explains both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fq_env.canvas import GREY, INK, LINE, Canvas, fitted, width
from fq_env.graph import columns, layers
from fq_env.pools_picture import draw_pools
from fq_env.render import PARTS, seconds

WIDTH, HEIGHT = 960, 540
MARGIN, TOP, BOTTOM, GRAPH_RIGHT = 14, 96, 490, 612  # pixels
MOST_NODES, LEAST_ROW, LEAST_COLUMN = 64, 19, 50  # beyond them a graph becomes counted groups
MOST_BANDS, BAND_GAP, SIDE = 4, 12, 12
MOST_BINS = 10  # columns of counted groups
MOST_FLOWS = 12  # workflows of a stream
NODE = (92, 36)  # the largest node
BLUE, DARK_BLUE, RED = "#a5d8ff", "#1864ab", "#e03131"
STATES = {  # state: (what the legend says, colour, mark)
    "done": ("done", "#b2f2bb", "check"),
    "running": ("running (share done)", BLUE, "L"),
    "loading": ("waiting for a model", "#ffd8a8", "hourglass"),
    "ready": ("ready (can be started)", "#ffe066", "play"),
    "held": ("held back", "#ffe066", "pause"),
    "queued": ("queued (for a place)", "#ffe066", "queue"),
    "blocked": ("blocked (needs inputs)", "#e9ecef", "lock"),
    "given_up": ("given up", "#adb5bd", None),
}
MARK_INKS = {"check": "#2b8a3e", "play": "#e67700", "lock": LINE}
STATUS_COLOURS = {"running": DARK_BLUE, "solved": "#2b8a3e", "failed": RED, "expired": RED}


def render_picture(view: dict[str, Any]) -> np.ndarray:
    """The state of one environment as a picture, uint8 (540, 960, 3)."""
    return draw(view).pixels()


def draw(view: dict[str, Any]) -> Canvas:
    """The state of one environment on a canvas."""
    canvas = Canvas(WIDTH, HEIGHT)
    _clock(canvas, view)
    _score(canvas, view)
    canvas.box(MARGIN, 62, WIDTH - 2 * MARGIN, 26, "#f1f3f5")
    text, size = fitted(last_words(view), WIDTH - 2 * MARGIN - 20, 13, 9, bold=True)
    canvas.text(MARGIN + 10, 75, text, size, bold=True)
    calls = {call["task"]: call for call in reversed(view["calls"])}  # of two calls of a task, the older one
    text, size = fitted(counts_line(view, calls), GRAPH_RIGHT - MARGIN, 12, 9, bold=True)
    canvas.text(MARGIN, TOP + 8, text, size, bold=True)
    if view["order_hidden"]:
        _tiles(canvas, view, calls)
    elif view["stream"] is not None:
        _stream(canvas, view, calls)
    else:
        _graph(canvas, view, calls)
    draw_pools(canvas, view, (GRAPH_RIGHT + 16, TOP, WIDTH - GRAPH_RIGHT - 16 - MARGIN, BOTTOM - TOP))
    _legend(canvas)
    return canvas


# --------------------------------------------------------------------------- header
def _clock(canvas: Canvas, view: dict[str, Any]) -> None:
    """The clock, how far it is towards the deadline or the horizon, the status, warnings and money."""
    canvas.text(MARGIN, 16, f"Clock {seconds(view['now'])}", 17, bold=True)
    ends = [("deadline", view["deadline"]), ("time limit", view["horizon"])]
    name, end = next(((n, t) for n, t in ends if t is not None), ("", None))
    if end is not None:
        share = view["now"] / end if end > 0 else 0.0
        canvas.bar(MARGIN, 33, 300, 9, share, "#4dabf7" if share < 0.8 else RED)
        canvas.text(MARGIN, 51, f"{share:.0%} of the {name}, {seconds(end)}", 10, GREY)
    x = MARGIN + 330
    canvas.box(x, 6, 112, 20, STATUS_COLOURS[view["status"]])
    canvas.text(x + 56, 16, view["status"].upper(), 11, "white", bold=True, anchor="mm")
    spent = f"spent {view['spent']:.1f}" + ("" if view["money"] is None else f" of {view['money']:.1f}")
    canvas.text(x, 37, f"{_number(view['warnings'], 'warning')}, {spent}", 11)
    text, size = fitted(view["level"], 230, 11, 9)
    canvas.text(x, 52, text, size, GREY)


def _score(canvas: Canvas, view: dict[str, Any]) -> None:
    """The final score with its parts, or the best that is still reachable beside the best at the start."""
    x, wide, episode = 590, WIDTH - 590 - MARGIN, view["episode"]
    value = view["reachable"] if episode is None else episode["total"]
    words = f"Score can still reach {value:.3f}" if episode is None else f"Final score {value:.3f}"
    canvas.text(x, 16, words, 17, bold=True)
    canvas.bar(x, 33, wide, 9, value, "#51cf66")
    start = x + wide * view["phi0"]
    canvas.line([(start, 30), (start, 45)], INK, 2)
    if episode is None:
        canvas.text(min(start, x + wide), 52, f"at the start {view['phi0']:.3f}", 10, GREY, anchor="rm")
    else:
        parts = ", ".join(f"{name} {episode[name]:.2f}" for name in PARTS)
        canvas.text(x, 52, parts, 10, GREY)


def last_words(view: dict[str, Any]) -> str:
    """The last action and what it led to, in words."""
    last = view["last"]
    if last is None:
        return "Last action: none yet"
    hidden = view["order_hidden"]  # then tasks are cards with names alone
    names = {task["index"]: task["function"] if hidden else f"#{task['index']} {task['function']}" for task in view["tasks"]}
    ended = [f"{names[e['task']]} {'is done' if e['ok'] else 'failed'}" for e in view["news"]]
    verb = last["verb"].replace("_", " ")
    if view["outcome"] == "blocked":
        words = "not allowed, something else was done"
    elif last["verb"] == "wait":
        words = "waited"
    elif last["verb"] in ("lite", "standard", "premium"):
        words = f"started {names.get(last['task'], 'a task')} ({verb})"
        words += {"cold_start": ", its model loads first", "warm_start": ", at once"}.get(view["outcome"], "")
        words = f"start of a task ({verb}) was denied" if view["outcome"] == "denied" else words
    else:
        words = verb if last["task"] is None else f"{verb}: {names[last['task']]}"
    return f"Last action: {words}" + (f"; now {', '.join(ended)}" if ended else "")


def counts_line(view: dict[str, Any], calls: dict[int, dict[str, Any]]) -> str:
    """How many tasks are in each state."""
    kinds = [kind_of(task, calls) for task in view["tasks"]]
    counts = [f"{kinds.count(kind)} {words.partition(' (')[0]}" for kind, (words, _, _) in STATES.items() if kind in kinds]
    return f"{_number(len(kinds), 'task')}: {', '.join(counts)}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def kind_of(task: dict[str, Any], calls: dict[int, dict[str, Any]]) -> str:
    """The state of a task as the picture tells it: `STATES`."""
    if task["state"] == "running" and task["index"] in calls and calls[task["index"]]["start"] is None:
        return "loading"
    if task["state"] == "ready":
        return "held" if task["held"] else "queued" if task["queued"] else "ready"
    return str(task["state"])


# --------------------------------------------------------------------------- tasks
def _graph(canvas: Canvas, view: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
    """The workflow by layers from left to right, in bands like lines of text; where it is too large, counted groups."""
    tasks = view["tasks"]
    placed = columns([task["after"] + task["soft"] for task in tasks])
    area = (MARGIN, TOP + 20, GRAPH_RIGHT - MARGIN, BOTTOM - TOP - 24)
    grid = None if len(tasks) > MOST_NODES else in_bands([len(column) for column in placed], area[2], area[3])
    if grid is None:
        _groups(canvas, view, calls, area)
        return
    across, tops, row = grid
    inset = SIDE if len(tops) > 1 else 0.0  # beside the bands, for edges from one to the next
    left, wide = area[0] + inset, area[2] - 2 * inset
    size = (min(NODE[0], wide / across - max(9, wide / across * 0.13)), min(NODE[1], row - 5))
    centre = {}
    for c, column in enumerate(placed):
        band, place = divmod(c, across)
        high = (tops[band + 1] if band + 1 < len(tops) else area[3]) - tops[band] - (BAND_GAP if inset else 0)
        for r, k in enumerate(column):
            x = left + size[0] / 2 + (wide - size[0]) * place / max(1, across - 1)
            centre[k] = (x, area[1] + tops[band] + high * (r + 0.5) / len(column))
    band_of = {k: c // across for c, column in enumerate(placed) for k in column}
    edges = [(j, k, j in task["soft"]) for k, task in enumerate(tasks) for j in task["after"] + task["soft"]]
    for j, k, soft in sorted(edges, key=lambda e: tasks[e[0]]["critical"] and tasks[e[1]]["critical"]):
        critical = tasks[j]["critical"] and tasks[k]["critical"]
        colour = INK if critical else "#ced4da" if soft or tasks[j]["state"] == "done" else "#adb5bd"
        start, end = (centre[j][0] + size[0] / 2, centre[j][1]), (centre[k][0] - size[0] / 2, centre[k][1])
        if band_of[j] == band_of[k]:
            canvas.arrow(*start, *end, colour, 2.4 if critical else 1.0)
        else:
            between = area[1] + tops[band_of[k]] - BAND_GAP / 2
            _around(canvas, start, end, (area[0] + area[2] - 3, between, area[0] + 3), colour, 2.4 if critical else 1.0)
    for k, task in enumerate(tasks):
        x, y = centre[k]
        _node(canvas, task, calls, (x - size[0] / 2, y - size[1] / 2, *size))


def in_bands(rows: list[int], wide: float, high: float) -> tuple[int, list[float], float] | None:
    """How columns of so many rows are laid in bands: columns per band, where each band begins, pixels per row.

    None if nodes would be too small to read even so.
    """
    for bands in range(1, MOST_BANDS + 1):
        across = -(-len(rows) // bands)
        most = [max(rows[k : k + across]) for k in range(0, len(rows), across)]
        row = (high - BAND_GAP * (len(most) - 1)) / sum(most)
        if wide / across >= LEAST_COLUMN and row >= LEAST_ROW:
            return across, [sum(most[:b]) * row + BAND_GAP * b for b in range(len(most))], row
    return None


def _around(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], way: tuple[float, ...], colour: str, thick: float
) -> None:
    """An edge from one band to a later one: to the right side, back to the left side between the bands, and in."""
    right, between, left = way
    canvas.line(
        [start, (right, start[1]), (right, between), (left, between), (left, end[1]), (end[0] - 4, end[1])], colour, thick
    )
    canvas.arrow(end[0] - 8, end[1], *end, colour, thick)


def _node(canvas: Canvas, task: dict[str, Any], calls: dict[int, dict[str, Any]], area: tuple[float, ...]) -> None:
    """A task: number, function, state by colour and mark, progress, failed attempts; dashed if optional."""
    x, y, wide, high = area
    kind = kind_of(task, calls)
    _, fill, mark = STATES[kind]
    edge, thick = (INK, 2.4) if task["critical"] else (LINE, 1.0)
    canvas.box(x, y, wide, high, fill, None if not task["required"] else edge, thick)
    call = calls.get(task["index"])
    if call is not None and kind == "running":
        canvas.box(x + 1, y + high - 6, wide - 2, 5, "white")
        canvas.box(x + 1, y + high - 6, max(3.0, (wide - 2) * call["progress"]), 5, DARK_BLUE)
        mark = call["variant"][0].upper()
        high -= 5
    if not task["required"]:
        canvas.box(x, y, wide, area[3], None, INK, 1.4, dashed=True)
    if kind == "given_up":
        canvas.line([(x, y), (x + wide, y + high)], GREY, 1.2)
        canvas.line([(x, y + high), (x + wide, y)], GREY, 1.2)
    two_lines = high >= 20
    number_y = y + (high * 0.29 if two_lines else high / 2)
    if mark is not None:
        letter = len(mark) == 1
        canvas.mark(mark, x + wide - 9, number_y, 8 if letter else 9, DARK_BLUE if letter else MARK_INKS.get(mark, INK))
    if two_lines:
        canvas.text(x + 4, number_y, f"#{task['index']}", 9, GREY)
        text, size = fitted(task["function"], wide - 4, min(12, int(high * 0.4)), 8)
        canvas.text(x + wide / 2, y + high * 0.74, text, size, anchor="mm")
    else:
        text, size = fitted(f"#{task['index']} {task['function']}", wide - 20, 10, 8)
        canvas.text(x + 4, number_y, text, size)
    if task["attempts"]:  # on the upper edge, where nothing else is written
        middle = x + wide - 26
        canvas.box(middle - 9, y - 6, 19, 11, "white", RED)
        canvas.text(middle + 0.5, y - 0.5, f"{task['attempts']}✗", 9, RED, bold=True, anchor="mm")


def _groups(canvas: Canvas, view: dict[str, Any], calls: dict[int, dict[str, Any]], area: tuple[float, ...]) -> None:
    """A large workflow: neighbouring layers in one column, a counted box for each state in it."""
    left, top, wide, high = area
    tasks = view["tasks"]
    depth = layers([task["after"] + task["soft"] for task in tasks])
    count = min(MOST_BINS, max(depth) + 1)
    bins: list[list[str]] = [[] for _ in range(count)]
    for task, layer in zip(tasks, depth, strict=True):
        bins[layer * count // (max(depth) + 1)].append(kind_of(task, calls))
    step = wide / count
    for c, kinds in enumerate(bins):
        share = len(kinds) / max(map(len, bins))
        room = max((high - 22) * share, 26.0 * len(set(kinds)))
        x, y = left + c * step, top + 16 + (high - 22 - room) / 2
        first, last = (-(-b * (max(depth) + 1) // count) for b in (c, c + 1))
        name = f"{first + 1}" if last - first < 2 else f"{first + 1}–{last}"
        canvas.text(x + (step - 14) / 2, top + 4, f"layer {name}" if c == 0 else name, 9, GREY, anchor="mm")
        for kind in (k for k in STATES if k in kinds):
            tall = (room - 24 * len(set(kinds))) * kinds.count(kind) / len(kinds) + 22
            canvas.box(x, y, step - 14, tall, STATES[kind][1], LINE)
            mark = STATES[kind][2]
            if mark is not None:
                canvas.mark("play" if kind == "running" else mark, x + 10, y + tall / 2, 9, MARK_INKS.get(mark, INK))
            canvas.text(x + step - 19, y + tall / 2, f"×{kinds.count(kind)}", 11, bold=True, anchor="rm")
            y += tall + 2
        if c + 1 < count:
            canvas.arrow(x + step - 13, top + high / 2, x + step - 1, top + high / 2, LINE, 1.2)


def _stream(canvas: Canvas, view: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
    """A bar for each workflow of a stream, the newest that fit: its tasks by state, its weight, how long it has taken."""
    flows = list(enumerate(view["workflows"]))
    most = max(len(flow["tasks"]) for _, flow in flows)
    shown = flows[-MOST_FLOWS:]
    coming = "more may come" if view["stream"] else "no more will come"
    hidden = f"; the first {len(flows) - len(shown)} are not shown" if len(shown) < len(flows) else ""
    canvas.text(MARGIN, TOP + 28, f"{_number(len(flows), 'workflow')} so far, {coming}{hidden}", 10, GREY)
    row = min(46.0, (BOTTOM - TOP - 44) / len(shown))
    for r, (g, flow) in enumerate(shown):
        y = TOP + 42 + r * row
        end = view["now"] if flow["ended"] is None else flow["ended"]
        words = (
            f"{seconds(end - flow['arrived'])} old" if flow["ended"] is None else f"done in {seconds(end - flow['arrived'])}"
        )
        words = "deferred" if flow["deferred"] else words
        canvas.text(MARGIN, y + row * 0.26, f"workflow {g}", 11, bold=True)
        canvas.text(MARGIN, y + row * 0.68, f"weight {flow['weight']:g}, {words}", 9, GREY)
        x, wide, high = MARGIN + 150.0, GRAPH_RIGHT - MARGIN - 160, row * 0.76
        kinds = [kind_of(view["tasks"][k], calls) for k in flow["tasks"]]
        for kind in (k for k in STATES if k in kinds):
            part = wide * kinds.count(kind) / most
            canvas.box(x, y, part, high, STATES[kind][1], LINE)
            mark = STATES[kind][2]
            if mark is not None and part >= 34:
                canvas.mark("play" if kind == "running" else mark, x + 9, y + high / 2, 8, MARK_INKS.get(mark, INK))
            canvas.text(x + part - 3, y + high / 2, str(kinds.count(kind)), 10, bold=True, anchor="rm")
            x += part


def _tiles(canvas: Canvas, view: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
    """Hidden order: a tile for each function of the workflow, and what is held already."""
    tasks = view["tasks"]
    across = 4 if len(tasks) > 6 else 3
    down = max(3, -(-len(tasks) // across))
    wide, high = (GRAPH_RIGHT - MARGIN) / across, (BOTTOM - TOP - 74) / down
    for k, task in enumerate(tasks):
        area = (MARGIN + k % across * wide, TOP + 24 + k // across * high, wide - 10, min(high - 10, 84))
        _tile(canvas, task, calls, view["held"], area)
    canvas.box(MARGIN, BOTTOM - 44, GRAPH_RIGHT - MARGIN - 10, 36, "#ebfbee", "#2b8a3e")
    text, size = fitted(f"Held: {', '.join(view['held']) or 'nothing yet'}", GRAPH_RIGHT - MARGIN - 34, 13, 9, bold=True)
    canvas.text(MARGIN + 10, BOTTOM - 26, text, size, bold=True)


def _tile(
    canvas: Canvas, task: dict[str, Any], calls: dict[int, dict[str, Any]], held: list[str], area: tuple[float, ...]
) -> None:
    """A function of a level of hidden order: a node with room for words."""
    x, y, wide, high = area
    kind = kind_of(task, calls)
    words, fill, mark = STATES[kind]
    words = "done, but undone since" if kind == "done" and task["function"] not in held else words.partition(" (")[0]
    canvas.box(x, y, wide, high, fill, LINE if task["required"] else None)
    if not task["required"]:
        canvas.box(x, y, wide, high, None, INK, 1.4, dashed=True)
    text, size = fitted(task["function"], wide - 16, 14, 9, bold=True)
    canvas.text(x + 8, y + high * 0.27, text, size, bold=True)
    call = calls.get(task["index"])
    words = f"running, {call['progress']:.0%}" if call is not None and kind == "running" else words
    if mark is not None:
        letter = len(mark) == 1 and call is not None
        canvas.mark(str(call["variant"][0].upper()) if letter and call is not None else mark, x + 15, y + high * 0.58, 11,
                    DARK_BLUE if letter else MARK_INKS.get(mark, INK))  # fmt: skip
    text, size = fitted(words, wide - 32, 11, 8)
    canvas.text(x + 28, y + high * 0.58, text, size)
    if task["attempts"]:
        canvas.text(x + 8, y + high * 0.84, f"{task['attempts']}✗ failed", 11, RED, bold=True)
    if call is not None and kind == "running":
        canvas.bar(x + 4, y + high - 9, wide - 8, 6, call["progress"], DARK_BLUE, "white")
    if kind == "given_up":
        canvas.line([(x, y), (x + wide, y + high)], GREY, 1.2)
        canvas.line([(x, y + high), (x + wide, y)], GREY, 1.2)


# --------------------------------------------------------------------------- legend
def _legend(canvas: Canvas) -> None:
    """What colours and marks mean, in two lines."""
    canvas.line([(MARGIN, BOTTOM + 6), (WIDTH - MARGIN, BOTTOM + 6)], "#ced4da")
    entries: list[tuple[str, Callable[[float, float], None]]] = []
    for kind, (words, _, _) in STATES.items():
        entries.append((words, lambda x, y, kind=kind: _swatch(canvas, x, y, kind)))  # type: ignore[misc]
    entries += [
        ("failed attempts", lambda x, y: canvas.text(x + 2, y, "2✗", 11, RED, bold=True)),
        ("optional", lambda x, y: canvas.box(x, y - 7, 22, 14, "white", INK, 1.4, dashed=True)),
        ("critical path", lambda x, y: canvas.line([(x, y), (x + 22, y)], INK, 2.6)),
        ("L lite, S standard, P premium", lambda x, y: canvas.mark("S", x + 11, y, 9, DARK_BLUE)),
    ]
    down = 2
    groups = [entries[k : k + down] for k in range(0, len(entries), down)]
    wides = [28 + max(width(words, 10) for words, _ in group) for group in groups]
    gap = (WIDTH - 2 * MARGIN - sum(wides)) / (len(groups) - 1)
    for c, group in enumerate(groups):
        for k, (words, draw) in enumerate(group):
            x, y = MARGIN + sum(wides[:c]) + gap * c, BOTTOM + 19 + 20 * k
            draw(x, y)
            canvas.text(x + 28, y, words, 10)


def _swatch(canvas: Canvas, x: float, y: float, kind: str) -> None:
    """A small node of the legend."""
    _, fill, mark = STATES[kind]
    canvas.box(x, y - 7, 22, 14, fill, LINE)
    if mark is None:
        canvas.line([(x, y - 7), (x + 22, y + 7)], INK, 1.5)
        canvas.line([(x, y + 7), (x + 22, y - 7)], INK, 1.5)
    else:
        canvas.mark(mark, x + 11, y, 8, DARK_BLUE if len(mark) == 1 else MARK_INKS.get(mark, INK))
