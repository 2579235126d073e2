"""The node stage: what may not run leaves ComfyUI's sight, and ComfyUI-Manager is told its policy, before a start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.boot.contents import list_nodes
from comfypod.errors import Problem, StorageError
from comfypod.files import storage_error
from comfypod.nodes import manager, place
from comfypod.nodes.denied import set_denied_aside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView

_PACKAGE = "comfyui-manager"


def prepare_nodes(context: Context, view: StageView) -> str:
    """Take out of ComfyUI's sight what may not run, finish what was killed, note the nodes that it will find."""
    core = context.core
    assert core is not None  # noqa: S101 - the workspace stage has run
    context.required = (*context.settings.require, *_required(context))
    if core.alone:
        for problem in _mended(context, core.base / "custom_nodes"):
            context.warn(problem)
    return list_nodes(context, view)


def _required(context: Context) -> tuple[str, ...]:
    """Return the nodes that the volume cannot do without; what is wrong with its wishes is said when they are met."""
    if not (context.settings.nodes or context.layout.manifest.exists()):
        return ()
    from comfypod.nodes.declared import wishes

    found, _ = wishes(context.layout.manifest, context.settings.nodes)
    return tuple(name for name, wish in found.items() if wish.required)


def _mended(context: Context, nodes: Path) -> Iterator[Problem]:
    arguments = (*context.pod.comfyui_args, *context.settings.comfyui_args)
    if manager.in_use(arguments):
        yield from _managed(context, manager.user_folder(context.layout, arguments), nodes)
    yield from set_denied_aside(context.layout, nodes)
    yield from place.settle(context.layout, nodes)


def _managed(context: Context, user: Path, nodes: Path) -> Iterator[Problem]:
    """Bind the packaged Manager to its policy; without one it is not started."""
    layout = context.layout
    found = context.layer.image_dists.get(_PACKAGE) if context.layer is not None else None
    try:
        version, settings = found.version if found else "", context.settings
        yield from manager.apply(layout, user, nodes, version, settings.node_policy, offline=settings.offline)
        yield from manager.set_clones_aside(layout, nodes)
        yield from manager.set_scripts_aside(layout, user)
    except (StorageError, OSError) as found_wrong:
        told = (
            found_wrong
            if isinstance(found_wrong, StorageError)
            else storage_error(found_wrong, "its policy is not kept")
        )
        kept = tuple(word for word in context.pod.comfyui_args if not manager.in_use((word,)))
        context.pod = replace(context.pod, comfyui_args=kept)
        yield Problem(told.code, f"ComfyUI-Manager is not started: {told.message}", told.hint)
