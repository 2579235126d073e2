"""Compiled modules of a layer on a volume that is mounted with noexec: nothing there can be loaded, so they are copied.

The volume's layer stays what installers write to; the copies only stand before it when Python looks for modules.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.copying import copy_file
from comfypod.environment.dists import installer, recorded, scan
from comfypod.environment.layer import LOCAL_FILE, STUB
from comfypod.errors import InstallError
from comfypod.files import make_folder, read_small, remove_tree, write_changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from comfypod.environment.layer import Layer

_PLACES = ("/var/tmp", "/tmp", "/dev/shm", "/run")  # noqa: S108 - a folder below is made, for this user alone


def is_noexec(path: Path) -> bool:
    """Whether nothing on a path's disk may be executed, or loaded as a program's part.

    Raises:
        OSError: it cannot be asked.
    """
    return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)


def mirror(layer: Layer, *, alone: bool = True) -> tuple[str, ...]:
    """Copy what has compiled modules to a disk of this machine where that is needed; return what was copied.

    Who is not `alone` with the layer writes nothing to it: what leads to the copies has to be there.

    Raises:
        InstallError: it is not there.
        OSError: a disk failed, or no disk of this machine takes programs.
    """
    path_file = layer.site / LOCAL_FILE
    compiled = {} if not is_noexec(layer.site) else _compiled(layer)
    if not compiled:
        if alone and os.path.lexists(path_file):
            path_file.unlink()
        return ()
    place = _place() / layer.key
    _bring(layer, compiled, place)
    before = f"sys.path.insert(sys.path.index({str(layer.site)!r}), place)"
    line = f"import os, sys; place = {str(place)!r}; os.path.isdir(place) and {before}\n".encode()
    if alone:
        write_changed(path_file, line, durable=False)
    elif read_small(path_file) != line:
        raise InstallError("another pod uses it, and has its compiled modules elsewhere", "stop that pod first")
    return tuple(sorted(compiled))


def _bring(layer: Layer, compiled: Mapping[str, list[str]], place: Path) -> None:
    """Copy the files, unless an earlier boot on this machine has done so and nothing changed since."""
    stamp, wanted = place / ".complete", "".join(f"{name}\n" for name in _facts(layer, compiled))
    if stamp.is_file() and stamp.read_text("utf-8", "surrogateescape") == wanted:
        return
    if place.exists():
        remove_tree(place)
    for name in (name for files in compiled.values() for name in files):
        make_folder((place / name).parent)
        copy_file(str(layer.site / name), str(place / name))
    stamp.write_text(wanted, "utf-8", "surrogateescape")


def _facts(layer: Layer, compiled: Mapping[str, list[str]]) -> Iterator[str]:
    for name in (name for files in compiled.values() for name in sorted(files)):
        facts = (layer.site / name).stat()
        yield f"{name} {facts.st_size} {facts.st_mtime_ns}"


def _compiled(layer: Layer) -> dict[str, list[str]]:
    """Return the files of each distribution that has a compiled module, relative to the layer's site-packages."""
    found = {}
    for name, dist in scan(layer.site).items():
        if installer(layer.site, dist) == STUB:
            continue
        files = [each for each in recorded(layer.site, dist) if not Path(each).is_absolute() and ".." not in each]
        if any(each.endswith(".so") or ".so." in each for each in files):
            # Installers shall find what they installed on the volume.
            own = (each for each in files if not each.startswith(f"{dist.info}/"))
            found[name] = [each for each in own if os.path.isfile(layer.site / each)]  # noqa: PTH113 - whatever the name is
    return found


def _place() -> Path:
    """Return a folder of this user alone, on a disk of this machine that takes programs."""
    for each in map(Path, (tempfile.gettempdir(), *_PLACES)):
        if os.access(each, os.W_OK) and not is_noexec(each):
            folder = each / f"comfypod-{os.geteuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
            if facts.st_uid == os.geteuid() and not folder.is_symlink() and not facts.st_mode & 0o022:
                return folder
    raise PermissionError(1, "no disk of this machine takes programs", tempfile.gettempdir())
