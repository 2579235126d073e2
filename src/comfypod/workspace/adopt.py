"""Volumes that something else has made: what is on them, how it is used in place, and the record to undo that.

Nothing is copied and nothing of the user's is renamed: the core of another ComfyUI is set aside, folders that stand
somewhere else are linked to, and models that lie in no ComfyUI are named to ComfyUI as further places.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.release import CACHE, MARK, USER_FOLDERS, Release

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from comfypod.workspace.layout import Layout

RECORD = "adoption.json"
UNDONE = "undone.json"
# Names at the top of ComfyUI's repository that the image's release need not have any more.
_CORE = frozenset({
    ".ci", ".git", ".gitattributes", ".github", ".gitignore", ".pylintrc", "CODEOWNERS", "CONTRIBUTING.md", "LICENSE",
    "README.md", "alembic.ini", "alembic_db", "api_server", "app", "blueprints", "comfy", "comfy_api",
    "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_screenshot.png",
    "comfyui_version.py", "cuda_malloc.py", "execution.py", "fix_torch.py", "folder_paths.py",
    "hook_breaker_ac10a0.py", "latent_preview.py", "main.py", "manager_requirements.txt", "middleware",
    "model_filemanager", "new_updater.py", "node_helpers.py", "nodes.py", "notebooks", "protocol.py",
    "pyproject.toml", "pytest.ini", "requirements.txt", "ruff.toml", "script_examples", "server.py", "tests",
    "tests-ui", "tests-unit", "utils", "web", MARK,
})  # fmt: skip
# Where images of others keep a whole ComfyUI, by the name that theirs has.
_PLACES = {"runpod-slim/ComfyUI": "RunPod's runpod-slim", "madapps/ComfyUI": "RunPod's madapps"}
# ai-dock's storage: its folders by ComfyUI's kinds of models.
_STORAGE = "storage/stable_diffusion/models"
_STORED = {
    "checkpoints": "ckpt", "loras": "lora", "controlnet": "controlnet", "vae": "vae", "upscale_models": "esrgan",
    "diffusers": "diffusers", "embeddings": "embeddings", "hypernetworks": "hypernetworks", "unet": "unet",
    "clip": "clip", "clip_vision": "clip_vision", "style_models": "style_models", "gligen": "gligen",
}  # fmt: skip
_ENVIRONMENTS = ("venv", ".venv", ".venv-cu128", "ComfyUI/venv", "ComfyUI/.venv", "environments")
_BROUGHT = frozenset({
    "example.png", "example_node.py.example", "websocket_image_save.py", "_output_images_will_be_put_here",
})  # fmt: skip
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What can be adopted.

    `core` says that a core of another's stands in `ComfyUI/`. `folders` are user folders that stand elsewhere, by
    name, and `models` folders of models by ComfyUI's kinds, all relative to the workspace. `held` are those that
    stay unused, as there is one with contents in `ComfyUI/` already; `left` are Python environments, which are not
    taken over.
    """

    kind: str
    core: bool = False
    folders: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    nodes: str = ""
    held: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def told(self) -> str:
        """Say what it is, in a line."""
        parts = [f"the {name} in {place}" for name, place in self.folders.items()]
        parts += [f"the nodes in {self.nodes}"] if self.nodes else []
        places = sorted({path.rpartition("/")[0] for each in self.models.values() for path in each.splitlines()})
        parts += [f"the models in {place}" for place in places]
        parts = ["the core in ComfyUI", *parts] if self.core else parts
        return f"{self.kind}, with {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was done, in `.comfypod/adopted/NUMBER`.

    `moved` are the names of `ComfyUI/` that stand there now, and `links` the folders that were linked to instead.
    """

    kind: str
    release: str
    moved: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    nodes: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        """All folders that are used where they are."""
        models = (path for places in self.models.values() for path in places.splitlines())
        return (*self.links.values(), *models, *([self.nodes] if self.nodes else []))

    def encode(self) -> bytes:
        """Render as JSON."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def find(
    layout: Layout, names: Collection[str], here: Release | None, *, core: bool, mounts: Collection[Path]
) -> Found | None:
    """Look for what can be adopted, in a few places whose names are known; None when there is nothing.

    `names` is what `ComfyUI/` holds, `here` its release, `core` whether that is another's core, `mounts` what is
    mounted below.

    Raises:
        OSError: the workspace cannot be read.
    """
    places = {place: kind for place, kind in _PLACES.items() if _begins(layout, place)}
    stores = _STORED if _begins(layout, _STORAGE) else {}
    if not (core or places or stores):
        return None
    known = {place for each in adoptions(layout).values() for place in each.places}
    kinds: list[str] = [_kind(layout, names)] if core else []
    folders: dict[str, str] = {}
    models: dict[str, str] = {}
    held: list[str] = []
    nodes = ""
    for place, kind in places.items():
        filled = {name: f"{place}/{name}" for name in USER_FOLDERS if files.is_filled(layout.root / place / name)}
        new = {name: path for name, path in filled.items() if path not in known}
        free = {
            name: path for name, path in new.items() if name not in folders and _is_free(layout, name, here, mounts)
        }
        folders |= free
        for name, path in new.items():
            if name in free:
                continue
            if name == "models":
                _add(models, {kind: each for kind, each in _kinds_in(layout, path).items() if each not in known})
            elif name == "custom_nodes":
                nodes = path
            else:
                held.append(path)
        kinds += [kind] if new else []
    stored = {kind: f"{_STORAGE}/{name}" for kind, name in stores.items() if f"{_STORAGE}/{name}" not in known}
    if stored := {kind: path for kind, path in stored.items() if files.is_filled(layout.root / path)}:
        _add(models, stored)
        kinds += [] if "ai-dock" in kinds else ["ai-dock"]
    if not (core or folders or models or nodes):
        return None
    left = tuple(name for name in _ENVIRONMENTS if (layout.root / name).is_dir())
    return Found(" and ".join(kinds), core, folders, models, nodes, tuple(sorted(held)), left)


def _begins(layout: Layout, place: str) -> bool:
    """Whether the first folder of a place is there: one call on a volume that has nothing of it."""
    return os.path.lexists(layout.root / place.partition("/")[0])


def _add(models: dict[str, str], more: Mapping[str, str]) -> None:
    """Add places for kinds of models; a kind that has one already has them line by line, as ComfyUI reads them."""
    for kind, path in more.items():
        models[kind] = f"{models[kind]}\n{path}" if kind in models else path


def core_names(new: Release, layout: Layout) -> tuple[str, ...]:
    """Return the names in `ComfyUI/` that are another's core, or stand where the new release has something.

    Raises:
        OSError: the folder cannot be read.
    """
    wanted = {*_CORE, *new.entries, CACHE}
    return tuple(sorted(wanted.intersection(os.listdir(layout.comfyui))))


def adoptions(layout: Layout) -> dict[int, Adoption]:
    """Return the adoptions that hold, by number; records that make no sense are left out."""
    try:
        names = [name for name in os.listdir(layout.adopted) if name.isascii() and name.isdecimal()]
    except OSError:
        return {}
    found = {int(name): _read(layout.adopted / name / RECORD) for name in names}
    return {number: adoption for number, adoption in sorted(found.items()) if adoption is not None}


def asked(layout: Layout) -> str:
    """Return what the next boot was asked for: `adopt`, `undo NUMBER`, or nothing."""
    try:
        return files.read_small(layout.adopting).decode("ascii", "replace").strip() or "adopt"
    except OSError:
        return ""


def ask(layout: Layout, what: str = "") -> None:
    """Ask the next boot to adopt what it finds, or for `undo NUMBER`.

    Raises:
        OSError: the disk failed.
    """
    files.write_atomic(layout.adopting, what.encode())


def next_number(layout: Layout) -> int:
    """Return a number that no adoption has had."""
    try:
        return max((int(name) for name in os.listdir(layout.adopted) if name.isdecimal()), default=0) + 1
    except FileNotFoundError:
        return 1


def _read(path: Path) -> Adoption | None:
    try:
        body: Any = json.loads(files.read_small(path, _LONGEST).decode("utf-8", "surrogateescape"))
        found = Adoption(
            str(body["kind"]), str(body["release"]), tuple(body["moved"]), dict(body["links"]), dict(body["models"]),
            str(body["nodes"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = (*found.moved, *found.links, *found.links.values(), *found.models, *found.models.values(), found.nodes)
    if not all(isinstance(text, str) for text in texts):
        return None
    names = [name for text in texts for name in text.splitlines()]
    sound = not any({"..", "."}.intersection(name.split("/")) or name.startswith("/") or "\0" in name for name in names)
    return found if sound else None


def _kind(layout: Layout, names: Collection[str]) -> str:
    """Say who has left a core in `ComfyUI/`, as far as that can be seen."""
    root = layout.root
    signs = {
        "ai-dock": layout.comfyui.is_symlink() or (root / "storage").is_dir() or (root / "environments").is_dir(),
        "a ComfyUI that was moved in part": not {"main.py", "comfy"}.issubset(names),
        "ashleykleynhans": "template.json" in names,
        "an earlier comfypod": MARK in names,
        "ComfyUI_with_Flux": (root / "start_user.sh").is_file(),
        "a Git clone": ".git" in names,
    }
    return next((kind for kind, seen in signs.items() if seen), "another ComfyUI")


def _is_free(layout: Layout, name: str, here: Release | None, mounts: Collection[Path]) -> bool:
    """Whether a folder of `ComfyUI/` can give way to a link: nothing but what ComfyUI itself puts there is in it."""
    folder = layout.comfyui / name
    if not os.path.lexists(folder):
        return True
    mounted = any(folder == point or folder in point.parents for point in mounts)
    if folder.is_symlink() or not folder.is_dir() or mounted:
        return False
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if name == "user":
        return not any("workflows" in path.parts for path in found)
    return all(_is_brought(folder, path, here) for path in found)


def _is_brought(folder: Path, path: Path, here: Release | None) -> bool:
    """Whether a file of a user folder is one that comes with ComfyUI: by its digest, where the release is known."""
    if CACHE in path.parts or (folder / path).is_symlink():
        return CACHE in path.parts
    if here is not None and here.files:
        wanted = here.files.get(f"{folder.name}/{path.as_posix()}")
        return wanted is not None and wanted == files.sha256_file(folder / path)
    placeholder = not (folder / path).stat().st_size
    config = path.parts[0] == "configs" and path.suffix == ".yaml"
    return placeholder or config or path.as_posix() in _BROUGHT


def _kinds_in(layout: Layout, place: str) -> dict[str, str]:
    try:
        entries = sorted(entry.name for entry in os.scandir(layout.root / place) if entry.is_dir())
    except OSError:
        return {}
    return {name: f"{place}/{name}" for name in entries if files.is_filled(layout.root / place / name)}
