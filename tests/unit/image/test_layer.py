from __future__ import annotations

import stat
import sys
import tempfile
from argparse import Namespace
from importlib.util import source_hash
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uv
from hypothesis import assume, given
from hypothesis import strategies as st

from comfypod import files
from comfypod.image import layer
from comfypod.image.layer import EPOCH, LayerError, finish, main, merge, staging
from tests.kit.repos import write_tree
from tests.kit.wheels import build_wheel, only_these

if TYPE_CHECKING:
    from collections.abc import Mapping

UV = uv.find_uv_bin()

NAMES = st.sampled_from(["a", "b", "c.py", "d"])
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.text("xy\n", max_size=4), max_size=6)


def facts(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, time and contents of everything below a folder by its relative name."""
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        held = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path.relative_to(root).as_posix()] = (about.st_mode, int(about.st_mtime), held)
    return found


def no_file_is_a_folder(*trees: Mapping[str, str]) -> bool:
    names = {name for tree in trees for name in tree}
    return not any(other.startswith(f"{name}/") for name in names for other in names)


def test_finished_files_have_one_time_plain_modes_and_bytecode(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"opt/a.py": "x = 1\n", "opt/run": "", "opt/secret": ""})
    (root / "opt" / "run").chmod(0o4770)
    (root / "opt" / "secret").chmod(0o600)
    (root / "opt").chmod(0o2700)
    (root / "opt" / "link").symlink_to("/nowhere")
    finish(root, unchecked=True)
    found = facts(root)
    assert {time for _, time, _ in found.values()} == {EPOCH}
    modes = {name: stat.S_IMODE(mode) for name, (mode, _, _) in found.items() if not stat.S_ISLNK(mode)}
    cached = f"opt/__pycache__/a.{sys.implementation.cache_tag}.pyc"
    assert modes == {
        "opt": 0o755, "opt/a.py": 0o644, "opt/run": 0o755, "opt/secret": 0o644, "opt/__pycache__": 0o755, cached: 0o644,
    }  # fmt: skip


@pytest.mark.parametrize(("unchecked", "flags"), [(True, 1), (False, 3)])
def test_bytecode_goes_by_contents_and_not_by_time(unchecked: bool, flags: int, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"opt/a.py": "x = 1\n"})
    finish(root, unchecked=unchecked)
    data = next(root.rglob("*.pyc")).read_bytes()
    assert int.from_bytes(data[4:8], "little") == flags
    assert data[8:16] == source_hash(b"x = 1\n")
    assert b"/opt/a.py" in data
    assert str(tmp_path).encode() not in data


def test_a_file_that_is_no_python_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"template.py": "{% if python %}\n", "z.py": "x = 1\n"})
    finish(root, unchecked=True)
    assert [path.name.partition(".")[0] for path in root.rglob("*.pyc")] == ["z"]


def test_h1_finishing_a_copy_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = {f"p/m{number}.py": f"def f{number}(a, b={number}):\n    return {{a, b, 'x'}}\n" for number in range(40)}
    one, other = (write_tree(tmp_path / name / "root", contents) for name in ("one", "other"))
    finish(one, unchecked=True)
    finish(other, unchecked=True)
    assert facts(one) == facts(other)


@given(TREES, TREES)
def test_merging_adds_files_and_replaces_those_of_the_same_name(one: dict[str, str], other: dict[str, str]) -> None:
    assume(no_file_is_a_folder(one, other))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source, target = write_tree(place / "s", other), write_tree(place / "t", one)
        source.mkdir(exist_ok=True)
        merge(source, target)
        left = {p.relative_to(target).as_posix(): p.read_text() for p in target.rglob("*") if p.is_file()}
        assert left == {**one, **other}
        assert not [path for path in source.rglob("*") if path.is_file()]


def test_staging_touches_nothing_else_in_the_image(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "image", {"opt/venv/old.py": "x = 1\n", "etc/passwd": "root\n"})
    before = facts(root)
    with staging(root, unchecked=True) as staged:
        write_tree(staged, {"opt/venv/new.py": "y = 1\n"})
    after = facts(root)
    assert {name: row for name, row in after.items() if name in ("opt/venv/old.py", "etc", "etc/passwd")} == {
        name: row for name, row in before.items() if name in ("opt/venv/old.py", "etc", "etc/passwd")
    }
    cached = f"opt/venv/__pycache__/new.{sys.implementation.cache_tag}.pyc"
    assert after.keys() - before.keys() == {"opt/venv/new.py", "opt/venv/__pycache__", cached}


def test_staging_that_fails_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "image", {"opt/a": ""})
    before = facts(root)

    def fail() -> None:
        with staging(root, unchecked=True) as staged:
            write_tree(staged, {"opt/b": ""})
            raise LayerError("b", "it is broken")

    with pytest.raises(LayerError):
        fail()
    assert facts(root) == before


def options(tmp_path: Path, **more: object) -> Namespace:
    given = {"venv": Path("/opt/venv"), "root": tmp_path / "layer", "tests": None, "without_tests": False}
    return Namespace(**{**given, **more})


TREE = {
    "opt/venv/lib/python3.11/site-packages/lib/__init__.py": "x = 1\n",
    "opt/venv/lib/python3.11/site-packages/lib/tests/test_lib.py": "y = 1\n",
    "opt/venv/lib/python3.11/site-packages/lib/testing/__init__.py": "z = 1\n",
    "opt/venv/lib/python3.11/site-packages/tests/__init__.py": "a package of this name\n",
}
SUITE = "opt/venv/lib/python3.11/site-packages/lib/tests"


def test_test_suites_inside_packages_are_left_out_or_set_aside(tmp_path: Path) -> None:
    for number, (how, there, aside) in enumerate((({"without_tests": True}, False, False), ({}, True, False))):
        staged = write_tree(tmp_path / str(number) / "root", TREE)
        layer._set_tests_aside(options(tmp_path, **how), staged)
        assert (staged / SUITE).is_dir() == there
        assert (staged / "opt/venv/lib/python3.11/site-packages/lib/testing").is_dir()
        assert (staged / "opt/venv/lib/python3.11/site-packages/tests").is_dir()
        assert not aside
    place = tmp_path / "layers" / "tests"
    for number in (2, 3):
        staged = write_tree(tmp_path / str(number) / "root", TREE)
        layer._set_tests_aside(options(tmp_path, tests=place), staged)
        assert not (staged / SUITE).exists()
    assert (place / SUITE / "test_lib.py").read_text() == "y = 1\n"
    assert {time for _, time, _ in facts(place).values()} == {EPOCH}


@pytest.mark.parametrize(
    ("said", "item"),
    [
        ("Using CPython\nerror: Failed to download `lib-b==1.0`\n  cause: Hash mismatch for `lib-b==1.0`", "lib-b"),
        ("error: Because lib-a was not found in the package registry and you require lib-a==1.0", "lib-a"),
        ("Using lib-a\n\nerror: Request failed after 3 retries: lib-b", "lib-b"),
        ("error: something else", "one of lib-a, lib-b"),
    ],
)
def test_the_package_that_uv_complains_of_is_named(said: str, item: str, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("lib-a==1.0 --hash=sha256:aa\nlib-b==1.0 --hash=sha256:bb\n")
    assert layer._guilty(said, listing) == item


def test_what_uv_said_is_one_line_without_what_went_before() -> None:
    assert layer._said("Using CPython\n\n\nerror: no\n  cause: it\n\n  hint: that\n") == "no; cause: it; hint: that"


def only_wheels(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name, value in only_these(folder / "wheels").items():
        monkeypatch.setenv(name, value)


def locked(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(tmp_path / "list")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    folder = tmp_path / "venv"
    assert main(["venvs", str(folder)]) == 0
    return folder


def packages(tmp_path: Path, venv: Path, uv: str, *more: str) -> list[str]:
    given = ["--locked", str(tmp_path / "list"), "--venv", str(venv), "--root", str(tmp_path / "layer")]
    return ["packages", "--uv", uv, *given, *more]


def test_locked_packages_become_a_layer_and_nothing_else_does(
    tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path / "wheels", "lib", "1.0")
    only_wheels(monkeypatch, tmp_path)
    locked(tmp_path, f"lib==1.0 --hash=sha256:{files.sha256_file(wheel)}")
    assert main(packages(tmp_path, venv, UV)) == 0
    found = facts(tmp_path / "layer")
    names = {Path(name).name for name, (mode, _, _) in found.items() if stat.S_ISREG(mode)}
    assert {"lib.py", "METADATA", "RECORD", f"lib.{sys.implementation.cache_tag}.pyc"} <= names
    assert not names & {".lock", "CACHEDIR.TAG"}
    assert {time for _, time, _ in found.values()} == {EPOCH}
    assert {stat.S_IMODE(mode) for mode, _, _ in found.values()} <= {0o755, 0o644}


def test_a_wheel_with_another_hash_is_refused_by_name_and_leaves_no_file(
    tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_wheel(tmp_path / "wheels", "lib", "1.0")
    only_wheels(monkeypatch, tmp_path)
    locked(tmp_path, f"lib==1.0 --hash=sha256:{'0' * 64}")
    assert main(packages(tmp_path, venv, UV)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("COMFYPOD FAILED lib: ")
    assert "hash" in last.lower()
    assert facts(tmp_path / "layer") == {}


def test_an_empty_list_is_an_empty_layer_and_a_missing_one_is_an_error(tmp_path: Path, venv: Path) -> None:
    locked(tmp_path)
    assert main(packages(tmp_path, venv, "/no/uv")) == 0
    assert facts(tmp_path / "layer") == {}
    (tmp_path / "list.txt").unlink()
    assert main(packages(tmp_path, venv, "/no/uv")) == 1


def test_kept_environments_are_whole_and_as_old_as_the_rest(tmp_path: Path, venv: Path) -> None:
    assert main(["keep", "--root", str(tmp_path / "layer"), str(venv)]) == 0
    kept = tmp_path / "layer" / venv.relative_to("/")
    assert facts(kept) == facts(venv)
    assert {time for _, time, _ in facts(tmp_path / "layer").values()} == {EPOCH}


def test_comfypods_own_code_starts_by_its_script_and_brings_no_old_bytecode(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"__main__.py": "def main(): return 0\n", "__pycache__/old.pyc": "old"})
    assert main(["code", "--source", str(source), "--venv", "/opt/comfypod", "--root", str(tmp_path / "layer")]) == 0
    found = facts(tmp_path / "layer")
    assert found["opt/comfypod/bin/comfypod"][2].startswith(b"#!/opt/comfypod/bin/python -I\n")
    assert stat.S_IMODE(found["opt/comfypod/bin/comfypod"][0]) == 0o755
    assert not [name for name in found if name.endswith("old.pyc")]
    assert [
        name for name in found if name.endswith(f"comfypod/__pycache__/__main__.{sys.implementation.cache_tag}.pyc")
    ]
