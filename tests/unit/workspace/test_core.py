from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod import release as releases
from comfypod.errors import InstallError, StorageError
from comfypod.release import MARK, USER_FOLDERS
from comfypod.workspace import core, journal, plan, state
from comfypod.workspace.switch import Image
from tests.kit.disks import tmpfs
from tests.kit.killer import suffer
from tests.kit.users import common_folder, in_child
from tests.kit.volumes import Volume, database, image, revision

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "workspace")


@pytest.fixture
def one(tmp_path: Path) -> Image:
    return image(tmp_path, "1")


@pytest.fixture
def two(tmp_path: Path) -> Image:
    return image(tmp_path, "2")


def is_whole(volume: Volume, brought: Image) -> bool:
    """Whether the core is that release and nothing else, by contents."""
    here = releases.read(volume.layout.comfyui)
    assert here is not None
    assert here.name == brought.release
    others = {f"{stem}_{number}" for stem in ("extra", "top") for number in "123" if number != brought.release[0]}
    assert not others & {path.stem for path in volume.layout.comfyui.iterdir()}
    return releases.changes(here, volume.layout.comfyui) == releases.Changes()


def everything(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return every entry below a folder with its inode, mode, time and bytes."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_ino, facts.st_mode, facts.st_mtime_ns, data)
    return found


def test_an_empty_volume_gets_the_tree_and_its_mark(volume: Volume, one: Image) -> None:
    got = volume.boot(one)
    comfyui = volume.layout.comfyui
    assert (got.plan.action, got.core, got.base, got.release) == ("seed", comfyui, comfyui, one.release)
    assert got.bytes > 4000
    assert (comfyui / "comfy" / "__pycache__" / "a.pyc").is_file()
    assert not volume.layout.staging.exists()
    assert not volume.layout.journal.exists()
    assert is_whole(volume, one)
    (comfyui / MARK).unlink()
    (comfyui / "user").rmdir()
    assert files.tree_facts(comfyui) == files.tree_facts(one.tree)


def test_links_to_the_images_nodes_stay_in_the_image(volume: Volume, one: Image, tmp_path: Path) -> None:
    (one.tree / "custom_nodes" / "baked").symlink_to(tmp_path)
    volume.boot(one)
    assert not os.path.lexists(volume.layout.comfyui / "custom_nodes" / "baked")


def test_a_volume_of_this_release_is_kept_as_it_is(volume: Volume, one: Image) -> None:
    volume.boot(one)
    volume.write("output/mine.png")
    volume.write("main.py", "changed by the user")
    before = everything(volume.root)
    assert volume.boot(one).plan.action == "keep"
    assert everything(volume.root) == before


def test_b1_another_release_takes_the_place_of_the_one_before_which_is_kept(
    volume: Volume, one: Image, two: Image
) -> None:
    volume.boot(one)
    mine = [volume.write("custom_nodes/pack/__init__.py"), volume.write("models/vae/a.bin"), volume.write("own.txt")]
    got = volume.boot(two)
    assert (got.plan.action, got.release, got.trial) == ("upgrade", two.release, True)
    assert is_whole(volume, two)
    assert all(path.read_text() == "mine" for path in mine)
    assert (volume.layout.comfyui / "models" / "kind_2" / "put_here").is_file()
    assert (volume.layout.releases / one.release / "top_1.py").is_file()
    found = state.read(volume.layout.state)
    assert found is not None
    assert (found.release, found.previous, found.environment) == (two.release, one.release, "env2")


def test_b2_back_to_the_image_before_takes_what_was_kept_and_copies_nothing(
    volume: Volume, one: Image, two: Image
) -> None:
    volume.boot(one)
    volume.write("comfy/__init__.py", "edited in one")
    volume.boot(two)
    volume.write("output/late.png")
    got = volume.boot(one)
    assert (got.plan.action, got.bytes) == ("return", 0)
    assert (volume.layout.comfyui / "comfy" / "__init__.py").read_text() == "edited in one"
    assert (volume.layout.comfyui / "output" / "late.png").is_file()
    assert os.listdir(volume.layout.releases) == [two.release]
    assert volume.boot(two).plan.action == "return"
    assert is_whole(volume, two)


def test_b10_an_edit_of_a_core_file_is_named_kept_and_never_deleted(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.boot(one)
    volume.write("comfy/ldm/model.py", "edited")
    volume.write("comfy/own/new.py", "added")
    (problem,) = volume.boot(two).problems
    kept = volume.layout.releases / one.release
    assert problem.code == "edited-core"
    assert f"{kept}: comfy/ldm/model.py, comfy/own/new.py" in problem.message
    assert (kept / "comfy/ldm/model.py").read_text() == "edited"
    core.settle(volume.layout)
    volume.boot(image(tmp_path, "3"))
    assert os.listdir(volume.layout.releases) == [two.release]
    edits = volume.layout.edits / one.release
    assert (edits / "comfy/ldm/model.py").read_text() == "edited"
    assert (edits / "comfy/own/new.py").read_text() == "added"
    assert len([path for path in edits.rglob("*") if path.is_file()]) == 2


def test_what_a_user_put_where_a_new_release_has_something_is_set_aside(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.write("extra_2/mine.py")
    volume.boot(two)
    assert is_whole(volume, two)
    assert (volume.layout.edits / two.release / "extra_2" / "mine.py").read_text() == "mine"


def test_files_that_a_user_deleted_from_their_folders_do_not_come_back(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    (volume.layout.comfyui / "input" / "example.png").unlink()
    volume.write("models/checkpoints/put_checkpoints_here", "mine")
    volume.boot(two)
    assert not (volume.layout.comfyui / "input" / "example.png").exists()
    assert (volume.layout.comfyui / "models/checkpoints/put_checkpoints_here").read_text() == "mine"


def test_a_folder_of_the_users_that_leads_elsewhere_is_left_alone(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.boot(one)
    elsewhere = tmp_path / "models"
    (volume.layout.comfyui / "models").rename(elsewhere)
    (volume.layout.comfyui / "models").symlink_to(elsewhere)
    before = everything(elsewhere)
    volume.boot(two)
    assert everything(elsewhere) == before
    assert (volume.layout.comfyui / "models").is_symlink()


def test_keep_holds_a_volume_at_its_release(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.upgrade = "keep"
    before = everything(volume.layout.comfyui)
    got = volume.boot(two)
    assert (got.plan.action, got.release, got.core) == ("keep", one.release, volume.layout.comfyui)
    assert "COMFYPOD_UPGRADE=keep" in got.plan.reason
    assert everything(volume.layout.comfyui) == before


def test_an_upgrade_that_was_never_ready_goes_back_by_itself_and_stays_back(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.boot(one)
    assert [volume.boot(two).plan.action for _ in range(plan.ATTEMPTS)] == ["upgrade", "keep", "keep"]
    got = volume.boot(two)
    assert (got.plan.action, got.release) == ("return", one.release)
    assert f"{two.release} was not ready in 3 boots" in got.plan.reason
    assert volume.boot(two).plan.action == "keep"
    assert is_whole(volume, one)
    assert volume.boot(image(tmp_path, "3")).plan.action == "upgrade"


def test_once_ready_an_upgrade_is_no_trial_any_more(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.boot(two)
    core.settle(volume.layout)
    for _ in range(5):
        got = volume.boot(two)
        assert (got.plan.action, got.trial) == ("keep", False)


def test_boots_that_were_stopped_early_do_not_count(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    for _ in range(6):
        got = volume.boot(two)
        assert got.trial
        core.forgive(volume.layout)


def test_going_back_is_for_good_until_another_release_comes(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.boot(two)
    got = core.go_back(volume.layout, two.release, "env2", "it did not start")
    assert (got.plan.action, got.release) == ("return", one.release)
    assert volume.boot(two).release == one.release
    with pytest.raises(StorageError, match="keeps no release"):
        core.go_back(Volume(volume.root / "other").layout, two.release, "", "")


def test_missing_entries_are_repaired_and_others_left(volume: Volume, one: Image) -> None:
    volume.boot(one)
    volume.write("comfyui_version.py", "edited")
    shutil.rmtree(volume.layout.comfyui / "comfy")
    (volume.layout.comfyui / "main.py").unlink()
    got = volume.boot(one)
    assert (got.plan.action, got.plan.reason) == ("repair", "missing: comfy, main.py")
    assert (volume.layout.comfyui / "comfyui_version.py").read_text() == "edited"
    volume.write("comfyui_version.py", '__version__ = "1"\n')
    assert is_whole(volume, one)


def test_with_link_the_core_leads_to_the_image(volume: Volume, one: Image, two: Image) -> None:
    volume.persist = "link"
    got = volume.boot(one)
    comfyui = volume.layout.comfyui
    assert (got.plan.action, got.core, got.base, got.bytes < 5000) == ("seed", one.tree, comfyui, True)
    assert (comfyui / "main.py").readlink() == one.tree / "main.py"
    assert sorted(path.name for path in comfyui.iterdir() if not path.is_symlink()) == sorted([*USER_FOLDERS, MARK])
    volume.write("output/mine.png")
    volume.write("own.py")
    assert volume.boot(one).plan.action == "keep"
    got = volume.boot(two)
    assert (got.plan.action, got.core, got.trial) == ("upgrade", two.tree, False)
    assert (comfyui / "comfy").readlink() == two.tree / "comfy"
    assert not os.path.lexists(comfyui / "top_1.py")
    assert (comfyui / "output/mine.png").read_text() == (comfyui / "own.py").read_text() == "mine"


def test_links_that_lead_right_already_are_left_as_they_are(volume: Volume, one: Image, two: Image) -> None:
    """An image's tree is always at the same place."""
    volume.persist = "link"
    volume.boot(one)
    shutil.rmtree(one.tree)
    two.tree.rename(one.tree)
    before = (volume.layout.comfyui / "main.py").lstat().st_ino
    volume.boot(Image(two.release, one.tree, ""))
    assert (volume.layout.comfyui / "main.py").lstat().st_ino == before
    assert (volume.layout.comfyui / "top_2.py").exists()
    assert not os.path.lexists(volume.layout.comfyui / "top_1.py")


def test_links_that_lead_elsewhere_are_renewed(volume: Volume, one: Image, tmp_path: Path) -> None:
    """The same volume in a container and on a host, or a store that has moved."""
    volume.persist = "link"
    volume.boot(one)
    one.tree.rename(tmp_path / "moved")
    got = volume.boot(Image(one.release, tmp_path / "moved", ""))
    assert (got.plan.action, got.plan.reason) == ("convert", "its links lead elsewhere")
    assert (volume.layout.comfyui / "comfy").readlink() == tmp_path / "moved" / "comfy"
    assert volume.boot(Image(one.release, tmp_path / "moved", "")).plan.action == "keep"


def test_a_users_file_in_the_place_of_a_link_is_kept(volume: Volume, one: Image, two: Image) -> None:
    volume.persist = "link"
    volume.boot(one)
    (volume.layout.comfyui / "comfyui_version.py").unlink()
    volume.write("comfyui_version.py", "mine")
    volume.boot(two)
    assert (volume.layout.edits / one.release / "comfyui_version.py").read_text() == "mine"
    assert (volume.layout.comfyui / "comfyui_version.py").is_symlink()


def test_files_become_links_and_links_files_when_that_is_asked_for(volume: Volume, one: Image) -> None:
    volume.boot(one)
    volume.write("comfy/__init__.py", "edited")
    volume.persist = "link"
    assert volume.boot(one).plan.action == "convert"
    assert (volume.layout.comfyui / "comfy").is_symlink()
    assert (volume.layout.edits / one.release / "comfy/__init__.py").read_text() == "edited"
    volume.persist = "auto"
    assert volume.boot(one).plan.action == "keep"
    volume.persist = "move"
    assert volume.boot(one).plan.action == "convert"
    assert is_whole(volume, one)


def test_auto_links_on_a_network_disk(volume: Volume, one: Image) -> None:
    volume.network = True
    assert volume.boot(one).plan.mode == "link"
    volume.network = False
    assert volume.boot(one).plan.mode == "link"


@pytest.mark.parametrize("mark", [None, b"", b"{", b"\xff", b"[]", b"null", b'{"release": "x"}'])
def test_a_comfyui_without_a_readable_mark_is_not_ours(volume: Volume, one: Image, mark: bytes | None) -> None:
    for name in USER_FOLDERS:
        (volume.layout.comfyui / name).mkdir(parents=True)
    volume.write("main.py", "theirs")
    if mark is not None:
        (volume.layout.comfyui / MARK).write_bytes(mark)
    before = everything(volume.layout.comfyui)
    got = volume.boot(one)
    assert (got.plan.action, got.core, got.base) == ("image", one.tree, volume.layout.comfyui)
    assert everything(volume.layout.comfyui) == before


def test_folders_of_the_users_alone_get_a_core_beside_them(volume: Volume, one: Image, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    volume.write("output/mine.png")
    (volume.layout.comfyui / "models").symlink_to(shared)
    (volume.layout.comfyui / "user").symlink_to("/no/such/place")
    assert volume.boot(one).plan.action == "seed"
    assert list(shared.iterdir()) == []
    assert (volume.layout.comfyui / "user").is_symlink()
    assert (volume.layout.comfyui / "output/mine.png").read_text() == "mine"
    assert is_whole(volume, one)


def test_b8_a_volume_that_is_mounted_elsewhere_works(volume: Volume, one: Image, two: Image, tmp_path: Path) -> None:
    volume.boot(one)
    volume.boot(two)
    volume.root.rename(tmp_path / "elsewhere")
    moved = Volume(tmp_path / "elsewhere")
    assert moved.boot(two).plan.action == "keep"
    assert moved.boot(one).plan.action == "return"
    assert is_whole(moved, one)


def test_going_back_an_older_comfyui_gets_the_database_that_it_can_open(volume: Volume, one: Image, two: Image) -> None:
    path = volume.layout.comfyui / "user" / "comfyui.db"
    volume.boot(one)
    database(path, "0001_x")
    volume.boot(two)
    assert revision(path) == "0001_x"
    database(path, "0002_x")
    newer = path.read_bytes()
    volume.boot(one)
    assert revision(path) == "0001_x"
    assert (volume.layout.databases / "2-0002_x.db").read_bytes() == newer


def test_going_back_over_several_releases_finds_the_database_of_long_ago(volume: Volume, tmp_path: Path) -> None:
    """As with ComfyUI 0.18.2, 0.27.0, 0.30.0, 0.27.0, 0.18.2: only one release is kept, every migration is."""
    path, images = volume.layout.comfyui / "user" / "comfyui.db", [image(tmp_path, number) for number in "123"]
    for number, brought in enumerate(images, 1):
        volume.boot(brought)
        core.settle(volume.layout)
        database(path, f"000{number}_x")
    assert volume.boot(images[1]).plan.action == "return"
    assert revision(path) == "0002_x"
    assert volume.boot(images[0]).plan.action == "upgrade"
    assert revision(path) == "0001_x"
    volume.boot(images[2])
    assert revision(path) == "0001_x"
    assert sorted(copy.name.partition("-")[2] for copy in volume.layout.databases.iterdir()) == [
        "0001_x.db", "0002_x.db", "0003_x.db",
    ]  # fmt: skip


@pytest.mark.parametrize("persist", ["move", "link"])
def test_a_database_is_copied_before_it_is_migrated_and_there_is_one_copy_of_each(
    volume: Volume, one: Image, two: Image, persist: str
) -> None:
    volume.persist = persist
    path = volume.layout.comfyui / "user" / "comfyui.db"
    volume.boot(one)
    for _ in range(3):
        database(path, "0001_x")
        volume.boot(two)
        database(path, "0002_x")
        volume.boot(one)
        assert revision(path) == "0001_x"
    assert len(list(volume.layout.databases.iterdir())) <= 4


def test_going_back_a_database_that_the_older_comfyui_knows_stays(volume: Volume, one: Image, two: Image) -> None:
    path = volume.layout.comfyui / "user" / "comfyui.db"
    volume.boot(one)
    volume.boot(two)
    database(path, "0001_x")
    same = path.read_bytes()
    volume.boot(one)
    assert path.read_bytes() == same
    assert not volume.layout.edits.exists()


def test_a_seeding_that_is_stopped_leaves_nothing(volume: Volume, one: Image) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    volume.layout.records.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        core.bring(volume.layout, one, persist="auto", upgrade="auto", network=False, advance=stop)
    assert os.listdir(volume.layout.records) == []
    assert not volume.layout.comfyui.exists()


def test_a_file_in_the_place_of_comfyui_is_named_and_kept(volume: Volume, one: Image) -> None:
    volume.layout.records.mkdir(parents=True)
    volume.layout.comfyui.write_text("theirs")
    with pytest.raises(StorageError, match="is there and is no folder"):
        volume.boot(one)
    assert volume.layout.comfyui.read_text() == "theirs"


def test_an_image_without_its_comfyui_seeds_nothing(volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="holds no ComfyUI"):
        volume.boot(Image("1-0", tmp_path / "none", ""))
    assert not volume.layout.comfyui.exists()


@pytest.mark.root
def test_a4_too_few_inodes_are_named_before_the_first_byte(one: Image, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", inodes=8) as disk:
        volume = Volume(disk)
        with pytest.raises(StorageError, match="inodes left, ComfyUI needs") as caught:
            volume.boot(one)
        assert not volume.layout.comfyui.exists()
        assert os.listdir(volume.layout.records) == []
    assert "nothing was written" in caught.value.hint


@pytest.mark.root
def test_a3_an_upgrade_without_room_runs_from_the_image_and_says_so(one: Image, two: Image, tmp_path: Path) -> None:
    (two.tree / "big.bin").write_bytes(bytes(30_000_000))
    with tmpfs(tmp_path / "small", megabytes=20) as disk:
        volume = Volume(disk)
        volume.boot(one)
        before = volume.contents()
        got = volume.boot(two)
        assert (got.plan.action, got.core, got.base) == ("image", two.tree, volume.layout.comfyui)
        assert "ComfyUI needs 46.8 MB" in got.problems[0].message
        assert volume.contents() == before
        (two.tree / "big.bin").unlink()
        assert volume.boot(two).plan.action == "upgrade"
        assert is_whole(volume, two)


def test_bytecode_of_the_release_before_is_not_taken_for_the_new_ones(volume: Volume, one: Image, two: Image) -> None:
    """In an image all files have one time, and a version has as many digits as the one before."""
    for brought in (one, two):
        os.utime(brought.tree / "comfyui_version.py", (315532800, 315532800))
    volume.boot(one)
    asked = [sys.executable, "-c", "import comfyui_version; print(comfyui_version.__version__)"]
    environ = {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for brought in (one, two, one):
        volume.boot(brought)
        done = subprocess.run(asked, cwd=volume.layout.comfyui, env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == brought.release[0]


@pytest.mark.root
def test_what_is_mounted_below_the_users_folders_is_not_written_to(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    models = volume.layout.comfyui / "models" / "kind_2"
    user = volume.layout.comfyui / "user"
    user.rmdir()
    with tmpfs(models), tmpfs(user):
        database(user / "comfyui.db", "0001_x")
        assert volume.boot(two).plan.action == "upgrade"
        assert os.listdir(models) == []
        database(user / "comfyui.db", "0002_x")
        assert volume.boot(one).plan.action == "return"
        assert not volume.layout.journal.exists()
        assert is_whole(volume, one)
    models.rmdir()
    user.rmdir()


def test_what_is_not_whole_is_not_kept_and_edits_of_it_are(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    (volume.layout.comfyui / "main.py").unlink()
    volume.write("comfyui_version.py", "edited")
    volume.boot(two)
    assert os.listdir(volume.layout.releases) == []
    assert (volume.layout.edits / one.release / "comfyui_version.py").read_text() == "edited"
    assert is_whole(volume, two)


def test_going_back_first_finishes_what_was_killed(volume: Volume, one: Image, two: Image, tmp_path: Path) -> None:
    three = image(tmp_path, "3")
    volume.boot(one)
    volume.boot(two)
    core.settle(volume.layout)
    steps = 60
    assert suffer(lambda: volume.boot(three), steps, "kill", tmp_path / "notes") == "killed"
    assert json.loads(volume.layout.journal.read_text())["staged"]
    got = core.go_back(volume.layout, three.release, "env", "asked for")
    assert got.release == two.release
    assert is_whole(volume, two)
    assert os.listdir(volume.layout.releases) == [three.release]


def test_a_rollback_that_fails_is_no_success(
    volume: Volume, one: Image, two: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.boot(one)
    volume.boot(two)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(journal, "commit", refuse)
    with pytest.raises(StorageError, match="cannot go back"):
        core.go_back(volume.layout, two.release, "env", "asked for")
    monkeypatch.undo()
    assert volume.boot(two).release == one.release


@pytest.mark.root
def test_a3_a_disk_that_is_full_to_the_last_byte_does_not_stop_a_boot(one: Image, two: Image, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", megabytes=20) as disk:
        volume = Volume(disk)
        volume.boot(one)
        with contextlib.suppress(OSError), (disk / "full").open("wb") as sink:
            while True:
                sink.write(bytes(100_000))
                sink.flush()
        with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as sink:
            while True:
                sink.write(b"x")
        got = volume.boot(Image(one.release, one.tree, "another environment"))
        assert got.plan.action == "keep"
        assert "the disk is full" in got.problems[0].message
        assert volume.boot(two).plan.action == "image"


def test_a_database_that_a_killed_comfyui_left_open_is_understood(volume: Volume, one: Image, two: Image) -> None:
    path = volume.layout.comfyui / "user" / "comfyui.db"
    volume.boot(one)
    database(path, "0001_x")
    volume.boot(two)
    database(path, "0002_x")
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size=1');"
        "c.execute('CREATE TABLE big (x)'); c.executemany('INSERT INTO big VALUES (?)', [('y' * 900,)] * 500);"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name("comfyui.db-journal").exists()
    volume.boot(one)
    assert revision(path) == "0001_x"
    assert not path.with_name("comfyui.db-journal").exists()


def test_what_is_kept_does_not_depend_on_a_record(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.boot(two)
    (volume.layout.releases / ".DS_Store").write_text("")
    for _ in range(3):
        volume.layout.state.write_text("{")
        assert volume.boot(two).plan.action == "keep"
    assert volume.boot(one).plan.action == "return"


def test_stops_in_order_are_not_counted_and_kills_are(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.boot(two)
    core.forgive(volume.layout)
    assert [volume.boot(two).plan.action for _ in range(plan.ATTEMPTS + 1)] == ["keep", "keep", "keep", "return"]


def test_keep_and_links_do_not_mix_releases(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    volume.boot(two)
    core.go_back(volume.layout, two.release, "env", "asked for")
    volume.persist = "link"
    got = volume.boot(two)
    assert (got.plan.mode, got.release, got.core) == ("link", two.release, two.tree)
    found = state.read(volume.layout.state)
    assert found is not None
    assert (found.release, found.previous) == (two.release, "")


def test_a_release_that_was_never_ready_is_not_kept_in_the_place_of_one_that_was(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.boot(one)
    core.settle(volume.layout)
    volume.boot(two)
    volume.write("main.py", "edited in two")
    volume.boot(image(tmp_path, "3"))
    assert os.listdir(volume.layout.releases) == [one.release]
    assert (volume.layout.edits / two.release / "main.py").read_text() == "edited in two"


@pytest.mark.root
@pytest.mark.parametrize("name", ["", "comfy", "comfy/ldm"])
def test_what_is_mounted_in_the_core_is_neither_moved_nor_emptied(
    volume: Volume, one: Image, two: Image, tmp_path: Path, name: str
) -> None:
    """A bind mount of the same disk is another place to rename(2), and st_dev does not tell."""
    volume.boot(one)
    outside = tmp_path / "outside"
    shutil.copytree(volume.layout.comfyui / name, outside, symlinks=True)
    before = everything(outside)
    point = volume.layout.comfyui / name
    subprocess.run(["mount", "--bind", outside, point], check=True)
    try:
        for brought in (two, one, two):
            assert volume.boot(brought).core in (brought.tree, volume.layout.comfyui)
        assert volume.boot(two).plan.action == "image"
    finally:
        subprocess.run(["umount", point], check=True)
    assert everything(outside) == before
    assert volume.boot(two).plan.action == "upgrade"
    assert is_whole(volume, two)


@pytest.mark.root
def test_f9_models_mounted_from_the_same_disk_are_not_written_to(volume: Volume, one: Image, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    models = volume.layout.comfyui / "models"
    models.mkdir(parents=True)
    subprocess.run(["mount", "--bind", tmp_path / "models", models], check=True)
    try:
        assert volume.boot(one).plan.action == "seed"
        assert volume.boot(one).plan.action == "keep"
    finally:
        subprocess.run(["umount", models], check=True)
    assert os.listdir(tmp_path / "models") == []


@pytest.mark.parametrize(
    "moves",
    [
        [("ComfyUI/l/secret", ".comfypod/staging/z")], [("../outside/secret", "ComfyUI/x")],
        [("ComfyUI/main.py", "main.py")], [(".comfypod/staging/a\0", "ComfyUI/x")],
        [(".comfypod/staging/\ud800", "ComfyUI/x")], [(".comfypod/staging/a", ".comfypod/state.json")],
    ],
)  # fmt: skip
def test_g8_a_journal_that_is_not_ours_moves_nothing(
    volume: Volume, one: Image, tmp_path: Path, moves: list[tuple[str, str]]
) -> None:
    volume.boot(one)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (volume.layout.comfyui / "l").symlink_to(outside)
    after = {"release": "9", "environment": "", "mount": "", "schema": state.SCHEMA, "writer": ""}
    rows = [{"source": source, "target": target} for source, target in moves]
    volume.layout.journal.write_text(json.dumps({"action": "upgrade", "moves": rows, "after": after, "staged": True}))
    assert volume.boot(one).plan.action == "keep"
    assert (outside / "secret").read_text() == "secret"
    assert is_whole(volume, one)


def test_g8_folders_of_ours_that_are_links_are_not_emptied(volume: Volume, one: Image, tmp_path: Path) -> None:
    volume.boot(one)
    outside = tmp_path / "outside"
    (outside / "docs").mkdir(parents=True)
    volume.layout.releases.symlink_to(outside)
    assert volume.boot(one).plan.action == "image"
    assert os.listdir(outside) == ["docs"]


@pytest.mark.parametrize("body", [{"files": None}, {"entries": ["\ud800x\0"]}, {"entries": ["x" * 300]}])
def test_a_mark_that_makes_no_sense_is_none(volume: Volume, one: Image, two: Image, body: dict[str, object]) -> None:
    volume.boot(one)
    mark = volume.layout.comfyui / MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), **body}))
    assert volume.boot(two).plan.action == "image"


def test_what_users_left_among_bytecode_is_kept(volume: Volume, one: Image, two: Image, tmp_path: Path) -> None:
    volume.boot(one)
    volume.write("comfy/__pycache__/notes.txt")
    volume.write("comfy/__pycache__/sub/model.py")
    volume.boot(two)
    core.settle(volume.layout)
    volume.boot(image(tmp_path, "3"))
    edits = volume.layout.edits / one.release / "comfy" / "__pycache__"
    assert sorted(path.name for path in edits.rglob("*")) == ["model.py", "notes.txt", "sub"]


def test_a_users_own_link_in_the_place_of_one_of_ours_is_kept(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.persist = "link"
    volume.boot(one)
    (tmp_path / "mine").mkdir()
    (volume.layout.comfyui / "comfy").unlink()
    (volume.layout.comfyui / "comfy").symlink_to(tmp_path / "mine")
    volume.boot(two)
    assert (volume.layout.edits / one.release / "comfy").readlink() == tmp_path / "mine"


def test_a_pipe_among_migrations_is_not_waited_for(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    os.mkfifo(volume.layout.comfyui / "alembic_db" / "versions" / "x.py")
    volume.boot(two)
    database(volume.layout.comfyui / "user" / "comfyui.db", "0002_x")
    assert volume.boot(one).plan.action == "return"


@pytest.mark.root
def test_bytecode_that_root_has_left_does_not_stop_an_upgrade() -> None:
    """As `docker exec` leaves it: nobody else may delete it, or the folder that it is in."""
    with common_folder() as folder:
        volume, images = Volume(folder / "workspace"), [image(folder, number) for number in "123"]
        volume.boot(images[0])
        for path in (volume.root, *volume.root.rglob("*")):
            os.chown(path, 12345, 12345, follow_symlinks=False)
        cache = volume.layout.comfyui / "comfy" / "ldm" / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / "m.pyc").write_bytes(b"code")

        def boots() -> list[str]:
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            found: list[str] = []
            for brought in (images[1], images[2], images[2]):
                found.append(volume.boot(brought).plan.action)
                core.settle(volume.layout)
            return found

        assert in_child(boots) == ["upgrade", "upgrade", "keep"]


def test_what_was_written_while_an_upgrade_was_open_is_kept(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    """A boot was killed before it came to this name, and the user put a file of their own there."""
    volume.persist = "link"
    volume.boot(one)
    main = volume.layout.comfyui / "main.py"
    for step in range(1, 200):
        trial = volume.copy(tmp_path / "trial")
        end = suffer(lambda trial=trial: trial.boot(two), step, "kill", tmp_path / "notes")  # type: ignore[misc]
        if end == "done":
            break
        place = trial.layout.comfyui / main.name
        place.unlink(missing_ok=True)
        place.write_text("mine")
        trial.boot(two)
        assert any(path.read_text() == "mine" for path in trial.root.rglob("main.py*") if not path.is_symlink()), step
        shutil.rmtree(trial.root)
    assert step > 20


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_f3_where_the_disk_takes_no_links_the_core_is_files(
    volume: Volume, one: Image, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Doubled: no file system without links can be mounted here."""

    def refuse(_source: object, target: object, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(target))

    (one.tree / "link.py").unlink()
    volume.network = True
    monkeypatch.setattr(os, "symlink", refuse)
    done = volume.boot(one)
    assert (done.plan.action, done.plan.mode, done.problems) == ("seed", "move", ())
    assert "takes no links" in done.plan.reason
    assert is_whole(volume, one)
    volume.persist = "link"
    again = volume.boot(one)
    assert (again.plan.action, again.core, again.problems) == ("keep", volume.layout.comfyui, ())
    assert not volume.layout.journal.exists()


def test_what_a_user_writes_under_the_name_of_a_gift_while_a_change_is_open_stays_where_it_is(
    volume: Volume, one: Image, two: Image, tmp_path: Path
) -> None:
    volume.boot(one)
    noted, step = tmp_path / "notes", 0
    place = volume.layout.comfyui / "models" / "kind_2" / "put_here"
    while not (volume.layout.journal.exists() and '"staged": true' in volume.layout.journal.read_text()):
        step += 1
        suffer(lambda: volume.boot(two), step, "kill", noted)
        assert not place.exists()
    volume.write("models/kind_2/put_here", "mine")
    assert volume.boot(two).plan.action == "keep"
    assert place.read_text() == "mine"
    assert is_whole(volume, two)
    assert not volume.layout.edits.exists()
