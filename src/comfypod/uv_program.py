"""uv: where it is, what may not mislead it, and what it means when it fails."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import HostError, InstallError, IntegrityError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.errors import ComfypodError
    from comfypod.proc import Completed

# What would point uv at another environment, or change a set of packages that somebody has already settled.
_MISLEADING = frozenset({
    "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "UV_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE", "UV_NO_BUILD", "UV_NO_BUILD_ISOLATION",
    "UV_NO_BUILD_PACKAGE", "UV_ONLY_BINARY", "UV_OVERRIDE", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV",
})  # fmt: skip
# What uv says is read line by line.
UNFOLDED = {"COLUMNS": "10000"}
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


def command(*arguments: str) -> tuple[str, ...]:
    """Return a command line of uv whose output is plain text."""
    return (find_uv(), "--color", "never", "--no-progress", *arguments)


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what would mislead uv, and with pip's index where uv has none of its own."""
    kept = {name: value for name, value in environ.items() if name not in _MISLEADING}
    # A slow disk is no reason to give up on bytecode.
    return {"UV_COMPILE_BYTECODE_TIMEOUT": "1800", **kept, **index(environ), **UNFOLDED}


def index(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what makes uv use pip's index where it was given none of its own: it does not read pip's variables."""
    found = environ.get("UV_INDEX_URL") or environ.get("PIP_INDEX_URL")
    return {"UV_DEFAULT_INDEX": found} if found and "UV_DEFAULT_INDEX" not in environ else {}


def explain(done: Completed, folder: Path, needed: int | None = None) -> ComfypodError:
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
        return files.storage_error(error, "cannot install Python packages", needed)
    if any(sign in said for sign in _NETWORK):
        return SourceError(
            f"Python packages cannot be fetched: {last_lines(done)}",
            "check the network, or name a mirror with UV_DEFAULT_INDEX; what has arrived is kept in uv's cache",
        )
    if done.timed_out:
        return InstallError("uv did not finish in its time", "run the command again; it goes on from its cache")
    return InstallError(f"uv failed: {last_lines(done)}", "run the command again, or `comfypod doctor`")


def last_lines(done: Completed, count: int = 4) -> str:
    """Return the end of what a program said, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    # uv's error starts at "error:" and goes on to its deepest cause; its progress and warnings stand above.
    start = next((index for index, line in enumerate(lines) if line.startswith("error:")), -count)
    said = [line.removeprefix("error: ").removeprefix("cause: ") for line in lines[start:]]
    return "; ".join(said if len(said) <= count else [said[0], *said[1 - count :]])
