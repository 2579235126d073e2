"""`comfypod lock`: make, renew or check the lock that stands beside the manifest."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.errors import LockError, UsageError
from comfypod.lock.load import FILE_NAME, default_bytes, read_lock, write_lock
from comfypod.lock.make import Upgrade, make
from comfypod.lock.reconcile import drift
from comfypod.log import human_bytes
from comfypod.manifest import load as manifests
from comfypod.manifest.profiles import load_profiles
from comfypod.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfypod.lock.schema import Lock
    from comfypod.log import Console
    from comfypod.manifest.schema import Manifest

COMMAND = "lock"


def lock_command(
    manifest_path: Path | None,
    lock_path: Path | None = None,
    *,
    check: bool = False,
    upgrade: Sequence[str] | None = None,
    console: Console,
) -> Result:
    """Bring the lock in step with the manifest, or with `check` only tell whether it is.

    Without paths the manifest is `comfypod.toml` in the working folder, else comfypod's own, and the lock stands beside
    it. `upgrade` names what may move to newer versions: None for nothing, an empty list for everything.

    Raises:
        UsageError: there is no manifest to lock, or `upgrade` names something unknown.
        ManifestError: the manifest has problems.
        LockError: with `check`, one entry in `problems` for each disagreement; else something cannot be pinned.
        SourceError, IntegrityError, StorageError: see `make` and `write_lock`.
    """
    if manifest_path is None and Path(manifests.FILE_NAME).is_file():
        manifest_path = Path(manifests.FILE_NAME)
    if lock_path is None and manifest_path is not None:
        lock_path = manifest_path.with_name(FILE_NAME)
    if check:
        return _check(manifests.load_manifest(manifest_path), lock_path)
    if manifest_path is None or lock_path is None:
        raise UsageError("there is no comfypod.toml here to lock", "write one, or let `comfypod lock --init` do it")
    manifest = manifests.load_manifest(manifest_path)
    previous = read_lock(lock_path) if lock_path.exists() else None
    allowed = _upgrade(upgrade, manifest, previous)
    lock = make(manifest, previous, allowed, manifest_path.absolute().parent, console)
    written = write_lock(lock_path, lock)
    return _report(lock, previous, lock_path, written=written)


def init_command(folder: Path) -> Result:
    """Write comfypod's own manifest, full of comments, and its lock into a folder.

    Raises:
        UsageError: the folder has a manifest or a lock already.
        StorageError: the disk forbids it.
    """
    manifest, lock = folder / manifests.FILE_NAME, folder / FILE_NAME
    for path in (manifest, lock):
        if path.exists():
            raise UsageError(f"{path} is there already", "nothing was changed; `comfypod lock` brings the lock in step")
    try:
        files.write_atomic(lock, default_bytes())
        files.write_atomic(manifest, manifests.default_text().encode())
    except OSError as error:
        raise files.storage_error(error, f"cannot write into {folder}") from error
    text = f"wrote {manifest} and {lock}; change the first, then run `comfypod lock`"
    return Result(COMMAND, {"manifest": str(manifest), "lock": str(lock)}, text)


def _check(manifest: Manifest, lock_path: Path | None) -> Result:
    lock = read_lock(lock_path)
    found = drift(manifest, load_profiles(), lock)
    name = str(lock_path) if lock_path else f"comfypod's own {FILE_NAME}"
    if found:
        raise LockError(
            f"{name} is out of step with the manifest in {len(found)} place{'s' if len(found) > 1 else ''}",
            f"run `{found[0].command}`",
            tuple(each.problem for each in found),
        )
    return Result(COMMAND, {"in_step": True, **_facts(lock)}, f"{name} is in step with the manifest")


def _upgrade(names: Sequence[str] | None, manifest: Manifest, previous: Lock | None) -> Upgrade:
    if names is None or not names:
        return Upgrade(everything=names is not None)
    known = {"comfyui", *(each.name for table in (manifest.node, manifest.model, manifest.pack) for each in table)}
    for environment in previous.environments if previous else ():
        known.update(package.name for package in (*environment.packages, *environment.build))
    lowered = {name.lower() for name in known}
    for name in names:
        if name.lower() not in lowered:
            close = difflib.get_close_matches(name.lower(), sorted(lowered), 1)
            hint = f"did you mean {close[0]!r}?" if close else "name a package, a node, a model, a pack, or `comfyui`"
            raise UsageError(f"--upgrade {name}: the lock has nothing of this name", hint)
    return Upgrade(frozenset(name.lower() for name in names))


def _facts(lock: Lock) -> dict[str, Any]:
    return {
        "comfyui": lock.comfyui.version,
        "nodes": len(lock.nodes),
        "models": len(lock.models),
        "model_bytes": sum(model.size for model in lock.models),
        "environments": [
            {"name": each.name, "packages": len(each.packages), "bytes": each.download_bytes}
            for each in lock.environments
        ],
    }


def _versions(lock: Lock | None) -> dict[tuple[str, str, str], str]:
    """Return (kind, name, environment) to version for everything that a lock pins."""
    if lock is None:
        return {}
    pins = {("comfyui", "comfyui", ""): lock.comfyui.version}
    pins.update({("node", node.name, ""): node.commit or node.digest.removeprefix("sha256:") for node in lock.nodes})
    pins.update({("model", model.name, ""): model.sha256 for model in lock.models})
    for environment in lock.environments:
        pins.update({("package", each.name, environment.name): each.version for each in environment.packages})
        pins.update({("build package", each.name, environment.name): each.version for each in environment.build})
    return pins


def changes(previous: Lock | None, lock: Lock) -> list[dict[str, Any]]:
    """Return what differs between two locks: kind, name, versions before and after (None: not there), environments."""
    before, after = _versions(previous), _versions(lock)
    grouped: dict[tuple[str, str, str | None, str | None], list[str]] = {}
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            kind, name, environment = key
            grouped.setdefault((kind, name, before.get(key), after.get(key)), []).append(environment)
    return [
        {"kind": kind, "name": name, "before": old, "after": new, "environments": [each for each in places if each]}
        for (kind, name, old, new), places in grouped.items()
    ]


def _report(lock: Lock, previous: Lock | None, path: Path, *, written: bool) -> Result:
    changed = changes(previous, lock) if previous else []
    facts = _facts(lock)
    lines = [f"wrote {path}" if written else f"{path} is up to date"]
    lines.append(f"  ComfyUI {lock.comfyui.version}, {facts['nodes']} nodes, {facts['models']} models")
    lines += [
        f"  {row['name']}: {row['packages']} packages, {human_bytes(row['bytes'])}" for row in facts["environments"]
    ]
    lines += [_change_line(change) for change in changed]
    return Result(COMMAND, {"lock": str(path), "written": written, **facts, "changes": changed}, "\n".join(lines))


def _change_line(change: dict[str, Any]) -> str:
    old, new = (
        value[:12] if change["kind"] in ("node", "model") and value else value
        for value in (change["before"], change["after"])
    )
    what = f"{change['kind']} {change['name']}"
    if old is None:
        return f"  added {what} {new}"
    return f"  removed {what} {old}" if new is None else f"  updated {what} {old} -> {new}"
