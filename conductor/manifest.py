"""What `manifest.json` of a bundle may say: a closed schema, and what is read of it before anything else is believed.

What stands here must know nothing of tensors, keys or folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, field_validator

from conductor.errors import ConductorError
from conductor.files import parse_canonical
from conductor.policy import NetworkSpec
from pit import layout, rules
from pit.errors import PitError

FORMAT = "fq.policy/1"
MAX_BYTES = 16 * 2**20  # all files of a bundle together; the largest policy of a level takes 2 MiB
MAX_MANIFEST = 2**20  # bytes
MAX_ITEMS = 50_000  # values in it: a mistake in each becomes an object, many times its size
COLUMNS = {name: i for i, (name, _) in enumerate(layout.columns())}
LOW, HIGH = 0.001, 0.999  # the quantiles that `ranges` holds
Scalar = str | int | float | bool | None
Finite = Annotated[float, Field(allow_inf_nan=False)]
# A number, or the weights of `calibrated`: action -> feature -> weight (`pit.rules.table_of`).
Parameter = Annotated[
    Annotated[Finite, Tag("number")] | Annotated[dict[str, dict[str, Finite]], Tag("table")],
    Discriminator(lambda value: "table" if isinstance(value, dict) else "number"),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RuleSpec(_Strict):
    """The rule player that decides when the policy cannot, with its fitted numbers."""

    name: str = "critical_path"
    params: dict[str, Parameter] = {}

    @field_validator("params")
    @classmethod
    def _kinds(cls, params: dict[str, Parameter]) -> dict[str, Parameter]:
        for key, value in params.items():
            if isinstance(value, dict) != (key == "weights"):
                raise ValueError(f"{key} must be {'a table action -> feature -> number' if key == 'weights' else 'a number'}")
        return params


class RangesSpec(_Strict):
    """What the policy saw while it played the levels it was trained on.

    `columns`: name of a column of the observation (`pit.layout.columns`) -> its minimum, 0.1 % quantile, 99.9 % quantile and
    maximum. A column that was 0 in every decision is dead and not named.
    """

    decisions: int = Field(ge=1)
    columns: dict[str, Annotated[list[Finite], Field(min_length=4, max_length=4)]] = Field(min_length=1)

    @field_validator("columns")
    @classmethod
    def _ordered(cls, columns: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, numbers in columns.items():
            if name not in COLUMNS:
                raise ValueError(f"{name} is no column of the observation")
            if numbers != sorted(numbers):
                raise ValueError(f"{name} must be minimum, 0.1 % quantile, 99.9 % quantile and maximum, in this order")
        return columns

    def limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The quantiles of all columns, float32 (512,) each, both 0 in a dead one; and which are live, bool (512,)."""
        low, high = np.zeros(layout.N_OBSERVATION, np.float32), np.zeros(layout.N_OBSERVATION, np.float32)
        live = np.zeros(layout.N_OBSERVATION, bool)
        for name, numbers in self.columns.items():
            i = COLUMNS[name]
            low[i], high[i], live[i] = numbers[1], numbers[2], True
        return low, high, live


def ranges_of(observations: np.ndarray) -> dict[str, Any]:
    """`RangesSpec` of the observations (k, 512) float32, k >= 1, of a policy's decisions. Every number was observed."""
    parts = [
        observations.min(axis=0),
        np.quantile(observations, LOW, axis=0, method="lower"),
        np.quantile(observations, HIGH, axis=0, method="higher"),
        observations.max(axis=0),
    ]
    live = (observations != 0).any(axis=0)
    table = np.stack(parts, axis=1).astype(np.float32).tolist()
    return {"decisions": len(observations), "columns": {name: table[i] for name, i in COLUMNS.items() if live[i]}}


def widest(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ranges that hold all of these, at least one: a column that was dead in one of them was 0 there."""
    names = [name for name in COLUMNS if any(name in part["columns"] for part in parts)]
    dead = [0.0] * 4
    rows = {name: [part["columns"].get(name, dead) for part in parts] for name in names}
    columns = {name: [choose(row[k] for row in rows[name]) for k, choose in enumerate((min, min, max, max))] for name in names}
    return {"decisions": sum(part["decisions"] for part in parts), "columns": columns}


class FileSpec(_Strict):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_BYTES)


class Manifest(_Strict):
    """`manifest.json`: canonical JSON (sorted keys, no white space, one newline at the end)."""

    format: Literal["fq.policy/1"]
    network: NetworkSpec
    tables: dict[str, str]  # pit.layout.table_hashes() of the Pit it was trained over
    exposure: Literal["hidden", "partial", "full"]
    rule: RuleSpec
    levels: list[str]
    seeds: list[int]
    training: str  # hash of the training configuration
    git_commit: str
    versions: dict[str, str]
    evaluation: list[dict[str, Any]]  # of `Scalar`
    ranges: RangesSpec | None = None  # None: not measured, so that nothing can be said of another system's distance
    files: dict[str, FileSpec]

    @field_validator("evaluation")
    @classmethod
    def _flat(cls, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for number, row in enumerate(rows):
            for key, value in row.items():
                if not isinstance(value, Scalar):  # one sentence; a union of types would hold four for each mistake
                    raise ValueError(f"{key[:80]} of row {number} must be a string, a number, true, false or null")
        return rows


_CLAIMS = TypeAdapter(dict[str, FileSpec])


def _sentence(where: str, key: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in (key, *first["loc"]) if part != "")
    return f"{where}: {path or 'document'}: {first['msg']}"


def parse_manifest(content: bytes, where: str) -> Any:
    """The JSON of `manifest.json`, not yet checked against the schema. Raises ConductorError."""
    if content.count(b",") > MAX_ITEMS:
        raise ConductorError(f"{where}: holds more than {MAX_ITEMS} values; a manifest must not")
    return parse_canonical(content, where)


def read_claims(data: Any, where: str) -> dict[str, FileSpec]:
    """The files that a parsed manifest names, name -> size and sha256. Raises ConductorError."""
    if not isinstance(data, dict) or "files" not in data:
        raise ConductorError(f"{where}: files: Field required")
    try:
        return _CLAIMS.validate_python(data["files"])
    except ValidationError as error:
        raise ConductorError(_sentence(where, "files", error)) from error


def read_manifest(data: Any, where: str) -> Manifest:
    """A parsed manifest against the schema, its rule against the Pit's. Raises ConductorError naming key and reason."""
    try:
        manifest = Manifest.model_validate(data)
        rules.parameters(manifest.rule.name, manifest.rule.params)
        return manifest
    except ValidationError as error:
        raise ConductorError(_sentence(where, "", error)) from error
    except (PitError, ValueError, OverflowError) as error:
        raise ConductorError(f"{where}: rule: {error}") from error
