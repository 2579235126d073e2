"""What the kernel knows of the memory of a process, and what is kept of that on a volume."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import pages

_LARGE_PAGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_LARGEST = int(_LARGE_PAGE.read_text()) if _LARGE_PAGE.exists() else 2 << 20


def test_the_parts_that_were_touched_are_told_and_no_other_file(tmp_path: Path) -> None:
    # What a line may end with elsewhere is a letter of a name to the kernel.
    if _LARGEST > 32 << 20:
        pytest.skip(f"this kernel's large pages are of {_LARGEST >> 20} MiB")
    touched = 2 * _LARGEST + _LARGEST // 2
    large, other = tmp_path / "lar\x1cge\u2028 \udcff.so", tmp_path / "other.so"
    for path in (large, other):
        path.write_bytes(bytes(4 * _LARGEST))
    with (
        large.open("rb") as handle, other.open("rb") as second,
        mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as seen,
        mmap.mmap(second.fileno(), 0, prot=mmap.PROT_READ) as unseen,
    ):  # fmt: skip
        seen[touched], unseen[0]
        found = pages.used(os.getpid(), {str(large)})
    assert list(found) == [str(large)]
    ((offset, length),) = found[str(large)]
    assert offset <= touched < offset + length
    # A kernel that holds a file in large pages gives a process the whole of one, never more of the file.
    assert touched - touched % _LARGEST <= offset
    assert offset + length <= touched - touched % _LARGEST + _LARGEST


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
