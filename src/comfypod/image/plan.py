"""What `comfypod build` is going to build: images, bases and tags, decided before anything is built."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.errors import HostError, IntegrityError, UsageError
from comfypod.image import recipe as recipes
from comfypod.image.bake import REPOSITORY, image_tags
from comfypod.image.recipe import make_recipe
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfypod.image.engine import Engine
    from comfypod.image.facts import Image
    from comfypod.image.recipe import Recipe, Variant
    from comfypod.lock.schema import Lock
    from comfypod.manifest.profiles import Profile

PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})\Z")
# https://pkg.go.dev/github.com/distribution/reference has the grammar.
_TAG = re.compile(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?"
_REPOSITORY = re.compile(f"(?:{_HOST}/)?{_PART}(?:/{_PART})*")
_REFERENCE = re.compile(f"{_REPOSITORY.pattern}(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?(?:@sha256:[0-9a-f]{{64}})?")


@dataclass(frozen=True, slots=True)
class Base:
    """A base image: how the Dockerfile names it, what it is for good, its layers where it is here already."""

    name: str
    digest: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One image to build. `fixed` is a tag that may not change its meaning, None where the user chose the tag."""

    recipe: Recipe
    variant: Variant
    platform: str
    base: Base
    fixed: str | None
    tags: tuple[str, ...]

    @property
    def arch(self) -> str:
        """The architecture as locks name it."""
        return next(arch for arch, name in PLATFORMS.items() if name == self.platform)

    @property
    def emulated(self) -> bool:
        """Whether this machine is of another architecture."""
        return self.platform != native()

    @property
    def name(self) -> str:
        """The image in messages."""
        return f"{self.recipe.profile.name} {self.variant}" + (f" for {self.platform}" if self.emulated else "")


def native() -> str:
    """Return this machine's platform as engines name it."""
    return PLATFORMS.get(platform.machine(), f"linux/{platform.machine()}")


def variants(words: Sequence[str]) -> tuple[Variant, ...]:
    """Read what `--variant` was given, `slim` first: most of it is used again by `full`.

    Raises:
        UsageError: a word is neither full, slim nor all.
    """
    given = {part.strip() for word in words for part in word.split(",")} or {"full"}
    if unknown := given - {*recipes.VARIANTS, "all"}:
        raise UsageError(f"--variant {min(unknown)!r}: full, slim or all is expected")
    return tuple(each for each in recipes.VARIANTS if each in given or "all" in given)


def resolve_base(reference: str, wanted: str, engine: Engine) -> Base:
    """Find out what a base image is; a tag counts only when it is here, and is then named by its contents.

    Raises:
        UsageError: it is pinned neither by a digest nor by being here, or it is of another platform.
    """
    pin = "pin it: `--base NAME@sha256:...`, or get it first, so that its contents are known"
    if not _REFERENCE.fullmatch(reference):
        raise UsageError(f"--base {reference!r} is not the name of an image", pin)
    pinned = _DIGEST.search(reference)
    tag = _TAG.search(reference.partition("@")[0].rpartition("/")[2])
    if not pinned and (tag is None or tag[0] == ":latest"):
        raise UsageError(f"the base {reference} is not pinned: it means another image tomorrow", pin)
    found = engine.image(reference)
    if found is None and not pinned:
        raise UsageError(
            f"the base {reference} is not pinned by a digest, and {engine.name} does not have it here",
            f"{pin} (`{engine.name} pull {reference}`)",
        )
    if found is not None and not found.platform.startswith(wanted):
        raise UsageError(
            f"the base {reference} is for {found.platform} and the image for {wanted}", "give one for it with --base"
        )
    digest = pinned[1] if pinned else (found.digest or found.id) if found else ""
    return Base(reference, digest, tuple(layer.digest for layer in found.layers) if found else ())


def ensure_from(base: Base, built: Image) -> None:
    """Refuse an image that was not built on the base that was looked at: a tag may have moved meanwhile.

    Raises:
        IntegrityError: its first layers are others.
    """
    first = tuple(layer.digest for layer in built.layers[: len(base.layers)])
    if first != base.layers:
        raise IntegrityError(
            f"the image was not built on the {base.name} that was found at first ({base.digest})", "build it again"
        )


def ensure_runs(wanted: str, binfmt: Path = _BINFMT) -> None:
    """Make sure that this machine can run programs of a platform.

    Raises:
        HostError: it is another platform, and nothing emulates it.
    """
    if wanted == native() or os.environ.get("DOCKER_HOST", "unix:").partition(":")[0] not in ("", "unix"):
        return
    arch = next(arch for arch, name in PLATFORMS.items() if name == wanted)
    try:
        told = (binfmt / f"qemu-{arch}").read_text("ascii")
    except OSError:
        told = ""
    flags = re.search(r"^flags: (\w*)$", told, re.MULTILINE)
    if "enabled" not in told or flags is None or "F" not in flags[1]:
        raise HostError(
            f"this machine is {native()} and cannot run programs for {wanted}",
            "install an emulator (`apt install qemu-user-static`), and mount binfmt_misc where it is not mounted",
        )


def make_plans(
    lock: Lock,
    profiles: Sequence[Profile],
    chosen: Sequence[Variant],
    wanted: str,
    *,
    base: str | None,
    tag: str | None,
    engine: Engine,
    repository: str = REPOSITORY,
    suffix: str | None = None,
) -> list[Plan]:
    """Decide about every image.

    Raises:
        UsageError: a base is not pinned, one tag was given for several images, or a name cannot be one.
        LockError: the lock lacks a profile for the platform.
    """
    if tag is not None:
        _ensure_tag(tag, len(profiles) * len(chosen))
    elif not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"--repository {repository!r}: a name without a tag is expected, such as ghcr.io/me/comfypod")
    ending = suffix if suffix is not None else "" if wanted == native() else f"-{wanted.partition('/')[2]}"
    plans = []
    for profile in profiles:
        arch = next((arch for arch, name in PLATFORMS.items() if name == wanted), wanted)
        lock.target(profile.name, arch)
        recipe = make_recipe(lock, profile)
        found = resolve_base(base or profile.base, wanted, engine)
        for variant in chosen:
            names = (None, (tag,)) if tag is not None else _tags(recipe, variant, repository, ending)
            plans.append(Plan(recipe, variant, wanted, found, *names))
    return plans


def _ensure_tag(tag: str, images: int) -> None:
    if images != 1:
        raise UsageError(f"--tag names one image, and {images} are to be built", "name one profile and one variant")
    if not _REFERENCE.fullmatch(tag) or "@" in tag or not _TAG.search(tag.rpartition("/")[2]):
        raise UsageError(f"--tag {tag!r}: NAME:TAG is expected, such as registry.example/comfypod:4090")


def _tags(recipe: Recipe, variant: Variant, repository: str, suffix: str) -> tuple[str, tuple[str, ...]]:
    fixed, moving = (f"{repository}:{name}{suffix}" for name in image_tags(recipe, variant))
    if not _TAG.search(f":{fixed.rpartition(':')[2]}"):
        raise UsageError(f"--suffix {suffix!r} cannot stand in a tag", "letters, digits, `.`, `_` and `-` can")
    return fixed, (fixed, moving)


def described(plan: Plan) -> list[str]:
    """Describe an image that is not built yet, a line per fact; sizes are those of what is downloaded."""
    recipe = plan.recipe
    names = {recipe.environment(purpose, plan.arch).name for purpose in ("comfyui", "jupyter", "comfypod")}
    lines = [f"{plan.name}: ComfyUI {recipe.lock.comfyui.version}, torch {recipe.triple['torch']}"]
    lines.append(f"  base {plan.base.name} ({plan.base.digest})")
    for layer in recipe.packages:
        packages = [package for name, found in layer.lists.items() if name in names for package in found]
        if packages and (plan.variant == "full" or not layer.full_only):
            size = human_bytes(sum(package.download_bytes for package in packages))
            lines.append(f"  layer {layer.name}: {len(packages)} packages, {size} to download; {layer.why}")
    lines += [f"  node {node.name} {(node.commit or node.digest)[:19]}" for node in recipe.nodes]
    lines += [f"  model {model.name}: {human_bytes(model.size)}" for model in recipe.models]
    return [*lines, *(f"  tag {tag}" for tag in plan.tags)]
