from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import LockError, ManifestError, UsageError
from comfypod.lock.command import init_command, lock_command
from comfypod.lock.load import default_bytes, read_lock
from tests.kit.lockable import manifest_text, write_comfyui
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.log import Console


@pytest.fixture
def path(tmp_path: Path, wheels: Path) -> Path:
    write_comfyui(tmp_path / "tree", requirements="torch\nlib\n")
    path = tmp_path / "comfypod.toml"
    path.write_text(manifest_text())
    return path


def test_the_lock_is_written_beside_the_manifest_and_then_left_alone(path: Path, console: Console) -> None:
    first = lock_command(path, console=console)
    assert first.data["written"] is True
    assert first.data["changes"] == []
    told = {each["name"]: each["packages"] for each in json.loads(first.envelope())["data"]["environments"]}
    assert (told["comfyui-x86_64"], told["jupyter-x86_64"], told["comfypod-x86_64"]) == (4, 1, 5)
    before = (path.with_name("comfypod.lock")).stat()
    second = lock_command(path, console=console)
    assert second.data["written"] is False
    assert "is up to date" in second.text
    assert path.with_name("comfypod.lock").stat().st_ino == before.st_ino


def test_upgrades_and_what_came_and_went_are_listed(path: Path, wheels: Path, console: Console) -> None:
    lock_command(path, console=console)
    build_wheel(wheels, "lib", "3.0")
    build_wheel(wheels, "extra", "1.0")
    path.write_text(manifest_text(packages='"extra"').replace('"jupyterlab"', '"lib"'))
    result = lock_command(path, upgrade=["lib"], console=console)
    assert [(each["name"], each["before"], each["after"]) for each in result.data["changes"]] == [
        ("extra", None, "1.0"), ("jupyterlab", "4.0", None), ("lib", "2.0", "3.0"), ("lib", None, "3.0"),
    ]  # fmt: skip
    assert "updated package lib 2.0 -> 3.0" in result.text


def test_everything_moves_when_no_name_is_given_and_nothing_by_default(
    path: Path, wheels: Path, console: Console
) -> None:
    lock_command(path, console=console)
    build_wheel(wheels, "lib", "3.0")
    assert lock_command(path, console=console).data["changes"] == []
    assert [each["name"] for each in lock_command(path, upgrade=[], console=console).data["changes"]] == ["lib"]


def test_an_upgrade_of_something_unknown_is_a_usage_error(path: Path, console: Console) -> None:
    lock_command(path, console=console)
    with pytest.raises(UsageError) as caught:
        lock_command(path, upgrade=["trch"], console=console)
    assert caught.value.hint == "did you mean 'torch'?"


def test_check_writes_nothing_and_fails_with_every_drift(path: Path, console: Console) -> None:
    lock = path.with_name("comfypod.lock")
    with pytest.raises(LockError, match="cannot read"):
        lock_command(path, check=True, console=console)
    lock_command(path, console=console)
    assert lock_command(path, check=True, console=console).data["in_step"] is True
    data = lock.read_bytes()
    path.write_text(manifest_text(version="0.31.0", packages='"x"'))
    with pytest.raises(LockError) as caught:
        lock_command(path, check=True, console=console)
    assert len(caught.value.problems) == 2
    assert lock.read_bytes() == data


def test_a_manifest_in_the_working_folder_is_found(
    path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert lock_command(None, console=console).data["lock"] == "comfypod.lock"
    assert read_lock(path.with_name("comfypod.lock")).comfyui.version == "0.30.0"


def test_without_a_manifest_the_packages_own_is_checked_and_never_locked(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lock_command(None, check=True, console=console).exit_code == 0
    with pytest.raises(UsageError, match=r"no comfypod\.toml"):
        lock_command(None, console=console)


def test_init_writes_manifest_and_lock_once(tmp_path: Path, console: Console) -> None:
    init_command(tmp_path)
    assert (tmp_path / "comfypod.lock").read_bytes() == default_bytes()
    assert lock_command(tmp_path / "comfypod.toml", check=True, console=console).status == "success"
    with pytest.raises(UsageError, match="there already"):
        init_command(tmp_path)


def test_nothing_is_written_when_the_manifest_has_problems(path: Path, console: Console) -> None:
    path.write_text("schema = 1\n")
    with pytest.raises(ManifestError):
        lock_command(path, console=console)
    assert not path.with_name("comfypod.lock").exists()


def test_an_unreadable_lock_is_not_replaced(path: Path, console: Console) -> None:
    path.with_name("comfypod.lock").write_text('{"schema": 99}')
    with pytest.raises(LockError) as caught:
        lock_command(path, console=console)
    assert "move it away" in caught.value.hint
