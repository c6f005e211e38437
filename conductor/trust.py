"""Who made a bundle: Ed25519 keys, the keys that are trusted here, and the signature of a manifest (`manifest.sig`).

Keys and the trust store lie in $FQ_CONFIG, or else in `function-quest` of the user's configuration folder. Where it cannot be
looked for them, nobody is let in. A signature covers the manifest's bytes, which name every other file by its hash.
`cryptography` is imported where a key is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conductor.errors import ConductorError
from conductor.files import canonical, parse_canonical, replace

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

CONTEXT = b"fq.policy/1\n"  # what is signed begins with it, so that no signature made for something else fits
SIGNATURE = "manifest.sig"
MAX_SIGNATURE = 1024  # bytes of that file
STORE = "trust.json"
_MAX_FILE = 2**20  # bytes of a key file or of the store
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_ADVICE = "others may write it, and so decide whom you trust; chmod go-w {}"
_UNKNOWN = "so that nothing is known of the keys that are trusted; set FQ_CONFIG to the folder in which they lie"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TrustedKey(_Strict):
    """A public key (32 bytes, hex) and the name by which people know it here."""

    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    public: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Store(_Strict):
    format: Literal["fq.trust/1"]
    keys: dict[KeyId, TrustedKey]


class _Seal(_Strict):
    format: Literal["fq.signature/1"]
    key: KeyId
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class Signature(NamedTuple):
    """What is known of who made a bundle.

    `state`: `trusted` (a key of the store signed this manifest), `foreign` (signed, by a key that is not in the store, so
    that nothing is known) or `unsigned`; `key`: its id, "" if unsigned; `name`: of a trusted key. `allowed`: it would have
    been refused, and was let in on demand.
    """

    state: Literal["trusted", "foreign", "unsigned"]
    key: str = ""
    name: str = ""
    allowed: bool = False

    def words(self) -> str:
        """`signed by NAME (key ID)`, `signed by key ID, which is not trusted here`, `not signed`; + `; allowed on demand`."""
        told = {
            "trusted": f"signed by {self.name} (key {self.key})",
            "foreign": f"signed by key {self.key}, which is not trusted here",
            "unsigned": "not signed",
        }[self.state]
        return told + ("; allowed on demand" if self.allowed else "")


class Trust(NamedTuple):
    """What is asked of a bundle: `keys` that are trusted, by id; whether one of them must have signed it (`required`), and
    whether one that fails that is let in all the same (`allow_unsigned`)."""

    keys: Mapping[str, TrustedKey]
    required: bool
    allow_unsigned: bool = False

    def judge(self, manifest: bytes, seal: bytes | None, where: str) -> Signature:
        """Judge `manifest.sig` (None: there is none). `where` names the bundle in errors.

        Raises:
            ConductorError: a signature is required and missing or by a key that is not trusted; or, whatever is allowed, one
                that is malformed, or that a trusted key did not make over this manifest.
        """
        if seal is None:
            return self._admit(Signature("unsigned"), where)
        place = f"{where}/{SIGNATURE}"
        if len(seal) > MAX_SIGNATURE:
            raise ConductorError(f"{place}: is larger than {MAX_SIGNATURE} bytes")
        try:
            told = _Seal.model_validate(parse_canonical(seal, place))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConductorError(f"{place}: {key or 'document'}: {first['msg']}") from error
        if told.key not in self.keys:
            return self._admit(Signature("foreign", told.key), where)
        known = self.keys[told.key]
        from cryptography.exceptions import InvalidSignature

        try:
            _public(known.public).verify(bytes.fromhex(told.signature), CONTEXT + manifest)
        except InvalidSignature as error:
            raise ConductorError(
                f"{place}: is no signature of {known.name} over this manifest; the bundle was changed after it was signed"
            ) from error
        return Signature("trusted", told.key, known.name)

    def _admit(self, signature: Signature, where: str) -> Signature:
        if not self.required:
            return signature
        if self.allow_unsigned:
            return signature._replace(allowed=True)
        names = ", ".join(key.name for key in self.keys.values())
        raise ConductorError(
            f"{where}: is {signature.words()}, and "
            + (f"only bundles signed by {names} are trusted here" if names else "no key is trusted here")
            + "; `conductor keys trust FILE` adds a key, --allow-unsigned lets this one in"
        )


ANYONE = Trust({}, required=False)  # asks nothing: a bundle runs no code, and what it is for may be harmless


def read_trust(*, require: bool = False, allow_unsigned: bool = False) -> Trust:
    """What is asked of a bundle here: a signature, if the trust store has a key or `require`.

    Raises:
        ConductorError: the store is damaged, others may write it, or it cannot be told whether there is one.
    """
    keys = _read_store()
    return Trust(keys, required=bool(keys) or require, allow_unsigned=allow_unsigned)


# ------------------------------------------------------------------ files
def config_folder() -> Path:
    """Where keys and the trust store lie: $FQ_CONFIG, $XDG_CONFIG_HOME/function-quest or ~/.config/function-quest, be it there
    or not. Raises ConductorError if none of the three is set."""
    if given := os.environ.get("FQ_CONFIG"):
        return Path(given)
    if given := os.environ.get("XDG_CONFIG_HOME"):
        return Path(given) / "function-quest"
    if home := os.environ.get("HOME"):
        return Path(home) / ".config" / "function-quest"
    raise ConductorError(f"HOME is not set, {_UNKNOWN}")


def _folder(*, make: bool = False) -> Path:
    """`config_folder`, where it is there or may come to be; `make`: something is about to be written into it.

    Raises:
        ConductorError: it cannot be told whether keys are trusted: a folder that is missed must not be taken for an empty one;
            or others may change what is in it.
    """
    path = config_folder()
    if os.environ.get("FQ_CONFIG"):
        if _absent(path) and not (make and path.parent.is_dir()):
            raise ConductorError(f"FQ_CONFIG names {path}, which does not exist; name the folder of your keys, or make it")
    elif not os.environ.get("XDG_CONFIG_HOME") and _absent(path.parent.parent):
        raise ConductorError(f"HOME names {path.parent.parent}, which does not exist, {_UNKNOWN}")
    if not _absent(path):
        if not path.is_dir():
            raise ConductorError(f"{path}: is no folder; keys and the trust store lie in one (FQ_CONFIG)")
        status = os.stat(path)
        # Where others may write they could take away what is there, but for a folder like /tmp.
        _demand_own(path, status, 0 if status.st_mode & stat.S_ISVTX else _WRITABLE, _ADVICE.format(path))
    return path


def _demand_own(path: Path, status: os.stat_result, forbidden: int, advice: str) -> None:
    """Raises ConductorError unless it is one's own or root's, and its mode has no bit of `forbidden`."""
    if status.st_uid not in (os.geteuid(), 0):
        raise ConductorError(f"{path}: belongs to another user (uid {status.st_uid}); make it yours (chown)")
    if status.st_mode & forbidden:
        raise ConductorError(f"{path}: {advice}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """What is read in the folder, which is made where it is missing, is still so when it is written: nobody else changes
    anything there meanwhile."""
    folder = _folder(make=True)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConductorError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _absent(path: Path) -> bool:
    """Whether nothing stands there. Raises ConductorError where that cannot be told, or if a link on the way leads nowhere."""
    for place in (path, *path.parents):
        try:
            os.lstat(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
        if not os.path.exists(place):
            raise ConductorError(f"{place}: is a link that leads nowhere; mend it or take it away")
        return place != path
    return True


def _read(path: Path, forbidden: int, advice: str) -> bytes:
    """A small file, which others must not be able to read or write as `forbidden` (mode bits) says; 0: anybody's."""
    try:
        with open(path, "rb") as file:
            if forbidden:
                _demand_own(path, os.fstat(file.fileno()), forbidden, advice)
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > _MAX_FILE:
        raise ConductorError(f"{path}: is larger than {_MAX_FILE} bytes")
    return content


def _read_store() -> dict[str, TrustedKey]:
    path = _folder() / STORE
    if _absent(path):
        return {}
    content = _read(path, _WRITABLE, _ADVICE.format(path))
    try:
        store = _Store.model_validate(parse_canonical(content, str(path)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConductorError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for key, known in store.keys.items():
        if key != key_id(known.public):
            raise ConductorError(f"{path}: keys.{key}: is not the id of {known.name}'s key")
    return store.keys


def _write_store(keys: Mapping[str, TrustedKey]) -> None:
    data = {"format": "fq.trust/1", "keys": {key: known.model_dump() for key, known in keys.items()}}
    _write(_folder() / STORE, canonical(data), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        replace(path, content, mode)
    except OSError as error:
        raise ConductorError(f"{path}: cannot be written ({error.strerror})") from error


# ------------------------------------------------------------------ keys
def key_id(public: str) -> str:
    """The id of a public key (32 bytes, hex): the first half of their sha256, hex (32)."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]


def _public(public: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConductorError(f"key name {name!r}: letters, digits, `.`, `_` and `-` are allowed, at most 64")
    return name


class Key(NamedTuple):
    """A pair of keys of one's own: its name, id, and the file of its public half, which others may have."""

    name: str
    key: str
    public: Path


def new_key(name: str) -> Key:
    """Make a pair of keys: `keys/NAME.key` (private, mode 0600) and `keys/NAME.pub`, both PEM. Raises ConductorError."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _checked(name)
    with _alone():
        path = _folder() / "keys" / f"{name}.key"
        for half in (path, path.with_suffix(".pub")):
            if not _absent(half):
                raise ConductorError(f"{half}: exists already; choose another name")
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        secret = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        _write(path.with_suffix(".pub"), public, 0o644)  # first: a private half without it would be a pair that cannot be told
        _write(path, secret, 0o600)
    return Key(name, _id_of(private.public_key()), path.with_suffix(".pub"))


def own_keys() -> list[Key]:
    """The pairs of keys that lie here, by name. Raises ConductorError for a public half that is damaged or cannot be read."""
    folder = _folder() / "keys"
    try:
        found = [] if _absent(folder) else [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".key")]
    except OSError as error:
        raise ConductorError(f"{folder}: cannot be read ({error.strerror})") from error
    return [Key(path.stem, _id_of(read_public(path.with_suffix(".pub"))), path.with_suffix(".pub")) for path in found]


def _hex_of(public: Ed25519PublicKey) -> str:
    return public.public_bytes_raw().hex()


def _id_of(public: Ed25519PublicKey) -> str:
    return key_id(_hex_of(public))


def read_public(path: Path) -> Ed25519PublicKey:
    """A public key file (PEM). Raises ConductorError for anything else, a private key among them."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path, 0, ""))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConductorError(f"{path}: is no public key in PEM; `conductor keys new NAME` writes NAME.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConductorError(f"{path}: is a key of another kind; Ed25519 is needed")
    return key


def private_key(name: str) -> Ed25519PrivateKey:
    """One's own key of this name. Raises ConductorError if it is missing, damaged, or others may read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = _folder() / "keys" / f"{_checked(name)}.key"
    if _absent(path):
        raise ConductorError(f"key {name!r} does not lie in {path.parent}; `conductor keys new {name}` makes it")
    content = _read(path, stat.S_IRWXG | stat.S_IRWXO, f"others may read this private key; chmod 600 {path}")
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConductorError(f"{path}: is no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConductorError(f"{path}: is a key of another kind; Ed25519 is needed")
    return key


def trust_key(path: Path, name: str | None = None) -> Key:
    """Trust a public key from now on, under `name` (the file's, if None).

    Raises:
        ConductorError: no public key, or its name stands for another key already.
    """
    public = _hex_of(read_public(path))
    key, name = key_id(public), _checked(path.stem if name is None else name)
    with _alone():
        keys = _read_store()
        if any(known.name == name and other != key for other, known in keys.items()):
            raise ConductorError(f"{name}: another key is trusted under this name; `--name` gives this one another")
        _write_store({**keys, key: TrustedKey(name=name, public=public)})
    return Key(name, key, path)


def distrust_key(which: str) -> tuple[str, TrustedKey]:
    """Trust a key no longer; `which` is its name or id. Returns its id and what was known. Raises ConductorError."""
    _read_store()  # a folder that is named and is not there is a mistake, and none to be made
    with _alone():
        keys = _read_store()
        for key, known in keys.items():
            if which in (key, known.name):
                _write_store({other: value for other, value in keys.items() if other != key})
                return key, known
    raise ConductorError(f"{which}: no key is trusted under this name or id; `conductor keys list` shows those that are")


def sign(manifest: bytes, name: str) -> bytes:
    """`manifest.sig` for these bytes, by one's own key of this name. Raises ConductorError."""
    private = private_key(name)
    signature = private.sign(CONTEXT + manifest).hex()
    return canonical({"format": "fq.signature/1", "key": _id_of(private.public_key()), "signature": signature})
