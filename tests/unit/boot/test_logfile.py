from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from comfypod.boot.logfile import LogFile, Logs
from comfypod.errors import Problem
from comfypod.files import tail
from comfypod.log import Console
from tests.kit.disks import tmpfs


def test_logs_rotate_by_size_and_keep_a_few(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "x.log", limit=100, kept=2)
    for number in range(40):
        log.write(f"line {number:02}\n".encode())
    log.close()
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2"]
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "logs").iterdir())
    assert tail(log.path, 1) == ["line 39"]


def test_a_log_goes_on_where_the_last_boot_left_it(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "x.log")
        log.write(word)
        log.close()
    assert tail(tmp_path / "x.log", 5) == ["one", "two"]


@pytest.mark.root
def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", megabytes=1):
        log = LogFile(tmp_path / "small" / "x.log")
        for _ in range(30):
            log.write(bytes(100_000))
        log.close()
        assert log.lost


def test_the_tail_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none", 3) == []


def test_a_pipe_in_the_place_of_a_log_loses_lines_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    log = LogFile(tmp_path / "a.log")
    log.write(b"line")
    assert log.lost


def test_what_a_pod_says_is_shown_at_once_and_kept_from_when_there_is_a_place(tmp_path: Path) -> None:
    shown, problems = io.StringIO(), list[Problem]()
    console = Console(shown)
    logs = Logs(tmp_path, console, problems.append)
    console.line("too early")
    logs.keep()
    console.line("in time")
    logs.of("comfyui")(b"one\ntwo \xff\n")
    logs.show("gateway", b"three\n")
    logs.close()
    assert [line for line in shown.getvalue().splitlines() if "|" in line] == [
        "comfyui | one", "comfyui | two \ufffd", "gateway | three",
    ]  # fmt: skip
    assert "too early" not in (tmp_path / "boot.log").read_text()
    assert (tmp_path / "boot.log").read_text().endswith(" in time\n")
    assert (tmp_path / "comfyui.log").read_bytes() == b"one\ntwo \xff\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot.log", "comfyui.log"]
    (tmp_path / "jupyter.log").mkdir()
    logs.of("jupyter")(b"lost\n")
    assert [problem.code for problem in problems] == ["storage"]
