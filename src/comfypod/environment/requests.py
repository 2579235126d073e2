"""`requests.json`: which packages were asked for, and by whom. A layer is made again from it, whatever the image.

It holds requests and not results: versions are noted as what was there last, and are a preference only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from comfypod.environment import dists
from comfypod.environment.demands import name_of
from comfypod.environment.layer import read_marker, remember
from comfypod.files import read_small, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from comfypod.environment.dists import Dist
    from comfypod.environment.layer import Layer
    from comfypod.workspace.layout import Layout

USER = "user"


@dataclass(frozen=True, slots=True)
class Request:
    """One line as it was asked for, by whom (`user`, `node:NAME`); `name` is the line itself where it names nothing."""

    who: str
    name: str
    line: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the user has done to a layer since the last look, by name."""

    found: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def asked(who: str, lines: Iterable[str]) -> tuple[Request, ...]:
    """Return the requests of one party."""
    return tuple(Request(who, name_of(line), line) for line in lines)


def read(layout: Layout) -> tuple[Request, ...]:
    """Return what was asked for; what makes no sense is left out, as anything in the pod may have written it."""
    try:
        rows: Any = json.loads(read_small(layout.requests))["requests"]
        rows = rows if isinstance(rows, list) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(row for row in map(from_row, rows) if row is not None)


def from_row(row: Any) -> Request | None:
    """Return what a row of a record says, None when it makes no sense."""
    try:
        found = Request(**row)
    except TypeError:
        return None
    words = (found.who, found.name, found.line, found.version)
    sound = all(isinstance(word, str) and word.isprintable() for word in words)
    return found if sound and found.who and found.line else None


def write(layout: Layout, requests: Iterable[Request]) -> None:
    """Replace the record durably, sorted; the same requests are not written again.

    Raises:
        OSError: the disk failed.
    """
    rows = sorted(set(requests), key=lambda each: (each.who, each.name, each.line))
    if tuple(rows) != read(layout):
        body = {"schema": 1, "requests": [asdict(row) for row in rows]}
        layout.requests.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(layout.requests, (json.dumps(body, indent=1) + "\n").encode())


def add(layout: Layout, new: Iterable[Request]) -> None:
    """Add requests; one of the same party for the same name takes the place of the one before."""
    rows = {(row.who, row.name): row for row in read(layout)}
    for row in (_portable(layout, each) for each in new):
        known = rows.get((row.who, row.name))
        rows[row.who, row.name] = row if row.version or known is None else replace(row, version=known.version)
    write(layout, rows.values())


def _portable(layout: Layout, row: Request) -> Request:
    if not row.line.startswith("-e /"):
        return row
    line = f"-e {_inside(layout, Path(row.line[3:]))}"
    return replace(row, line=line, name=line if row.name == row.line else row.name)


def forget(layout: Layout, who: str, names: Iterable[str] | None = None) -> None:
    """Forget what a party has asked for: these names, or all of it."""
    chosen = None if names is None else set(names)
    write(layout, (row for row in read(layout) if row.who != who or (chosen is not None and row.name not in chosen)))


def added(layer: Layer) -> dict[str, Dist]:
    """Return the distributions that a layer has beyond the image's; no file is read."""
    stubs = {dist.info for dist in layer.known.values()}
    return {name: dist for name, dist in dists.scan(layer.site).items() if dist.info not in stubs}


def note_found(layer: Layer, layout: Layout) -> Noted:
    """Turn what was installed from a terminal, by a script or by ComfyUI-Manager into requests of the user.

    What the user had asked for and has uninstalled since the last look is forgotten. Where nothing was installed since
    then this reads the layer's marker and looks at one folder.

    Raises:
        OSError: the disk failed.
    """
    return _note(layer, layout, layer.site, partial(added, layer))


def note_left(other: Layer, layout: Layout) -> None:
    """Do the same for a layer of another image, in which people may have installed until that image's last minute.

    What it had before that is not asked for again: it may have been uninstalled under this image.

    Raises:
        OSError: the disk failed.
    """
    from comfypod.environment.repack import own_dists

    for site in other.sites:
        _note(other, layout, site, partial(own_dists, site), left=True)


def _note(
    layer: Layer, layout: Layout, site: Path, look: Callable[[], dict[str, Dist]], *, left: bool = False
) -> Noted:
    marker = read_marker(layer)
    time = site.stat().st_mtime_ns
    if marker is None or marker.get("site") == time:
        return Noted()
    here = look()
    before: Any = marker.get("found")
    before = before if isinstance(before, dict) else {}
    known = read(layout)
    mine = {row.name for row in known if row.who == USER}
    gone = tuple(sorted(name for name in mine if name in before and name not in here))
    fresh = [
        Request(USER, dist.name, _line(layout, site, dist), dist.version)
        for dist in here.values()
        if dists.is_requested(site, dist)
    ]
    known_names = {*mine, *(before if left else ())}
    new = {row.name: row for row in fresh if row.name not in known_names}
    kept = [row for row in known if not (row.who == USER and row.name in gone)]
    write(layout, (replace(row, version=_version(here, row)) for row in (*kept, *new.values())))
    # Where the layer is stays as it was said: one of another image has not followed its volume yet.
    place = {name: marker[name] for name in ("root", "image") if name in marker}
    remember(layer, **place, site=time, found={name: dist.version for name, dist in here.items()})
    return Noted(tuple(sorted(new)), gone)


def _version(here: dict[str, Dist], row: Request) -> str:
    return here[row.name].version if row.name in here else row.version


def _line(layout: Layout, site: Path, dist: Dist) -> str:
    """Return what gives a distribution again: where it came from, when that is no index (PEP 610)."""
    try:
        body: Any = json.loads(read_small(site / dist.info / "direct_url.json"))
        url, vcs, folder = str(body["url"]), body.get("vcs_info"), body.get("dir_info")
        if folder is not None and folder.get("editable"):
            return f"-e {_inside(layout, Path(unquote(url.removeprefix('file://'))))}"
        if vcs is not None:
            url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
        within = f"#subdirectory={body['subdirectory']}" if body.get("subdirectory") else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return dist.name
    return f"{dist.name} @ {url}{within}"


def _inside(layout: Layout, path: Path) -> str:
    """Write a path relative to the workspace where it lies in it: that may be mounted elsewhere tomorrow."""
    return f"./{path.relative_to(layout.root)}" if path.is_relative_to(layout.root) else str(path)
