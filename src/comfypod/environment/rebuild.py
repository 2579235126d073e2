"""A layer under a new key, made again from what was asked for; the one before stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.environment import layer as layers
from comfypod.environment import repack, requests
from comfypod.environment.demands import Wanted, parse
from comfypod.environment.install import Installed, install
from comfypod.environment.layer import Layer, read_marker
from comfypod.environment.resolve import Sources
from comfypod.errors import InstallError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from comfypod.environment.requests import Request
    from comfypod.errors import Problem
    from comfypod.workspace.layout import Layout

_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a layer was given, as exact requirements, and which requests are missing, each with the reason.

    `aside` is what came with it, may not stay and was set aside.
    """

    installed: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    aside: tuple[Problem, ...] = ()


def missing(layer: Layer) -> list[tuple[str, str]]:
    """Return which requests a layer lacks, each with the reason, as it was noted last."""
    rows = (read_marker(layer) or {}).get("missing")
    found = [tuple(row) for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    return [(row[0], row[1]) for row in found if len(row) == 2 and all(isinstance(word, str) for word in row)]


def rebuild(
    layer: Layer,
    layout: Layout,
    previous: Layer | None,
    *,
    network: bool,
    environ: Mapping[str, str],
    seconds: float = _SECONDS,
    tick: Callable[[], None] | None = None,
) -> Rebuilt:
    """Give a layer everything that is in the record of requests; one that is not complete is made first.

    Packages come from the layer before, uv's cache and, with a network, the index. The layer counts only at the end;
    one that was killed is made again. A layer that is complete is given what it lacks.

    Raises:
        InstallError: the image has no environment.
        StorageError: the disk is full.
        BusyError: an install is under way.
        OSError: the disk failed.
    """
    if read_marker(layer) is None:
        layers.lay_out(layer)
    wheels = layer.root / "wheels"
    files.remove_tree(wheels)
    wheels.mkdir()
    try:
        lacking = _wheels_of(previous, layer, wheels) if previous is not None else {}
        sources = Sources(network, wheels, _preferred(previous, layer) if previous is not None else ())
        rows = sorted(requests.read(layout), key=lambda row: row.who != requests.USER)
        work = _Work(layer, layout, sources, environ, seconds, tick)
        result = _replay(work, rows, lacking)
    finally:
        files.remove_tree(wheels)
    layers.remember(layer, missing=[list(each) for each in result.missing])
    requests.note_found(layer, layout)
    return result


@dataclass(frozen=True, slots=True)
class _Work:
    """What every install of one rebuild shares."""

    layer: Layer
    layout: Layout
    sources: Sources
    environ: Mapping[str, str]
    seconds: float
    tick: Callable[[], None] | None

    def install(self, wanted: Sequence[Wanted]) -> Installed:
        return install(
            self.layer, self.layout, wanted, network=self.sources.network, environ=self.environ,
            seconds=self.seconds, tick=self.tick, note=False, sources=self.sources,
        )  # fmt: skip


def _replay(work: _Work, rows: Sequence[Request], lacking: Mapping[str, str]) -> Rebuilt:
    """Install each request as a party of its own, so that one that cannot be had is missing alone."""
    parties = {str(number): row for number, row in enumerate(rows) if _is_needed(work.layer, row)}
    options = tuple(dict.fromkeys(row.line for row in rows if row.line.startswith("--")))
    wanted = [Wanted(who, (*options, _line(work.layout, row.line))) for who, row in parties.items()]
    done = work.install(wanted)
    failed = {failure.who: failure.reason for failure in done.failed}
    # What came from a URL that cannot be had is taken as it was.
    at_hand = {who: row for who, row in parties.items() if who in failed and _was_there(row)}
    again = [Wanted(who, (f"{row.name}=={row.version}",)) for who, row in at_hand.items()]
    more = work.install(again) if again else Installed()
    kept = {party.who for party in again} - {failure.who for failure in more.failed}
    missing = [
        (parties[who].line, lacking.get(parties[who].name) or why) for who, why in failed.items() if who not in kept
    ]
    return Rebuilt((*done.added, *more.added), tuple(missing), (*done.aside, *more.aside))


def _is_needed(layer: Layer, row: Request) -> bool:
    """Whether a request is for a package, and for one that the image does not have by now."""
    if row.line.startswith("--"):
        return False
    demand, there = parse(row.line), layer.image_dists.get(row.name)
    if demand is None or there is None:
        return True
    return demand.url is None and not demand.specifier.contains(there.version, prereleases=True)


def _was_there(row: Request) -> bool:
    """Whether a request names a place, and what came from it has been installed by its name and version."""
    return bool(row.version) and row.name != row.line and (row.line.startswith("-e ") or " @ " in row.line)


def _line(layout: Layout, line: str) -> str:
    """Return a request with a folder of the workspace where that is now."""
    return f"-e {layout.root / line.removeprefix('-e ./')}" if line.startswith("-e ./") else line


def _preferred(previous: Layer, layer: Layer) -> tuple[str, ...]:
    """Return the versions that were there, but of what the image has now."""
    own = [repack.own_dists(site) for site in previous.sites]
    return tuple(str(dist) for found in own for dist in found.values() if dist.name not in layer.image_dists)


def _wheels_of(previous: Layer, layer: Layer, folder: Path) -> dict[str, str]:
    """Write wheels of what the layer before has; return why the others do not go over, by name."""
    python = layer.image_site.parent.name.removeprefix("python")
    lacking: dict[str, str] = {}
    for site in previous.sites:
        for name, dist in repack.own_dists(site).items():
            try:
                repack.repack(site, dist, folder, python)
            except InstallError as error:
                lacking[name] = error.message
    return lacking
