"""One image to build, and how each engine is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Build:
    """One image to build.

    `secrets` maps ids to files. `timestamp` (Unix time) is what buildah and podman give to all files and to the image,
    so that equal inputs give equal digests; docker has no such option.
    """

    context: Path
    dockerfile: Path
    target: str
    tag: str
    platform: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    network: str = "default"
    timestamp: int | None = None


def options(build: Build, *, docker: bool, buildx: bool) -> list[str]:
    """Return what follows an engine's `build`; of secrets only ids and files."""
    argv = _docker(build, buildx=buildx) if docker else _buildah(build)
    argv += ["--file", str(build.dockerfile), "--target", build.target, "--tag", build.tag]
    if build.platform is not None:
        argv += ["--platform", build.platform]
    if build.network != "default":
        argv += ["--network", build.network]
    for name, value in build.args.items():
        argv += ["--build-arg", f"{name}={value}"]
    for name, value in build.labels.items():
        argv += ["--label", f"{name}={value}"]
    for name, path in build.secrets.items():
        argv += ["--secret", f"id={name},src={path}"]
    return [*argv, str(build.context)]


def _docker(build: Build, *, buildx: bool) -> list[str]:
    if not buildx:
        return ["--progress", "plain"]
    allowed = ["--allow", "network.host"] if build.network == "host" else []
    return ["--progress", "plain", "--load", "--provenance=false", *allowed]


def _buildah(build: Build) -> list[str]:
    stamped = [] if build.timestamp is None else ["--timestamp", str(build.timestamp)]
    return ["--layers", "--force-rm", "--format", "docker", *stamped]
