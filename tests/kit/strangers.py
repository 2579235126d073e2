"""Volumes as other images leave them: what stands where, as read in their scripts; small, and none of their code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.release import MARK
from tests.kit import standin

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.workspace.layout import Layout


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _used(base: Path, mark: str) -> None:
    """Put there what users have: two nodes, a model, a picture each way, a workflow, settings."""
    for name in ("pack", "ComfyUI-Manager"):
        _write(base / "custom_nodes" / name / "__init__.py", f"NODE_CLASS_MAPPINGS = {{}}  # {mark}\n")
    _write(base / "models" / "checkpoints" / "mine.safetensors", f"weights {mark}")
    _write(base / "input" / "photo.png", f"photo {mark}")
    _write(base / "output" / "ComfyUI_00001_.png", f"picture {mark}")
    _write(base / "user" / "default" / "workflows" / "mine.json", f'{{"{mark}": 1}}')
    _write(base / "user" / "default" / "comfy.settings.json", "{}")


def _clone(base: Path, mark: str = "mine") -> Path:
    standin.tree(base, release="0.1")
    _write(base / ".git" / "HEAD", "ref: refs/heads/master\n")
    _write(base / "web" / "index.html", "an old name of the core")
    _write(base / "comfy" / "edited.py", "edited by hand")
    _write(base / "extra_model_paths.yaml", "mine: {}\n")
    _write(base / "notes.txt", "my notes")
    _used(base, mark)
    return base


def plain_clone(layout: Layout) -> None:
    """`git clone` into the workspace, with a venv inside."""
    base = _clone(layout.comfyui)
    _write(base / "venv" / "pyvenv.cfg", "home = /usr/bin\n")


def earlier_comfypod(layout: Layout) -> None:
    """This project before its releases had digests: a mark without files."""
    standin.tree(layout.comfyui, release="0.2")
    _write(layout.comfyui / MARK, '{"release": "0.2-000000000000"}')
    record = {"schema": 1, "release": "0.2-000000000000", "environment": "", "mount": "", "writer": "0.0.1"}
    _write(layout.state, json.dumps(record))
    _used(layout.comfyui, "mine")


def seeds_entrypoint(layout: Layout) -> None:
    """A shell entrypoint's `mv /ComfyUI /workspace/ComfyUI`, and what ComfyUI wrote after that."""
    standin.tree(layout.comfyui, release="0.1")
    _used(layout.comfyui, "mine")
    _write(layout.root / "logs" / "jupyter.log", "started\n")


def killed_mv(layout: Layout) -> None:
    """The same, killed half-way on its first run: no main.py, a truncated file, nothing of the user's yet."""
    standin.tree(layout.comfyui, release="0.1")
    (layout.comfyui / "main.py").unlink()
    shutil.rmtree(layout.comfyui / "user")
    (layout.comfyui / "comfy" / "ldm" / "model.py").write_text("LAYERS = 1")


def with_flux(layout: Layout) -> None:
    """ComfyUI_with_Flux: moved by `mv`, a venv and a start script of the user's beside it."""
    _clone(layout.comfyui)
    _write(layout.root / "start_user.sh", "#!/bin/bash\n")
    _write(layout.root / "venv" / "pyvenv.cfg", "home = /usr/bin\n")


def runpod_slim(layout: Layout) -> None:
    """RunPod's runpod-slim: all of it below a folder of its own."""
    base = _clone(layout.root / "runpod-slim" / "ComfyUI")
    _write(base / ".venv" / "pyvenv.cfg", "home = /usr/bin\n")
    _write(layout.root / "runpod-slim" / "comfyui_args.txt", "# one per line\n")
    _write(layout.root / "runpod-slim" / "filebrowser.db", "")


def ai_dock(layout: Layout) -> None:
    """ai-dock with a synchronised workspace: models in a storage that its ComfyUI links to."""
    base = _clone(layout.comfyui)
    ai_dock_storage(layout)
    (base / "models" / "checkpoints" / "stored.safetensors").symlink_to(
        "/workspace/storage/stable_diffusion/models/ckpt/stored.safetensors"
    )
    _write(layout.root / "environments" / "python" / "comfyui" / "pyvenv.cfg", "")


def ai_dock_without_sync(layout: Layout) -> None:
    """ai-dock without it: ComfyUI was in the container, the workspace has a link to it and the storage."""
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.comfyui.symlink_to("/opt/ComfyUI-that-is-gone")
    ai_dock_storage(layout)


def ai_dock_storage(layout: Layout) -> None:
    """ai-dock's models, outside of any ComfyUI."""
    for name in ("ckpt", "lora"):
        _write(layout.root / "storage" / "stable_diffusion" / "models" / name / "stored.safetensors", f"weights {name}")


def ashleykleynhans(layout: Layout) -> None:
    """ashleykleynhans: synchronised by rsync, with a record of the image's version and a venv inside."""
    base = _clone(layout.comfyui)
    shutil.rmtree(base / ".git")
    _write(base / "template.json", '{"template_name": "comfyui", "template_version": "1.0.0"}')
    _write(base / "venv" / "pyvenv.cfg", "home = /usr/bin\n")


STRANGERS: dict[str, Callable[[Layout], None]] = {
    "a Git clone": plain_clone,
    "an earlier comfypod": earlier_comfypod,
    "another ComfyUI": seeds_entrypoint,
    "a ComfyUI that was moved in part": killed_mv,
    "ComfyUI_with_Flux": with_flux,
    "RunPod's runpod-slim": runpod_slim,
    "ai-dock": ai_dock,
    "ai-dock, without sync": ai_dock_without_sync,
    "ashleykleynhans": ashleykleynhans,
}
