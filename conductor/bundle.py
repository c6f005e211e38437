"""A bundle: the folder (or zip) in which a trained policy travels, safe to open even from a stranger (no pickle anywhere).

`policy.safetensors`, `golden.safetensors`, `system.yaml`, `card.md`, and `manifest.json`, which names every other file with
its size and sha256; `manifest.sig` if somebody vouches for it (`conductor.trust`). What stands here must know nothing of how a
policy was trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from conductor import archive
from conductor.errors import ConductorError
from conductor.files import canonical, replace, sync_directory
from conductor.manifest import (
    FORMAT,
    MAX_BYTES,
    MAX_MANIFEST,
    FileSpec,
    Manifest,
    Scalar,
    parse_manifest,
    read_claims,
    read_manifest,
)
from conductor.policy import Policy, make_policy, tensor_shapes
from conductor.trust import ANYONE, MAX_SIGNATURE, SIGNATURE, Signature, Trust, read_trust, sign
from pit import layout

MAX_TENSORS = 256
MAX_HEADER = 2**16  # bytes of a safetensors file's table: what is read of it becomes objects, many times its size
MAX_GOLDEN = 64  # vectors: each is one decision at every start
MIN_MARGIN = 1e-3  # of the best legal logit over the next in a golden vector: BLAS builds differ in the last bits
FILES = ("policy.safetensors", "golden.safetensors", "system.yaml", "card.md")
MANIFEST = "manifest.json"
_NAMES = frozenset((*FILES, MANIFEST, SIGNATURE))
_CAPS = {MANIFEST: MAX_MANIFEST, SIGNATURE: MAX_SIGNATURE}  # bytes of one file; of all together MAX_BYTES


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check. `digest` is the sha256 of `manifest.json` and so of all of it but the signature."""

    path: Path
    digest: str
    manifest: Manifest
    policy: Policy
    system_yaml: str
    card: str
    signature: Signature
    contents: Mapping[str, bytes] = field(repr=False)  # of every file, as they were checked

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one of its safetensors files, as `write_bundle` takes them."""
        return _read_tensors(self.path / name, self.contents[name])

    def save(self, folder: Path) -> None:
        """Write what was checked into a new folder, durable. Raises ConductorError."""
        try:
            folder.mkdir()
            for name, content in self.contents.items():
                _write(folder / name, content)
            sync_directory(folder)
        except OSError as error:
            raise ConductorError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


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
    ranges: Mapping[str, Any] | None = None,
    key: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle and load it back; nothing appears under `directory` before it has passed every check of `load_bundle`.

    Args:
        directory: the folder to make. An existing one is refused unless `overwrite`; then there is a moment in which nothing
            lies there, and who dies in it leaves the older one beside it, as `.NAME.*.old`.
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
        ranges: what the policy saw (`conductor.manifest.ranges_of`); None if that was not measured.
        key: name of one's own key (`conductor.trust.new_key`) that signs it; None: nobody does.
        overwrite: replace an existing bundle.

    Returns:
        The bundle as `load_bundle` sees it.

    Raises:
        ConductorError: wrong shape, dtype, value or golden action; no such key; folder exists; folder cannot be written.
    """
    target = Path(directory).absolute()
    if os.path.lexists(target):
        if not overwrite:
            raise ConductorError(f"{target}: exists already; choose another folder or ask to overwrite it")
        if target.is_symlink() or not target.is_dir():
            raise ConductorError(f"{target}: is no folder, which alone is overwritten; choose another place")
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
        contents[MANIFEST] = canonical({
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
            **({"ranges": dict(ranges)} if ranges is not None else {}),
            "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in contents.items()},
        })  # fmt: skip
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
        raise ConductorError(f"{target}: this cannot be written as a bundle: {error}") from error
    if key is not None:
        contents[SIGNATURE] = sign(contents[MANIFEST], key)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConductorError(f"{target}: cannot be written ({error.strerror}); choose a folder that you may write") from error
    try:
        for name, content in contents.items():
            _write(scratch / name, content)
        sync_directory(scratch)
        bundle = _check(scratch, _read(scratch), ANYONE, margin=MIN_MARGIN)
        os.chmod(scratch, 0o755)
        if target.exists():
            aside = scratch.with_name(scratch.name + ".old")
            os.rename(target, aside)
            try:
                os.rename(scratch, target)
            except OSError:
                os.rename(aside, target)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(scratch, target)
        sync_directory(target.parent)
    except OSError as error:
        raise ConductorError(f"{target}: cannot be written ({error.strerror}); choose a folder that you may write") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return dataclasses.replace(bundle, path=target)


def load_bundle(place: str | os.PathLike[str], trust: Trust | None = None) -> Bundle:
    """Open a bundle, a folder or a zip that stores one, checking everything that it claims.

    In this order, each with its own sentence: sizes; the signature, if one is there or must be; files as the manifest lists
    them, none missing, none too many; the manifest knows no other keys; tensors named, shaped and typed as the network says;
    all finite; the tables of this Pit; golden vectors reproduce.

    Args:
        place: the folder or the zip.
        trust: what is asked of the signature; `read_trust()` if None: one by a key of the trust store, if that has any.

    Raises:
        ConductorError: whatever does not hold.
    """
    path = Path(place)
    return _check(path, _read(path), read_trust() if trust is None else trust, margin=0.0)


def sign_bundle(folder: str | os.PathLike[str], key: str) -> Bundle:
    """Sign a bundle that passes every check with one's own key; an older signature is replaced. Raises ConductorError."""
    path = Path(folder)
    if os.path.isfile(path):
        raise ConductorError(f"{path}: is no folder; sign a bundle before it is packed")
    contents = _read(path)
    contents.pop(SIGNATURE, None)
    bundle = _check(path, contents, ANYONE, margin=0.0)
    try:
        replace(path / SIGNATURE, sign(contents[MANIFEST], key))
    except OSError as error:
        raise ConductorError(f"{path}/{SIGNATURE}: cannot be written ({error.strerror})") from error
    return bundle


def pack_bundle(place: str | os.PathLike[str], out: str | os.PathLike[str]) -> Bundle:
    """Write a bundle that passes every check but the signature's as a zip, which must not exist yet. Raises ConductorError."""
    bundle, target = load_bundle(place, ANYONE), Path(out)
    if os.path.lexists(target):
        raise ConductorError(f"{target}: exists already; choose another name")
    try:
        replace(target, archive.pack(bundle.contents))
    except OSError as error:
        raise ConductorError(f"{target}: cannot be written ({error.strerror})") from error
    return bundle


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check(path: Path, contents: dict[str, bytes], trust: Trust, margin: float) -> Bundle:
    raw = contents[MANIFEST]
    signature = trust.judge(raw, contents.get(SIGNATURE), str(path))
    where = f"{path}/{MANIFEST}"
    data = parse_manifest(raw, where)
    _check_files(path, contents, read_claims(data, where))
    manifest = read_manifest(data, where)
    system_yaml, card = (_text(path / name, contents[name]) for name in ("system.yaml", "card.md"))
    tensors = _read_tensors(path / "policy.safetensors", contents["policy.safetensors"])
    shapes = tensor_shapes(manifest.network)
    for name in sorted(set(tensors) ^ set(shapes)):
        what = "is missing" if name in shapes else "does not belong there"
        raise ConductorError(f"{path}/policy.safetensors: tensor {name[:80]} {what}; the network needs {', '.join(shapes)}")
    for name, shape in shapes.items():
        _check_tensor(path / "policy.safetensors", name, tensors[name], "float32", shape)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ConductorError(
                f"{path}/policy.safetensors: tensor {name} holds a number that is not finite; export it again"
            )
    for name, digest in layout.table_hashes().items():
        if manifest.tables.get(name) != digest:
            raise ConductorError(f"{where}: the {name} table it was trained over is not this Pit's; train or export it again")
    policy = make_policy(manifest.network, tensors)
    _check_golden(path / "golden.safetensors", contents["golden.safetensors"], policy, margin)
    return Bundle(path, hashlib.sha256(raw).hexdigest(), manifest, policy, system_yaml, card, signature, contents)


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConductorError(f"{path}: is not UTF-8 text") from error


def _read(path: Path) -> dict[str, bytes]:
    """Every file of a bundle, read once: what was hashed is what is parsed. Nothing is read that a cap would refuse."""
    try:
        contents = _read_folder(path) if path.is_dir() else _read_zip(path)
    except OSError as error:
        raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
    for name, cap in _CAPS.items():
        if len(contents.get(name, b"")) > cap:
            raise ConductorError(f"{path}/{name}: is larger than {cap} bytes; a bundle's must not be")
    if MANIFEST not in contents:
        raise ConductorError(f"{path}: {MANIFEST} is missing; without it nothing in a bundle can be trusted")
    return contents


def _read_zip(path: Path) -> dict[str, bytes]:
    if not path.exists():
        raise ConductorError(f"{path}: there is no bundle; a bundle is a folder with {', '.join(FILES)} and {MANIFEST}")
    content = _read_file(path, MAX_BYTES + archive.OVERHEAD * len(_NAMES), str(path), 0)
    return archive.unpack(content, _NAMES, str(path))


def _read_folder(path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    left = MAX_BYTES
    if (path / "bundle").is_dir():
        raise ConductorError(f"{path}: holds a bundle and is none; name {path / 'bundle'}")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, len(_NAMES) + 1))
    if MANIFEST not in names and (inside := _bundles_in(path)):
        raise ConductorError(f"{path}: holds no {MANIFEST} and so is no bundle; did you mean {path / inside[0]}?")
    if len(names) > len(_NAMES):
        raise ConductorError(f"{path}: holds more than {len(_NAMES)} files; a bundle must not")
    for name in names:
        contents[name] = _read_file(path / name, left, str(path), os.O_NOFOLLOW)
        left -= len(contents[name])
    return contents


def _bundles_in(path: Path) -> list[str]:
    """The folders in a folder that seem to be bundles, if it is none itself."""
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, 1000))
    return [] if MANIFEST in names else [name for name in names if os.path.isfile(path / name / MANIFEST)]


def _read_file(path: Path, most: int, whole: str, flags: int) -> bytes:
    """A plain file of at most so many bytes."""
    try:
        # Not blocking: a pipe would let us wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        if path.is_symlink():
            raise ConductorError(f"{path}: is not a plain file; a bundle holds nothing else") from error
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ConductorError(f"{path}: is not a plain file; a bundle holds nothing else")
        if status.st_size <= most:
            with open(handle, "rb", closefd=False) as file:
                content = file.read(most + 1)
            if len(content) <= most:
                return content
    finally:
        os.close(handle)
    raise ConductorError(f"{whole}: is larger than {MAX_BYTES} bytes; a bundle must not be")


def _check_files(path: Path, contents: Mapping[str, bytes], claims: Mapping[str, FileSpec]) -> None:
    for name in sorted((set(contents) | set(claims) | set(FILES)) - {MANIFEST, SIGNATURE}):
        if name not in FILES:
            raise ConductorError(f"{path}/{name}: is a file too many; a bundle holds {', '.join(FILES)} and {MANIFEST}")
        if name not in contents:
            raise ConductorError(f"{path}/{name}: is missing")
        if name not in claims:
            raise ConductorError(f"{path}/{MANIFEST}: files does not name {name}")
        claim, content = claims[name], contents[name]
        if len(content) != claim.size:
            raise ConductorError(f"{path}/{name}: has {len(content)} bytes where the manifest says {claim.size}")
        if hashlib.sha256(content).hexdigest() != claim.sha256:
            raise ConductorError(f"{path}/{name}: its sha256 is not the one in the manifest; the file was changed")
    for name in sorted({MANIFEST, SIGNATURE} & set(claims)):
        raise ConductorError(f"{path}/{MANIFEST}: files names {name}, whose hash it cannot hold")


_DTYPES = {"F32": "float32", "U8": "uint8", "I64": "int64"}


def _read_tensors(where: Path, content: bytes) -> dict[str, np.ndarray]:
    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        raise ConductorError(f"{where}: is not a safetensors file with a table of at most {MAX_HEADER} bytes")
    try:
        table = deserialize(content)
    except SafetensorError as error:
        raise ConductorError(f"{where}: is not a safetensors file: {error}") from error
    if len(table) > MAX_TENSORS:
        raise ConductorError(f"{where}: holds {len(table)} tensors; at most {MAX_TENSORS} are read")
    tensors = {}
    for name, entry in table:
        label = name[:80]  # a stranger's
        if entry["dtype"] not in _DTYPES:
            raise ConductorError(f"{where}: tensor {label} has dtype {entry['dtype']}; {', '.join(_DTYPES.values())} are read")
        try:
            tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        except ValueError as error:  # of no or too many elements
            raise ConductorError(
                f"{where}: tensor {label} has the shape {entry['shape'][:8]}, which no network has"
            ) from error
    return tensors


def _check_tensor(where: Path, name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ConductorError(f"{where}: tensor {name} is {array.dtype} {array.shape}; {dtype} {shape} is needed")


def _check_golden(where: Path, content: bytes, policy: Policy, margin: float) -> None:
    golden = _read_tensors(where, content)
    if set(golden) != {"obs", "mask", "action"} or not golden["action"].size:
        found = ", ".join(sorted(golden))[:200]
        raise ConductorError(f"{where}: holds {found}; obs, mask and action with at least one row are needed")
    k = golden["action"].shape[0] if golden["action"].ndim else 0
    if not 1 <= k <= MAX_GOLDEN:
        raise ConductorError(f"{where}: holds {k} vectors; 1 to {MAX_GOLDEN} are needed")
    _check_tensor(where, "action", golden["action"], "int64", (k,))
    _check_tensor(where, "obs", golden["obs"], "float32", (k, layout.N_OBSERVATION))
    _check_tensor(where, "mask", golden["mask"], "uint8", (k, layout.N_ACTIONS))
    for i in range(k):
        mask = golden["mask"][i] != 0
        action = int(golden["action"][i])
        if not mask.any():
            raise ConductorError(f"{where}: vector {i} allows no action")
        if not 0 <= action < layout.N_ACTIONS:
            raise ConductorError(f"{where}: vector {i} records action {action}; there are 0 to {layout.N_ACTIONS - 1}")
        with np.errstate(all="ignore"):  # logits that are not finite give -1, which is no action
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
