"""What is read ahead, and when nothing is."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.readahead import Part, Readahead, is_resident, read_parts
from comfypod.launch.bundle import FORMAT
from tests.kit.lab import until

if TYPE_CHECKING:
    from pathlib import Path

PARTS = [["/opt/comfyui/a.py", [[0, 10]]], ["/opt/comfyui-else", [[0, 3]]], ["/lib/b.so", [[0, 4096], [8192, 5]]]]


def _record(path: Path, **changes: Any) -> str:
    body = {"format": FORMAT, "environment": "key", "size": 5, **changes}
    path.write_bytes(json.dumps(body).encode() + b"\ncodes")
    return str(path)


def _beside(path: Path, **changes: Any) -> None:
    body = {"format": FORMAT, "environment": "key", "core": "/opt/comfyui", "parts": PARTS, **changes}
    path.with_name(f"{path.name}.ahead").write_text(json.dumps(body))


def test_the_record_comes_first_and_comfyuis_own_files_are_those_of_the_volume(tmp_path: Path) -> None:
    path = _record(tmp_path / "record")
    _beside(tmp_path / "record")
    assert read_parts(path, "key", "/workspace/ComfyUI", {}) == [
        Part(path, 0, (tmp_path / "record").stat().st_size), Part("/workspace/ComfyUI/a.py", 0, 10),
        Part("/opt/comfyui-else", 0, 3), Part("/lib/b.so", 0, 4096), Part("/lib/b.so", 8192, 5),
    ]  # fmt: skip


def test_of_a_large_file_those_parts_are_read_that_the_volume_knows_and_nothing_that_no_record_names(
    tmp_path: Path,
) -> None:
    path = _record(tmp_path / "record")
    _beside(tmp_path / "record", parts=[["/lib/large.so", []], ["/lib/b.so", [[0, 5]]], ["/lib/unknown.so", []]])
    pages = {"/lib/large.so": [[4096, 10], [-1, 1], "no"], "/lib/b.so": [[7, 7]], "/etc/shadow": [[0, 9]]}
    assert read_parts(path, "key", "/core", pages)[1:] == [Part("/lib/large.so", 4096, 10), Part("/lib/b.so", 0, 5)]
    assert read_parts(path, "key", "/core", {"/lib/large.so": 5})[1:] == [Part("/lib/b.so", 0, 5)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"environment": "other"}, "other packages"), ({"size": 3}, "cut"), ({"format": FORMAT + 1}, "no record"),
     ({"size": None}, "no record")],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read_parts(_record(tmp_path / "record", **changes), "key", "/core", {})


@pytest.mark.parametrize(
    "changes",
    [{"environment": "other"}, {"format": 0}, {"core": None}, {"parts": {}}, {"parts": [1, ["/a"], ["/a", [[-1, 5]]]]},
     {"parts": [["/a", [[0, 0], ["0", 1], [1], 5]]]}, None],
)  # fmt: skip
def test_of_what_stands_beside_it_nothing_unfitting_is_read(tmp_path: Path, changes: dict[str, Any] | None) -> None:
    path = _record(tmp_path / "record")
    if changes is not None:
        _beside(tmp_path / "record", **changes)
    assert read_parts(path, "key", "/core", {}) == [Part(path, 0, (tmp_path / "record").stat().st_size)]


def test_all_is_asked_for_once_whatever_is_missing(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(9 << 20))
    parts = [Part(str(large), 0, 9 << 20), Part(str(tmp_path / "none"), 0, 7), Part(str(large), 4096, 5)]
    ahead = Readahead(parts)
    ahead.start()
    deadline = time.monotonic() + 20
    while ahead.asked < (9 << 20) + 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert ahead.asked == (9 << 20) + 5


def test_nothing_is_asked_for_after_the_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    ahead = Readahead([Part(str(tmp_path / "file"), 0, 100)])
    ahead.stop()
    ahead.start()
    time.sleep(0.1)
    assert ahead.asked == 0


def test_what_is_missing_is_not_waited_for(tmp_path: Path) -> None:
    assert is_resident([Part(str(tmp_path / "none"), 0, 100)])


_NUMBERS = st.integers(-1, 5) | st.integers(1 << 30, 1 << 70)


@given(
    st.dictionaries(
        st.sampled_from(["LARGE", "/none"]), st.lists(st.lists(_NUMBERS | st.text(), max_size=3)) | _NUMBERS
    )
)
def test_whatever_a_volume_says_of_large_files_the_rest_is_read_ahead(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("ahead")
    (folder / "LARGE").write_bytes(bytes(10))
    path = _record(folder / "record")
    _beside(folder / "record", parts=[[str(folder / "LARGE"), []], ["/none", []]])
    parts = read_parts(
        path, "key", "/core", {name.replace("LARGE", str(folder / "LARGE")): each for name, each in pages.items()}
    )
    is_resident(parts)
    ahead = Readahead([Part(part.path, part.offset, min(part.length, 9 << 20)) for part in parts])
    ahead.start()
    until(lambda: ahead.asked >= parts[0].length, "asked for")
    ahead.stop()
