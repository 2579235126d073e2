"""What stays as the image has it, whoever installs and by whatever tool. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.environment.dists import Dist

if TYPE_CHECKING:
    from collections.abc import Mapping

# Distributions that write the same module: where the image has one of them, the others count as installed.
FAMILIES = (
    ("opencv-contrib-python", "opencv-contrib-python-headless", "opencv-python", "opencv-python-headless"),
    ("onnxruntime", "onnxruntime-gpu"),
)
# What is imported under these names comes from a distribution, or was copied there by hand.
MODULES = {
    "cv2": "opencv-python", "numpy": "numpy", "torch": "torch", "torchaudio": "torchaudio",
    "torchvision": "torchvision", "triton": "triton",
}  # fmt: skip
_EXACT = frozenset({"torch", "torchvision", "torchaudio", "triton", "comfyui-manager"})
_EXACT_PREFIXES = ("nvidia-", "comfyui-", "comfy-", "cuda-")
_MAJOR = frozenset({"numpy"})


def is_pinned(name: str) -> bool:
    """Whether a distribution stays at exactly the image's version."""
    return name in _EXACT or name.startswith(_EXACT_PREFIXES) or any(name in family for family in FAMILIES)


def is_guarded(name: str) -> bool:
    """Whether not everything of that name may stand before the image's."""
    return is_pinned(name) or name in _MAJOR


def bound(dist: Dist) -> str | None:
    """Return the constraint that holds for one of the image's distributions, None where there is none."""
    if is_pinned(dist.name):
        return str(dist)
    if dist.name in _MAJOR:
        major = int(dist.version.split(".")[0])
        return f"{dist.name}>={major},<{major + 1}"
    return None


def aliases(image: Mapping[str, Dist]) -> dict[str, Dist]:
    """Return the distributions that count as installed, because the image has another one of their family."""
    found: dict[str, Dist] = {}
    for family in FAMILIES:
        present = [image[name] for name in family if name in image]
        if present:
            version = present[0].version
            missing = (name for name in family if name not in image)
            found |= {name: Dist(name, version, f"{name.replace('-', '_')}-{version}.dist-info") for name in missing}
    return found


def constraints(image: Mapping[str, Dist]) -> tuple[str, ...]:
    """Return the constraints that hold over an image's distributions, one a line, sorted."""
    found = (bound(dist) for dist in (*image.values(), *aliases(image).values()))
    return tuple(sorted(line for line in found if line is not None))


def is_allowed(image: Mapping[str, Dist], dist: Dist) -> bool:
    """Whether a distribution of the layer may stand before the image's."""
    before = image.get(dist.name) or aliases(image).get(dist.name)
    if before is None:
        return True
    if dist.name in _MAJOR:
        return dist.version.split(".")[0] == before.version.split(".")[0]
    return not is_pinned(dist.name)
