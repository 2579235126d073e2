"""Archives from outside, unpacked so that nothing lands beside the folder meant for it."""

from __future__ import annotations

import lzma
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import IntegrityError, SourceError

if TYPE_CHECKING:
    from pathlib import Path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar (any compression) or zip archive into a folder; return its single top folder, or the folder.

    Raises:
        SourceError: not an archive, or a broken one.
        IntegrityError: a name in it would leave the folder.
    """
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder)
        else:
            _untar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        raise SourceError(f"what arrived is not an archive that can be read: {error}") from error
    except OSError as error:
        if error.errno in files.DISK_ERRORS:
            raise
        raise SourceError(f"what arrived is not an archive that can be read: {error}") from error
    entries = list(folder.iterdir())
    single = len(entries) == 1 and files.is_folder(entries[0])
    return entries[0] if single else folder


def _untar(archive: Path, folder: Path) -> None:
    """Unpack files, folders and inner links by hand: tarfile's filters came with Python 3.11.4, Debian 12 has 3.11.2.

    Links are made last, so that no file is ever written through one.
    """
    links: list[tarfile.TarInfo] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            path = folder / _inner(member.name)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isreg():
                _write(tar, member, path)
            elif member.issym():
                _inner(str(PurePosixPath(member.name).parent), member.linkname)
                links.append(member)
            else:
                raise IntegrityError(f"the archive holds {member.name!r}, which is no file, folder or symbolic link")
    for member in links:
        link = folder / _inner(member.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(member.linkname)
        if not link.resolve().is_relative_to(folder.resolve()):
            raise IntegrityError(f"the archive reaches outside its folder: {member.name!r}")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 - regular files have contents
    with source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    path.chmod(0o755 if member.mode & 0o111 else 0o644)


def _inner(*parts: str) -> str:
    """Return a path from an archive, resolved as text, when it stays below the archive's top."""
    joined = posixpath.normpath(posixpath.join(*parts))
    if joined.startswith(("/", "../")) or joined == ".." or "\\" in joined:
        raise IntegrityError(f"the archive reaches outside its folder: {parts[-1]!r}")
    return joined


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for name in bundle.namelist():
            _inner(name)
        bundle.extractall(folder)  # noqa: S202 - the names are checked above
