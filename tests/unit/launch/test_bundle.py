"""A start whose imports come from a record: what fits is used, what runs is what Python would run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.kit.cold import CHECKED, FILES, KEY, TIMES, Place

if TYPE_CHECKING:
    import py_compile
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    found.make()
    return found


def test_modules_are_those_of_a_plain_start(place: Place) -> None:
    assert place.start() == place.plain()
    assert place.refused == []


def test_what_the_image_has_is_imported_without_a_look_at_its_files(place: Place) -> None:
    before = place.plain()
    times = [(folder, folder.stat()) for folder in (place.site, place.site / "pkg")]
    for name in ("pkg/inner.py", "single.py"):
        (place.site / name).unlink()
        for compiled in (place.site / name).parent.glob(f"__pycache__/{(place.site / name).stem}.*"):
            compiled.unlink()
    for folder, facts in times:
        os.utime(folder, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert place.start() == before


@pytest.mark.parametrize("mode", [TIMES, CHECKED])
def test_what_comfyui_has_of_its_own_is_used_while_it_is_unchanged(
    tmp_path: Path, mode: py_compile.PycInvalidationMode
) -> None:
    place = Place(tmp_path, mode)
    place.make()
    helper = place.core / "own" / "helper.py"
    for compiled in helper.parent.glob("__pycache__/helper.*"):
        compiled.unlink()
    asks = "found['compiled'] = os.path.exists(own.helper.__cached__)"
    # Python writes bytecode that it had to make itself.
    assert place.start(f"import os\n{asks}")["compiled"] is False
    assert place.plain(f"import os\n{asks}")["compiled"] is True


@pytest.mark.parametrize("mode", [TIMES, CHECKED])
def test_a_changed_source_on_the_volume_is_what_runs(tmp_path: Path, mode: py_compile.PycInvalidationMode) -> None:
    place = Place(tmp_path, mode)
    place.make()
    helper = place.core / "own" / "helper.py"
    facts = helper.stat()
    helper.write_text("word = 'owned'\n" if mode is CHECKED else "word = 'changed'\n")
    if mode is CHECKED:
        # Images give all files one time, and releases may differ in one digit.
        os.utime(helper, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert helper.stat().st_size == facts.st_size
    assert place.start()["own.word"] == place.plain()["own.word"] == helper.read_text().split("'")[1]


def test_a_package_of_the_volume_goes_before_that_of_the_image(place: Place) -> None:
    place.write(place.layer / "single.py", "word = 'volume'\n")
    assert place.start() == place.plain()
    assert place.start()["single.word"] == "volume"


def test_what_is_new_in_a_folder_of_the_image_is_found(place: Place) -> None:
    place.write(place.site / "pkg" / "new.py", "word = 'new'\n")
    code = "import pkg.new, late; found['new'] = shown(pkg.new) + shown(late)"
    assert place.start(code) == place.plain(code)


def _garbage(place: Place) -> None:
    place.record.write_bytes(os.urandom(2000))


def _cut(place: Place) -> None:
    os.truncate(place.record, place.record.stat().st_size - 1)


def _damaged(place: Place) -> None:
    head, newline, rest = place.record.read_bytes().partition(b"\n")
    place.record.write_bytes(head + newline + bytes([rest[0] ^ 1]) + rest[1:])


def _changed_head(place: Place, **changes: object) -> None:
    head, newline, rest = place.record.read_bytes().partition(b"\n")
    place.record.write_bytes(json.dumps({**json.loads(head), **changes}).encode() + newline + rest)


def _another_python(place: Place) -> None:
    _changed_head(place, python="3.11.0 (another)")


def _another_format(place: Place) -> None:
    _changed_head(place, format=99)


def _odd(place: Place) -> None:
    _changed_head(place, index="none")


def _installed(place: Place) -> None:
    os.utime(place.site, (1, 1))


def _missing(place: Place) -> None:
    place.record.unlink()


_UNFIT = {
    _garbage: "no record", _cut: "cut", _damaged: "damaged", _another_python: "another Python",
    _another_format: "no record", _odd: "no record", _installed: "packages have changed", _missing: "No such file",
}  # fmt: skip


@pytest.mark.parametrize("spoil", _UNFIT, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_record_that_does_not_fit_is_not_used_and_boot_is_told_why(place: Place, spoil: object) -> None:
    assert callable(spoil)
    spoil(place)
    assert place.start() == place.plain()
    (reason,) = place.refused
    assert _UNFIT[spoil] in reason


def test_a_record_of_other_packages_is_not_used(place: Place) -> None:
    assert place.start(key="sha256:others") == place.plain()
    assert place.refused == ["it is of other packages"]
    assert place.start(key=KEY) == place.plain()
    assert place.refused == []


def test_bytecode_that_is_damaged_is_not_run(place: Place) -> None:
    head, newline, rest = place.record.read_bytes().partition(b"\n")
    codes = json.loads(head)["codes"]
    place.record.write_bytes(head + newline + rest[:codes] + bytes(len(rest) - codes))
    assert place.start() == place.plain()


def test_tracebacks_sources_resources_and_reloads_are_those_of_a_plain_start(place: Place) -> None:
    code = """
import importlib, importlib.resources, inspect, pickle, pkgutil, traceback
try:
    pkg.inner.fail()
except ValueError:
    found["said"] = [line for line in traceback.format_exc().splitlines() if "pkg" in line or "# here" in line]
found["source"] = inspect.getsource(pkg.inner.fail)
found["data"] = importlib.resources.files("pkg").joinpath("data.txt").read_text()
found["listed"] = sorted(each.name for each in pkgutil.iter_modules(pkg.__path__))
found["spec"] = importlib.util.find_spec("late").origin
found["again"] = shown(importlib.reload(pkg.inner))
found["get"] = [pkg.inner.__loader__.get_source("pkg.inner"), pkg.inner.__loader__.is_package("pkg.inner")]
found["code"] = pkg.inner.__loader__.get_code("pkg.inner").co_filename
importlib.invalidate_caches()
import late
found["late"] = shown(late)
"""
    found = place.start(code)
    assert found == place.plain(code)
    assert any("# here" in line for line in found["said"])


@pytest.mark.parametrize("apart", [False, True])
def test_what_transformers_finds_in_its_sources_is_known_and_they_are_not_read(tmp_path: Path, apart: bool) -> None:
    place = Place(tmp_path)
    place.add_transformers()
    place.make(place.make_base() if apart else "")
    shown = """
import transformers
from transformers.utils import import_utils
def plain(value):
    if isinstance(value, dict):
        return sorted([sorted(key) if isinstance(key, frozenset) else key, plain(each)] for key, each in value.items())
    return sorted(value)
models = os.path.join(os.path.dirname(transformers.__file__), "models")
found["first"] = plain(transformers.found)
transformers.found["one"].clear()
again = import_utils.create_import_structure_from_path(models)
found["again"] = plain(again)
found["single"] = plain(import_utils.create_import_structure_from_path(os.path.join(models, "two")))
found["name"] = import_utils.create_import_structure_from_path.__name__, again["one"].__class__.__name__
"""
    before = place.plain(shown)
    assert before["first"] == before["again"] != []
    (place.site / "transformers" / "models" / "one" / "modeling_one.py").unlink()
    assert place.start(shown) == before
    # What nobody has asked for while it was recorded is read.
    (place.site / "transformers" / "models" / "two" / "modeling_two.py").write_text("Other")
    assert [["tokenizers", "torch"], [["modeling_two", ["Other"]]]] in place.start(shown)["single"]


def test_what_all_starts_have_in_common_comes_from_a_record_of_its_own(tmp_path: Path) -> None:
    place = Place(tmp_path)
    base = place.make_base()
    before = place.plain()
    place.make(base)
    assert place.start() == before
    assert place.refused == []
    beside = dict(json.loads((tmp_path / "record.ahead").read_text())["parts"])
    assert sum(length for _, length in beside[str(base)]) <= base.stat().st_size
    facts = (place.site / "pkg").stat()
    for path in (place.site / "pkg").rglob("inner*"):
        path.unlink()
    os.utime(place.site / "pkg", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert place.start() == before
    place.write(place.site / "pkg" / "inner.py", FILES["pkg/inner.py"])
    small = place.record.stat().st_size
    place.make()
    assert small < place.record.stat().st_size


def test_with_it_large_modules_of_comfyuis_own_are_left_to_python(tmp_path: Path) -> None:
    place = Place(tmp_path, CHECKED)
    large = f"word = 'enormous'\ntable = {list(range(10_000))}\n"
    place.write(place.core / "own" / "helper.py", large)
    place.make(place.make_base())
    assert b"enormous" not in place.record.read_bytes()
    beside = dict(json.loads((tmp_path / "record.ahead").read_text())["parts"])
    assert any(path.endswith(".pyc") and "helper" in path for path in beside)
    assert place.start() == place.plain()
    place.make()
    assert b"enormous" in place.record.read_bytes()


@pytest.mark.parametrize("spoil", ["gone", "cut", "of something else"])
def test_a_record_whose_other_part_does_not_fit_is_not_used(tmp_path: Path, spoil: str) -> None:
    place = Place(tmp_path)
    base = place.make_base()
    place.make(base)
    before = place.plain()
    if spoil == "gone":
        base.unlink()
    elif spoil == "cut":
        os.truncate(base, base.stat().st_size - 1)
    else:
        place.write(place.site / "late.py", "new = 1\n")
        place.make_base()
    assert place.start() == before
    assert len(place.refused) == 1
    assert {"gone": "cannot be read", "cut": "cut"}.get(spoil, "something else") in place.refused[0]


@pytest.mark.parametrize("spoil", ["changed", "gone", "shadowed"])
def test_a_record_of_packages_that_holds_no_more_is_no_part_of_that_of_a_start(tmp_path: Path, spoil: str) -> None:
    place = Place(tmp_path)
    base = place.make_base()
    if spoil == "changed":
        place.write(place.site / "late.py", "new = 1\n")
    elif spoil == "gone":
        (place.site / "late.py").unlink()
    else:
        place.write(place.site / "late" / "__init__.py", "new = 1\n")
    place.make(base)
    assert json.loads(place.record.read_bytes().partition(b"\n")[0])["base"] is None
    asks = "" if spoil == "gone" else "import late\nfound['late'] = vars(late).get('new')"
    assert place.start(asks) == place.plain(asks)
