"""What a workflow needs of models, and which names of files may be believed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfypod.models.look import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable

# What folders were called before; ComfyUI looks into both.
_RENAMED = {"unet": "diffusion_models", "clip": "text_encoders"}
_DIGITS = frozenset("0123456789abcdef")
_LONGEST_PART = 255
_LONGEST_NAME = 1024
_ENDS = tuple(SUFFIXES)


@dataclass(frozen=True, slots=True)
class Need:
    """A file that a workflow names: `file` below `folder` below `models/`.

    `folder`, `url` and `sha256` are empty while they are not known. `by` is the type of the node that names it; `idle`
    says that only nodes do which are bypassed, muted or never used.
    """

    file: str
    folder: str = ""
    url: str = ""
    sha256: str = ""
    by: str = ""
    idle: bool = False

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.file.rpartition("/")[2]

    @property
    def complete(self) -> bool:
        """Whether it is known where it belongs and where it can be had."""
        return bool(self.folder and self.url)


@dataclass(frozen=True, slots=True)
class Needs:
    """All that a workflow names: files, types of nodes, and names that leave their folder and are left out."""

    needs: tuple[Need, ...] = ()
    nodes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def active(self) -> tuple[Need, ...]:
        """What it takes to run it as it is."""
        return tuple(need for need in self.needs if not need.idle)

    @property
    def complete(self) -> bool:
        """Whether all of that can be had."""
        return not self.refused and all(need.complete for need in self.active)


def is_model(text: str) -> bool:
    """Whether a text looks like the name of a model file."""
    return len(text) <= _LONGEST_NAME and text.lower().endswith(_ENDS) and "://" not in text and "\n" not in text


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 as comfypod writes it."""
    return len(text) == 64 and set(text) <= _DIGITS


def inside(text: str) -> str:
    """Return a path as `/` parts it when it stays below the folder that it is relative to, else nothing.

    No part is hidden: `.` and `..` never are names, and ComfyUI looks into no folder that begins with a dot.
    """
    path = text.replace("\\", "/")
    parts = path.split("/")
    plain = all(part and not part.startswith(".") and part.isprintable() and part == part.strip() for part in parts)
    fits = len(path) <= _LONGEST_NAME and all(len(part.encode()) <= _LONGEST_PART for part in parts if plain)
    return path if plain and fits and ":" not in path else ""


def folder_of(text: str) -> str:
    """Return a folder below `models/` by the name that it has now, nothing where it is none."""
    folder = inside(text)
    return _RENAMED.get(folder, folder)


def merged(found: Iterable[Need]) -> tuple[Need, ...]:
    """Return each file once a folder; what one node does not know of it, another may."""
    known: dict[tuple[str, str], Need] = {}
    for need in sorted(found, key=lambda need: not need.folder):
        places = [(need.file, need.folder)]
        if not need.folder:
            places = [place for place in known if place[0] == need.file] or places
        for place in places:
            known[place] = _joined(known[place], need) if place in known else need
    return tuple(known[place] for place in sorted(known))


def _joined(first: Need, second: Need) -> Need:
    idle = first.idle and second.idle
    if not first.url:
        return replace(first, url=second.url, sha256=second.sha256, idle=idle)
    same = first.url == second.url
    return replace(first, sha256=first.sha256 or (second.sha256 if same else ""), idle=idle)
