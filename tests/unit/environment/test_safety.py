from __future__ import annotations

import json
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
    from tests.kit.layers import Lab


@pytest.fixture
def layout(lab: Lab) -> Layout:
    return Layout(lab.workspace)


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
    (problem,) = clean(layer, layout)
    assert problem.code == "denied"
    assert "ultralytics==8.3.41 is denied: it was published with a miner" in problem.message
    (aside,) = listed(layout)
    assert (layout.set_aside / aside.name / layer.site.relative_to(layer.root) / "ultralytics.py").is_file()
    left = [name for name in os.listdir(layer.site) if "ultralytics" in name]
    assert left == []
    assert lab.run(layer, "pip", "install", "ultralytics==8.3.47").returncode == 0
    assert clean(layer, layout) == ()
    assert lab.said(layer, "import ultralytics; print(ultralytics.__version__)") == "8.3.47"


def test_c7_an_unexpected_pth_is_found_with_its_line_and_its_wheel_and_never_runs(
    lab: Lab, layout: Layout, tmp_path: Path
) -> None:
    layer, ran = lab.layer(), tmp_path / "ran"
    code = f"# tuning\nimport pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    wheel = build_wheel(lab.index, "thief", "1.0", modules={"thief.py": "", "thief_init.pth": code})
    _force(layer, wheel)
    ran.unlink(missing_ok=True)
    (problem,) = clean(layer, layout)
    assert problem.code == "startup-code"
    assert "thief_init.pth of thief==1.0 was set aside" in problem.message
    assert "line 2: import pathlib" in problem.message
    assert not ran.exists()
    assert lab.said(layer, "import torch, thief; print(1)") == "1"
    assert not ran.exists()
    digest = problem.hint.split("'")[1]
    layout.denied.write_text(f'allowed = ["{digest}"]\n')
    put_back(layout, listed(layout)[0].name)
    assert clean(layer, layout) == ()
    lab.said(layer, "print(1)")
    assert ran.exists()


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "sitecustomize.cpython-311.so"])
def test_c7_a_module_that_python_imports_at_its_start_is_set_aside(lab: Lab, layout: Layout, name: str) -> None:
    layer = lab.layer()
    (layer.site / name).write_text("x = 1\n")
    (problem,) = clean(layer, layout)
    assert name in problem.message
    assert not (layer.site / name).exists()


def test_c7_the_layers_own_path_file_is_put_back_when_somebody_changed_it(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    path = layer.site / "_comfypod_image.pth"
    sound = path.read_text()
    path.unlink()
    path.write_text("import os; os.environ['X'] = '1'\n")
    (problem,) = clean(layer, layout)
    assert "_comfypod_image.pth" in problem.message
    assert path.read_text() == sound
    assert lab.said(layer, "import torch; print(torch.__version__)") == "2.9.1+cu128"


def test_what_pip_and_uv_themselves_leave_at_a_start_of_python_is_known(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    editable = "import __editable___my_node_1_0_finder; __editable___my_node_1_0_finder.install()\n"
    (layer.site / "__editable__.my_node-1.0.pth").write_text(editable)
    (layer.site / "paths.pth").write_text("/workspace/src\n# a comment\n\n")
    (layer.site / "folder.pth").mkdir()
    assert clean(layer, layout) == ()


def test_b4_an_older_frontend_in_the_layer_is_taken_out_and_the_images_wins(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    _force(layer, lab.wheel("comfyui-frontend-package", "1.30.0"))
    version = "import comfyui_frontend_package as it; print(it.__version__)"
    assert lab.said(layer, version) == "1.30.0"
    (problem,) = clean(layer, layout)
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
    (problem,) = clean(layer, layout)
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
        ended = suffer(lambda layer=layer: clean(layer, layout), step, "kill", tmp_path / "notes")  # type: ignore[misc]
        clean(layer, layout)
        assert clean(layer, layout) == ()
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
    (problem,) = clean(layer, layout)
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
    (problem,) = clean(layer, layout)
    assert problem.code == "denied"
    assert [name for name in os.listdir(layer.site) if "litellm" in name] == []


def test_a_new_entry_of_the_volumes_list_counts_although_nothing_was_installed(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    _unpack(layer, build_wheel(lab.index, "extra", "1.0"))
    assert clean(layer, layout) == ()
    layout.denied.write_text('[[package]]\nname = "Extra"\nreason = "no"\n')
    assert [each.code for each in clean(layer, layout)] == ["denied"]
    layout.denied.write_text("[[package]\n")
    (problem,) = clean(layer, layout)
    assert "is not used" in problem.message


def _edit_in_place(path: Path, text: str) -> None:
    """Change a file as nobody can see who looks at its folder, its size and its time."""
    before = path.stat()
    path.write_text(text.ljust(before.st_size, "\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_c7_a_path_file_that_was_edited_in_place_is_seen_at_the_next_boot(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    path = layer.site / "paths.pth"
    path.write_text("# a comment that is long enough to be written over\n")
    assert clean(layer, layout) == ()
    _edit_in_place(path, "import os; os.environ['X'] = '1'\n")
    (problem,) = clean(layer, layout)
    assert "paths.pth was set aside" in problem.message


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize", "sitecustomize.pyc"])
@pytest.mark.parametrize("line", ["{0}", "../../../../../../src", "/nowhere\n{0}  ", "# {0}\r{0}"])
def test_c7_a_path_file_that_leads_to_a_module_that_python_imports_at_its_start_is_set_aside(
    lab: Lab, layout: Layout, name: str, line: str
) -> None:
    layer, folder = lab.layer(), lab.workspace / "src"
    folder.mkdir()
    (layer.site / "mine.pth").write_text(line.format(folder))
    assert clean(layer, layout) == ()
    (folder / name).mkdir()
    (problem,) = clean(layer, layout)
    assert problem.code == "startup-code"
    assert f"({folder / name} is there)" in problem.message
    assert (folder / name).is_dir()
    assert not (layer.site / "mine.pth").exists()


def test_c7_what_is_put_before_the_layer_as_its_copies_are_is_looked_at_like_a_path(lab: Lab, layout: Layout) -> None:
    layer, folder = lab.layer(), lab.workspace / "src"
    folder.mkdir()
    line = f"import os, sys; place = '{folder}'; os.path.isdir(place) and sys.path.insert(sys.path.index('/'), place)\n"
    (layer.site / "mine.pth").write_text(line)
    assert clean(layer, layout) == ()
    (folder / "sitecustomize.py").write_text("")
    assert [each.code for each in clean(layer, layout)] == ["startup-code"]


def test_c7_nothing_that_the_layers_marker_says_keeps_it_from_being_cleaned(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    look(layer)
    clean(layer, layout)
    sound = json.loads(layer.marker.read_text())
    _unpack(layer, build_wheel(lab.index, "litellm", "1.82.8"))
    _unpack(layer, build_wheel(lab.index, "torch", "1.13"))
    (layer.site / "sitecustomize.py").write_text("")
    now = layer.site.stat().st_mtime_ns
    stamp = " ".join((str(sound.get("cleaned")).split(" ")[0], str(now), ""))
    forged = {"cleaned": stamp, "seen": now, "site": now, "changes": [], "stubs": True}
    layer.marker.write_text(json.dumps(sound | forged))
    assert sorted(each.code for each in clean(layer, layout)) == ["denied", "refused", "startup-code"]


def test_a_name_that_is_too_long_in_a_record_keeps_nothing_from_being_taken_out(lab: Lab, layout: Layout) -> None:
    layer = lab.layer()
    _unpack(layer, build_wheel(lab.index, "litellm", "1.82.8"))
    record = layer.site / "litellm-1.82.8.dist-info" / "RECORD"
    (layer.site / "loop").symlink_to("loop")
    record.write_text(f"{'x' * 300},,\nloop/x.py,,\n{'x/' * 3000}y,,\nlitellm.py,,\n")
    assert [each.code for each in clean(layer, layout)] == ["denied"]
    assert not (layer.site / "litellm.py").exists()
