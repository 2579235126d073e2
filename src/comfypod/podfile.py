"""`pod.json`: the facts of an image or a prepared store, the only thing that passes from host to pod."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from comfypod.errors import UsageError

SCHEMA = 1
IN_IMAGE = Path("/etc/comfypod/pod.json")


@dataclass(frozen=True, slots=True)
class LockedModel:
    """A model file that this pod should have: where below `models/`, its size and digest."""

    name: str
    folder: str
    file: str
    sha256: str
    size: int


def release_name(version: str, digest: str) -> str:
    """Name a ComfyUI tree for good: its version and the first twelve digits of its digest."""
    return f"{version}-{digest.removeprefix('sha256:')[:12]}"


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
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a pod.json of schema {SCHEMA}: {error}", hint) from error


def _decode(body: Any) -> PodFile:
    if not isinstance(body, dict):
        raise TypeError("an object is expected")
    if body.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {body.get('schema')!r}")
    unknown = sorted(set(body) - {entry.name for entry in fields(PodFile)})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    models = tuple(LockedModel(**model) for model in body.get("models", ()))
    arguments = body.get("comfyui_args", [])
    pod = PodFile(**{**body, "models": models, "comfyui_args": tuple(arguments)})
    texts = (entry.name for entry in fields(PodFile) if entry.type == "str")
    wrong = [name for name in texts if not isinstance(getattr(pod, name), str)]
    wrong += ["comfyui_args"] * (
        not isinstance(arguments, list) or not all(isinstance(word, str) for word in arguments)
    )
    wrong += ["settings"] * (not isinstance(pod.settings, dict) or not all(map(_is_text, pod.settings.items())))
    if wrong:
        raise ValueError(f"{wrong[0]!r} is of another type")
    return pod


def _is_text(item: tuple[object, object]) -> bool:
    return all(isinstance(part, str) for part in item)


def find() -> Path | None:
    """Return the image's own `pod.json`, None outside an image."""
    return IN_IMAGE if IN_IMAGE.is_file() else None
