from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod import podfile
from comfypod.environment import requests
from comfypod.environment.layer import Layer, create, layer_of, put_stubs, read_marker, remember
from comfypod.environment.look import look
from comfypod.errors import InstallError, StorageError
from comfypod.host import env
from comfypod.log import Console
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.layers import Lab, make_lab

if TYPE_CHECKING:
    from pathlib import Path

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("image"))


@pytest.fixture
def lab(pristine: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Give a workspace with a pod.json of the image, and an index that has what the image has."""
    (tmp_path / "opt").symlink_to(pristine.folder / "opt")
    shutil.copytree(pristine.index, tmp_path / "index")
    lab = Lab(tmp_path)
    layout = Layout(lab.workspace)
    layout.records.mkdir(parents=True)
    pod = podfile.load(standin.pod_file(tmp_path, tmp_path))
    layout.pod_file.write_bytes(replace(pod, python=str(lab.image / "bin" / "python")).encode())
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, str(lab.index))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    return lab


def layer_in(lab: Lab) -> Layer:
    layout = Layout(lab.workspace)
    layer = layer_of(podfile.load(layout.pod_file), layout)
    create(layer)
    put_stubs(layer)
    return layer


def test_before_the_first_start_there_is_nothing_to_show(lab: Lab) -> None:
    with pytest.raises(StorageError, match="was not made yet"):
        env.status(Layout(lab.workspace))


def test_status_shows_what_was_installed_and_verify_finds_it_sound(lab: Lab) -> None:
    layer = layer_in(lab)
    lab.wheel("extra", "1.0")
    lab.wheel("plain", "2.0")
    assert lab.run(layer, "pip", "install", "extra", "plain>1").returncode == 0
    found = env.status(Layout(lab.workspace))
    assert {row["name"]: row["state"] for row in found.data["changed"]} == {"extra": "added", "plain": "replaced"}
    assert "plain 2.0 instead of the image's 1.0" in found.text
    assert env.verify(Layout(lab.workspace)).exit_code == 0


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("a lost file", "extra==1.0 lacks 1 files"),
        ("another torch", "torch"),
        ("a removed package", "other is the image's"),
        ("a list of files that is a pipe", "extra==1.0 has no list of its files"),
    ],
)
def test_verify_names_what_is_wrong(lab: Lab, harm: str, told: str) -> None:
    layer = layer_in(lab)
    lab.wheel("extra", "1.0")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    if harm == "a lost file":
        (layer.site / "extra.py").unlink()
    elif harm == "a list of files that is a pipe":
        (layer.site / "extra-1.0.dist-info" / "RECORD").unlink()
        os.mkfifo(layer.site / "extra-1.0.dist-info" / "RECORD")
    elif harm == "another torch":
        (layer.site / "torch").mkdir()
        (layer.site / "torch" / "__init__.py").write_text("class version: cuda = '1'\n__version__ = '1'\n")
    else:
        assert lab.run(layer, "pip", "uninstall", "-y", "other").returncode == 0
    found = env.verify(Layout(lab.workspace))
    assert (found.exit_code, found.status) == (InstallError.exit_code, "partial")
    assert any(told in problem.message for problem in found.errors)


def test_rebuild_makes_the_layer_anew_from_what_was_asked_for_and_keeps_the_one_before(lab: Lab) -> None:
    layer, layout = layer_in(lab), Layout(lab.workspace)
    lab.wheel("extra", "1.0")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    (layer.site / "torch").mkdir()
    assert env.status(layout).data["requests"] == []
    requests.note_found(layer, layout)
    done = env.rebuild(layout, QUIET)
    assert (done.exit_code, done.data["installed"]) == (0, ["extra==1.0"])
    assert {each.name: each.state for each in look(layer).changes} == {"extra": "added"}
    assert env.verify(layout).exit_code == 0
    assert [path.name for path in layout.envs.iterdir() if path != layer.root] == [f"{layer.key}.before-1"]


def test_while_a_pod_runs_its_next_start_rebuilds(lab: Lab) -> None:
    layer, layout = layer_in(lab), Layout(lab.workspace)
    run.write(layout.run_record, run.RunRecord(run.this_process(), "http://127.0.0.1:1"))
    assert env.rebuild(layout, QUIET).data["done"] is False
    marker = read_marker(layer)
    assert marker is not None
    assert marker["rebuild"] is True


def test_status_shows_layers_that_are_kept_with_what_they_take_and_their_age(lab: Lab) -> None:
    layer, layout = layer_in(lab), Layout(lab.workspace)
    old = Layer(layout.envs / "old", "old", layer.image)
    create(old)
    (old.site / "large").write_bytes(bytes(1 << 20))
    os.utime(old.marker, (time.time() - 3 * 86_400 - 60,) * 2)
    (layout.envs / "no-layer").mkdir()
    found = env.status(layout)
    rows = {row["name"]: row for row in found.data["kept"]}
    assert rows.keys() == {"old", "no-layer"}
    assert rows["old"]["days"] == 3
    assert 1 << 20 <= rows["old"]["bytes"] < 2 << 20
    assert "kept       old, 1." in found.text
    assert "changed 3 days ago" in found.text


def test_a_kept_layer_may_be_deleted_and_nothing_is_missed(lab: Lab) -> None:
    layer, layout = layer_in(lab), Layout(lab.workspace)
    lab.wheel("extra", "1.0")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    requests.note_found(layer, layout)
    env.rebuild(layout, QUIET)
    (kept,) = env.status(layout).data["kept"]
    shutil.rmtree(layout.envs / kept["name"])
    assert env.status(layout).data["kept"] == []
    assert env.verify(layout).exit_code == 0
    assert lab.said(layer, "import extra; print(extra.__version__)") == "1.0"


def test_nothing_that_is_noted_of_a_layer_hides_what_is_wrong_and_status_writes_nothing(lab: Lab) -> None:
    layer, layout = layer_in(lab), Layout(lab.workspace)
    (layer.site / "torch").mkdir()
    now = layer.site.stat().st_mtime_ns
    remember(layer, seen=now, changes=[], missing=["nonsense", ["a"], ["b", 1], ["c", "why"]])
    before = layer.marker.read_bytes()
    found = env.status(layout)
    assert [(row["name"], row["state"]) for row in found.data["changed"]] == [("torch", "refused")]
    assert found.data["missing"] == [("c", "why")]
    assert env.verify(layout).exit_code == InstallError.exit_code
    assert layer.marker.read_bytes() == before
