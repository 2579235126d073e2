"""Wheels of what is installed (PEP 427): it goes over to the next layer with no network, whoever put it there."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.environment import dists
from comfypod.environment.layer import STUB
from comfypod.errors import InstallError
from comfypod.files import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.environment.dists import Dist

_EPOCH = (1980, 1, 1, 0, 0, 0)
# What an installer has added, and adds again.
_ADDED = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "RECORD.jws"})
_LONGEST, _HEAD, _LONGEST_TAG = 1 << 16, 1 << 12, 1 << 7
_SHEBANG = re.compile(rb"\A#!.*python.*\n")


def own_dists(site: Path) -> dict[str, Dist]:
    """Return what a layer has beyond the stubs of its image, which may be gone.

    Raises:
        OSError: the folder cannot be listed.
    """
    return {name: dist for name, dist in dists.scan(site).items() if dists.installer(site, dist) != STUB}


def repack(site: Path, dist: Dist, folder: Path, python: str) -> Path:
    """Write a wheel of an installed distribution into a folder, for a Python such as `3.12`; return it.

    Raises:
        InstallError: it is not whole, is not for that Python, or was no wheel.
        OSError: the disk failed.
    """
    contents = list(_contents(site, site.parents[2], dist))
    path = folder / f"{dist.info.removesuffix('.dist-info')}-{_tag(site, dist, python)}.whl"
    info = dist.info
    record: list[str] = []
    with zipfile.ZipFile(path, "w") as bundle:
        for name, place in contents:
            data = _data(place, script=".data/scripts/" in name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(_row(name, f"sha256={digest}", str(len(data))))
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (place.stat().st_mode & 0o777) << 16
            bundle.writestr(entry, data)
        bundle.writestr(zipfile.ZipInfo(f"{info}/RECORD", _EPOCH), "".join((*record, _row(f"{info}/RECORD", "", ""))))
    return path


def _tag(site: Path, dist: Dist, python: str) -> str:
    """Return the tag of a distribution's wheel that fits a Python on this machine."""
    from packaging import tags

    minor = tuple(map(int, python.split(".")))
    fitting = {*tags.cpython_tags(minor), *tags.compatible_tags(minor, f"cp{minor[0]}{minor[1]}")}
    try:
        lines = read_small(site / dist.info / "WHEEL", _HEAD).decode("utf-8", "replace").splitlines()
        named = [line[4:].strip() for line in lines if line.startswith("Tag:") and len(line) <= _LONGEST_TAG]
        own = [tag for name in named for tag in tags.parse_tag(name)]
    except (OSError, ValueError) as error:
        raise InstallError(f"{dist} was not installed from a wheel") from error
    for tag in own:
        if tag in fitting:
            return str(tag)
    raise InstallError(f"{dist} is for {', '.join(sorted(map(str, own))) or 'no Python'} and not for Python {python}")


def _contents(site: Path, root: Path, dist: Dist) -> Iterator[tuple[str, Path]]:
    """Yield the files of a distribution by their names in a wheel."""
    programs, stem = _programs(site, dist), dist.info.removesuffix(".dist-info")
    try:
        names = dict.fromkeys(dists.files_of(site, dist))
    except OSError as error:
        raise InstallError(f"{dist}: its list of files cannot be read") from error
    for name in names:
        place = site / os.path.normpath(name)
        if name.endswith(".pyc") or (name.startswith(f"{dist.info}/") and name.partition("/")[2] in _ADDED):
            continue
        inside = os.path.relpath(os.path.normpath(place), root)
        if not name.isprintable():
            raise InstallError(f"{dist} has a file whose name no wheel can have: {name!r}")
        if inside.startswith("..") or not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root)):
            raise InstallError(f"{dist} has a file outside of its environment: {name}")
        if not (os.path.isfile(place) and os.access(place, os.R_OK)):  # noqa: PTH113 - whatever the name is
            raise InstallError(f"{dist} is not whole: {name} is missing")
        if not name.startswith("../"):
            yield name, place
        elif not inside.startswith("bin/"):
            yield f"{stem}.data/data/{inside}", place
        elif inside.removeprefix("bin/") not in programs:
            yield f"{stem}.data/scripts/{inside.removeprefix('bin/')}", place


def _programs(site: Path, dist: Dist) -> set[str]:
    """Return the programs that an installer makes of a distribution's entry points."""
    try:
        text = read_small(site / dist.info / "entry_points.txt", _LONGEST).decode("utf-8", "replace")
    except OSError:
        return set()
    found, kind = set(), ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            kind = line.strip("[] ")
        elif kind in ("console_scripts", "gui_scripts"):
            found.add(line.partition("=")[0].strip())
    return found


def _data(place: Path, *, script: bool) -> bytes:
    data = place.read_bytes()
    return _SHEBANG.sub(b"#!python\n", data[:_HEAD]) + data[_HEAD:] if script else data


def _row(*words: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(words)
    return line.getvalue()
