from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.gateway import access, session
from comfypod.gateway.door import Door
from comfypod.gateway.request import Request, seen_through

KEYS = ("the token", "the password")
CLOSED, OPEN, LOCAL = Door(KEYS), Door(KEYS, open=True), Door(KEYS, local=True)


def request_of(method: str = "GET", target: str = "/", address: str = "192.0.2.1", **headers: str) -> Request:
    given_ = {"host": "pod.example:8188"} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in given_.items())
    return Request(method, target, raw, address)


def by(request: Request, door: Door = CLOSED, *, guarded: bool = False) -> str:
    return access.visitor(request, door, session.Throttle(), guarded=guarded).by


def cookie(keys: tuple[str, ...] = KEYS) -> str:
    return f"a=b; {session.cookie_name(keys)}={session.issue(keys, time.time())}; c=d"


@pytest.mark.parametrize("key", KEYS)
def test_every_way_to_log_in_takes_token_and_password(key: str) -> None:
    basic = base64.b64encode(f"anyone:{key}".encode()).decode()
    assert by(request_of(authorization=f"Bearer {key}")) == "header"
    assert by(request_of(authorization=f"token {key}")) == "header"
    assert by(request_of(authorization=f"Basic {basic}")) == "header"
    assert by(request_of(target=f"/?a=1&token={key.replace(' ', '%20')}")) == "query"
    assert by(request_of(cookie=cookie())) == "session"


@pytest.mark.parametrize("headers", [
    {}, {"authorization": "Bearer "}, {"authorization": "Bearer wrong"}, {"authorization": "Basic !!!"},
    {"authorization": "Basic " + base64.b64encode(b"the token").decode()}, {"cookie": "comfypod=the token"},
    {"authorization": "the token"},
])  # fmt: skip
def test_nothing_else_logs_in(headers: dict[str, str]) -> None:
    assert by(request_of(**headers)) == "nobody"


@pytest.mark.parametrize("value", ["", "null", "none", "undefined"])
def test_g3_while_there_is_no_key_nothing_logs_in_not_even_an_empty_token(value: str) -> None:
    for headers in ({"authorization": f"Bearer {value}"}, {"cookie": cookie()}, {}):
        assert by(request_of(target=f"/?token={value}", **headers), Door()) == "nobody"


def test_a_client_with_a_token_of_its_own_is_not_judged_by_an_old_cookie() -> None:
    assert by(request_of(cookie=cookie(("old",)), authorization="Bearer the token")) == "header"


def test_an_open_door_asks_nobody_but_at_what_is_guarded() -> None:
    assert by(request_of(), OPEN) == "open"
    assert by(request_of(), OPEN, guarded=True) == "nobody"
    assert by(request_of(cookie=cookie()), OPEN, guarded=True) == "session"


@pytest.mark.parametrize("host", ["127.0.0.1:8188", "localhost", "localhost:8188", "[::1]:8188", "127.9.9.9"])
def test_on_loopback_a_client_that_names_this_machine_is_asked_nothing(host: str) -> None:
    assert by(request_of(host=host, address="127.0.0.1"), LOCAL) == "local"
    assert by(request_of(host=host), LOCAL) == "nobody"


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"}, {"host": "127.0.0.1.evil.example"}, {"host": "localhost.evil.example:8188"},
    {"host": "127.0.0.1@evil.example"}, {"host": "127.0.0.1", "x-forwarded-for": "192.0.2.9"},
    {"host": "localhost", "forwarded": "for=192.0.2.9"}, {"host": "localhost", "via": "1.1 proxy"},
])  # fmt: skip
def test_g4_a_name_that_was_rebound_and_a_proxy_on_this_machine_must_log_in(headers: dict[str, str]) -> None:
    assert by(request_of(address="127.0.0.1", **headers), LOCAL) == "nobody"


@pytest.mark.parametrize("headers", [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://pod.example"},
    {"origin": "http://pod.example:8188.evil.example"}, {"origin": "file://"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"}, {"origin": "http://pod.example:8188", "sec-fetch-site": "cross-site"},
])  # fmt: skip
def test_g4_a_foreign_page_changes_nothing_and_opens_no_websocket(headers: dict[str, str]) -> None:
    assert access.foreign(request_of("POST", "/prompt", **headers))
    assert access.foreign(request_of("DELETE", "/api/userdata/a", **headers))
    assert access.foreign(request_of("GET", "/ws", upgrade="websocket", connection="keep-alive, Upgrade", **headers))


def test_g4_a_foreign_page_shows_nothing_of_the_pods_but_may_link_to_it() -> None:
    shown = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    framed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert access.foreign(request_of(target="/view?filename=a.png", **shown))
    assert access.foreign(request_of(**framed))
    assert not access.foreign(request_of(**linked))
    assert not access.linked(request_of(**linked))
    assert access.linked(request_of(target="/manager/reboot", **linked))
    assert not access.linked(request_of(target="/manager/reboot"))


@pytest.mark.parametrize(("host", "origin"), [
    ("abc-8188.proxy.runpod.net", "https://abc-8188.proxy.runpod.net"),
    ("pod.trycloudflare.com", "https://pod.trycloudflare.com"),
    ("pod.trycloudflare.com:443", "https://pod.trycloudflare.com"),
    ("pod.example:8188", "http://pod.example:8188"), ("POD.example", "http://pod.EXAMPLE:80"),
    ("[::1]:8188", "http://[::1]:8188"),
])  # fmt: skip
def test_g5_the_pods_own_page_is_not_foreign_through_any_proxy(host: str, origin: str) -> None:
    for headers in ({}, {"sec-fetch-site": "same-origin"}):
        assert not access.foreign(request_of("POST", "/prompt", host=host, origin=origin, **headers))
    hidden = request_of("POST", "/_pod/login", host=host, origin="null", sec_fetch_site="same-origin")
    assert not access.foreign(hidden)


def test_g5_an_nginx_below_a_path_is_believed_when_it_is_trusted() -> None:
    headers = {
        "host": "127.0.0.1:8188", "origin": "https://studio.example", "x-forwarded-host": "studio.example",
        "x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.7, 10.0.0.4",
    }  # fmt: skip
    sent = request_of("POST", "/prompt", **headers)
    assert access.foreign(seen_through(sent, ()))
    seen = seen_through(Request(sent.method, sent.target, sent.headers, "10.0.0.3"), ("10.0.0.0/8",))
    assert not access.foreign(seen)
    assert (seen.address, seen.secure, seen.host) == ("198.51.100.7", True, "studio.example")


def test_what_only_a_proxy_may_say_is_dropped_from_anyone_else() -> None:
    seen = seen_through(request_of(x_forwarded_for="127.0.0.1", x_forwarded_host="a"), ("10.0.0.0/8",))
    assert [name for name, _ in seen.headers] == [b"host"]
    assert seen.address == "192.0.2.1"


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n\0")))
def test_whatever_a_header_says_the_answer_is_an_answer(text: str) -> None:
    request = request_of(target="/?" + text, authorization=text, cookie=text, origin=text, host=text)
    assert by(request) == "nobody"
    access.foreign(request)
    assert request.without_token().query_token() == ""


def test_g10_while_an_address_pauses_not_even_the_right_token_is_looked_at() -> None:
    throttle = session.Throttle()
    for _ in range(5):
        access.visitor(request_of(authorization="Bearer wrong"), CLOSED, throttle, guarded=False)
    found = access.visitor(request_of(authorization="Bearer the token"), CLOSED, throttle, guarded=False)
    assert (found.by, found.pause > 0) == ("nobody", True)
    assert access.visitor(request_of(cookie=cookie()), CLOSED, throttle, guarded=False).by == "session"
