"""Programs started bare, under ComfyUI's launcher, and by a standby of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from comfypod.boot.guardline import LAUNCHER, GuardLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Way = Literal["plain", "launcher", "standby"]
WAYS: tuple[Way, ...] = get_args(Way)
AGAIN = 75


class Record:
    """What boot hands to launchers, and what they note there."""

    def __init__(self, image: Path, modules: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> None:
        self.descriptor = os.memfd_create("record")
        body: dict[str, Any] = {"image": str(image), "again": AGAIN}
        self._write(body if environ is None else {**body, "modules": list(modules), "environ": dict(environ)})

    def _write(self, body: dict[str, Any]) -> None:
        os.pwrite(self.descriptor, json.dumps(body).encode(), 0)

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(os.pread(self.descriptor, 1 << 22, 0))
        return found


def begin(
    main: Path, *arguments: str, numbers: Sequence[int], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a program under the launcher; `numbers` are the record and the standby's line, as far as given."""
    line = GuardLine(lambda _: None)
    line.tell(5.0, {})
    descriptors = (*line.descriptors, *numbers)
    return _start([str(LAUNCHER), ",".join(map(str, descriptors)), str(main), *arguments], descriptors, env, cwd)


def _start(
    words: Sequence[str], descriptors: Sequence[int], env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        pass_fds=descriptors, env=env, cwd=cwd,
    )  # fmt: skip


@contextmanager
def standing_by(
    main: Path, *arguments: str, record: Record, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Start a standby and wait until it waits; send a byte to have it go on."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = begin(main, *arguments, numbers=(record.descriptor, theirs.fileno()), env=env, cwd=cwd)
        with process:
            assert ours.recv(64) == b"waiting", process.stderr and process.stderr.read()
            yield process, ours


@contextmanager
def launch(way: Way, main: Path, *arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program in one of the ways, with nothing noted."""
    record = Record(cwd / "no-image", (), os.environ)
    match way:
        case "plain":
            with _start([str(main), *arguments], (), None, cwd) as process:
                yield process
        case "launcher":
            with begin(main, *arguments, numbers=(record.descriptor,), cwd=cwd) as process:
                yield process
        case "standby":
            with standing_by(main, *arguments, record=record, cwd=cwd) as (process, line):
                line.send(b"g")
                yield process
