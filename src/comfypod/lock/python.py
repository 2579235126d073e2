"""Resolving Python packages with uv: requirements in, wheels by file name, digest and size out."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import uv

from comfypod import fetch, proc
from comfypod.errors import LockError
from comfypod.lock.schema import Package, Wheel
from comfypod.lock.sources import uv_index

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

from comfypod.log import Console

_SECONDS = 600.0
_PLATFORM = "manylinux_2_28"
# What the manifest does not say must not decide: the same manifest gives the same lock on every machine.
_NOT_OURS = (
    "UV_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_CUSTOM_COMPILE_COMMAND", "UV_EXCLUDE", "UV_EXCLUDE_NEWER",
    "UV_FORK_STRATEGY", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE", "UV_ONLY_BINARY", "UV_OVERRIDE", "UV_PRERELEASE",
    "UV_PYTHON", "UV_RESOLUTION", "UV_TORCH_BACKEND",
)  # fmt: skip


def resolve(
    requests: Sequence[str],
    constraints: Sequence[str],
    *,
    python: str,
    arch: str,
    preferred: Mapping[str, str],
    console: Console,
) -> tuple[Package, ...]:
    """Resolve requirements for a Python version ("3.11") and an architecture, from wheels alone.

    `preferred` maps package names to versions that are kept where they still fit. The result is sorted by name.

    Raises:
        LockError: there is no solution, no index, or a package that is not a wheel with a SHA-256.
        SourceError: the size of a wheel is not told.
    """
    if not requests:
        return ()
    with tempfile.TemporaryDirectory(prefix="comfypod-uv-") as work:
        folder = Path(work)
        _write_inputs(folder, requests, constraints, preferred)
        started = time.monotonic()
        done = proc.run(_command(python, arch), seconds=_SECONDS, env=_environ(), cwd=folder)
        if not done.ok:
            raise _refusal(done, python, arch)
        body = tomllib.loads((folder / "pylock.toml").read_text("utf-8"))
    packages = tuple(sorted((_package(row) for row in body.get("packages", ())), key=lambda package: package.name))
    console.line(f"  {len(packages)} packages in {time.monotonic() - started:.1f} s")
    return packages


def _command(python: str, arch: str) -> tuple[str, ...]:
    return (
        uv.find_uv_bin(), "pip", "compile", "requests.in", "--constraints", "constraints.in", "--quiet", "--no-header",
        "--format", "pylock.toml", "--output-file", "pylock.toml", "--only-binary", ":all:", "--python", sys.executable,
        "--python-version", python, "--python-platform", f"{arch}-{_PLATFORM}",
    )  # fmt: skip


def _write_inputs(
    folder: Path, requests: Sequence[str], constraints: Sequence[str], preferred: Mapping[str, str]
) -> None:
    (folder / "requests.in").write_text("\n".join(requests) + "\n", "utf-8")
    (folder / "constraints.in").write_text("\n".join(constraints) + "\n", "utf-8")
    if preferred:
        # uv takes the versions of an output file that is already there as preferences.
        rows = (
            f'[[packages]]\nname = "{name}"\nversion = "{version}"\n' for name, version in sorted(preferred.items())
        )
        head = 'lock-version = "1.0"\ncreated-by = "comfypod"\n'
        (folder / "pylock.toml").write_text("\n".join((head, *rows)), "utf-8")


def _environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    return {**kept, **uv_index(os.environ)}


def _refusal(done: proc.Completed, python: str, arch: str) -> LockError:
    what = f"the packages do not resolve for Python {python} on {arch}"
    if done.timed_out:
        return LockError(f"{what}: no answer in {_SECONDS:.0f} s", "check the network and the package index")
    lines = (line.strip().removeprefix("error: ").removeprefix("cause: ") for line in done.stderr.splitlines())
    reason = "\n  ".join(line for line in lines if line)
    if "No solution found" in reason:
        return LockError(f"{what}:\n  {reason}", "change the requirement that it names, in comfypod.toml or in a node")
    return LockError(f"{what}:\n  {reason}", "check the network and the package index, and run the command again")


def _package(row: dict[str, Any]) -> Package:
    wheels = tuple(
        sorted((_wheel(row["name"], wheel) for wheel in row.get("wheels", ())), key=lambda wheel: wheel.file)
    )
    if not wheels or "version" not in row:
        raise LockError(
            f"{row['name']} is asked for by an address that pins no wheel",
            "ask for it by version from the package index; a lock names every file by its digest",
        )
    return Package(name=row["name"], version=row["version"], wheels=wheels)


def _wheel(name: str, row: dict[str, Any]) -> Wheel:
    place = row.get("url") or row.get("path") or ""
    file = row.get("name") or unquote(urlsplit(place).path).rpartition("/")[2]
    sha256 = row.get("hashes", {}).get("sha256")
    if sha256 is None:
        raise LockError(f"the package index tells no SHA-256 for {name} ({file})", "use an index that does")
    return Wheel(file=file, sha256=sha256, size=row.get("size") or _size(place, file))


def _size(place: str, file: str) -> int:
    """Return a wheel's size where the index's page has none: local folders, plain lists of links."""
    if place.startswith(("http://", "https://")):
        length = fetch.head(place).get("content-length", "")
        if length.isdecimal():
            return int(length)
        raise LockError(f"the package index tells no size for {file}", "use an index that does")
    return Path(unquote(urlsplit(place).path)).stat().st_size
