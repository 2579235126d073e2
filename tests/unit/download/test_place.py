from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download import partial
from comfypod.download.order import Order, Terms
from comfypod.download.run import fetch
from comfypod.errors import StorageError
from tests.kit.disks import tmpfs
from tests.kit.hosts import File, Host

if TYPE_CHECKING:
    from pathlib import Path

BODY = os.urandom(3_000_000)


@pytest.mark.root
def test_d9_both_sizes_are_named_and_what_is_there_already_is_counted(tmp_path: Path, web: Host) -> None:
    web.files["/a"] = File(BODY, stall=100_000)
    web.files["/b"] = File(BODY)
    with tmpfs(tmp_path / "disk", megabytes=5) as disk:
        orders = [Order(f"{web.url}/{name}", disk / "models" / name) for name in ("a", "b")]
        for error in fetch(orders, disk / "site", Terms()):
            assert isinstance(error, StorageError)
            assert "need 6.0 MB" in error.message
            assert "has 5.2 MB" in error.message
        assert web.sent == 0

        some = list[int]()
        fetch(
            orders[:1], disk / "site", Terms(), watch=lambda _, done, __: some.append(done), cancelled=lambda: any(some)
        )
        assert any(done for done, _ in partial.progress(disk / "site").values())
        assert 0 < os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize < len(BODY)
        web.files["/a"].stall = 0
        assert fetch(orders[:1], disk / "site", Terms()) == [None]
        assert (disk / "models" / "a").read_bytes() == BODY


@pytest.mark.root
def test_a3_a_disk_that_fills_up_meanwhile_is_named_and_what_was_there_stays(tmp_path: Path, web: Host) -> None:
    web.files["/a"] = File(BODY, unsized=True, ranges=False)
    with tmpfs(tmp_path / "disk", megabytes=2) as disk:
        (disk / "mine").write_text("mine")
        (error,) = fetch([Order(f"{web.url}/a", disk / "models" / "a")], disk / "site", Terms())
        assert isinstance(error, StorageError)
        assert "the disk is full" in error.message
        assert not (disk / "models" / "a").exists()
        assert (disk / "mine").read_text() == "mine"


@pytest.mark.root
def test_a4_too_few_inodes_are_named_before_the_first_byte(tmp_path: Path, web: Host) -> None:
    web.files["/a"] = File(BODY)
    with tmpfs(tmp_path / "disk", megabytes=64, inodes=4) as disk:
        (error,) = fetch([Order(f"{web.url}/a", disk / "a")], disk / "site", Terms())
        assert isinstance(error, StorageError)
        assert "the downloads need 6 inodes" in error.message
    assert web.sent == 0


@pytest.mark.root
def test_a_place_on_another_file_system_gets_the_file_too(tmp_path: Path, web: Host) -> None:
    web.files["/a"] = File(BODY)
    with tmpfs(tmp_path / "disk", megabytes=64) as disk:
        (disk / ".a.new").write_text("left by one that was killed")
        order = Order(f"{web.url}/a", disk / "a")
        assert fetch([order], tmp_path / "site", Terms()) == [None]
        assert order.target.read_bytes() == BODY
        assert os.listdir(disk) == ["a"]
    assert list((tmp_path / "site").iterdir()) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_file_system_without_links_gets_it_by_a_rename_and_nothing_is_overwritten(
    tmp_path: Path, web: Host, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    web.files["/a"] = File(BODY)
    target = tmp_path / "models" / "a"

    def check(_: Path) -> None:
        if taken:
            target.parent.mkdir()
            target.write_text("mine")

    (error,) = fetch([Order(f"{web.url}/a", target, check=check)], tmp_path / "site", Terms())
    assert isinstance(error, StorageError) is taken
    assert target.read_bytes() == (b"mine" if taken else BODY)
