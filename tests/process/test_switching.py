"""Changes of a workspace's core, killed or refused by the disk at each durable step: the next boot completes them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest

from comfypod import release as releases
from comfypod.host import adopt
from comfypod.workspace import core
from comfypod.workspace.adopt import adoptions
from tests.kit.killer import suffer
from tests.kit.strangers import ai_dock_storage, plain_clone, runpod_slim
from tests.kit.volumes import Volume, database, image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from comfypod.workspace.switch import Image


@dataclass(frozen=True)
class Change:
    """A volume as it is before, and what is done to it; the boot after must bring it to the same end.

    What was asked for by hand and is undone has not happened yet (`pending`): the user asks again.
    """

    volume: Volume
    work: Callable[[Volume], object]
    image: Image
    pending: Callable[[Volume], bool] = lambda _: False

    def complete(self, volume: Volume) -> None:
        """Boot, as after a fault."""
        volume.boot(self.image)
        if self.pending(volume):
            self.work(volume)


def _images(folder: Path) -> tuple[Image, Image, Image]:
    return image(folder, "1"), image(folder, "2"), image(folder, "3")


def _used(volume: Volume) -> None:
    """Do what users do."""
    volume.write("custom_nodes/pack/__init__.py")
    volume.write("models/vae/mine.bin")
    volume.write("user/default/workflows/mine.json")
    volume.write("notes.txt")
    volume.write("comfy/ldm/model.py", "edited")
    volume.write("comfy/mine.py")


def _first_run(folder: Path) -> Change:
    one, _, _ = _images(folder)
    volume = Volume(folder / "before")
    volume.layout.records.mkdir(parents=True)
    return Change(volume, lambda each: each.boot(one), one)


def _first_run_with_links(folder: Path) -> Change:
    change = _first_run(folder)
    change.volume.persist = "link"
    return change


def _upgrade(folder: Path) -> Change:
    one, two, _ = _images(folder)
    volume = Volume(folder / "before")
    volume.boot(one)
    _used(volume)
    volume.write("extra_2/mine.py")
    database(volume.layout.comfyui / "user" / "comfyui.db", "0001_x")
    return Change(volume, lambda each: each.boot(two), two)


def _upgrade_with_names_missing(folder: Path) -> Change:
    change = _upgrade(folder)
    (change.volume.layout.comfyui / "main.py").unlink()
    shutil.rmtree(change.volume.layout.comfyui / "alembic_db")
    return change


def _second_upgrade(folder: Path) -> Change:
    """The release before the last goes, what a user had changed in it does not."""
    change = _upgrade(folder)
    change.volume.boot(image(folder, "2"))
    core.settle(change.volume.layout)
    three = image(folder, "3")
    return Change(change.volume, lambda each: each.boot(three), three)


def _upgrade_on_trial(folder: Path) -> Change:
    """A release that has never been ready goes, the one before it is still kept."""
    change = _upgrade(folder)
    change.volume.boot(image(folder, "2"))
    change.volume.write("comfyui_version.py", "edited in two")
    three = image(folder, "3")
    return Change(change.volume, lambda each: each.boot(three), three)


def _back_to_the_image_before(folder: Path) -> Change:
    change = _upgrade(folder)
    change.volume.boot(image(folder, "2"))
    database(change.volume.layout.comfyui / "user" / "comfyui.db", "0002_x")
    one = image(folder, "1")
    return Change(change.volume, lambda each: each.boot(one), one)


def _rollback(folder: Path) -> Change:
    change = _upgrade(folder)
    two = image(folder, "2")
    change.volume.boot(two)
    return Change(
        change.volume,
        lambda each: core.go_back(each.layout, two.release, two.environment, "asked for"),
        two,
        lambda each: _release(each) == two.release,
    )


def _release(volume: Volume) -> str:
    here = releases.read(volume.layout.comfyui)
    return here.name if here is not None else ""


def _adoption(folder: Path) -> Change:
    """Another's core gives way, beside a workspace of one that stands elsewhere."""
    one, _, _ = _images(folder)
    volume = Volume(folder / "before", adopt="auto")
    volume.layout.records.mkdir(parents=True)
    plain_clone(volume.layout)
    runpod_slim(volume.layout)
    ai_dock_storage(volume.layout)
    return Change(volume, lambda each: each.boot(one), one)


def _adoption_with_links(folder: Path) -> Change:
    change = _adoption(folder)
    change.volume.persist = "link"
    return change


def _adoption_beside_a_release(folder: Path) -> Change:
    """User folders that stand elsewhere take the place of those that a release has brought."""
    one, _, _ = _images(folder)
    volume = Volume(folder / "before")
    volume.boot(one)
    runpod_slim(volume.layout)
    volume.adopt = "auto"
    return Change(volume, lambda each: each.boot(one), one)


def _adoption_undone(folder: Path) -> Change:
    change = _adoption(folder)
    change.volume.boot(change.image)
    change.volume.adopt = "off"
    _used(change.volume)
    return Change(
        change.volume,
        lambda each: adopt.undo(each.layout),
        change.image,
        lambda each: bool(adoptions(each.layout)),
    )


def _repair(folder: Path) -> Change:
    change = _first_run(folder)
    change.volume.boot(change.image)
    shutil.rmtree(change.volume.layout.comfyui / "comfy")
    return change


def _to_links(folder: Path) -> Change:
    change = _first_run(folder)
    change.volume.boot(change.image)
    _used(change.volume)
    change.volume.persist = "link"
    return change


def _upgrade_of_links(folder: Path) -> Change:
    one, two, _ = _images(folder)
    volume = Volume(folder / "before", persist="link")
    volume.boot(one)
    volume.write("own.txt")
    return Change(volume, lambda each: each.boot(two), two)


_CHANGES = {
    "first run": _first_run,
    "first run, links": _first_run_with_links,
    "upgrade": _upgrade,
    "upgrade, names missing": _upgrade_with_names_missing,
    "second upgrade": _second_upgrade,
    "upgrade while on trial": _upgrade_on_trial,
    "back to the image before": _back_to_the_image_before,
    "rollback": _rollback,
    "repair": _repair,
    "files to links": _to_links,
    "upgrade of links": _upgrade_of_links,
    "adoption": _adoption,
    "adoption, links": _adoption_with_links,
    "adoption beside a release": _adoption_beside_a_release,
    "adoption undone": _adoption_undone,
}


def _expected(folder: Path, change: Change) -> tuple[int, str, dict[str, str]]:
    """Do the change without a fault; return its durable steps, what a boot does after it, and what is there then."""
    volume = change.volume.copy(folder / "expected")
    assert suffer(partial(change.work, volume), 0, "kill", folder / "notes") == "done"
    steps = len((folder / "notes").read_text().splitlines())
    settled = volume.boot(change.image).plan.action
    return steps, settled, volume.contents()


@pytest.mark.slow
@pytest.mark.parametrize("name", _CHANGES)
@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
def test_b3_a1_a3_every_durable_step_of_a_change_may_be_the_last(
    tmp_path: Path, name: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow because no step is left out; each in a copy of its own, then booted again and compared file by file."""
    change = _CHANGES[name](tmp_path)
    steps, settled, expected = _expected(tmp_path, change)
    ends: dict[str, int] = {}
    for step in range(1, steps + 1):
        volume = change.volume.copy(tmp_path / "volume")
        end = suffer(partial(change.work, volume), step, fault, tmp_path / "notes")
        assert f"\n{step} " in "\n" + (tmp_path / "notes").read_text(), "this step was never reached"
        assert (end == "killed") == (fault == "kill")
        ends[end.split(":")[0]] = ends.get(end.split(":")[0], 0) + 1
        change.complete(volume)
        again = volume.boot(change.image)
        assert again.plan.action == settled, (step, end)
        assert volume.contents() == expected, (step, end, (tmp_path / "notes").read_text())
        shutil.rmtree(volume.root)
    assert sum(ends.values()) == steps > 10
    with capsys.disabled():
        print(f"\n{name}, {fault} at each of {steps} durable steps, booted again: {ends}")
