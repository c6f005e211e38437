"""A bundle: the folder in which a trained policy travels, safe to open even from a stranger (no pickle anywhere).

`policy.safetensors`, `golden.safetensors`, `system.yaml`, `card.md` and `manifest.json`, which names every other file with its
size and sha256. What stands here must know nothing of how a policy was trained.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from conductor.errors import ConductorError
from conductor.files import canonical, parse_canonical, sync_directory
from conductor.policy import NetworkSpec, Policy, make_policy, tensor_shapes
from pit import layout, rules
from pit.errors import PitError

FORMAT = "fq.policy/1"
MAX_BYTES = 64 * 2**20  # all files of a bundle together
MAX_TENSORS = 256
MAX_MANIFEST = 2**20  # bytes
MIN_MARGIN = 1e-3  # of the best legal logit over the next in a golden vector: BLAS builds differ in the last bits
FILES = ("policy.safetensors", "golden.safetensors", "system.yaml", "card.md")
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
    evaluation: list[dict[str, Scalar]]
    files: dict[str, FileSpec]


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check. `digest` is the sha256 of `manifest.json` and so of all of it."""

    path: Path
    digest: str
    manifest: Manifest
    policy: Policy
    system_yaml: str
    card: str


def write_bundle(
    directory: str | os.PathLike[str],
    *,
    tensors: Mapping[str, np.ndarray],
    network: Mapping[str, Any],
    golden: Mapping[str, np.ndarray],
    system_yaml: str,
    card: str,
    levels: Sequence[str | int],
    seeds: Sequence[int],
    training_hash: str,
    git_commit: str,
    versions: Mapping[str, str],
    evaluation: Sequence[Mapping[str, Scalar]],
    exposure: str = "full",
    rule: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle and load it back; nothing appears under `directory` before it has passed every check of `load_bundle`.

    Args:
        directory: the folder to make. An existing one is refused unless `overwrite`.
        tensors: float32 arrays, named and shaped as `conductor.policy.tensor_shapes` says for the network. Weights are
            (out, in) as in `torch.nn.Linear`, so the arrays of a state dict fit as they are.
        network: `{"kind": "mlp", "layers": [256, 256], "activation": "tanh"}`: `policy.0.weight` (layers[0], 512),
            `policy.0.bias` (layers[0],), ..., `action.weight` (128, layers[-1]), `action.bias` (128,); an activation (`tanh`
            or `relu`) follows every `policy.*` layer. Or `{"kind": "slots", "widths": [64, 64], "activation": "relu"}`:
            `slot.weight` (widths[0], 25), ..., `globals.bias` (16,); `conductor.policy.Slots` has its formulas.
        golden: `obs` float32 (k, 512), `mask` uint8 or bool (k, 128), `action` int64 (k,), k >= 1: what the trained network
            did (masked argmax). Choose observations whose best legal logit is ahead of the next by at least `MIN_MARGIN`.
        system_yaml: the functions and pools it was trained for, as YAML text of a `SystemSpec`; of several, one document each.
        card: the model card, Markdown.
        levels: the levels it was trained on. seeds: of the training. training_hash: sha256 of its resolved configuration.
        git_commit: commit of the training code. versions: package -> version.
        evaluation: rows of the evaluation table: flat, of strings, numbers, booleans and None, no NaN
            (`{"level": 11, "split": "test", "player": "policy", "mean": 0.71, "low": 0.70, "high": 0.72}`).
        exposure: the exposure of its observations: `hidden`, `partial` or `full`; the runtime blanks the same columns.
        rule: `{"name": "critical_path_warm_wait", "params": {...}}`, the fitted fall-back; `critical_path` if None;
            `{"name": "calibrated", "params": {"weights": pit.rules.table_of(...)}}`.
        overwrite: replace an existing bundle.

    Returns:
        The bundle as `load_bundle` sees it.

    Raises:
        ConductorError: wrong shape, dtype, value or golden action; folder exists; folder cannot be written.
    """
    target = Path(directory).absolute()
    if target.exists() and not overwrite:
        raise ConductorError(f"{target}: exists already; choose another folder or ask to overwrite it")
    for name, array in {**tensors, **golden}.items():
        if not isinstance(array, np.ndarray):
            raise ConductorError(f"tensor {name} is a {type(array).__name__}; a NumPy array is needed")
    if "mask" in golden and golden["mask"].dtype == np.bool_:
        golden = {**golden, "mask": golden["mask"].astype(np.uint8)}
    try:
        contents = {
            "policy.safetensors": save({n: np.ascontiguousarray(a) for n, a in tensors.items()}),
            "golden.safetensors": save({n: np.ascontiguousarray(a) for n, a in golden.items()}),
            "system.yaml": system_yaml.encode(),
            "card.md": card.encode(),
        }
        contents["manifest.json"] = canonical({
            "format": FORMAT,
            "network": dict(network),
            "tables": layout.table_hashes(),
            "exposure": exposure,
            "rule": dict(rule) if rule else {"name": "critical_path", "params": {}},
            "levels": [str(level) for level in levels],
            "seeds": [int(seed) for seed in seeds],
            "training": training_hash,
            "git_commit": git_commit,
            "versions": dict(versions),
            "evaluation": [dict(row) for row in evaluation],
            "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in contents.items()},
        })  # fmt: skip
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
        raise ConductorError(f"{target}: this cannot be written as a bundle: {error}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConductorError(f"{target}: cannot be written ({error.strerror}); choose a folder that you may write") from error
    try:
        for name, content in contents.items():
            with open(scratch / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(scratch)
        bundle = _load(scratch, margin=MIN_MARGIN)
        os.chmod(scratch, 0o755)
        if target.exists():
            aside = scratch.with_name(scratch.name + ".old")
            os.rename(target, aside)
            os.rename(scratch, target)
            shutil.rmtree(aside)
        else:
            os.rename(scratch, target)
        sync_directory(target.parent)
    except OSError as error:
        raise ConductorError(f"{target}: cannot be written ({error.strerror}); choose a folder that you may write") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Bundle(target, bundle.digest, bundle.manifest, bundle.policy, bundle.system_yaml, bundle.card)


def load_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Open a bundle, checking everything that it claims.

    In this order, each with its own sentence: sizes; the manifest parses, is canonical and knows no other keys; files as
    listed, none missing, none too many; tensors named, shaped and typed as the network says; all finite; the tables of this
    Pit; golden vectors reproduce.

    Raises:
        ConductorError: whatever does not hold.
    """
    return _load(Path(directory), margin=0.0)


def _load(path: Path, margin: float) -> Bundle:
    contents = _read_files(path)
    raw = contents.pop("manifest.json")
    manifest = _read_manifest(path, raw)
    _check_files(path, contents, manifest)
    tensors = _read_tensors(path / "policy.safetensors", contents["policy.safetensors"])
    shapes = tensor_shapes(manifest.network)
    for name in sorted(set(tensors) ^ set(shapes)):
        what = "is missing" if name in shapes else "does not belong there"
        raise ConductorError(f"{path}/policy.safetensors: tensor {name} {what}; the network needs {', '.join(shapes)}")
    for name, shape in shapes.items():
        _check_tensor(path / "policy.safetensors", name, tensors[name], "float32", shape)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ConductorError(
                f"{path}/policy.safetensors: tensor {name} holds a number that is not finite; export it again"
            )
    for name, digest in layout.table_hashes().items():
        if manifest.tables.get(name) != digest:
            raise ConductorError(
                f"{path}/manifest.json: the {name} table it was trained over is not this Pit's; train or export it again"
            )
    policy = make_policy(manifest.network, tensors)
    _check_golden(path / "golden.safetensors", contents["golden.safetensors"], policy, margin)
    texts = []
    for name in ("system.yaml", "card.md"):
        try:
            texts.append(contents[name].decode())
        except UnicodeDecodeError as error:
            raise ConductorError(f"{path}/{name}: is not UTF-8 text") from error
    return Bundle(path, hashlib.sha256(raw).hexdigest(), manifest, policy, *texts)


def _read_files(path: Path) -> dict[str, bytes]:
    """Every file of the folder, read once: what was hashed is what is parsed."""
    if not path.is_dir():
        raise ConductorError(f"{path}: there is no bundle; a bundle is a folder with {', '.join(FILES)} and manifest.json")
    contents: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            if not entry.is_file(follow_symlinks=False):
                raise ConductorError(f"{path}/{entry.name}: is not a plain file; a bundle holds nothing else")
            with open(entry.path, "rb") as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise ConductorError(f"{path}: is larger than {MAX_BYTES} bytes; a bundle must not be")
            contents[entry.name] = content
            if len(contents) > len(FILES) + 1:
                break
    except OSError as error:
        raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
    if "manifest.json" not in contents:
        raise ConductorError(f"{path}: manifest.json is missing; without it nothing in a bundle can be trusted")
    return contents


def _read_manifest(path: Path, content: bytes) -> Manifest:
    where = f"{path}/manifest.json"
    if len(content) > MAX_MANIFEST:
        raise ConductorError(f"{where}: is larger than {MAX_MANIFEST} bytes")
    data = parse_canonical(content, where)
    try:
        manifest = Manifest.model_validate(data)
        rules.parameters(manifest.rule.name, manifest.rule.params)
        return manifest
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConductorError(f"{where}: {key or 'document'}: {first['msg']}") from error
    except PitError as error:
        raise ConductorError(f"{where}: rule: {error}") from error


def _check_files(path: Path, contents: Mapping[str, bytes], manifest: Manifest) -> None:
    for name in sorted(set(contents) | set(manifest.files) | set(FILES)):
        if name not in FILES:
            raise ConductorError(f"{path}/{name}: is a file too many; a bundle holds {', '.join(FILES)} and manifest.json")
        if name not in contents:
            raise ConductorError(f"{path}/{name}: is missing")
        if name not in manifest.files:
            raise ConductorError(f"{path}/manifest.json: files does not name {name}")
        claim, content = manifest.files[name], contents[name]
        if len(content) != claim.size:
            raise ConductorError(f"{path}/{name}: has {len(content)} bytes where the manifest says {claim.size}")
        if hashlib.sha256(content).hexdigest() != claim.sha256:
            raise ConductorError(f"{path}/{name}: its sha256 is not the one in the manifest; the file was changed")


_DTYPES = {"F32": "float32", "U8": "uint8", "I64": "int64"}


def _read_tensors(where: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        table = deserialize(content)
    except SafetensorError as error:
        raise ConductorError(f"{where}: is not a safetensors file: {error}") from error
    if len(table) > MAX_TENSORS:
        raise ConductorError(f"{where}: holds {len(table)} tensors; at most {MAX_TENSORS} are read")
    tensors = {}
    for name, entry in table:
        if entry["dtype"] not in _DTYPES:
            raise ConductorError(f"{where}: tensor {name} has dtype {entry['dtype']}; {', '.join(_DTYPES.values())} are read")
        tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _check_tensor(where: Path, name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ConductorError(f"{where}: tensor {name} is {array.dtype} {array.shape}; {dtype} {shape} is needed")


def _check_golden(where: Path, content: bytes, policy: Policy, margin: float) -> None:
    golden = _read_tensors(where, content)
    if set(golden) != {"obs", "mask", "action"} or not golden["action"].size:
        raise ConductorError(f"{where}: holds {sorted(golden)}; obs, mask and action with at least one row are needed")
    k = golden["action"].shape[0]
    _check_tensor(where, "action", golden["action"], "int64", (k,))
    _check_tensor(where, "obs", golden["obs"], "float32", (k, layout.N_OBSERVATION))
    _check_tensor(where, "mask", golden["mask"], "uint8", (k, layout.N_ACTIONS))
    for i in range(k):
        mask = golden["mask"][i] != 0
        action = int(golden["action"][i])
        if not mask.any():
            raise ConductorError(f"{where}: vector {i} allows no action")
        got = policy.act(golden["obs"][i], mask)
        if got != action:
            raise ConductorError(
                f"{where}: vector {i} gives action {got} where {action} was recorded; this is another network"
            )
        if margin and mask.sum() > 1:
            second, best = np.sort(policy.logits(golden["obs"][i])[mask])[-2:]
            if not best - second >= margin:
                raise ConductorError(
                    f"{where}: in vector {i} the best logit leads by {best - second:.2g}; choose one with {margin:g} or more"
                )
