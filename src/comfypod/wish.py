"""Custom nodes that are asked for: what names one, and how they are written in the environment and in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfypod.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = ("name", "git", "ref", "registry", "version", "required")
_REGISTRY = "registry:"
_NAME = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
# ComfyUI does not look into these, and Git keeps its own in one of them.
_HIDING = (".disabled", ".git", ".")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}")
_HOST = re.compile(r"\w+://[^/]*|[\w.-]+@[\w.-]+:")


@dataclass(frozen=True, slots=True)
class Wish:
    """A node by its folder's name: a Git address with a commit, tag or branch, or an id of the registry.

    An empty `version` is the newest one when it is fetched first.
    """

    name: str
    git: str = ""
    ref: str = ""
    registry: str = ""
    version: str = ""
    required: bool = False

    def __str__(self) -> str:
        """Write it as `COMFYPOD_NODES` has it, without a login."""
        if self.registry:
            return f"{_REGISTRY}{self.registry}" + (f"@{self.version}" if self.version else "")
        from comfypod.download.address import shown

        return shown(self.git) + (f"@{self.ref}" if self.ref != "HEAD" else "")


def is_name(text: str) -> bool:
    """Whether a text can be a node's folder: it stays in `custom_nodes`, and ComfyUI looks at it."""
    return _NAME.fullmatch(text) is not None and not text.lower().endswith(_HIDING)


def of_word(word: str) -> Wish:
    """Read one word: a Git address with an optional `@REF`, or `registry:ID@VERSION`.

    Raises:
        ValueError: it is neither.
    """
    if word.startswith(_REGISTRY):
        name, _, version = word.removeprefix(_REGISTRY).partition("@")
        return _checked(Wish(name, registry=name, version=version))
    host = _HOST.match(word)
    start = host.end() if host else 0
    at = word.rfind("@", start + 1)
    # `/@scope/` is part of an address.
    url, ref = (word[:at], word[at + 1 :]) if at > 0 and word[at - 1] != "/" else (word, "HEAD")
    return _checked(Wish(_last_part(url[start:]), git=url, ref=ref))


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].removesuffix(".git")


def of_words(text: str) -> tuple[Wish, ...]:
    """Read words that are parted by commas or space; of two with one name the later counts.

    Raises:
        ValueError: one of them names no node.
    """
    found = {wish.name.casefold(): wish for wish in map(of_word, text.replace(",", " ").split())}
    return tuple(found.values())


def of_row(row: Any) -> Wish:
    """Read a `[[node]]` table of a workspace.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(row, dict):
        raise ValueError("a node is written as a table, [[node]]")  # noqa: TRY004 - one kind of error for all
    if unknown := sorted(set(row) - set(KEYS)):
        raise ValueError(f"there is no key {unknown[0]!r}; known are {', '.join(KEYS)}")
    required = row.get("required", False)
    texts = {key: row[key] for key in KEYS if key in row and key != "required"}
    if not isinstance(required, bool) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("`required` is true or false, everything else a text")
    if bool(texts.get("git")) == bool(texts.get("registry")):
        raise ValueError("a node has `git` and `ref`, or `registry` and `version`")
    if texts.get("git"):
        texts.setdefault("ref", "HEAD")
    name = texts.pop("name", "") or _last_part(texts.get("git", "")) or texts["registry"]
    return _checked(Wish(name, required=required, **texts))


def as_row(wish: Wish) -> Mapping[str, str | bool]:
    """Return the table that `of_row` reads; `ref` stands there also where it is the default."""
    values = {key: getattr(wish, key) for key in KEYS}
    return {key: value for key, value in values.items() if value}


def _checked(wish: Wish) -> Wish:
    if wish.registry:
        if not _ID.fullmatch(wish.registry) or (wish.version and not _VERSION.fullmatch(wish.version)):
            raise ValueError(f"registry:ID@VERSION is expected, not {_REGISTRY}{wish.registry}@{wish.version}")
        if wish.git or wish.ref:
            raise ValueError("a node has `git` and `ref`, or `registry` and `version`")
    else:
        if wish.version:
            raise ValueError("`version` belongs to `registry`; a Git address has `ref`")
        # Not on the way of a boot that has nothing to ask for.
        from comfypod import git

        try:
            git.ensure_address(wish.git, wish.ref)
        except SourceError as error:
            raise ValueError(error.message) from error
    if not is_name(wish.name):
        raise ValueError(f"{wish.name!r} cannot be the name of a node's folder")
    return wish
