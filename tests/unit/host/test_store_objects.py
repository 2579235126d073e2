"""What the store promises about one object."""

from __future__ import annotations

import io
import json
import re
import threading
from pathlib import Path

import pytest

from comfypod import files
from comfypod.errors import InstallError, LockError, StorageError
from comfypod.host.store import MARKER, Building, Store, data_folder
from comfypod.log import Console


def _fill(building: Building) -> None:
    (building.folder / "payload").write_bytes(b"x" * 10_000)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"COMFYPOD_DATA": "/srv/pods", "XDG_DATA_HOME": "/x"}, "/srv/pods"),
        ({"COMFYPOD_DATA": "", "XDG_DATA_HOME": "/x"}, "/x/comfypod"),
        ({"XDG_DATA_HOME": "relative"}, "~/.local/share/comfypod"),
        ({}, "~/.local/share/comfypod"),
    ],
)
def test_the_data_directory_follows_the_environment(environ: dict[str, str], expected: str) -> None:
    assert data_folder(environ) == Path(expected).expanduser()


def test_an_object_is_built_once_and_says_what_it_is(tmp_path: Path) -> None:
    out, built = io.StringIO(), []

    def build(building: Building) -> None:
        built.append(building.folder)
        _fill(building)

    store, console = Store(tmp_path), Console(out)
    first = store.ensure("tree", "1-a", build, console=console)
    second = store.ensure("tree", "1-a", build, console=console)
    assert first == second == store.find("tree", "1-a")
    assert built == [first]
    marker = json.loads((first / MARKER).read_text())
    assert (marker["kind"], marker["key"]) == ("tree", "1-a")
    assert marker["bytes"] >= 10_000
    assert re.fullmatch(r"  tree 1-a: \d+\.\d kB in \d\.\d s\n", out.getvalue())


def test_a_path_without_its_marker_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = store.folder("tree", "1-a")
    left.mkdir(parents=True)
    (left / "half").write_text("of an earlier run")
    assert store.find("tree", "1-a") is None
    assert store.ensure("tree", "1-a", _fill, console=Console(io.StringIO())) == left
    assert sorted(path.name for path in left.iterdir()) == [MARKER, "payload"]


@pytest.mark.parametrize("error", [InstallError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_a_build_that_ends_early_leaves_nothing_and_its_error_goes_on(tmp_path: Path, error: BaseException) -> None:
    store = Store(tmp_path)

    def build(building: Building) -> None:
        _fill(building)
        raise error

    with pytest.raises(type(error)) as caught:
        store.ensure("tree", "1-a", build, console=Console(io.StringIO()))
    assert caught.value is error
    assert not store.folder("tree", "1-a").exists()


@pytest.mark.parametrize("key", ["../../etc", "a/b", "", ".hidden", "a\nb"])
def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(LockError, match="cannot be a folder's name"):
        Store(tmp_path).find("tree", key)


def test_a_file_in_the_way_is_named_with_the_setting_that_helps(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder is needed") as caught:
        Store(tmp_path / "data").ensure("tree", "1-a", _fill, console=Console(io.StringIO()))
    assert "COMFYPOD_DATA" in caught.value.hint


def test_a_second_builder_waits_and_uses_what_the_first_made(tmp_path: Path) -> None:
    store, out, builds = Store(tmp_path), io.StringIO(), []
    started, go_on = threading.Event(), threading.Event()

    def build(building: Building) -> None:
        builds.append(1)
        started.set()
        assert go_on.wait(5)
        _fill(building)

    def first() -> None:
        store.ensure("tree", "1-a", build, console=Console(io.StringIO()))

    def release() -> None:
        go_on.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(5)
    timer = threading.Timer(0.5, release)
    timer.start()
    store.ensure("tree", "1-a", build, console=Console(out))
    thread.join()
    timer.join()
    assert builds == [1]
    assert out.getvalue() == "  waiting for another comfypod that makes tree 1-a\n"


def test_the_lock_goes_to_children_as_a_descriptor(tmp_path: Path) -> None:
    lock = files.FolderLock(tmp_path / "lock")
    assert lock.descriptors == ()
    lock.acquire()
    assert len(lock.descriptors) == 1
    lock.release()
    assert lock.descriptors == ()


def test_an_environment_whose_interpreter_went_away_is_made_again(tmp_path: Path) -> None:
    interpreter = tmp_path / "python3.11"
    interpreter.write_text("")

    def build(building: Building) -> None:
        (building.folder / "venv" / "bin").mkdir(parents=True)
        (building.folder / "venv" / "bin" / "python").symlink_to(interpreter)

    store = Store(tmp_path / "data")
    made = store.ensure("comfyui-env", "k", build, console=Console(io.StringIO()))
    assert store.find("comfyui-env", "k") == made
    interpreter.unlink()
    assert store.find("comfyui-env", "k") is None
