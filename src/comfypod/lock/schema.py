"""`comfypod.lock` as types. It names everything by digest and holds no address of a package index."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from comfypod.errors import LockError
from comfypod.manifest.values import Arch, Commit, SafeName, SafePath, Sha256, Source, TreeDigest

SCHEMA = 1
Purpose = Literal["comfyui", "jupyter"]


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class LockedComfyUI(_Frozen, frozen=True):
    """One ComfyUI: its version, what its tree must digest to, and where it may come from (tried in order)."""

    version: str
    digest: TreeDigest
    files: int
    bytes: int
    sources: tuple[Source, ...]


class Wheel(_Frozen, frozen=True):
    """One wheel file; `size` in bytes."""

    file: SafeName
    sha256: Sha256
    size: int


class Package(_Frozen, frozen=True):
    """One Python package and the wheels of it that fit the environment."""

    name: str
    version: str
    wheels: Annotated[tuple[Wheel, ...], msgspec.Meta(min_length=1)]

    @property
    def download_bytes(self) -> int:
        """Bytes of the largest wheel that may be chosen."""
        return max(wheel.size for wheel in self.wheels)


class Environment(_Frozen, frozen=True):
    """A resolved set of packages for one architecture and Python version.

    `requests` is what was asked for; profiles that ask for the same share one environment.
    """

    name: str
    purpose: Purpose
    arch: Arch
    python: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]+\.[0-9]+\Z")]
    requests: tuple[str, ...]
    packages: tuple[Package, ...]

    @property
    def key(self) -> str:
        """Digest of what would be installed: 64 hex digits, whatever the environment is called."""
        lines = [f"python {self.python} {self.arch}"]
        for package in self.packages:
            digests = " ".join(sorted(wheel.sha256 for wheel in package.wheels))
            lines.append(f"{package.name}=={package.version} {digests}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def download_bytes(self) -> int:
        """Bytes to download when nothing is cached."""
        return sum(package.download_bytes for package in self.packages)

    def version(self, name: str) -> str | None:
        """Return the locked version of a package, None where it is not part of this environment."""
        return next((package.version for package in self.packages if package.name == name), None)


class LockedTarget(_Frozen, frozen=True):
    """What one profile uses on one architecture, by the names of environments."""

    profile: str
    arch: Arch
    comfyui: str
    jupyter: str


class LockedNode(_Frozen, frozen=True):
    """A custom node: the reference asked for and the commit and contents it meant when locked."""

    name: SafeName
    url: str
    ref: str
    commit: Commit
    digest: TreeDigest
    requirements: tuple[str, ...] = ()


class LockedModel(_Frozen, frozen=True):
    """A model file: `folder` below `models/`, `size` in bytes."""

    name: str
    url: str
    folder: SafePath
    file: SafeName
    sha256: Sha256
    size: int


class Requested(_Frozen, frozen=True):
    """What the manifest itself asked of Python, kept so that drift is seen without a network."""

    packages: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    jupyter: tuple[str, ...] = ()


class Lock(_Frozen, frozen=True):
    """The whole lock."""

    schema: int
    comfyui: LockedComfyUI
    targets: tuple[LockedTarget, ...]
    environments: tuple[Environment, ...]
    nodes: tuple[LockedNode, ...] = ()
    models: tuple[LockedModel, ...] = ()
    settings: dict[str, str] = {}
    requested: Requested = Requested()

    def target(self, profile: str, arch: str) -> LockedTarget:
        """Return what a profile uses on an architecture.

        Raises:
            LockError: the lock has no such pair.
        """
        for target in self.targets:
            if (target.profile, target.arch) == (profile, arch):
                return target
        known = ", ".join(f"{target.profile} on {target.arch}" for target in self.targets)
        raise LockError(
            f"the lock has no profile {profile!r} for {arch}; it has {known}",
            "choose one of these with --profile, or add it to `profiles` in comfypod.toml and run `comfypod lock`",
        )

    def environment(self, name: str) -> Environment:
        """Return an environment by its name; targets only name ones that are there."""
        return next(environment for environment in self.environments if environment.name == name)


def encode(lock: Lock) -> bytes:
    """Render the lock: JSON in a fixed order, one item a line, the same bytes for the same facts."""
    return msgspec.json.format(msgspec.json.encode(lock, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes, where: str) -> Lock:
    """Read a lock.

    Raises:
        LockError: not a lock, of another schema, or its parts do not fit together.
    """
    hint = "move it away and run `comfypod lock` to make it anew"
    try:
        lock = msgspec.json.decode(data, type=Lock)
    except msgspec.MsgspecError as error:
        raise LockError(f"{where} is not a lock: {error}", hint) from error
    if lock.schema != SCHEMA:
        raise LockError(f"{where} has schema {lock.schema}, this comfypod reads {SCHEMA}", hint)
    names = {environment.name for environment in lock.environments}
    for target in lock.targets:
        if missing := {target.comfyui, target.jupyter} - names:
            raise LockError(f"{where}: profile {target.profile} names the unknown environment {missing.pop()!r}", hint)
    return lock
