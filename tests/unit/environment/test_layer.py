from __future__ import annotations

import json
import os
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest

from comfypod.environment.dists import files_of, scan
from comfypod.environment.layer import Layer, create, put_stubs, read_marker, remember, restore
from comfypod.environment.look import look
from comfypod.environment.relocate import relocate
from comfypod.environment.safety import clean
from comfypod.errors import InstallError
from comfypod.files import tree_facts
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.layers import Lab


def states(layer: Layer) -> dict[str, str]:
    return {each.name: each.state for each in look(layer).changes}


def test_a_new_layer_imports_what_the_image_has_and_changes_nothing_of_it(lab: Lab) -> None:
    before = tree_facts(lab.image.resolve()).digest
    layer = lab.layer()
    found = lab.said(layer, "import sys, torch, plain; print(sys.prefix, torch.__version__, plain.__file__)").split()
    assert found[:2] == [str(layer.root), "2.9.1+cu128"]
    assert found[2].startswith(str(layer.image_site))
    assert states(layer) == {}
    for tool in (("pip", "list"), ("uv", "pip", "list")):
        listed = lab.run(layer, *tool).stdout
        assert {"torch", "numpy", "plain", "opencv-python"} <= {line.split(" ")[0] for line in listed.splitlines()}
    assert tree_facts(lab.image.resolve()).digest == before


@pytest.mark.parametrize("tool", [("pip",), ("uv", "pip"), ("python", "-m", "pip")])
def test_what_an_installer_adds_upgrades_or_removes_is_seen_and_the_image_stays(
    lab: Lab, tool: tuple[str, ...]
) -> None:
    layer = lab.layer()
    lab.wheel("plain", "2.0")
    lab.wheel("extra", "1.0", requires=["other"])
    assert lab.run(layer, *tool, "install", "extra", "plain>1").returncode == 0
    assert states(layer) == {"extra": "added", "plain": "replaced"}
    assert lab.said(layer, "import plain, extra; print(plain.__version__)") == "2.0"
    yes = ["-y"] if tool[0] != "uv" else []
    assert lab.run(layer, *tool, "uninstall", *yes, "plain", "other").returncode == 0
    assert states(layer) == {"extra": "added", "plain": "hidden", "other": "hidden"}
    assert lab.said(layer, "import plain, other; print(plain.__version__)") == "1.0"


@pytest.mark.parametrize(
    "tool", [("pip",), ("uv", "pip"), ("python", "-m", "pip"), ("python", "-m", "pip", "--isolated")]
)
@pytest.mark.parametrize("wanted", ["torch==1.13.1", "torch>2.9.1", "numpy<2", "opencv-python>4.12.0"])
def test_c2_constraints_hold_whatever_installs(lab: Lab, tool: tuple[str, ...], wanted: str) -> None:
    layer = lab.layer()
    for name, version in (("torch", "1.13.1"), ("torch", "3.0"), ("numpy", "1.26.4"), ("opencv-python", "5.0")):
        lab.wheel(name, version)
    command = [
        *tool,
        "install",
        *(["--find-links", str(lab.index), "--no-index"] if "--isolated" in tool else []),
        wanted,
    ]
    done = lab.run(layer, *command)
    assert done.returncode != 0
    assert wanted.split("=")[0].split("<")[0].split(">")[0] in done.stdout + done.stderr
    assert states(layer) == {}
    assert lab.said(layer, "import torch, numpy; print(torch.__version__, numpy.__version__)") == "2.9.1+cu128 2.3.0"


@pytest.mark.parametrize("tool", [("pip",), ("uv", "pip")])
def test_c1_several_opencv_wheels_are_one(lab: Lab, tool: tuple[str, ...]) -> None:
    layer = lab.layer()
    lab.wheel("node-needs", "1.0", requires=["opencv-python>=4", "opencv-contrib-python", "torch", "numpy"])
    assert lab.run(layer, *tool, "install", "node-needs").returncode == 0
    assert states(layer) == {"node-needs": "added"}
    assert lab.said(layer, "import cv2; print(cv2.__file__)").startswith(str(layer.image_site))


def test_what_may_not_stand_before_the_images_is_named_however_it_came(lab: Lab) -> None:
    layer = lab.layer()
    with zipfile.ZipFile(lab.wheel("comfyui-frontend-package", "1.2.0")) as wheel:
        wheel.extractall(layer.site)
    (layer.site / "torch").mkdir()
    (layer.site / "cv2.py").write_text("")
    found = [(each.name, each.state, each.version, each.image) for each in look(layer).changes]
    assert found == [
        ("comfyui-frontend-package", "refused", "1.2.0", "1.40.0"),
        ("opencv-python", "refused", "", "4.12.0"),
        ("torch", "refused", "", "2.9.1"),
    ]


def test_before_the_stubs_are_made_pip_sees_the_image_and_nothing_is_taken_for_removed(lab: Lab) -> None:
    layer = lab.layer(stubs=False)
    assert states(layer) == {}
    lab.wheel("extra", "1.0", requires=["other", "torch"])
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    assert states(layer) == {"extra": "added"}
    put_stubs(layer)
    assert states(layer) == {"extra": "added"}
    assert lab.run(layer, "uv", "pip", "install", "other", "torch").returncode == 0
    assert states(layer) == {"extra": "added"}


def test_a_second_look_reads_nothing_but_the_marker(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lab.layer()
    lab.wheel("extra", "1.0")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    first = look(layer, note=True)
    monkeypatch.delattr(os, "listdir")
    assert look(Layer(layer.root, layer.key, layer.image)) == first


@pytest.mark.parametrize("damage", ["cut short", "no marker", "garbage", "a marker of another schema"])
def test_a_layer_that_is_not_complete_is_made_again(lab: Lab, damage: str) -> None:
    layer = lab.layer()
    (layer.site / "left-over.py").write_text("")
    if damage == "cut short":
        layer.marker.write_bytes(layer.marker.read_bytes()[:-20])
    elif damage == "no marker":
        layer.marker.unlink()
    else:
        layer.marker.write_text("[1]" if damage == "garbage" else '{"schema": 0}')
    assert read_marker(layer) is None
    create(layer)
    assert read_marker(layer) is not None
    assert not (layer.site / "left-over.py").exists()


def test_stubs_that_were_cut_short_are_made_whole(lab: Lab) -> None:
    layer = lab.layer(stubs=False)
    info = layer.image_dists["other"].info
    (layer.site / info).mkdir()
    put_stubs(layer)
    assert sorted(path.name for path in (layer.site / info).iterdir()) == ["INSTALLER", "METADATA", "RECORD"]
    assert states(layer) == {}
    assert scan(layer.site).keys() >= layer.image_dists.keys()


_ENTRY_POINTS = "import importlib.metadata as m; print([e.value for e in m.entry_points(group='kit.group')])"


@pytest.mark.parametrize("before", [False, True])
def test_what_the_image_registers_is_found_with_stubs_as_without(lab: Lab, *, before: bool) -> None:
    """triton finds its GPU backends that way. Stubs of an earlier kind had no entry points."""
    layer = lab.layer(stubs=False)
    bare = lab.said(layer, _ENTRY_POINTS)
    assert bare == "['plain']"
    put_stubs(layer)
    info = layer.site / layer.image_dists["plain"].info
    if before:
        remember(layer, stubs=True)
        (info / "entry_points.txt").unlink()
        shutil.rmtree(layer.site / layer.image_dists["other"].info)
        put_stubs(layer)
        assert states(layer) == {"other": "hidden"}
    assert lab.said(layer, _ENTRY_POINTS) == bare


@pytest.mark.parametrize("tool", [("pip", "uninstall", "-y"), ("uv", "pip", "uninstall")])
def test_to_remove_a_stub_leaves_nothing_of_it_and_no_program_of_another(lab: Lab, tool: tuple[str, ...]) -> None:
    layer = lab.layer()
    program = layer.root / "bin" / "plain"
    program.write_text("somebody's own")
    assert lab.run(layer, *tool, "plain").returncode == 0
    assert not (layer.site / layer.image_dists["plain"].info).exists()
    assert program.exists()


def test_b8_a_layer_works_where_its_volume_is_mounted_now(lab: Lab, tmp_path: Path) -> None:
    layer = lab.layer()
    lab.wheel("extra", "1.0")
    editable = lab.workspace / "ComfyUI" / "custom_nodes" / "mine"
    editable.mkdir(parents=True)
    (editable / "mine.py").write_text("here = True\n")
    (layer.site / "__editable__.mine.pth").write_text(f"{editable}\n")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    script = layer.root / "bin" / "tool"
    script.write_text(f"#!{layer.python}\nimport extra, mine; print(mine.__file__)\n")
    script.chmod(0o755)
    moved = tmp_path / "mnt" / "elsewhere"
    moved.parent.mkdir()
    lab.workspace.rename(moved)
    now = Layer(moved / ".comfypod" / "envs" / "k1", "k1", lab.image)
    restore(now)
    assert relocate(now, moved)
    assert not relocate(now, moved)
    assert lab.run(now, str(now.root / "bin" / "tool")).stdout.strip() == str(
        moved / "ComfyUI/custom_nodes/mine/mine.py"
    )
    assert str(lab.workspace) not in (now.root / "pip.conf").read_text()
    assert lab.run(now, "pip", "install", "numpy<2").returncode != 0
    assert states(now)["extra"] == "added"


def test_an_image_without_an_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="is no virtual environment"):
        create(Layer(tmp_path / "layer", "k", tmp_path / "nothing"))


def test_what_was_planted_in_a_layer_is_neither_waited_for_nor_believed(lab: Lab) -> None:
    layer = lab.layer()
    lab.wheel("extra", "1.0")
    assert lab.run(layer, "pip", "install", "extra").returncode == 0
    info = layer.site / layer.image_dists["plain"].info
    for name in (info / "INSTALLER", layer.site / "extra-1.0.dist-info" / "RECORD", layer.constraints):
        name.unlink()
        os.mkfifo(name)
    assert states(layer)["extra"] == "added"
    with pytest.raises(OSError, match="not a plain file"):
        list(files_of(layer.site, scan(layer.site)["extra"]))
    marker = json.loads(layer.marker.read_text())
    for root in ("/", "", "elsewhere", "/.."):
        layer.marker.write_text(json.dumps(marker | {"root": root}))
        before = (layer.root / "bin" / "pip").read_text()
        assert relocate(layer, lab.workspace)
        assert (layer.root / "bin" / "pip").read_text() == before
    for body in ("[" * 100_000, '{"schema": 1, "root": []}', '{"schema": 1}'):
        layer.marker.write_text(body)
        assert read_marker(layer) is None


def test_a_python_that_was_taken_away_or_belongs_to_another_place_is_put_back(lab: Lab) -> None:
    layer = lab.layer()
    layer.python.unlink()
    (layer.root / "bin" / "python3").unlink()
    (layer.root / "bin" / "python3").symlink_to("/no/such/python")
    (layer.root / "pyvenv.cfg").write_text("home = /nowhere\n")
    path_file = next(layer.site.glob("_comfypod_image.pth"))
    path_file.write_text("import os; os._exit(7)\n")
    restore(layer)
    assert lab.said(layer, "import plain; print(plain.__version__)") == "1.0"
    inodes = [path.lstat().st_ino for path in (layer.python, layer.root / "pyvenv.cfg", path_file)]
    restore(layer)
    assert [path.lstat().st_ino for path in (layer.python, layer.root / "pyvenv.cfg", path_file)] == inodes


@pytest.mark.parametrize("kind", ["a linked folder", "a linked file", "a pipe", "a file"])
def test_no_stub_is_written_through_what_somebody_has_put_in_its_place(lab: Lab, tmp_path: Path, kind: str) -> None:
    layer, elsewhere = lab.layer(stubs=False), tmp_path / "elsewhere"
    info = layer.site / layer.image_dists["torch"].info
    elsewhere.mkdir()
    (elsewhere / "METADATA").write_text("precious")
    if kind == "a linked folder":
        info.symlink_to(elsewhere)
    elif kind == "a file":
        info.write_text("precious")
    else:
        info.mkdir()
        if kind == "a pipe":
            os.mkfifo(info / "RECORD")
        (info / "METADATA").symlink_to(elsewhere / "METADATA")
    put_stubs(layer)
    assert [path.read_text() for path in elsewhere.iterdir()] == ["precious"]
    assert states(layer) == ({"torch": "refused"} if kind in ("a linked folder", "a file") else {})
    clean(layer, Layout(lab.workspace))
    assert states(layer) == {}
    assert sorted(path.name for path in info.iterdir()) == ["INSTALLER", "METADATA", "RECORD"]
    assert [path.read_text() for path in elsewhere.iterdir()] == ["precious"]
