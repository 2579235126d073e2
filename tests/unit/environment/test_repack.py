from __future__ import annotations

import json
import time
import zipfile
from typing import TYPE_CHECKING

import pytest

from comfypod import proc, uv_program
from comfypod.environment import dists
from comfypod.environment.repack import own_dists, repack
from comfypod.errors import InstallError
from tests.kit.layers import make_bare_venv
from tests.kit.wheels import build_wheel, only_these

if TYPE_CHECKING:
    from pathlib import Path

_SCRIPT = "#!python\nprint('plain script')\n"
_MODULES = {
    "lib/__init__.py": "def main():\n    print('entry point')\n",
    "lib/data.bin": "\u20ac",
    "lib-1.0.data/scripts/plain": _SCRIPT,
    "lib-1.0.data/data/share/lib/x.txt": "shared",
    "lib-1.0.dist-info/entry_points.txt": "[console_scripts]\nentry = lib:main\n",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel with all that a wheel may hold, and two environments without anything."""
    folder = tmp_path_factory.mktemp("repack")
    build_wheel(folder / "wheels", "lib", "1.0", modules=_MODULES)
    return folder, make_bare_venv(folder / "one")


def _install(venv: Path, wheels: Path, name: str = "lib") -> Path:
    argv = uv_program.command("pip", "install", "--python", str(venv / "bin" / "python"), name)
    done = proc.run(argv, seconds=60, env=only_these(wheels))
    assert done.ok, done.stderr
    (site,) = venv.glob("lib/python3.*/site-packages")
    return site


def _python(site: Path) -> str:
    return site.parent.name.removeprefix("python")


def test_what_is_installed_from_a_repacked_wheel_is_what_was_installed_first(made: tuple[Path, Path]) -> None:
    folder, venv = made
    site = _install(venv, folder / "wheels")
    path = repack(site, own_dists(site)["lib"], folder, _python(site))
    assert path.name == "lib-1.0-py3-none-any.whl"
    (folder / "again").mkdir()
    path.rename(folder / "again" / path.name)
    other = make_bare_venv(folder / "two")
    again = _install(other, folder / "again")
    assert (again / "lib" / "data.bin").read_text() == "\u20ac"
    assert (other / "share" / "lib" / "x.txt").read_text() == "shared"
    for program, words in (("entry", "entry point"), ("plain", "plain script")):
        done = proc.run((str(other / "bin" / program),), seconds=60)
        assert done.stdout == f"{words}\n", done.stderr
    with zipfile.ZipFile(folder / "again" / path.name) as bundle:
        names = set(bundle.namelist())
    assert not any(name.endswith((".pyc", "INSTALLER", "REQUESTED", "/entry")) for name in names)


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        ("Wheel-Version: 1.0\nTag: cp310-cp310-linux_x86_64\n", "is for cp310-cp310-linux_x86_64 and not for Python"),
        ("Wheel-Version: 1.0\n", "is for no Python"),
        ("Tag: x\n", "was not installed from a wheel"),
        (f"Tag: {'a.' * 9000}-b-c\n", "was not installed from a wheel"),
        (None, "was not installed from a wheel"),
    ],
)
def test_what_is_not_for_this_python_says_so(tmp_path: Path, wheel: str | None, reason: str) -> None:
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    info = site / "lib-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("lib-1.0.dist-info/METADATA,,\n")
    (info / "METADATA").touch()
    if wheel is not None:
        (info / "WHEEL").write_text(wheel)
    with pytest.raises(InstallError, match=reason):
        repack(site, dists.scan(site)["lib"], tmp_path, "3.12")
    assert list(tmp_path.glob("*.whl")) == []


@pytest.mark.parametrize("name", [
    "../../../../../outside", "/etc/hostname", "linked/hostname", "gone.py", "loop", "loop/x", "x" * 300, "\0",
    "\udcff", "y/" * 3000 + "y",
])  # fmt: skip
def test_a_file_that_is_not_there_or_not_in_the_environment_is_never_packed(tmp_path: Path, name: str) -> None:
    site = tmp_path / "env" / "lib" / "python3.12" / "site-packages"
    info = site / "lib-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "outside").touch()
    (site / "linked").symlink_to("/etc")
    (info / "WHEEL").write_text("Tag: py3-none-any\n")
    (info / "RECORD").write_text(f"{name},,\n", "utf-8", "surrogateescape")
    (site / "loop").symlink_to("loop")
    with pytest.raises(InstallError, match=r"outside|missing|no wheel can have"):
        repack(site, dists.scan(site)["lib"], tmp_path, "3.12")


def test_stubs_are_not_a_layers_own(tmp_path: Path) -> None:
    for name, installer in (("stub", "comfypod"), ("own", "pip")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "INSTALLER").write_text(f"{installer}\n")
    assert json.dumps(sorted(own_dists(tmp_path))) == '["own"]'


def test_a_file_of_any_length_is_repacked_in_no_time_to_speak_of(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    info = site / "lib-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"#!" + b"python" * (1 << 18))
    (info / "WHEEL").write_text("Tag: py3-none-any\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nk" + " " * 65_000 + "x\n")
    (info / "RECORD").write_text("../../../bin/tool,,\nlib-1.0.dist-info/entry_points.txt,,\n" * 2)
    began = time.process_time()
    path = repack(site, dists.scan(site)["lib"], tmp_path, "3.12")
    assert time.process_time() - began < 5
    with zipfile.ZipFile(path) as bundle:
        assert bundle.read("lib-1.0.data/scripts/tool").startswith(b"#!python")
