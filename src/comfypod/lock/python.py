"""Resolving Python packages with uv: requirements in, wheels by file name, digest and size out."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import uv

from comfypod import fetch, proc, uv_program
from comfypod.errors import LockError
from comfypod.lock.listing import listing
from comfypod.lock.schema import Package, SourceFile, Wheel
from comfypod.lock.sources import normal
from comfypod.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfypod.log import Console

_SECONDS = 600.0
_PLATFORM = "manylinux_2_28"
# What the manifest does not say must not decide: the same manifest gives the same lock on every machine.
_NOT_OURS = (
    "UV_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_CUSTOM_COMPILE_COMMAND", "UV_EXCLUDE", "UV_EXCLUDE_NEWER",
    "UV_FORK_STRATEGY", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE", "UV_NO_BUILD", "UV_NO_BUILD_ISOLATION",
    "UV_NO_BUILD_PACKAGE", "UV_ONLY_BINARY", "UV_OVERRIDE", "UV_PRERELEASE", "UV_PYTHON", "UV_RESOLUTION",
    "UV_TORCH_BACKEND",
)  # fmt: skip


def own_requirements() -> tuple[str, ...]:
    """Return what this comfypod itself needs to run, as it was installed.

    Raises:
        LockError: it is not installed, so nothing tells.
    """
    try:
        asked = metadata.requires("comfypod") or ()
    except metadata.PackageNotFoundError as error:
        raise LockError(
            "this comfypod is not installed, so its own requirements are not known", "install it"
        ) from error
    return tuple(line for line in asked if re.search(r";.*\bextra\b", line) is None)


def resolve(
    requests: Sequence[str],
    constraints: Sequence[str],
    *,
    python: str,
    arch: str,
    preferred: Mapping[str, str],
    console: Console,
    overrides: Sequence[str] = (),
    sdists: Sequence[str] = (),
    build: Sequence[Package] = (),
) -> tuple[Package, ...]:
    """Resolve requirements for a Python version ("3.11") and an architecture, from wheels.

    `preferred` maps package names to versions that are kept where they still fit. `overrides` replace what any package
    asks for. `sdists` names packages that are taken as source distributions, which the packages of `build` alone
    build. The result is sorted by name.

    Raises:
        LockError: there is no solution, no index, a package that is not a file with a SHA-256, or one that something
            else than `build` builds.
        SourceError: a file's size is not told, or a source distribution cannot be fetched.
        IntegrityError: a source distribution is not what the index says.
    """
    if not requests:
        return ()
    with tempfile.TemporaryDirectory(prefix="comfypod-uv-") as work:
        folder = Path(work)
        inputs = {"requests": requests, "constraints": constraints, "overrides": overrides}
        _write_inputs(folder, inputs, build, preferred)
        started = time.monotonic()
        done = proc.run(_command(python, arch, sdists), seconds=_SECONDS, env=_environ(), cwd=folder)
        if not done.ok:
            raise _refusal(done, python, arch)
        body = tomllib.loads((folder / "pylock.toml").read_text("utf-8"))
        from_source = frozenset(map(normal, sdists))
        found = [_package(row, from_source) for row in body.get("packages", ())]
        for row, package in zip(body.get("packages", ()), found, strict=True):
            if package.sdist is not None:
                _refuse_other_builders(package, _place(row["sdist"]), folder / package.name, build)
    packages = tuple(sorted(found, key=lambda package: package.name))
    console.line(f"  {len(packages)} packages in {time.monotonic() - started:.1f} s")
    return packages


def _command(python: str, arch: str, sdists: Sequence[str]) -> tuple[str, ...]:
    return (
        uv.find_uv_bin(), "pip", "compile", "requests.in", "--constraints", "constraints.in", "--overrides",
        "overrides.in", "--build-constraints", "build.in", "--quiet", "--no-header", "--format", "pylock.toml",
        "--output-file", "pylock.toml", "--only-binary", ":all:",
        *(option for name in sdists for option in ("--no-binary", name)),
        "--python", sys.executable, "--python-version", python, "--python-platform", f"{arch}-{_PLATFORM}",
    )  # fmt: skip


def _write_inputs(
    folder: Path, inputs: Mapping[str, Sequence[str]], build: Sequence[Package], preferred: Mapping[str, str]
) -> None:
    for name, lines in inputs.items():
        (folder / f"{name}.in").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "build.in").write_text(listing(build), "utf-8")
    if preferred:
        # uv takes the versions of an output file that is already there as preferences.
        rows = (
            f'[[packages]]\nname = "{name}"\nversion = "{version}"\n' for name, version in sorted(preferred.items())
        )
        head = 'lock-version = "1.0"\ncreated-by = "comfypod"\n'
        (folder / "pylock.toml").write_text("\n".join((head, *rows)), "utf-8")


def _environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    return {**kept, **uv_program.index(os.environ), **uv_program.UNFOLDED}


def _refusal(done: proc.Completed, python: str, arch: str) -> LockError:
    what = f"the packages do not resolve for Python {python} on {arch}"
    if done.timed_out:
        return LockError(f"{what}: no answer in {_SECONDS:.0f} s", "check the network and the package index")
    lines = (line.strip().removeprefix("error: ").removeprefix("cause: ") for line in done.stderr.splitlines())
    reason = "\n  ".join(line for line in lines if line)
    if "No solution found" in reason:
        return LockError(f"{what}:\n  {reason}", "change the requirement that it names, in comfypod.toml or in a node")
    return LockError(f"{what}:\n  {reason}", "check the network and the package index, and run the command again")


def _package(row: dict[str, Any], from_source: frozenset[str]) -> Package:
    facts = (_file(row["name"], wheel) for wheel in row.get("wheels", ()))
    wheels = tuple(sorted((Wheel(*each) for each in facts), key=lambda wheel: wheel.file))
    if row["name"] in from_source and not wheels and "sdist" in row and "version" in row:
        return Package(name=row["name"], version=row["version"], sdist=SourceFile(*_file(row["name"], row["sdist"])))
    if not wheels or "version" not in row:
        raise LockError(
            f"{row['name']} is asked for by an address that pins no wheel",
            "ask for it by version from the package index; a lock names every file by its digest",
        )
    return Package(name=row["name"], version=row["version"], wheels=wheels)


def _place(row: dict[str, Any]) -> str:
    return str(row.get("url") or row.get("path") or "")


def _file(name: str, row: dict[str, Any]) -> tuple[str, str, int]:
    """Return name, SHA-256 and size in bytes of a file of a package."""
    place = _place(row)
    file = row.get("name") or unquote(urlsplit(place).path).rpartition("/")[2]
    sha256 = row.get("hashes", {}).get("sha256")
    if sha256 is None:
        raise LockError(f"the package index tells no SHA-256 for {name} ({file})", "use an index that does")
    return file, sha256, row.get("size") or _size(place, file)


def _refuse_other_builders(package: Package, place: str, work: Path, build: Sequence[Package]) -> None:
    """Refuse a source distribution that asks for build packages which are not locked: uv would take any version."""
    work.mkdir()
    archive = Path(unquote(urlsplit(place).path))
    if place.startswith(("http://", "https://")):
        archive = work / "archive"
        fetch.download(place, archive, sha256=package.sdist.sha256 if package.sdist else None)
    settings = unpack(archive, work / "unpacked") / "pyproject.toml"
    try:
        body = tomllib.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LockError(f"{package.name}: its pyproject.toml cannot be read: {error}", "leave it out") from error
    asked = body.get("build-system", {}).get("requires", ())
    names = {normal(re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0]) for line in asked}
    if others := sorted(names - {each.name for each in build}):
        raise LockError(
            f"the source distribution of {package.name} is built with {', '.join(others)}",
            f"take {package.name} out of [python] sdists: only setuptools and wheel are locked to build with",
        )


def _size(place: str, file: str) -> int:
    """Return a file's size where the index's page has none: local folders, plain lists of links."""
    if place.startswith(("http://", "https://")):
        length = fetch.head(place).get("content-length", "")
        if length.isdecimal():
            return int(length)
        raise LockError(f"the package index tells no size for {file}", "use an index that does")
    return Path(unquote(urlsplit(place).path)).stat().st_size
