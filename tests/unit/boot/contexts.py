"""The context of a boot for tests of its stages, in a folder of the test's."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfypod import podfile
from comfypod.boot.context import Context, Surroundings
from comfypod.boot.health import Health, StageView
from comfypod.boot.volume import prepare_workspace
from comfypod.log import Console
from comfypod.settings import resolve
from comfypod.workspace.layout import Layout
from comfypod.workspace.lease import Lease
from tests.kit import standin
from tests.kit.pods import free_port

if TYPE_CHECKING:
    from pathlib import Path


def context_of(
    tmp_path: Path, *, cancelled: bool = False, environ: dict[str, str] | None = None, **pod: Any
) -> Context:
    tree = tmp_path / "pristine"
    if not tree.exists():
        standin.tree(tree)
    facts = replace(podfile.load(standin.pod_file(tmp_path, tree)), **pod)
    layout = Layout(tmp_path / "workspace")
    settings = resolve({"workspace": str(layout.root), "port": str(free_port())}, environ or {}, {})
    console, lease = Console(io.StringIO()), Lease(layout.pods)
    return Context(
        facts,
        settings,
        layout,
        Health(facts, 0.0),
        console,
        lambda: cancelled,
        lease,
        lambda: None,
        Surroundings(tmp_path / "link", tmp_path / "mounts"),
    )


def prepared(tmp_path: Path, **pod: Any) -> Context:
    """Return the context of a boot whose workspace is taken and seeded."""
    context = context_of(tmp_path, **pod)
    prepare_workspace(context, StageView("workspace"))
    return context
