"""Making a lock from a manifest: everything fetched once, named by digest, in a fixed order."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from comfypod import registry
from comfypod.errors import IntegrityError
from comfypod.lock import python, schema
from comfypod.lock.hosts import hosts
from comfypod.lock.models import lock_models
from comfypod.lock.models import wanted as wanted_models
from comfypod.lock.schema import Environment, Lock, LockedTarget, Requested
from comfypod.lock.sources import index_url
from comfypod.lock.trees import Site, lock_comfyui, lock_node
from comfypod.manifest.profiles import load_profiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from comfypod.lock.schema import Package, Purpose
    from comfypod.log import Console
    from comfypod.manifest.profiles import Profile
    from comfypod.manifest.schema import Manifest
    from comfypod.manifest.values import Arch

_BUILD_PACKAGES = ("setuptools", "wheel")
_MANAGER = re.compile(r"comfyui[-_.]manager(?![\w.-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What may move to newer versions: nothing, some names, or everything."""

    names: frozenset[str] = frozenset()
    everything: bool = False

    def covers(self, name: str) -> bool:
        """Whether this package, node, model, or "comfyui" may move."""
        return self.everything or name.lower() in self.names


@dataclass(frozen=True, slots=True)
class _Job:
    """One environment to resolve for one profile."""

    profile: str
    purpose: Purpose
    arch: Arch
    python: str
    requests: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    sdists: tuple[str, ...] = ()


def make(manifest: Manifest, previous: Lock | None, upgrade: Upgrade, base: Path, console: Console) -> Lock:
    """Return the lock of a manifest; what `previous` pins stays unless `upgrade` covers it.

    Raises:
        SourceError: something cannot be fetched.
        IntegrityError: something has other contents than `previous` says.
        LockError: something cannot be pinned, or the packages do not resolve.
    """
    with tempfile.TemporaryDirectory(prefix="comfypod-lock-") as scratch:
        site = Site(base, Path(scratch), index_url(os.environ), console, registry.base(os.environ))
        held = previous.comfyui if previous is not None and not upgrade.covers("comfyui") else None
        digest = held.digest if held is not None and held.version == manifest.comfyui.version else None
        comfyui, requirements = lock_comfyui(manifest.comfyui, digest, site)
        old_nodes = {node.name: node for node in previous.nodes if not upgrade.covers(node.name)} if previous else {}
        wanted = sorted(manifest.node, key=lambda node: node.name)
        nodes = tuple(lock_node(node, old_nodes.get(node.name), site) for node in wanted)
        old_models = [
            each for each in (previous.models if previous else ()) if not upgrade.covers(each.pack or each.name)
        ]
        models = lock_models(wanted_models(manifest), old_models, *hosts(os.environ), Path(scratch), console)
    required = [*requirements, *manifest.python.packages, *(line for node in nodes for line in node.requirements)]
    targets, environments = _environments(manifest, required, previous, upgrade, console)
    comfyui = msgspec.structs.replace(comfyui, manager=_manager(requirements, environments))
    return Lock(
        schema=schema.SCHEMA, comfyui=comfyui, targets=targets, environments=environments, nodes=nodes,
        models=models, settings=manifest.settings_text, requested=_requested(manifest),
    )  # fmt: skip


def _manager(requirements: Iterable[str], environments: Iterable[Environment]) -> str:
    """Return the version of ComfyUI-Manager that ComfyUI's own requirements brought, empty where they name none."""
    if not any(_MANAGER.match(line) for line in requirements):
        return ""
    found = (each.version("comfyui-manager") for each in environments if each.purpose == "comfyui")
    return next((version for version in found if version), "")


def _requested(manifest: Manifest) -> Requested:
    return Requested(
        packages=_ordered(manifest.python.packages),
        constraints=_ordered(manifest.python.constraints),
        jupyter=_ordered(manifest.jupyter.packages),
        overrides=_ordered(manifest.python.overrides),
        sdists=_ordered(manifest.python.sdists),
        manager=manifest.comfyui.manager,
    )


def _ordered(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(lines), key=lambda line: (line.lower(), line)))


def _jobs(manifest: Manifest, required: Sequence[str]) -> list[_Job]:
    """Return a job for each profile, architecture and purpose, in the order of the profile table."""
    jobs: list[_Job] = []
    wanted = manifest.python
    rules = (_ordered(wanted.constraints), _ordered(wanted.overrides), _ordered(wanted.sdists))
    jupyter, own = _ordered(manifest.jupyter.packages), _ordered(python.own_requirements())
    for profile in _profiles(manifest):
        asked = _ordered((*profile.pins, *required))
        for arch in profile.architectures:
            jobs.append(_Job(profile.name, "comfyui", arch, profile.python, asked, *rules))
            jobs.append(_Job(profile.name, "jupyter", arch, profile.python, jupyter))
            jobs.append(_Job(profile.name, "comfypod", arch, profile.python, own))
    return jobs


def _profiles(manifest: Manifest) -> list[Profile]:
    return [profile for name, profile in load_profiles().items() if name in manifest.profiles]


def _environments(
    manifest: Manifest, required: Sequence[str], previous: Lock | None, upgrade: Upgrade, console: Console
) -> tuple[tuple[LockedTarget, ...], tuple[Environment, ...]]:
    resolved: dict[_Job, Environment] = {}
    chosen: dict[tuple[str, Arch], dict[Purpose, _Job]] = {}
    for job in _jobs(manifest, required):
        chosen.setdefault((job.profile, job.arch), {})[job.purpose] = shared = replace(job, profile="")
        if shared not in resolved:
            console.line(f"packages for {job.purpose} on {job.arch}, Python {job.python}")
            resolved[shared] = _resolve(job, previous, upgrade, console)
    named = _named(resolved)
    targets = [
        LockedTarget(profile, arch, **{purpose: named[job].name for purpose, job in jobs.items()})
        for (profile, arch), jobs in chosen.items()
    ]
    by_name = sorted(named.values(), key=lambda environment: environment.name)
    return tuple(sorted(targets, key=lambda target: (target.profile, target.arch))), tuple(by_name)


def _resolve(job: _Job, previous: Lock | None, upgrade: Upgrade, console: Console) -> Environment:
    """Resolve one environment; it carries the profile's name until it is known whether another one is like it."""
    before = _before(job, previous)
    build: tuple[Package, ...] = ()
    if job.sdists:
        build = python.resolve(
            _BUILD_PACKAGES, job.constraints, python=job.python, arch=job.arch,
            preferred=_preferred(before.build if before else (), upgrade), console=console,
        )  # fmt: skip
    packages = python.resolve(
        job.requests, job.constraints, python=job.python, arch=job.arch,
        preferred=_preferred(before.packages if before else (), upgrade), console=console,
        overrides=job.overrides, sdists=job.sdists, build=build,
    )  # fmt: skip
    if all(package.sdist is None for package in packages):
        build = ()
    if before is not None:
        _refuse_replaced((*packages, *build), (*before.packages, *before.build), upgrade)
    return Environment(job.profile, job.purpose, job.arch, job.python, job.requests, packages, build)


def _preferred(before: Iterable[Package], upgrade: Upgrade) -> dict[str, str]:
    return {package.name: package.version for package in before if not upgrade.covers(package.name)}


def _named(resolved: dict[_Job, Environment]) -> dict[_Job, Environment]:
    """Name environments by purpose and architecture, and by their first profile where that is not enough."""
    named: dict[_Job, Environment] = {}
    for job, environment in resolved.items():
        alike = [other for other in resolved if (other.purpose, other.arch) == (job.purpose, job.arch)]
        suffix = f"-{environment.name}" if len(alike) > 1 else ""
        named[job] = msgspec.structs.replace(environment, name=f"{job.purpose}-{job.arch}{suffix}")
    return named


def _before(job: _Job, previous: Lock | None) -> Environment | None:
    """Return what the earlier lock has for this job, or for the nearest one to it."""
    if previous is None:
        return None
    for target in previous.targets:
        names = {"comfyui": target.comfyui, "jupyter": target.jupyter, "comfypod": target.comfypod}
        if (target.profile, target.arch) == (job.profile, job.arch) and names[job.purpose]:
            return previous.environment(names[job.purpose])
    alike = [environment for environment in previous.environments if environment.purpose == job.purpose]
    alike.sort(key=lambda environment: environment.arch != job.arch)
    return alike[0] if alike else None


def _refuse_replaced(packages: Iterable[Package], before: Iterable[Package], upgrade: Upgrade) -> None:
    known = {file.file: file.sha256 for package in before for file in package.files}
    for package in packages:
        for file in package.files:
            if known.get(file.file, file.sha256) != file.sha256 and not upgrade.covers(package.name):
                raise IntegrityError(
                    f"the package index has other bytes for {file.file} than the lock: sha256 {file.sha256}",
                    "a published file never changes: find out why; `comfypod lock --upgrade "
                    f"{package.name}` takes the new one",
                )
