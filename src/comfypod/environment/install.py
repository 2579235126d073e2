"""Installing into a layer as a transaction: all together where that works, and else all but the culprits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.environment import checks, demands, requests, transaction
from comfypod.environment import layer as layers
from comfypod.environment.demands import Refusal, Wanted
from comfypod.environment.denied import load
from comfypod.environment.resolve import Installer, Sources
from comfypod.environment.safety import clean
from comfypod.environment.transaction import recover
from comfypod.errors import InstallError, IntegrityError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from comfypod.environment.demands import Image
    from comfypod.environment.layer import Layer
    from comfypod.errors import Problem
    from comfypod.workspace.layout import Layout

__all__ = ["Failure", "Installed", "Refusal", "Wanted", "install", "recover"]

_SECONDS = 3600.0
# What is one party's fault; a disk that is full is everybody's.
_THEIRS = (InstallError, SourceError, IntegrityError)


@dataclass(frozen=True, slots=True)
class Failure:
    """A party whose requirements cannot be had; nothing was installed for it."""

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Installed:
    """What an install has come to: exact requirements that were added, demands that were refused, who has failed.

    `aside` is what may not stay in the layer and was set aside, before it or with it.
    """

    added: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    failed: tuple[Failure, ...] = ()
    aside: tuple[Problem, ...] = ()


def install(
    layer: Layer,
    layout: Layout,
    wanted: Sequence[Wanted],
    *,
    network: bool,
    environ: Mapping[str, str],
    seconds: float = _SECONDS,
    tick: Callable[[], None] | None = None,
    note: bool = True,
    sources: Sources | None = None,
) -> Installed:
    """Give a layer what several parties want, and note their requests.

    What a party wants of packages that stay as the image has them is refused, and the rest of it installed. A party
    whose requirements cannot be had together with those of the parties before it fails alone. Whatever ends this, the
    layer is afterwards as it was before or as it shall be (`recover`). With `note` false no request is noted; `sources`
    says what else than the network there is.

    Raises:
        BusyError: another install is under way.
        HostError: uv is missing.
        StorageError: the disk is full.
        OSError: the disk failed.
    """
    if wanted:
        layers.put_stubs(layer)
    image = demands.image_of(layer.image_dists, layer.image_site.parent.name.removeprefix("python"))
    sifted = [demands.granted(each, image) for each in wanted]
    refused = [refusal for _, refusals in sifted for refusal in refusals]
    with transaction.alone(layer) as held:
        uv = Installer(layer, layout.cache, sources or Sources(network), environ, seconds, tick, held)
        transaction.settle(layer, layout)
        aside = clean(layer, layout) if layers.read_marker(layer) is not None else ()
        job = _Job(layer, layout, uv, image, note, [], refused)
        try:
            had, unresolved = _admit([party for party, _ in sifted], job.resolve)
            _, broken = _admit(had, job.apply)
        finally:
            transaction.clear(layer)
        if job.added:
            aside += clean(layer, layout)
    if job.added:
        requests.note_found(layer, layout)
    return Installed(tuple(job.added), tuple(dict.fromkeys(job.refused)), (*unresolved, *broken), aside)


def _admit(
    parties: Sequence[Wanted], attempt: Callable[[tuple[Wanted, ...]], None], before: tuple[Wanted, ...] = ()
) -> tuple[tuple[Wanted, ...], tuple[Failure, ...]]:
    """Return the parties that an attempt succeeds for together, and the others; the first are favoured.

    One attempt where all is well; otherwise halves are tried on top of what has succeeded.
    """
    if not parties:
        return before, ()
    try:
        attempt((*before, *parties))
    except _THEIRS as error:
        if len(parties) == 1:
            return before, (Failure(parties[0].who, error.message),)
    else:
        return (*before, *parties), ()
    middle = len(parties) // 2
    before, first = _admit(parties[:middle], attempt, before)
    before, second = _admit(parties[middle:], attempt, before)
    return before, (*first, *second)


@dataclass(slots=True)
class _Job:
    """One install while it runs: the plan that was made last, and what has come of it."""

    layer: Layer
    layout: Layout
    uv: Installer
    image: Image
    note: bool
    added: list[str]
    refused: list[Refusal]
    plan: tuple[tuple[Wanted, ...], tuple[str, ...]] = ((), ())

    def resolve(self, parties: tuple[Wanted, ...]) -> None:
        folder = transaction.begin(self.layer)
        self.plan = (parties, self.uv.plan(parties, folder))

    def apply(self, parties: tuple[Wanted, ...]) -> None:
        """Install what parties want, check it and put it in place; nothing is to be done in most cases."""
        if self.plan[0] != parties:
            self.resolve(parties)
        exact = self.plan[1]
        noted = parties if self.note else ()
        asked = tuple(row for party in noted for row in requests.asked(party.who, party.lines))
        if not exact:
            requests.add(self.layout, asked)
            return
        folder, site = transaction.begin(self.layer), transaction.site_of(self.layer)
        self.uv.fill(transaction.prefix_of(self.layer), exact, parties, folder)
        names = [demands.name_of(spec) for spec in exact if not spec.startswith("-e ")]
        checks.check(self.layer, site, transaction.prefix_of(self.layer), names, load(self.layout.denied)[0])
        checks.unrequest(site)
        self.refused += demands.refused_within(parties, checks.requires(site), self.image)
        transaction.commit(self.layer, self.layout, ", ".join(exact), asked)
        self.added += exact
        self.plan = ((), ())
