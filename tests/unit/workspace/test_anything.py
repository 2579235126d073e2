"""Whatever happens to a workspace, in whatever order: nothing of the user's is lost, the core is one release."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comfypod import release as releases
from comfypod.errors import StorageError
from comfypod.host import adopt
from comfypod.workspace import core
from tests.kit.killer import suffer
from tests.kit.volumes import Volume, image

_RELEASES = st.sampled_from("123")
_USERS = (
    "custom_nodes/pack/__init__.py", "custom_nodes/other.py", "models/vae/mine.bin", "models/kind_2/put_here",
    "input/example.png", "output/a.png", "user/default/mine.json", "notes.txt", "extra_2/mine.py", "top_3.py",
    "comfy/mine.py", "comfy/ldm/model.py", "main.py", "comfyui_version.py", "extra_1/code.py", "link.py",
)  # fmt: skip
_CORE = ("comfy", "main.py", "comfyui_version.py", "extra_1")


class Anything(RuleBasedStateMachine):
    """Boots of three releases, kills and disk errors at any step, edits, rollbacks, adoptions, another mount."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="comfypod-any-"))
        self.volume = Volume(self.folder / "workspace")
        self.images = {number: image(self.folder, number) for number in "123"}
        self.written: dict[str, str] = {}
        self.count = 0
        self.strange = False

    @initialize(persist=st.sampled_from(["auto", "link"]))
    def begin(self, persist: str) -> None:
        self.volume.persist = persist
        self.boot("1")

    @rule(number=_RELEASES)
    def boot(self, number: str) -> None:
        self.volume.boot(self.images[number])
        self.is_one_release()

    @rule(number=_RELEASES, step=st.integers(1, 120), fault=st.sampled_from(["kill", "ENOSPC", "EIO"]))
    def boot_with_a_fault(self, number: str, step: int, fault: str) -> None:
        suffer(lambda: self.volume.boot(self.images[number]), step, fault, self.folder / "notes")

    @rule(name=st.sampled_from(_USERS))
    def write(self, name: str) -> None:
        """Write to a name of the user's, or over a core file; what they had there before is gone by their own will."""
        path = self.volume.layout.comfyui / name
        if path.is_symlink() or any(parent.is_symlink() or parent.is_file() for parent in path.parents):
            return
        if not path.parent.is_dir() and name.partition("/")[0] not in ("custom_nodes", "models", "user", "extra_2"):
            return
        self.count += 1
        if path.is_file():
            before = path.read_text("latin-1")
            self.written = {text: place for text, place in self.written.items() if text != before}
        self.volume.write(name, f"mine {self.count}")
        self.written[f"mine {self.count}"] = name

    @rule(name=st.sampled_from([name for name in _USERS if name.partition("/")[0] in _CORE]), number=_RELEASES)
    def edit_the_core_and_boot(self, name: str, number: str) -> None:
        self.write(name)
        self.boot(number)

    @rule(name=st.sampled_from(["main.py", "comfy", "top_1.py", "alembic_db", "models/vae", "__pycache__"]))
    def delete(self, name: str) -> None:
        path = self.volume.layout.comfyui / name
        gone = [each for each in (path, *path.rglob("*")) if _is_ours(each)] if not path.is_symlink() else []
        texts = {each.read_text("latin-1") for each in gone}
        self.written = {text: place for text, place in self.written.items() if text not in texts}
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)

    @rule()
    def roll_back(self) -> None:
        with contextlib.suppress(StorageError):
            core.go_back(self.volume.layout, "2-000000000000", "env2", "asked for")

    @rule(persist=st.sampled_from(["auto", "move", "link"]), upgrade=st.sampled_from(["auto", "keep"]))
    def settings(self, persist: str, upgrade: str) -> None:
        self.volume.persist, self.volume.upgrade = persist, upgrade

    @precondition(lambda self: not self.strange)
    @rule(places=st.sets(st.sampled_from(["models/vae", "custom_nodes/theirs", "user/default/workflows"]), min_size=1))
    def find_what_another_image_left(self, places: set[str]) -> None:
        self.strange = True
        for place in places:
            self.count += 1
            path = self.volume.root / "runpod-slim" / "ComfyUI" / place / "theirs.txt"
            path.parent.mkdir(parents=True)
            path.write_text(f"mine {self.count}")
            self.written[f"mine {self.count}"] = f"../runpod-slim/ComfyUI/{place}/theirs.txt"

    @rule(number=_RELEASES)
    def adopt_and_boot(self, number: str) -> None:
        self.volume.layout.adopting.touch()
        self.boot(number)

    @rule(number=_RELEASES, step=st.integers(1, 60), fault=st.sampled_from(["kill", "ENOSPC", "EIO"]))
    def adopt_with_a_fault(self, number: str, step: int, fault: str) -> None:
        self.volume.layout.adopting.touch()
        self.boot_with_a_fault(number, step, fault)

    @rule(step=st.integers(1, 60), fault=st.sampled_from(["", "kill", "ENOSPC", "EIO"]))
    def give_back(self, step: int, fault: str) -> None:
        if fault:
            suffer(lambda: adopt.undo(self.volume.layout), step, fault, self.folder / "notes")
            return
        with contextlib.suppress(StorageError):
            adopt.undo(self.volume.layout)

    @rule()
    def ready(self) -> None:
        core.settle(self.volume.layout)

    @rule()
    def mount_elsewhere(self) -> None:
        self.count += 1
        place = self.folder / f"workspace{self.count}"
        self.volume.root.rename(place)
        self.volume.root = place

    def is_one_release(self) -> None:
        """After a boot: entries of one release alone, and of its files those that no user wrote over."""
        comfyui = self.volume.layout.comfyui
        here = releases.read(comfyui)
        assert here is not None
        assert releases.missing_entries(here, comfyui) == ()
        number = here.name[0]
        ours = {f"{stem}_{other}" for stem in ("extra", "top") for other in "123" if other != number}
        strangers = [path for path in comfyui.iterdir() if path.stem in ours and not self.is_users(path)]
        assert strangers == []
        for name in releases.changes(here, comfyui).users:
            assert self.is_users(comfyui / name), name
        assert not self.volume.layout.staging.exists()
        assert not self.volume.layout.journal.exists()

    def is_users(self, path: Path) -> bool:
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        return all(each.read_text("latin-1") in self.written for each in files)

    @invariant()
    def nothing_of_the_users_is_lost(self) -> None:
        there = {path.read_text("latin-1") for path in self.volume.root.rglob("*") if _is_ours(path)}
        assert self.written.keys() <= there

    @invariant()
    def files_outside_the_core_stay_where_they_are(self) -> None:
        stays = {*releases.USER_FOLDERS, "notes.txt", ".."}
        # An adoption puts another's workflows in the place of settings that were made here.
        stays -= {"user"} if self.strange else set()
        for text, name in self.written.items():
            top = name.partition("/")[0]
            if top in releases.USER_FOLDERS and (self.volume.layout.comfyui / top).is_symlink():
                # Written between a killed adoption and the boot that finished it: it went aside with its folder.
                places = [self.volume.layout.comfyui, *self.volume.layout.adopted.glob("*/ComfyUI")]
                assert text in {(place / name).read_text() for place in places if (place / name).is_file()}
            elif top in stays:
                assert (self.volume.layout.comfyui / name).read_text() == text

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


def _is_ours(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


TestAnything = pytest.mark.slow(Anything.TestCase)
TestAnything.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
