"""Values that manifest and lock share: digests, names that cannot leave their folder, and where a tree comes from."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z", description="a SHA-256: 64 hex digits")]
TreeDigest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
SafeName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!\.{1,2}\Z)[^/\\\x00-\x1f\x7f]+\Z",
        description="a plain name, without `/` and not `..`",
    ),
]
# What becomes part of a Dockerfile, a folder and a layer's name.
ItemName = Annotated[
    str,
    msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", description="a name of letters, digits, `.`, `_` and `-`"),
]
Version = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9]+(\.[0-9]+)+([-+.]?[0-9A-Za-z.]+)?\Z", description='a version such as "0.30.0"')
]
SafePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!\.{1,2}(/|\Z))[^/\\\x00-\x1f\x7f]+(/(?!\.{1,2}(/|\Z))[^/\\\x00-\x1f\x7f]+)*\Z",
        description="a relative folder, without `..`",
    ),
]
# Stands in a label of images, so nothing that a Dockerfile reads as its own.
Licence = Annotated[
    str,
    msgspec.Meta(pattern=r'\A[^"$\\`\x00-\x1f\x7f]*\Z', description='the name of a licence, such as "apache-2.0"'),
]
PICKLE_HINT = "take a .safetensors file, or write `pickle = true` beside it where you trust who made it"
Arch = Literal["x86_64", "aarch64"]


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class GitSource(_Source, frozen=True, tag_field="kind", tag="git"):
    """A tag, branch or commit of a Git repository."""

    url: str
    ref: str
    subdir: SafePath | None = None


class ArchiveSource(_Source, frozen=True, tag_field="kind", tag="archive"):
    """A tar or zip archive; its single top folder, where there is one, is left out."""

    url: str
    sha256: Sha256 | None = None
    subdir: SafePath | None = None


class SdistSource(_Source, frozen=True, tag_field="kind", tag="sdist"):
    """A source distribution on the package index that carries the tree in a folder of its own."""

    package: str
    version: str
    sha256: Sha256
    subdir: SafePath | None = None


class PathSource(_Source, frozen=True, tag_field="kind", tag="path"):
    """A folder on this machine; relative ones are below the manifest's folder."""

    path: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", description="the name of a folder")]


Source = GitSource | ArchiveSource | SdistSource | PathSource
