from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from comfypod import release as releases
from comfypod.errors import StorageError
from comfypod.host import adopt as verb
from comfypod.release import USER_FOLDERS
from comfypod.workspace import adopt, journal, plan, state
from tests.kit import standin
from tests.kit.disks import tmpfs
from tests.kit.lab import until
from tests.kit.strangers import STRANGERS, plain_clone, runpod_slim
from tests.kit.volumes import Volume, database, image, revision

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.workspace.switch import Image


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "workspace")


@pytest.fixture
def one(tmp_path: Path) -> Image:
    return image(tmp_path, "1")


@pytest.fixture
def two(tmp_path: Path) -> Image:
    return image(tmp_path, "2")


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return everything outside the records: inode and bytes, a link's target, nothing for a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(".comfypod"):
            data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[name] = (0 if path.is_dir() else path.lstat().st_ino, data)
    return found


def users(root: Path) -> set[tuple[int, bytes]]:
    """Return the files that users made, wherever they are."""
    made = (b"mine", b"weights", b"my notes", b"photo", b"edited by hand")
    return {each for each in contents(root).values() if any(word in each[1] for word in made)}


def adopted(volume: Volume, brought: Image) -> None:
    volume.adopt = "auto"
    assert volume.boot(brought).plan.action == "adopt"
    volume.adopt = "report"


@pytest.mark.parametrize("persist", ["move", "link"])
@pytest.mark.parametrize("name", STRANGERS)
def test_a12_a_volume_of_another_image_is_adopted_in_place_and_given_back(
    volume: Volume, one: Image, name: str, persist: str
) -> None:
    volume.persist = persist
    STRANGERS[name](volume.layout)
    before, made = contents(volume.root), users(volume.root)
    found = plan.look(volume.layout).found
    assert found is not None
    assert found.kind == name.partition(",")[0]
    assert contents(volume.root) == before
    adopted(volume, one)
    here = releases.read(volume.layout.comfyui)
    assert here is not None
    assert here.name == one.release
    assert releases.changes(here, volume.layout.comfyui) == releases.Changes()
    assert made <= users(volume.root) | users(volume.layout.adopted)
    base = volume.layout.comfyui
    assert all((base / folder).is_dir() for folder in USER_FOLDERS)
    if name not in ("a ComfyUI that was moved in part", "ai-dock, without sync"):
        assert "mine" in (base / "custom_nodes" / "pack" / "__init__.py").read_text()
        assert (base / "models" / "checkpoints" / "mine.safetensors").read_text() == "weights mine"
        assert (base / "user" / "default" / "workflows" / "mine.json").read_text() == '{"mine": 1}'
        assert (base / "output" / "ComfyUI_00001_.png").read_text() == "picture mine"
        assert (base / "input" / "photo.png").read_text() == "photo mine"
    again = volume.boot(one)
    assert (again.plan.action, again.problems) == ("keep", ())
    if name == "ai-dock, without sync":
        return
    assert verb.undo(volume.layout).errors == ()
    after = contents(volume.root)
    assert {path: after.get(path) for path in before} == before
    if name == "RunPod's runpod-slim":
        assert volume.boot(one).plan.action == "keep"
        return
    new = set(after) - set(before)
    assert {path.partition("/")[2].partition("/")[0] for path in new} <= set(USER_FOLDERS)
    assert volume.boot(one).plan.action == "image"


@pytest.mark.parametrize("name", STRANGERS)
def test_a12_without_being_asked_a_boot_reports_and_changes_nothing_of_theirs(
    volume: Volume, one: Image, name: str
) -> None:
    STRANGERS[name](volume.layout)
    before = contents(volume.root)
    if name == "ai-dock, without sync":
        with pytest.raises(StorageError, match="no folder") as caught:
            volume.boot(one)
        assert "workspace adopt --yes" in caught.value.hint
        return
    done = volume.boot(one)
    (problem,) = done.problems
    assert problem.code == "adoptable"
    assert name.partition(",")[0] in problem.message
    assert "workspace adopt" in problem.hint
    after = contents(volume.root)
    assert {path: after[path] for path in before} == before
    volume.adopt = "off"
    assert volume.boot(one).problems == ()


def test_models_that_lie_in_no_comfyui_are_shown_to_it(volume: Volume, one: Image) -> None:
    STRANGERS["ai-dock"](volume.layout)
    adopted(volume, one)
    (found,) = adopt.adoptions(volume.layout).values()
    stored = "storage/stable_diffusion/models"
    assert found.models == {"checkpoints": f"{stored}/ckpt", "loras": f"{stored}/lora"}


def test_folders_with_contents_of_their_own_stay_and_are_named(volume: Volume, one: Image) -> None:
    runpod_slim(volume.layout)
    volume.boot(one)
    volume.write("output/new.png", "new")
    volume.write("models/vae/new.bin", "new")
    volume.write("custom_nodes/new/__init__.py", "new")
    found = plan.look(volume.layout).found
    assert found is not None
    assert found.held == ("runpod-slim/ComfyUI/output",)
    assert found.nodes == "runpod-slim/ComfyUI/custom_nodes"
    assert found.models == {"checkpoints": "runpod-slim/ComfyUI/models/checkpoints"}
    assert set(found.folders) == {"input", "user"}
    adopted(volume, one)
    assert (volume.layout.comfyui / "output" / "new.png").read_text() == "new"
    assert (volume.layout.comfyui / "user").readlink().as_posix() == "../runpod-slim/ComfyUI/user"
    assert volume.boot(one).problems == ()


def test_what_is_adopted_stays_so_across_an_upgrade_and_back(volume: Volume, one: Image, two: Image) -> None:
    plain_clone(volume.layout)
    before = contents(volume.root)
    adopted(volume, one)
    assert volume.boot(two).plan.action == "upgrade"
    assert volume.boot(one).plan.action == "return"
    assert volume.boot(two).plan.action == "return"
    assert verb.undo(volume.layout).errors == ()
    after = contents(volume.root)
    assert {path: after.get(path) for path in before} == before


def test_an_adoption_may_be_repeated_after_it_was_undone(volume: Volume, one: Image) -> None:
    plain_clone(volume.layout)
    before = contents(volume.root)
    for _ in range(3):
        adopted(volume, one)
        verb.undo(volume.layout)
    after = contents(volume.root)
    assert {path: after.get(path) for path in before} == before


def test_what_took_the_place_of_a_link_since_stays_at_an_undo(volume: Volume, one: Image) -> None:
    runpod_slim(volume.layout)
    volume.boot(one)
    adopted(volume, one)
    (volume.layout.comfyui / "input").unlink()
    volume.write("input/other.png", "other")
    (problem,) = verb.undo(volume.layout).errors
    assert problem.message.startswith(str(volume.layout.comfyui / "input"))
    assert (volume.layout.comfyui / "input" / "other.png").read_text() == "other"


def test_asked_for_once_it_happens_at_the_next_boot_and_not_again(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(one)
    runpod_slim(volume.layout)
    volume.layout.adopting.touch()
    assert volume.boot(two).plan.action == "adopt"
    here = releases.read(volume.layout.comfyui)
    assert here is not None
    assert here.name == two.release
    assert not volume.layout.adopting.exists()
    assert volume.boot(two).plan.action == "keep"


@pytest.mark.parametrize(
    "body",
    [
        "", "[]", "{}", '{"kind": "x", "release": "", "moved": ["../../x"], "links": {}, "models": {}, "nodes": ""}',
        '{"kind": "x", "release": "", "moved": [], "links": {"models": "/etc"}, "models": {}, "nodes": ""}',
        '{"kind": "x", "release": "", "moved": [], "links": {}, "models": {"vae": "a/../../etc"}, "nodes": ""}',
    ],
)  # fmt: skip
def test_g8_a_record_that_leads_elsewhere_is_none(volume: Volume, body: str) -> None:
    path = volume.layout.adopted / "1" / adopt.RECORD
    path.parent.mkdir(parents=True)
    path.write_text(body)
    assert adopt.adoptions(volume.layout) == {}
    assert adopt.next_number(volume.layout) == 2


def test_a_record_comes_back_as_it_was_written(volume: Volume) -> None:
    made = adopt.Adoption("x", "1-0", ("main.py",), {"models": "a/models"}, {"vae": "b/vae"}, "a/custom_nodes")
    path = volume.layout.adopted / "7" / adopt.RECORD
    path.parent.mkdir(parents=True)
    path.write_bytes(made.encode())
    assert adopt.adoptions(volume.layout) == {7: made}
    assert json.loads(made.encode())["moved"] == ["main.py"]


def test_their_database_is_copied_before_it_is_migrated_and_comes_back_with_their_core(
    volume: Volume, one: Image, tmp_path: Path
) -> None:
    two, path = image(tmp_path, "2"), volume.layout.comfyui / "user" / "comfyui.db"
    plain_clone(volume.layout)
    versions = volume.layout.comfyui / "alembic_db" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_x.py").write_text('revision = "0001_x"\n')
    database(path, "0001_x")
    assert volume.boot(two).plan.action == "image"
    database(path, "0002_x")
    adopted(volume, two)
    assert revision(path) == "0002_x"
    verb.undo(volume.layout)
    assert revision(path) == "0001_x"
    assert len([copy for copy in volume.layout.databases.iterdir() if "0002_x" in copy.name]) >= 1


def test_the_database_of_a_folder_that_is_linked_to_is_copied(volume: Volume, one: Image) -> None:
    runpod_slim(volume.layout)
    theirs = volume.root / "runpod-slim" / "ComfyUI" / "user" / "comfyui.db"
    database(theirs, "0001_x")
    adopted(volume, one)
    two = image(volume.root.parent, "2")
    volume.boot(two)
    assert [copy.name.partition("-")[2] for copy in volume.layout.databases.iterdir()] == ["0001_x.db"]
    assert revision(theirs) == "0001_x"


def test_a_file_of_the_users_under_a_name_that_comfyui_brings_keeps_its_folder(volume: Volume, one: Image) -> None:
    runpod_slim(volume.layout)
    volume.boot(one)
    volume.write("models/kind_1/put_here", "notes of mine")
    (volume.layout.comfyui / "input" / "broken.png").symlink_to("/nowhere")
    found = plan.look(volume.layout).found
    assert found is not None
    assert not {"models", "input"} & set(found.folders)
    adopted(volume, one)
    assert (volume.layout.comfyui / "models" / "kind_1" / "put_here").read_text() == "notes of mine"


def test_a_change_that_is_open_is_never_written_over(volume: Volume, one: Image) -> None:
    """As an adoption that was asked for would have, after an upgrade whose renames the disk refused."""
    volume.boot(one)
    after = state.State(one.release, "env1", str(volume.root), "", 0)
    open_ = journal.Transaction("upgrade", (), after, staged=True)
    journal.commit(volume.layout, open_)
    with pytest.raises(OSError, match="not finished"):
        journal.begin(volume.layout, open_)


@pytest.mark.root
def test_a12_a_real_mv_across_disks_that_was_killed_half_way_is_taken_over(
    volume: Volume, one: Image, tmp_path: Path
) -> None:
    """As a shell entrypoint's first run: `mv` copies to the volume, then removes; the image has its own copy still."""
    volume.layout.records.mkdir(parents=True)
    with tmpfs(tmp_path / "container") as container:
        tree = standin.tree(container / "ComfyUI", release="0.1")
        for number in range(3000):
            (tree / "comfy" / f"more_{number}.py").write_text("x = 1\n")
        moving = subprocess.Popen(["mv", str(tree), str(volume.layout.comfyui)])
        more = volume.layout.comfyui / "comfy"
        until(lambda: more.is_dir() and len(os.listdir(more)) > 300, "some of the files")
        moving.kill()
        moving.wait()
        assert moving.returncode == -signal.SIGKILL
        assert len(os.listdir(more)) < 3000
        assert (tree / "main.py").exists()
    left = {path for path in contents(volume.root) if path.startswith("ComfyUI/")}
    assert volume.boot(one).plan.action == "image"
    adopted(volume, one)
    here = releases.read(volume.layout.comfyui)
    assert here is not None
    assert releases.changes(here, volume.layout.comfyui) == releases.Changes()
    aside = {f"ComfyUI/{path}" for path in contents(volume.layout.adopted / "1" / "ComfyUI")}
    assert {path for path in left if path.split("/")[1] not in USER_FOLDERS} <= aside


@pytest.mark.parametrize("name", ["adopted", "databases"])
def test_g8_a_link_in_the_place_of_a_folder_of_ours_is_not_followed(
    volume: Volume, one: Image, tmp_path: Path, name: str
) -> None:
    plain_clone(volume.layout)
    versions = volume.layout.comfyui / "alembic_db" / "versions"
    versions.mkdir(parents=True)
    database(volume.layout.comfyui / "user" / "comfyui.db", "0001_x")
    volume.layout.records.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (volume.layout.records / name).symlink_to(tmp_path / "elsewhere")
    before = contents(volume.root)
    volume.adopt = "auto"
    done = volume.boot(one)
    assert done.plan.action == "image"
    assert "a link stands where a folder is needed" in done.problems[0].message
    assert contents(volume.root) == before
    assert os.listdir(tmp_path / "elsewhere") == []
