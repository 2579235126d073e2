"""The environment stage: the image's Python, and the volume's layer of packages over it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.environment import layer as layers
from comfypod.environment.look import look
from comfypod.environment.mirror import mirror
from comfypod.environment.relocate import relocate
from comfypod.errors import InstallError, Problem
from comfypod.files import storage_error

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.environment.layer import Layer
    from comfypod.environment.look import Look


def prepare_environment(context: Context, view: StageView) -> str:
    """Believe in the environment only when its Python is there, and put the volume's layer of packages over it."""
    del view
    python = Path(context.pod.python)
    if not os.access(python, os.X_OK):
        raise InstallError(f"ComfyUI's Python {python} is missing", "run `comfypod up` again, or pull the image again")
    layer = layers.layer_of(context.pod, context.layout)
    try:
        found = _in_place(context, layer)
    except (OSError, InstallError) as error:
        context.warn(_unused(layer, error))
        return f"torch {context.pod.torch}, without the packages of the volume"
    _use(context, layer, found)
    return f"torch {context.pod.torch}{found.summary}"


def _unused(layer: Layer, error: OSError | InstallError) -> Problem:
    told = error if isinstance(error, InstallError) else storage_error(error, "it cannot be made")
    return Problem(told.code, f"packages of {layer.root} are not used: {told.message}", told.hint)


def _in_place(context: Context, layer: Layer) -> Look:
    """Make the layer where there is none, mend what can be mended, and look at what is in it."""
    if layers.read_marker(layer) is None:
        layers.create(layer)
    relocate(layer, context.layout.root)
    found = look(layer)
    mirror(layer)
    return found


def _use(context: Context, layer: Layer, found: Look) -> None:
    """Let everything that is started from now on run in the layer."""
    context.layer = layer
    context.pod = replace(context.pod, python=str(layer.python))
    context.environ = {**context.environ, **layer.environ(context.layout.cache)}
    context.health.environment = {"key": layer.key, "torch": context.pod.torch, "changed": found.rows}


async def finish(context: Context) -> None:
    """Do what can wait until ComfyUI does not: let uv see the image's packages."""
    if context.layer is None:
        return
    try:
        await asyncio.to_thread(layers.put_stubs, context.layer)
    except OSError as error:
        told = storage_error(error, f"uv may install again what the image has: {context.layer.site} cannot be written")
        context.warn(Problem(told.code, told.message, told.hint))
