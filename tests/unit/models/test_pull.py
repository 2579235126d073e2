from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod.download.order import Terms
from comfypod.errors import ComfypodError, IntegrityError, SourceError, UsageError
from comfypod.models import notes, record
from comfypod.models.file import ModelFile
from comfypod.models.places import Places
from comfypod.models.pull import Outcome, pull
from comfypod.models.site import Site
from comfypod.workspace.layout import Layout
from tests.kit import web
from tests.kit.killer import suffer
from tests.kit.models import write_safetensors
from tests.kit.web import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@pytest.fixture
def server() -> Iterator[web.Site]:
    with web.serve() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path) -> Site:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    return Site(layout, Places(layout.comfyui / "models"), Terms(connections=1))


def publish(server: web.Site, tmp_path: Path, name: str, value: float = 1) -> ModelFile:
    """Put a small model on the server; return the wish for it."""
    path = tmp_path / "published.safetensors"
    write_safetensors(path, {"a": ((100,), [value] * 100)})
    server.answers[f"/{name}"] = Answer(path.read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFile(name, f"{server.url}/{name}", "loras", name, digest, path.stat().st_size)


def run(site: Site, *files: ModelFile) -> list[Outcome]:
    return pull(files, site, lambda _so_far, _total: None)


def gets(server: web.Site) -> list[str]:
    return [path for method, path in server.requests if method == "GET"]


def everything(site: Site) -> Sequence[str]:
    """Return all files below `models`."""
    live = site.places.live
    return sorted(path.relative_to(live).as_posix() for path in live.rglob("*") if not path.is_dir())


def test_a_file_is_fetched_put_into_its_place_and_written_down(server: web.Site, site: Site, tmp_path: Path) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    said: list[tuple[int, int]] = []
    assert pull([file], site, lambda *now: said.append(now)) == [Outcome(file)]
    path = site.path(file)
    assert path.read_bytes() == server.answers["/a.safetensors"].body
    entry = record.ours(site.layout, site.places.live)[file.place]
    assert (entry.url, entry.sha256, entry.size, entry.by) == (file.url, file.sha256, file.size, "a.safetensors")
    assert said[-1] == (file.size, file.size)


def test_a_digest_that_nobody_knew_is_known_from_then_on(server: web.Site, site: Site, tmp_path: Path) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    run(site, replace(file, sha256="", size=0))
    assert record.read(site.layout)[file.place].sha256 == file.sha256


def test_d6_contents_that_several_want_are_fetched_once(server: web.Site, site: Site, tmp_path: Path) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    others = [replace(file, name="other", folder="vae"), replace(file, folder="loras/sub", url="https://mirror/x")]
    assert run(site, file, *others) == [Outcome(file), *(Outcome(each, shared=True) for each in others)]
    assert gets(server) == ["/a.safetensors"]
    assert len({site.path(each).stat().st_ino for each in (file, *others)}) == 1
    later = replace(file, folder="checkpoints")
    assert run(site, later) == [Outcome(later, shared=True)]
    assert gets(server) == ["/a.safetensors"]
    assert set(record.ours(site.layout, site.places.live)) == {each.place for each in (file, *others, later)}


def test_d6_what_could_not_be_fetched_for_one_is_not_there_for_the_other(
    server: web.Site, site: Site, tmp_path: Path
) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    good = publish(server, tmp_path, "good.safetensors", 2)
    server.answers["/a.safetensors"] = Answer(status=404)
    outcomes = {each.file: each.error for each in run(site, file, replace(file, folder="vae"), good)}
    assert isinstance(outcomes[file], SourceError)
    assert outcomes[file] is outcomes[replace(file, folder="vae")]
    assert outcomes[good] is None
    assert everything(site) == ["loras/good.safetensors"]


def test_a_failure_is_told_and_noted_while_the_others_are_fetched_and_taken_back_when_it_is_tried_again(
    server: web.Site, site: Site, tmp_path: Path
) -> None:
    file, good = publish(server, tmp_path, "a.safetensors"), publish(server, tmp_path, "good.safetensors", 2)
    other = replace(file, folder="vae")
    found = server.answers.pop("/a.safetensors")
    told: list[tuple[str, bool]] = []

    def tell(failed: ModelFile, state: str, reason: str) -> None:
        if state == "waiting":
            return
        assert "answered 404" in reason
        assert "check the address" in reason
        assert notes.read(site.layout)[failed.place].reason == reason
        told.append((failed.place, site.path(good).exists()))
        server.answers["/good.safetensors"] = body

    # It has nothing to send before the others have failed.
    body = server.answers["/good.safetensors"]
    server.answers["/good.safetensors"] = Answer(status=503, headers={"Retry-After": "1"})
    outcomes = pull([good, file, other], site, lambda *_: None, tell)
    assert told == [("loras/a.safetensors", False), ("vae/a.safetensors", False)]
    assert (
        {each.file.place for each in outcomes if each.error}
        == set(notes.read(site.layout))
        == {file.place, other.place}
    )
    server.answers["/a.safetensors"] = found
    assert all(each.error is None for each in run(site, file, other))
    assert notes.read(site.layout) == {}


def test_another_address_may_have_what_the_first_one_has_not(server: web.Site, site: Site, tmp_path: Path) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    server.answers["/b.safetensors"] = server.answers.pop("/a.safetensors")
    other = replace(file, url=file.url.replace("/a.", "/b."), folder="vae")
    outcomes = {each.file: each.error for each in run(site, file, other)}
    assert isinstance(outcomes[file], SourceError)
    assert outcomes[other] is None


def test_d3_what_is_no_model_takes_no_place_and_is_not_written_down(
    server: web.Site, site: Site, tmp_path: Path
) -> None:
    server.answers["/a.safetensors"] = Answer(b"whatever this is, it is no model")
    (done,) = run(site, ModelFile("a", f"{server.url}/a.safetensors", "loras", "a.safetensors"))
    assert isinstance(done.error, IntegrityError)
    assert "not safetensors" in done.error.message
    assert (everything(site), record.read(site.layout)) == ([], {})


@pytest.mark.parametrize("place", ["loras", "vae"])
def test_d7_a_link_out_of_the_tree_is_not_followed(server: web.Site, site: Site, tmp_path: Path, place: str) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    (tmp_path / "outside").mkdir()
    site.places.live.mkdir(parents=True)
    (site.places.live / place).symlink_to(tmp_path / "outside")
    outcomes = {each.file.folder: each.error for each in run(site, file, replace(file, folder="vae"))}
    assert isinstance(outcomes[place], UsageError)
    assert os.listdir(tmp_path / "outside") == []


def test_what_the_user_put_there_meanwhile_is_not_touched_and_not_ours(
    server: web.Site, site: Site, tmp_path: Path
) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    other = replace(file, folder="vae")
    for each in (file, other):
        site.path(each).parent.mkdir(parents=True)
        site.path(each).write_bytes(b"user's")
    assert all(isinstance(done.error, ComfypodError) for done in run(site, file, other))
    assert site.path(file).read_bytes() == site.path(other).read_bytes() == b"user's"
    assert record.ours(site.layout, site.places.live) == {}


def test_d8_killed_at_any_step_a_pull_leaves_whole_files_that_are_written_down_and_goes_on(
    server: web.Site, site: Site, tmp_path: Path
) -> None:
    file = publish(server, tmp_path, "a.safetensors")
    files = (file, replace(file, folder="vae"))
    notes = tmp_path / "notes"

    def once(root: Path, step: int) -> tuple[Site, str]:
        here = replace(site, layout=Layout(root), places=Places(root / "ComfyUI" / "models"))
        here.layout.records.mkdir(parents=True)
        return here, suffer(lambda: run(here, *files), step, "kill", notes)

    _, ended = once(tmp_path / "whole", 0)
    assert ended == "done"
    steps = len(notes.read_text().splitlines())
    assert steps > 10
    for step in range(1, steps + 1):
        here, ended = once(tmp_path / str(step), step)
        assert ended == "killed"
        whole = server.answers["/a.safetensors"].body
        ours = record.ours(here.layout, here.places.live)
        assert set(everything(here)) <= {each.place for each in files}
        for place in everything(here):
            assert (here.places.live / place).read_bytes() == whole
        assert set(ours) == set(everything(here))
        left = [each for each in files if not here.path(each).exists()]
        assert all(done.error is None for done in run(here, *left))
        assert set(record.ours(here.layout, here.places.live)) == {each.place for each in files}
        assert everything(here) == sorted(each.place for each in files)
