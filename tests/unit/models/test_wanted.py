from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.models import packs
from comfypod.models.file import ModelFile
from comfypod.models.places import Places
from comfypod.models.site import Site, site_of
from comfypod.models.source import Endpoints
from comfypod.models.wanted import files_of, plan_of, saved_names
from comfypod.models.wish import Wish, of_word
from comfypod.settings import resolve
from comfypod.workspace.layout import Layout
from tests.kit import web
from tests.kit.web import Answer

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://huggingface.co/o/r/resolve/main/m.safetensors"


def workflow(name: str, **models: str) -> dict[str, Any]:
    """Return a workflow of the editor's that loads one checkpoint."""
    said = [{"name": name, "directory": "checkpoints", **models}] if models else []
    node = {
        "id": 1, "type": "CheckpointLoaderSimple", "widgets_values": [name], "properties": {"models": said},
    }  # fmt: skip
    return {"nodes": [node], "links": [], "version": 0.4}


def write(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    packages = tmp_path / "site-packages"
    write(
        packages / "comfyui_workflow_templates_media" / "templates" / "small.json",
        workflow("m.safetensors", url=URL),
    )
    return Site(layout, Places(layout.comfyui / "models"), site_packages=packages, offline=True)


def test_a_pack_is_one_of_the_volume_or_one_that_is_shipped(site: Site) -> None:
    own = Wish("pack", "own", (ModelFile("own/a", "https://h/a", "loras", "a", pack="own"),), required=True)
    single = Wish("files", "one", (ModelFile("one", "https://h/b", "loras", "b"),))
    known = (own, single)
    assert files_of([Wish("pack", "own")], site, known) == (own.files, ())
    assert files_of([Wish("pack", "one")], site, known) == (single.files, ())
    assert files_of([own], site, known) == ((replace(own.files[0], required=True),), ())
    for name, files in packs.shipped().items():
        assert files_of([Wish("pack", name)], site, ()) == (files, ())
    files, (problem,) = files_of([Wish("pack", "nope"), single], site, known)
    assert files == single.files
    assert "'nope'" in problem.message
    assert "sdxl" in problem.hint


def test_a_template_leads_to_its_files_without_a_network(site: Site) -> None:
    (file,), problems = files_of([of_word("template:small")], site, ())
    assert problems == ()
    assert (file.name, file.place, file.url, file.pack) == (
        "template:small/m.safetensors", "checkpoints/m.safetensors", URL, "template:small",
    )  # fmt: skip
    (row,) = plan_of([file], site).rows
    assert (row.state, row.file.size) == ("fetch", 0)


def test_a_workflow_is_read_from_where_it_is_saved_and_the_templates_know_its_files(site: Site) -> None:
    saved = site.layout.comfyui / "user" / "default" / "workflows"
    write(saved / "mine.json", workflow("m.safetensors"))
    write(site.layout.root / "other.json", workflow("sub/unknown.safetensors"))
    for word in ("workflow:mine", "workflow:mine.json", f"workflow:{saved / 'mine.json'}"):
        (file,), _ = files_of([of_word(word)], site, ())
        assert (file.place, file.url) == ("checkpoints/m.safetensors", URL)
    (file,), _ = files_of([of_word("workflow:other.json")], site, ())
    assert (file.place, file.url) == ("checkpoints/sub/unknown.safetensors", "")
    assert [row.state for row in plan_of([file], site).rows] == ["unknown"]
    assert saved_names(site.layout) == (frozenset({"m.safetensors"}), ())
    write(saved / "large.json", {"nodes": " " * (9 << 20)})
    elsewhere = site.layout.root / "elsewhere"
    write(elsewhere / "linked.json", workflow("linked.safetensors"))
    (saved / "more").symlink_to(elsewhere)
    (saved / "circle").symlink_to(saved)
    names, (problem,) = saved_names(site.layout)
    assert names == {"m.safetensors", "linked.safetensors"}
    assert "large.json" in problem.message


def test_d7_a_name_in_a_workflow_that_leaves_its_folder_is_left_out_and_named(site: Site) -> None:
    write(site.layout.root / "bad.json", workflow("../../x.safetensors", url=URL))
    files, (problem,) = files_of([of_word("workflow:bad.json")], site, ())
    assert files == ()
    assert "x.safetensors" in problem.message


@pytest.mark.parametrize("url", ["javascript:x", "file:///etc/passwd", "https://", "hf:../x", "\x1b[2J"])
def test_g8_an_address_of_a_workflows_that_is_none_is_left_out(site: Site, url: str) -> None:
    write(site.layout.root / "bad.json", workflow("m2.safetensors", url=url))
    files, _ = files_of([of_word("workflow:bad.json")], site, ())
    assert [(row.state, row.file.url) for row in plan_of(files, site).rows] == [("unknown", "")]


def test_what_leads_nowhere_is_named_and_the_rest_counts(site: Site) -> None:
    write(site.layout.root / "none.json", {"nothing": 1})
    words = ("template:nope", "workflow:missing.json", "workflow:none.json", "loras=https://h/a.safetensors")
    files, problems = files_of(map(of_word, words), site, ())
    assert [file.place for file in files] == ["loras/a.safetensors"]
    assert len(problems) == 3
    (nowhere,) = files_of([of_word("template:small")], replace(site, site_packages=None), ())[1]
    assert "templates" in nowhere.message


def test_an_address_alone_gets_the_folder_that_the_templates_know(site: Site) -> None:
    known, other = files_of([of_word(URL), of_word("https://h/other.safetensors")], site, ())[0]
    assert (known.place, other.folder) == ("checkpoints/m.safetensors", "")
    assert [row.state for row in plan_of([known, other], site).rows] == ["fetch", "refused"]


def test_hosts_are_asked_of_what_is_not_here_alone(site: Site, tmp_path: Path) -> None:
    with web.serve() as server:
        server.answers["/a.safetensors"] = Answer(b"x" * 1000)
        here = site.places.live / "loras" / "here.bin"
        here.parent.mkdir(parents=True)
        here.write_bytes(b"12345")
        site = replace(site, offline=False, endpoints=Endpoints(server.url, server.url))
        files = [
            ModelFile("a", f"{server.url}/a.safetensors", "loras", "a.safetensors"),
            ModelFile("here", f"{server.url}/here.bin", "loras", "here.bin"),
            ModelFile("known", f"{server.url}/k.safetensors", "loras", "k.safetensors", "ab" * 32, 7),
            ModelFile("gone", f"{server.url}/gone.safetensors", "loras", "gone.safetensors"),
        ]
        plan = plan_of(files, site)
        assert {path for _, path in server.requests} == {"/a.safetensors", "/gone.safetensors"}
    states = {row.file.name: (row.state, row.file.size) for row in plan.rows}
    assert states == {"a": ("fetch", 1000), "here": ("have", 5), "known": ("fetch", 7), "gone": ("fetch", 0)}
    assert (plan.bytes, plan.unsized) == (1007, 1)
    assert "404" in next(row.file.trouble for row in plan.rows if row.file.name == "gone")


def test_g6_tokens_are_for_their_hosts_and_for_the_mirror_that_was_chosen(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    environ = {"HF_TOKEN": "hf", "CIVITAI_TOKEN": "ci", "HF_ENDPOINT": "https://mirror.example/hf/"}
    site = site_of(resolve({}, environ, {}), layout, Places(tmp_path), None)
    assert site.terms.tokens == {"huggingface.co": "hf", "mirror.example": "hf", "civitai.com": "ci"}
    assert (site.tokens, site.endpoints.hugging_face) == (("HF_TOKEN", "CIVITAI_TOKEN"), "https://mirror.example/hf")
    bare = site_of(resolve({}, {"COMFYPOD_DOWNLOAD_RATE": "5M"}, {}), layout, Places(tmp_path), None)
    assert (bare.terms.tokens, bare.tokens, bare.terms.rate) == ({}, (), 5 << 20)
