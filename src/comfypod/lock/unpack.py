"""Archives from outside, unpacked so that nothing lands beside the folder meant for it."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from comfypod.errors import HostError, IntegrityError, SourceError

if TYPE_CHECKING:
    from pathlib import Path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar (any compression) or zip archive into a folder; return its single top folder, or the folder.

    Raises:
        SourceError: not an archive, or a broken one.
        IntegrityError: a name in it would leave the folder.
        HostError: this Python cannot unpack safely.
    """
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder)
        else:
            _untar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise SourceError(f"what arrived is not a whole archive: {error}") from error
    entries = list(folder.iterdir())
    single = len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink()
    return entries[0] if single else folder


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise HostError("this Python unpacks archives without checking them", "use Python 3.11.4 or newer")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise IntegrityError(f"the archive reaches outside its folder: {error}") from error


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for name in bundle.namelist():
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                raise IntegrityError(f"the archive reaches outside its folder: {name!r}")
        bundle.extractall(folder)  # noqa: S202 - the names are checked above
