"""A locked Python environment, installed by uv with its hashes enforced, believed only after an import."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files, proc
from comfypod.errors import HostError, InstallError, StorageError
from comfypod.host.store import disk_errors, with_data_hint
from comfypod.lock.listing import build_constraints, file_options, listing
from comfypod.uv_program import clean_environ, command, explain, find_uv, last_lines

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


def find_python(version: str, *, offline: bool) -> str:
    """Return an interpreter of a version such as "3.11": our own, one on this machine, or one that uv downloads.

    Raises:
        HostError: there is none and none could be had.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    find = (find_uv(), "python", "find", "--no-project", "--system", version)
    found = proc.run(find, seconds=_CHECK_SECONDS, env=clean_environ(os.environ))
    if not found.ok and not offline:
        proc.run((find_uv(), "python", "install", version), seconds=_PYTHON_SECONDS, env=clean_environ(os.environ))
        found = proc.run(find, seconds=_CHECK_SECONDS, env=clean_environ(os.environ))
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
        raise InstallError(f"bytecode of {tree.name} could not be compiled: {last_lines(done)}")


def cache_folder() -> Path:
    """Return where uv keeps what it downloaded, by its own rules for the environment."""
    if chosen := os.environ.get("UV_CACHE_DIR"):
        return Path(chosen).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else files.home() / ".cache") / "uv"


def _uv(
    arguments: tuple[str, ...], building: Building, needed: int, tick: Callable[[], None] | None = None
) -> proc.Completed:
    argv = command(*arguments)
    done = proc.run(
        argv,
        seconds=_INSTALL_SECONDS,
        env=clean_environ(os.environ),
        cwd=building.folder,
        tick=tick,
        keep=building.keep,
        tied=True,
    )
    if not done.ok:
        raise _explain(done, building.folder, needed)
    return done


def _explain(done: proc.Completed, folder: Path, needed: int) -> ComfypodError:
    # Where uv names no path, the fuller of its two disks is the likelier one.
    fuller = min((folder, cache_folder()), key=lambda place: files.room(place).bytes)
    told = explain(done, fuller, needed)
    if isinstance(told, StorageError):
        return StorageError(told.message, f"{with_data_hint(told.hint)}; UV_CACHE_DIR=FOLDER moves uv's cache")
    return told


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
            raise InstallError(f"{', '.join(modules)} do not import: {last_lines(done)}", "run `comfypod doctor`")
    if environment.version("jupyterlab") is not None and not (venv / "bin" / "jupyter-lab").is_file():
        raise InstallError("JupyterLab was installed without its program jupyter-lab")
