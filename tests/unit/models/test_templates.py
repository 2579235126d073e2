"""Templates as packages install them: found by name alone, and known for the files that all of them name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.errors import UsageError
from comfypod.models import templates
from comfypod.models.needs import Need, Needs
from tests.kit.workflows import HUB, data, graph, node, said

if TYPE_CHECKING:
    from pathlib import Path


def _put(site_packages: Path, name: str, content: bytes, package: str = "json") -> None:
    folder = site_packages / f"comfyui_workflow_templates_{package}" / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(content)


def _vae(name: str, **more: str) -> bytes:
    return data(graph(node("VAELoader", name, models=[{**said(name, "vae"), **more}])))


def test_a_template_is_found_in_whichever_package_has_it(tmp_path: Path) -> None:
    _put(tmp_path, "one", b"1")
    _put(tmp_path, "two.app", b"2", "media_image")
    assert templates.find("one", tmp_path) == b"1"
    assert templates.find("two.app", tmp_path) == b"2"


@pytest.mark.parametrize("name", ["../other/one", "../secret", "a/one", "a\\one", "/one", "", ".", "..", "*", "on?"])
def test_d7_g8_a_template_s_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    site_packages = tmp_path / "site-packages"
    _put(site_packages, "one", b"1")
    folder = site_packages / "comfyui_workflow_templates_json"
    for place in (folder / "secret.json", folder / "other" / "one.json", folder / "templates" / "a" / "one.json"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"2")
    with pytest.raises(UsageError, match="no official template"):
        templates.find(name, site_packages)


def test_a_name_that_is_nearly_right_is_answered_with_those_that_are(tmp_path: Path) -> None:
    _put(tmp_path, "image_flux2", b"1")
    with pytest.raises(UsageError) as refused:
        templates.find("image_flux", tmp_path)
    assert refused.value.hint == "did you mean image_flux2?"
    with pytest.raises(UsageError):
        templates.find("image_flux2", tmp_path / "nowhere")


def test_the_index_leaves_out_what_is_no_template(tmp_path: Path) -> None:
    _put(tmp_path, "one", _vae("a.safetensors"))
    _put(tmp_path, "index.fr", b'[{"templates": []}]')
    _put(tmp_path, "broken", b"{")
    (tmp_path / "comfyui_workflow_templates_json" / "templates" / "folder.json").mkdir()
    index = templates.index(tmp_path)
    assert list(index.templates) == ["one"]
    assert index.templates["one"].complete


def test_a_file_that_a_workflow_leaves_open_is_known_from_the_templates_that_name_it(tmp_path: Path) -> None:
    digest = "ab" * 32
    _put(tmp_path, "one", _vae("a.safetensors", hash=digest, hash_type="SHA256"))
    _put(tmp_path, "two", _vae("a.safetensors"))
    index = templates.index(tmp_path)
    known = Need("a.safetensors", "vae", f"{HUB}/a.safetensors", digest)
    assert index.resolved(Needs((Need("a.safetensors"),))).needs == (known,)
    assert index.resolved(Needs((Need("sub/a.safetensors", "vae"),))).needs[0].complete
    for open_still in (Need("a.safetensors", "loras"), Need("b.safetensors", "vae")):
        assert index.resolved(Needs((open_still,))).needs == (open_still,)


def test_of_several_addresses_that_which_most_templates_give_counts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _put(tmp_path, name, _vae("a.pt", url="https://huggingface.co/often/repo/blob/main/a.pt?download=true"))
    _put(tmp_path, "three", _vae("a.pt", url="https://huggingface.co/a/once/resolve/main/a.pt"))
    assert templates.index(tmp_path).resolved(Needs((Need("a.pt"),))).needs[0].url == (
        "https://huggingface.co/often/repo/resolve/main/a.pt"
    )


def test_a_file_that_templates_have_in_two_folders_needs_its_node_to_say_which(tmp_path: Path) -> None:
    _put(tmp_path, "one", _vae("a.pt"))
    _put(tmp_path, "two", data(graph(node("CheckpointLoaderSimple", "a.pt", models=[said("a.pt", "checkpoints")]))))
    index = templates.index(tmp_path)
    assert index.resolved(Needs((Need("a.pt"),))).needs == (Need("a.pt"),)
    assert index.resolved(Needs((Need("a.pt", "vae"),))).needs[0].complete
