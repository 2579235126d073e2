"""Which nodes a volume wants: `[[node]]` of its `comfypod.toml`, and the setting `nodes`, which wins."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from comfypod.errors import NodeError, Problem, StorageError, UsageError
from comfypod.files import storage_error, write_atomic
from comfypod.wish import as_row, of_row
from comfypod.workspace.declared import rows_of, table_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from comfypod.wish import Wish


def wishes(path: Path, setting: Iterable[Wish]) -> tuple[dict[str, Wish], tuple[Problem, ...]]:
    """Return what is wanted by name, and what is wrong with the rest; a name counts whatever its case."""
    found: dict[str, Wish] = {}
    problems = []
    try:
        rows = rows_of(table_of(text_of(path)), "node")
    except (UsageError, StorageError) as error:
        rows, problems = [], [Problem(NodeError.code, error.message, error.hint)]
    for index, row in enumerate(rows):
        try:
            wish = of_row(row)
        except ValueError as error:
            problems.append(Problem(NodeError.code, f"{path}: node[{index}] is left out: {error}", "mend that table"))
        else:
            found[wish.name.casefold()] = wish
    found |= {wish.name.casefold(): wish for wish in setting}
    return {wish.name: wish for wish in found.values()}, tuple(problems)


def add(path: Path, wish: Wish) -> None:
    """Write a node into the file, in the place of one of the same name; all else stays as it is, comments too.

    Raises:
        UsageError: the file is not one that can be added to.
        StorageError: the disk failed.
    """
    remove(path, wish.name)
    text = text_of(path)
    rows = [f"{key} = {_toml(value)}" for key, value in as_row(wish).items()]
    added = "\n".join([*([text.rstrip("\n"), ""] if text.strip() else []), "[[node]]", *rows, ""])
    before = table_of(text)
    _write(path, added, {**before, "node": [*rows_of(before, "node"), as_row(wish)]})


def remove(path: Path, name: str) -> bool:
    """Take a node out of the file; say whether it was there.

    Raises:
        UsageError: it cannot be done without touching the rest.
        StorageError: the disk failed.
    """
    text = text_of(path)
    rows = rows_of(table_of(text), "node")
    left = [row for row in rows if not _is_named(row, name)]
    if len(left) == len(rows):
        return False
    kept = "".join(block for block in _blocks(text) if not _holds(block, name))
    after = {**table_of(text), "node": left}
    _write(path, kept, after if left else {key: value for key, value in after.items() if key != "node"})
    return True


def _toml(value: str | bool) -> str:
    """Write a value: a basic string of TOML is JSON's, for all that a wish can hold."""
    return json.dumps(value)


def _is_named(row: Any, name: str) -> bool:
    try:
        return of_row(row).name.casefold() == name.casefold()
    except ValueError:
        return False


def _blocks(text: str) -> list[str]:
    """Cut a text before each line that begins a table."""
    blocks = [""]
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            blocks.append("")
        blocks[-1] += line
    return blocks


def _holds(block: str, name: str) -> bool:
    try:
        rows = tomllib.loads(block).get("node")
    except tomllib.TOMLDecodeError:
        return False
    return isinstance(rows, list) and len(rows) == 1 and _is_named(rows[0], name)


def _write(path: Path, text: str, wanted: dict[str, Any]) -> None:
    """Replace the file, when the new text says what is wanted and nothing else."""
    if not _says(text, wanted):
        told = f"{path} is written in a way that only its author can change"
        raise UsageError(told, "edit its [[node]] tables by hand, then run `comfypod nodes sync`")
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise storage_error(error, f"cannot write {path}") from error


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False
