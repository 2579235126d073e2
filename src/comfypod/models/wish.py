"""Models that are asked for: in words, in tables of `comfypod.toml`, and by the lock of an image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from comfypod.download.address import shown
from comfypod.errors import ModelError, Problem, StorageError, UsageError
from comfypod.models import source
from comfypod.models.file import ModelFile
from comfypod.models.needs import inside, is_sha256
from comfypod.workspace.declared import rows_of, table_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from comfypod.podfile import LockedModel

_NAMED: tuple[Literal["template", "workflow"], ...] = ("template", "workflow")
_PACK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FOLDER = re.compile(r"(?P<folder>[^:=?]+)=(?P<rest>.+)")
_FILE_KEYS: dict[str, type] = {
    "url": str, "folder": str, "file": str, "sha256": str, "size": int, "licence": str, "gated": bool, "pickle": bool,
}  # fmt: skip
# `bake` is for images; a volume has nothing to bake.
_KEYS: dict[str, type] = {"name": str, "bake": bool, "required": bool}
_MEND = "mend that table (docs/models.md)"
_HOW = "write PACK, template:NAME, workflow:PATH, or FOLDER=ADDRESS (docs/models.md)"


@dataclass(frozen=True, slots=True)
class Wish:
    """Files that are named in full, or a pack, template or workflow by the name or path that leads to its files."""

    kind: Literal["files", "pack", "template", "workflow"]
    name: str
    files: tuple[ModelFile, ...] = ()
    required: bool = False


def of_word(word: str) -> Wish:
    """Read a pack's name, `template:NAME`, `workflow:PATH`, or an address with an optional `FOLDER=` before it.

    Raises:
        ValueError: it is none of them.
    """
    for kind in _NAMED:
        if word.startswith(f"{kind}:"):
            return Wish(kind, _given(word.removeprefix(f"{kind}:"), "a name"))
    if _PACK.fullmatch(word):
        return Wish("pack", word)
    if word.startswith("-"):
        raise ValueError("no word begins with `-`")
    match = _FOLDER.fullmatch(word)
    row = {"url": match["rest"], "folder": match["folder"]} if match else {"url": word}
    file = _file(row)
    return Wish("files", file.name, (file,))


def of_model(row: Any) -> Wish:
    """Read a `[[model]]` table.

    Raises:
        ValueError: it is none.
    """
    values = _checked(row, _KEYS | _FILE_KEYS)
    required = values.pop("required", False)
    file = _file({key: values[key] for key in _FILE_KEYS if key in values}, values.get("name", ""), required=required)
    if not file.folder and source.of_text(file.url).kind != "civitai":
        raise ValueError("`folder` is missing")
    return Wish("files", file.name, (file,), required)


def of_pack(row: Any) -> Wish:
    """Read a `[[pack]]` table; one without files is the pack of that name that comfypod ships.

    Raises:
        ValueError: it is none.
    """
    values = _checked(row, _KEYS | {"file": list})
    name, required = values.get("name", ""), values.get("required", False)
    if not _PACK.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a pack: letters, digits, `.`, `_` and `-`")
    rows = [_checked(each, _FILE_KEYS) for each in values.get("file", ())]
    return Wish("pack", name, tuple(_file(each, pack=name, required=required) for each in rows), required)


def locked(models: Iterable[LockedModel]) -> tuple[ModelFile, ...]:
    """Return the models of an image's lock; without an address they cannot be fetched."""
    return tuple(
        ModelFile(
            model.name, model.url, model.folder, model.file, model.sha256, model.size, model.licence,
            gated=model.gated, pickle=model.pickle, pack=model.pack,
        )
        for model in models
    )  # fmt: skip


def wishes(
    manifest: Path | None, words: Iterable[str], lock: Iterable[ModelFile] = ()
) -> tuple[tuple[Wish, ...], tuple[Problem, ...]]:
    """Return all that a volume wants: by its image's lock, its file, and words; what is wrong is left out and named."""
    found: list[Wish] = [Wish("files", file.name, (file,), file.required) for file in lock]
    problems: list[Problem] = []

    def take(where: str, read: Callable[[Any], Wish], given: Any, hint: str) -> None:
        try:
            found.append(read(given))
        except ValueError as error:
            problems.append(Problem(ModelError.code, f"{where} is left out: {error}", hint))

    try:
        table = table_of(text_of(manifest)) if manifest else {}
        for key, read in (("model", of_model), ("pack", of_pack)):
            for index, row in enumerate(rows_of(table, key)):
                take(f"{manifest}: {key}[{index}]", read, row, _MEND)
    except (UsageError, StorageError) as error:
        problems.append(Problem(ModelError.code, error.message, error.hint))
    for word in words:
        take(f"the model {shown(word)}", of_word, word, _HOW)
    return tuple(dict.fromkeys(found)), tuple(problems)


def _given(text: str, what: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(f"{what} is missing")
    return text


def _checked(row: Any, keys: dict[str, type]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("a table is expected")  # noqa: TRY004 - one kind of error for all
    if unknown := sorted(set(row) - set(keys)):
        raise ValueError(f"there is no key {unknown[0]!r}; known are {', '.join(keys)}")
    for key, value in row.items():
        if type(value) is not keys[key]:
            raise ValueError(f"`{key}` is of another type")
    return row.copy()


def _file(row: dict[str, Any], name: str = "", *, pack: str = "", required: bool = False) -> ModelFile:
    """Check what names a file. Civitai says by itself which file it is, and where it belongs."""
    found = source.of_text(_given(row.get("url", ""), "`url`"))
    folder, file = row.get("folder", ""), row.get("file", "") or found.file
    if folder and inside(folder) != folder:
        raise ValueError(f"{folder!r} is no folder below models/")
    if (file or found.kind != "civitai") and ("/" in file or inside(file) != file or not file):
        raise ValueError(f"{file!r} is no plain name of a file; write `file`")
    if (sha256 := row.get("sha256", "")) and not is_sha256(sha256):
        raise ValueError("`sha256` has 64 hex digits in lower case")
    if row.get("size", 0) < 0:
        raise ValueError("`size` is a number of bytes")
    own = name or file or shown(row["url"])
    return ModelFile(
        **{**row, "folder": folder, "file": file}, name=f"{pack}/{own}" if pack else own, pack=pack, required=required
    )
