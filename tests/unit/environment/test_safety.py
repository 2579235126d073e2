from __future__ import annotations

import os
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest

from comfypod.environment.dists import scan
from comfypod.environment.look import look
from comfypod.environment.safety import clean
from comfypod.workspace.aside import listed, put_back
from comfypod.workspace.layout import Layout
from tests.kit.killer import suffer
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.environment.layer import Layer
    from comfypod.errors import Problem
    from tests.kit.overlay import Lab


@pytest.fixture
def layout(lab: Lab) -> Layout:
    return Layout(lab.workspace)


def _clean(layer: Layer, layout: Layout) -> tuple[Problem, ...]:
    return clean(layer, layout, look(layer))


def _force(layer: Layer, wheel: Path) -> None:
    """Install with nothing of ours in force, as a node's script can that wants to."""
    argv = ["uv", "pip", "install", "-q", "--offline", "--no-deps", "--no-config", "--python", str(layer.python)]
    subprocess.run([*argv, str(wheel)], check=True, env={"PATH": os.environ["PATH"]})


def _unpack(layer: Layer, wheel: Path) -> None:
    """Install where no start of Python is wanted."""
    with zipfile.ZipFile(wheel) as bundle:
        bundle.extractall(layer.site)


def test_c7_a_deny_listed_wheel_is_taken_out_before_comfyui_starts_and_named(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    for version in ("8.3.41", "8.3.47"):
        lab.wheel("ultralytics", version)
    assert lab.run(layer, "pip", "install", "ultralytics==8.3.41").returncode == 0
    assert lab.said(layer, "import ultralytics; print(ultralytics.__version__)") == "8.3.41"
    (problem,) = _clean(layer, layout)
    assert problem.code == "denied"
    assert "ultralytics==8.3.41 is denied: it was published with a miner" in problem.message
    (aside,) = listed(layout)
    assert (layout.set_aside / aside.name / layer.site.relative_to(layer.root) / "ultralytics.py").is_file()
    left = [name for name in os.listdir(layer.site) if "ultralytics" in name]
    assert left == []
    assert lab.run(layer, "pip", "install", "ultralytics==8.3.47").returncode == 0
    assert _clean(layer, layout) == ()
    assert lab.said(layer, "import ultralytics; print(ultralytics.__version__)") == "8.3.47"


def test_c7_an_unexpected_pth_is_found_with_its_line_and_its_wheel_and_never_runs(
    lab: Lab, layout: Layout, tmp_path: Path
) -> None:
    layer, ran = lab.layer(), tmp_path / "ran"
    code = f"# tuning\nimport pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    wheel = build_wheel(lab.index, "thief", "1.0", modules={"thief.py": "", "thief_init.pth": code})
    _force(layer, wheel)
    ran.unlink(missing_ok=True)
    (problem,) = _clean(layer, layout)
    assert problem.code == "startup-code"
    assert "thief_init.pth of thief==1.0 was set aside" in problem.message
    assert "line 2: import pathlib" in problem.message
    assert not ran.exists()
    assert lab.said(layer, "import torch, thief; print(1)") == "1"
    assert not ran.exists()
    digest = problem.hint.split("'")[1]
    layout.denied.write_text(f'allowed = ["{digest}"]\n')
    put_back(layout, listed(layout)[0].name)
    assert _clean(layer, layout) == ()
    lab.said(layer, "print(1)")
    assert ran.exists()


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "sitecustomize.cpython-311.so"])
def test_c7_a_module_that_python_imports_at_its_start_is_set_aside(lab: Lab, layout: Layout, name: str) -> None:
    layer = lab.layer()
    (layer.site / name).write_text("x = 1\n")
    (problem,) = _clean(layer, layout)
    assert name in problem.message
    assert not (layer.site / name).exists()


def test_c7_the_layers_own_path_file_is_put_back_when_somebody_changed_it(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    path = layer.site / "_comfypod_image.pth"
    sound = path.read_text()
    path.unlink()
    path.write_text("import os; os.environ['X'] = '1'\n")
    (problem,) = _clean(layer, layout)
    assert "_comfypod_image.pth" in problem.message
    assert path.read_text() == sound
    assert lab.said(layer, "import torch; print(torch.__version__)") == "2.9.1+cu128"


def test_what_pip_and_uv_themselves_leave_at_a_start_of_python_is_known(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    editable = "import __editable___my_node_1_0_finder; __editable___my_node_1_0_finder.install()\n"
    (layer.site / "__editable__.my_node-1.0.pth").write_text(editable)
    (layer.site / "paths.pth").write_text("/workspace/src\n# a comment\n\n")
    (layer.site / "folder.pth").mkdir()
    assert _clean(layer, layout) == ()


def test_b4_an_older_frontend_in_the_layer_is_taken_out_and_the_images_wins(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    _force(layer, lab.wheel("comfyui-frontend-package", "1.30.0"))
    version = "import comfyui_frontend_package as it; print(it.__version__)"
    assert lab.said(layer, version) == "1.30.0"
    (problem,) = _clean(layer, layout)
    assert "comfyui-frontend-package==1.30.0 may not stand before the image's 1.40.0" in problem.message
    assert lab.said(layer, version) == "1.40.0"
    assert look(layer).changes == ()
    for tool in (("pip", "list"), ("uv", "pip", "list")):
        assert ["comfyui-frontend-package", "1.40.0"] in [
            line.split() for line in lab.run(layer, *tool).stdout.splitlines()
        ]


def test_b4_a_module_that_was_copied_there_by_hand_is_set_aside(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    (layer.site / "cv2").mkdir()
    (layer.site / "cv2" / "__init__.py").write_text("__version__ = 'old'\n")
    (problem,) = _clean(layer, layout)
    assert "copied by hand" in problem.message
    assert lab.said(layer, "import cv2; print(cv2.__version__)") == "4.12.0"


def test_no_kill_loses_a_file_and_the_next_boot_ends_what_was_begun(lab: Lab, layout: Layout, tmp_path: Path) -> None:
    modules = {f"torch/{name}.py": "old\n" for name in ("__init__", "version", "nn")}
    wheel = build_wheel(lab.index, "torch", "2.8.0", modules=modules)
    ended, step = "killed", 0
    while ended == "killed":
        step += 1
        layer = lab.layer(f"k{step}")
        _unpack(layer, wheel)
        ended = suffer(lambda layer=layer: _clean(layer, layout), step, "kill", tmp_path / "notes")  # type: ignore[misc]
        _clean(layer, layout)
        assert _clean(layer, layout) == ()
        assert not (layer.site / "torch").exists()
        assert scan(layer.site)["torch"].version == "2.9.1"
        assert look(layer).changes == ()
        kept = [path.name for path in layout.set_aside.rglob("*.py")]
        assert sorted(kept) == sorted(["__init__.py", "nn.py", "version.py"] * step)
    assert ended == "done"
    assert step > 8


def test_g8_a_record_names_nothing_outside_the_layer_nor_what_the_layer_needs(
    lab: Lab, layout: Layout, tmp_path: Path
) -> None:
    layer = lab.layer()
    _unpack(layer, build_wheel(lab.index, "litellm", "1.82.8"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("mine")
    (layer.site / "door").symlink_to(tmp_path / "outside")
    info = layer.site / "litellm-1.82.8.dist-info"
    names = [
        "../../../../../../../outside/precious", str(tmp_path / "outside" / "precious"), "door/precious",
        "../../../layer.json", "../../../bin/python", "../../../bin/pip", "_comfypod_image.pth", "..", ".", "\0", "",
        "torch-2.9.1.dist-info/METADATA", "litellm.py",
    ]  # fmt: skip
    (info / "RECORD").write_text("".join(f'"{name}",,\n' for name in names))
    (problem,) = _clean(layer, layout)
    assert problem.code == "denied"
    assert (tmp_path / "outside" / "precious").read_text() == "mine"
    assert lab.said(layer, "import torch; print(torch.__version__)") == "2.9.1+cu128"
    assert (layer.site / "torch-2.9.1.dist-info" / "METADATA").exists()
    assert not (layer.site / "litellm.py").exists()


@pytest.mark.parametrize("kind", ["missing", "pipe", "garbage"])
def test_a_denied_wheel_without_a_record_that_can_be_read_goes_with_its_module(
    lab: Lab, layout: Layout, kind: str
) -> None:
    layer = lab.layer()
    _unpack(layer, build_wheel(lab.index, "litellm", "1.82.7", modules={"litellm/__init__.py": ""}))
    record = layer.site / "litellm-1.82.7.dist-info" / "RECORD"
    record.unlink()
    if kind == "pipe":
        os.mkfifo(record)
    elif kind == "garbage":
        record.write_bytes(b'"' + b"x" * (1 << 18))
    (problem,) = _clean(layer, layout)
    assert problem.code == "denied"
    assert [name for name in os.listdir(layer.site) if "litellm" in name] == []


def test_a_new_entry_of_the_volumes_list_counts_although_nothing_was_installed(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    _unpack(layer, build_wheel(lab.index, "extra", "1.0"))
    assert _clean(layer, layout) == ()
    layout.denied.write_text('[[package]]\nname = "Extra"\nreason = "no"\n')
    assert [each.code for each in _clean(layer, layout)] == ["denied"]
    layout.denied.write_text("[[package]\n")
    (problem,) = _clean(layer, layout)
    assert "is not used" in problem.message


def test_nothing_is_looked_through_again_when_nothing_has_changed(
    lab: Lab, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = lab.layer()
    found = look(layer)
    clean(layer, layout, found)
    monkeypatch.setattr(os, "listdir", None)
    assert clean(layer, layout, found) == ()
