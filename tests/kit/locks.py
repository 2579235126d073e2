"""Locks out of nothing, for tests of what is made from them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from comfypod.lock.schema import (
    Environment,
    Lock,
    LockedComfyUI,
    LockedModel,
    LockedNode,
    LockedTarget,
    Package,
    SourceFile,
    Wheel,
)
from comfypod.manifest.values import PathSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfypod.lock.schema import Purpose
    from comfypod.manifest.profiles import Profile
    from comfypod.manifest.values import Arch

DIGEST = "sha256:" + "d" * 64


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def package(name: str, size: int = 1000, version: str = "1.0", *, sdist: bool = False) -> Package:
    if sdist:
        return Package(name, version, sdist=SourceFile(f"{name}-{version}.tar.gz", sha256(name), size))
    return Package(name, version, (Wheel(f"{name}-{version}-py3-none-any.whl", sha256(name), size),))


def node(name: str, *, path: str = "") -> LockedNode:
    commit = "" if path else sha256(name)[:40]
    return LockedNode(name, "" if path else f"https://host.invalid/{name}", "" if path else "main", commit, DIGEST,
                      path=path)  # fmt: skip


def model(name: str, *, bake: bool, pack: str = "", licence: str = "") -> LockedModel:
    url, full = f"https://host.invalid/{name}", f"{pack}/{name}.bin" if pack else name
    return LockedModel(full, url, "checkpoints", f"{name}.bin", sha256(name), 7, bake, licence, pack=pack)


def lock(
    packages: Mapping[str, Iterable[Package]],
    profiles: Iterable[Profile],
    *,
    jupyter: Iterable[Package] = (),
    nodes: Iterable[LockedNode] = (),
    models: Iterable[LockedModel] = (),
    per_profile: bool = False,
) -> Lock:
    """Make a lock with ComfyUI's packages by architecture; `per_profile` gives x86_64 an environment for each."""
    targets, environments = [], dict[str, Environment]()

    def environment(purpose: Purpose, arch: Arch, found: Iterable[Package], suffix: str = "") -> str:
        name = f"{purpose}-{arch}{suffix}"
        rows = tuple(sorted(found, key=lambda each: each.name))
        build = (package("setuptools"),) if any(each.sdist for each in rows) else ()
        environments[name] = Environment(name, purpose, arch, "3.11", (), rows, build)
        return name

    own = [package("msgspec"), package("uv")]
    for profile in profiles:
        for arch in profile.architectures:
            suffix = f"-{profile.name}" if per_profile and arch == "x86_64" else ""
            targets.append(
                LockedTarget(
                    profile.name, arch, environment("comfyui", arch, packages[arch], suffix),
                    environment("jupyter", arch, jupyter), environment("comfypod", arch, own),
                )
            )  # fmt: skip
    return Lock(
        1, LockedComfyUI("0.30.0", DIGEST, 3, 30, (PathSource("tree"),)), tuple(targets),
        tuple(environments.values()), tuple(nodes), tuple(models),
    )  # fmt: skip
