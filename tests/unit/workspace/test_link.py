from __future__ import annotations

from pathlib import Path

import pytest

from comfypod.workspace.link import leads_to, repoint


def test_a_link_is_made_or_pointed_elsewhere_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    link = tmp_path / "place" / "link"
    for target in ("one", "two"):
        repoint(link, tmp_path / target)
        assert link.readlink() == tmp_path / target
        assert leads_to(link, tmp_path / target)
    assert not leads_to(link, tmp_path / "one")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["link"]


def test_what_a_killed_boot_left_half_done_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".link.new").symlink_to("/elsewhere")
    repoint(tmp_path / "link", Path("/target"))
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_link_is_never_replaced(tmp_path: Path, kind: str) -> None:
    link = tmp_path / "link"
    link.mkdir() if kind == "folder" else link.write_text("mine")
    with pytest.raises(FileExistsError, match="is there and is no link"):
        repoint(link, Path("/target"))
    assert not link.is_symlink()
    assert not leads_to(link, link)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
