"""`nodes.json`: where each node that comfypod installs came from, which commit it is, and how that went."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from comfypod.files import read_small, write_atomic
from comfypod.wish import is_name

if TYPE_CHECKING:
    from comfypod.wish import Wish
    from comfypod.workspace.layout import Layout

SCHEMA = 1
# `placing`: it is whole, checked, and waits beside its place; what is killed from there on is finished.
State = Literal["installing", "placing", "installed", "failed", "incomplete"]
_STATES = frozenset({"installing", "placing", "installed", "failed", "incomplete"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One node: what was asked for, the commit or version that it is, its contents' digest, and how it stands.

    `archive` is the SHA-256 of what the registry gave, `requirements` that of its requirements. `refused` is the wish
    (and the layer) that has failed and is not worth another try at each boot. `replaces` says that a folder of ours
    gives way.
    """

    state: State
    reason: str = ""
    git: str = ""
    ref: str = ""
    registry: str = ""
    asked: str = ""
    commit: str = ""
    version: str = ""
    digest: str = ""
    archive: str = ""
    requirements: str = ""
    refused: str = ""
    when: str = ""
    replaces: bool = False

    def is_of(self, wish: Wish) -> bool:
        """Whether it came from where a wish points."""
        return (self.git, self.ref, self.registry, self.asked) == (wish.git, wish.ref, wish.registry, wish.version)

    def to(self, state: State, reason: str = "", **more: Any) -> Entry:
        """Return the same in another state."""
        return replace(self, state=state, reason=reason, **more)


@dataclass(frozen=True)
class Record:
    """Entries by name, and the SHA-256 of every archive of the registry ever fetched, by `ID@VERSION`."""

    nodes: dict[str, Entry] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)


def asked_by(wish: Wish, state: State) -> Entry:
    """Return a new entry for a wish."""
    return Entry(state, git=wish.git, ref=wish.ref, registry=wish.registry, asked=wish.version)


def read(layout: Layout) -> Record:
    """Return the record; what makes no sense in it is left out, as anything in the pod may have written it."""
    try:
        body: Any = json.loads(read_small(layout.nodes))
        nodes = {name: entry for name, row in dict(body["nodes"]).items() if (entry := _entry(name, row)) is not None}
        archives = {key: text for key, text in dict(body.get("archives") or {}).items() if isinstance(text, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Record()
    return Record(nodes, archives)


def write(layout: Layout, record: Record) -> None:
    """Replace the record.

    Raises:
        OSError: the disk failed.
    """
    nodes = {name: _shortened(asdict(entry)) for name, entry in sorted(record.nodes.items())}
    body = {"schema": SCHEMA, "nodes": nodes, "archives": record.archives}
    write_atomic(layout.nodes, (json.dumps(body, indent=1) + "\n").encode())


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value}


def _entry(name: str, row: Any) -> Entry | None:
    if not is_name(name) or not isinstance(row, dict) or row.get("state") not in _STATES:
        return None
    known = {each.name: bool if str(each.type) == "bool" else str for each in fields(Entry)}
    values = {key: value for key, value in row.items() if key in known}
    return Entry(**values) if all(type(value) is known[key] for key, value in values.items()) else None
