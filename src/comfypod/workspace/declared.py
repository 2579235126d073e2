"""`comfypod.toml` of a workspace: what the volume wants, as its user wrote it."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from comfypod.errors import StorageError, UsageError
from comfypod.files import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def text_of(path: Path) -> str:
    """Return what is written there, nothing where there is no file.

    Raises:
        StorageError: it cannot be read.
        UsageError: it is not text.
    """
    try:
        return read_small(path).decode("utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "mend its mode, or move it away") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", "save it as UTF-8") from error


def table_of(text: str) -> dict[str, Any]:
    """Return the whole as a table.

    Raises:
        UsageError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"comfypod.toml is not TOML: {error}", "mend the file, or move it away") from error


def rows_of(table: Mapping[str, Any], key: str) -> list[Any]:
    """Return the tables below `[[key]]`.

    Raises:
        UsageError: something else has that name.
    """
    rows = table.get(key, [])
    if not isinstance(rows, list):
        raise UsageError(f"`{key}` in comfypod.toml is not an array of tables", f"write each below [[{key}]]")
    return rows
