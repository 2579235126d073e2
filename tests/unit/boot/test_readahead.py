"""What is read ahead, and when nothing is."""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.boot.readahead import Part, Readahead, is_resident, read_head, read_parts

if TYPE_CHECKING:
    from pathlib import Path


def _record(path: Path, parts: list[Any], **changes: Any) -> str:
    data = json.dumps(parts).encode()
    body = {
        "format": 1, "environment": "key", "core": "/opt/comfyui", "size": len(data) + 5,
        "ranges": [0, len(data), zlib.crc32(data)], **changes,
    }  # fmt: skip
    path.write_bytes(json.dumps(body).encode() + b"\n" + data + b"codes")
    return str(path)


def test_the_record_comes_first_and_comfyuis_own_files_are_those_of_the_volume(tmp_path: Path) -> None:
    ranges = [["/opt/comfyui/a.py", [[0, 10]]], ["/opt/comfyui-else", [[0, 3]]], ["/lib/b.so", [[0, 4096], [8192, 5]]]]
    path = _record(tmp_path / "record", ranges)
    head = read_head(path, "key")
    assert read_parts(path, head, "/workspace/ComfyUI") == [
        Part(path, 0, head.size), Part("/workspace/ComfyUI/a.py", 0, 10), Part("/opt/comfyui-else", 0, 3),
        Part("/lib/b.so", 0, 4096), Part("/lib/b.so", 8192, 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"environment": "other"}, "other packages"), ({"size": 3}, "cut"), ({"format": 2}, "no record"),
     ({"ranges": None}, "no record"), ({"ranges": [-1, 2, 3]}, "cut"), ({"ranges": [0, 1 << 40, 3]}, "cut")],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read_head(_record(tmp_path / "record", [], **changes), "key")


def test_ranges_that_are_damaged_are_refused(tmp_path: Path) -> None:
    path = _record(tmp_path / "record", [], ranges=[0, 2, 1])
    with pytest.raises(ValueError, match="damaged"):
        read_parts(path, read_head(path, "key"), "/core")


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
