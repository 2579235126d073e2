"""The model packs that come with comfypod: `resources/packs.toml`, read when it is asked for."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from comfypod.models.file import ModelFile

if TYPE_CHECKING:
    from collections.abc import Mapping


def shipped() -> dict[str, tuple[ModelFile, ...]]:
    """Return the files of each pack by its name, in the table's order."""
    import tomllib

    body = tomllib.loads(resources.files("comfypod.resources").joinpath("packs.toml").read_text("utf-8"))
    return {pack["name"]: tuple(_file(pack["name"], row) for row in pack["file"]) for pack in body["pack"]}


def _file(pack: str, row: Mapping[str, Any]) -> ModelFile:
    """Leave out where its facts were read; every address of the table ends in the file's name."""
    given = {key: value for key, value in row.items() if key != "source"}
    file = row["url"].rpartition("/")[2]
    return ModelFile(f"{pack}/{file}", file=file, pack=pack, **given)
