from __future__ import annotations

from pathlib import Path

import pytest

from comfypod.boot import memory
from comfypod.boot.memory import Memory

_V2 = {
    "memory.max": "2147483648", "memory.peak": "2147479552", "memory.current": "1000000",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 0",
}  # fmt: skip
_V1 = {
    "memory.limit_in_bytes": "2147483648", "memory.max_usage_in_bytes": "2147479552",
    "memory.usage_in_bytes": "1000000", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
}  # fmt: skip
_FOUND = Memory(limit=2147483648, peak=2147479552, used=1000000, oom_kills=3)


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def _own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/\n", ".", _V2),
        ("0::/user.slice/pod\n", "user.slice/pod", _V2),
        ("0::/named/outside/the/container\n", ".", _V2),
        ("9:cpu,memory:/pod\n0::/\n", "memory/pod", _V1),
        ("9:memory:/docker/0af3\n", "memory", _V1),
        ("", ".", _V2),
        ("", "memory", _V1),
    ],
)
def test_e2_both_versions_are_read_where_this_process_is(
    tmp_path: Path, own: str, folder: str, files: dict[str, str]
) -> None:
    _write(tmp_path / "cgroup" / folder, files)
    assert memory.read(tmp_path / "cgroup", _own(tmp_path, own)) == _FOUND


@pytest.mark.parametrize("files", [_V2 | {"memory.max": "max"}, _V1 | {"memory.limit_in_bytes": "9223372036854771712"}])
def test_e2_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    _write(tmp_path if "memory.max" in files else tmp_path / "memory", files)
    found = memory.read(tmp_path, _own(tmp_path, ""))
    assert (found.limit, found.used) == (None, 1000000)


def test_e2_what_a_kernel_does_not_tell_is_none(tmp_path: Path) -> None:
    _write(tmp_path, {"memory.current": "5", "memory.events": "nonsense"})
    assert memory.read(tmp_path, tmp_path / "none") == Memory(used=5)
    assert memory.read(tmp_path / "nothing", tmp_path / "none") == Memory()


_STAT = "anon 1\ninactive_file 300\nactive_file 50\nshmem 7\nbroken\n"


@pytest.mark.parametrize(
    ("files", "machine", "free"),
    [
        (_V2 | {"memory.stat": _STAT}, "MemTotal: 9 kB\nMemAvailable:  4000000 kB\n", 2147483648 - 1000000 + 350),
        (_V1, "MemAvailable:  4000000 kB\n", 2147483648 - 1000000),
        (_V2, "MemAvailable:  1000 kB\n", 1024000),
        (_V2 | {"memory.max": "max"}, "MemAvailable:  1000 kB\n", 1024000),
        (_V2 | {"memory.max": "max"}, "nonsense", None),
    ],
)
def test_what_is_free_is_what_group_and_machine_would_give_files_included(
    tmp_path: Path, files: dict[str, str], machine: str, free: int | None
) -> None:
    _write(tmp_path / "memory" if "memory.oom_control" in files else tmp_path, files)
    (tmp_path / "meminfo").write_text(machine)
    assert memory.free(tmp_path, _own(tmp_path, ""), tmp_path / "meminfo") == free


def test_this_machine_can_be_read() -> None:
    assert set(memory.read().shown()) == {"limit", "peak", "used"}


@pytest.mark.parametrize("returncode", [-9, 137])
def test_e2_a_kill_that_the_kernel_counted_is_said_with_limit_and_peak(returncode: int) -> None:
    cause = memory.ran_out(Memory(oom_kills=2), _FOUND, returncode)
    assert cause is not None
    assert cause.code == "out-of-memory"
    assert cause.told == "ran out of memory and was killed (limit 2.1 GB, peak 2.1 GB)"
    assert "--lowvram" in cause.hint


@pytest.mark.parametrize(
    ("before", "after", "returncode"),
    [
        (Memory(oom_kills=3), _FOUND, -9),
        (Memory(oom_kills=2), _FOUND, 1),
        (Memory(oom_kills=2), _FOUND, -15),
        (Memory(), _FOUND, -9),
        (Memory(oom_kills=2), Memory(), -9),
    ],
)
def test_e2_any_other_death_is_not_put_down_to_memory(before: Memory, after: Memory, returncode: int) -> None:
    assert memory.ran_out(before, after, returncode) is None


def test_e2_without_figures_there_is_still_a_reason() -> None:
    cause = memory.ran_out(Memory(oom_kills=0), Memory(oom_kills=1), -9)
    assert cause is not None
    assert cause.told == "ran out of memory and was killed"
