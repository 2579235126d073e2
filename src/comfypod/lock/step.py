"""Whether a lock may be used: it must say what the manifest beside it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.errors import LockError
from comfypod.lock.reconcile import drift
from comfypod.manifest.load import FILE_NAME, load_manifest
from comfypod.manifest.profiles import load_profiles

if TYPE_CHECKING:
    from comfypod.lock.schema import Lock


def ensure_in_step(path: Path | None, lock: Lock) -> None:
    """Refuse a lock that no longer says what the manifest beside it says; `path` is None for comfypod's own.

    Raises:
        LockError: they disagree, or there is a manifest without a lock.
        ManifestError: the manifest has problems.
    """
    manifest = (path.parent if path is not None else Path()) / FILE_NAME
    if not manifest.is_file():
        return
    if path is None:
        raise LockError(f"{manifest} has no comfypod.lock beside it", "run `comfypod lock`")
    if found := drift(load_manifest(manifest), load_profiles(), lock):
        message = f"{path} is out of step with {manifest.name}"
        raise LockError(message, "run `comfypod lock`", tuple(each.problem for each in found))
