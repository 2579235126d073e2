"""The environment stage: the image's Python, and the volume's layer of packages over it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.environment import layer as layers
from comfypod.environment import requests
from comfypod.environment.look import look
from comfypod.environment.mirror import mirror
from comfypod.environment.relocate import relocate
from comfypod.environment.safety import clean
from comfypod.environment.succession import is_behind, others, put_by
from comfypod.environment.transaction import recover
from comfypod.errors import ComfypodError, InstallError, Problem
from comfypod.files import read_small, storage_error
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.environment.layer import Layer
    from comfypod.environment.look import Look

_COMPLETE_SECONDS = 900.0


def prepare_environment(context: Context, view: StageView) -> str:
    """Believe in the environment only when its Python is there, and put the volume's layer of packages over it."""
    del view
    python = Path(context.pod.python)
    if not os.access(python, os.X_OK):
        raise InstallError(f"ComfyUI's Python {python} is missing", "run `comfypod up` again, or pull the image again")
    layer = layers.layer_of(context.pod, context.layout)
    try:
        found = _in_place(context, layer)
    except (OSError, ComfypodError) as error:
        context.warn(_unused(layer, error))
        return f"torch {context.pod.torch}, without the packages of the volume"
    except (ValueError, TypeError, RuntimeError) as error:
        # What lies on the volume may be anything, and none of it may keep the pod from coming up.
        told = InstallError(f"what is recorded of it makes no sense: {error}", "`comfypod env rebuild` makes it anew")
        context.warn(_unused(layer, told))
        return f"torch {context.pod.torch}, without the packages of the volume"
    _use(context, layer, found)
    return f"torch {context.pod.torch}{found.summary}"


def _unused(layer: Layer, error: OSError | ComfypodError) -> Problem:
    told = error if isinstance(error, ComfypodError) else storage_error(error, "it cannot be made")
    return Problem(told.code, f"packages of {layer.root} are not used: {told.message}", told.hint)


def _in_place(context: Context, layer: Layer) -> Look:
    """Make the layer where there is none, mend what can be mended, and look at what is in it.

    Where nothing was installed since the last boot, this reads a marker and looks at a few names. Nothing of the layer
    is started before it was looked at: any start of Python runs what lies there.
    """
    layout, alone = context.layout, context.core is None or context.core.alone
    for line in recover(layer, layout) if alone else ():
        context.console.line(f"  {line}")
    for other in others(layer, layout) if alone else ():
        # Damage to what another image has left is no reason to do without this one's.
        with contextlib.suppress(OSError):
            requests.note_left(other, layout)
    if (marker := layers.read_marker(layer)) is None or (marker.get("rebuild") and alone):
        _make(context, layer, alone=alone)
    if alone:
        _mend(context, layer)
    mirror(layer)
    return look(layer)


def _mend(context: Context, layer: Layer) -> None:
    """Have a layer that no other pod uses be as it should be here and now."""
    layout = context.layout
    relocate(layer, layout.root)
    layers.restore(layer)
    requests.note_found(layer, layout)
    for problem in clean(layer, layout, look(layer)):
        context.warn(problem)
    if is_behind(layer, layout):
        complete(context, layer)


def _make(context: Context, layer: Layer, *, alone: bool) -> None:
    """Make a layer: empty where nobody has asked for anything, else from what the layer before has, with no network."""
    if put_by(layer) is None and os.path.lexists(layer.root):
        _spare(context, layer, alone=alone)
    if requests.read(context.layout):
        complete(context, layer)
    else:
        layers.create(layer)


def _spare(context: Context, layer: Layer, *, alone: bool) -> None:
    """Set aside a layer whose marker is lost, where somebody's packages are in it; one that was never whole may go."""
    if not alone:
        raise InstallError("another pod uses it, and it is not complete", "start this pod again when that one is gone")
    with contextlib.suppress(FileNotFoundError):
        read_small(layer.marker)
    if layer.root.is_symlink() or (layer.site.is_dir() and requests.added(layer)):
        place = put_aside(context.layout, layer.root, "its marker cannot be read")
        told = f"packages of {layer.root} are in {place}: its marker cannot be read, and it is made anew"
        context.warn(Problem(InstallError.code, told, "install again what is missing; `comfypod env status` shows it"))


def complete(context: Context, layer: Layer) -> None:
    """Give a layer what was asked for, as far as that can be had without a network."""
    from comfypod.boot.wanted import installer_environ, lacking, stopper
    from comfypod.environment.rebuild import previous_of, rebuild

    before = previous_of(layer, context.layout)
    done = rebuild(
        layer, context.layout, before, network=False, environ=installer_environ(context, layer),
        seconds=_COMPLETE_SECONDS, tick=stopper(context),
    )  # fmt: skip
    for line, why in done.missing:
        context.warn(lacking(line, why))


def _use(context: Context, layer: Layer, found: Look) -> None:
    """Let everything that is started from now on run in the layer."""
    context.layer = layer
    context.pod = replace(context.pod, python=str(layer.python))
    context.environ = {**context.environ, **layer.environ(context.layout.cache)}
    context.health.environment = {"key": layer.key, "torch": context.pod.torch, "changed": found.rows}
