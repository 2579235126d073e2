"""Looking at every file in the folders of models, whoever put it there: is it one, is it whole, is it what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.files import sha256_file
from comfypod.models.look import SUFFIXES, other_size, wrong_with
from comfypod.models.walk import files_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from comfypod.models.places import Places


def files_in(places: Places) -> Iterator[Path]:
    """Yield the files that have a model's name, in every folder once."""
    return (path for path in files_below(places.folders()) if path.suffix.lower() in SUFFIXES)


def verify(
    places: Places, known: Mapping[Path, tuple[int, str]], *, digests: bool, watch: Callable[[int], None]
) -> dict[Path, str]:
    """Return what is wrong with each file, nothing for a sound one. `known` are sizes and digests, 0 and none unknown.

    With `digests` all that have a known one are read whole; `watch` is told the bytes so far.
    """
    found: dict[Path, str] = {}
    read = 0
    for path in files_in(places):
        size, sha256 = known.get(path, (0, ""))
        found[path] = _wrong(path, size)
        if digests and sha256 and not found[path]:
            found[path] = _digest(path, sha256)
            watch(read := read + size)
    return found


def _wrong(path: Path, size: int) -> str:
    try:
        return wrong_with(path) or (other_size(path.stat().st_size, size) if size else "")
    except FileNotFoundError:
        return "it is a link to nothing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _digest(path: Path, sha256: str) -> str:
    try:
        found = sha256_file(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if found == sha256 else f"its SHA-256 is {found}, and not {sha256}"
