from __future__ import annotations

import hashlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download import partial, refusal
from comfypod.download.order import News, Order, Terms
from comfypod.download.run import fetch
from comfypod.errors import ComfypodError, IntegrityError, SourceError, StorageError, UsageError
from tests.kit.hosts import File, Host, Request, host
from tests.kit.pods import free_port

if TYPE_CHECKING:
    from pathlib import Path

BODY = random.Random(7).randbytes(1 << 20)
OTHER = random.Random(8).randbytes(1 << 20)
FOUR = Terms(connections=4)


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Desk:
    """Orders files from a host into a folder."""

    def __init__(self, folder: Path, web: Host) -> None:
        self.web, self.site, self.models = web, folder / "site", folder / "models"

    def order(self, name: str = "a", **more: Any) -> Order:
        return Order(f"{self.web.url}/{name}", self.models / name, **more)

    def fetch(self, *orders: Order, terms: Terms = FOUR, **more: Any) -> list[ComfypodError | None]:
        return fetch(orders, self.site, terms, **more)

    def refused(self, order: Order, terms: Terms = FOUR) -> ComfypodError:
        """Fetch what must fail, and leave nothing behind under its name."""
        (error,) = self.fetch(order, terms=terms)
        assert error is not None
        assert not order.target.exists()
        return error

    def clean(self) -> bool:
        return not list(self.site.iterdir())


@pytest.fixture
def desk(tmp_path: Path, web: Host) -> Desk:
    web.files["/a"] = File(BODY)
    return Desk(tmp_path, web)


@pytest.mark.parametrize(
    "known", [{}, {"size": len(BODY)}, {"sha256": sha(BODY)}, {"size": len(BODY), "sha256": sha(BODY)}]
)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_arrives_whole_whatever_is_known_of_it(desk: Desk, known: dict[str, Any], ranges: bool) -> None:
    desk.web.files["/a"].ranges = ranges
    told = list[tuple[int, int]]()
    assert desk.fetch(desk.order(**known), watch=lambda _, done, total: told.append((done, total))) == [None]
    assert (desk.models / "a").read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert desk.clean()
    assert desk.web.sent <= len(BODY) * 1.3


def test_a_file_of_which_no_size_is_said_arrives_whole(desk: Desk) -> None:
    desk.web.files["/a"] = File(BODY, ranges=False, unsized=True)
    desk.web.files["/b"] = File(b"", ranges=False)
    assert desk.fetch(desk.order(), desk.order("b")) == [None, None]
    assert (desk.models / "a").read_bytes() == BODY
    assert (desk.models / "b").read_bytes() == b""


def test_it_works_over_tls(tmp_path: Path, tls: Host) -> None:
    tls.files["/a"] = File(BODY, cut=300_000)
    desk = Desk(tmp_path, tls)
    assert desk.fetch(desk.order(sha256=sha(BODY))) == [None]
    assert (desk.models / "a").read_bytes() == BODY


def test_a_host_whose_certificate_is_not_trusted_is_refused(
    tmp_path: Path, tls: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    tls.files["/a"] = File(BODY)
    error = Desk(tmp_path, tls).refused(Order(f"{tls.url}/a", tmp_path / "models" / "a"))
    assert "certificate verify failed" in error.message
    assert tls.requests == []


def test_several_connections_fetch_one_file_and_none_fetches_what_another_has(desk: Desk) -> None:
    desk.web.files["/a"].cap = 2_000_000
    assert desk.fetch(desk.order(sha256=sha(BODY))) == [None]
    assert len({request.peer for request in desk.web.asked("/a")}) >= 4


def test_a_slow_connection_is_relieved_by_those_that_are_free(desk: Desk) -> None:
    first = threading.Event()

    def slow_at_first(_: Request) -> None:
        desk.web.files["/a"].cap = 4_000_000 if first.is_set() else 50_000
        first.set()

    desk.web.files["/a"].before = slow_at_first
    assert desk.fetch(desk.order(size=len(BODY), sha256=sha(BODY))) == [None]
    assert (desk.models / "a").read_bytes() == BODY


@pytest.mark.parametrize("fault", [{"cut": 100_000}, {"stall": 200_000}, {"statuses": [503, 500, 429, 502, 504]}])
def test_d1_what_may_pass_is_tried_again_and_only_the_rest_is_fetched(desk: Desk, fault: dict[str, Any]) -> None:
    desk.web.files["/a"] = File(BODY, **fault)
    assert desk.fetch(desk.order(sha256=sha(BODY))) == [None]
    assert (desk.models / "a").read_bytes() == BODY
    # Pieces are as small here as connections are large: what one has under way is lost when its piece is cut.
    assert desk.web.sent < len(BODY) * 1.5


def test_a_slow_drip_is_given_up_and_another_connection_goes_on(desk: Desk) -> None:
    file = desk.web.files["/a"] = File(BODY, drip=0.05)

    def heal(_: Request) -> None:
        file.drip = 0.05 if len(desk.web.asked("/a")) == 1 else 0

    file.before = heal
    assert desk.fetch(desk.order(size=len(BODY), sha256=sha(BODY)), terms=Terms(connections=1)) == [None]


def test_a_host_may_say_how_long_to_wait(desk: Desk) -> None:
    desk.web.files["/a"] = File(BODY, statuses=[429], headers={"Retry-After": "1"})
    began = time.monotonic()
    assert desk.fetch(desk.order(size=len(BODY))) == [None]
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("size", [0, len(BODY)])
def test_a_host_that_is_not_there_is_told_and_given_up_sooner_than_one_that_has_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(refusal, "PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(refusal, "UNMET_SECONDS", 2.5)
    nowhere = f"http://127.0.0.1:{free_port()}"
    orders = [Order(f"{nowhere}/{number}", desk.models / str(number), size=size) for number in range(9)]
    news, began = list[tuple[Order, News]](), time.monotonic()
    errors = desk.fetch(*orders, tell=lambda order, told: news.append((order, told)))
    assert time.monotonic() - began < 6
    assert all("not reachable" in error.message for error in errors if error)
    of_first = [told for order, told in news if order == orders[0]]
    assert [told.state for told in of_first] == ["waiting", "waiting", "failed"]
    assert [(told.seconds, round(told.longest, 1)) for told in of_first[:2]] == [(0.5, 1.5), (1.0, 1.0)]
    assert len([told for _, told in news if told.state == "failed"]) == len(errors) == 9


def test_a_host_that_is_back_within_seconds_is_survived(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "PAUSE_SECONDS", 0.2)
    port, states, waits = free_port(), list[str](), threading.Event()
    order = Order(f"http://127.0.0.1:{port}/a", desk.models / "a")

    def tell(_: Order, news: News) -> None:
        states.append(news.state)
        waits.set()

    def come_back() -> None:
        waits.wait()
        with host(port=port) as back:
            back.files["/a"] = File(BODY)
            ended.wait()

    ended = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        assert desk.fetch(order, tell=tell) == [None]
    finally:
        ended.set()
        thread.join()
    assert list(dict.fromkeys(states)) == ["waiting", "going", "done"]


def test_a_host_that_accepts_and_says_nothing_is_given_up_sooner_than_one_that_has_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal, "UNMET_SECONDS", 1.5)
    end = threading.Event()

    def hang(_: Request) -> None:
        end.wait(30)

    desk.web.files["/a"].before = hang
    try:
        began = time.monotonic()
        assert "not reachable" in desk.refused(desk.order(size=len(BODY))).message
        assert time.monotonic() - began < 5
    finally:
        end.set()


def test_d2_a_host_without_ranges_is_asked_for_the_whole_file_again(desk: Desk) -> None:
    file = desk.web.files["/a"] = File(BODY, ranges=False, cut=400_000)

    def heal(_: Request) -> None:
        file.cut = 400_000 if len(desk.web.asked("/a")) < 3 else 0

    file.before = heal
    assert desk.fetch(desk.order(sha256=sha(BODY))) == [None]
    assert (desk.models / "a").read_bytes() == BODY


@pytest.mark.parametrize("digest", [True, False])
def test_d2_a_file_that_changes_between_parts_is_begun_again(desk: Desk, digest: bool) -> None:
    file = desk.web.files["/a"] = File(OTHER, etag='"old"', cap=500_000)

    def change(_: Request) -> None:
        if len(desk.web.asked("/a")) == 4:
            file.body, file.etag, file.cap = BODY, '"new"', 0

    file.before = change
    assert desk.fetch(desk.order(sha256=sha(BODY) if digest else "")) == [None]
    assert (desk.models / "a").read_bytes() == BODY


def test_d2_a_file_that_never_stays_the_same_is_given_up(desk: Desk) -> None:
    file = desk.web.files["/a"]

    def change(_: Request) -> None:
        file.etag = f'"{len(desk.web.requests)}"'

    file.before = change
    assert "changes while it is fetched" in desk.refused(desk.order(size=len(BODY))).message


@pytest.mark.parametrize("change", ["etag", "size", "url"])
def test_d2_what_was_left_of_another_version_is_not_used(desk: Desk, change: str) -> None:
    desk.web.files["/a"] = File(OTHER, stall=50_000, etag='"old"')
    stop_after_some(desk, desk.order())
    desk.web.files["/a"] = File(BODY[:-1] if change == "size" else BODY, etag='"new"' if change == "etag" else '"old"')
    desk.web.files["/b"] = File(BODY, etag='"old"')
    order = desk.order("b" if change == "url" else "a")
    order = Order(order.url, desk.models / "a")
    assert desk.fetch(order) == [None]
    assert (desk.models / "a").read_bytes() == (BODY[:-1] if change == "size" else BODY)


def stop_after_some(desk: Desk, order: Order) -> int:
    """Fetch a part of a file; return how much of it is there."""
    done = list[int]()
    (error,) = desk.fetch(
        order, watch=lambda _, so_far, __: done.append(so_far), cancelled=lambda: bool(done and done[-1] > 0)
    )
    assert error is not None
    assert "stopped" in error.message
    ((so_far, _),) = partial.progress(desk.site).values()
    assert 0 < so_far < len(BODY)
    return so_far


def test_e5_a_download_that_is_stopped_ends_within_a_second_and_goes_on_later(desk: Desk) -> None:
    desk.web.files["/a"].stall = 100_000
    order, stopping = desk.order(sha256=sha(BODY)), list[float]()

    def cancelled() -> bool:
        some = any(done for done, _ in partial.progress(desk.site).values())
        stopping.extend([time.monotonic()] if some else [])
        return some

    (error,) = desk.fetch(order, cancelled=cancelled)
    assert time.monotonic() - stopping[0] < 3
    assert isinstance(error, SourceError)
    (target, (done, total)), *_ = partial.progress(desk.site).items()
    assert (target, total) == (order.target, len(BODY))
    before = desk.web.sent
    desk.web.files["/a"].stall = 0
    assert desk.fetch(order) == [None]
    assert desk.web.sent - before <= (len(BODY) - done) * 1.3
    assert (desk.models / "a").read_bytes() == BODY


def test_e5_a_host_that_never_answers_holds_up_nobody(desk: Desk) -> None:
    asked, end = threading.Event(), threading.Event()

    def hang(_: Request) -> None:
        asked.set()
        end.wait(30)

    desk.web.files["/a"].before = hang
    try:
        (error,) = desk.fetch(desk.order(size=5), cancelled=asked.is_set)
    finally:
        end.set()
    assert isinstance(error, SourceError)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set a token for"),
        (403, "accept the licence at"),
        (404, "check the address"),
        (410, "removed"),
        (451, "check"),
    ],
)
def test_d3_a_refusal_comes_with_advice_and_nothing_is_left(desk: Desk, status: int, advice: str) -> None:
    desk.web.files["/a"].statuses = [status] * 20
    error = desk.refused(desk.order(size=len(BODY)))
    assert f"answered {status}" in error.message
    assert advice in error.hint
    assert len(desk.web.requests) == 1
    assert desk.clean()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_d3_a_host_that_stays_busy_is_given_up_after_some_tries(desk: Desk, status: int) -> None:
    desk.web.files["/a"].statuses = [status] * 50
    error = desk.refused(desk.order(size=len(BODY)))
    assert "try again" in error.hint
    assert 3 < len(desk.web.requests) < 10


def test_d3_a_host_that_refuses_any_part_is_asked_for_the_whole(desk: Desk) -> None:
    desk.web.files["/a"].statuses = [416]
    assert desk.fetch(desk.order(size=len(BODY))) == [None]
    desk.web.files["/b"] = File(BODY, statuses=[416] * 9)
    assert "answered 416" in desk.refused(desk.order("b", size=len(BODY))).message


def test_d3_a_login_page_is_refused(desk: Desk) -> None:
    desk.web.files["/a"].page = True
    desk.web.files["/b"] = File(b"\n <HTML>please log in" + BODY)
    desk.web.files["/c"] = File(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    for name, advice in (("a", "login"), ("b", "login"), ("c", "/resolve/")):
        assert advice in desk.refused(desk.order(name)).hint
    assert desk.clean()


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_d3_a_wrong_length_is_refused(desk: Desk, lie: int) -> None:
    desk.web.files["/a"].lie = lie
    error = desk.refused(desk.order(size=len(BODY)))
    assert isinstance(error, IntegrityError)
    assert str(len(BODY)) in error.message


def test_another_file_than_ordered_is_refused_and_not_kept(desk: Desk) -> None:
    error = desk.refused(desk.order(sha256="0" * 64))
    assert isinstance(error, IntegrityError)
    assert sha(BODY) in error.message
    assert desk.clean()


def test_what_is_left_of_a_larger_file_is_not_in_an_empty_one(desk: Desk) -> None:
    desk.web.files["/a"].stall = 50_000
    stop_after_some(desk, desk.order())
    desk.web.files["/a"] = File(b"", etag='"two"')
    assert desk.fetch(desk.order()) == [None]
    assert (desk.models / "a").read_bytes() == b""


def test_a_file_that_arrives_compressed_is_refused(desk: Desk) -> None:
    desk.web.files["/a"].headers = {"Content-Encoding": "gzip"}
    assert "compressed" in desk.refused(desk.order()).message


def test_what_the_host_says_of_the_digest_is_believed_before_the_first_byte(desk: Desk) -> None:
    desk.web.files["/a"].headers = {"X-Linked-Etag": f'"{sha(OTHER)}"', "X-Linked-Size": str(len(BODY))}
    assert "another file" in desk.refused(desk.order(sha256=sha(BODY))).message
    assert desk.web.sent == 0
    assert sha(BODY) in desk.refused(desk.order()).message


def test_a_partial_file_that_was_damaged_is_fetched_anew(desk: Desk) -> None:
    desk.web.files["/a"].stall = 50_000
    order = desk.order(sha256=sha(BODY))
    stop_after_some(desk, order)
    with (partial.folder_of(desk.site, order.target) / "data").open("r+b") as data:
        data.write(b"damaged")
    desk.web.files["/a"].stall = 0
    assert desk.fetch(order) == [None]
    assert (desk.models / "a").read_bytes() == BODY


def test_a_check_that_fails_keeps_the_file_from_its_place(desk: Desk) -> None:
    def no(path: Path) -> None:
        assert path.read_bytes() == BODY
        raise IntegrityError("its header is wrong")

    assert desk.refused(desk.order(check=no)).message == "its header is wrong"
    assert desk.clean()


def test_what_stands_there_is_left_alone(desk: Desk) -> None:
    desk.models.mkdir()
    (desk.models / "a").write_bytes(OTHER)
    (error,) = desk.fetch(desk.order(sha256=sha(BODY)))
    assert isinstance(error, IntegrityError)
    assert "another file stands at" in error.message
    assert (desk.models / "a").read_bytes() == OTHER
    assert desk.fetch(desk.order(sha256=sha(OTHER))) == [None]
    assert desk.web.requests == []


def test_d8_a_name_that_is_taken_meanwhile_is_not_overwritten(desk: Desk) -> None:
    def taken(_: Path) -> None:
        desk.models.mkdir()
        (desk.models / "a").write_bytes(OTHER)

    (error,) = desk.fetch(desk.order(check=taken))
    assert isinstance(error, StorageError)
    assert (desk.models / "a").read_bytes() == OTHER


def test_the_same_file_ordered_twice_is_fetched_once(desk: Desk) -> None:
    order = desk.order(sha256=sha(BODY))
    assert desk.fetch(order, order, order) == [None] * 3
    assert desk.web.sent <= len(BODY) * 1.3


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a\nb", "..", "", "a\\b", "\x00", "link/x", "deep/link/x"]
)
def test_d7_a_name_that_leaves_its_folder_is_refused_before_a_request(desk: Desk, tmp_path: Path, name: str) -> None:
    (desk.models / "deep").mkdir(parents=True)
    for link in (desk.models / "link", desk.models / "deep" / "link"):
        link.symlink_to(tmp_path)
    (error,) = desk.fetch(Order(f"{desk.web.url}/a", desk.models / name, below=desk.models))
    assert isinstance(error, UsageError)
    assert desk.web.requests == []
    assert not (tmp_path / "x").exists()


def test_d7_links_that_lead_in_a_circle_are_refused_in_a_sentence(desk: Desk) -> None:
    desk.models.mkdir(parents=True)
    (desk.models / "circle").symlink_to("circle")
    (error,) = desk.fetch(Order(f"{desk.web.url}/a", desk.models / "circle" / "x", below=desk.models))
    assert isinstance(error, StorageError)


def test_d7_what_the_host_calls_a_file_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    desk.web.files["/a"].headers = {"Content-Disposition": 'attachment; filename="../../evil"'}
    assert desk.fetch(desk.order(below=desk.models)) == [None]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "models", "site"]


def test_d9_what_does_not_fit_is_refused_before_the_first_byte_with_both_sizes(desk: Desk) -> None:
    small, large = desk.order(), desk.order("b", size=1 << 60)
    outcome = desk.fetch(small, large)
    for error in outcome:
        assert isinstance(error, StorageError)
        assert "need 1152921.5 TB" in error.message
        assert " has " in error.message
    assert desk.web.sent == 0


def test_a_limit_holds_over_all_connections(desk: Desk) -> None:
    began = time.monotonic()
    assert desk.fetch(desk.order(), desk.order(), terms=Terms(rate=1_000_000, connections=4)) == [None, None]
    assert time.monotonic() - began >= len(BODY) / 1_000_000 * 0.8


def test_d5_a_redirect_to_another_host_is_followed_without_credentials(desk: Desk) -> None:
    with host(name="localhost") as other:
        other.files["/b"] = File(BODY)
        desk.web.files["/a"] = File(redirect=f"{other.url}/b?Signature=abc")
        terms = Terms({"127.0.0.1": "canary", "localhost": "another"}, connections=4)
        login = Order(desk.order().url.replace("://", "://me:canary@"), desk.models / "a2")
        assert desk.fetch(desk.order(), login, terms=terms) == [None, None]
        assert {request.headers.get("authorization") for request in other.requests} == {None}
        assert {request.headers["authorization"][:6] for request in desk.web.requests} == {"Bearer", "Basic "}


@pytest.mark.parametrize("login", ["", "me:canary@"])
def test_d5_a_redirect_from_https_to_http_is_refused(tmp_path: Path, tls: Host, web: Host, login: str) -> None:
    web.files["/b"] = File(BODY)
    tls.files["/a"] = File(redirect=f"{web.url}/b?token=canary")
    desk = Desk(tmp_path, tls)
    for size in (0, len(BODY)):
        order = Order(f"{tls.url}/a".replace("://", f"://{login}"), desk.models / "a", size=size)
        error = desk.refused(order, Terms({"127.0.0.1": "canary"} if login else {}))
        assert f"{tls.url}/a leads to {web.url}/b?token=***, without TLS" in error.message
        assert "https" in error.hint
        assert "canary" not in error.message + error.hint
    assert web.requests == []


def test_a_redirect_from_http_to_https_is_followed(tmp_path: Path, tls: Host, web: Host) -> None:
    tls.files["/b"] = File(BODY)
    web.files["/a"] = File(redirect=f"{tls.url}/b")
    assert Desk(tmp_path, web).fetch(Order(f"{web.url}/a", tmp_path / "models" / "a")) == [None]


def test_an_address_of_a_redirect_that_has_expired_is_asked_for_again(desk: Desk) -> None:
    file = desk.web.files["/real"] = File(BODY)
    desk.web.files["/a"] = File(redirect="/real")

    def expire(_: Request) -> None:
        if len(desk.web.asked("/real")) in (4, 7):
            file.statuses.append(403)

    file.before = expire
    assert desk.fetch(desk.order(sha256=sha(BODY)), terms=Terms(connections=2)) == [None]
    assert len(desk.web.asked("/a")) > 2


def test_g6_no_secret_is_in_errors_or_records(desk: Desk) -> None:
    desk.web.files["/a"] = File(BODY, stall=50_000)
    url = f"{desk.web.url.replace('://', '://canary:canary@')}/a?token=canary"
    order = Order(url, desk.models / "a")
    stop_after_some(desk, order)
    records = b"".join(path.read_bytes()[:1000] for path in desk.site.rglob("*") if path.name in ("record", "mark"))
    assert b"/a" in records
    assert b"canary" not in records
    for fault in (File(statuses=[403] * 9), File(statuses=[500] * 9), File(page=True), File(BODY, lie=9)):
        desk.web.files["/a"] = fault
        error = desk.refused(Order(url, desk.models / "b", sha256="1" * 64), Terms({"127.0.0.1": "canary"}))
        assert "canary" not in f"{error.message} {error.hint} {error!r}"


@pytest.mark.parametrize(
    "headers",
    [{"Location": "http://[bad/"}, {"Content-Range": "bytes 0-1/" + "9" * 5000}, {"X-Linked-Size": "9" * 5000}],
)
def test_a_host_that_answers_with_nonsense_harms_no_other_file(desk: Desk, headers: dict[str, str]) -> None:
    desk.web.files["/b"] = File(BODY, statuses=[302] * 9 if "Location" in headers else [], headers=headers)
    outcome = desk.fetch(desk.order("b"), desk.order("b"), desk.order("b"), desk.order())
    assert all(error is None or isinstance(error, ComfypodError) for error in outcome)
    assert outcome[-1] is None


def test_data_that_is_gone_is_not_taken_for_what_its_record_says(desk: Desk) -> None:
    desk.web.files["/a"].stall = 200_000
    some = list[int]()
    desk.fetch(desk.order(), watch=lambda _, done, __: some.append(done), cancelled=lambda: any(some))
    (folder,) = desk.site.iterdir()
    (folder / "data").unlink()
    desk.web.files["/a"].stall = 0
    assert desk.fetch(desk.order()) == [None]
    assert (desk.models / "a").read_bytes() == BODY
