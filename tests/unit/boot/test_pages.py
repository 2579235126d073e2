"""What the kernel knows of the memory of a process, and what is kept of that on a volume."""

from __future__ import annotations

import json
import mmap
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import pages

if TYPE_CHECKING:
    from pathlib import Path


def test_the_parts_that_were_touched_are_told_and_no_other_file(tmp_path: Path) -> None:
    # What a line may end with elsewhere is a letter of a name to the kernel.
    large, other = tmp_path / "lar\x1cge\u2028 \udcff.so", tmp_path / "other.so"
    for path in (large, other):
        path.write_bytes(bytes(8 << 20))
    with (
        large.open("rb") as handle, other.open("rb") as second,
        mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as seen,
        mmap.mmap(second.fileno(), 0, prot=mmap.PROT_READ) as unseen,
    ):  # fmt: skip
        seen[5 << 20], unseen[0]
        found = pages.used(os.getpid(), {str(large)})
    assert list(found) == [str(large)]
    ((offset, length),) = found[str(large)]
    assert offset <= 5 << 20 < offset + length
    assert length < 1 << 20


def test_a_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="pagemap"):
        pages.used(1 << 22, {"/lib/a.so"})


def test_they_are_kept_for_the_same_packages(tmp_path: Path) -> None:
    pages.write(tmp_path / "pages.json", "key", {"/lib/a.so": [[0, 4096]]})
    assert pages.read(tmp_path / "pages.json", "key") == {"/lib/a.so": [[0, 4096]]}
    assert pages.read(tmp_path / "pages.json", "other") == {}
    assert pages.read(tmp_path / "none", "key") == {}


@given(
    st.one_of(
        st.binary(max_size=200), st.recursive(st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
    )
)
def test_whatever_stands_there_is_no_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("pages") / "pages.json"
    path.write_bytes(data)
    assert pages.read(path, "key") == {}
