from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod import files, podfile
from comfypod.errors import InstallError, StorageError
from comfypod.podfile import BakedNode
from comfypod.workspace.layout import Layout
from comfypod.workspace.seed import USER_FOLDERS, Seeded, seed
from tests.kit import standin
from tests.kit.disks import tmpfs

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.podfile import PodFile


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    return layout


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    return standin.tree(tmp_path / "pristine")


def pod_of(tmp_path: Path, release: str = "1") -> PodFile:
    return podfile.load(standin.pod_file(tmp_path, tmp_path / "pristine", release=release))


def fill(layout: Layout, tmp_path: Path, release: str = "1") -> Seeded:
    return seed(layout, pod_of(tmp_path, release), tmp_path / "pristine", lambda _: None)


def everything(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return every entry below a folder with its inode, mode, time and bytes."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_ino, facts.st_mode, facts.st_mtime_ns, data)
    return found


def test_an_empty_volume_gets_the_tree_and_its_mark(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    told = list[int]()
    got = seed(layout, pod_of(tmp_path), pristine, told.append)
    assert (got.action, got.core, got.base, got.release) == (
        "seeded", layout.comfyui, layout.comfyui, pod_of(tmp_path).release,
    )  # fmt: skip
    assert got.bytes == told[-1] == files.tree_facts(pristine).bytes
    assert layout.release_mark.is_file()
    layout.release_mark.unlink()
    assert files.tree_facts(layout.comfyui) == files.tree_facts(pristine)
    assert not layout.staging.exists()


def test_links_to_the_images_nodes_stay_in_the_image(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    for name in ("baked", "other"):
        (pristine / "custom_nodes" / name).symlink_to(tmp_path)
    (pristine / "input" / "baked").mkdir()
    pod = replace(pod_of(tmp_path), nodes=(BakedNode("baked", str(tmp_path), "1"),))
    seed(layout, pod, pristine, lambda _: None)
    assert not os.path.lexists(layout.comfyui / "custom_nodes" / "baked")
    assert (layout.comfyui / "custom_nodes" / "other").is_symlink()
    assert (layout.comfyui / "input" / "baked").is_dir()


def test_a_volume_of_this_release_is_kept_as_it_is(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    fill(layout, tmp_path)
    (layout.comfyui / "output" / "mine.png").write_bytes(b"mine")
    (layout.comfyui / "main.py").write_text("changed by the user")
    before = everything(layout.root)
    got = fill(layout, tmp_path)
    assert (got.action, got.core, got.base) == ("kept", layout.comfyui, layout.comfyui)
    assert everything(layout.root) == before


def test_a_volume_of_another_release_is_used_in_place_and_untouched(
    layout: Layout, pristine: Path, tmp_path: Path
) -> None:
    fill(layout, tmp_path)
    old = pod_of(tmp_path).release
    before = everything(layout.root)
    got = fill(layout, tmp_path, release="2")
    assert (got.action, got.core, got.base, got.release) == ("other", pristine, layout.comfyui, old)
    assert everything(layout.root) == before
    assert fill(layout, tmp_path).action == "kept"


@pytest.mark.parametrize("mark", [None, b"", b"{", b"\xff", b"[]", b"null", b'{"digest": "x"}'])
def test_a_comfyui_without_a_readable_mark_is_not_ours(
    layout: Layout, pristine: Path, tmp_path: Path, mark: bytes | None
) -> None:
    for name in USER_FOLDERS:
        (layout.comfyui / name).mkdir(parents=True)
    (layout.comfyui / "main.py").write_text("theirs")
    if mark is not None:
        layout.release_mark.write_bytes(mark)
    before = everything(layout.root)
    got = fill(layout, tmp_path)
    assert (got.action, got.core, got.base, got.release) == ("other", pristine, layout.comfyui, "")
    assert everything(layout.root) == before


def test_folders_that_a_volume_lacks_are_made_and_nothing_else(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (layout.comfyui / "output").mkdir(parents=True)
    (layout.comfyui / "output" / "mine.png").write_bytes(b"mine")
    (layout.comfyui / "models").symlink_to(shared)
    (layout.comfyui / "user").symlink_to("/no/such/place")
    before = everything(layout.comfyui)
    assert fill(layout, tmp_path).action == "other"
    after = everything(layout.comfyui)
    assert {name: facts for name, facts in after.items() if name in before} == before
    assert sorted(path.name for path in layout.comfyui.iterdir()) == sorted(USER_FOLDERS)
    assert list(shared.iterdir()) == []


def test_what_a_killed_boot_staged_is_removed_and_seeding_starts_anew(
    layout: Layout, pristine: Path, tmp_path: Path
) -> None:
    staged = layout.staging / "ComfyUI"
    staged.mkdir(parents=True)
    (staged / "half.py").write_text("half")
    assert fill(layout, tmp_path).action == "seeded"
    assert not layout.staging.exists()
    assert not (layout.comfyui / "half.py").exists()


def test_what_was_staged_is_removed_also_where_nothing_is_seeded(
    layout: Layout, pristine: Path, tmp_path: Path
) -> None:
    fill(layout, tmp_path)
    (layout.staging / "ComfyUI").mkdir(parents=True)
    assert fill(layout, tmp_path).action == "kept"
    assert not layout.staging.exists()


def test_a_seeding_that_is_stopped_leaves_nothing(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seed(layout, pod_of(tmp_path), pristine, stop)
    assert os.listdir(layout.records) == []
    assert not layout.comfyui.exists()


def test_a_file_in_the_place_of_comfyui_is_named_and_kept(layout: Layout, pristine: Path, tmp_path: Path) -> None:
    layout.comfyui.write_text("theirs")
    with pytest.raises(StorageError, match="is there and is no folder"):
        fill(layout, tmp_path)
    assert layout.comfyui.read_text() == "theirs"
    assert not layout.staging.exists()


def test_an_image_without_its_comfyui_seeds_nothing(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="holds no ComfyUI"):
        fill(layout, tmp_path)
    assert not layout.comfyui.exists()
    assert not layout.staging.exists()


@pytest.mark.root
def test_too_few_inodes_are_named_before_the_first_byte(pristine: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", inodes=8) as disk:
        layout = Layout(disk)
        layout.records.mkdir()
        with pytest.raises(StorageError, match="inodes left, seeding ComfyUI needs") as caught:
            fill(layout, tmp_path)
        assert not layout.comfyui.exists()
        assert os.listdir(layout.records) == []
    assert "nothing was written" in caught.value.hint
