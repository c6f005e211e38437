"""Where the tasks of a workflow stand in a picture: layers from left to right, few crossing edges. Pure arithmetic."""

from __future__ import annotations

SWEEPS = 6  # to and fro, each putting every task near the middle of its neighbours


def layers(after: list[list[int]]) -> list[int]:
    """The layer of each task: one more than the last of its inputs. `after` names inputs, all before the task itself."""
    depth: list[int] = []
    for inputs in after:
        depth.append(max((depth[j] + 1 for j in inputs), default=0))
    return depth


def columns(after: list[list[int]]) -> list[list[int]]:
    """The tasks of each layer from top to bottom."""
    depth = layers(after)
    found: list[list[int]] = [[] for _ in range(max(depth, default=-1) + 1)]
    for k, layer in enumerate(depth):
        found[layer].append(k)
    followers: list[list[int]] = [[] for _ in after]
    for k, inputs in enumerate(after):
        for j in inputs:
            followers[j].append(k)
    place = {k: (row + 0.5) / len(column) for column in found for row, k in enumerate(column)}
    for sweep in range(SWEEPS):
        near, order = (after, found) if sweep % 2 == 0 else (followers, found[::-1])
        for column in order:
            wanted = {k: sum(place[j] for j in near[k]) / len(near[k]) if near[k] else place[k] for k in column}
            column.sort(key=wanted.__getitem__)
            place |= {k: (row + 0.5) / len(column) for row, k in enumerate(column)}
    return found
