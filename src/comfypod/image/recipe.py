"""What an image is made of: a lock and a profile, cut into layers by how often each changes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from comfypod.errors import LockError
from comfypod.manifest.values import Arch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from comfypod.lock.schema import Environment, Lock, LockedModel, LockedNode, Package
    from comfypod.manifest.profiles import Profile

Variant = Literal["slim", "full"]
VARIANTS: tuple[Variant, ...] = ("slim", "full")
MEDIA = "comfyui-workflow-templates-media-"

COMFYUI = "/opt/comfyui"
NODES = "/opt/nodes"
MODELS = "/opt/models"
VENV = "/opt/venv"
JUPYTER = "/opt/jupyter"
COMFYPOD = "/opt/comfypod"
RECORD = "/opt/record/start"
BASE = "/opt/record/packages"

# Bytes of wheels in one layer at most; one large wheel may be more. CUDA's libraries unpack to 1.4 times their wheels,
# other packages to 3 times theirs: both stay below 1.5 GB, so that a pull has several layers to fetch at a time.
_CUDA_BYTES = 1_000_000_000
_OTHER_BYTES = 400_000_000
_OWN_LAYER_BYTES = 5_000_000
_SEVERAL = frozenset({"cuda", "packages"})


@dataclass(frozen=True, slots=True)
class PackageLayer:
    """Python packages that become one layer: by environment name; `late` ones change with every ComfyUI."""

    name: str
    venv: str
    why: str
    lists: Mapping[str, tuple[Package, ...]]
    full_only: bool = False
    late: bool = False

    @property
    def download_bytes(self) -> int:
        """Bytes of wheels on the architecture that has most."""
        return max(sum(package.download_bytes for package in packages) for packages in self.lists.values())

    def list_name(self, arch: str) -> str:
        """Return what an architecture's list is called, whatever the lock calls its environment there."""
        name = next(iter(self.lists))
        for known in get_args(Arch):
            name = name.replace(known, arch)
        return name


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image of one profile for all its architectures; `environments` maps purpose and architecture to one."""

    lock: Lock
    profile: Profile
    environments: Mapping[tuple[str, str], Environment]
    packages: tuple[PackageLayer, ...]

    @property
    def nodes(self) -> tuple[LockedNode, ...]:
        """The nodes that are built in."""
        return self.lock.nodes

    @property
    def models(self) -> tuple[LockedModel, ...]:
        """The models that are built in, each place once: what two packs share is one file."""
        return tuple({model.place: model for model in self.lock.models if model.bake}.values())

    @property
    def triple(self) -> dict[str, str]:
        """Torch and the two that go with it as they are locked: an override may say otherwise than the profile."""
        locked = self.environment("comfyui", self.profile.architectures[0])
        return {name: locked.version(name) or "" for name in ("torch", "torchvision", "torchaudio")}

    def environment(self, purpose: str, arch: str) -> Environment:
        """Return the environment of a purpose on an architecture."""
        return self.environments[purpose, arch]


@dataclass(frozen=True, slots=True)
class _Group:
    """A rule: which packages, in which layers, why they change, how many bytes of wheels to a layer."""

    name: str
    why: str
    has: Callable[[Package], bool]
    most: int
    full_only: bool = False
    late: bool = False


def _is_cuda(package: Package) -> bool:
    return package.name.startswith(("nvidia-", "cuda-"))


# In order of change: what is pulled again after an update stands last.
_GROUPS = (
    _Group("cuda", "the CUDA libraries; change with torch", _is_cuda, _CUDA_BYTES),
    _Group("torch", "torch itself; changes with the profile", lambda package: package.name == "torch", _CUDA_BYTES),
    _Group(
        "torch-more", "what belongs to torch; changes with it",
        lambda package: package.name in {"torchaudio", "torchvision", "triton"}, _CUDA_BYTES,
    ),
    _Group(
        "packages", "what ComfyUI and the nodes need; changes with `comfypod lock --upgrade`",
        lambda package: not package.name.startswith("comfy"), _OTHER_BYTES,
    ),
    _Group(
        "media", "pictures and films of the workflow templates; change with ComfyUI",
        lambda package: package.name.startswith(MEDIA), _OWN_LAYER_BYTES, full_only=True, late=True,
    ),
    _Group(
        "comfyui-packages", "ComfyUI's own packages; change with it", lambda _: True, _OWN_LAYER_BYTES, late=True
    ),
)  # fmt: skip


def model_layer(model: LockedModel) -> str:
    """Name a model's layer, its folder of facts and its step; a pack's file may be called anything."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"model-{model.name}")
    return f"{name}-{hashlib.sha256(model.place.encode()).hexdigest()[:8]}" if model.pack else name


def make_recipe(lock: Lock, profile: Profile) -> Recipe:
    """Return the recipe of a profile.

    Raises:
        LockError: the lock does not have the profile, or is older than images.
    """
    environments: dict[tuple[str, str], Environment] = {}
    for arch in profile.architectures:
        target = lock.target(profile.name, arch)
        if not target.comfypod:
            raise LockError("the lock does not say what comfypod itself needs in an image", "run `comfypod lock`")
        for purpose, name in (("comfyui", target.comfyui), ("jupyter", target.jupyter), ("comfypod", target.comfypod)):
            environments[purpose, arch] = lock.environment(name)
    by_purpose = {
        purpose: [environments[purpose, arch] for arch in profile.architectures]
        for purpose in ("comfypod", "comfyui", "jupyter")
    }
    jupyter: list[PackageLayer] = []
    if any(environment.packages for environment in by_purpose["jupyter"]):
        why = "JupyterLab; changes with `comfypod lock --upgrade`"
        jupyter = [PackageLayer("jupyter", JUPYTER, why, _by_name(by_purpose["jupyter"]), full_only=True)]
    own = PackageLayer(
        "comfypod-packages", COMFYPOD, "what comfypod needs; changes with it", _by_name(by_purpose["comfypod"])
    )
    comfyui = _grouped(by_purpose["comfyui"])
    early, late = [layer for layer in comfyui if not layer.late], [layer for layer in comfyui if layer.late]
    return Recipe(lock, profile, environments, (own, *early, *jupyter, *late))


def _by_name(environments: Iterable[Environment]) -> dict[str, tuple[Package, ...]]:
    return {environment.name: environment.packages for environment in environments}


def _grouped(environments: Iterable[Environment]) -> list[PackageLayer]:
    found: dict[str, dict[str, tuple[Package, ...]]] = {}
    rules: dict[str, _Group] = {}
    for environment in environments:
        left = list(environment.packages)
        for group in _GROUPS:
            mine = [package for package in left if group.has(package)]
            left = [package for package in left if package not in mine]
            for name, packages in _portions(group, mine):
                found.setdefault(name, {})[environment.name] = packages
                rules[name] = group
    return [
        PackageLayer(name, VENV, rule.why, lists, rule.full_only, rule.late)
        for rule in _GROUPS
        for name, lists in sorted(found.items())
        if rules[name] is rule
    ]


def _portions(group: _Group, packages: Iterable[Package]) -> list[tuple[str, tuple[Package, ...]]]:
    """Fill layers in order of names; where packages get layers of their own, those are named after them."""
    if group.most == _OWN_LAYER_BYTES:
        return _own_layers(group, list(packages))
    bins: list[list[Package]] = []
    for package in packages:
        if not bins or sum(each.download_bytes for each in bins[-1]) + package.download_bytes > group.most:
            bins.append([])
        bins[-1].append(package)
    first = f"{group.name}-1" if group.name in _SEVERAL else group.name
    names = (first, *(f"{group.name}-{number}" for number in range(2, len(bins) + 1)))
    return [(name, tuple(each)) for name, each in zip(names, bins, strict=False)]


def _own_layers(group: _Group, packages: list[Package]) -> list[tuple[str, tuple[Package, ...]]]:
    large = [package for package in packages if package.download_bytes > group.most]
    small = tuple(package for package in packages if package not in large)
    layers: list[tuple[str, tuple[Package, ...]]] = [
        (package.name.replace(MEDIA, "media-"), (package,)) for package in large
    ]
    return [*layers, (group.name, small)] if small else layers
