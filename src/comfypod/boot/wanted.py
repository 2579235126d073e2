"""What a volume wants and does not have yet, got in a thread while ComfyUI runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.boot.context import stopper
from comfypod.environment.install import install
from comfypod.environment.rebuild import missing, rebuild
from comfypod.environment.succession import previous_of
from comfypod.errors import InstallError, NodeError, Problem
from comfypod.nodes import declared
from comfypod.nodes.decide import Order
from comfypod.nodes.site import site_of
from comfypod.nodes.sync import sync
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfypod.boot.context import Context
    from comfypod.environment.layer import Layer
    from comfypod.environment.rebuild import Rebuilt


def installer_environ(context: Context, layer: Layer) -> Mapping[str, str]:
    """Return what an installer of ours sees: no secrets, the layer's Python, caches on the volume."""
    seen = child_environ(context.environ, layer.python, context.layout.root)
    return {**seen, **layer.environ(context.layout.cache)}


def missing_packages(context: Context, layer: Layer) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Fetch what an earlier boot could not find without a network; return what was added, and what is to be told."""
    if not missing(layer) or context.settings.offline:
        return (), ()
    done = rebuild(
        layer, context.layout, previous_of(layer, context.layout), network=True,
        environ=installer_environ(context, layer), tick=stopper(context),
    )  # fmt: skip
    return done.installed, told(done)


def told(done: Rebuilt) -> tuple[Problem, ...]:
    """Say which packages that were asked for are not there, and what came with the others and may not stay."""
    hint = "`comfypod env rebuild` tries it again"
    lacking = (Problem(InstallError.code, f"{line} is not installed: {why}", hint) for line, why in done.missing)
    return (*lacking, *done.aside)


def wanted_nodes(context: Context, layer: Layer) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Install the nodes that the volume wants; return which are new, and what is to be told."""
    core, settings = context.core, context.settings
    assert core is not None  # noqa: S101 - the workspace stage has run
    wishes, problems = declared.wishes(context.layout.manifest, settings.nodes)
    if not wishes:
        return (), _lasting(problems)
    site = site_of(context.layout, layer, core.core, core.base, context.environ, settings.node_registry)
    done = sync(site, wishes, install, Order(network=not settings.offline), stopper(context))
    return done.changed, _lasting((*problems, *done.problems))


def _lasting(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Give problems of installing a code that no start of ComfyUI takes back, as it does with those of loading."""
    return tuple(replace(each, code="node-install") if each.code == NodeError.code else each for each in problems)
