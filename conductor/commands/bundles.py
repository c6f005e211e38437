"""`conductor verify`, `sign`, `pack` and `keys ...`: look after bundles, and after the keys that vouch for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from conductor import trust
from conductor.bundle import Bundle, load_bundle, pack_bundle, sign_bundle
from conductor.errors import printable
from conductor.trust import Trust, read_trust

if TYPE_CHECKING:
    from conductor.commands import Commands


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a command that opens bundles says what it asks of them."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--require-signature",
        action="store_true",
        help="refuse a bundle that no trusted key signed (the default once `conductor keys trust` has been used)",
    )
    group.add_argument(
        "--allow-unsigned", action="store_true", help="let in a bundle that no trusted key signed; this is recorded"
    )


def trust_of(arguments: argparse.Namespace) -> Trust:
    """What the arguments of `add_trust` ask. Raises ConductorError for a damaged trust store."""
    return read_trust(require=arguments.require_signature, allow_unsigned=arguments.allow_unsigned)


def register(commands: Commands) -> None:
    """Adds `verify`, `sign`, `pack` and `keys` with its actions."""
    verify = commands.add_parser("verify", help="check a bundle as a run does before it uses one, and say what it is")
    verify.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or zip")
    add_trust(verify)
    verify.set_defaults(handle=_verify)
    sign = commands.add_parser("sign", help="check a bundle and sign it with a key of yours")
    sign.add_argument("bundle", metavar="DIR", help="a bundle's folder")
    sign.add_argument("--key", metavar="NAME", required=True, help="which key; `conductor keys new NAME` makes one")
    sign.set_defaults(handle=_sign)
    pack = commands.add_parser("pack", help="check a bundle and write it as one file")
    pack.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or zip")
    pack.add_argument("out", metavar="ZIP", help="the file to make")
    pack.set_defaults(handle=_pack)
    keys = commands.add_parser("keys", help="look after keys: yours, which sign, and those that are trusted")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a pair of keys")
    new.add_argument("name", metavar="NAME")
    new.set_defaults(handle=_new)
    actions.add_parser("list", help="show your keys and those that are trusted").set_defaults(handle=_list)
    add = actions.add_parser("trust", help="trust a public key; from then on only signed bundles are run")
    add.add_argument("file", metavar="FILE", help="somebody's NAME.pub")
    add.add_argument("--name", metavar="NAME", help="under which name (default: the file's)")
    add.set_defaults(handle=_trust)
    remove = actions.add_parser("distrust", help="trust a key no longer")
    remove.add_argument("key", metavar="KEY", help="its name or id")
    remove.set_defaults(handle=_distrust)


def _say(console: Console, text: str) -> None:
    for line in text.splitlines():
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _describe(bundle: Bundle) -> str:
    about, ranges = bundle.manifest, bundle.manifest.ranges
    seen = "not measured" if ranges is None else f"{ranges.decisions} decisions, {len(ranges.columns)} of 512 columns live"
    return (
        f"{bundle.path}: a whole bundle, {bundle.signature.words()}\n"
        f"sha256 of its manifest: {bundle.digest}\n"
        f"network: {', '.join(str(value) for value in about.network.model_dump().values())}; exposure {about.exposure}\n"
        f"levels: {', '.join(about.levels)}; rule to fall back on: {about.rule.name}; ranges: {seen}"
    )


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    _say(console, _describe(load_bundle(arguments.bundle, trust_of(arguments))))
    return 0


def _sign(arguments: argparse.Namespace, console: Console) -> int:
    bundle = sign_bundle(arguments.bundle, arguments.key)
    _say(console, f"{bundle.path}/{trust.SIGNATURE}: {arguments.key} vouches for the bundle {bundle.digest}")
    return 0


def _pack(arguments: argparse.Namespace, console: Console) -> int:
    bundle = pack_bundle(arguments.bundle, arguments.out)
    _say(console, f"{arguments.out}: the bundle {bundle.digest}")
    return 0


def _new(arguments: argparse.Namespace, console: Console) -> int:
    made = trust.new_key(arguments.name)
    _say(console, f"{made.name}: key {made.key}; give others {made.public}, and they can `conductor keys trust` it")
    return 0


def _list(arguments: argparse.Namespace, console: Console) -> int:
    own, trusted = trust.own_keys(), read_trust().keys
    for key in own:
        _say(console, f"yours    {key.key}  {key.name}  {key.public}")
    for number, known in sorted(trusted.items(), key=lambda item: item[1].name):
        _say(console, f"trusted  {number}  {known.name}")
    if not trusted:
        _say(console, "no key is trusted, so bundles need no signature; `conductor keys trust FILE` changes that")
    return 0


def _trust(arguments: argparse.Namespace, console: Console) -> int:
    known = trust.trust_key(Path(arguments.file), arguments.name)
    _say(console, f"{known.name}: key {known.key} is trusted; bundles that no trusted key signed are refused from now on")
    return 0


def _distrust(arguments: argparse.Namespace, console: Console) -> int:
    key, known = trust.distrust_key(arguments.key)
    left = len(read_trust().keys)
    rest = f"{left} are left" if left else "none is left, so bundles need no signature any more"
    _say(console, f"{known.name}: key {key} is trusted no longer; {rest}")
    return 0
