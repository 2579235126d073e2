"""Looking into JSON that anybody may have written: what is not there, or of another type, is as good as empty."""

from __future__ import annotations

from typing import Any


def at(value: Any, *path: str) -> Any:
    """Return what stands at a path of names."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text(value: Any, *path: str) -> str:
    """Return a text."""
    return found if isinstance(found := at(value, *path), str) else ""


def rows(value: Any, *path: str) -> list[Any]:
    """Return a list."""
    return found if isinstance(found := at(value, *path), list) else []


def table(value: Any, *path: str) -> dict[str, Any]:
    """Return a table."""
    return found if isinstance(found := at(value, *path), dict) else {}
