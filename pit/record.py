"""The record of decisions: one row each, with the Pit before and after, what it commanded, what that took, as Parquet.

Game and production share this one table; `pit/trace.py` makes its rows. `python -m pit.record` prints the columns. What stands
here knows no Pit, no player and no journal; pyarrow, the extra `record`, is needed for writing alone.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pit import layout
from pit.errors import PitError

SCHEMA = "function-quest.decisions/1"  # under `schema` in a file's metadata, beside `tables`: the hashes of `layout`
BATCH = 1024  # rows of one row group: what is held in memory while writing
Row = dict[str, Any]


# --------------------------------------------------------------------------- the table
class Column(NamedTuple):
    """One column or field: its Arrow type (also `list<...>`, or a struct of `STRUCTS`; ? = may be null) and what it holds."""

    name: str
    kind: str
    meaning: str


SCORE = tuple(
    Column(name, "float64", meaning)
    for name, meaning in (
        ("base", "quality delivered so far"),
        ("efficiency", "1 - spent / the cost of everything one after the other, each with a load"),
        ("stability", "1 - weighted warnings"),
        ("optimization", "lower bound / (elapsed + what is left)"),
        ("total", "the four together, under the weights of `layout.SCORE_WEIGHTS`"),
    )
)
STATE = (
    Column("time_s", "float64", "seconds since the run began"),
    Column("status", "string", "running, solved, failed or expired"),
    Column("blocked", "int32", "tasks that wait for inputs"),
    Column("ready", "int32", "tasks that could be started, held and queued ones among them"),
    Column("held", "int32", "ready tasks that are held back"),
    Column("running", "int32", "tasks with a call in flight"),
    Column("done", "int32", "tasks done"),
    Column("given_up", "int32", "tasks given up"),
    Column("calls", "int32", "calls in flight, those that wait for a load among them"),
    Column("busy", "list<int32>", "per pool: places taken"),
    Column("queued", "list<int32>", "per pool: tasks in its queue"),
    Column("failures", "list<float64>", "per pool: chance that its next call fails"),
    Column("tokens_share", "list<float64?>", "per pool: tokens left / burst; null without a rate limit"),
    Column("memory_share", "list<float64>", "per memory budget: used / capacity"),
    Column("loading", "int32", "copies of models that are being loaded"),
    Column("warm", "int32", "copies in memory without a user"),
    Column("active", "int32", "copies in memory with users"),
    Column("cooldown", "int32", "copies that are being unloaded"),
    Column("spent", "float64", "money spent"),
    Column("committed", "float64", "money committed to calls and loads under way"),
    Column("warnings", "int32", "warnings so far"),
    Column("score", "score", "the score as the Pit estimates it"),
)
OPERATION = (
    Column("time_s", "float64", "seconds since the run began"),
    Column("kind", "string", "start, cancel, load, unload, fetch, configure, store or delete"),
    Column("call", "int32?", "number of the call; it and the next three are null where a command is not about them"),
    Column("task", "int32?", "index of its task"),
    Column("function", "string?", "its function"),
    Column("variant", "string?", "lite, standard or premium"),
    Column("pool", "string?", "where; null for fetch, store and delete"),
    Column(
        "copy", "int32?", "row of the copy table, null without a model; fetch: task whose output it is; store: tier, 0 hot"
    ),
    Column("model", "string?", "the model"),
)
STRUCTS = {"score": SCORE, "state": STATE, "operation": OPERATION}
DECISION = (
    Column("source", "string", "game or production"),
    Column("run", "string", "the episode or run: rows of one `run` follow each other"),
    Column("level", "string?", "name of the level; it and the next two are null in production"),
    Column("split", "string?", "train, validation or test"),
    Column("instance", "int64?", "number of the instance"),
    Column("workflow", "string?", "name of the workflow; null in the game"),
    Column("player", "string", "who plays: a rule, a trained policy; in production the strategy"),
    Column("by", "string", "who chose this action: policy, rule, random, sequential"),
    Column("note", "string", "why not the policy, empty if as planned"),
    Column("exposure", "string", "what the player saw: hidden, partial or full"),
    Column("pools", "list<string>", "names of the pools, in the order of all lists per pool"),
    Column("places", "list<int32>", "per pool: its places"),
    Column("memories", "list<string>", "names of the memory budgets"),
    Column("decision", "int32", "number of the decision in its run, from 0"),
    Column("time_s", "float64", "seconds since the run began"),
    Column("action", "int32", "0 to 127"),
    Column("action_name", "string", "such as `slot 3: standard`, `wait`"),
    Column("legal", "bool", "whether the mask allowed it"),
    Column("legal_actions", "int32", "how many actions the mask allowed"),
    Column("wait_legal", "bool", "whether waiting was one of them"),
    Column("slot", "int32?", "slot of the action; it and the next five are null for a global action"),
    Column("task", "int32?", "index of the slot's head"),
    Column("task_id", "string?", "its name in the workflow; null in the game"),
    Column("function", "string?", "its function"),
    Column("variant", "string?", "lite, standard or premium"),
    Column("attempts", "int32?", "failed attempts of the head so far"),
    Column("before", "state", "the Pit when the decision was made"),
    Column("after", "state", "the Pit when the next decision was due, or at the end"),
    Column("operations", "list<operation>", "commands of the Pit from here to `after`, in order"),
    Column("events", "int32", "events that it took in that time"),
    Column("outcome", "string", f"as the Pit reports it at `after`: {', '.join(layout.OUTCOMES)}"),
    Column("seconds", "float64", "time passed from `before` to `after`"),
    Column("busy_place_seconds", "list<float64>", "per pool: places taken x seconds, in that time"),
    Column("loads", "int32", "loads begun in that time"),
    Column("money", "float64", "money spent in that time"),
    Column("efficiency", "float64", "the Pit's `score_efficiency` at `after`"),
    Column("reward", "float64?", "of this step; null in production"),
)
OBSERVATION = (
    Column("observation", "list<float32>", "what the player saw, the 512 columns of `pit/layout.py`"),
    Column("mask", "list<uint8>", "the 128 actions, 1 = legal"),
)


def columns(observations: bool = False) -> tuple[Column, ...]:
    """The columns of a file; `observations`: with those two that most readers do not need."""
    return DECISION + (OBSERVATION if observations else ())


def column_table() -> str:
    """The table and its structs as Markdown."""
    blocks = []
    for title, table in (
        ("One row is one decision", DECISION),
        ("Only with `observations`", OBSERVATION),
        *((f"Struct `{name}`", table) for name, table in STRUCTS.items()),
    ):
        lines = [f"**{title}**", "", "| column | type | holds |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in table]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


# --------------------------------------------------------------------------- the file
def _arrow() -> Any:
    """pyarrow with its Parquet module. Raises PitError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PitError(
            "decisions are recorded with pyarrow, which is not installed; install the extra `record`: "
            "pip install 'function-quest[record]'"
        ) from None
    return pyarrow


def _field(name: str, kind: str) -> Any:
    return _arrow().field(name, _type(kind.removesuffix("?")), nullable=kind.endswith("?"))


def _type(kind: str) -> Any:
    if kind.startswith("list<"):
        return _arrow().list_(_field("element", kind[len("list<") : -1]))
    if kind in STRUCTS:
        return _arrow().struct([_field(column.name, column.kind) for column in STRUCTS[kind]])
    return _arrow().type_for_alias(kind)


def arrow_schema(observations: bool = False) -> Any:
    """The `pyarrow.Schema` of a file, with its version and the hashes of the Pit's tables in the metadata."""
    fields = [_field(column.name, column.kind) for column in columns(observations)]
    return _arrow().schema(fields, {"schema": SCHEMA, "tables": json.dumps(layout.table_hashes())})


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def write(path: str | os.PathLike[str], rows: Iterable[Row], observations: bool = False) -> int:
    """Writes rows as they come; the file appears whole or not at all, in place of an older one. Returns how many there are.

    Raises:
        PitError: pyarrow is missing, or the file cannot be written; no row was asked for then.
    """
    schema, path, count = arrow_schema(observations), Path(path), 0
    if path.is_dir():
        raise PitError(f"{path}: is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = open(temporary, "wb")  # noqa: SIM115 (its errors are the caller's, those of the rows are not)
    except OSError as error:
        raise PitError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that can be written") from None
    try:
        with file:
            with _arrow().parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                for batch in _batches(rows):
                    writer.write_batch(_arrow().RecordBatch.from_pylist(batch, schema=schema))
                    count += len(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


if __name__ == "__main__":
    print(column_table())
