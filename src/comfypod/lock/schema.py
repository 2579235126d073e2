"""`comfypod.lock` as types. It names everything by digest and holds no address of a package index."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from comfypod import podfile
from comfypod.errors import LockError
from comfypod.manifest.values import (
    Arch,
    ArchiveSource,
    GitSource,
    ItemName,
    Licence,
    PathSource,
    SafeName,
    SafePath,
    Sha256,
    Source,
    TreeDigest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCHEMA = 1
ModelName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]*(/[^/\\\x00-\x1f\x7f]+)?\Z")]
Purpose = Literal["comfyui", "jupyter", "comfypod"]


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class LockedComfyUI(_Frozen, frozen=True):
    """One ComfyUI: its version, what its tree must digest to, and where it may come from (tried in order).

    `manager` is the version of ComfyUI-Manager in its environment, empty where there is none.
    """

    version: Annotated[str, msgspec.Meta(pattern=r"\A[0-9][0-9A-Za-z.+-]*\Z")]
    digest: TreeDigest
    files: int
    bytes: int
    sources: tuple[Source, ...]
    manager: str = ""


class Wheel(_Frozen, frozen=True):
    """One wheel file; `size` in bytes."""

    file: SafeName
    sha256: Sha256
    size: int


class SourceFile(_Frozen, frozen=True):
    """One source distribution; `size` in bytes."""

    file: SafeName
    sha256: Sha256
    size: int


class Package(_Frozen, frozen=True):
    """One Python package: the wheels of it that fit the environment, or what a wheel is built from."""

    name: str
    version: str
    wheels: tuple[Wheel, ...] = ()
    sdist: SourceFile | None = None

    @property
    def files(self) -> tuple[Wheel | SourceFile, ...]:
        """Every file that may be fetched for it."""
        return self.wheels if self.sdist is None else (*self.wheels, self.sdist)

    @property
    def download_bytes(self) -> int:
        """Bytes of the largest file that may be chosen."""
        return max((file.size for file in self.files), default=0)


class Environment(_Frozen, frozen=True):
    """A resolved set of packages for one architecture and Python version.

    `requests` is what was asked for; profiles that ask for the same share one environment. `build` is what builds its
    source distributions, and empty where it has none.
    """

    name: ItemName
    purpose: Purpose
    arch: Arch
    python: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]+\.[0-9]+\Z")]
    requests: tuple[str, ...]
    packages: tuple[Package, ...]
    build: tuple[Package, ...] = ()

    @property
    def key(self) -> str:
        """Digest of what would be installed and built with: 64 hex digits, whatever the environment is called."""
        lines = [f"python {self.python} {self.arch}", *map(_key_line, self.packages)]
        if self.build:
            lines += ["built with", *map(_key_line, self.build)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def download_bytes(self) -> int:
        """Bytes to download when nothing is cached."""
        return sum(package.download_bytes for package in (*self.packages, *self.build))

    def version(self, name: str) -> str | None:
        """Return the locked version of a package, None where it is not part of this environment."""
        return next((package.version for package in self.packages if package.name == name), None)


def _key_line(package: Package) -> str:
    line = f"{package.name}=={package.version} {' '.join(sorted(wheel.sha256 for wheel in package.wheels))}"
    return line if package.sdist is None else f"{line} sdist {package.sdist.sha256}"


class LockedTarget(_Frozen, frozen=True):
    """What one profile uses on one architecture, by the names of environments.

    `comfypod` is the environment of comfypod itself in an image, empty in a lock that is older than it.
    """

    profile: str
    arch: Arch
    comfyui: str
    jupyter: str
    comfypod: str = ""


class LockedNode(_Frozen, frozen=True):
    """A custom node: the reference asked for and the commit and contents it meant when locked, or a folder.

    For a folder, `path` is as the manifest has it, and `url`, `ref` and `commit` are empty. A commit is a digest of its
    contents by itself, which Git checks as it fetches them; `digest` may then be empty until a lock is made anew. For
    one of the registry there are its id, the version as `ref`, and address and SHA-256 of its `archive`.
    """

    name: ItemName
    url: str
    ref: str
    commit: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{40}|[0-9a-f]{64})?\Z")]
    digest: Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64})?\Z")]
    requirements: tuple[str, ...] = ()
    path: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z")] = ""
    registry: str = ""
    archive: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""

    @property
    def asked(self) -> str:
        """What the manifest said of its source, in a line."""
        if self.registry:
            return f"registry:{self.registry}@{self.ref}"
        return self.path or f"{self.url} at {self.ref}"

    @property
    def source(self) -> GitSource | PathSource | ArchiveSource:
        """Where its contents come from."""
        if self.archive:
            return ArchiveSource(self.url, self.archive)
        return PathSource(self.path) if self.path else GitSource(self.url, self.commit)


class LockedModel(_Frozen, frozen=True):
    """A model file: `folder` below `models/`, `size` in bytes; `bake` puts it into images.

    A file of a `pack` is called `PACK/FILE`. `url` is where it comes from for good, and `asked` what the manifest says
    where that is something else, such as a branch.
    """

    name: ModelName
    url: str
    folder: SafePath
    file: SafeName
    sha256: Sha256
    size: int
    bake: bool = False
    licence: Licence = ""
    gated: bool = False
    pickle: bool = False
    pack: str = ""
    asked: str = ""

    @property
    def place(self) -> str:
        """Its path below `models/`."""
        return f"{self.folder}/{self.file}"

    @property
    def source(self) -> str:
        """What the manifest said of where it comes from."""
        return self.asked or self.url

    def for_pod(self) -> podfile.LockedModel:
        """Return what a pod needs to know about it."""
        return podfile.LockedModel(
            self.name, self.folder, self.file, self.sha256, self.size, self.url, self.licence, self.gated, self.pickle,
            self.pack,
        )  # fmt: skip


class Requested(_Frozen, frozen=True):
    """What the manifest itself asked of Python, kept so that drift is seen without a network.

    `manager` is whether ComfyUI-Manager was wanted, had ComfyUI's tree named one.
    """

    packages: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    jupyter: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    sdists: tuple[str, ...] = ()
    manager: bool = True


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
    for misfit in _misfits(lock):
        raise LockError(f"{where}: {misfit}", hint)
    return lock


def _misfits(lock: Lock) -> Iterator[str]:
    """Yield what types alone do not rule out: names of nothing, and items that nothing pins."""
    names = {environment.name for environment in lock.environments}
    for target in lock.targets:
        for name in (target.comfyui, target.jupyter, *filter(None, (target.comfypod,))):
            if name not in names:
                yield f"profile {target.profile} names the unknown environment {name!r}"
    for environment in lock.environments:
        yield from _unpinned(environment)
    for node in lock.nodes:
        if sum(map(bool, (node.commit, node.path, node.archive))) != 1:
            yield f"node {node.name} has not exactly one of a commit, a folder and an archive"
        elif not node.commit and not node.digest:
            yield f"node {node.name} is a folder or an archive without a digest"
    yield from clashes(lock.models)


def clashes(models: Iterable[LockedModel]) -> Iterator[str]:
    """Yield what is wrong with places that two models have: there they must be one file."""
    places: dict[str, LockedModel] = {}
    for model in models:
        first = places.setdefault(model.place, model)
        if first.sha256 != model.sha256:
            yield (
                f"{first.name} and {model.name} are both to be {model.place}, one with sha256 {first.sha256[:12]} and "
                f"{first.size} bytes, the other with {model.sha256[:12]} and {model.size}"
            )


def _unpinned(environment: Environment) -> Iterator[str]:
    for package in (*environment.packages, *environment.build):
        if not package.files:
            yield f"{package.name} in {environment.name} has neither a wheel nor a source distribution"
    if not environment.build and any(package.sdist is not None for package in environment.packages):
        yield f"{environment.name} has source distributions and nothing that builds them"
