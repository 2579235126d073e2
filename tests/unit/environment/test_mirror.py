"""A volume with noexec, and a compiled module on it."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod.environment.layer import LOCAL_FILE, Layer, create
from comfypod.environment.mirror import mirror
from comfypod.errors import InstallError
from tests.kit.disks import tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.layers import Lab

pytestmark = pytest.mark.root
_SOURCE = """
#include <Python.h>
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "compiled", 0, -1, 0};
PyMODINIT_FUNC PyInit_compiled(void) { return PyModule_Create(&def); }
"""


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "volume", noexec=True) as folder:
        yield folder


@pytest.fixture
def layer(lab: Lab, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layer:
    """Give a layer on that volume; copies go below `tmp_path`."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    layer = Layer(volume / "envs" / "k1", "k1", lab.image)
    create(layer)
    return layer


def _compiled_wheel(folder: Path) -> Path:
    """Make a wheel with a module in C."""
    (folder / "compiled.c").write_text(_SOURCE)
    include = sysconfig.get_paths()["include"]
    library = folder / "compiled.so"
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{include}", "-o", library, folder / "compiled.c"], check=True)
    path = folder / "compiled-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(library, "compiled.so")
        wheel.writestr("compiled-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: compiled\nVersion: 1.0\n")
        wheel.writestr("compiled-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n")
        wheel.writestr("compiled-1.0.dist-info/RECORD", "compiled.so,,\ncompiled-1.0.dist-info/RECORD,,\n")
    return path


def test_f4_on_a_noexec_volume_compiled_modules_are_imported_from_copies(
    lab: Lab, layer: Layer, tmp_path: Path
) -> None:
    assert mirror(layer) == ()
    wheel = _compiled_wheel(lab.index)
    assert lab.run(layer, str(layer.python), "-m", "pip", "install", str(wheel), "plain").returncode == 0
    assert "ImportError" in lab.run(layer, str(layer.python), "-c", "import compiled").stderr
    assert mirror(layer) == ("compiled",)
    place = Path(lab.said(layer, "import compiled; print(compiled.__file__)"))
    assert place.is_relative_to(tmp_path)
    written = place.stat().st_ino
    assert mirror(layer) == ("compiled",)
    assert place.stat().st_ino == written
    assert lab.run(layer, str(layer.python), "-m", "pip", "uninstall", "-y", "compiled").returncode == 0
    assert mirror(layer) == ()
    assert "ModuleNotFoundError" in lab.run(layer, str(layer.python), "-c", "import compiled").stderr


def test_f4_what_is_planted_on_a_noexec_volume_keeps_no_copies_from_being_made(
    lab: Lab, layer: Layer, tmp_path: Path
) -> None:
    wheel = _compiled_wheel(lab.index)
    assert lab.run(layer, str(layer.python), "-m", "pip", "install", str(wheel)).returncode == 0
    (layer.site / "hollow-1.0.dist-info").mkdir()
    (layer.site / "odd-1.0.dist-info").mkdir()
    (layer.site / "odd-1.0.dist-info" / "RECORD").write_text(f"a.so,,\n{'x' * 300},,\nb\0,,\n")
    (tmp_path / "mine").write_text("precious")
    (layer.site / LOCAL_FILE).symlink_to(tmp_path / "mine")
    assert mirror(layer) == ("compiled", "odd")
    assert (tmp_path / "mine").read_text() == "precious"
    assert Path(lab.said(layer, "import compiled; print(compiled.__file__)")).is_relative_to(tmp_path)


def test_who_is_not_alone_on_a_noexec_volume_uses_what_leads_to_its_copies_and_writes_nothing(
    lab: Lab, layer: Layer, tmp_path: Path
) -> None:
    path_file = layer.site / LOCAL_FILE
    path_file.write_text("# another pod's\n")
    assert mirror(layer, alone=False) == ()
    assert path_file.read_text() == "# another pod's\n"
    wheel = _compiled_wheel(lab.index)
    assert lab.run(layer, str(layer.python), "-m", "pip", "install", str(wheel)).returncode == 0
    with pytest.raises(InstallError, match="another pod uses it"):
        mirror(layer, alone=False)
    assert path_file.read_text() == "# another pod's\n"
    assert mirror(layer) == ("compiled",)
    shutil.rmtree(next(tmp_path.glob("comfypod-*")))
    written = path_file.stat()
    assert mirror(layer, alone=False) == ("compiled",)
    assert path_file.stat() == written
    assert Path(lab.said(layer, "import compiled; print(compiled.__file__)")).is_relative_to(tmp_path)
