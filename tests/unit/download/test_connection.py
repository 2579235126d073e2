from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download import connection, refusal
from comfypod.download.connection import Client
from comfypod.download.order import Terms
from comfypod.download.probe import probe
from comfypod.download.refusal import BrokenError, RefusedError, wait_of
from comfypod.errors import SourceError
from comfypod.fetch import get_json
from tests.kit.hosts import File, Host, tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"weights" * 1000


def test_a_connection_is_used_again_also_after_a_redirect(web: Host) -> None:
    web.files |= {"/a": File(redirect="/b"), "/b": File(BODY)}
    with closing(Client()) as client:
        for _ in range(3):
            assert client.ask(f"{web.url}/a").read(1 << 20) == BODY
    assert len(web.requests) == 6
    assert len({request.peer for request in web.requests}) == 1


def test_a_body_that_is_left_costs_a_connection_and_no_more(web: Host) -> None:
    web.files["/a"] = File(BODY * 100)
    with closing(Client()) as client:
        for _ in range(3):
            assert client.ask(f"{web.url}/a").read(7) == BODY[:7]
    assert len({request.peer for request in web.requests}) == 3


def test_redirects_without_an_end_are_given_up(web: Host) -> None:
    web.files["/a"] = File(redirect="/a")
    with closing(Client()) as client, pytest.raises(RefusedError, match="answered 302"):
        client.ask(f"{web.url}/a")
    assert len(web.requests) == 10


def test_a_login_in_a_redirect_is_not_taken_over(web: Host) -> None:
    web.files |= {"/a": File(redirect=f"{web.url.replace('://', '://evil:canary@')}/b"), "/b": File(BODY)}
    with closing(Client()) as client:
        assert "@" not in client.ask(f"{web.url}/a").url
    assert "authorization" not in web.requests[-1].headers


def test_a_proxy_is_asked_for_the_whole_address(web: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url.replace("://", "://me:secret@"))
    web.files["http://models.example/a"] = File(BODY)
    with closing(Client()) as client:
        assert client.ask("http://models.example/a").read(1 << 20) == BODY
    assert web.requests[0].headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert web.requests[0].headers["host"] == "models.example"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web.files["/a"] = File(BODY)
    with closing(Client()) as client:
        client.ask(f"{web.url}/a")
    assert "proxy-authorization" not in web.requests[1].headers


def test_tls_goes_through_a_proxy_untouched(tls: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tls.files["/a"] = File(BODY)
    asked = list[str]()
    with tunnel(asked) as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        with closing(Client({"127.0.0.1": "canary"})) as client:
            assert client.ask(f"{tls.url}/a").read(1 << 20) == BODY
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{tls.url.rpartition(':')[2]} HTTP/1.")
    assert "Proxy-Authorization: Basic" in asked[0]
    assert "Bearer" not in asked[0]
    assert tls.requests[0].headers["authorization"] == "Bearer canary"
    assert "proxy-authorization" not in tls.requests[0].headers


def test_a_host_is_asked_for_size_digest_and_name(web: Host) -> None:
    digest = "a1" * 32
    web.files["/a"] = File(redirect="/b", headers={"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": "7000"})
    web.files["/b"] = File(BODY, headers={"Content-Disposition": "attachment; filename*=UTF-8''..%2F%E6%A8%A1.bin"})
    facts = probe(f"{web.url}/a", Terms())
    assert facts.url == f"{web.url}/b"
    assert (facts.size, facts.sha256, facts.etag, facts.ranges) == (7000, digest, '"one"', True)
    assert facts.name == "模.bin"
    assert web.sent == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_host_that_does_not_like_head_is_asked_for_one_byte(web: Host, ranges: bool) -> None:
    web.files["/a"] = File(BODY, no_head=403, ranges=ranges)
    facts = probe(f"{web.url}/a", Terms())
    assert (facts.size, facts.ranges) == (7000, ranges)


@pytest.mark.parametrize(
    ("fault", "ask"),
    [({"drip_head": 0.05}, lambda url: probe(url, Terms())), ({"drip": 0.05}, lambda url: get_json(url, seconds=0.5))],
)
def test_a_host_that_drips_its_answer_is_given_up_when_the_time_for_all_of_it_is_over(
    web: Host, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], ask: Callable[[str], object]
) -> None:
    monkeypatch.setattr(connection, "QUESTION_SECONDS", 0.5)
    web.files["/a"] = File(b"[" + b" " * 1000 + b"]", **fault)
    began = time.monotonic()
    with pytest.raises(BrokenError, match=r"/a did not answer in time: within 0\.5 seconds") as caught:
        ask(f"{web.url}/a")
    assert caught.value.silent
    assert time.monotonic() - began < 2


def test_a_host_that_has_answered_is_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "UNMET_SECONDS", 0.0)
    error, patience = BrokenError("x", silent=True), refusal.Patience()
    with pytest.raises(BrokenError):
        patience.wait(error, 0, silent=True)
    assert patience.wait(error, 0, silent=False).longest == 31
    patience.met()
    assert [patience.wait(error, turn, silent=True).seconds for turn in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(BrokenError):
        patience.wait(error, 5, silent=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("host", ["nowhere.invalid", "127.0.0.1:9"])
def test_a_name_that_is_none_and_a_port_without_a_listener_are_no_answer(host: str) -> None:
    with pytest.raises(BrokenError, match=r"is not reachable|in time") as caught:
        probe(f"http://{host}/a", Terms())
    assert caught.value.silent


def test_a_weak_tag_is_not_taken_for_a_version(web: Host) -> None:
    web.files["/a"] = File(BODY, etag='W/"x"')
    web.files["/b"] = File(BODY, etag='W/"x"', headers={"Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"})
    assert probe(f"{web.url}/a", Terms()).etag == ""
    assert probe(f"{web.url}/b", Terms()).etag == "Mon, 02 Nov 2026 10:00:00 GMT"


def test_d3_who_is_refused_is_told_which_token_or_licence(web: Host) -> None:
    web.files["/org/repo/resolve/main/a"] = File(no_head=403, statuses=[403])
    with pytest.raises(SourceError) as caught:
        probe(f"{web.url}/org/repo/resolve/main/a", Terms())
    assert f"accept the licence at {web.url}/org/repo in a browser, and set a token for 127.0.0.1" in caught.value.hint
    web.files["/b"] = File(no_head=401, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(SourceError) as caught:
        probe(f"{web.url}/b", Terms({"127.0.0.1": "x"}))
    assert "private" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("99999", 120), ("", 0), ("soon", 0), ("-3", 0), ("Thu, 01 Jan 1970 00:01:10 GMT", 10)],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text: str, seconds: float) -> None:
    assert wait_of(text, now=60) == seconds
