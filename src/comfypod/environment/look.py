"""What a layer has beside the image's packages: added, in their place, or removed from view."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from comfypod.environment import protect
from comfypod.environment.dists import among
from comfypod.environment.layer import is_stub, read_marker, remember

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from comfypod.environment.dists import Dist
    from comfypod.environment.layer import Layer

State = Literal["added", "replaced", "hidden", "refused"]


@dataclass(frozen=True, slots=True)
class Change:
    """How one distribution differs from the image's.

    `added`: the image has none. `replaced`: the layer's goes before the image's. `refused`: it would, and may not.
    `hidden`: an installer has removed it, which uncovers the image's, though pip and uv take it for missing.
    """

    name: str
    state: State
    version: str
    image: str


@dataclass(frozen=True, slots=True)
class Look:
    """The changes of a layer, sorted by name."""

    changes: tuple[Change, ...] = ()

    @property
    def rows(self) -> list[dict[str, str]]:
        """The changes as `/status` shows them."""
        return [
            {"name": each.name, "state": each.state, "version": each.version, "image": each.image}
            for each in self.changes
        ]

    @property
    def summary(self) -> str:
        """The counts that are not 0, as the end of a sentence."""
        counts = {state: sum(each.state == state for each in self.changes) for state in ("added", "replaced")}
        said = [f"{count} {state}" for state, count in counts.items() if count]
        return f", {' and '.join(said)} on the volume" if said else ""


def compare(image: Mapping[str, Dist], entries: Collection[str], stubs: frozenset[Dist], *, whole: bool) -> Look:
    """Compare what a layer's folder has with what the image has. Pure.

    Without a `whole` set of `stubs`, which of the image's distributions was removed is not known.
    """
    known = {**protect.aliases(image), **image}
    found = among(entries)
    own = [dist for dist in found if dist not in stubs]
    changes = [Change(each.name, _state(image, each), each.version, _version(known, each.name)) for each in own]
    changes += [Change(name, "refused", "", _version(known, name)) for name in _copied(entries, own) if name in known]
    if whole:
        missing = known.keys() - {dist.name for dist in found}
        changes += [Change(name, "hidden", "", known[name].version) for name in missing]
    return Look(tuple(sorted(changes, key=lambda each: (each.name, each.version))))


def _state(image: Mapping[str, Dist], dist: Dist) -> State:
    if not protect.is_allowed(image, dist):
        return "refused"
    return "replaced" if dist.name in image else "added"


def _version(known: Mapping[str, Dist], name: str) -> str:
    return known[name].version if name in known else ""


def _copied(entries: Collection[str], own: Collection[Dist]) -> list[str]:
    """Return what stands before a protected module of the image though no distribution has brought it."""
    names = {dist.name for dist in own}
    there = {module: name for module, name in protect.MODULES.items() if {module, f"{module}.py"} & {*entries}}
    families = {name: next((f for f in protect.FAMILIES if name in f), (name,)) for name in there.values()}
    return [name for name, family in families.items() if not names & {*family}]


def examine(layer: Layer, *, guarded: bool = False) -> Look:
    """Look at a layer as it is; with `guarded` only at what may be refused, which reads fewer files.

    Raises:
        OSError: the layer cannot be read.
    """
    entries = os.listdir(layer.site)
    asked = (dist for dist in among(entries) if not guarded or protect.is_guarded(dist.name))
    stubs = frozenset(dist for dist in asked if is_stub(layer, dist))
    whole = not guarded and bool((read_marker(layer) or {}).get("stubs"))
    return compare(layer.image_dists, entries, stubs, whole=whole)


def look(layer: Layer, *, note: bool = False) -> Look:
    """Return what was noted of a layer where nothing was installed or removed since then, else look, and `note` it.

    For show alone: anything in the pod may have written what is noted.

    Raises:
        OSError: the layer cannot be read, or its marker not written.
    """
    now, marker = layer.site.stat().st_mtime_ns, read_marker(layer) or {}
    if marker.get("seen") == now and (known := _decode(marker.get("changes"))) is not None:
        return known
    looked = examine(layer)
    if note:
        remember(layer, seen=now, changes=looked.rows)
    return looked


def _decode(rows: Any) -> Look | None:
    try:
        found = tuple(Change(row["name"], row["state"], row["version"], row["image"]) for row in rows)
    except (TypeError, KeyError):
        return None
    words = (word for each in found for word in (each.name, each.state, each.version, each.image))
    return Look(found) if all(isinstance(word, str) for word in words) else None
