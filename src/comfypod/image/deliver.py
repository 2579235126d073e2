"""Runs inside an image build, with comfypod's own environment: trees and models by digest, and the image's facts."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from comfypod.download.order import Order
from comfypod.download.run import fetch
from comfypod.environment import recording
from comfypod.errors import ComfypodError
from comfypod.git import is_commit
from comfypod.image.layer import EPOCH, LayerError, staging
from comfypod.image.network import IN_BUILD, TOKENS
from comfypod.image.sbom import with_system
from comfypod.lock.hosts import hosts
from comfypod.lock.sources import index_url, obtain
from comfypod.log import Console
from comfypod.manifest.values import GitSource, Source
from comfypod.models import source as sources
from comfypod.release import MARK, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USER = "comfypod"
_LARGE = 256 * 1024
USER_ID = 1000
_TOKENS = {variable: f"{IN_BUILD}/{name}" for name, variable in TOKENS.items()}


class TreeFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tree to fetch: what to call it, where it goes, its digest (empty: its commit), where it may come from.

    ComfyUI's has a `release`: boot compares volumes with the digests of its files, which are taken here.
    """

    item: str
    target: str
    digest: str
    sources: tuple[Source, ...]
    release: str = ""


class ModelFacts(msgspec.Struct, frozen=True):
    """A model to fetch; `size` in bytes."""

    item: str
    target: str
    url: str
    sha256: str
    size: int


class StartFacts(msgspec.Struct, frozen=True):
    """A ComfyUI whose start is to be recorded, as `recording.Recorded`, and where its record and its base go."""

    target: str
    base: str
    python: str
    tree: str
    arguments: tuple[str, ...]
    environment: str


def main(argv: Sequence[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(argv)
    console = Console(quiet=False)
    try:
        options.work(options, console)
    except LayerError as error:
        console.line(f"COMFYPOD FAILED {error.item}: {error.reason}")
        return 1
    except OSError as error:
        console.line(f"COMFYPOD FAILED {options.root}: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deliver", description="Put locked things into an image.")
    commands = parser.add_subparsers(required=True)
    for name, work in (("tree", _tree), ("model", _model)):
        command = commands.add_parser(name)
        command.add_argument("--facts", type=Path, required=True)
        command.add_argument("--root", type=Path, default=Path("/"))
        command.add_argument("--large", type=Path, help="where large files that are no code are collected")
        command.set_defaults(work=work)
    record = commands.add_parser("record")
    record.add_argument("--facts", type=Path, required=True)
    record.add_argument("--root", type=Path, default=Path("/"))
    record.add_argument("--packages", action="store_true", help="of the packages alone, without a start")
    record.set_defaults(work=_record)
    facts = commands.add_parser("facts")
    facts.add_argument("--locked", required=True, help="pod.json and sbom, without their endings")
    facts.add_argument("--root", type=Path, default=Path("/"))
    facts.set_defaults(work=_facts)
    return parser


def _tree(options: argparse.Namespace, console: Console) -> None:
    facts = msgspec.json.decode(options.facts.read_bytes(), type=TreeFacts)
    if not facts.digest and not all(_is_pinned(source) for source in facts.sources):
        raise LayerError(facts.item, "the lock names neither its digest nor a commit; run `comfypod lock`")
    # Bytecode that compares itself with its source: people edit nodes.
    with _naming(facts.item), staging(options.root, unchecked=False) as staged:
        place = staged / facts.target.lstrip("/")
        place.parent.mkdir(parents=True)
        scratch = staged.with_name("scratch")
        scratch.mkdir()
        obtain(
            facts.sources, place, digest=facts.digest or None, base=Path("/"), scratch=scratch,
            index=index_url(os.environ), console=console,
        )  # fmt: skip
        if facts.release:
            (place / MARK).write_bytes(describe(place, facts.release).encode())
        if options.large is not None:
            with staging(options.large, unchecked=False) as aside:
                _set_large_aside(staged, aside)


def _set_large_aside(staged: Path, aside: Path) -> None:
    """Move what is large and no code, such as tokenizers and pictures: it rarely changes from version to version."""
    for folder, _, names in os.walk(staged):
        for path in (Path(folder, name) for name in sorted(names)):
            if not path.is_symlink() and path.suffix != ".py" and path.stat().st_size >= _LARGE:
                place = aside / path.relative_to(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)


def _is_pinned(source: Source) -> bool:
    """Whether a source can only give one tree: Git checks a commit's contents as it fetches them."""
    return isinstance(source, GitSource) and is_commit(source.ref)


def _model(options: argparse.Namespace, console: Console) -> None:
    facts = msgspec.json.decode(options.facts.read_bytes(), type=ModelFacts)
    tokens = {f"{name}_FILE": path for name, path in _TOKENS.items() if Path(path).is_file()}
    with _naming(facts.item), staging(options.root, unchecked=False) as staged:
        terms, endpoints = hosts({**os.environ, **tokens})
        address = sources.address(sources.of_text(facts.url), endpoints)
        order = Order(address, staged / facts.target.lstrip("/"), facts.sha256, facts.size)
        order.target.parent.mkdir(parents=True)
        with console.progress(facts.item, facts.size) as advance:
            (problem,) = fetch(
                [order], staged.with_name("downloads"), terms, watch=lambda _, done, __: advance(done),
                cancelled=lambda: False,
            )  # fmt: skip
        if problem is not None:
            raise problem


def _record(options: argparse.Namespace, console: Console) -> None:
    """Record what all starts have in common, or a start; an image without works as well, more slowly on a cold disk."""
    facts = msgspec.json.decode(options.facts.read_bytes(), type=StartFacts)
    with staging(options.root, unchecked=False) as staged:
        if options.packages:
            made = staged / facts.base.lstrip("/")
            made.parent.mkdir(parents=True)
            said = recording.make_base(Path(facts.python), made, os.environ)
        else:
            made = staged / facts.target.lstrip("/")
            base = facts.base if Path(facts.base).exists() else ""
            start = recording.Recorded(facts.python, facts.tree, facts.arguments, facts.environment, base)
            said = recording.make(start, made, os.environ)
            made.with_name(f"{made.name}.lock").unlink(missing_ok=True)
        if said:
            console.line(f"no record could be made: {said}")


@contextlib.contextmanager
def _naming(item: str) -> Iterator[None]:
    """Say in one line which item failed."""
    try:
        yield
    except (ComfypodError, ValueError) as error:
        raise LayerError(item, " ".join(str(error).split())) from error


def _facts(options: argparse.Namespace, _: Console) -> None:
    """Write what the image says about itself, and the names that users expect."""
    root: Path = options.root
    etc = root / "etc" / "comfypod"
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "pod.json").write_bytes(Path(f"{options.locked}.pod.json").read_bytes())
    inventory = Path(f"{options.locked}.cdx.json").read_bytes()
    installed = (root / "var/lib/dpkg/status").read_text("utf-8")
    (etc / "sbom.cdx.json").write_bytes(with_system(inventory, installed))
    _link(root / "ComfyUI", "/opt/comfyui")
    _link(root / "usr/local/bin/comfypod", "/opt/comfypod/bin/comfypod")
    custom_nodes = root / "opt/comfyui/custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    for node in sorted((root / "opt/nodes").glob("*")):
        _link(custom_nodes / node.name, f"/opt/nodes/{node.name}/{node.name}")
    workspace = root / "workspace"
    workspace.mkdir(exist_ok=True)
    # Any user with group 0, as some platforms start containers, may use a workspace that is not a mount.
    workspace.chmod(0o775)
    _add_user(root)
    for path in (
        etc / "pod.json", etc / "sbom.cdx.json", etc, custom_nodes, workspace, root / "usr/local/bin",
        custom_nodes.parent, root / "etc/passwd", root / "etc/group",
    ):  # fmt: skip
        os.utime(path, (EPOCH, EPOCH))


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def _add_user(root: Path) -> None:
    """Give the usual user id a name; `useradd` would write today's date."""
    lines = (
        ("etc/passwd", f"{USER}:x:{USER_ID}:{USER_ID}::/workspace/.comfypod/home:/bin/bash\n"),
        ("etc/group", f"{USER}:x:{USER_ID}:\n"),
    )
    for name, line in lines:
        path = root / name
        text = path.read_text("utf-8")
        if f":{USER_ID}:" in text:
            raise LayerError("the base image", f"it has a user or group {USER_ID} already; use another --base")
        path.write_text(text + line, "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
