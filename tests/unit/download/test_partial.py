from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfypod.download import partial
from comfypod.download.partial import Kept, Partial
from comfypod.download.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEPT = Kept("../models/a", "https://h/a", 1000, "", '"one"')


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Partial]:
    folder = partial.folder_of(tmp_path / "site", tmp_path / "models" / "a")
    folder.mkdir(parents=True)
    opened = Partial(folder)
    opened.begin(KEPT, [])
    yield opened
    opened.close()


def test_what_is_noted_is_read_by_anyone(file: Partial, tmp_path: Path) -> None:
    file.note(Piece(0, 0, 100, 500))
    file.note(Piece(2, 500, 700, 1000))
    known = partial.read(file.folder)
    assert known is not None
    assert known[1] == [(0, 100), (500, 700)]
    assert partial.progress(tmp_path / "site") == {tmp_path / "models" / "a": (300, 1000)}


def test_on_another_machine_or_after_a_restart_only_what_is_on_the_disk_counts(
    file: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.note(Piece(0, 0, 100, 500))
    file.mark([(0, 100)])
    file.note(Piece(0, 0, 200, 500))
    monkeypatch.setattr(partial, "this_machine", lambda: "another")
    known = partial.read(file.folder)
    assert known is not None
    assert known[1] == [(0, 100)]
    (file.folder / "mark").unlink()
    known = partial.read(file.folder)
    assert known is not None
    assert known[1] == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.one_of(st.binary(max_size=200), st.builds(lambda body, tail: json.dumps(body).encode() + b"\n" + tail,
    st.dictionaries(st.sampled_from(["target", "url", "size", "sha256", "etag", "machine"]),
        st.one_of(st.integers(), st.text(max_size=5), st.none(), st.booleans())), st.binary(max_size=64))))  # fmt: skip
def test_garbage_in_a_record_is_no_record(file: Partial, garbage: bytes) -> None:
    (file.folder / "record").write_bytes(garbage)
    known = partial.read(file.folder)
    assert known is None or all(0 <= start < stop for start, stop in known[1])
    partial.progress(file.site)


def test_g8_a_record_cannot_name_a_target_that_is_not_its_own(file: Partial, tmp_path: Path) -> None:
    (file.folder / "record").write_text(json.dumps({"target": "../../etc/passwd", "url": "", "size": 5}) + "\n")
    assert partial.progress(tmp_path / "site") == {}


@pytest.mark.parametrize("planted", ["link", "pipe", "folder"])
def test_g8_what_is_planted_in_the_place_of_the_data_is_not_followed(tmp_path: Path, planted: str) -> None:
    (tmp_path / "precious").write_text("precious")
    place = tmp_path / "data"
    if planted == "link":
        place.symlink_to(tmp_path / "precious")
    elif planted == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(OSError, match="data"):
        Partial(tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({}, {"size": -1, "etag": ""}, True),
        ({}, {"size": 999}, False),
        ({}, {"etag": '"two"'}, False),
        ({}, {"url": "https://other/a", "etag": ""}, False),
        ({"etag": ""}, {"etag": ""}, False),
        ({"size": -1}, {}, False),
        ({"sha256": "a"}, {"sha256": "a", "url": "https://mirror/a", "etag": '"two"'}, True),
        ({"sha256": "a"}, {"sha256": "b"}, False),
    ],
)
def test_d2_a_partial_file_goes_on_only_as_the_same_file(
    before: dict[str, str], now: dict[str, str], same: bool
) -> None:
    from dataclasses import replace

    assert replace(KEPT, **before).goes_on(replace(KEPT, **now)) is same  # type: ignore[arg-type]
