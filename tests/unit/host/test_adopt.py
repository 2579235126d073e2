from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod import cli
from comfypod.errors import BusyError, HostError, StorageError
from comfypod.host import adopt, workspace
from comfypod.log import Console
from comfypod.workspace.adopt import adoptions
from comfypod.workspace.lease import Lease
from tests.kit.killer import suffer
from tests.kit.strangers import STRANGERS, plain_clone, runpod_slim
from tests.kit.volumes import Volume, image
from tests.unit.host.test_workspace import brings, runs

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.workspace.switch import Image

QUIET = Console(quiet=True)


@pytest.fixture
def one(tmp_path: Path) -> Image:
    return image(tmp_path, "1")


@pytest.fixture
def volume(tmp_path: Path, one: Image) -> Volume:
    volume = Volume(tmp_path / "workspace")
    volume.layout.records.mkdir(parents=True)
    brings(volume, one)
    return volume


@pytest.mark.parametrize("name", STRANGERS)
def test_what_an_adoption_would_do_is_shown_and_nothing_is_changed(volume: Volume, name: str) -> None:
    STRANGERS[name](volume.layout)
    before = volume.contents()
    shown = adopt.show(volume.layout)
    assert volume.contents() == before
    assert shown.data["done"] is False
    assert name.partition(",")[0] in shown.text
    assert "nothing has been changed yet" in shown.text
    assert "workspace adopt --yes" in shown.text


def test_sizes_nodes_and_what_is_left_are_shown(volume: Volume) -> None:
    runpod_slim(volume.layout)
    shown = adopt.show(volume.layout)
    assert set(shown.data["found"]["folders"]) == {"custom_nodes", "input", "models", "output", "user"}
    assert shown.data["found"]["folders"]["custom_nodes"]["nodes"] == 2
    assert shown.data["found"]["folders"]["models"]["bytes"] > 0
    assert f"link {volume.root}/runpod-slim/ComfyUI/models" in shown.text
    assert "nothing in" in adopt.show(Volume(volume.root.parent / "empty").layout).text


def test_a_clone_is_adopted_and_given_back(volume: Volume, one: Image) -> None:
    plain_clone(volume.layout)
    before = (volume.layout.comfyui / "main.py").stat().st_ino
    done = adopt.carry_out(volume.layout, QUIET)
    assert (done.data["done"], done.data["release"]) == (True, one.release)
    assert "workspace adopt --undo" in done.text
    with pytest.raises(StorageError, match="left to adopt"):
        adopt.carry_out(volume.layout, QUIET)
    assert adopt.undo(volume.layout).data == {"undone": 1}
    assert (volume.layout.comfyui / "main.py").stat().st_ino == before
    with pytest.raises(StorageError, match="no adoption holds"):
        adopt.undo(volume.layout)


def test_while_a_pod_runs_an_adoption_waits_for_its_next_start(volume: Volume, one: Image) -> None:
    plain_clone(volume.layout)
    runs(volume)
    before = volume.contents()
    assert adopt.carry_out(volume.layout, QUIET).data == {"done": False}
    assert {**before, ".comfypod/adopt": ""} == volume.contents()
    volume.layout.run_record.unlink()
    assert volume.boot(one).plan.action == "adopt"


def test_a_workspace_that_is_held_is_neither_adopted_nor_given_back(volume: Volume) -> None:
    plain_clone(volume.layout)
    lease = Lease(volume.layout.pods)
    lease.take()
    with pytest.raises(BusyError):
        adopt.carry_out(volume.layout, QUIET)
    lease.release()
    assert adopt.carry_out(volume.layout, QUIET).data["done"]
    lease.take()
    with pytest.raises(BusyError):
        adopt.undo(volume.layout)
    lease.release()
    assert adopt.undo(volume.layout).data == {"undone": 1}


def test_without_an_image_nothing_can_be_adopted(volume: Volume) -> None:
    plain_clone(volume.layout)
    volume.layout.pod_file.unlink()
    assert adopt.show(volume.layout).data["found"]
    with pytest.raises(HostError, match="nothing says which ComfyUI"):
        adopt.carry_out(volume.layout, QUIET)


@pytest.mark.parametrize("words", [["status", "--yes"], ["adopt", "--yes", "--undo"]])
def test_options_of_adopt_belong_to_it(volume: Volume, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["workspace", *words, "--workspace", str(volume.root)], 0.0) == 2
    assert "one at a time" in capsys.readouterr().out


def test_status_names_what_was_adopted_and_what_could_be(volume: Volume) -> None:
    plain_clone(volume.layout)
    found = workspace.status(volume.layout)
    assert found.data["adopted"] == []
    assert "a Git clone" in found.data["adoptable"]
    adopt.carry_out(volume.layout, QUIET)
    found = workspace.status(volume.layout)
    assert (found.data["adopted"], found.data["adoptable"]) == (["a Git clone"], "")
    assert "adopted     a Git clone" in found.text
    assert "adopt --undo" in found.text


def test_while_a_pod_runs_an_undo_waits_for_its_next_start_and_happens_once(volume: Volume, one: Image) -> None:
    plain_clone(volume.layout)
    adopt.carry_out(volume.layout, QUIET)
    runs(volume)
    assert adopt.undo(volume.layout).data == {"undone": 0}
    assert volume.layout.adopting.read_text() == "undo 1"
    volume.layout.run_record.unlink()
    assert volume.boot(one).plan.action == "image"
    assert not volume.layout.adopting.exists()
    volume.layout.adopting.write_text("undo 1")
    assert volume.boot(one).plan.action == "image"
    for nonsense in ("undo", "undo x", "undo 99", "\0"):
        volume.layout.adopting.write_text(nonsense)
        assert volume.boot(one).plan.action == "image"


def test_an_undo_that_was_killed_is_finished_by_the_next(volume: Volume, one: Image, tmp_path: Path) -> None:
    plain_clone(volume.layout)
    before = (volume.layout.comfyui / "main.py").read_bytes()
    adopt.carry_out(volume.layout, QUIET)
    for step in range(1, 200):
        if suffer(lambda: adopt.undo(volume.layout), step, "kill", tmp_path / "notes") == "done":
            break
        if adoptions(volume.layout):
            assert adopt.undo(volume.layout).data == {"undone": step}
        else:
            volume.adopt = "off"
            volume.boot(one)
        assert (volume.layout.comfyui / "main.py").read_bytes() == before
        adopt.carry_out(volume.layout, QUIET)
    assert step > 20
