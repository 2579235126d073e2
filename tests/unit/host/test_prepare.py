"""From a lock to a store, with real uv and tiny wheels; every failure leaves no object behind."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod import proc
from comfypod.errors import HostError, InstallError, IntegrityError, SourceError
from comfypod.host.prepare import missing, needs, prepare
from comfypod.lock.schema import Lock, Package, encode
from comfypod.log import Console
from comfypod.manifest.profiles import profile
from comfypod.manifest.values import GitSource
from comfypod.podfile import PodFile
from tests.kit.repos import make_repository
from tests.unit.host import tiny

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = {"jupyterlab.py": "", "jupyterlab-1.0.data/scripts/jupyter-lab": "#!python\nprint('lab')\n"}


def _prepare(lock: Lock, data: Path, out: io.StringIO | None = None, *, offline: bool = False) -> PodFile:
    console = Console(out or io.StringIO())
    return prepare(lock, profile("cpu"), "x86_64", data=data, base=data, offline=offline, jupyter=True, console=console)


def _lock(tmp_path: Path, wheels: Path) -> Lock:
    packages = (tiny.wheel(wheels, "torch", "2.9.1"), tiny.wheel(wheels, "jupyterlab", modules=_PROGRAM))
    return tiny.lock(tiny.tree(tmp_path / "source"), *packages)


def _objects(data: Path) -> list[str]:
    return sorted(str(path.relative_to(data / "store")) for path in (data / "store").glob("[!.]*/*"))


def _swap_hash(package: Package) -> Package:
    return msgspec.structs.replace(
        package, wheels=tuple(msgspec.structs.replace(wheel, sha256="0" * 64) for wheel in package.wheels)
    )


def test_a_store_is_made_from_a_lock_and_the_facts_point_into_it(tmp_path: Path, wheels: Path) -> None:
    lock, data, out = _lock(tmp_path, wheels), tmp_path / "data", io.StringIO()
    pod = _prepare(lock, data, out)
    assert proc.run([pod.python, "-c", "import torch; print(torch.__file__)"], seconds=20).stdout.startswith(str(data))
    assert pod.jupyter is not None
    assert proc.run([pod.jupyter], seconds=20).stdout == "lab\n"
    assert (pod.engine, pod.torch, pod.comfyui_args) == ("host", "2.9.1", ("--cpu",))
    assert pod.lock == hashlib.sha256(encode(lock)).hexdigest()
    assert pod.environment_key == lock.environments[0].key
    assert pod.comfyui_path == str(data / "store" / "comfyui" / pod.release / "ComfyUI")
    assert out.getvalue().startswith("preparing ComfyUI 0.30.0, 2 packages for ComfyUI, 1 package for JupyterLab: ")


def test_bytecode_is_there_for_the_tree_and_the_packages(tmp_path: Path, wheels: Path) -> None:
    pod = _prepare(_lock(tmp_path, wheels), tmp_path / "data")
    compiled = [path.name for path in (tmp_path / "data").rglob("*.pyc")]
    assert compiled.count(f"main.{sys.implementation.cache_tag}.pyc") == 1
    assert compiled.count(f"torch.{sys.implementation.cache_tag}.pyc") == 1
    assert not (tmp_path / "data" / "store" / "comfyui" / pod.release / "scratch").exists()


def test_a_second_run_is_quick_and_starts_no_program(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, out = _lock(tmp_path, wheels), io.StringIO()
    first = _prepare(lock, tmp_path / "data")

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(proc, "run", forbidden)
    started = time.monotonic()
    assert _prepare(lock, tmp_path / "data", out, offline=True) == first
    assert time.monotonic() - started < 0.1
    assert out.getvalue() == ""


def test_profiles_with_the_same_packages_share_one_environment(tmp_path: Path, wheels: Path) -> None:
    lock = _lock(tmp_path, wheels)
    _prepare(lock, tmp_path / "data")
    renamed = msgspec.structs.replace(lock.environments[0], name="another", requests=("torch", "more"))
    target = msgspec.structs.replace(lock.targets[0], comfyui="another")
    other = msgspec.structs.replace(lock, targets=(target,), environments=(renamed, lock.environments[1]))
    assert missing(needs(other, "cpu", "x86_64", jupyter=True), tmp_path / "data") == ()


def test_a_wheel_with_another_hash_is_refused_by_name(tmp_path: Path, wheels: Path) -> None:
    good, bad = tiny.wheel(wheels, "good"), _swap_hash(tiny.wheel(wheels, "tampered"))
    with pytest.raises(IntegrityError, match=r"tampered==1\.0: .* another sha256"):
        _prepare(tiny.lock(tiny.tree(tmp_path / "source"), good, bad), tmp_path / "data")
    assert [name.partition("/")[0] for name in _objects(tmp_path / "data")] == ["comfyui"]


def test_a_tampered_tree_is_refused(tmp_path: Path, wheels: Path) -> None:
    lock = _lock(tmp_path, wheels)
    (tmp_path / "source" / "main.py").write_text("import os\n")
    with pytest.raises(IntegrityError):
        _prepare(lock, tmp_path / "data")
    assert _objects(tmp_path / "data") == []


def test_an_index_out_of_reach_is_a_source_error(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _lock(tmp_path, wheels)
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(SourceError, match=r"Python packages cannot be fetched: .*Connection refused") as caught:
        _prepare(lock, tmp_path / "data")
    assert caught.value.exit_code == 5
    assert [name.partition("/")[0] for name in _objects(tmp_path / "data")] == ["comfyui"]


def test_an_empty_store_offline_is_a_source_error(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = _lock(tmp_path, wheels)
    away = msgspec.structs.replace(lock.comfyui, sources=(GitSource("https://host.invalid/x.git", "v1"),))
    with pytest.raises(SourceError, match=r"ComfyUI 0\.30\.0 is not in the store, and --offline forbids") as caught:
        _prepare(msgspec.structs.replace(lock, comfyui=away), tmp_path / "data", offline=True)
    assert caught.value.exit_code == 5
    assert _objects(tmp_path / "data") == []
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.delenv("UV_OFFLINE")
    with pytest.raises(SourceError, match="network was disabled"):
        _prepare(lock, tmp_path / "data", offline=True)


def test_packages_that_do_not_import_are_not_believed(tmp_path: Path, wheels: Path) -> None:
    broken = tiny.wheel(wheels, "torch", "2.9.1", {"torch.py": "raise RuntimeError('no such CUDA')\n"})
    with pytest.raises(InstallError, match=r"torch do not import: .*no such CUDA"):
        _prepare(tiny.lock(tiny.tree(tmp_path / "source"), broken), tmp_path / "data")
    assert [name.partition("/")[0] for name in _objects(tmp_path / "data")] == ["comfyui"]


def test_jupyterlab_without_its_program_is_not_believed(tmp_path: Path, wheels: Path) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "jupyterlab"))
    with pytest.raises(InstallError, match="without its program jupyter-lab"):
        _prepare(lock, tmp_path / "data")


def test_a_package_that_the_index_lacks_is_quoted_from_uv(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_OFFLINE")
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "gone"))
    (wheels / "gone-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InstallError, match=r"uv failed: No solution found .*gone"):
        _prepare(lock, tmp_path / "data")


def test_a_python_that_is_nowhere_is_a_host_error(tmp_path: Path, wheels: Path) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "one"), python="3.99")
    with pytest.raises(HostError, match=r"Python 3\.99") as caught:
        _prepare(lock, tmp_path / "data")
    assert "install Python 3.99" in caught.value.hint
    assert _objects(tmp_path / "data") == []


def test_settings_for_another_environment_do_not_reach_uv(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("torch==1.0\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2001-01-01")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    assert _prepare(_lock(tmp_path, wheels), tmp_path / "data").torch == "2.9.1"


def test_a_source_file_that_does_not_compile_is_counted(tmp_path: Path, wheels: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "template.py").write_text("print 'old'\n")
    out = io.StringIO()
    _prepare(tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "one")), tmp_path / "data", out)
    assert "no bytecode for 1 files, the first: " in out.getvalue()


def test_the_manager_is_switched_on_where_the_lock_has_one(tmp_path: Path, wheels: Path) -> None:
    lock = _lock(tmp_path, wheels)
    managed = msgspec.structs.replace(lock, comfyui=msgspec.structs.replace(lock.comfyui, manager="4.0"))
    assert _prepare(managed, tmp_path / "data").comfyui_args == ("--cpu", "--enable-manager")


def test_a_mirror_on_this_machine_serves_offline_too(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = _lock(tmp_path, wheels)
    files = {
        str(path.relative_to(tmp_path / "source")): path.read_text() for path in (tmp_path / "source").rglob("*.py")
    }
    make_repository(tmp_path / "mirror" / "x.git", files, tag="v1")
    away = msgspec.structs.replace(lock.comfyui, sources=(GitSource("https://host.invalid/x.git", "v1"),))
    monkeypatch.setenv("COMFYPOD_GIT_MIRRORS", f"https://host.invalid/=file://{tmp_path}/mirror/")
    pod = _prepare(msgspec.structs.replace(lock, comfyui=away), tmp_path / "data", offline=True)
    assert pod.comfyui_digest == lock.comfyui.digest


@pytest.mark.parametrize(
    ("count", "wheel_bytes", "disk", "inodes"),
    [(99, 4_722_836_010, 8_625_000_000, 59_456), (91, 49_609_754, 231_000_000, 16_350)],
    ids=["comfyui", "jupyter"],
)
def test_the_needs_of_real_environments_cover_what_was_measured(
    tmp_path: Path, wheels: Path, count: int, wheel_bytes: int, disk: int, inodes: int
) -> None:
    lock, one = _lock(tmp_path, wheels), tiny.wheel(wheels, "one").wheels[0]
    package = Package("one", "1.0", (msgspec.structs.replace(one, size=wheel_bytes // count),))
    environment = msgspec.structs.replace(lock.environments[0], packages=(package,) * count)
    need = needs(msgspec.structs.replace(lock, environments=(environment,)), "cpu", "x86_64", jupyter=False)[1]
    assert disk <= need.bytes <= 1.3 * disk
    assert inodes <= need.inodes <= 1.5 * inodes
