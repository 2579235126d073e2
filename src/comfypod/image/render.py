"""`comfypod render`: what images are built from, as text; nothing is fetched and nothing is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from comfypod import files
from comfypod.errors import UsageError
from comfypod.image.context import rendered
from comfypod.lock.load import read_lock
from comfypod.lock.step import ensure_in_step
from comfypod.manifest.profiles import profile
from comfypod.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from comfypod.lock.schema import Lock

What = Literal["dockerfile", "bake", "compose", "all"]
WHAT: tuple[What, ...] = ("dockerfile", "bake", "compose", "all")
_ONE = {"bake": "docker-bake.hcl", "compose": "compose.yaml"}
_DOCKERFILE = "Dockerfiles/Dockerfile."


def render(what: What, names: Sequence[str], lock_file: Path | None, output: Path | None) -> Result:
    """Render one kind of file, or all; to standard output where it is one file, else below `output`.

    Raises:
        UsageError: several files, and nowhere to put them.
        LockError: the lock is missing or out of step with the manifest beside it, or lacks a profile.
        StorageError: the disk forbids it.
    """
    lock = read_lock(lock_file)
    ensure_in_step(lock_file, lock)
    found = rendered(lock, [profile(name) for name in _profiles(lock, names)])
    if output is None:
        return _printed(what, found)
    chosen = found if what in ("all", "dockerfile") else {_ONE[what]: found[_ONE[what]]}
    if what == "dockerfile":
        chosen = {name: data for name, data in found.items() if name not in _ONE.values()}
    changed = _write(chosen, output)
    text = f"{len(chosen)} files in {output}, {len(changed)} of them changed"
    return Result("render", {"what": what, "output": str(output), "files": list(chosen), "changed": changed}, text)


def _profiles(lock: Lock, names: Sequence[str]) -> list[str]:
    """Return the profiles that were named, each once, or all of the lock."""
    return list(dict.fromkeys(names or [target.profile for target in lock.targets]))


def _printed(what: What, found: Mapping[str, bytes]) -> Result:
    wanted = [name for name in found if name.startswith(_DOCKERFILE)]
    wanted = list(found) if what == "all" else wanted if what == "dockerfile" else [_ONE[what]]
    if len(wanted) != 1:
        hint = "give --output DIR" + (", or name one profile" if what == "dockerfile" else "")
        raise UsageError(f"`render {what}` makes {len(wanted)} files, and standard output takes one", hint)
    text = found[wanted[0]].decode()
    return Result("render", {"what": what, "files": wanted, "text": text}, text.removesuffix("\n"))


def _write(found: Mapping[str, bytes], output: Path) -> list[str]:
    """Write what differs from what is there; return the names of it."""
    changed = []
    for name, data in found.items():
        path = output / name
        files.make_folder(path.parent)
        try:
            if not path.is_file() or path.read_bytes() != data:
                files.write_atomic(path, data, durable=False)
                changed.append(name)
        except OSError as error:
            raise files.storage_error(error, f"cannot write {path}") from error
    return changed
