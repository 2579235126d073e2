"""Carrying a plan out: contents that are here already get another name, the rest comes through the download door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.copying import share_file
from comfypod.download import place, run
from comfypod.download.address import shown
from comfypod.download.order import Order
from comfypod.errors import ComfypodError
from comfypod.files import make_folder, sha256_file, storage_errors
from comfypod.models import notes, record, source
from comfypod.models.look import check_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from comfypod.download.order import News
    from comfypod.models.file import ModelFile
    from comfypod.models.site import Site


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went with one file; `shared` says that its contents were here already under another name."""

    file: ModelFile
    error: ComfypodError | None = None
    shared: bool = False


def pull(
    files: Sequence[ModelFile],
    site: Site,
    watch: Callable[[int, int], None],
    tell: Callable[[ModelFile, str, str], None] = lambda *_: None,
) -> list[Outcome]:
    """Fetch files that are nowhere; contents that several want are fetched once. The failure of one is its own.

    `watch` is told the bytes so far and in all, as far as that is known; `tell`, that a file has `failed`, or is
    `waiting` for its host, and why, when that happens. It is noted on the volume as well.
    """
    notes.forget(site.layout, (file.place for file in files))
    told = _Told(files, site, tell)
    outcomes = _pull(files, site, watch, told)
    for outcome in outcomes:
        told.end(outcome.file, outcome.error)
    return outcomes


def _pull(files: Sequence[ModelFile], site: Site, watch: Callable[[int, int], None], told: _Told) -> list[Outcome]:
    here = {
        entry.sha256: site.places.live / place for place, entry in record.ours(site.layout, site.places.live).items()
    }
    fresh: dict[str, ModelFile] = {}
    for file in files:
        if file.sha256 not in here:
            fresh.setdefault(file.sha256 or file.place, file)
    outcomes = _fetched(list(fresh.values()), site, watch, told)
    tried = {done.file.url for done in outcomes}
    known: dict[str, Path | ComfypodError] = {**here}
    known |= {done.file.sha256: done.error or site.path(done.file) for done in outcomes}
    others = [file for file in files if fresh.get(file.sha256 or file.place) is not file]
    # Another address may have what the first one had not.
    left = [file for file in others if file.url not in tried and isinstance(known[file.sha256], ComfypodError)]
    if left:
        outcomes += _pull(left, site, watch, told)
    return outcomes + [
        Outcome(file, _shared(known[file.sha256], file, site), shared=True) for file in others if file not in left
    ]


def _fetched(files: list[ModelFile], site: Site, watch: Callable[[int, int], None], told: _Told) -> list[Outcome]:
    orders = [_order(file, site) for file in files]
    counted = _Counted(watch, orders)
    errors = run.fetch(orders, site.layout.downloads, site.terms, watch=counted, tell=told)
    return [Outcome(file, error) for file, error in zip(files, errors, strict=True)]


class _Told:
    """Tells and notes once why a file is not there, and once that it waits, until something comes of it."""

    def __init__(self, files: Sequence[ModelFile], site: Site, tell: Callable[[ModelFile, str, str], None]) -> None:
        self._files, self._site, self._tell = files, site, tell
        self._over, self._waiting = set[str](), set[str]()

    def __call__(self, order: Order, news: News) -> None:
        """Take what is new of an order: who wants the same from the same address has it as little."""
        file = next(file for file in self._files if self._site.path(file) == order.target)
        if news.state == "waiting" and news.error is not None:
            self._wait(file, news, news.error)
            return
        if file.place in self._waiting:
            self._waiting.remove(file.place)
            notes.forget(self._site.layout, [file.place])
        alike = [each for each in self._files if file.sha256 and (each.sha256, each.url) == (file.sha256, file.url)]
        for each in dict.fromkeys((file, *alike)):
            self.end(each, news.error)

    def _wait(self, file: ModelFile, news: News, error: ComfypodError) -> None:
        how_long = f"waits {news.seconds:.0f} s and is tried again, with pauses of {news.longest:.0f} s in all"
        notes.write(self._site.layout, file, "waiting", f"{how_long}: {error.message}", news.seconds)
        if file.place not in self._waiting:
            self._waiting.add(file.place)
            self._tell(file, "waiting", f"{how_long}: {error.message}")

    def end(self, file: ModelFile, error: ComfypodError | None) -> None:
        """Tell how it ended, where that is not known yet and it is not well."""
        if error is not None and file.place not in self._over:
            self._over.add(file.place)
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
            notes.write(self._site.layout, file, "failed", reason)
            self._tell(file, "failed", reason)


class _Counted:
    """Adds up the bytes of all orders; what a resumed one has already counts as done."""

    def __init__(self, watch: Callable[[int, int], None], orders: Iterable[Order]) -> None:
        self._watch = watch
        self._so_far = {order.target: (0, order.size) for order in orders}

    def __call__(self, order: Order, so_far: int, total: int) -> None:
        self._so_far[order.target] = so_far, max(total, order.size)
        self._watch(sum(so_far for so_far, _ in self._so_far.values()), sum(each for _, each in self._so_far.values()))


def _order(file: ModelFile, site: Site) -> Order:
    """Return the order for a file; its entry is written just before it takes its place."""
    looks_right = check_for(file)

    def check(path: Path) -> None:
        looks_right(path)
        _note(file, path, site)

    address = source.address(source.of_text(file.url), site.endpoints)
    return Order(address, site.path(file), file.sha256, file.size, check, site.places.live)


def _note(file: ModelFile, path: Path, site: Site) -> None:
    with storage_errors(f"cannot write down where {file.name} came from"):
        facts = path.stat()
        entry = record.Entry(
            shown(file.url), file.sha256 or sha256_file(path), facts.st_size, facts.st_mtime_ns, file.pack or file.name
        )
        record.note(site.layout, file.place, entry)


def _shared(donor: Path | ComfypodError, file: ModelFile, site: Site) -> ComfypodError | None:
    """Give what is here a second name; where it could not be fetched, it is not here either."""
    if isinstance(donor, ComfypodError):
        return donor
    try:
        place.check(_order(file, site))
        make_folder(site.path(file).parent)
        _note(file, donor, site)
        with storage_errors(f"cannot put {file.name} into its place"):
            share_file(donor, site.path(file))
    except ComfypodError as error:
        return error
    return None
