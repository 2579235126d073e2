"""What a pull has to say of one file while it runs and after it: a small file on the volume, for whoever looks.

It counts until the file is tried again, is there, or is wanted from another address. Anybody may have written it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from comfypod.download.address import shown
from comfypod.errors import StorageError
from comfypod.files import make_folder, read_small, write_atomic
from comfypod.workspace.run import Boot, this_process

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from comfypod.models.file import ModelFile
    from comfypod.models.plan import Row
    from comfypod.workspace.layout import Layout

_STATES = ("failed", "waiting")
_LONGEST = 1 << 13
# A try may take as long after the pause before it.
_SLACK_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Note:
    """`state` of the file that is fetched from `url` to `place` below `models/`, and why; the rest names the pull.

    One that is waiting counts while its pull runs, or where that is not to be seen, until a while after `until`.
    """

    place: str
    name: str
    url: str
    state: str
    reason: str
    until: int = 0
    pid: int = 0
    started: int = 0
    namespace: str = ""

    @property
    def under_way(self) -> bool:
        """Whether the pull that said so still runs, here."""
        pull = Boot(self.pid, self.started, self.namespace)
        return pull.here and pull.alive

    @property
    def counts(self) -> bool:
        """Whether it still says how things are."""
        here = Boot(self.pid, self.started, self.namespace).here
        return self.state == "failed" or (self.under_way if here else time.time() < self.until + _SLACK_SECONDS)


def write(layout: Layout, file: ModelFile, state: str, reason: str, seconds: float = 0) -> None:
    """Note how it stands with a file, for so many seconds; a disk that refuses loses a note and nothing else."""
    me, reason = this_process(), "".join(letter if letter.isprintable() else "?" for letter in reason)
    note = Note(
        file.place,
        file.name,
        shown(file.url),
        state,
        reason,
        int(time.time() + seconds),
        me.pid,
        me.started,
        me.namespace,
    )
    with contextlib.suppress(OSError, StorageError):
        make_folder(layout.model_notes)
        write_atomic(_path(layout, file.place), json.dumps(asdict(note)).encode(), durable=False)


def forget(layout: Layout, places: Iterable[str]) -> None:
    """Take back what was said of files, as those that are tried again."""
    for place in places:
        with contextlib.suppress(OSError):
            _path(layout, place).unlink(missing_ok=True)


def sweep(layout: Layout, wanted: Iterable[str]) -> None:
    """Remove what was said of files that nothing wants, as they are not tried again."""
    kept = {_path(layout, place).name for place in wanted}
    kept |= {_path(layout, place).name for place, note in read(layout).items() if note.under_way}
    with contextlib.suppress(OSError):
        for path in layout.model_notes.iterdir():
            if path.name not in kept:
                path.unlink()


def of_row(known: dict[str, Note], row: Row) -> Note | None:
    """Take out what was said of a file that is still to be fetched, from the address that it is wanted from."""
    note = known.pop(row.file.place, None)
    return note if note is not None and row.fetched and note.url == shown(row.file.url) else None


def read(layout: Layout) -> dict[str, Note]:
    """Return what counts, by place; what makes no sense is left out."""
    try:
        paths = sorted(layout.model_notes.iterdir())
    except OSError:
        return {}
    found = ((path, _read(path)) for path in paths)
    return {
        note.place: note
        for path, note in found
        if note is not None and note.counts and _path(layout, note.place) == path
    }


def _read(path: Path) -> Note | None:
    try:
        body: Any = json.loads(read_small(path, _LONGEST))
        kinds = {each.name: int if str(each.type) == "int" else str for each in fields(Note)}
        if not isinstance(body, dict) or any(type(body.get(key)) is not kind for key, kind in kinds.items()):
            return None
        note = Note(**body)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    words = (note.place, note.name, note.reason)
    return note if note.state in _STATES and all(word.isprintable() for word in words) else None


def _path(layout: Layout, place: str) -> Path:
    return layout.model_notes / f"{hashlib.sha256(place.encode(errors='replace')).hexdigest()[:24]}.json"
