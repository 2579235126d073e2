"""Imports whatever the packages of an environment offer, for the part of a record that changes with these alone.

Another ComfyUI, which imports nearly the same of them, leaves that part as it is. What cannot be imported is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.metadata import packages_distributions

# What every ComfyUI imports of packages that do not do so themselves.
_MORE = ("aiohttp.web", "scipy.signal", "sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.orm")


def import_all() -> None:
    """Import all that can be; the error stream names each, so that the one is known that takes all with it."""
    names = [name for name in packages_distributions() if name.isidentifier() and not name.startswith("_")]
    for name in [*sorted(names), *_MORE]:
        sys.stderr.write(f"{name}\n")
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)
