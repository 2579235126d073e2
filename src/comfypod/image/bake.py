"""Files for other programs: `docker-bake.hcl` builds every image, `compose.yaml` runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.image.labels import lock_digest
from comfypod.image.recipe import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfypod.image.recipe import Recipe, Variant

_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
REPOSITORY = "comfypod"


def image_tags(recipe: Recipe, variant: Variant) -> tuple[str, str]:
    """Return an image's two tags: one that never moves, and one that is the newest of its kind."""
    name, short = recipe.profile.name, lock_digest(recipe.lock)[:12]
    moving = name if variant == "full" else f"{name}-{variant}"
    return f"{recipe.lock.comfyui.version}-{name}-{variant}-{short}", moving


def platforms(recipe: Recipe) -> tuple[str, ...]:
    """Return the platforms of a profile as engines name them."""
    return tuple(_PLATFORMS[arch] for arch in recipe.profile.architectures)


def bake(recipes: Sequence[Recipe]) -> str:
    """Render `docker-bake.hcl`: a target per profile and variant, for `docker buildx bake TARGET`."""
    targets = [(recipe, variant) for recipe in recipes for variant in VARIANTS]
    names = ", ".join(f'"{_target(recipe, variant)}"' for recipe, variant in targets)
    head = [
        "# Rendered by `comfypod render bake` from comfypod.lock.",
        "# It tries nothing, so what it makes is called untried; `comfypod build` tries an image and names it.",
        "#   docker buildx bake --load --set '*.platform=linux/amd64' cpu-slim",
        "",
        'variable "REPOSITORY" {',
        f'  default = "{REPOSITORY}"',
        "}",
        "",
        'group "default" {',
        f"  targets = [{names}]",
        "}",
    ]
    return "\n".join([*head, *(_block(recipe, variant) for recipe, variant in targets)]) + "\n"


def _target(recipe: Recipe, variant: Variant) -> str:
    return f"{recipe.profile.name}-{variant}"


def _block(recipe: Recipe, variant: Variant) -> str:
    where = ", ".join(f'"{platform}"' for platform in platforms(recipe))
    return "\n".join([
        "",
        f'target "{_target(recipe, variant)}" {{',
        '  context    = "."',
        f'  dockerfile = "Dockerfiles/Dockerfile.{recipe.profile.name}"',
        f'  target     = "{variant}"',
        f"  platforms  = [{where}]",
        f'  tags       = ["${{REPOSITORY}}:{_target(recipe, variant)}-untried"]',
        "}",
    ])  # fmt: skip


def compose(recipes: Sequence[Recipe]) -> str:
    """Render `compose.yaml`: a profile per image, ports on this machine's loopback only."""
    lines = [
        "# Rendered by `comfypod render compose` from comfypod.lock.",
        "#   docker compose --profile cpu up",
        "# The token stands in the first lines of the log, and in workspace/.comfypod/token.",
        "services:",
    ]
    for recipe in recipes:
        name = recipe.profile.name
        lines += [
            f"  comfyui-{name}:",
            f"    image: {REPOSITORY}:{name}",
            f'    profiles: ["{name}"]',
            '    ports: ["127.0.0.1:8188:8188", "127.0.0.1:8888:8888"]',
            '    volumes: ["./workspace:/workspace"]',
            "    stop_grace_period: 30s",
        ]
        if recipe.profile.needs_gpu:
            lines += ["    gpus: all"]
    return "\n".join(lines) + "\n"
