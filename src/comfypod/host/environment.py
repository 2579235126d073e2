"""A locked Python environment, installed by uv with its hashes enforced, believed only after an import."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files, proc
from comfypod.errors import HostError, InstallError, IntegrityError, SourceError
from comfypod.host.store import disk_errors, with_data_hint
from comfypod.lock.listing import build_constraints, file_options, listing
from comfypod.lock.sources import uv_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.errors import ComfypodError
    from comfypod.host.store import Building
    from comfypod.lock.schema import Environment
    from comfypod.log import Console

_INSTALL_SECONDS = 4 * 3600.0
_PYTHON_SECONDS = 600.0
_CHECK_SECONDS = 600.0
_COMPILE_SECONDS = 1800.0
_TRIPLE = ("torch", "torchvision", "torchaudio")
# What would point uv at another environment, or change a set of packages that the lock has already settled.
_NOT_FOR_UV = frozenset({
    "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "UV_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE", "UV_NO_BUILD", "UV_NO_BUILD_ISOLATION",
    "UV_NO_BUILD_PACKAGE", "UV_ONLY_BINARY", "UV_OVERRIDE", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV",
})  # fmt: skip
_MISMATCH = re.compile(r"Hash mismatch for `([^`]+)`")
_DISK = re.compile(r"^.*\(os error (13|28|30|122)\).*$", re.MULTILINE)
_PATH = re.compile(r"/[^\s`\":]+")
_NETWORK = (
    "Request failed after", "error sending request", "Failed to fetch", "network was disabled",
    "Network connectivity is disabled", "HTTP status", "operation timed out",
)  # fmt: skip


def find_uv() -> str:
    """Return the path of the uv that was installed with comfypod.

    Raises:
        HostError: it is missing.
    """
    import uv

    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise HostError("the program uv is missing", "install comfypod again, or `pip install uv`") from error


def find_python(version: str, *, offline: bool) -> str:
    """Return an interpreter of a version such as "3.11": our own, one on this machine, or one that uv downloads.

    Raises:
        HostError: there is none and none could be had.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    find = (find_uv(), "python", "find", "--no-project", "--system", version)
    found = proc.run(find, seconds=_CHECK_SECONDS, env=_uv_environ())
    if not found.ok and not offline:
        proc.run((find_uv(), "python", "install", version), seconds=_PYTHON_SECONDS, env=_uv_environ())
        found = proc.run(find, seconds=_CHECK_SECONDS, env=_uv_environ())
    if not found.ok:
        raise HostError(
            f"Python {version}, which the lock asks for, is not on this machine", f"install Python {version}"
        )
    return found.stdout.strip()


def install(
    environment: Environment, building: Building, *, python: str, needed: int, offline: bool, console: Console
) -> None:
    """Make `venv` in the folder of `building` and install the environment there, bytecode compiled.

    What the lock has as a source distribution is built, in isolation, with the locked build packages.

    Raises:
        IntegrityError: a file has another hash than the lock's.
        SourceError: the package index cannot be reached and uv's cache lacks something.
        StorageError: the disk is full (`needed` in bytes is named) or not ours.
        InstallError: uv failed otherwise, or the result does not import.
    """
    venv, wanted, builders = (building.folder / name for name in ("venv", "requirements.txt", "build.txt"))
    wanted.write_text(listing(environment.packages), "utf-8")
    builders.write_text(build_constraints(environment), "utf-8")
    label = f"disk taken by the {environment.purpose} environment"
    with console.progress(label, needed) as advance:
        _uv(("venv", "--no-project", "--python", python, str(venv)), building, needed)
        _uv(
            (
                "pip", "install", "--python", str(venv / "bin" / "python"), "--no-deps", "--require-hashes",
                *file_options(environment), "--compile-bytecode", *(("--offline",) if offline else ()),
                "--build-constraints", str(builders), "--requirements", str(wanted),
            ),
            building, needed, _disk_meter(building.folder, advance),
        )  # fmt: skip
    _verify(environment, venv, building)


def compile_tree(tree: Path, python: str, building: Building, console: Console) -> None:
    """Compile the bytecode of a source tree with the interpreter that will run it.

    A file that this Python cannot compile is left as it is and counted.

    Raises:
        StorageError: the disk is full.
        InstallError: the compiler itself failed.
    """
    argv = (python, "-I", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "timestamp", str(tree))
    done = proc.run(argv, seconds=_COMPILE_SECONDS, keep=building.keep)
    failed = re.findall(r"^\*\*\* .*$", done.stdout, re.MULTILINE)
    with disk_errors("cannot write bytecode"):
        for line in failed:
            if match := re.search(r"\[Errno (28|122)\]", line):
                raise OSError(int(match[1]), os.strerror(int(match[1])), str(tree))
    if failed:
        console.line(f"  no bytecode for {len(failed)} files, the first: {failed[0].lstrip('* ')}")
    elif not done.ok:
        raise InstallError(f"bytecode of {tree.name} could not be compiled: {_last_lines(done)}")


def cache_folder() -> Path:
    """Return where uv keeps what it downloaded, by its own rules for the environment."""
    if chosen := os.environ.get("UV_CACHE_DIR"):
        return Path(chosen).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else files.home() / ".cache") / "uv"


def _uv(
    arguments: tuple[str, ...], building: Building, needed: int, tick: Callable[[], None] | None = None
) -> proc.Completed:
    argv = (find_uv(), "--color", "never", "--no-progress", *arguments)
    done = proc.run(
        argv, seconds=_INSTALL_SECONDS, env=_uv_environ(), cwd=building.folder, tick=tick, keep=building.keep, tied=True
    )
    if not done.ok:
        raise explain(done, building.folder, needed)
    return done


def _uv_environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_UV}
    # A slow disk is no reason to give up on bytecode.
    return {"UV_COMPILE_BYTECODE_TIMEOUT": "1800", **kept, **uv_index(os.environ)}


def explain(done: proc.Completed, folder: Path, needed: int) -> ComfypodError:
    """Turn what uv said when it failed into the error to raise; `needed` is in bytes."""
    said = done.stderr
    if match := _MISMATCH.search(said):
        return IntegrityError(
            f"{match[1]}: the file that arrived has another sha256 than the lock names",
            "do not use it: check the package index or mirror, or `comfypod lock --upgrade` and read the difference",
        )
    if match := _DISK.search(said):
        paths = _PATH.findall(match[0])
        error = OSError(int(match[1]), os.strerror(int(match[1])), paths[-1] if paths else str(folder))
        told = files.storage_error(error, "cannot install Python packages", needed)
        return type(told)(told.message, f"{with_data_hint(told.hint)}; UV_CACHE_DIR=FOLDER moves uv's cache")
    if any(sign in said for sign in _NETWORK):
        return SourceError(
            f"Python packages cannot be fetched: {_last_lines(done)}",
            "check the network, or name a mirror with UV_DEFAULT_INDEX; what has arrived is kept in uv's cache",
        )
    if done.timed_out:
        return InstallError("uv did not finish within four hours", "run the command again; it goes on from its cache")
    return InstallError(f"uv failed: {_last_lines(done)}", "run the command again, or `comfypod doctor`")


def _last_lines(done: proc.Completed, count: int = 4) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    # uv's error starts at "error:" and goes on to its deepest cause; its progress and warnings stand above.
    start = next((index for index, line in enumerate(lines) if line.startswith("error:")), -count)
    said = [line.removeprefix("error: ").removeprefix("cause: ") for line in lines[start:]]
    return "; ".join(said if len(said) <= count else [said[0], *said[1 - count :]])


def _disk_meter(folder: Path, advance: Callable[[int], None]) -> Callable[[], None]:
    """Measure what the disk, and uv's cache where that is on another disk, have lost since now."""
    watched = {place.stat().st_dev: place for place in (files.nearest_folder(cache_folder()), folder)}
    before = sum(files.room(place).bytes for place in watched.values())
    return lambda: advance(max(0, before - sum(files.room(place).bytes for place in watched.values())))


def _verify(environment: Environment, venv: Path, building: Building) -> None:
    modules = [name for name in _TRIPLE if environment.version(name) is not None]
    if modules:
        argv = (str(venv / "bin" / "python"), "-I", "-c", f"import {', '.join(modules)}")
        done = proc.run(argv, seconds=_CHECK_SECONDS, keep=building.keep)
        if not done.ok:
            raise InstallError(f"{', '.join(modules)} do not import: {_last_lines(done)}", "run `comfypod doctor`")
    if environment.version("jupyterlab") is not None and not (venv / "bin" / "jupyter-lab").is_file():
        raise InstallError("JupyterLab was installed without its program jupyter-lab")
