from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from comfypod.download import left, partial
from comfypod.download.order import Order, Terms
from comfypod.download.run import fetch
from comfypod.workspace.lease import Lease
from tests.kit.hosts import File, Host

if TYPE_CHECKING:
    from pathlib import Path

BODY = random.Random(7).randbytes(1 << 20)


def leave(site: Path, order: Order) -> Path:
    """Fetch a part of a file; return its folder."""
    some = list[int]()
    fetch([order], site, Terms(connections=2), watch=lambda _, done, __: some.append(done), cancelled=lambda: any(some))
    return partial.folder_of(site, order.target)


@pytest.fixture
def order(tmp_path: Path, web: Host) -> Order:
    web.files["/a"] = File(BODY, stall=100_000)
    return Order(f"{web.url}/a", tmp_path / "models" / "a")


def test_what_a_stopped_download_has_left_is_seen_and_removed(tmp_path: Path, order: Order) -> None:
    folder = leave(tmp_path / "site", order)
    (found,) = left.look(tmp_path / "site")
    assert (found.folder, found.target, found.url, found.total, found.held) == (
        folder, order.target, order.url, len(BODY), False,
    )  # fmt: skip
    assert 0 < found.so_far < len(BODY) <= found.taken
    (folder / ".mark.new").touch()
    began = time.monotonic()
    assert left.remove([found]) == [found]
    assert time.monotonic() - began < 2
    assert list((tmp_path / "site").iterdir()) == []
    assert left.look(tmp_path / "none") == []


def test_one_that_somebody_fetches_is_not_removed_and_ends_well(tmp_path: Path, web: Host, order: Order) -> None:
    web.files["/a"] = File(BODY, cap=200_000)
    site, outcome = tmp_path / "site", list[object]()
    thread = threading.Thread(target=lambda: outcome.extend(fetch([order], site, Terms(connections=1))))
    thread.start()
    while not any(done for done, _ in partial.progress(site).values()):
        time.sleep(0.01)
    (found,) = left.look(site)
    assert found.held
    assert left.remove([found]) == []
    web.files["/a"].cap = 0
    thread.join()
    assert outcome == [None]
    assert order.target.read_bytes() == BODY
    assert list(site.iterdir()) == []


def test_the_ticket_of_a_machine_that_is_gone_holds_for_a_while_only(tmp_path: Path, order: Order) -> None:
    folder = leave(tmp_path / "site", order)
    lease = Lease(folder, machine="another")
    lease.take()
    ticket = folder / "1"
    said = ticket.read_bytes()
    lease.release()
    ticket.write_bytes(said)
    (found,) = left.look(tmp_path / "site")
    assert not found.held
    began = time.monotonic()
    assert left.remove([found], patience=1.0) == [found]
    assert time.monotonic() - began >= 1
    assert list((tmp_path / "site").iterdir()) == []


def test_g8_what_is_planted_beside_them_is_not_followed(tmp_path: Path, order: Order) -> None:
    site, outside = tmp_path / "site", tmp_path / ("0" * 24)
    outside.mkdir(parents=True)
    (outside / "data").write_bytes(b"user's")
    site.mkdir()
    (site / ("0" * 24)).symlink_to(outside)
    (site / "notes").mkdir()
    (site / ("1" * 24)).touch()
    planted = site / ("2" * 24)
    planted.mkdir()
    (planted / "record").write_bytes((leave(site, order) / "record").read_bytes())
    (planted / "user's").touch()
    found = left.look(site)
    assert [each.target for each in found if each.folder == planted] == [None]
    assert len(left.remove(found)) == 2
    assert (outside / "data").read_bytes() == b"user's"
    assert sorted(path.name for path in site.iterdir()) == ["0" * 24, "1" * 24, "2" * 24, "notes"]
    assert [path.name for path in planted.iterdir()] == ["user's"]
