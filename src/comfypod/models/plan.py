"""What is to be done for the models that are wanted, before the first byte: what is here, what can be had, what not.

`look` reads disks, `make` is pure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from comfypod.models import source
from comfypod.models.look import PICKLES, other_size, wrong_with
from comfypod.models.needs import inside

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from comfypod.models.file import ModelFile
    from comfypod.models.places import Places
    from comfypod.models.record import Entry

_TOKENS = {"hugging-face": "HF_TOKEN", "civitai": "CIVITAI_TOKEN"}
_NO_FOLDER = "nothing says which folder it belongs to; write FOLDER= before its address"

State = Literal["have", "elsewhere", "fetch", "part", "wrong", "unknown", "refused"]


@dataclass(frozen=True, slots=True)
class There:
    """What disks say of one file.

    `size` is that of what stands in its place (-1: nothing), `wrong` why that is no model, `sha256` what it had when
    comfypod fetched it. `elsewhere` is a sound one in another place, `part` how many bytes of it have been fetched.
    `leaves` says that a link leads out of `models/` on its way.
    """

    size: int = -1
    wrong: str = ""
    sha256: str = ""
    elsewhere: str = ""
    part: int = 0
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One file and what is to be done about it.

    `reason` is the path of one that is elsewhere. `token` names the variable that its host wants, `clash` says that two
    want different files in its place, `held` that its contents are here under another name, `mends` of one that is
    wrong that the right one can be fetched.
    """

    file: ModelFile
    state: State
    reason: str = ""
    part: int = 0
    token: str = ""
    clash: bool = False
    held: bool = False
    mends: bool = False

    @property
    def fetched(self) -> bool:
        """Whether a pull fetches it."""
        return self.state in ("fetch", "part")


@dataclass(frozen=True, slots=True)
class Plan:
    """All files that are wanted, each once."""

    rows: tuple[Row, ...]

    @property
    def clashes(self) -> tuple[Row, ...]:
        """The places that two want differently."""
        return tuple(row for row in self.rows if row.clash)

    @property
    def bytes(self) -> int:
        """How many bytes are to be fetched, as far as sizes are known; the same contents are fetched once."""
        rows = {row.file.sha256 or row.file.place: row for row in self.rows if row.fetched and not row.held}
        return sum(max(0, row.file.size - row.part) for row in rows.values())

    @property
    def unsized(self) -> int:
        """How many files are to be fetched whose size is not known."""
        return sum(row.fetched and not row.file.size for row in self.rows)


def look(
    files: Iterable[ModelFile], places: Places, ours: Mapping[str, Entry], parts: Mapping[Path, tuple[int, int]]
) -> dict[str, There]:
    """Return what disks say of files, by place; `parts` are the bytes so far and in all of what is being fetched."""
    return {file.place: _look(file, places, ours.get(file.place), parts) for file in files if is_named(file)}


def make(
    files: Iterable[ModelFile], there: Mapping[str, There], tokens: Collection[str], held: Collection[str] = ()
) -> Plan:
    """Decide about each file; `tokens` are the variables of those that were given, `held` digests of what is here."""
    merged: dict[str, ModelFile] = {}
    clashes: dict[str, str] = {}
    for file in files:
        key = file.place if is_named(file) else file.url
        if (first := merged.setdefault(key, file)) is not file:
            if clash := _clash(first, file, there.get(key, There())):
                clashes[key] = clash
            merged[key] = _merged(first, file)
    rows = (_row(file, there.get(key, There()), clashes.get(key, ""), tokens) for key, file in merged.items())
    return Plan(tuple(replace(row, held=row.fetched and row.file.sha256 in held) for row in rows))


def is_named(file: ModelFile) -> bool:
    """Whether it is known where a file belongs, and that stays below `models/`."""
    return inside(file.place) == file.place and "/" not in file.file


def token_of(file: ModelFile) -> str:
    """Return the variable whose token a file's host takes; empty where none of ours is for it."""
    return _TOKENS.get(source.of_text(file.url).kind, "") if file.url else ""


def _look(file: ModelFile, places: Places, entry: Entry | None, parts: Mapping[Path, tuple[int, int]]) -> There:
    path = places.live / file.place
    size, wrong = _facts(path)
    leaves = not stays_below(places.live, path)
    if size >= 0:
        return There(size, wrong, entry.sha256 if entry is not None else "", leaves=leaves)
    elsewhere = next((str(each) for each in places.elsewhere(file) if _fits(file, *_facts(each))), "")
    part = parts.get(path, (0, 0))[0]
    return There(elsewhere=elsewhere, part=part, leaves=leaves)


def stays_below(folder: Path, path: Path) -> bool:
    """Whether a path is below a folder, which may itself be a link, when all links on its way are followed."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _facts(path: Path) -> tuple[int, str]:
    """Return a file's size, -1 where nothing has that name, and what is wrong with it."""
    try:
        if path.is_dir():
            return 0, "it is a folder"
        return path.stat().st_size, wrong_with(path)
    except (FileNotFoundError, NotADirectoryError):
        return (0, "it is a link to nothing") if path.is_symlink() else (-1, "")
    except OSError as error:
        return 0, f"it cannot be read: {error.strerror}"


def _fits(file: ModelFile, size: int, wrong: str) -> bool:
    return size >= 0 and not wrong and file.size in (0, size)


def _row(file: ModelFile, there: There, clash: str, tokens: Collection[str]) -> Row:
    """Decide about one file, the most certain first."""
    if clash:
        return Row(file, "refused", clash, clash=True)
    if there.size >= 0:
        return _standing(file, there, tokens)
    if there.elsewhere:
        return Row(file, "elsewhere", there.elsewhere)
    if not file.url:
        return Row(file, "unknown", "nothing says where it can be fetched")
    if not is_named(file):
        told = f"{file.place!r} is no place below models/" if file.folder and file.file else file.trouble or _NO_FOLDER
        return Row(file, "refused", told)
    return _fetched(file, there, tokens)


def _standing(file: ModelFile, there: There, tokens: Collection[str]) -> Row:
    """Decide about a file in whose place something stands."""
    wrong = there.wrong or (other_size(there.size, file.size) if file.size else "")
    if not wrong and file.sha256 and there.sha256 not in ("", file.sha256):
        wrong = "it is another one: what was fetched to there has another digest than the one that is wanted"
    if not wrong:
        return Row(replace(file, size=there.size), "have")
    return Row(file, "wrong", wrong, mends=bool(file.url) and is_named(file) and _fetched(file, there, tokens).fetched)


def _fetched(file: ModelFile, there: There, tokens: Collection[str]) -> Row:
    """Decide about a file that is nowhere."""
    token = token_of(file) if file.gated else ""
    if there.leaves:
        return Row(file, "refused", f"a link leads out of models/ on the way to {file.folder}")
    if not file.pickle and PurePath(file.file).suffix.lower() in PICKLES:
        told = "its format can run code when it is loaded; write it as [[model]] with pickle = true if you trust it"
        return Row(file, "refused", told)
    if token and token not in tokens:
        return Row(file, "refused", f"its host asks for a licence to be accepted there, and for {token}", token=token)
    return Row(file, "part" if there.part else "fetch", "", there.part, token)


def _clash(one: ModelFile, other: ModelFile, there: There) -> str:
    """Say why two wishes for one place cannot both be met; nothing where the same file meets both.

    Where nothing tells two addresses apart or together, what is here already is taken for both.
    """
    if one.sha256 and other.sha256:
        differ = "digests" if one.sha256 != other.sha256 else ""
    elif one.size and other.size and one.size != other.size:
        differ = "sizes"
    else:
        same = not (one.url and other.url) or source.of_text(one.url) == source.of_text(other.url)
        differ = "" if same or there.size >= 0 or there.elsewhere else "addresses, with no digests to compare"
    return f"{one.name} and {other.name} want different files there, by their {differ}" if differ else ""


def _merged(one: ModelFile, other: ModelFile) -> ModelFile:
    return replace(
        one, url=one.url or other.url, sha256=one.sha256 or other.sha256, size=one.size or other.size,
        licence=one.licence or other.licence, gated=one.gated or other.gated, pickle=one.pickle or other.pickle,
        required=one.required or other.required,
    )  # fmt: skip
