from __future__ import annotations

import os
import site
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.environment.startup import unknown

_IMAGE = Path("/opt/venv/lib/python3.11/site-packages")
_NAMESPACE = (
    "import sys, types, os;has_mfs = sys.version_info > (3, 5);p = os.path.join(sys._getframe(1).f_locals['sitedir'],"
    " *('google', 'cloud'));importlib = has_mfs and __import__('importlib.util');has_mfs and "
    "__import__('importlib.machinery');m = has_mfs and sys.modules.setdefault('google.cloud', importlib.util."
    "module_from_spec(importlib.machinery.PathFinder.find_spec('google.cloud', [os.path.dirname(p)])));m = m or "
    "sys.modules.setdefault('google.cloud', types.ModuleType('google.cloud'));mp = (m or []) and "
    "m.__dict__.setdefault('__path__',[]);(p not in mp) and mp.append(p);"
    "m and setattr(sys.modules['google'], 'cloud', m)"
)
_HARMLESS = [
    "../src", "# import os", "", " import os", "importlib", "import _virtualenv", _NAMESPACE,
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    "enabled and __import__('_distutils_hack').add_shim(); ",
    "import __editable___x_1_0_finder; __editable___x_1_0_finder.install()",
    f"import site; site.addsitedir('{_IMAGE}')",
]  # fmt: skip
_HARMFUL = [
    "import os", "import\tos", "import _virtualenv; import os", "import _virtualenv, os",
    "import site; site.addsitedir('/tmp/evil')", _NAMESPACE + ";import os",
    "import __editable___x_finder; __editable___y_finder.install()",
]  # fmt: skip


def _first(folder: Path, data: bytes) -> int:
    """Return the line that is found in a path file, 0 where none is."""
    (folder / "x.pth").write_bytes(data)
    found = unknown(folder, _IMAGE)
    return found[0].line if found else 0


@pytest.mark.parametrize("line", _HARMLESS)
def test_lines_that_are_known_or_are_not_run_pass(tmp_path: Path, line: str) -> None:
    assert _first(tmp_path, f"{line}\n".encode()) == 0


@pytest.mark.parametrize("line", _HARMFUL)
def test_lines_that_nobody_knows_are_found_where_they_are(tmp_path: Path, line: str) -> None:
    assert _first(tmp_path, f"../src\n{line}\n".encode()) == 2
    assert _first(tmp_path, b"\xef\xbb\xbf" + line.encode()) == 1


@given(
    st.lists(st.sampled_from(["import x", "import\tx", "x", "#", " ", "\n", "\r", "\x0c", "\x85", "\u2028", "\ufeff"]))
)
def test_nothing_that_python_itself_would_run_goes_unseen(pieces: list[str]) -> None:
    ran: list[str] = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "exec", ran.append, raising=False)
        patch.setattr(sys, "path", [])
        found = _first(Path(folder), "".join(pieces).encode())
        site.addpackage(folder, "x.pth", set())
    assert not ran or found


def test_what_cannot_be_read_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "x.pth").symlink_to("/dev/zero")
    (tmp_path / "y.pth").symlink_to("nowhere")
    assert [each.file for each in unknown(tmp_path, _IMAGE)] == ["x.pth", "y.pth"]


@pytest.mark.parametrize("data", [b"\xff\n", b"# \xe4\n../src\n"])
def test_a_path_file_that_would_end_any_start_of_python_is_found(tmp_path: Path, data: bytes) -> None:
    assert _first(tmp_path, data) == 1


@given(st.lists(st.sampled_from(["src", "/src", "#", " ", "\n", "\r", "\x0c", "\x85", "\u2028", "\ufeff", "\0"])))
def test_no_folder_that_python_itself_would_look_in_goes_unseen(pieces: list[str]) -> None:
    data, listed = "".join(pieces).encode(), list[Path]()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "exists", lambda path: "\0" not in path)
        patch.setattr(sys, "path", [])
        (Path(folder) / "x.pth").write_bytes(data)
        site.addpackage(folder, "x.pth", set())
        added = {Path(path) for path in sys.path}
        patch.setattr(os, "listdir", lambda path: [listed.append(Path(path)), "x.pth"][1:])  # type: ignore[func-returns-value]
        unknown(Path(folder), _IMAGE)
    assert added <= {Path(os.path.normpath(path)) for path in listed}


def test_an_archive_of_modules_is_found_where_a_folder_is_expected(tmp_path: Path) -> None:
    (tmp_path / "modules.zip").write_bytes(b"PK")
    assert _first(tmp_path, b"modules.zip\n") == 1
