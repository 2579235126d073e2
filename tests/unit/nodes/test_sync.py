from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod.errors import BusyError
from comfypod.nodes import check, listing, place, record
from comfypod.nodes.decide import Order
from comfypod.nodes.sync import Synced, sync
from comfypod.wish import Wish, of_word
from comfypod.workspace.aside import listed
from tests.kit.nodes import GOOD, HOSTILE, Recorded, make_site, publish
from tests.kit.repos import Repository, make_repository, write_tree
from tests.kit.web import serve

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.nodes.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "git" / "pack", {**GOOD, "data.txt": "1"}, tag="v1")


def run(site: Site, *wishes: Wish, install: Recorded | None = None, order: Order | None = None) -> Synced:
    return sync(site, {wish.name: wish for wish in wishes}, install or Recorded(), order)


def states(site: Site) -> dict[str, str]:
    return {row["name"]: row["state"] for row in listing.rows(site.layout, site.folder, ())}


def test_a_branch_is_installed_and_locked_to_its_commit(site: Site, repository: Repository) -> None:
    wish, first = of_word(repository.url), repository.git("rev-parse", "HEAD")
    assert run(site, wish).changed == ("pack",)
    repository.commit({"data.txt": "2"})
    assert run(site, wish) == Synced()
    assert (site.folder / "pack" / "data.txt").read_text() == "1"
    entry = record.read(site.layout).nodes["pack"]
    assert (entry.state, entry.commit, entry.ref) == ("installed", first, "HEAD")
    assert entry.digest == files.tree_facts(site.folder / "pack").digest
    assert not list(site.layout.staging.iterdir())
    assert states(site) == {"pack": "present"}


def test_what_is_in_place_is_kept_without_asking_anyone(
    site: Site, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = of_word(repository.url)
    run(site, wish)
    monkeypatch.setenv("PATH", "")
    assert run(site, wish) == Synced()
    assert run(site, wish, order=Order(network=False)) == Synced()


def test_without_a_network_what_is_not_there_is_named_and_fetched_when_there_is_one(
    site: Site, repository: Repository
) -> None:
    wish = replace(of_word(repository.url), required=True)
    done = run(site, wish, order=Order(network=False))
    assert (list(done.failed), done.lacking) == (["pack"], ("pack",))
    assert "COMFYPOD_OFFLINE" in done.failed["pack"]
    assert run(site, wish).changed == ("pack",)


def test_a_folder_that_is_lost_comes_back_at_the_locked_commit(site: Site, repository: Repository) -> None:
    wish = of_word(repository.url)
    run(site, wish)
    files.remove_tree(site.folder / "pack")
    repository.commit({"data.txt": "2"})
    assert run(site, wish).changed == ("pack",)
    assert (site.folder / "pack" / "data.txt").read_text() == "1"


def test_an_upgrade_takes_the_newest_commit_and_keeps_what_was_there(site: Site, repository: Repository) -> None:
    wish = of_word(repository.url)
    run(site, wish)
    assert run(site, wish, order=Order(upgrade=("pack",))) == Synced()
    repository.commit({"data.txt": "2"})
    (site.folder / "pack" / "mine.txt").write_text("mine")
    assert run(site, wish, order=Order(upgrade=("pack",))).changed == ("pack",)
    assert (site.folder / "pack" / "data.txt").read_text() == "2"
    assert (site.layout.set_aside / "pack-1" / "mine.txt").read_text() == "mine"


def test_a_new_reference_that_does_not_import_leaves_the_old_in_place(site: Site, repository: Repository) -> None:
    run(site, of_word(repository.url))
    repository.commit({"__init__.py": "raise ValueError('new')"}, tag="v2")
    done = run(site, of_word(f"{repository.url}@v2"))
    assert done.failed == {"pack": "ValueError: new"}
    assert (site.folder / "pack" / "__init__.py").read_text() == GOOD["__init__.py"]
    assert states(site) == {"pack": "present"}
    assert not run(site, of_word(f"{repository.url}@v2")).changed


def test_a_users_folder_of_the_name_is_never_replaced(site: Site, repository: Repository) -> None:
    write_tree(site.folder / "pack", {"mine.py": "mine"})
    assert run(site, of_word(repository.url)) == Synced()
    assert os.listdir(site.folder / "pack") == ["mine.py"]
    (site.folder / "pack").rename(site.folder / "pack.disabled")
    assert run(site, of_word(repository.url)) == Synced()
    assert states(site) == {"pack.disabled": "disabled"}


def test_c3_nodes_that_raise_exit_segfault_or_hang_are_named_and_the_others_work(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = check.imports
    monkeypatch.setattr(check, "imports", lambda site, nodes, tick=None: plain(site, nodes, seconds=2.0, tick=tick))
    wishes = [
        of_word(make_repository(tmp_path / "git" / name, {"__init__.py": text}).url) for name, text in HOSTILE.items()
    ]
    wishes += [of_word(make_repository(tmp_path / "git" / name, GOOD).url) for name in ("one", "two")]
    done = run(site, *wishes)
    assert sorted(done.changed) == ["one", "two"]
    reasons = {name: done.failed[name] for name in HOSTILE}
    assert reasons["raises"] == "RuntimeError: no such luck"
    assert reasons["exits"] == "its import ends Python with exit code 3"
    assert "SIGSEGV" in reasons["segfaults"]
    assert "more than 2 s" in reasons["hangs"]
    assert reasons["lacks"] == "ModuleNotFoundError: No module named 'not_there_at_all'"
    assert "NODE_CLASS_MAPPINGS" in reasons["empty"]
    assert sorted(os.listdir(site.folder)) == ["one", "two"]
    assert states(site) == {**dict.fromkeys(HOSTILE, "failed"), "one": "present", "two": "present"}


def test_c4_requirements_of_one_in_twenty_do_not_resolve_and_nineteen_work(site: Site, tmp_path: Path) -> None:
    def node(number: int) -> Wish:
        lines = f"# it needs\nlib-{number} >= 1  # this\n--extra-index-url http://elsewhere\n"
        return of_word(make_repository(tmp_path / "git" / f"n{number}", {**GOOD, "requirements.txt": lines}).url)

    install = Recorded(fails=("lib-7 >= 1",), keeps={"lib-3 >= 1": "lib-3==0.9"})
    done = run(site, *map(node, range(20)), install=install)
    assert len(install.calls) == 1
    assert install.calls[0]["n3"] == ("lib-3 >= 1",)
    assert done.failed == {"n7": "no version fits lib-7 >= 1"}
    assert len(done.changed) == 19
    assert "lib-3==0.9 stays" in record.read(site.layout).nodes["n3"].reason


def test_an_install_script_runs_before_the_import_and_its_failure_is_the_nodes(site: Site, tmp_path: Path) -> None:
    script = "import os, pathlib\npathlib.Path('made.py').write_text(repr(os.environ['PIP_CONSTRAINT']))\n"
    good = make_repository(
        tmp_path / "git" / "good", {"__init__.py": "from . import made\nNODE_CLASS_MAPPINGS = {}", "install.py": script}
    )
    bad = make_repository(tmp_path / "git" / "bad", {**GOOD, "install.py": "raise SystemExit('no compiler')"})
    done = run(site, of_word(good.url), of_word(bad.url))
    assert done.changed == ("good",)
    assert str(site.layer.constraints) in (site.folder / "good" / "made.py").read_text()
    assert done.failed["bad"] == "its install.py failed: no compiler"


def test_a_failure_of_the_node_is_not_tried_at_each_boot_and_one_of_the_network_is(
    site: Site, repository: Repository
) -> None:
    wish = of_word(f"{repository.url}@next")
    assert "no commit, tag or branch" in run(site, wish).failed["pack"]
    repository.git("checkout", "--quiet", "-b", "next")
    repository.commit({"__init__.py": "raise ValueError('bad')"})
    assert run(site, wish).failed["pack"] == "ValueError: bad"
    repository.commit(GOOD)
    assert run(site, wish).failed["pack"] == "ValueError: bad"
    assert run(site, wish, order=Order(again=True)).changed == ("pack",)


def test_a2_half_a_clone_is_seen_set_aside_and_never_imported(site: Site, repository: Repository) -> None:
    for name in ("pack", "stray"):
        (site.folder / name / ".git" / "objects").mkdir(parents=True)
    write_tree(site.folder / "mid", {".git/index.lock": "", "__init__.py": "half"})
    write_tree(site.folder / "own", {".git/HEAD": "ref", "__init__.py": "mine"})
    done = run(site, of_word(repository.url))
    assert done.changed == ("pack",)
    assert (site.folder / "pack" / "data.txt").exists()
    assert sorted(os.listdir(site.folder)) == ["own", "pack"]
    assert [each.name for each in listed(site.layout)] == ["mid-1", "pack-1", "stray-1"]
    assert states(site) == {"mid": "incomplete", "own": "present", "pack": "present", "stray": "incomplete"}
    assert len(done.problems) == 3


def test_a_node_of_the_registry_is_locked_to_its_version_and_archive(site: Site) -> None:
    with serve() as web:
        publish(web, "pack", "1.0.0", GOOD)
        site = replace(site, registry=web.url)
        assert run(site, of_word("registry:pack")).changed == ("pack",)
        publish(web, "pack", "1.1.0", {**GOOD, "new.py": ""})
        assert run(site, of_word("registry:pack")) == Synced()
        assert run(site, of_word("registry:pack"), order=Order(upgrade=("pack",))).changed == ("pack",)
        assert record.read(site.layout).nodes["pack"].version == "1.1.0"
        assert (site.folder / "pack" / ".tracking").read_text() == "__init__.py\nnew.py"
        publish(web, "pack", "1.0.0", {**GOOD, "evil.py": ""})
        refused = run(site, of_word("registry:pack@1.0.0")).failed["pack"]
        assert "and had" in refused
        publish(web, "bad", "1", GOOD, status="NodeVersionStatusBanned")
        assert "is banned" in run(site, of_word("registry:bad")).failed["bad"]


def test_g8_an_archive_of_the_registry_cannot_leave_its_folder(site: Site) -> None:
    with serve() as web:
        publish(web, "pack", "1", {**GOOD, "../../../escaped.py": "x"})
        assert "outside its folder" in run(replace(site, registry=web.url), of_word("registry:pack")).failed["pack"]
    assert not list(site.layout.root.rglob("escaped.py"))


def test_submodules_come_along(site: Site, repository: Repository, tmp_path: Path) -> None:
    inner = make_repository(tmp_path / "git" / "inner", {"part.py": "x = 1\n"})
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.url, "inner")
    repository.commit({"__init__.py": "from .inner import part\nNODE_CLASS_MAPPINGS = {}"})
    assert run(site, of_word(repository.url)).changed == ("pack",)


def test_two_do_not_install_at_once(site: Site) -> None:
    lock = files.FolderLock(site.layout.nodes_lock)
    lock.acquire()
    with pytest.raises(BusyError, match="another process"):
        run(site)
    lock.release()
    assert run(site) == Synced()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_g8_what_stands_in_the_place_of_the_staging_area_is_set_aside_and_not_followed(
    site: Site, repository: Repository, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "elsewhere" / "node-pack").mkdir(parents=True)
    (tmp_path / "elsewhere" / "node-pack" / "mine").write_text("precious")
    if kind == "link":
        site.layout.staging.symlink_to(tmp_path / "elsewhere")
    else:
        site.layout.staging.write_text("precious")
    done = run(site, of_word(repository.url))
    assert done.changed == ("pack",)
    assert [problem.message for problem in done.problems] == [f"{site.layout.staging} was set aside: it is no folder"]
    assert (tmp_path / "elsewhere" / "node-pack" / "mine").read_text() == "precious"
    assert os.listdir(tmp_path / "elsewhere") == ["node-pack"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": []}', '{"nodes": {"../x": {"state": "placing"}}}', "\0"])
def test_g8_a_record_that_makes_no_sense_is_none(site: Site, text: str) -> None:
    site.layout.nodes.write_text(text)
    assert record.read(site.layout) == record.Record()
    assert place.settle(site.layout, site.folder) == ()


def test_what_a_record_holds_of_the_wrong_type_is_left_out(site: Site) -> None:
    rows = {"a": {"state": "installed", "commit": 3}, "b": {"state": "odd"}, "c": {"state": "failed", "more": 1}}
    site.layout.nodes.write_text(json.dumps({"nodes": rows, "archives": {"x": 1, "y": "z"}}))
    assert record.read(site.layout) == record.Record({"c": record.Entry("failed")}, {"y": "z"})
