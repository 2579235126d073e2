from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import IntegrityError, SourceError
from comfypod.unpack import unpack

if TYPE_CHECKING:
    from pathlib import Path


def write_tar(path: Path, *names: str, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member, io.BytesIO())
    return path


def write_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name in names:
            bundle.writestr(zipfile.ZipInfo(name), "x")
    return path


def test_a_single_top_folder_is_left_out(tmp_path: Path) -> None:
    tree = unpack(write_tar(tmp_path / "a", "top/x", "top/sub/y"), tmp_path / "out")
    assert tree == tmp_path / "out" / "top"
    assert (tree / "sub" / "y").is_file()


def test_several_entries_at_the_top_stay_as_they_are(tmp_path: Path) -> None:
    assert unpack(write_zip(tmp_path / "a", "x", "sub/y"), tmp_path / "out") == tmp_path / "out"


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "top\\..\\evil"])
def test_g8_a_zip_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="outside"):
        unpack(write_zip(tmp_path / "a", "fine", name), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(("name", "link"), [("../evil", ""), ("top/l", "/etc"), ("top/l", "../../evil")])
def test_g8_a_tar_that_reaches_outside_is_refused(tmp_path: Path, name: str, link: str) -> None:
    with pytest.raises(IntegrityError, match="outside"):
        unpack(write_tar(tmp_path / "a", name, link=link), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_files_links_and_their_modes_come_out_as_they_went_in(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w:xz") as tar:
        for name, mode in (("top/run", 0o755), ("top/sub/data", 0o4600)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = 3, mode
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("top/sub/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../run"
        tar.addfile(link)
    tree = unpack(tmp_path / "a", tmp_path / "out")
    assert (tree / "run").read_bytes() == (tree / "sub" / "link").read_bytes() == b"abc"
    assert [(tree / name).stat().st_mode & 0o7777 for name in ("run", "sub/data")] == [0o755, 0o644]


def test_g8_links_through_links_cannot_leave_either(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w") as tar:
        for name, target in (("top/a/b/deep", "../../other"), ("top/a/b/deep/out", "../../../../evil")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        member = tarfile.TarInfo("top/other/x")
        tar.addfile(member, io.BytesIO())
    with pytest.raises(IntegrityError, match="outside"):
        unpack(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_g8_hard_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a", "w") as tar:
        member = tarfile.TarInfo("top/x")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(IntegrityError, match="no file, folder or symbolic link"):
        unpack(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("cut", [10, 60])
def test_a_broken_archive_is_a_source_that_failed(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a", "top/x", "top/y")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match="not an archive that can be read"):
        unpack(path, tmp_path / "out")
