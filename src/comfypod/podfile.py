"""`pod.json`: the facts of an image or a prepared store, the only thing that passes from host to pod."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from comfypod.errors import UsageError

SCHEMA = 1
IN_IMAGE = Path("/etc/comfypod/pod.json")


@dataclass(frozen=True, slots=True)
class LockedModel:
    """A model file that this pod should have: where below `models/`, its size and digest, and where it comes from.

    `name` is `PACK/FILE` for a file of a pack; a `gated` one needs a token, a `pickle` is wanted all the same.
    """

    name: str
    folder: str
    file: str
    sha256: str
    size: int
    url: str = ""
    licence: str = ""
    gated: bool = False
    pickle: bool = False
    pack: str = ""


@dataclass(frozen=True, slots=True)
class BakedNode:
    """A custom node of the image: its name, the folder that it stands in (alone in its parent), its version."""

    name: str
    path: str
    version: str


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """What the environment needs of GPU and driver; `name` and `summary` are the profile's."""

    name: str
    summary: str
    capabilities: tuple[str, ...]
    driver: int

    @property
    def needs_gpu(self) -> bool:
        """Whether it is of use only with an NVIDIA GPU."""
        return bool(self.capabilities)


def release_name(version: str, digest: str) -> str:
    """Name a ComfyUI tree for good: its version and the first twelve digits of its digest."""
    return f"{version}-{digest.removeprefix('sha256:')[:12]}"


_RECORDS: dict[str, Any] = {kind.__name__: kind for kind in (LockedModel, BakedNode, GpuNeed)}


@dataclass(frozen=True, slots=True)
class PodFile:
    """What boot needs to know about what was built; see `docs/architecture.md` for each field's producer."""

    profile: str
    arch: str
    lock: str
    comfyui_version: str
    comfyui_digest: str
    comfyui_path: str
    environment_key: str
    torch: str
    python: str
    jupyter: str | None = None
    engine: str = "image"
    comfyui_args: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    models: tuple[LockedModel, ...] = ()
    variant: str = "full"
    nodes: tuple[BakedNode, ...] = ()
    models_path: str | None = None
    gpu: GpuNeed | None = None
    record: str | None = None
    schema: int = SCHEMA

    @property
    def release(self) -> str:
        """The name of the ComfyUI tree."""
        return release_name(self.comfyui_version, self.comfyui_digest)

    def with_settings(self, settings: dict[str, str]) -> PodFile:
        """Return the same facts with other settings."""
        return replace(self, settings=settings)

    def encode(self) -> bytes:
        """Render as JSON, the same bytes for the same facts."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def load(path: Path) -> PodFile:
    """Read a `pod.json`.

    Raises:
        UsageError: it is missing, not JSON, of another schema, or lacks a field.
    """
    hint = "give the right file with --pod, or make one with `comfypod up`"
    try:
        body: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint) from error
    try:
        return _decode(body)
    except ValueError as error:
        raise UsageError(f"{path} is not a pod.json of schema {SCHEMA}: {error}", hint) from error


def _decode(body: Any) -> PodFile:
    if not isinstance(body, dict):
        raise ValueError("an object is expected")  # noqa: TRY004 - one kind of error for all that may be wrong
    if body.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {body.get('schema')!r}")
    pod: PodFile = _record(PodFile, body)
    return pod


def _record(kind: Any, body: dict[str, Any]) -> Any:
    """Make a record of a JSON object, each value as the type that its field is declared with."""
    unknown = sorted(set(body) - {entry.name for entry in fields(kind)})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    found = {entry.name: _value(entry.name, str(entry.type), body[entry.name]) for entry in _present(kind, body)}
    return kind(**found)


def _present(kind: Any, body: dict[str, Any]) -> list[Field[Any]]:
    def has_default(entry: Field[Any]) -> bool:
        return entry.default is not MISSING or entry.default_factory is not MISSING

    missing = [entry.name for entry in fields(kind) if entry.name not in body and not has_default(entry)]
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing")
    return [entry for entry in fields(kind) if entry.name in body]


def _value(name: str, kind: str, value: Any) -> Any:
    plain = kind.removesuffix(" | None")
    inner = plain.removeprefix("tuple[").removesuffix(", ...]")
    if value is None and plain != kind:
        return None
    if inner != plain and isinstance(value, list):
        return tuple(_value(name, inner, each) for each in value)
    if plain in _RECORDS and isinstance(value, dict):
        return _record(_RECORDS[plain], value)
    if not _is_a(plain, value):
        raise ValueError(f"{name!r} is of another type")
    return value


def _is_a(kind: str, value: Any) -> bool:
    if kind == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item)
    return type(value) is {"str": str, "int": int, "bool": bool}.get(kind)


def find() -> Path | None:
    """Return the image's own `pod.json`, None outside an image."""
    return IN_IMAGE if IN_IMAGE.is_file() else None
