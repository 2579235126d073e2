"""Whether the lock still says what the manifest asks for: a pure comparison, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.errors import LockError, Problem
from comfypod.lock import models
from comfypod.lock.sources import default_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from comfypod.lock.schema import Lock, LockedModel, LockedTarget
    from comfypod.manifest.profiles import Profile
    from comfypod.manifest.schema import Manifest
    from comfypod.models.file import ModelFile

_ABSENT = "nothing"
_LOCK = "comfypod lock"


@dataclass(frozen=True, slots=True)
class Drift:
    """One item on which manifest and lock disagree, and the command that mends it."""

    item: str
    manifest: str
    lock: str
    command: str = _LOCK

    @property
    def problem(self) -> Problem:
        """The same as an error entry."""
        message = f"{self.item}: the manifest says {self.manifest}, the lock says {self.lock}"
        return Problem(LockError.code, message, f"run `{self.command}`")


def drift(manifest: Manifest, profiles: Mapping[str, Profile], lock: Lock) -> tuple[Drift, ...]:
    """Return every disagreement, in the order of the manifest's tables; nothing means they are in step."""
    return (
        *_comfyui(manifest, lock),
        *_targets(manifest, profiles, lock),
        *_python(manifest, lock),
        *_nodes(manifest, lock),
        *_models(manifest, lock),
        *_settings(manifest, lock),
    )


def _comfyui(manifest: Manifest, lock: Lock) -> Iterator[Drift]:
    if manifest.comfyui.version != lock.comfyui.version:
        yield Drift("ComfyUI", manifest.comfyui.version, lock.comfyui.version)
    elif (manifest.comfyui.source or default_sources(manifest.comfyui.version)) != lock.comfyui.sources:
        yield Drift("ComfyUI's sources", "others", "those of an earlier manifest")
    if manifest.comfyui.manager != lock.requested.manager:
        yield Drift("comfyui.manager", _truth(manifest.comfyui.manager), _truth(lock.requested.manager))


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _targets(manifest: Manifest, profiles: Mapping[str, Profile], lock: Lock) -> Iterator[Drift]:
    locked = {(target.profile, target.arch): target for target in lock.targets}
    wanted = [(profiles[name], arch) for name in manifest.profiles for arch in profiles[name].architectures]
    for profile, arch in wanted:
        item = f"profile {profile.name} on {arch}"
        target = locked.pop((profile.name, arch), None)
        if target is None:
            yield Drift(item, "it is wanted", _ABSENT)
        else:
            yield from _target(item, profile, target, lock)
    for name, arch in locked:
        yield Drift(f"profile {name} on {arch}", _ABSENT, "it is there")


def _target(item: str, profile: Profile, target: LockedTarget, lock: Lock) -> Iterator[Drift]:
    for name in (target.comfyui, target.jupyter):
        python = lock.environment(name).python
        if python != profile.python:
            yield Drift(f"{item}, Python of {name}", profile.python, python)
    environment = lock.environment(target.comfyui)
    for pin in profile.pins:
        package = pin.partition("==")[0]
        if pin not in environment.requests:
            yield Drift(f"{item}, {package}", pin, f"{package}=={environment.version(package)}")


def _python(manifest: Manifest, lock: Lock) -> Iterator[Drift]:
    for item, wanted, locked in (
        ("python.packages", manifest.python.packages, lock.requested.packages),
        ("python.constraints", manifest.python.constraints, lock.requested.constraints),
        ("python.overrides", manifest.python.overrides, lock.requested.overrides),
        ("python.sdists", manifest.python.sdists, lock.requested.sdists),
        ("jupyter.packages", manifest.jupyter.packages, lock.requested.jupyter),
    ):
        if set(wanted) != set(locked):
            yield Drift(item, _listed(set(wanted) - set(locked)), _listed(set(locked) - set(wanted)))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or _ABSENT


def _nodes(manifest: Manifest, lock: Lock) -> Iterator[Drift]:
    wanted = {node.name: node.source for node in manifest.node}
    locked = {node.name: node.asked for node in lock.nodes}
    for name in sorted(wanted.keys() | locked.keys()):
        if wanted.get(name) != locked.get(name):
            yield Drift(f"node {name}", wanted.get(name, _ABSENT), locked.get(name, _ABSENT))


def _models(manifest: Manifest, lock: Lock) -> Iterator[Drift]:
    wanted = {models.key(file): (file, baked) for file, baked in models.wanted(manifest)}
    locked = {models.key(model): model for model in lock.models}
    for each in sorted(wanted.keys() | locked.keys()):
        if each not in wanted:
            yield Drift(f"model {locked[each].name}", _ABSENT, locked[each].source)
        elif each not in locked:
            yield Drift(f"model {wanted[each][0].name}", wanted[each][0].url, _ABSENT)
        else:
            yield from _model(*wanted[each], locked[each])


def _settings(manifest: Manifest, lock: Lock) -> Iterator[Drift]:
    wanted = manifest.settings_text
    for name in sorted(wanted.keys() | lock.settings.keys()):
        if wanted.get(name) != lock.settings.get(name):
            yield Drift(f"setting {name}", wanted.get(name, _ABSENT), lock.settings.get(name, _ABSENT))


def _model(wanted: ModelFile, baked: bool, locked: LockedModel) -> Iterator[Drift]:
    for item, ours, theirs in (
        ("url", wanted.url, locked.source),
        ("place", f"{wanted.folder}/{wanted.file or locked.file}", locked.place),
        ("sha256", wanted.sha256 or locked.sha256, locked.sha256),
        ("size", wanted.size or locked.size, locked.size),
        ("licence", wanted.licence or locked.licence, locked.licence),
        ("gated", _truth(wanted.gated or locked.gated), _truth(locked.gated)),
        ("pickle", _truth(wanted.pickle), _truth(locked.pickle)),
        ("bake", _truth(baked), _truth(locked.bake)),
    ):
        if ours != theirs:
            yield Drift(f"model {locked.name}, {item}", str(ours), str(theirs))
