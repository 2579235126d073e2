"""What the programs that work over a workspace see of our environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod.settings import secret_variables
from comfypod.workspace import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PYTHON_VARIABLES = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
)


def child_environ(environ: Mapping[str, str], python: Path, workspace: Path) -> dict[str, str]:
    """Return what a child sees: no secrets of ours, no Python settings of the caller's, its own venv first.

    It also carries the mark by which a later boot knows what an earlier one left running.
    """
    hidden = secret_variables() | _PYTHON_VARIABLES
    kept = {name: value for name, value in environ.items() if name not in hidden}
    binaries = python.parent
    path = f"{binaries}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {
        **kept,
        "PATH": path,
        "VIRTUAL_ENV": str(binaries.parent),
        "PYTHONUNBUFFERED": "1",
        run.MARK: str(workspace),
    }
