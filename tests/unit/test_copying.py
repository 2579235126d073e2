from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from comfypod import copying, files
from tests.kit.trees import contents, plant

if TYPE_CHECKING:
    from pathlib import Path


def test_a_copy_keeps_times_links_and_exec_bits_and_can_be_written(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {("bin", "run"): b"#!", ("data",): b"12345", ("read-only",): b"x"})
    (source / "bin" / "run").chmod(0o755)
    (source / "read-only").chmod(0o444)
    (source / "empty").mkdir()
    (source / "link").symlink_to("data")
    (source / "dangling").symlink_to("/no/such/place")
    (source / "folder").symlink_to("bin")
    os.utime(source / "data", ns=(1_000_000_007, 2_000_000_009))
    assert copying.copy_tree(source, tmp_path / "copy") == 8
    copy = tmp_path / "copy"
    assert files.tree_facts(copy) == files.tree_facts(source)
    assert (copy / "data").stat().st_mtime_ns == 2_000_000_009
    assert (copy / "bin" / "run").stat().st_mode & 0o777 == 0o755
    assert (copy / "read-only").stat().st_mode & 0o777 == 0o644
    assert (copy / "empty").is_dir()
    assert [(copy / name).readlink().as_posix() for name in ("link", "dangling", "folder")] == [
        "data", "/no/such/place", "bin",
    ]  # fmt: skip


def test_a_copy_stops_when_it_is_told_to(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {(f"{number:04}",): b"1" for number in range(1000)})

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copying.copy_files(list(copying.make_folders(source, tmp_path / "copy")), stop)
    assert len(contents(tmp_path / "copy")) < 1000


def test_a_copy_goes_to_a_new_folder_only(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {("a",): b"1"})
    mine = plant(tmp_path / "mine", {("b",): b"2"})
    with pytest.raises(FileExistsError):
        copying.copy_tree(source, mine)
    assert contents(mine) == {"b": b"2"}


def test_a_copy_of_what_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        copying.copy_tree(tmp_path / "none", tmp_path / "copy")


def test_a_disk_that_fills_up_during_a_copy_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plant(tmp_path / "source", {("a",): b"1"})

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space", str(source / "a"))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with pytest.raises(OSError, match="no space") as caught:
        copying.copy_tree(source, tmp_path / "copy")
    assert caught.value.filename == str(tmp_path / "copy" / "a")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_ranges_cannot_be_copied_bytes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    data = os.urandom(100_000)
    source = plant(tmp_path / "source", {("a",): data})
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert copying.copy_tree(source, tmp_path / "copy") == len(data)
    assert contents(tmp_path / "copy") == {"a": data}


def test_what_is_neither_file_nor_folder_nor_link_is_left_out(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {("a",): b"1"})
    os.mkfifo(source / "pipe")
    assert copying.copy_tree(source, tmp_path / "copy") == 1
    assert contents(tmp_path / "copy") == {"a": b"1"}


def test_a_second_name_is_a_hard_link_and_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"12345")
    copying.share_file(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").samefile(tmp_path / "two")
    (tmp_path / "taken").write_bytes(b"user's")
    with pytest.raises(FileExistsError):
        copying.share_file(tmp_path / "one", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"user's"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_f3_where_there_are_no_hard_links_a_second_name_is_a_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: Path, *_: object, **__: object) -> None:
        # The copy has its staged name on the disk where its new one will be.
        raise OSError(errno.EPERM if source.name.endswith(".new") else code, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "one").write_bytes(b"12345")
    os.utime(tmp_path / "one", ns=(1, 2_000_000_009))
    (tmp_path / ".two.new").write_bytes(b"left by one that was killed")
    copying.share_file(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"12345"
    assert (tmp_path / "two").stat().st_mtime_ns == 2_000_000_009
    assert not (tmp_path / "one").samefile(tmp_path / "two")
    (tmp_path / "taken").write_bytes(b"user's")
    with pytest.raises(FileExistsError):
        copying.share_file(tmp_path / "one", tmp_path / "taken")
    assert sorted(os.listdir(tmp_path)) == ["one", "taken", "two"]
