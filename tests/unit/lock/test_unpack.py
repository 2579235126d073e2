from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import IntegrityError, SourceError
from comfypod.lock.unpack import unpack

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


@pytest.mark.parametrize("cut", [10, 60])
def test_a_broken_archive_is_a_source_that_failed(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a", "top/x", "top/y")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match="not a whole archive"):
        unpack(path, tmp_path / "out")
