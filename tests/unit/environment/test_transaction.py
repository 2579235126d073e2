from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from comfypod.environment import requests
from comfypod.environment.layer import Layer
from comfypod.environment.transaction import prefix_of, recover, site_of
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    (tmp_path / "image" / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    layer = Layer(Layout(tmp_path).envs / "one", "one", tmp_path / "image")
    layer.site.mkdir(parents=True)
    return layer


def _note(layer: Layer, body: object) -> None:
    (layer.root / "installing.json").write_text(json.dumps(body))


def test_nothing_under_way_is_nothing_to_recover(layer: Layer, tmp_path: Path) -> None:
    assert recover(layer, Layout(tmp_path)) == ()


def test_what_was_being_installed_and_is_not_noted_is_thrown_away(layer: Layer, tmp_path: Path) -> None:
    site_of(layer).mkdir(parents=True)
    (site_of(layer) / "lib.py").touch()
    assert len(recover(layer, Layout(tmp_path))) == 1
    assert list(layer.site.iterdir()) == []
    assert recover(layer, Layout(tmp_path)) == ()


def test_what_was_noted_is_put_in_place_and_what_it_replaces_leaves(layer: Layer, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (site_of(layer) / "lib").mkdir(parents=True)
    (site_of(layer) / "lib" / "new.py").touch()
    for name in ("old.py", "user.txt"):
        (layer.site / "lib").mkdir(exist_ok=True)
        (layer.site / "lib" / name).touch()
    gone = "lib/python3.12/site-packages/lib/old.py"
    asked = {"who": "user", "name": "lib", "line": "lib", "version": ""}
    _note(layer, {"said": "lib==2", "gone": [gone, gone], "requests": [asked]})
    assert recover(layer, layout) == ("finished what was being installed: lib==2",)
    assert {path.name for path in (layer.site / "lib").iterdir()} == {"new.py", "user.txt"}
    assert [row.line for row in requests.read(layout)] == ["lib"]


@pytest.mark.parametrize("name", ["/outside", "../../../outside", "lib/../../../../outside", "link/outside", "", "."])
def test_a_planted_note_takes_nothing_out_of_other_folders(layer: Layer, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").touch()
    (layer.root / "link").symlink_to(tmp_path)
    shown = f"{tmp_path}/outside" if name == "/outside" else name
    _note(layer, {"said": "x", "gone": [shown], "requests": [{"who": 1, "name": [], "line": {}, "version": None}]})
    recover(layer, Layout(tmp_path))
    assert (tmp_path / "outside").exists()
    assert layer.site.is_dir()


def test_a_planted_link_in_the_place_of_what_waits_moves_nothing(layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "mine" / "prefix").mkdir(parents=True)
    (tmp_path / "mine" / "prefix" / "file").touch()
    prefix_of(layer).parent.symlink_to(tmp_path / "mine")
    _note(layer, {"said": "x", "gone": [], "requests": []})
    recover(layer, Layout(tmp_path))
    assert (tmp_path / "mine" / "prefix" / "file").exists()


@pytest.mark.parametrize(
    "name", ["x" * 300, "a/" * 3000 + "b", "a\0b", "\ud800", "loop/x", "layer.json", 5, None, ["lib"], {}]
)
def test_a_note_with_names_that_no_install_writes_is_finished_without_them(
    layer: Layer, tmp_path: Path, name: object
) -> None:
    (layer.root / "loop").symlink_to("loop")
    (layer.root / "layer.json").touch()
    (layer.root / "lib" / "old").touch()
    _note(layer, {"said": "x", "gone": [name, "lib/old"], "requests": []})
    assert recover(layer, Layout(tmp_path)) == ("finished what was being installed: x",)
    assert not (layer.root / "lib" / "old").exists()
    assert (layer.root / "layer.json").exists()
    assert recover(layer, Layout(tmp_path)) == ()


@pytest.mark.parametrize("body", [None, [], {"said": 1}, {"said": "", "gone": 3, "requests": []}, {"requests": 5}])
def test_a_note_that_makes_no_sense_is_none(layer: Layer, tmp_path: Path, body: object) -> None:
    _note(layer, body)
    recover(layer, Layout(tmp_path))
    assert not (layer.root / "installing.json").exists()
