"""Source distributions in an environment: built by what the lock names and by nothing else."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod import files
from comfypod.errors import InstallError, IntegrityError
from comfypod.host.prepare import prepare
from comfypod.lock.schema import Environment, Lock, LockedTarget, Package, SourceFile, Wheel
from comfypod.log import Console
from comfypod.manifest.profiles import profile
from tests.kit.wheels import build_builder, build_sdist, build_wheel
from tests.unit.host import tiny

if TYPE_CHECKING:
    from pathlib import Path


def _builder(wheels: Path, version: str) -> Package:
    path = build_builder(wheels, version)
    return Package("setuptools", version, (Wheel(path.name, files.sha256_file(path), path.stat().st_size),))


def _pure(wheels: Path) -> Package:
    path = build_sdist(wheels, "pure", "1.0")
    return Package("pure", "1.0", sdist=SourceFile(path.name, files.sha256_file(path), path.stat().st_size))


def _lock(tmp_path: Path, wheels: Path, build: Package, *packages: Package) -> Lock:
    comfyui = tiny.tree(tmp_path / "source")
    wanted = packages or (tiny.wheel(wheels, "lib"), _pure(wheels))
    environment = Environment("comfyui", "comfyui", "x86_64", tiny.RUNNING, (), wanted, (build,))
    return Lock(1, comfyui, (LockedTarget("cpu", "x86_64", "comfyui", "comfyui"),), (environment,))


def _install(lock: Lock, data: Path, *, offline: bool = False) -> Path:
    """Install; return the folder of the environment's packages."""
    pod = prepare(
        lock,
        profile("cpu"),
        "x86_64",
        data=data,
        base=data,
        offline=offline,
        jupyter=False,
        console=Console(io.StringIO()),
    )
    (found,) = (data / "store").glob("comfyui-env/*/venv/lib/*/site-packages")
    assert pod.python.startswith(str(data))
    return found


def _built_by(packages: Path) -> str:
    return (packages / "pure-1.0.dist-info" / "WHEEL").read_text().partition("Generator: ")[2].partition("\n")[0]


def test_a_source_distribution_is_built_by_the_locked_version_though_a_newer_one_is_there(
    tmp_path: Path, wheels: Path
) -> None:
    locked = _builder(wheels, "9.0")
    _builder(wheels, "10.0")
    packages = _install(_lock(tmp_path, wheels, locked), tmp_path / "data")
    assert (packages / "pure.py").is_file()
    assert _built_by(packages) == "setuptools 9.0"
    assert not (packages / "setuptools").exists()


def test_what_another_version_built_is_not_taken_from_the_cache(tmp_path: Path, wheels: Path) -> None:
    pure, older, newer = _pure(wheels), _builder(wheels, "9.0"), _builder(wheels, "10.0")
    built = []
    for name, builder in (("a", newer), ("b", older), ("c", newer)):
        (tmp_path / name).mkdir()
        built.append(_built_by(_install(_lock(tmp_path / name, wheels, builder, pure), tmp_path / name / "data")))
    assert built == ["setuptools 10.0", "setuptools 9.0", "setuptools 10.0"]


def test_what_is_in_the_cache_is_installed_offline(tmp_path: Path, wheels: Path) -> None:
    lock = _lock(tmp_path, wheels, _builder(wheels, "9.0"))
    _install(lock, tmp_path / "data")
    assert _built_by(_install(lock, tmp_path / "again", offline=True)) == "setuptools 9.0"


def test_a_source_distribution_with_another_hash_is_refused_by_name(tmp_path: Path, wheels: Path) -> None:
    pure = msgspec.structs.replace(_pure(wheels), sdist=SourceFile("pure-1.0.tar.gz", "0" * 64, 1))
    with pytest.raises(IntegrityError, match=r"pure==1\.0: .* another sha256"):
        _install(_lock(tmp_path, wheels, _builder(wheels, "9.0"), pure), tmp_path / "data")


def test_a_build_package_with_another_hash_is_refused_by_name(tmp_path: Path, wheels: Path) -> None:
    builder = msgspec.structs.replace(_builder(wheels, "9.0"), wheels=(Wheel("s.whl", "0" * 64, 1),))
    with pytest.raises(IntegrityError, match=r"setuptools==9\.0: .* another sha256"):
        _install(_lock(tmp_path, wheels, builder), tmp_path / "data")
    assert list((tmp_path / "data" / "store").glob("comfyui-env/*")) == []


def test_a_package_that_the_lock_has_as_a_wheel_is_never_built(tmp_path: Path, wheels: Path) -> None:
    pure = _pure(wheels)
    assert pure.sdist is not None
    claimed = Package("pure", "1.0", (Wheel(pure.sdist.file, pure.sdist.sha256, pure.sdist.size),))
    with pytest.raises(InstallError, match="pure"):
        _install(_lock(tmp_path, wheels, _builder(wheels, "9.0"), claimed), tmp_path / "data")


def test_settings_about_building_do_not_reach_uv(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("UV_NO_BUILD", "1"), ("UV_NO_BUILD_ISOLATION", "1"), ("UV_NO_BINARY", "1"), ("UV_ONLY_BINARY", "pure"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    build_wheel(wheels, "pure", "1.0")
    assert _built_by(_install(_lock(tmp_path, wheels, _builder(wheels, "9.0")), tmp_path / "data")) == "setuptools 9.0"
