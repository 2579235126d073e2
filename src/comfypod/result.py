"""What a command returns: the one envelope that `--json` prints and people read as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from comfypod.errors import EXIT_OK, ComfypodError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

Status = Literal["success", "partial", "error"]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one command.

    `data` is the machine's view and must survive `json.dumps`; `text` is the same for a person.
    """

    command: str
    data: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    status: Status = "success"
    exit_code: int = EXIT_OK
    errors: tuple[Problem, ...] = ()

    def envelope(self) -> str:
        """Render as one line of JSON: command, status, exit_code, data, errors."""
        body = {
            "command": self.command,
            "status": self.status,
            "exit_code": self.exit_code,
            "data": dict(self.data),
            "errors": [asdict(problem) for problem in self.errors],
        }
        return json.dumps(body)


def failure(command: str, error: ComfypodError) -> Result:
    """Turn an error of the family into the result that reports it."""
    return Result(
        command=command,
        status="error",
        exit_code=error.exit_code,
        errors=error.problems,
    )


def interrupted(command: str, code: str, exit_code: int) -> Result:
    """Report a command that a signal ended."""
    problem = Problem(code, f"{command}: {code}", "run the same command again; it goes on from where it was")
    return Result(command=command, status="error", exit_code=exit_code, errors=(problem,))
