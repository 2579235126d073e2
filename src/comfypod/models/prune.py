"""Removing models that comfypod has fetched and nothing wants any more; never anything else."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from comfypod.download.address import shown
from comfypod.files import storage_errors
from comfypod.models import record
from comfypod.models.plan import is_named, stays_below

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from comfypod.models.file import ModelFile
    from comfypod.models.record import Entry
    from comfypod.models.site import Site


def unwanted(site: Site, wanted: Iterable[ModelFile], names: Collection[str] = ()) -> dict[str, Entry]:
    """Return what may be removed, by place: put there by comfypod, as it was then, and asked for by nothing.

    Where only its host knows where a file belongs, its address counts; `names` of files count in any folder.
    """
    files = tuple(wanted)
    places = {file.place for file in files}
    addresses = {shown(file.url) for file in files if not is_named(file)}
    return {
        place: entry
        for place, entry in record.ours(site.layout, site.places.live).items()
        if place not in places
        and entry.url not in addresses
        and PurePath(place).name not in names
        and stays_below(site.places.live, _path(site, place))
    }


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
