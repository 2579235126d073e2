"""Installing a node, killed or refused by the disk at each durable step: the next sync completes it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod.nodes import record
from comfypod.nodes.decide import Order
from comfypod.nodes.sync import sync
from comfypod.wish import of_word
from comfypod.workspace.layout import Layout
from tests.kit.killer import suffer
from tests.kit.nodes import GOOD, Recorded, make_site, publish
from tests.kit.repos import make_repository, write_tree
from tests.kit.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.nodes.site import Site
    from comfypod.wish import Wish


def _copy(site: Site, folder: Path) -> Site:
    """Return a site with a workspace of its own; the core and the environment are the same."""
    shutil.copytree(site.layout.root, folder, symlinks=True)
    return replace(site, layout=Layout(folder), folder=folder / "ComfyUI" / "custom_nodes")


def _seen(site: Site) -> dict[str, str]:
    """Return the digest of everything that ComfyUI would import."""
    paths = [path for path in site.folder.iterdir() if not path.name.endswith(".disabled")]
    return {path.name: files.tree_facts(path).digest for path in paths}


def _state(site: Site) -> tuple[dict[str, str], dict[str, str], list[str]]:
    states = {name: f"{entry.state} {entry.digest}" for name, entry in record.read(site.layout).nodes.items()}
    aside = site.layout.set_aside
    kept = [path.read_text() for path in sorted(aside.rglob("mine.txt"))] if aside.is_dir() else []
    return _seen(site), states, kept


@pytest.fixture(params=["new", "replaced", "registry"])
def change(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Site, Wish]]:
    """A site and the node that is about to be installed there."""
    site = make_site(tmp_path)
    write_tree(site.folder / "users", {"__init__.py": "mine"})
    repository = make_repository(tmp_path / "git" / "pack", {**GOOD, "data.txt": "1"}, tag="v1")
    if request.param == "registry":
        with serve() as web:
            publish(web, "pack", "1", {**GOOD, "data.txt": "1"})
            yield replace(site, registry=web.url), of_word("registry:pack")
        return
    if request.param == "replaced":
        first = of_word(f"{repository.url}@v1")
        sync(site, {"pack": first}, Recorded())
        (site.folder / "pack" / "mine.txt").write_text("mine")
        repository.commit({"data.txt": "2"}, tag="v2")
        yield site, of_word(f"{repository.url}@v2")
        return
    yield site, of_word(repository.url)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "ENOSPC"])
def test_a1_a2_every_durable_step_of_a_nodes_installation_may_be_the_last(
    tmp_path: Path, change: tuple[Site, Wish], fault: str
) -> None:
    """Slow because no step is left out: after each, what ComfyUI sees is whole, and another sync completes it."""
    site, wish = change
    work = lambda each: sync(each, {wish.name: wish}, Recorded())  # noqa: E731
    before = _seen(site)
    expected = _copy(site, tmp_path / "expected")
    assert suffer(partial(work, expected), 0, "kill", tmp_path / "notes") == "done"
    steps = len((tmp_path / "notes").read_text().splitlines())
    assert steps > 15
    whole = {*before.items(), *_seen(expected).items()}
    for step in range(1, steps + 1):
        found = _copy(site, tmp_path / "volume")
        end = suffer(partial(work, found), step, fault, tmp_path / "notes")
        assert (end == "killed") == (fault == "kill"), (step, end)
        assert set(_seen(found).items()) <= whole, (step, (tmp_path / "notes").read_text())
        sync(found, {wish.name: wish}, Recorded(), Order(again=True))
        assert _state(found) == _state(expected), (step, end, (tmp_path / "notes").read_text())
        assert not [name for name in os.listdir(found.folder) if name.endswith(".disabled")]
        assert not list(found.layout.staging.iterdir())
        shutil.rmtree(found.layout.root)
