"""Where nodes go and what tries them: all that installing one needs to know of a pod."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.registry import DEFAULT as PUBLIC_REGISTRY
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.environment.layer import Layer
    from comfypod.workspace.layout import Layout


@dataclass(frozen=True, slots=True)
class Site:
    """`folder` is `custom_nodes`, `core` the tree of ComfyUI and `arguments` what its `main.py` is told about paths.

    `environ` is what installers and imports see, `registry` where ids are looked up.
    """

    layout: Layout
    folder: Path
    core: Path
    layer: Layer
    environ: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    registry: str = PUBLIC_REGISTRY


def site_of(layout: Layout, layer: Layer, core: Path, base: Path, environ: Mapping[str, str], registry: str) -> Site:
    """Return the site of a pod whose ComfyUI is `core` and whose folders are in `base`."""
    arguments = ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    if layout.extra_paths.is_file():
        arguments += ["--extra-model-paths-config", str(layout.extra_paths)]
    seen = {**child_environ(environ, layer.python, layout.root), **layer.environ(layout.cache)}
    # As ComfyUI-Manager tells install scripts where they are.
    seen |= {"COMFYUI_PATH": str(core), "COMFYUI_FOLDERS_BASE_PATH": str(base)}
    return Site(layout, base / "custom_nodes", core, layer, seen, tuple(arguments), registry)
