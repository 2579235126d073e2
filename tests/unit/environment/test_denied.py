from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.environment.denied import load, origins, parse
from comfypod.environment.dists import Dist
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from pathlib import Path


def _dist(name: str, version: str) -> Dist:
    return Dist(name, version, f"{name}-{version}.dist-info")


@pytest.mark.parametrize(("name", "version", "is_denied"), [
    ("ultralytics", "8.3.41", True), ("ultralytics", "8.3.42", True), ("ultralytics", "8.3.45", True),
    ("ultralytics", "8.3.46", True), ("ultralytics", "8.3.43", False), ("litellm", "1.82.7", True),
    ("litellm", "1.82.8", True), ("litellm", "1.82.6", False), ("torch", "8.3.41", False),
])  # fmt: skip
def test_packages_of_known_incidents_are_denied_by_version(
    tmp_path: Path, name: str, version: str, is_denied: bool
) -> None:
    denied, why = load(tmp_path / "none")
    assert why == ""
    assert (denied.package(_dist(name, version)) is not None) == is_denied


@pytest.mark.parametrize("name", ["ComfyUI_LLMVISION", "comfyui_llmvision", "COMFYUI_LLMVISION.py"])
def test_a_node_is_denied_by_its_name_however_it_is_written(tmp_path: Path, name: str) -> None:
    denied, _ = load(tmp_path / "none")
    assert denied.node(name) is not None
    assert denied.node("ComfyUI_Other") is None


@pytest.mark.parametrize("url", [
    "https://github.com/AppleBotzz/ComfyUI_LLMVISION", "https://github.com/applebotzz/comfyui_llmvision.git/",
    "git@github.com:AppleBotzz/ComfyUI_LLMVISION.git", "http://mirror.example/github/AppleBotzz/ComfyUI_LLMVISION.git",
])  # fmt: skip
def test_a_node_is_denied_by_where_it_was_cloned_from(tmp_path: Path, url: str) -> None:
    config = (
        f'[core]\n\tbare = false\n[remote "origin"]\n\turl = {url}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    )
    write_tree(tmp_path / "renamed", {".git/config": config})
    denied, _ = load(tmp_path / "none")
    assert denied.node("renamed", origins(tmp_path / "renamed")) is not None
    assert denied.node("renamed", ["https://github.com/somebody/else"]) is None


def test_a_volume_adds_to_the_list_and_takes_nothing_from_it(tmp_path: Path) -> None:
    own = tmp_path / "denied.toml"
    own.write_text('[[package]]\nname = "My_Package"\n[[package]]\nname = "ultralytics"\nversions = []\n')
    denied, why = load(own)
    assert why == ""
    assert denied.package(_dist("my-package", "1")) is not None
    assert denied.package(_dist("ultralytics", "8.3.41")) is not None
    own.write_text('[[package]]\nname = "ultralytics"\nversions = ["0"]\n')
    assert load(own)[0].package(_dist("ultralytics", "8.3.41")) is not None


@pytest.mark.parametrize("text", [
    "[", "\xff", "package = 1", "[[package]]\nversions = 3\n", "package = [3]", "[[node]]\nname = 3\n", "allowed = 3",
    "[[package]]\nname = 'x'\nversions = [1]\n", "a = " + "[" * 9000,
])  # fmt: skip
def test_a_list_that_cannot_be_used_leaves_the_shipped_one(tmp_path: Path, text: str) -> None:
    own = tmp_path / "denied.toml"
    own.write_bytes(text.encode("latin-1"))
    denied, why = load(own)
    assert why
    assert denied.package(_dist("litellm", "1.82.8")) is not None


def test_a_folder_in_the_place_of_the_list_is_no_list(tmp_path: Path) -> None:
    assert load(tmp_path)[1]


def test_an_empty_list_is_one() -> None:
    assert parse(b"").packages == ()
