"""What a start touches, noted: modules by folder and name, parts of files."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.environment.recording import RECORDER
from tests.kit.cold import CHECKED, KEY, TIMES, Place

if TYPE_CHECKING:
    import py_compile
    from pathlib import Path


@pytest.fixture(scope="module")
def writer() -> Any:
    spec = importlib.util.spec_from_file_location("writer", RECORDER.with_name("writer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["writer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["writer"]


def _modules(place: Place, record: bytes) -> dict[str, Any]:
    """Return the modules of the image that a record has, by folder."""
    head, _, rest = record.partition(b"\n")
    offset, length, _ = json.loads(head)["index"]
    done = subprocess.run(
        [place.python, "-c", "import marshal, sys; print(marshal.loads(sys.stdin.buffer.read())[0])"],
        input=rest[offset : offset + length], capture_output=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = ast.literal_eval(done.stdout.decode())
    return found


def test_parts_that_lie_close_together_are_one(writer: Any) -> None:
    far = 10 << 20
    assert writer.merged([[far, 4096], [0, 4096], [8192, 4096], [4096, 100]]) == [[0, 12288], [far, 4096]]
    assert writer.merged([[0, 9000], [100, 10]]) == [[0, 9000]]
    assert writer.merged([]) == []


@pytest.mark.parametrize("mode", [TIMES, CHECKED])
def test_bytecode_counts_only_while_python_would_use_it(
    writer: Any, tmp_path: Path, mode: py_compile.PycInvalidationMode
) -> None:
    import py_compile

    source = tmp_path / "one.py"
    source.write_text("a = 1\n")
    with pytest.raises(OSError, match="one"):
        writer.bytecode(str(source))
    compiled = py_compile.compile(str(source), invalidation_mode=mode)
    assert compiled is not None
    data, facts = writer.bytecode(str(source))
    assert data == (tmp_path / compiled).read_bytes()[16:]
    assert (facts[0] == 0) is (mode is CHECKED)
    source.write_text("a = 22\n")
    with pytest.raises(ValueError, match="one"):
        writer.bytecode(str(source))


def test_the_record_names_what_was_read_and_mapped_and_nothing_of_the_start_itself(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(place.site / "single.py", f"open({str(place.site / 'pkg' / 'data.txt')!r}).read()\nword = 'image'\n")
    place.make()
    head, _, rest = place.record.read_bytes().partition(b"\n")
    body, beside = json.loads(head), json.loads((tmp_path / "record.ahead").read_text())
    assert body["environment"] == beside["environment"] == KEY
    assert body["size"] == len(rest)
    assert beside["core"] == str(place.core)
    ranges = dict(beside["parts"])
    assert ranges[str(place.site / "pkg" / "data.txt")] == [[0, len("data\n")]]
    assert any(".so" in path for path in ranges)
    # Bytecode that is in the record, and what the start wrote, is not read again.
    assert not any(path.endswith(("inner.py", "helper.pyc")) for path in ranges)
    assert not any(path.startswith((str(place.layer), str(RECORDER.parent), "/proc", "/dev")) for path in ranges)


def test_two_records_of_one_start_are_the_same_bytes(tmp_path: Path) -> None:
    place = Place(tmp_path, CHECKED)
    place.add_transformers()
    place.make()
    beside = tmp_path / "record.ahead"
    first = place.record.read_bytes(), beside.read_bytes()
    place.make(PYTHONHASHSEED="7")
    assert (place.record.read_bytes(), beside.read_bytes()) == first


def test_what_other_threads_import_and_what_comes_by_the_network_is_in_no_record(tmp_path: Path) -> None:
    place = Place(tmp_path)
    lines = [
        "import socket, threading",
        "def beside():",
        "    import late, single",
        "thread = threading.Thread(target=beside)",
        "thread.start()",
        "thread.join()",
        "import single",
        "try:",
        "    socket.getaddrinfo('comfypod.invalid', 80)",
        "except OSError as error:",
        f"    open({str(tmp_path / 'said')!r}, 'w').write(str(error))",
        "word = 'built'",
    ]
    place.write(place.core / "own" / "helper.py", "\n".join(lines))
    place.make()
    known = _modules(place, place.record.read_bytes())
    assert "single" in known[str(place.site)]
    assert "late" not in known[str(place.site)]
    assert "without a network" in (tmp_path / "said").read_text()


def test_a_start_that_fails_leaves_no_record(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(place.core / "main.py", "import pkg\n1 / 0\n")
    argv = [str(place.python), str(RECORDER), str(place.record), KEY, "", str(place.core / "main.py"), "--port", "1"]
    done = subprocess.run(argv, env=place.environ, cwd=place.layer, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert sorted(tmp_path.glob("record*")) == []


def test_a_record_of_packages_has_what_can_be_imported_and_is_the_same_whatever_comfyui_is(tmp_path: Path) -> None:
    place = Place(tmp_path)
    base = place.make_base()
    first = base.read_bytes()
    place.write(place.core / "own" / "helper.py", "import single\n\nword = 'changed'\n")
    place.make_base()
    assert base.read_bytes() == first
    known = _modules(place, first)
    assert set(known[str(place.site)]) >= {"pkg", "late"}
    assert not {"broken", "quits", "_hidden", "single"} & set(known[str(place.site)])
    assert "inner" in known[str(place.site / "pkg")]
