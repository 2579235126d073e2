"""`comfypod.toml` as the user writes it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from comfypod.manifest.values import ItemName, Licence, SafeName, SafePath, Sha256, Source, Version
from comfypod.models import source as sources
from comfypod.settings import as_text

Requirement = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][^\r\n]*\Z", description='a requirement such as "numpy>=2"')
]
PackageName = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z", description="the name of a package")
]
# No login and no token: what a manifest says ends up in the lock and in images.
ModelAddress = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!.*[?&](?:token|api_?key|access_token)=)"
        r"(https?://[^\s/@]+/\S*|hf:[^\s/@:]+/[^\s/@]+(@[^\s/@]+)?/\S+|civitai:[0-9]+)\Z",
        description="an https:// or http:// address without a login or token, hf:ORG/REPO@REVISION/FILE or "
        "civitai:VERSION",
    ),
]
GitAddress = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A((https?|ssh|git|file)://\S+|[\w.-]+@[\w.-]+:\S+|/\S*)\Z",
        description="a Git address: https://, ssh:// or an absolute path",
    ),
]
Reference = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]*\Z", description="the name of a commit, a tag or a branch"
    ),
]
RegistryId = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", description="an id of the registry of custom nodes")
]
RegistryVersion = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9.+_-]*\Z", description='a version of it such as "1.2.0"')
]
Folder = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[^\x00-\x1f\x7f]+\Z", description="a folder; a relative one is below the manifest's folder"
    ),
]
Bytes = Annotated[int, msgspec.Meta(gt=0, description="a count of bytes above 0")]


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ComfyUI(_Written, frozen=True):
    """Which ComfyUI; with no source given, the known ones of that version are tried.

    `manager` takes the ComfyUI-Manager that its tree names, where it names one.
    """

    version: Version
    source: tuple[Source, ...] = ()
    manager: bool = True


class Python(_Written, frozen=True):
    """Requirements beside those of ComfyUI and of the nodes, and bounds on any of them.

    `overrides` replace what any package asks for; `sdists` may be built from their source distributions.
    """

    packages: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    overrides: tuple[Requirement, ...] = ()
    sdists: tuple[PackageName, ...] = ()


class Jupyter(_Written, frozen=True):
    """What JupyterLab's own environment has; nothing means no JupyterLab."""

    packages: tuple[Requirement, ...] = ()


class Node(_Written, frozen=True):
    """A custom node: the folder's name, and a repository with a commit, tag or branch of it, or a local folder.

    Or an id of the registry with a version of it. `required` is for those of a workspace: an image has all of its own.
    """

    name: ItemName
    git: GitAddress | None = None
    ref: Reference | None = None
    path: Folder | None = None
    registry: RegistryId | None = None
    version: RegistryVersion | None = None
    required: bool = False

    @property
    def source(self) -> str:
        """Where it comes from, in a line."""
        if self.registry:
            return f"registry:{self.registry}@{self.version}"
        return self.path or f"{self.git} at {self.ref}"


class PackFile(_Written, frozen=True):
    """A file of a model pack: `folder` is below `models/`, `file` is the last part of the address when not given.

    `gated` says that its host asks for a token, `pickle` that a format which can run code is wanted all the same.
    """

    url: ModelAddress
    folder: SafePath
    file: SafeName | None = None
    sha256: Sha256 | None = None
    size: Bytes | None = None
    licence: Licence = ""
    gated: bool = False
    pickle: bool = False

    @property
    def filename(self) -> str:
        """The name under which it is stored, nothing where only its host knows it."""
        return self.file or sources.of_text(self.url).file


class Model(PackFile, frozen=True, kw_only=True):
    """A model file with a name of its own; `bake` puts it into images."""

    name: ItemName
    bake: bool = False


class Pack(_Written, frozen=True):
    """Several model files; without any it is the pack of that name that comes with comfypod.

    `bake` puts them into images.
    """

    name: ItemName
    file: tuple[PackFile, ...] = ()
    bake: bool = False


class Manifest(_Written, frozen=True):
    """The whole manifest."""

    schema: Annotated[Literal[1], msgspec.Meta(description="1, the schema that this comfypod reads")]
    comfyui: ComfyUI
    profiles: tuple[str, ...]
    python: Python = Python()
    jupyter: Jupyter = Jupyter()
    node: tuple[Node, ...] = ()
    model: tuple[Model, ...] = ()
    pack: tuple[Pack, ...] = ()
    settings: dict[str, str | int | float | bool | list[str]] = {}

    @property
    def settings_text(self) -> dict[str, str]:
        """The settings as lock and `pod.json` hold them, in order of their names."""
        return {name: as_text(name, value) for name, value in sorted(self.settings.items())}
