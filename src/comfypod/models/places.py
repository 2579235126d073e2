"""Where models are: in the workspace, in the image, and in folders that others have filled, on any mount.

The last are used where they are: nothing is written there, and ComfyUI is told of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.files import is_filled
from comfypod.models.needs import inside
from comfypod.workspace.adopt import adoptions
from comfypod.workspace.plan import unescaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from comfypod.models.file import ModelFile
    from comfypod.workspace.layout import Layout

    Kinds = Mapping[str, tuple[Path, ...]]

# ComfyUI's kinds of models (`folder_paths.py`), and the older names of two of them.
KINDS = frozenset({
    "audio_encoders", "background_removal", "checkpoints", "classifiers", "clip", "clip_vision", "configs",
    "controlnet", "detection", "diffusers", "diffusion_models", "embeddings", "frame_interpolation",
    "geometry_estimation", "gligen", "hypernetworks", "latent_upscale_models", "loras", "model_patches",
    "optical_flow", "photomaker", "style_models", "t2i_adapter", "text_encoders", "unet", "upscale_models", "vae",
    "vae_approx",
})  # fmt: skip
# Folders in which ComfyUI looks for one and the same kind.
_SAME = (("diffusion_models", "unet"), ("text_encoders", "clip"), ("controlnet", "t2i_adapter"))
# What a folder has at least one of to be taken for one of models.
_SIGNS = frozenset({
    "checkpoints", "clip", "controlnet", "diffusion_models", "loras", "text_encoders", "unet", "upscale_models", "vae",
})  # fmt: skip
# Below a mount: a volume of models alone, RunPod's serverless layout, ComfyUI itself, and as images of others have it.
_MODELS = ("", "models", "ComfyUI/models", "runpod-slim/ComfyUI/models", "madapps/ComfyUI/models")
_WEBUIS = ("", "stable-diffusion-webui", "stable-diffusion-webui-forge")
# A1111's folders by ComfyUI's kinds, as `extra_model_paths.yaml.example` of ComfyUI has them.
_A1111 = (
    ("checkpoints", "models/Stable-diffusion"), ("configs", "models/Stable-diffusion"), ("vae", "models/VAE"),
    ("loras", "models/Lora"), ("loras", "models/LyCORIS"), ("upscale_models", "models/ESRGAN"),
    ("upscale_models", "models/RealESRGAN"), ("upscale_models", "models/SwinIR"), ("embeddings", "embeddings"),
    ("hypernetworks", "models/hypernetworks"), ("controlnet", "models/ControlNet"),
)  # fmt: skip
_A1111_SIGN = "models/Stable-diffusion"
_SYSTEM = frozenset({"bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var"})


@dataclass(frozen=True, slots=True)
class Places:
    """`live` is the workspace's `models`; `further` are folders by kind that are used where they are.

    Those of them that were `found` have yet to be told to ComfyUI.
    """

    live: Path
    further: Kinds = field(default_factory=dict)
    found: Kinds = field(default_factory=dict)

    def elsewhere(self, file: ModelFile) -> Iterator[Path]:
        """Yield where ComfyUI would find a file but in its own place."""
        kind, _, below = f"{file.folder}/{file.file}".partition("/")
        for same in _same(kind):
            if same != kind:
                yield self.live / same / below
            for folder in self.further.get(same, ()):
                yield folder / below

    def folders(self) -> Iterator[Path]:
        """Yield every folder of models once."""
        yield self.live
        yield from dict.fromkeys(path for paths in self.further.values() for path in paths)


def places_of(layout: Layout, live: Path, baked: str | None, given: Iterable[Path], mounts: str = "") -> Places:
    """Look for the models of a workspace.

    `live` is its own folder, `baked` the image's. Others are looked for where they are `given`, in the workspace, and
    on other mounts (a `mountinfo`). A mount that hangs holds this up; whoever must not wait calls it from a thread.
    """
    kinds: dict[str, tuple[Path, ...]] = {}
    _add(kinds, _kinds(Path(baked), None) if baked else {})
    for adopted in adoptions(layout).values():
        for kind, paths in adopted.models.items():
            _add(kinds, {kind: tuple(layout.root / path for path in paths.splitlines())})
    found = _found(layout, live, given, mounts)
    _add(kinds, found)
    return Places(live, kinds, found)


def extra_paths(places: Places) -> dict[str, str]:
    """Return what ComfyUI's file of further folders says of those that were found.

    Nodes that bring a kind of their own add the workspace's folder only where the kind has none yet, so it is named.
    """
    rows = {kind: paths if kind in KINDS else (places.live / kind, *paths) for kind, paths in places.found.items()}
    return {kind: "\n".join(map(str, paths)) for kind, paths in rows.items()}


def _found(layout: Layout, live: Path, given: Iterable[Path], mounts: str) -> Kinds:
    kinds: dict[str, tuple[Path, ...]] = {}
    for folder in given:
        _add(kinds, _seen(folder, ("", "models"), None))
    _add(kinds, _seen(layout.root, ("", "models"), KINDS))
    for root in _mounted(layout, mounts):
        _add(kinds, _seen(root, _MODELS, KINDS))
    own = Path(os.path.realpath(live))
    outside = {kind: tuple(path for path in paths if _is_outside(own, path)) for kind, paths in kinds.items()}
    return {kind: paths for kind, paths in outside.items() if paths}


def _is_outside(own: Path, path: Path) -> bool:
    """Whether a folder is not the workspace's own, and has a name that a line of ComfyUI's file can hold."""
    real = Path(os.path.realpath(path))
    return own != real and own not in real.parents and str(path).isprintable()


def _same(kind: str) -> tuple[str, ...]:
    return next((group for group in _SAME if kind in group), (kind,))


def _mounted(layout: Layout, mounts: str) -> Iterator[Path]:
    """Yield what is mounted beside the system and the workspace."""
    root = layout.root.resolve()
    for line in mounts.splitlines():
        path = Path(unescaped(line.split(" ")[4]))
        if len(path.parts) > 1 and path.parts[1] not in _SYSTEM and path != root and root not in path.parents:
            yield path


def _seen(root: Path, below: Iterable[str], known: frozenset[str] | None) -> dict[str, tuple[Path, ...]]:
    """Return what a folder holds as ComfyUI or as A1111 has it, there or in the usual places below it."""
    found: dict[str, tuple[Path, ...]] = {}
    for name in below:
        kinds = _kinds(root / name, known)
        if _SIGNS & set(kinds):
            _add(found, kinds)
    for webui in (*(root / name for name in _WEBUIS), *([root.parent] if root.name == "models" else [])):
        if is_filled(webui / _A1111_SIGN):
            for kind, name in _A1111:
                _add(found, {kind: (webui / name,)} if is_filled(webui / name) else {})
    return found


def _kinds(folder: Path, known: frozenset[str] | None) -> dict[str, tuple[Path, ...]]:
    """Return the kinds that have a folder with contents; with `known`, of these names alone."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return {}
    wanted = (
        name for name in names if (name in known if known is not None else inside(name) and name != "custom_nodes")
    )
    return {name: (folder / name,) for name in wanted if is_filled(folder / name)}


def _add(kinds: dict[str, tuple[Path, ...]], more: Kinds) -> None:
    for kind, paths in more.items():
        kinds[kind] = tuple(dict.fromkeys((*kinds.get(kind, ()), *paths)))
