"""Workflows of an instance: a family or a blueprint that is drawn, or the level's given graph, written into a Pit.

An edge leads from a smaller to a larger index. The order of draws is part of the level's version.
"""

from __future__ import annotations

import math

import numpy as np

from fq_env.randomness import bits, integer, pick, to_noise, uniform
from fq_env.sizes import MAX_BLUEPRINTS
from fq_env.state import EDGE, GIVEN, GOAL, edge, edge_at, given_at, goal, integer_at, truth
from pit.compiled import kernel
from pit.layout import STANDARD
from pit.memory import address_of
from pit.state import ARTIFACT, LINK, TASK, artifact, flow, predecessor, successor, task

LAYERED, PIPELINES, FORK_JOIN, CHAIN, MAP_REDUCE, OUT_TREE, IN_TREE, SERIES_PARALLEL, BLUEPRINT = range(9)
ONE, ALL, WINDOW = range(3)
_N_SHAPES = BLUEPRINT + MAX_BLUEPRINTS
_REDUCERS = 4  # at most, of one round of map_reduce
_NEIGHBOURS = 8  # tasks before it, one of which a task may repeat
_EDGE_BYTES, _GIVEN_BYTES = EDGE.itemsize, GIVEN.itemsize
_TASK_BYTES, _ARTIFACT_BYTES, _GOAL_BYTES, _LINK_BYTES = TASK.itemsize, ARTIFACT.itemsize, GOAL.itemsize, LINK.itemsize


@kernel
def sigma_of(cv):
    """sigma of a log-normal factor with this coefficient of variation."""
    if cv == 0.0:
        return 0.0
    return math.sqrt(math.log(1.0 + cv * cv))


@kernel
def add_task(s, w, L, i, f, factor, hint_sigma):
    """Task i calls function f: its true factor and the hint that its author gave."""
    t = task(s, i)
    t.function = f
    t.required = 1
    g = goal(w, i)
    g.factor = factor
    if L.order_hidden == 0:
        mean = truth(w, 3 * f + STANDARD).mean * g.factor
        artifact(s, i).hint = float(max(1, np.int64(mean * to_noise(bits(w), hint_sigma))))


@kernel
def add_edge(s, w, source, target, edges):
    """One edge more; `touched` tells that its source has a successor."""
    e = edge(w, edges)
    e.source = source
    e.target = target
    e.soft = 0
    task(s, source).touched = 1
    return edges + 1


@kernel
def draw_graph(s, w, L, functions):
    """The workflow of the instance."""
    if L.n_given > 0:
        copy_given(s, w, L)
        return
    n = integer(w, L.tasks[0], L.tasks[1])
    width = integer(w, L.width[0], L.width[1])
    siblings = uniform(w, L.siblings[0], L.siblings[1])
    hint_sigma = sigma_of(uniform(w, L.hint_cv[0], L.hint_cv[1]))
    task_sigma = sigma_of(L.task_cv)
    x = uniform(w, 0.0, L.shapes[_N_SHAPES - 1])
    shape = 0
    below = 0.0
    for k in range(_N_SHAPES):
        if L.shapes[k] > below and x >= below:
            shape = k
        below = L.shapes[k]
    if shape >= BLUEPRINT:
        edges = follow(s, w, L, shape - BLUEPRINT, functions, task_sigma, hint_sigma)
    elif shape == SERIES_PARALLEL:
        edges = grow(s, w, n)
        f = pick(w, functions)
        for i in range(n):
            if uniform(w, 0.0, 1.0) >= siblings:
                f = pick(w, functions)
            add_task(s, w, L, i, f, to_noise(bits(w), task_sigma), hint_sigma)
        s.n_tasks = n
    else:
        edges = draw_layers(s, w, L, shape, n, width, siblings, functions, task_sigma, hint_sigma)
    base = address_of(w) + w.edge_at
    count_edges(s, base, edges)
    draw_marks(s, w, L)
    link(s, base, edges)
    w.n_edges = edges


@kernel
def draw_stream(s, w, L, functions):
    """One workflow after the other, each drawn into tables that begin behind those of the one before; weights and gaps."""
    n = integer(w, L.workflows[0], L.workflows[1])
    tasks = 0
    edges = 0
    for g in range(n):
        move_tables(s, w, tasks, edges)
        draw_graph(s, w, L, functions)
        move_tables(s, w, -tasks, -edges)
        settle(s, g, tasks, edges)
        tasks += s.n_tasks
        edges += w.n_edges
    s.n_tasks = tasks
    s.flow_rows = n
    s.stream = 1
    s.stream_open = 1
    for g in range(n):
        flow(s, g).weight = L.weights[pick(w, L.n_weights)]
    w.load = uniform(w, L.load[0], L.load[1])
    w.gap_noise = sigma_of(uniform(w, L.gap_cv[0], L.gap_cv[1]))


@kernel
def move_tables(s, w, tasks, edges):
    """The tables of tasks and edges begin so many rows later."""
    s.task_at += tasks * _TASK_BYTES
    s.artifact_at += tasks * _ARTIFACT_BYTES
    w.goal_at += tasks * _GOAL_BYTES
    s.succ_at += edges * _LINK_BYTES
    s.pred_at += edges * _LINK_BYTES


@kernel
def settle(s, g, first, edges):
    """Workflow g, drawn into moved tables, counts its tasks and edges from the first ones of the stream on."""
    w = flow(s, g)
    w.first = first
    w.last = first + s.n_tasks
    for i in range(w.first, w.last):
        t = task(s, i)
        t.flow = g
        for e in range(t.succ_from + edges, t.succ_to + edges):
            successor(s, e).task += first
        for e in range(t.pred_from + edges, t.pred_to + edges):
            predecessor(s, e).task += first
        t.succ_from += edges
        t.succ_to += edges
        t.pred_from += edges
        t.pred_to += edges


@kernel
def layer_size(w, shape, layer, width, last):
    """Tasks of the next layer."""
    if shape == PIPELINES:
        return width
    if shape == CHAIN:
        return 1
    if shape == FORK_JOIN:
        return 1 if layer % 2 == 0 else integer(w, 2, width)
    if shape == MAP_REDUCE:
        return integer(w, 2, width) if layer % 2 == 0 else integer(w, 1, min(width, _REDUCERS))
    if shape == LAYERED:
        return integer(w, 1, width)
    return integer(w, 1, min(width, max(1, 2 * last)))  # trees: the first layer has none before it


@kernel
def draw_layers(s, w, L, shape, n, width, siblings, functions, task_sigma, hint_sigma):
    """Layer after layer: random inputs (layered), items x stages (pipelines), one and many (fork_join), one after the other
    (chain), many and few (map_reduce), one input each (out_tree) or, the same backwards, one successor each (in_tree)."""
    s.n_tasks = n
    made = 0
    before = 0  # first task of the layer before
    edges = 0
    layer = 0
    while made < n:
        here = made
        last = here - before
        size = min(layer_size(w, shape, layer, width, last), n - made)
        common = pick(w, functions)
        for j in range(size):
            f = common
            if uniform(w, 0.0, 1.0) >= siblings:
                f = pick(w, functions)
            i = n - 1 - made if shape == IN_TREE else made
            add_task(s, w, L, i, f, to_noise(bits(w), task_sigma), hint_sigma)
            if layer > 0:
                if shape == FORK_JOIN or shape == CHAIN or shape == MAP_REDUCE:
                    for k in range(before, here):
                        edges = add_edge(s, w, k, made, edges)
                elif shape == PIPELINES:
                    if j < last:
                        edges = add_edge(s, w, before + j, made, edges)
                elif shape == OUT_TREE:
                    edges = add_edge(s, w, before + pick(w, last), made, edges)
                elif shape == IN_TREE:
                    edges = add_edge(s, w, i, n - 1 - before - pick(w, last), edges)
                else:
                    a = pick(w, last)
                    edges = add_edge(s, w, before + a, made, edges)
                    b = pick(w, last)
                    if b != a and uniform(w, 0.0, 1.0) < 0.5:
                        edges = add_edge(s, w, before + b, made, edges)
            made += 1
        if layer > 0 and shape == LAYERED:
            for i in range(before, here):
                if task(s, i).touched == 0:
                    edges = add_edge(s, w, i, here + pick(w, size), edges)
        before = here
        layer += 1
    return edges


@kernel
def grow(s, w, n):
    """A random series-parallel graph: from one task on, a random one gets a follower that takes over its successors, or a twin
    with the same inputs and successors; as long as 4 n edges suffice. The edges; tasks come later."""
    edges = 0
    for count in range(1, n):
        p = pick(w, count)
        own = 0
        for k in range(edges):
            e = edge(w, k)
            own += (e.source == p) + (e.target == p)
        twin = uniform(w, 0.0, 1.0) < 0.5 and own > 0 and edges + own + n - count <= 4 * n
        for k in range(edges):  # the new task is p + 1: all behind it move up
            e = edge(w, k)
            e.source += e.source > p or (e.source == p and not twin)
            e.target += e.target > p
        if not twin:
            edges = add_edge(s, w, p, p + 1, edges)
            continue
        for k in range(edges):
            e = edge(w, k)
            if e.source == p:
                edges = add_edge(s, w, p + 1, e.target, edges)
            elif e.target == p:
                edges = add_edge(s, w, e.source, p + 1, edges)
    return edges


@kernel
def follow(s, w, L, which, functions, task_sigma, hint_sigma):
    """A blueprint, stage after stage; stages without a function of their own take one after the other. `fq_env.tables` wrote
    the rows: function, count (0: items), links; per link: first task before (fixed + per item), count, kind, window."""
    items = integer(w, L.items[which, 0], L.items[which, 1])
    first = pick(w, functions)
    row = L.blueprints[which]
    made = 0
    edges = 0
    for stage in range(L.stages[which]):
        f = integer_at(row).x
        size = integer_at(row + 8).x
        links = integer_at(row + 16).x
        row += 24
        if f < 0:
            f = (first + stage) % functions
        if size == 0:
            size = items
        for j in range(size):
            add_task(s, w, L, made + j, f, to_noise(bits(w), task_sigma), hint_sigma)
        for _ in range(links):
            before = integer_at(row).x + items * integer_at(row + 8).x
            count = integer_at(row + 16).x
            if count == 0:
                count = items
            edges = join(s, w, before, count, made, size, integer_at(row + 24).x, integer_at(row + 32).x, edges)
            row += 40
        made += size
    s.n_tasks = made
    return edges


@kernel
def join(s, w, before, count, here, size, kind, window, edges):
    """Edges from `count` tasks to `size` tasks: item by item (or in groups), all to all, or from a window of neighbours."""
    if kind == ONE and count > size:
        for i in range(count):
            edges = add_edge(s, w, before + i, here + i * size // count, edges)
        return edges
    for j in range(size):
        low = 0 if kind == ALL else j * count // size
        reach = count if kind == ALL else (1 if kind == ONE else window)
        for i in range(low, min(low + reach, count)):
            edges = add_edge(s, w, before + i, here + j, edges)
    return edges


@kernel
def copy_given(s, w, L):
    """The level's own graph; only durations and hints are drawn."""
    hint_sigma = sigma_of(uniform(w, L.hint_cv[0], L.hint_cv[1]))
    task_sigma = sigma_of(L.task_cv)
    s.n_tasks = L.n_given
    alone(s)
    for i in range(L.n_given):
        row = given_at(L.given + i * _GIVEN_BYTES)
        add_task(s, w, L, i, np.int64(row.function), row.factor * to_noise(bits(w), task_sigma), hint_sigma)
        t = task(s, i)
        artifact(s, i).hint *= row.hinted
        t.required = row.required
        t.join_any = row.join_any
        t.priority = row.priority
        if row.content > 0:
            join_twins(s, i, np.int64(row.content))
        if row.join_any == 1:
            s.any_join = 1
    count_edges(s, L.given_edges, L.n_given_edges)
    link(s, L.given_edges, L.n_given_edges)


@kernel
def alone(s):
    """No task has a twin."""
    for i in range(s.n_tasks):
        kept = artifact(s, i)
        kept.content = 0
        kept.next_twin = i


@kernel
def join_twins(s, i, content):
    """Task i joins the ring of the tasks of this content, all of which stand before it."""
    s.any_twins = 1
    kept = artifact(s, i)
    kept.content = content
    kept.next_twin = i
    for j in range(i - 1, -1, -1):
        o = artifact(s, j)
        if o.content == content:
            kept.next_twin = o.next_twin
            o.next_twin = i
            return


@kernel
def draw_echoes(s, w, L):
    """Which tasks repeat an earlier one: function, true factor and hint are the same."""
    alone(s)
    share = uniform(w, L.echoes[0], L.echoes[1])
    contents = 0
    for i in range(1, s.n_tasks):
        if uniform(w, 0.0, 1.0) < share:
            j = i - 1 - pick(w, min(i, _NEIGHBOURS))
            t = task(s, i)
            t.function = task(s, j).function
            artifact(s, i).hint = artifact(s, j).hint
            goal(w, i).factor = goal(w, j).factor
            if artifact(s, j).content == 0:
                contents += 1
                join_twins(s, j, contents)
            join_twins(s, i, np.int64(artifact(s, j).content))


@kernel
def draw_marks(s, w, L):
    """Which tasks are optional (never those without successors), which joins are satisfied by any input, priorities."""
    if L.optional[1] + L.any_join[1] == 0.0 and L.priorities[1] == 0:
        return
    optional = uniform(w, L.optional[0], L.optional[1])
    any_join = uniform(w, L.any_join[0], L.any_join[1])
    for i in range(s.n_tasks):
        t = task(s, i)
        if t.succ_to > t.succ_from and uniform(w, 0.0, 1.0) < optional:
            t.required = 0
        if t.pred_to - t.pred_from > 1 and uniform(w, 0.0, 1.0) < any_join:
            t.join_any = 1
            s.any_join = 1
        t.priority = integer(w, L.priorities[0], L.priorities[1])


@kernel
def count_edges(s, base, edges):
    """Each task's places in the successor and predecessor tables, from the edge list at `base`."""
    for k in range(edges):
        e = edge_at(base + k * _EDGE_BYTES)
        task(s, e.source).succ_to += 1
        task(s, e.target).pred_to += 1
    out = 0
    inn = 0
    for i in range(s.n_tasks):
        t = task(s, i)
        t.touched = 0
        t.succ_from = out
        out += t.succ_to
        t.succ_to = out
        t.pred_from = inn
        inn += t.pred_to
        t.pred_to = inn


@kernel
def link(s, base, edges):
    """Fills both tables. An edge is soft if it was given so or its producer is optional, unless its consumer joins `any`."""
    for i in range(s.n_tasks):
        t = task(s, i)
        t.succ_to = t.succ_from
        t.pred_to = t.pred_from
    for k in range(edges):
        e = edge_at(base + k * _EDGE_BYTES)
        a = task(s, e.source)
        b = task(s, e.target)
        soft = 1 if b.join_any == 0 and (e.soft == 1 or a.required == 0) else 0
        row = successor(s, a.succ_to)
        row.task = e.target
        row.soft = soft
        a.succ_to += 1
        row = predecessor(s, b.pred_to)
        row.task = e.source
        row.soft = soft
        b.pred_to += 1
