"""The store on real disks and under real signals."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfypod import proc
from comfypod.errors import StorageError
from comfypod.host.prepare import prepare
from comfypod.host.store import MARKER, Building, Store
from comfypod.lock.schema import Lock, Package, decode, encode
from comfypod.log import Console
from comfypod.manifest.profiles import profile
from tests.kit import disks
from tests.kit.wheels import only_these
from tests.unit.host import tiny

_BUILD = """
import sys
from pathlib import Path
from comfypod import proc
from comfypod.host.store import Store
from comfypod.log import Console

def build(building):
    (building.folder / "half").write_text("begun")
    print("building", flush=True)
    proc.run(["sh", "-c", 'touch "$0"; sleep $1', f"{sys.argv[1]}/runs", sys.argv[2]], seconds=60, keep=building.keep)

Store(Path(sys.argv[1])).ensure("tree", "1-a", build, console=Console(quiet=True))
"""
_PREPARE = """
import signal
import sys
from pathlib import Path
from comfypod.host.prepare import prepare
from comfypod.lock.schema import decode
from comfypod.log import Console
from comfypod.manifest.profiles import profile

signal.signal(signal.SIGINT, signal.default_int_handler)
data, lock = Path(sys.argv[1]), decode(Path(sys.argv[2]).read_bytes(), "lock")
prepare(lock, profile("cpu"), "x86_64", data=data, base=data, offline=False, jupyter=False, console=Console())
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in only_these(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def _prepare(lock: Lock, data: Path) -> None:
    prepare(
        lock, profile("cpu"), "x86_64", data=data, base=data, offline=False, jupyter=False,
        console=Console(io.StringIO()),
    )  # fmt: skip


def _complete(data: Path) -> list[str]:
    return sorted(marker.parent.parent.name for marker in data.glob(f"store/*/*/{MARKER}"))


def _partial(data: Path) -> list[Path]:
    return [path for path in data.glob("store/[!.]*/*") if not (path / MARKER).exists()]


def _wheel_of_zeros(wheels: Path, megabytes: int) -> Package:
    """Return a wheel of a few kilobytes that unpacks to more than any estimate would say."""
    return tiny.wheel(
        wheels, "zeros", modules={f"zeros/{n}.bin": "0" * 1_000_000 for n in range(megabytes)}, squeeze=True
    )


@pytest.mark.root
def test_a3_a_disk_that_fills_up_during_a_wheel_install_is_named_with_the_bytes_needed(
    tmp_path: Path, wheels: Path
) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "small"), _wheel_of_zeros(wheels, 20))
    with disks.loop_disk(tmp_path / "disk", megabytes=16) as data:
        with pytest.raises(StorageError, match=r"the disk is full \(4\.\d MB needed\): .*disk/store") as caught:
            _prepare(lock, data)
        assert (caught.value.exit_code, _complete(data), _partial(data)) == (8, ["comfyui"], [])
        assert "COMFYPOD_DATA" in caught.value.hint
    _prepare(lock, tmp_path / "roomy")
    assert _complete(tmp_path / "roomy") == ["comfyui", "comfyui-env"]


@pytest.mark.root
@pytest.mark.parametrize("names_paths", [True, False])
def test_a3_uvs_cache_on_a_full_disk_is_named_too(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, names_paths: bool
) -> None:
    run = proc.run

    def without_paths(*arguments: Any, **options: Any) -> proc.Completed:
        done = run(*arguments, **options)
        return replace(done, stderr=re.sub(r"`/[^`]+`", "a file", done.stderr))

    if not names_paths:
        monkeypatch.setattr(proc, "run", without_paths)
    lock = tiny.lock(tiny.tree(tmp_path / "source"), _wheel_of_zeros(wheels, 20))
    with disks.tmpfs(tmp_path / "disk", megabytes=8) as cache:
        monkeypatch.setenv("UV_CACHE_DIR", str(cache))
        with pytest.raises(StorageError, match=f"the disk is full .*{cache}") as caught:
            _prepare(lock, tmp_path / "data")
    assert "UV_CACHE_DIR" in caught.value.hint
    assert (_complete(tmp_path / "data"), _partial(tmp_path / "data")) == (["comfyui"], [])


@pytest.mark.root
def test_a3_too_small_a_disk_is_found_before_the_first_byte(tmp_path: Path, wheels: Path) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "small"))
    with disks.tmpfs(tmp_path / "disk", megabytes=1) as data:
        with pytest.raises(StorageError, match=r"has 1\.0 MB left, 2\.0 MB are needed"):
            _prepare(lock, data)
        assert list(data.glob("store/*")) == []


@pytest.mark.root
def test_a4_too_few_inodes_are_found_before_the_first_byte(tmp_path: Path, wheels: Path) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "small"))
    with disks.tmpfs(tmp_path / "disk", inodes=100) as data:
        with pytest.raises(StorageError, match=r"has \d\d inodes left, 255 are needed"):
            _prepare(lock, data)
        assert list(data.glob("store/*")) == []


@pytest.mark.root
def test_a4_inodes_that_run_out_during_an_install_are_named(tmp_path: Path, wheels: Path) -> None:
    crowd = tiny.wheel(wheels, "crowd", modules={f"crowd/{n}.bin": "x" for n in range(600)})
    lock = tiny.lock(tiny.tree(tmp_path / "source"), crowd)
    with disks.tmpfs(tmp_path / "disk", inodes=400) as data:
        with pytest.raises(StorageError, match="the disk has no inodes left"):
            _prepare(lock, data)
        assert (_complete(data), _partial(data)) == (["comfyui"], [])


@pytest.mark.root
def test_a_read_only_data_directory_is_named_with_the_setting_that_helps(tmp_path: Path, wheels: Path) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "small"))
    read_only = disks.tmpfs(tmp_path / "disk", read_only=True)
    with read_only as data, pytest.raises(StorageError, match="the file system is read-only") as caught:
        _prepare(lock, data)
    assert "COMFYPOD_DATA" in caught.value.hint


def _start(*argv: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _finish(building: Building) -> None:
    (building.folder / "whole").write_text("done")


def test_a_build_ended_by_sigkill_is_made_again(tmp_path: Path) -> None:
    with _start(_BUILD, tmp_path, "0.1") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    store = Store(tmp_path)
    assert (store.folder("tree", "1-a") / "half").exists()
    assert store.find("tree", "1-a") is None
    made = store.ensure("tree", "1-a", _finish, console=Console(io.StringIO()))
    assert sorted(path.name for path in made.iterdir()) == [MARKER, "whole"]


def test_a_program_that_outlives_a_killed_build_is_waited_for(tmp_path: Path) -> None:
    out = io.StringIO()
    with _start(_BUILD, tmp_path, "1.5") as child:
        assert child.stdout is not None
        child.stdout.readline()
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        child.kill()
        started = time.monotonic()
        Store(tmp_path).ensure("tree", "1-a", _finish, console=Console(out))
    assert time.monotonic() - started > 0.5
    assert "waiting for another comfypod that makes tree 1-a" in out.getvalue()


def test_two_processes_make_an_object_once(tmp_path: Path) -> None:
    with _start(_BUILD, tmp_path, "1") as first:
        assert first.stdout is not None
        first.stdout.readline()
        out = io.StringIO()
        Store(tmp_path).ensure("tree", "1-a", _finish, console=Console(out))
    assert (Store(tmp_path).folder("tree", "1-a") / "half").exists()
    assert out.getvalue() == "  waiting for another comfypod that makes tree 1-a\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_install_that_a_signal_ends_completes_when_run_again(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    lock = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "small"))
    (tmp_path / "lock").write_bytes(encode(lock))
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with monkeypatch.context() as patch:
            patch.delenv("UV_NO_INDEX")
            patch.delenv("UV_FIND_LINKS")
            patch.delenv("UV_OFFLINE")
            patch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
            child = _start(_PREPARE, data, tmp_path / "lock")
        with child:
            silent.settimeout(10)
            connection, _ = silent.accept()
            assert _complete(data) == ["comfyui"]
            child.send_signal(signum)
            assert child.wait(10) == (-signum if signum == signal.SIGKILL else child.returncode) != 0
        connection.close()
        if signum == signal.SIGINT:
            assert (_complete(data), _partial(data)) == (["comfyui"], [])
    _prepare(decode((tmp_path / "lock").read_bytes(), "lock"), data)
    assert (_complete(data), _partial(data)) == (["comfyui", "comfyui-env"], [])
