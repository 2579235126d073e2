"""What an image says in its labels: the OCI's names (image-spec, annotations) and our own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from comfypod import __version__
from comfypod.lock.schema import encode

if TYPE_CHECKING:
    from comfypod.image.recipe import Recipe, Variant
    from comfypod.lock.schema import Lock

PREFIX = "io.comfypod"


def lock_digest(lock: Lock) -> str:
    """Return the SHA-256 of a lock's text: 64 hex digits."""
    return hashlib.sha256(encode(lock)).hexdigest()


def labels(recipe: Recipe, variant: Variant) -> dict[str, str]:
    """Return the labels of one image, the same for the same lock."""
    profile, comfyui = recipe.profile, recipe.lock.comfyui
    digest = lock_digest(recipe.lock)
    found = {
        "org.opencontainers.image.title": f"ComfyUI {comfyui.version} ({profile.name}, {variant})",
        "org.opencontainers.image.description": f"ComfyUI for {profile.summary}, booted by comfypod",
        "org.opencontainers.image.version": f"{comfyui.version}-{profile.name}-{variant}-{digest[:12]}",
        "org.opencontainers.image.licenses": "GPL-3.0-only AND Apache-2.0",
        "org.opencontainers.image.base.name": "${BASE}",
        f"{PREFIX}.version": __version__,
        f"{PREFIX}.lock": digest,
        f"{PREFIX}.comfyui": comfyui.digest,
        f"{PREFIX}.profile": profile.name,
        f"{PREFIX}.variant": variant,
        f"{PREFIX}.torch": recipe.triple["torch"],
    }
    if profile.needs_gpu:
        found[f"{PREFIX}.cuda"] = profile.cuda
        found[f"{PREFIX}.driver"] = str(profile.driver)
        found[f"{PREFIX}.capabilities"] = " ".join(profile.capabilities)
    if licences := sorted({model.licence for model in recipe.models if model.licence}):
        found[f"{PREFIX}.models.licences"] = ", ".join(licences)
    return found
