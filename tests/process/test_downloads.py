"""The download door as real processes: killed, run again, run twice at once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download import partial
from comfypod.download.order import Order, Terms
from comfypod.download.run import fetch
from tests.kit.hosts import File, Host, host
from tests.kit.killer import suffer
from tests.kit.pods import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PROGRAM = """
import json, sys
from pathlib import Path
from comfypod.download.order import Order, Terms
from comfypod.download.run import fetch
url, target, site, sha256, tokens, connections = json.loads(sys.stdin.read())
order, terms = Order(url, Path(target), sha256), Terms(tokens, 0, connections)
(error,) = fetch([order], Path(site), terms, watch=lambda _, done, total: print(done, total, flush=True))
print(error or "done", flush=True)
"""


class Desk:
    """Fetches one file, in processes of their own."""

    def __init__(self, folder: Path, web: Host, body: bytes, connections: int = 4, **how: Any) -> None:
        self.web, self.body, self.connections = web, body, connections
        self.site, self.target = folder / "site", folder / "models" / "a"
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.file = web.files["/a"] = File(body, **how)

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        where = (f"{self.web.url}/a?token=canary", str(self.target), str(self.site))
        process.stdin.write(json.dumps([*where, self.sha256, {"127.0.0.1": "canary"}, self.connections]))
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self) -> str:
        """Run it to its end; return what it said last."""
        out, err = self.start().communicate(timeout=120)
        assert err == ""
        return out.splitlines()[-1]

    @property
    def done(self) -> int:
        return sum(done for done, _ in partial.progress(self.site).values())

    def whole(self) -> bool:
        return hashlib.sha256(self.target.read_bytes()).hexdigest() == self.sha256


def until(process: subprocess.Popen[str], what: Any) -> None:
    """Wait for something while a process runs."""
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def web() -> Iterator[Host]:
    with host() as running:
        yield running


def test_d1_a_killed_download_goes_on_where_it_was(tmp_path: Path, web: Host) -> None:
    desk = Desk(tmp_path, web, random.Random(1).randbytes(6 << 20), cap=2_000_000)
    first = desk.start()
    until(first, lambda: desk.done > len(desk.body) * 0.6)
    kill(first)
    asked = len(web.asked("/a?token=canary"))
    assert not desk.target.exists()
    desk.file.cap = 0
    assert desk.finish() == "done"
    assert desk.whole()
    again = web.asked("/a?token=canary")[asked:]
    assert all("range" in request.headers for request in again)
    assert web.taken - web.heads <= len(desk.body) * 1.02
    assert list(desk.site.iterdir()) == []


@pytest.mark.slow  # 200 processes, each of which must get some way
def test_d1_after_200_kills_the_digest_is_right_and_little_was_fetched_twice(tmp_path: Path, web: Host) -> None:
    size, kills, chance = 256 << 20, 200, random.Random(3)
    desk = Desk(
        tmp_path, web, b"".join(chance.randbytes(1 << 20) for _ in range(size >> 20)), connections=4, cap=1_000_000
    )
    for _ in range(kills):
        asked = len(web.requests)
        process = desk.start()
        until(process, lambda asked=asked: len(web.requests) > asked)
        time.sleep(chance.uniform(0.02, 0.2))
        assert process.poll() is None
        kill(process)
    assert desk.done < size
    desk.file.cap = 20_000_000
    assert desk.finish() == "done"
    assert desk.whole()
    twice = (web.taken - web.heads - size) / size
    print(f"{twice:.2%} of the bytes were fetched twice")
    assert twice <= 0.02


def test_d8_killed_at_any_step_there_is_no_half_file_and_the_next_run_ends_it(tmp_path: Path, web: Host) -> None:
    body = random.Random(2).randbytes(300_000)
    web.files["/a"] = File(body)
    step = 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        order = Order(f"{web.url}/a", folder / "models" / "a", hashlib.sha256(body).hexdigest())

        def work(order: Order = order, site: Path = folder / "site") -> None:
            (error,) = fetch([order], site, Terms(connections=2))
            if error is not None:
                raise error

        ended = suffer(work, step, "kill", tmp_path / "notes")
        assert not order.target.exists() or order.target.read_bytes() == body
        work()
        assert order.target.read_bytes() == body
        assert list((folder / "site").iterdir()) == []
        if ended == "done":
            break
    steps = (tmp_path / "notes").read_text()
    assert "fsync" in steps
    assert "link" in steps
    assert step > 8


def test_two_processes_that_want_one_file_fetch_it_once(tmp_path: Path, web: Host) -> None:
    desk = Desk(tmp_path, web, random.Random(4).randbytes(2 << 20), cap=500_000)
    first = desk.start()
    until(first, lambda: desk.done > 0)
    second = desk.start()
    out, err = second.communicate(timeout=120)
    assert first.communicate(timeout=120)[0].endswith("done\n")
    assert (out.splitlines()[-1], err) == ("done", "")
    shown = [line for line in out.splitlines() if line.endswith(str(len(desk.body)))]
    assert len(shown) >= 2
    assert desk.whole()
    assert web.sent <= len(desk.body) * 1.1


def test_the_one_that_waits_goes_on_when_the_first_is_killed(tmp_path: Path, web: Host) -> None:
    desk = Desk(tmp_path, web, random.Random(5).randbytes(2 << 20), cap=500_000)
    first = desk.start()
    until(first, lambda: desk.done > 300_000)
    second = desk.start()
    until(second, lambda: len(os.listdir(next(desk.site.iterdir()))) >= 4)
    kill(first)
    assert second.communicate(timeout=120)[0].endswith("done\n")
    assert desk.whole()


def test_e5_sigterm_in_a_download_loses_nothing_of_it(tmp_path: Path, web: Host) -> None:
    desk = Desk(tmp_path, web, random.Random(6).randbytes(2 << 20), cap=400_000)
    process = desk.start()
    until(process, lambda: desk.done > 400_000)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert desk.done > 400_000
    desk.file.cap = 0
    assert desk.finish() == "done"
    assert desk.whole()


def test_g6_a_token_is_in_no_argument_output_or_record(tmp_path: Path, web: Host) -> None:
    desk = Desk(tmp_path, web, random.Random(7).randbytes(2 << 20), stall=100_000)
    process = desk.start()
    until(process, lambda: desk.done > 0)
    with open(f"/proc/{process.pid}/cmdline", "rb") as line:
        assert b"canary" not in line.read()
    records = [path for path in desk.site.rglob("*") if path.is_file() and path.name != "data"]
    assert len(records) >= 2
    assert all(b"canary" not in path.read_bytes() for path in records)
    process.send_signal(signal.SIGINT)
    assert "canary" not in "".join(process.communicate(timeout=20))
    assert web.requests[0].headers["authorization"] == "Bearer canary"
