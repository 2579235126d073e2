"""Removing models that comfypod has fetched, or begun to, and nothing wants any more; never anything else."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import TYPE_CHECKING

from comfypod.download import left
from comfypod.download.address import shown
from comfypod.files import storage_errors
from comfypod.models import record, source
from comfypod.models.plan import is_named, stays_below

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from comfypod.download.left import Left
    from comfypod.models.file import ModelFile
    from comfypod.models.record import Entry
    from comfypod.models.site import Site


class Wants:
    """What is asked for: files, and `names` of files, which count in any folder.

    Where only its host knows where a file belongs, its address counts.
    """

    def __init__(self, wanted: Iterable[ModelFile], names: Collection[str] = ()) -> None:
        files = tuple(wanted)
        self._places = {file.place for file in files}
        self._addresses = {shown(file.url) for file in files if not is_named(file)}
        self._plain = {source.canonical(file.url).partition("?")[0] for file in files if not is_named(file)} - {""}
        self._names = names

    def has(self, place: str, url: str) -> bool:
        """Whether something asks for what came, or comes, from there to that place."""
        return place in self._places or url in self._addresses or PurePath(place).name in self._names

    def goes_on(self, place: str, url: str) -> bool:
        """Whether a pull would go on with what was fetched from there, an address without its query."""
        return self.has(place, "") or url in self._plain


def unwanted(site: Site, wants: Wants) -> dict[str, Entry]:
    """Return what may be removed, by place: put there by comfypod, as it was then, and asked for by nothing."""
    return {
        place: entry
        for place, entry in record.ours(site.layout, site.places.live).items()
        if not wants.has(place, entry.url) and stays_below(site.places.live, _path(site, place))
    }


def unwanted_parts(site: Site, wants: Wants) -> list[Left]:
    """Return the partial files that no pull holds and none would go on with.

    Raises:
        StorageError: the disk failed.
    """
    with storage_errors(f"cannot look at {site.layout.downloads}"):
        return [each for each in left.look(site.layout.downloads) if not (_goes_on(each, site, wants) or each.held)]


def _goes_on(part: Left, site: Site, wants: Wants) -> bool:
    target, live = part.target, site.places.live
    if target is None or not target.is_relative_to(live) or os.path.lexists(target):
        return False
    return wants.goes_on(target.relative_to(live).as_posix(), part.url)


def remove_parts(site: Site, found: Sequence[Left]) -> int:
    """Remove partial files that no pull has come to hold meanwhile; return how many bytes that frees.

    Raises:
        StorageError: the disk refused.
        BusyError: too many want to fetch one.
    """
    with storage_errors(f"cannot remove parts in {site.layout.downloads}"):
        return sum(each.taken for each in left.remove(found))


def remove(site: Site, found: dict[str, Entry]) -> int:
    """Remove files that are still as they were; return how many bytes that frees.

    Raises:
        StorageError: the disk refused.
    """
    freed = 0
    for place, entry in found.items():
        path = _path(site, place)
        with storage_errors(f"cannot remove {path}"):
            if entry.is_at(path):
                freed += entry.size if path.stat().st_nlink == 1 else 0
                path.unlink()
            record.forget(site.layout, place)
    return freed


def _path(site: Site, place: str) -> Path:
    return site.places.live / place
