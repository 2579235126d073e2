"""Whether nodes can be imported: each tried alone, under ComfyUI's own Python and ComfyUI."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from comfypod.nodes.site import Site

NODE_SECONDS = 120.0
_COMFYUI_SECONDS = 600.0


def imports(
    site: Site, nodes: Mapping[str, Path], *, seconds: float = NODE_SECONDS, tick: Callable[[], None] | None = None
) -> dict[str, str]:
    """Return for each node why it cannot be imported, nothing where it can. One that hangs costs `seconds`."""
    if not nodes:
        return {}
    wanted = {
        "core": str(site.core), "arguments": list(site.arguments), "seconds": seconds,
        "nodes": {name: str(path) for name, path in nodes.items()},
    }  # fmt: skip
    text = resources.files("comfypod.nodes").joinpath("probe.py").read_text("utf-8")
    argv = [str(site.layer.python), "-I", "-c", text, json.dumps(wanted)]
    try:
        done = proc.run(
            argv, seconds=_COMFYUI_SECONDS + len(nodes) * seconds, env=site.environ, cwd=site.folder.parent, tick=tick
        )
    except HostError as error:
        return dict.fromkeys(nodes, f"it cannot be tried: {error.message}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    untried = f"ComfyUI itself cannot be imported: {last_line(done)}"
    return {**dict.fromkeys(nodes, untried), **{row["name"]: row["reason"] for row in rows}}


def last_line(done: proc.Completed) -> str:
    """Return the last thing that a program said, for a reason."""
    if done.timed_out:
        return "it took too long"
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it ended with {done.returncode}"
