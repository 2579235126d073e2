"""`comfypod env`: what a volume adds to its image's Python packages, whether it is sound, and making it anew."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.environment import layer as layers
from comfypod.environment import requests
from comfypod.environment.dists import recorded
from comfypod.environment.look import examine
from comfypod.environment.rebuild import missing
from comfypod.environment.rebuild import rebuild as make_again
from comfypod.environment.succession import others, put_by
from comfypod.errors import InstallError, Problem, StorageError
from comfypod.files import storage_errors, tree_bytes
from comfypod.host.startable import held
from comfypod.host.volume import become_owner, ensure_there, pod_of, settings_of
from comfypod.log import human_bytes
from comfypod.result import Result
from comfypod.workspace import run
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.environment.layer import Layer
    from comfypod.log import Console
    from comfypod.workspace.layout import Layout

_SECONDS = 300.0
_AGAIN = "`comfypod env rebuild` makes the layer anew"
_TORCH = "import torch; print(torch.__file__, torch.__version__, torch.version.cuda, sep='\\n')"


def status(layout: Layout) -> Result:
    """Show what the volume adds to the image's packages, who asked for it, and what is missing.

    Raises:
        StorageError: the layer was never made, or cannot be read.
    """
    layer = _made(layout)
    with storage_errors(f"cannot read {layer.root}"):
        found, kept = examine(layer), [_kept(other) for other in others(layer, layout)]
    asked = requests.read(layout)
    data = {
        "key": layer.key, "path": str(layer.root), "image": str(layer.image), "changed": found.rows,
        "requests": [{"who": row.who, "line": row.line} for row in asked], "missing": missing(layer),
        "kept": kept,
    }  # fmt: skip
    text = [f"layer      {layer.key}", f"image      {layer.image}, {len(layer.image_dists)} packages"]
    text += [f"{row['state']:<10} {_change(row)}" for row in found.rows]
    text += [f"asked for  {row.line} ({row.who})" for row in asked]
    text += [f"missing    {line}: {why}" for line, why in missing(layer)]
    text += [f"kept       {row['name']}, {human_bytes(row['bytes'])}, changed {row['days']} days ago" for row in kept]
    return Result("env status", data, "\n".join(text))


def _kept(other: Layer) -> dict[str, Any]:
    """Return what another layer takes on the disk, and how long ago it was changed, by its marker."""
    seconds = time.time() - (other.marker if other.marker.exists() else other.root).lstat().st_mtime
    return {"name": other.key, "bytes": tree_bytes(other.root), "days": max(0, int(seconds // 86_400))}


def _change(row: dict[str, str]) -> str:
    versions = (
        f"{row['version']} instead of the image's {row['image']}" if row["version"] else f"image's {row['image']}"
    )
    return f"{row['name']} {versions if row['image'] else row['version']}"


def verify(layout: Layout) -> Result:
    """Look whether everything in the layer is whole and torch is the image's; exit code 7 where something is not.

    Raises:
        StorageError: the layer was never made, or cannot be read.
    """
    layer = _made(layout)
    with storage_errors(f"cannot read {layer.root}"):
        wrong = tuple(_wrong(layer))
    data = {"key": layer.key, "wrong": [problem.message for problem in wrong]}
    if not wrong:
        return Result("env verify", data, f"the layer {layer.key} is sound")
    text = "\n".join(problem.message for problem in wrong)
    return Result("env verify", data, text, "partial", InstallError.exit_code, wrong)


def _wrong(layer: Layer) -> Iterator[Problem]:
    told = {
        "refused": "stands before the image's and may not",
        "hidden": "is the image's, and installers take it for missing",
    }
    for change in examine(layer).changes:
        if change.state in told:
            hint = "the next start of the pod sets it aside" if change.state == "refused" else _AGAIN
            yield Problem(InstallError.code, f"{change.name} {told[change.state]}", hint)
    for dist in requests.added(layer).values():
        # A path file that runs code is set aside, and named, by whoever starts the pod.
        names = recorded(layer.site, dist)
        lost = [name for name in names if not name.endswith(".pth") and not os.path.lexists(layer.site / name)]
        if not names:
            yield Problem(InstallError.code, f"{dist} has no list of its files that can be read", _AGAIN)
        elif lost:
            yield Problem(InstallError.code, f"{dist} lacks {len(lost)} files, the first: {lost[0]}", _AGAIN)
    if "torch" in layer.image_dists:
        yield from _torch(layer)


def _torch(layer: Layer) -> Iterator[Problem]:
    """Compare the torch that the layer's Python imports with the one that the image's does."""
    said = []
    for python in (layer.python, layer.image / "bin" / "python"):
        done = proc.run((str(python), "-I", "-c", _TORCH), seconds=_SECONDS)
        if not done.ok:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            yield Problem(InstallError.code, f"torch does not import with {python}: {last}", _AGAIN)
            return
        said.append(done.stdout)
    if said[0] != said[1]:
        yield Problem(InstallError.code, f"torch is {said[0].split()} and the image's is {said[1].split()}", _AGAIN)


def rebuild(layout: Layout, console: Console) -> Result:
    """Make the layer anew from what was asked for; while a pod runs, its next start does it.

    Raises:
        StorageError: the layer was never made, or the disk failed.
    """
    layer = _made(layout)
    if run.running(layout.run_record) is not None:
        with storage_errors(f"cannot write {layer.marker}"):
            layers.remember(layer, rebuild=True)
        text = "the next start makes the layer anew; stop and start the pod"
        return Result("env rebuild", {"key": layer.key, "done": False}, text)
    environ = {**child_environ(os.environ, layer.python, layout.root), **layer.environ(layout.cache)}
    offline = settings_of(layout).offline
    with held(layout), storage_errors(f"cannot make {layer.root}"), console.progress("packages"):
        before = put_by(layer)
        was = layers.Layer(before, before.name, layer.image) if before is not None else None
        done = make_again(layer, layout, was, network=not offline, environ=environ)
    lacking = tuple(Problem(InstallError.code, f"{line} is not installed: {why}", "") for line, why in done.missing)
    lacking += done.aside
    data: dict[str, Any] = {"key": layer.key, "done": True, "installed": list(done.installed)}
    text = f"made {layer.key} with {len(done.installed)} packages" + "".join(f"\n  {p.message}" for p in lacking)
    code = InstallError.exit_code if lacking else 0
    return Result("env rebuild", data, text, "partial" if lacking else "success", code, lacking)


def _made(layout: Layout) -> Layer:
    """Return the layer of the image that would boot."""
    ensure_there(layout)
    become_owner(layout)
    layer = layers.layer_of(pod_of(layout), layout)
    if layers.read_marker(layer) is None:
        raise StorageError(f"{layer.root} was not made yet", "start the pod once")
    return layer
