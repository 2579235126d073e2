"""A volume with noexec, and a compiled module on it."""

from __future__ import annotations

import subprocess
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod.environment.layer import Layer, create
from comfypod.environment.mirror import mirror
from tests.kit.disks import tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.overlay import Lab

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
    lab: Lab, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    layer = Layer(volume / "envs" / "k1", "k1", lab.image)
    create(layer)
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
