"""From a lock to a store that can run it: ComfyUI's tree and two Python environments, and the `pod.json` over them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files, git, podfile
from comfypod.errors import SourceError, StorageError
from comfypod.host import environment as python_environment
from comfypod.host.store import Building, Store, disk_errors, with_data_hint
from comfypod.lock.schema import encode
from comfypod.log import human_bytes
from comfypod.manifest.values import GitSource, PathSource
from comfypod.release import MARK, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from comfypod.lock.schema import Environment, Lock, LockedComfyUI
    from comfypod.log import Console
    from comfypod.manifest.profiles import Profile
    from comfypod.manifest.values import Source

# Measured: ComfyUI's environment of 99 packages, 4.72 GB of wheels, takes 8.63 GB and 59,500 inodes;
# JupyterLab's of 91 packages, 50 MB of wheels, takes 219 MB and 16,300 inodes.
_DISK_PER_WHEEL_BYTE = 1.8
_BYTES_PER_PACKAGE = 2_000_000
_INODES_PER_WHEEL_MB = 8
_INODES_PER_PACKAGE = 250
_DISK_PER_SOURCE_BYTE = 1.6
_INODES_PER_SOURCE_FILE = 2.5
_LARGEST = 3


@dataclass(frozen=True, slots=True)
class Need:
    """One object of the store: what it is, bytes to fetch when nothing is cached, bytes and inodes it will take."""

    kind: str
    key: str
    title: str
    download: int
    bytes: int
    inodes: int
    environment: Environment | None = None


def needs(lock: Lock, profile: str, arch: str, *, jupyter: bool) -> tuple[Need, ...]:
    """Return what a profile needs in the store, in the order in which it is made.

    Raises:
        LockError: the lock has no such profile for the architecture.
    """
    target = lock.target(profile, arch)
    environments = [lock.environment(target.comfyui)]
    if jupyter and lock.environment(target.jupyter).packages:
        environments.append(lock.environment(target.jupyter))
    tree = lock.comfyui
    return (
        Need(
            "comfyui", podfile.release_name(tree.version, tree.digest), f"ComfyUI {tree.version}", tree.bytes,
            int(tree.bytes * _DISK_PER_SOURCE_BYTE), int(tree.files * _INODES_PER_SOURCE_FILE),
        ),
        *map(_environment_need, environments),
    )  # fmt: skip


def missing(wanted: Sequence[Need], data: Path) -> tuple[Need, ...]:
    """Return those that the store below the data directory does not have yet."""
    store = Store(data)
    return tuple(need for need in wanted if store.find(need.kind, need.key) is None)


def prepare(
    lock: Lock, profile: Profile, arch: str, *, data: Path, base: Path, offline: bool, jupyter: bool, console: Console
) -> podfile.PodFile:
    """Put what a profile needs into the store, unless it is there, and return the facts for `boot`.

    `base` is the folder that relative path sources are below. Safe to interrupt and to run at the same time in
    several processes.

    Raises:
        LockError: the lock has no such profile for the architecture.
        StorageError: the disk is too small (found before the first byte is fetched), full or not ours.
        SourceError: something cannot be fetched, or would have to be with `offline`.
        IntegrityError: contents differ from the lock's.
        InstallError: an environment could not be made or does not import.
        HostError: the Python version is not on this machine.
    """
    wanted = needs(lock, profile.name, arch, jupyter=jupyter)
    store = Store(data)
    if todo := missing(wanted, data):
        _check_room(todo, store)
        _announce(todo, console)
    places = [_ensure(need, lock, store, base, wanted, offline, console) for need in wanted]
    return _facts(lock, profile, arch, places, store)


def _ensure(
    need: Need, lock: Lock, store: Store, base: Path, wanted: Sequence[Need], offline: bool, console: Console
) -> Path:
    if (folder := store.find(need.kind, need.key)) is not None:
        return folder
    environment = need.environment or next(entry.environment for entry in wanted if entry.environment is not None)
    python = python_environment.find_python(environment.python, offline=offline)

    def build_environment(building: Building) -> None:
        python_environment.install(
            environment, building, python=python, needed=need.bytes, offline=offline, console=console
        )

    build: Callable[[Building], None] = build_environment
    if need.environment is None:
        build = _tree_build(lock.comfyui, base, offline, console, python)
    return store.ensure(need.kind, need.key, build, console=console, needed=need.bytes)


def _tree_build(
    comfyui: LockedComfyUI, base: Path, offline: bool, console: Console, python: str
) -> Callable[[Building], None]:
    sources = tuple(source for source in comfyui.sources if not offline or _local(source))
    if not sources:
        raise SourceError(
            f"ComfyUI {comfyui.version} is not in the store, and --offline forbids fetching it",
            "run once without --offline, or name a local folder as a source in comfypod.toml",
        )

    def build(building: Building) -> None:
        from comfypod.lock.sources import index_url, obtain

        scratch = building.folder / "scratch"
        scratch.mkdir()
        tree = building.folder / "ComfyUI"
        index = index_url(os.environ)
        obtain(sources, tree, digest=comfyui.digest, base=base, scratch=scratch, index=index, console=console)
        files.remove_tree(scratch)
        name = podfile.release_name(comfyui.version, comfyui.digest)
        files.write_atomic(tree / MARK, describe(tree, name).encode(), durable=False)
        python_environment.compile_tree(tree, python, building, console)

    return build


def _local(source: Source) -> bool:
    if isinstance(source, GitSource):
        return git.mirrored(source.url, os.environ).startswith(("/", "file:"))
    return isinstance(source, PathSource)


def _facts(lock: Lock, profile: Profile, arch: str, places: Sequence[Path], store: Store) -> podfile.PodFile:
    environment = lock.environment(lock.target(profile.name, arch).comfyui)
    record = f"{environment.key[:16]}-{podfile.release_name(lock.comfyui.version, lock.comfyui.digest)}"
    return podfile.PodFile(
        profile=profile.name,
        arch=arch,
        lock=hashlib.sha256(encode(lock)).hexdigest(),
        comfyui_version=lock.comfyui.version,
        comfyui_digest=lock.comfyui.digest,
        comfyui_path=str(places[0] / "ComfyUI"),
        environment_key=environment.key,
        torch=environment.version("torch") or "",
        python=str(places[1] / "venv" / "bin" / "python"),
        jupyter=str(places[2] / "venv" / "bin" / "jupyter-lab") if len(places) > 2 else None,
        engine="host",
        comfyui_args=(*profile.comfyui_args, *(("--enable-manager",) if lock.comfyui.manager else ())),
        models=tuple(model.for_pod() for model in lock.models),
        record=str(store.root / "cold" / record),
    )


def _environment_need(environment: Environment) -> Need:
    count, wheels = len(environment.packages), environment.download_bytes
    return Need(
        f"{environment.purpose}-env", environment.key[:16],
        f"{count} package{'s' * (count != 1)} for {'ComfyUI' if environment.purpose == 'comfyui' else 'JupyterLab'}",
        wheels,
        int(wheels * _DISK_PER_WHEEL_BYTE) + count * _BYTES_PER_PACKAGE,
        count * _INODES_PER_PACKAGE + wheels * _INODES_PER_WHEEL_MB // 1_000_000,
        environment,
    )  # fmt: skip


def _check_room(todo: Sequence[Need], store: Store) -> None:
    with disk_errors(f"the store {store.root} cannot be written"):
        files.make_folder(store.root)
        left = files.room(store.root)
    needed, inodes = sum(need.bytes for need in todo), sum(need.inodes for need in todo)
    if left.bytes < needed:
        raise StorageError(
            f"{store.root} has {human_bytes(left.bytes)} left, {human_bytes(needed)} are needed",
            with_data_hint("free some space"),
        )
    if left.inodes is not None and left.inodes < inodes:
        raise StorageError(
            f"{store.root} has {left.inodes:,} inodes left, {inodes:,} are needed",
            with_data_hint("delete small files or use a file system with more inodes"),
        )


def _announce(todo: Sequence[Need], console: Console) -> None:
    packages = {package.name: package for need in todo if need.environment for package in need.environment.packages}
    largest = sorted(packages.values(), key=lambda package: package.download_bytes, reverse=True)[:_LARGEST]
    named = ", ".join(f"{package.name} {human_bytes(package.download_bytes)}" for package in largest)
    total = human_bytes(sum(need.download for need in todo))
    console.line(
        f"preparing {', '.join(need.title for need in todo)}: {total} to fetch"
        + (f" (largest: {named})" if named else "")
        + ", less what uv has in its cache"
    )
