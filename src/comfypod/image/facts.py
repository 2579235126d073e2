"""What container engines say about images and containers, read into types. Pure: JSON in, facts out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAKES_LAYER = ("RUN ", "COPY ", "ADD ", "WORKDIR ")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: digest of its uncompressed contents, bytes on disk (None where the engine does not say), its step."""

    digest: str
    size: int | None
    step: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here.

    `id` is the digest of its configuration (`sha256:...`), `digest` that of its manifest, empty where the engine does
    not know one yet. `size` is in bytes.
    """

    id: str
    digest: str
    names: tuple[str, ...]
    platform: str
    size: int
    labels: Mapping[str, str]
    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """A container that is here. `ports` maps "8188/tcp" to the address and port where it is published."""

    id: str
    name: str
    image: str
    state: str
    exit_code: int
    out_of_memory: bool
    error: str
    health: str
    labels: Mapping[str, str]
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether its program runs."""
        return self.state == "running"


def image(body: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Image:
    """Read `image inspect` and `history` (newest first) of docker or podman."""
    config = body.get("Config") or {}
    digests = body.get("RepoDigests") or ()
    architecture = "/".join(filter(None, (body.get("Os"), body.get("Architecture"), body.get("Variant"))))
    return Image(
        id=prefixed(str(body["Id"])),
        digest=str(body.get("Digest") or (digests[0].partition("@")[2] if digests else "")),
        names=tuple(body.get("RepoTags") or ()),
        platform=architecture,
        size=int(body.get("Size") or 0),
        labels=config.get("Labels") or {},
        environment=tuple(config.get("Env") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        user=str(config.get("User") or ""),
        layers=_layers((body.get("RootFS") or {}).get("Layers") or (), history),
    )


def prefixed(identifier: str) -> str:
    """Write an image's id as every engine accepts it."""
    return identifier if identifier.startswith("sha256:") else f"sha256:{identifier}"


def _layers(digests: Sequence[str], history: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Join layers with the steps that made them; engines tell both apart and do not say which step made none."""
    steps = [(_size(entry), _step(entry)) for entry in reversed(history)]
    for found in (
        [step for step in steps if step[0] or step[1].startswith(_MAKES_LAYER)],
        [step for step in steps if step[0]],
        steps,
    ):
        if len(found) == len(digests):
            return tuple(Layer(digest, size, step) for digest, (size, step) in zip(digests, found, strict=True))
    return tuple(Layer(digest, None, "") for digest in digests)


def _size(entry: Mapping[str, Any]) -> int:
    return int(entry.get("Size") or entry.get("size") or 0)


def _step(entry: Mapping[str, Any]) -> str:
    text = str(entry.get("CreatedBy") or entry.get("Comment") or entry.get("comment") or "")
    text = text.removesuffix(" # buildkit").strip()
    if (plain := text.removeprefix("/bin/sh -c #(nop) ")) != text:
        return plain.strip()
    if (plain := text.removeprefix("/bin/sh -c ")) != text:
        return f"RUN {plain.strip()}"
    return text


def container(body: Mapping[str, Any]) -> Container:
    """Read `container inspect` of docker or podman."""
    state, config = body.get("State") or {}, body.get("Config") or {}
    health = state.get("Health") or state.get("Healthcheck") or {}
    published = (body.get("NetworkSettings") or {}).get("Ports") or {}
    return Container(
        id=str(body["Id"]),
        name=str(body.get("Name", "")).lstrip("/"),
        image=prefixed(str(body.get("Image", ""))),
        state=str(state.get("Status", "")),
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        health=str(health.get("Status") or ""),
        labels=config.get("Labels") or {},
        ports={port: (places[0]["HostIp"], int(places[0]["HostPort"])) for port, places in published.items() if places},
    )
