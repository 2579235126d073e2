from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from comfypod.copying import share_file
from comfypod.download import partial
from comfypod.download.partial import Kept, Partial
from comfypod.errors import StorageError
from comfypod.models import prune, record
from comfypod.models.file import ModelFile
from comfypod.models.places import Places
from comfypod.models.record import Entry
from comfypod.models.site import Site
from comfypod.workspace.layout import Layout

NAMES = ("loras/a", "loras/b", "vae/a", "vae/sub/c")


def site_in(root: Path) -> Site:
    layout = Layout(root)
    layout.records.mkdir(parents=True)
    return Site(layout, Places(layout.comfyui / "models"))


def wish(place: str) -> ModelFile:
    folder, _, name = place.rpartition("/")
    return ModelFile(name, f"https://h/{place}", folder, name)


def fetch(site: Site, place: str, data: bytes = b"fetched") -> None:
    """Put a file in place as a pull does."""
    path, staged = site.places.live / place, site.layout.records / "data"
    path.parent.mkdir(parents=True, exist_ok=True)
    staged.write_bytes(data)
    facts = staged.stat()
    record.note(site.layout, place, Entry(f"https://h/{place}", "", facts.st_size, facts.st_mtime_ns))
    staged.rename(path)


class Volume(RuleBasedStateMachine):
    """A volume on which comfypod fetches and prunes, and its user does as users do."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.site = site_in(self.root / "w")
        self.users: dict[str, bytes] = {}
        self.fetched: set[str] = set()
        self.wanted: set[str] = set()
        self.clock = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def path(self, place: str) -> Path:
        return self.site.places.live / place

    @rule(place=st.sampled_from(NAMES))
    def comfypod_fetches(self, place: str) -> None:
        if not os.path.lexists(self.path(place)):
            fetch(self.site, place)
            self.fetched.add(place)

    @rule(place=st.sampled_from(NAMES), same_size=st.booleans(), kept=st.booleans())
    def the_user_writes(self, place: str, same_size: bool, kept: bool) -> None:
        """Write anew, or into what is there; with a time of its own, as no two writes have the same."""
        self.clock += 1
        data = b"user's " if same_size else b"more of the user's "
        self.path(place).parent.mkdir(parents=True, exist_ok=True)
        if not kept:
            self.path(place).unlink(missing_ok=True)
        self.path(place).write_bytes(data)
        os.utime(self.path(place), ns=(self.clock, self.clock))
        self.users[place] = data
        self.fetched.discard(place)

    @rule(place=st.sampled_from(NAMES), to=st.sampled_from(NAMES))
    def the_user_moves(self, place: str, to: str) -> None:
        if place != to and self.path(place).is_file() and not os.path.lexists(self.path(to)):
            self.path(to).parent.mkdir(parents=True, exist_ok=True)
            self.path(place).rename(self.path(to))
            self.fetched.discard(place)
            self.users[to] = self.users.pop(place, b"fetched")
            known = record.read(self.site.layout).get(to)
            if known is not None and known.is_at(self.path(to)):
                # Back in its own place: it is the very file that was fetched to there.
                self.fetched.add(to)
                del self.users[to]

    @rule(place=st.sampled_from(NAMES))
    def the_user_deletes(self, place: str) -> None:
        self.path(place).unlink(missing_ok=True)
        self.users.pop(place, None)
        self.fetched.discard(place)

    @rule(places=st.sets(st.sampled_from(NAMES)))
    def other_models_are_wanted(self, places: set[str]) -> None:
        self.wanted = places

    @rule()
    def comfypod_prunes(self) -> None:
        found = prune.unwanted(self.site, prune.Wants(map(wish, self.wanted)))
        prune.remove(self.site, found)
        assert set(found) == self.fetched - self.wanted
        self.fetched &= self.wanted

    @invariant()
    def nothing_else_is_ever_removed(self) -> None:
        for place, data in getattr(self, "users", {}).items():
            assert self.path(place).read_bytes() == data
        for place in getattr(self, "fetched", ()):
            assert self.path(place).read_bytes() == b"fetched"


TestVolume = Volume.TestCase
TestVolume.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_what_is_changed_between_looking_and_removing_stays(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    fetch(site, "loras/a")
    found = prune.unwanted(site, prune.Wants(()))
    (site.places.live / "loras/a").write_bytes(b"user's now")
    assert (set(found), prune.remove(site, found)) == ({"loras/a"}, 0)
    assert (site.places.live / "loras/a").read_bytes() == b"user's now"


def test_a_file_is_kept_by_its_address_and_by_its_name_in_a_workflow(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    fetch(site, "loras/a")
    fetch(site, "loras/b")
    assert set(prune.unwanted(site, prune.Wants([ModelFile("a", "https://h/loras/a", "", "")]))) == {"loras/b"}
    assert set(prune.unwanted(site, prune.Wants((), {"b"}))) == {"loras/a"}


def test_only_the_last_name_of_contents_frees_them(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    fetch(site, "loras/a")
    (site.places.live / "vae").mkdir()
    record.note(site.layout, "vae/a", record.read(site.layout)["loras/a"])
    share_file(site.places.live / "loras/a", site.places.live / "vae/a")
    assert prune.remove(site, prune.unwanted(site, prune.Wants([wish("vae/a")]))) == 0
    assert prune.remove(site, prune.unwanted(site, prune.Wants(()))) == len(b"fetched")


def test_d7_nothing_is_removed_beyond_a_link_that_leads_out(tmp_path: Path) -> None:
    site = site_in(tmp_path / "w")
    fetch(site, "loras/a")
    (site.places.live / "loras").rename(tmp_path / "elsewhere")
    (site.places.live / "loras").symlink_to(tmp_path / "elsewhere")
    assert prune.unwanted(site, prune.Wants(())) == {}


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_in(tmp_path)
    fetch(site, "loras/a")
    found = prune.unwanted(site, prune.Wants(()))

    def refuse(_: Path) -> None:
        raise PermissionError(13, "no", "there")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match="cannot remove"):
        prune.remove(site, found)


def part(site: Site, place: str, url: str = "https://h/part") -> Path:
    """Leave a part of a file as a killed pull does; return its folder."""
    target = site.places.live / place
    folder = partial.folder_of(site.layout.downloads, target)
    folder.mkdir(parents=True)
    with contextlib.closing(Partial(folder)) as file:
        file.begin(Kept(os.path.relpath(target, file.site), url, 100), [(0, 10)])
    return folder


def test_parts_that_no_pull_goes_on_with_are_found_and_removed(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    by_place, by_name = part(site, "loras/wanted"), part(site, "vae/saved")
    by_address = part(site, "checkpoints/c", "https://civitai.com/api/download/models/7")
    nobody = part(site, "loras/nobody")
    there = part(site, "loras/there")
    fetch(site, "loras/there")
    nonsense = site.layout.downloads / ("0" * 24)
    nonsense.mkdir()
    (nonsense / "data").write_bytes(b"x" * 8192)
    wants = prune.Wants([wish("loras/wanted"), wish("loras/there"), ModelFile("c", "civitai:7", "", "")], {"saved"})
    found = prune.unwanted_parts(site, wants)
    assert {each.folder for each in found} == {nobody, there, nonsense}
    assert prune.remove_parts(site, found) == sum(each.taken for each in found) > 0
    assert set(site.layout.downloads.iterdir()) == {by_place, by_name, by_address}
    assert (site.places.live / "loras/there").read_bytes() == b"fetched"
