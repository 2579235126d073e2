"""The environment stage: the image's Python, and the volume's layer of packages over it."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot.context import stopper
from comfypod.environment import layer as layers
from comfypod.environment import requests
from comfypod.environment.look import look
from comfypod.environment.mirror import mirror
from comfypod.environment.relocate import relocate
from comfypod.environment.safety import clean
from comfypod.environment.succession import behind, finished, previous_of, put_by
from comfypod.environment.transaction import recover
from comfypod.errors import ComfypodError, InstallError, Problem
from comfypod.files import is_folder, read_small, storage_errors
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.environment.layer import Layer
    from comfypod.environment.look import Look

_COMPLETE_SECONDS = 900.0
# What is told of a marker that is not there or is none; a disk may give back another one tomorrow.
_LOST = frozenset({errno.ENOENT, errno.EINVAL, errno.EFBIG, errno.ELOOP})


def prepare_environment(context: Context, view: StageView) -> str:
    """Believe in the environment only when its Python is there, and put the volume's layer of packages over it."""
    del view
    python = Path(context.pod.python)
    if not os.access(python, os.X_OK):
        raise InstallError(f"ComfyUI's Python {python} is missing", "run `comfypod up` again, or pull the image again")
    layer = layers.layer_of(context.pod, context.layout)
    try:
        with storage_errors("it cannot be made"):
            found = _in_place(context, layer)
    except (ComfypodError, ValueError) as error:
        # What lies on a volume may have names that no file can have, and none of it may keep the pod from coming up.
        odd = InstallError(f"what lies there makes no sense: {error}", "`comfypod env rebuild` makes it anew")
        told = error if isinstance(error, ComfypodError) else odd
        context.warn(Problem(told.code, f"packages of {layer.root} are not used: {told.message}", told.hint))
        return f"torch {context.pod.torch}, without the packages of the volume"
    _use(context, layer, found)
    return f"torch {context.pod.torch}{found.summary}"


def _in_place(context: Context, layer: Layer) -> Look:
    """Make the layer where there is none, mend what can be mended, and look at what is in it.

    Where nothing was installed since the last boot, this reads a few small files and looks at names. Nothing of the
    layer is started before it was looked at: any start of Python runs what lies there. Who is not alone writes nothing.
    """
    alone = context.core is None or context.core.alone
    if alone:
        _clear(context, layer)
        for other in finished(layer, context.layout):
            # Damage to what another image has left is no reason to do without this one's.
            with contextlib.suppress(OSError):
                requests.note_left(other, context.layout)
    blocked = next(layers.in_the_way(layer), None)
    marker = layers.read_marker(layer) if blocked is None and is_folder(layer.site) else None
    if marker is None or (marker.get("rebuild") and alone):
        _make(context, layer, alone=alone)
    if alone:
        _mend(context, layer)
    mirror(layer, alone=alone)
    with _warned(context, f"cannot note what is in {layer.root}"):
        return look(layer, note=alone)
    return look(layer)


def _clear(context: Context, layer: Layer) -> None:
    """Set aside what was planted in a layer's folders, and finish or undo what was being installed."""
    for path in layers.in_the_way(layer):
        told = f"{path} was set aside: it stood where the layer of packages has its own"
        context.warn(Problem(InstallError.code, told, f"it is {put_aside(context.layout, path, told)}"))
    for line in recover(layer, context.layout):
        context.console.line(f"  {line}")


def _mend(context: Context, layer: Layer) -> None:
    """Have a layer that no other pod uses be as it should be here and now."""
    layout = context.layout
    layers.restore(layer)
    relocate(layer, layout.root)
    with _warned(context, f"cannot note what was installed in {layer.root}"):
        requests.note_found(layer, layout)
    for problem in clean(layer, layout):
        context.warn(problem)
    with _warned(context, f"cannot complete {layer.root}"):
        if since := behind(layer, layout):
            complete(context, layer)
            layers.remember(layer, met=since)


@contextlib.contextmanager
def _warned(context: Context, action: str) -> Iterator[None]:
    """Have what fails be a warning: a layer is sound without its notes, and without what was asked for since."""
    try:
        with storage_errors(action):
            yield
    except ComfypodError as error:
        for problem in error.problems:
            context.warn(problem)


def _make(context: Context, layer: Layer, *, alone: bool) -> None:
    """Make a layer: empty where nobody has asked for anything, else from what the layer before has, with no network."""
    if not alone and os.path.lexists(layer.root):
        raise InstallError("another pod uses it, and it is not complete", "start this pod again when that one is gone")
    if put_by(layer) is None:
        _spare(context, layer)
    if requests.read(context.layout):
        complete(context, layer)
    else:
        layers.create(layer)


def _spare(context: Context, layer: Layer) -> None:
    """Set aside a layer whose marker is lost, where somebody's packages are in it; one that was never whole may go."""
    try:
        read_small(layer.marker)
    except OSError as error:
        if error.errno not in _LOST:
            raise
    if layer.site.is_dir() and requests.added(layer):
        place = put_aside(context.layout, layer.root, "its marker cannot be read")
        told = f"packages of {layer.root} are in {place}: its marker cannot be read, and it is made anew"
        context.warn(Problem(InstallError.code, told, "install again what is missing; `comfypod env status` shows it"))


def complete(context: Context, layer: Layer) -> None:
    """Give a layer what was asked for, as far as that can be had without a network."""
    from comfypod.boot.wanted import installer_environ, told
    from comfypod.environment.rebuild import rebuild

    before = previous_of(layer, context.layout)
    done = rebuild(
        layer, context.layout, before, network=False, environ=installer_environ(context, layer),
        seconds=_COMPLETE_SECONDS, tick=stopper(context),
    )  # fmt: skip
    for problem in told(done):
        context.warn(problem)


def _use(context: Context, layer: Layer, found: Look) -> None:
    """Let everything that is started from now on run in the layer."""
    context.layer = layer
    context.pod = replace(context.pod, python=str(layer.python))
    context.environ = {**context.environ, **layer.environ(context.layout.cache)}
    context.health.environment = {"key": layer.key, "torch": context.pod.torch, "changed": found.rows}
