"""One family of errors and one table of exit codes.

A message says what failed and why; the hint says what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that went wrong, as it stands in `--json` and `/status`."""

    code: str
    message: str
    hint: str = ""


class ComfypodError(Exception):
    """Base of everything comfypod raises on purpose.

    `code` is stable and machine-readable, `exit_code` is what the process ends with.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "a defect in comfypod itself"

    def __init__(self, message: str, hint: str = "", found: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self._found = found

    @property
    def problem(self) -> Problem:
        """What to report in one entry."""
        return Problem(self.code, self.message, self.hint)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What to report: one entry, or several where several were found together."""
        return self._found or (self.problem,)


class UsageError(ComfypodError):
    """The command line or a setting cannot be used as given."""

    code = "usage"
    exit_code = 2
    meaning = "the command line or a setting cannot be used as given"


class ManifestError(ComfypodError):
    """`comfypod.toml` has problems; all of them are reported together."""

    code = "manifest"
    exit_code = 3
    meaning = "`comfypod.toml` has problems"


class LockError(ComfypodError):
    """`comfypod.lock` is missing, unreadable or out of step with the manifest."""

    code = "lock"
    exit_code = 4
    meaning = "`comfypod.lock` is missing, unreadable or out of step"


class SourceError(ComfypodError):
    """Something could not be fetched: no source answered in time."""

    code = "source"
    exit_code = 5
    meaning = "nothing could be fetched from any source"


class IntegrityError(ComfypodError):
    """Contents are not those that the lock names."""

    code = "integrity"
    exit_code = 6
    meaning = "contents differ from what the lock names"


class InstallError(ComfypodError):
    """The Python environment could not be installed."""

    code = "environment"
    exit_code = 7
    meaning = "the Python environment could not be installed"


class StorageError(ComfypodError):
    """A disk or folder is full, read-only or not ours to write."""

    code = "storage"
    exit_code = 8
    meaning = "a disk or folder is full, read-only or not writable"


class BusyError(ComfypodError):
    """A port or a workspace is in use by something else."""

    code = "busy"
    exit_code = 9
    meaning = "a port or workspace is in use"


class ServiceError(ComfypodError):
    """ComfyUI died before it was ready, and again after restarts."""

    code = "comfyui"
    exit_code = 10
    meaning = "ComfyUI did not start"


class NotReadyError(ComfypodError):
    """The pod was not ready in the time given."""

    code = "not-ready"
    exit_code = 11
    meaning = "the pod is not ready, or was not in the time given"


class NotRunningError(ComfypodError):
    """No pod runs on this workspace."""

    code = "not-running"
    exit_code = 12
    meaning = "no pod runs on this workspace"


class HostError(ComfypodError):
    """This machine lacks something: a GPU, a driver, an engine, a program."""

    code = "host"
    exit_code = 13
    meaning = "this machine lacks what the command needs (GPU, driver, engine, program)"


class ImageError(ComfypodError):
    """An image could not be built, or did not pass its smoke test."""

    code = "image"
    exit_code = 14
    meaning = "an image could not be built or did not pass its smoke test"


class NodeError(ComfypodError):
    """A custom node could not be installed, or cannot be imported."""

    code = "node"
    exit_code = 15
    meaning = "a custom node could not be installed, or cannot be imported"


class ModelError(ComfypodError):
    """A model that is wanted is not there, and cannot be fetched as it was asked for."""

    code = "model"
    exit_code = 16
    meaning = "a model that is wanted is not there, or cannot be fetched as asked for"


def error_of(problem: Problem) -> ComfypodError:
    """Return the error of the family that a problem's code names."""
    for family in ComfypodError.__subclasses__():
        if family.code == problem.code:
            return family(problem.message, problem.hint)
    return ComfypodError(problem.message, problem.hint)


def exit_code_table() -> tuple[tuple[int, str, str], ...]:
    """Return (exit code, error code, meaning) of every family, for the docs and `--help`."""
    families: list[type[ComfypodError]] = [ComfypodError, *ComfypodError.__subclasses__()]
    families.sort(key=lambda family: family.exit_code)
    rows = [(family.exit_code, family.code, family.meaning) for family in families]
    return (
        (EXIT_OK, "", "done"),
        *rows,
        (EXIT_INTERRUPTED, "interrupted", "Ctrl-C; running the command again continues"),
        (EXIT_TERMINATED, "terminated", "stopped by SIGTERM; running the command again continues"),
    )
