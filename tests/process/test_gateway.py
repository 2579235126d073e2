from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import resource
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.door import Visitor
from tests.kit.lab import until
from tests.kit.pods import Running, Site, booted
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = {"accept": "text/html,*/*"}
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    site = Site(tmp_path_factory.mktemp("gateway"), settings={"listen": "0.0.0.0"})
    with booted(site) as running:
        running.wait_for("ready")
        yield running


@pytest.fixture
def stranger(pod: Running) -> Visitor:
    return Visitor(pod.site.port)


@pytest.fixture
def owner(pod: Running) -> Visitor:
    return Visitor(pod.site.port, token_of(pod))


def token_of(pod: Running) -> str:
    return pod.site.layout.token.read_text().strip()


def gateway_of(pod: Running) -> int:
    status = pod.status()
    assert status is not None
    return next(int(row["pid"]) for row in status["services"] if row["name"] == "gateway")


def test_the_ports_answer_from_the_first_second_with_what_the_pod_is_doing(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(slow=2.0), settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        for _ in range(400):
            try:
                assert Visitor(site.port).ask("/livez").status == 200
                break
            except OSError:
                time.sleep(0.01)
        assert Visitor(site.port).ask("/readyz").status == 503
        status = pod.wait_for("starting")
        assert status["boot"]["moments"].get("ready") is None
        owner = Visitor(site.port, token_of(pod))
        page = owner.ask("/", **PAGE)
        assert (page.status, page.headers["retry-after"]) == (503, "2")
        assert 'data-mode="boot"' in page.text
        told = owner.ask("/system_stats")
        assert (told.status, told.headers["retry-after"], told.json["phase"]) == (503, "2", "starting")
        until(lambda: "stand-in starts" in owner.ask("/_pod/logs/comfyui").text, "ComfyUI's log")
        pod.wait_for("ready")
        assert owner.ask("/system_stats").json == {"system": {}}


@pytest.mark.parametrize("path", ["/livez", "/startupz", "/readyz"])
def test_probes_want_no_login_and_say_one_word(stranger: Visitor, path: str) -> None:
    got = stranger.ask(path)
    assert got.status == 200
    assert len(got.text.split()) == 1


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/"), ("POST", "/prompt"), ("GET", "/ws"), ("GET", "/view?filename=a.png"), ("POST", "/upload/image"),
    ("GET", "/v2/manager/queue/start"), ("GET", "/_pod/status"), ("GET", "/_pod/metrics"), ("GET", "/_pod/logs/boot"),
    ("POST", "/_pod/do/restart"), ("GET", "/jupyter/api/contents"), ("GET", "//"), ("OPTIONS", "/prompt"),
])  # fmt: skip
def test_g1_without_a_token_everything_is_401(stranger: Visitor, method: str, path: str) -> None:
    assert stranger.ask(path, method, b"" if method == "POST" else None).status == 401


def test_the_token_in_an_address_becomes_a_session_and_leaves_the_address(stranger: Visitor, pod: Running) -> None:
    got = stranger.ask(f"/?a=1&token={token_of(pod)}&b=2", **PAGE)
    assert (got.status, got.headers["location"]) == (303, "/?a=1&b=2")
    cookie = got.headers["set-cookie"]
    assert token_of(pod) not in cookie
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert got.headers["referrer-policy"] == "same-origin"
    assert stranger.ask("/seen", cookie=cookie.partition(";")[0]).status == 200


def test_the_form_logs_in_and_a_wrong_token_is_told(stranger: Visitor, pod: Running) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    page = stranger.ask("/some/place", **PAGE)
    assert page.status == 401
    assert 'value="/some/place"' in page.text
    wrong = stranger.ask("/_pod/login", "POST", b"token=wrong&next=/", **form)
    assert wrong.status == 401
    assert "not this pod" in wrong.text
    right = stranger.ask("/_pod/login", "POST", f"token={token_of(pod)}&next=//evil.example/".encode(), **form)
    assert (right.status, right.headers["location"]) == (303, "/evil.example/")
    foreign = stranger.ask("/_pod/login", "POST", b"token=x", origin="https://evil.example", **form)
    assert foreign.status == 403


def test_what_is_ours_never_reaches_comfyui(owner: Visitor, pod: Running) -> None:
    seen = owner.ask(f"/seen?x=1&token={owner.token}", cookie=f"theirs=1; {session_of(owner)}").json
    by_query = Visitor(owner.port).ask(f"/seen?x=1&token={owner.token}").json
    assert by_query["path"] == "/seen?x=1"
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert headers["cookie"] == "theirs=1"
    assert "authorization" not in headers
    for answer in (seen, by_query):
        assert owner.token not in str(answer["headers"])


def test_comfyui_sees_the_host_that_the_client_named_and_a_request_of_its_own_site(owner: Visitor) -> None:
    given_ = {"host": "abc-8188.proxy.runpod.net", "sec_fetch_site": "cross-site", "x_forwarded_for": "6.6.6.6"}
    seen = owner.ask("/seen", connection="keep-alive, x-private", x_private="1", te="trailers", **given_).json
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert headers["host"] == "abc-8188.proxy.runpod.net"
    assert headers["sec-fetch-site"] == "same-origin"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert not {"x-private", "te", "connection"} & set(headers)


def test_uploads_and_downloads_pass_as_they_are_in_both_framings(owner: Visitor) -> None:
    body = os.urandom(3_000_000)
    whole = owner.ask("/upload", "POST", body).json
    parts = owner.ask("/upload", "POST", iter([body[:7], body[7:]]), transfer_encoding="identity").status
    assert (whole["bytes"], whole["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert parts in (200, 400, 501)
    assert len(owner.ask("/big?bytes=5000000").body) == 5_000_000


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 1_048_577 * 9 + 5, 30_000_001])
def test_a_body_of_any_size_arrives_whole_and_the_connection_goes_on(owner: Visitor, size: int) -> None:
    line = http.client.HTTPConnection("127.0.0.1", owner.port, timeout=30)
    headers = {"Authorization": f"Bearer {owner.token}"}
    for _ in range(2):
        line.request("GET", f"/file?bytes={size}", headers=headers)
        body = line.getresponse().read()
        assert len(body) == size
        assert body == (bytes(range(251)) * (size // 251 + 1))[:size]
    line.close()


@pytest.mark.parametrize("size", [1000, 9_000_000])
def test_a_body_that_is_cut_short_is_cut_short_for_the_client_too(owner: Visitor, size: int) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        owner.ask(f"/short?bytes={size}")
    assert len(cut.value.partial) <= size // 2
    assert owner.ask("/seen").status == 200


def test_a_client_that_reads_slowly_or_leaves_harms_nobody(owner: Visitor, pod: Running) -> None:
    head = f"GET /file?bytes=60000000 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token}\r\n\r\n".encode()
    before = len(os.listdir(f"/proc/{gateway_of(pod)}/fd"))
    with ExitStack() as stack:
        for _ in range(20):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", owner.port)))
            line.sendall(head)
            line.recv(1000)
        assert owner.ask("/seen").status == 200
    until(lambda: len(os.listdir(f"/proc/{gateway_of(pod)}/fd")) <= before + 8, "descriptors closed")


def test_a_large_transfer_takes_no_memory_to_speak_of(owner: Visitor, pod: Running) -> None:
    pid = gateway_of(pod)
    owner.ask("/big?bytes=1000000")
    before = resident(pid)
    assert (
        owner.ask("/upload", "POST", (bytes(1 << 20) for _ in range(200)), content_length=str(200 << 20)).status == 200
    )
    with socket.create_connection(("127.0.0.1", owner.port)) as line:
        line.sendall(
            f"GET /big?bytes={200 << 20} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token}\r\n\r\n".encode()
        )
        left = 200 << 20
        while left > 0:
            left -= len(line.recv(1 << 16))
    assert resident(pid) - before < 12_000_000


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_expect_is_answered_at_the_door(owner: Visitor) -> None:
    with socket.create_connection(("127.0.0.1", owner.port), timeout=5) as line:
        head = f"POST /upload HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token}\r\n"
        line.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 100")
        line.sendall(b"data")
        got = b""
        while b'"bytes": 4' not in got:
            got += line.recv(1 << 16)


def test_a_connection_serves_many_requests(owner: Visitor) -> None:
    one = f"GET /seen HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token}\r\n\r\n".encode()
    assert owner.raw(one * 20, seconds=3).count(b"HTTP/1.1 200") == 20


def test_a_websocket_passes_bytes_both_ways(owner: Visitor, stranger: Visitor) -> None:
    head = "GET /ws?clientId=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
    with socket.create_connection(("127.0.0.1", owner.port), timeout=5) as line:
        line.sendall(f"{head}Authorization: Bearer {owner.token}\r\n\r\n".encode() + b"early")
        answer = line.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 101")
        assert ACCEPT.encode() in answer
        got = answer.partition(b"\r\n\r\n")[2]
        while got != b"early":
            got += line.recv(100)
        line.sendall(bytes(range(256)))
        assert line.recv(1 << 16) == bytes(range(256))
    assert stranger.raw(f"{head}\r\n".encode()).startswith(b"HTTP/1.1 401")
    foreign = f"{head}Origin: https://evil.example\r\nCookie: {session_of(owner)}\r\n\r\n"
    assert stranger.raw(foreign.encode()).startswith(b"HTTP/1.1 403")


def session_of(owner: Visitor) -> str:
    got = Visitor(owner.port).ask(f"/?token={owner.token}", **PAGE)
    return got.headers["set-cookie"].partition(";")[0]


def test_g4_a_form_of_another_site_and_a_foreign_page_are_refused(owner: Visitor, stranger: Visitor) -> None:
    cookie = session_of(owner)
    own = stranger.ask("/upload", "POST", b"{}", cookie=cookie, origin=f"http://127.0.0.1:{owner.port}")
    assert own.status == 200
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "same-site"}):
        assert stranger.ask("/upload", "POST", b"{}", cookie=cookie, **headers).status == 403
        assert owner.ask("/upload", "POST", b"{}", **headers).status == 200
    linked = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert stranger.ask("/manager/reboot", cookie=cookie, **linked).status == 403
    assert stranger.ask("/seen", cookie=cookie).status == 200


@pytest.mark.parametrize("head", [
    b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n",
    b"POST /upload HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
    b"GET /seen HTTP/1.1\r\nHost: a\r\nHost: b\r\n", b"GET /seen HTTP/1.1\r\nX: a\r\n",
    b"GET http://other/ HTTP/1.1\r\nHost: a\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n",
    b"GET /seen HTTP/2.0\r\nHost: a\r\n", b"GET  /seen HTTP/1.1\r\nHost: a\r\n",
    b"GET /seen HTTP/1.1\r\nHost: a\r\n folded: b\r\n", b"GET /seen HTTP/1.1\r\nHost: a\r\nX\0: b\r\n",
    b"GET /seen HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n",
])  # fmt: skip
def test_what_two_readers_might_read_in_two_ways_is_refused(owner: Visitor, head: bytes) -> None:
    smuggled = b"0\r\n\r\nGET /seen?smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    got = owner.raw(head + f"Authorization: Bearer {owner.token}\r\n\r\n".encode() + smuggled)
    assert got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 501")), got[:200]
    assert got.count(b"HTTP/1.1") == 1
    assert b"smuggled" not in got


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.lists(st.sampled_from([
    b"GET / HTTP/1.1\r\n", b"POST /prompt HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n", b"\r\n", b"abc",
    b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: upgrade\r\n", b"Expect: 100-continue\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]), max_size=8).map(b"".join))  # fmt: skip
def test_whatever_a_stranger_sends_nothing_gets_past_the_door(stranger: Visitor, data: bytes) -> None:
    got = stranger.raw(data + b"\r\n\r\n", seconds=0.05)
    for status in (line.split()[1] for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")):
        assert int(status) in {100, 400, 401, 403, 404, 405, 413, 429, 431, 501, 503}, got


def test_the_gateway_has_no_secret_where_others_may_look_and_logs_none(pod: Running, owner: Visitor) -> None:
    """Scenario G6, for what the gateway adds."""
    owner.ask(f"/seen?token={owner.token}")
    Visitor(owner.port).ask("/?token=wr0ng-canary")
    place = Path(f"/proc/{gateway_of(pod)}")
    assert owner.token.encode() not in (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
    logs = "".join(path.read_text() for path in pod.site.layout.logs.glob("*.log"))
    assert owner.token not in logs
    assert "wr0ng-canary" not in logs + pod.output_so_far()


def test_ten_thousand_idle_connections_take_little_and_others_are_served(tmp_path: Path) -> None:
    site, count = Site(tmp_path, settings={"listen": "0.0.0.0"}), 10_000
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < count + 500:
        pytest.skip(f"this user may open {most} files, and {count} connections take more")
    with booted(site) as pod, raised(count + 500), ExitStack() as lines:
        pod.wait_for("ready")
        owner, pid = Visitor(site.port, token_of(pod)), gateway_of(pod)
        owner.ask("/seen")
        before = resident(pid)
        for number in range(count):
            address = ("127.0.0.1", site.port)
            line = lines.enter_context(socket.create_connection(address, source_address=(f"127.0.1.{number % 8}", 0)))
            # Closed at once and for good: thousands of ports that linger would be in the way of the next tests.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else b"")
        assert owner.ask("/seen").status == 200
        assert resident(pid) - before < count * 25_000


@contextmanager
def raised(files: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, before[0]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_gateway_that_is_killed_comes_back_and_no_connection_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        pod.wait_for("ready")
        owner = Visitor(site.port, token_of(pod))
        cookie = session_of(owner)
        os.kill(gateway_of(pod), signal.SIGKILL)
        assert Visitor(site.port).ask("/seen", cookie=cookie).status == 200
        assert pod.wait_for("ready")["services"][-1]["restarts"] == 1


def test_g10_guessing_is_slowed_down_and_sessions_go_on(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        pod.wait_for("ready")
        cookie = session_of(Visitor(site.port, token_of(pod)))
        answers = [Visitor(site.port, f"guess{number}").ask("/seen") for number in range(8)]
        assert [got.status for got in answers] == [401] * 4 + [429] * 4
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert Visitor(site.port, token_of(pod)).ask("/seen").status == 429
        assert Visitor(site.port).ask("/seen", cookie=cookie).status == 200


def test_a_new_token_ends_every_session_and_the_page_restarts_comfyui(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        pod.wait_for("ready")
        owner = Visitor(site.port, token_of(pod))
        cookie, pid = session_of(owner), site.starts()[-1]["pid"]
        assert owner.ask("/_pod/do/restart", "POST", b"{}").json["ok"]
        pod.wait_for("ready")
        assert site.starts()[-1]["pid"] != pid
        assert owner.ask("/_pod/do/safe-mode", "POST", b"{}").json["message"].endswith("without custom nodes")
        assert pod.wait_for("ready")["services"][0]["safe_mode"]
        assert "--disable-all-custom-nodes" in site.starts()[-1]["argv"]
        assert owner.ask("/_pod/do/no-such", "POST", b"{}").status == 404
        made = owner.ask("/_pod/do/new-token", "POST", b"{}").json
        assert made["token"] == token_of(pod) != owner.token
        assert owner.ask("/seen").status == 401
        assert Visitor(site.port).ask("/seen", cookie=cookie).status == 401
        assert Visitor(site.port, made["token"]).ask("/seen").status == 200


def test_g2_no_credential_configured_makes_one_token_that_stays(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    tokens = []
    for _ in range(2):
        with booted(site) as pod:
            pod.wait_for("ready")
            tokens.append(token_of(pod))
            assert site.layout.token.stat().st_mode & 0o777 == 0o600
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 48


def test_a_taken_port_ends_the_boot_with_its_holder(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with socket.create_server(("127.0.0.1", site.port)), booted(site) as pod:
        assert pod.process.wait(20) == 9
        assert f"port {site.port} is in use by" in pod.output_so_far()


def test_on_loopback_nobody_is_asked_but_a_foreign_name_is(site_local: Running) -> None:
    visitor = Visitor(site_local.site.port)
    assert visitor.ask("/seen").status == 200
    assert visitor.ask("/seen", host="evil.example").status == 401
    assert visitor.ask("/upload", "POST", b"", origin="https://evil.example").status == 403


def test_where_no_login_is_asked_nobody_gets_the_key_to_the_shell(site_local: Running, tmp_path: Path) -> None:
    local, before = Visitor(site_local.site.port), token_of(site_local)
    assert local.ask("/_pod/do/new-token", "POST", b"{}").status == 401
    (tmp_path / "open").mkdir()
    with booted(Site(tmp_path / "open", settings={"listen": "0.0.0.0", "auth": "none"})) as pod:
        pod.wait_for("ready")
        visitor = Visitor(pod.site.port)
        assert visitor.ask("/seen").status == 200
        assert visitor.ask("/_pod/status").status == 200
        assert visitor.ask("/_pod/do/new-token", "POST", b"{}").status == 401
    assert token_of(site_local) == before


@pytest.fixture
def site_local(tmp_path: Path) -> Iterator[Running]:
    with booted(Site(tmp_path)) as running:
        running.wait_for("ready")
        yield running


def test_e6_the_restart_button_of_manager_restarts_comfyui_and_the_pod_stays(tmp_path: Path) -> None:
    """Manager replaces its own process, as the stand-in does."""
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        before = pod.wait_for("ready")
        owner = Visitor(site.port, token_of(pod))
        assert owner.ask("/manager/reboot").status in (502, 503)
        until(lambda: len(site.starts()) == 2, "another start")
        until(lambda: owner.ask("/system_stats").status == 200, "ComfyUI again")
        after = pod.wait_for("ready")
        assert (after["boot"]["pid"], after["services"][0]["pid"]) == (
            before["boot"]["pid"], before["services"][0]["pid"],
        )  # fmt: skip
        assert after["services"][0]["restarts"] == 0


@pytest.mark.parametrize("path", ["/v2/manager/reboot", "/api/v2/manager/reboot"])
def test_e6_managers_restart_is_the_pods_own_so_that_no_policy_of_managers_is_asked(tmp_path: Path, path: str) -> None:
    """The stand-in has no such route: whatever Manager says to it is not heard."""
    site = Site(tmp_path, settings={"listen": "0.0.0.0", "node_policy": "locked"})
    with booted(site) as pod:
        before = pod.wait_for("ready")
        owner = Visitor(site.port, token_of(pod))
        foreign = {"cookie": session_of(owner), "origin": "https://evil.example"}
        assert Visitor(site.port).ask(path, "POST").status == 401
        assert Visitor(site.port).ask(path, "POST", **foreign).status == 403
        assert len(site.starts()) == 1
        assert owner.ask(path, "POST").status == 200
        until(lambda: len(site.starts()) == 2, "another start")
        until(lambda: owner.ask("/system_stats").status == 200, "ComfyUI again")
        after = pod.wait_for("ready")
        assert (after["boot"]["pid"], after["services"][0]["restarts"]) == (before["boot"]["pid"], 1)


def test_g6_secrets_are_in_no_log_status_argument_or_environment_of_a_service(tmp_path: Path) -> None:
    canaries = {
        "COMFYPOD_TOKEN": "canary-token-1", "JUPYTER_PASSWORD": "canary-password-2", "HF_TOKEN": "canary-hub-4",
        "CIVITAI_TOKEN": "canary-civitai-5",
    }  # fmt: skip
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    wrong = "canary-guess-3"
    with booted(site, environ=canaries) as pod:
        pod.wait_for("ready")
        owner = Visitor(site.port, canaries["COMFYPOD_TOKEN"])
        assert Visitor(site.port).ask(f"/seen?token={owner.token}").status == 200
        assert Visitor(site.port).ask(f"/no-such?token={canaries['JUPYTER_PASSWORD']}").status == 404
        assert Visitor(site.port).ask(f"/seen?token={wrong}").status == 401
        assert owner.ask("/_pod/do/restart", "POST", b"{not json").status == 400
        Visitor(site.port).raw(f"GET /?token={owner.token} HTTP/9\r\n\r\n".encode())
        os.kill(gateway_of(pod), signal.SIGKILL)
        until(lambda: owner.ask("/livez").status == 200, "another gateway")
        status = pod.wait_for("ready")
        told = owner.ask("/seen").text + owner.ask("/_pod/status").text + owner.ask("/_pod/metrics").text
        for row in status["services"]:
            process = Path("/proc", str(row["pid"]))
            told += (process / "cmdline").read_text() + (process / "environ").read_text()
        told += Path("/proc", str(pod.process.pid), "cmdline").read_text()
    told += pod.output_so_far() + "".join(path.read_text() for path in site.layout.logs.iterdir())
    for canary in (*canaries.values(), wrong):
        assert canary not in told


def test_a_declared_service_is_shown_below_its_path_behind_the_login(tmp_path: Path) -> None:
    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps({"path": self.path, "authorization": self.headers.get("Authorization")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        declared = {"COMFYPOD_SERVICES": f"board={port}:/board/ gone=1:/gone/"}
        site = Site(tmp_path, settings={"listen": "0.0.0.0"})
        with booted(site, environ=declared) as pod:
            pod.wait_for("ready")
            owner = Visitor(site.port, token_of(pod))
            assert owner.ask("/board/a?b=1").json == {"path": "/board/a?b=1", "authorization": None}
            assert owner.ask("/board").headers["location"] == "/board/"
            assert owner.ask("/boarding").status == 404
            assert Visitor(site.port).ask("/board/a").status == 401
            assert (owner.ask("/gone/").status, owner.ask("/gone/").text) == (502, "gone does not answer on port 1\n")
        server.shutdown()


def test_with_a_certificate_the_gateway_speaks_tls_and_its_key_is_not_left_open(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    trusting = ssl.create_default_context(cafile=str(certificate))
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    files = {"COMFYPOD_TLS_CERT": str(certificate), "COMFYPOD_TLS_KEY": str(key)}
    size = 5_000_000

    def ask(path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPSConnection("127.0.0.1", site.port, timeout=30, context=trusting)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    with booted(site, environ=files) as pod:
        status = pod.wait_for("ready")
        assert status["urls"]["comfyui"] == f"https://127.0.0.1:{site.port}"
        assert {row["name"]: row["state"] for row in status["services"]}["gateway"] == "ready"
        token = {"Authorization": f"Bearer {token_of(pod)}"}
        assert ask("/seen")[0] == 401
        seen = json.loads(ask("/seen", **token)[2])
        assert ["X-Forwarded-Proto", "https"] in [[name.title(), value] for name, value in seen["headers"]]
        _, headers, _ = ask(f"/?token={token_of(pod)}", Accept="text/html")
        assert headers["set-cookie"].endswith("; Secure")
        killed = gateway_of(pod)
        os.kill(killed, signal.SIGKILL)
        until(lambda: _is_back(pod, killed), "another gateway")
        for row in pod.wait_for("ready")["services"]:
            open_files = [str(each.readlink()) for each in Path("/proc", str(row["pid"]), "fd").iterdir()]
            assert [name for name in open_files if "memfd:tls" in name] == []
        assert hashlib.sha256(ask(f"/file?size={size}", **token)[2]).hexdigest() == _digest(size)
        assert Visitor(site.port).raw(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")[:4] != b"HTTP"


def _digest(size: int) -> str:
    return hashlib.sha256((bytes(range(251)) * (size // 251 + 1))[:size]).hexdigest()


def _is_back(pod: Running, killed: int) -> bool:
    rows = {row["name"]: row for row in (pod.status() or {"services": []})["services"]}
    return bool(rows.get("gateway", {}).get("state") == "ready" and rows["gateway"]["pid"] != killed)


def test_a_certificate_that_cannot_be_used_ends_the_boot_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with booted(Site(tmp_path), environ={"COMFYPOD_TLS_CERT": str(tmp_path / "cert.pem")}) as pod:
        assert pod.process.wait(20) == 2
        assert "cannot speak TLS with" in pod.output_so_far()
        assert "COMFYPOD_TLS_KEY" in pod.output_so_far()


def test_a_comfyui_that_was_given_up_is_started_again_by_the_page(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=7), settings={"listen": "0.0.0.0"})
    with booted(site) as pod:
        pod.wait_for("failed", 60)
        site.obey(Orders())
        owner = Visitor(site.port, token_of(pod))
        with ThreadPoolExecutor(4) as people:
            asked = list(people.map(lambda _: owner.ask("/_pod/do/restart", "POST", b"{}"), range(4)))
        assert any(each.json["ok"] for each in asked)
        status = pod.wait_for("ready")
        assert status["services"][0]["safe_mode"]
        pids = {row["pid"] for row in site.starts()}
        assert [pid for pid in pids if Path("/proc", str(pid)).exists()] == [status["services"][0]["pid"]]
        assert [row for row in status["problems"] if row["code"] == "comfyui"] == []


def test_nodes_are_switched_off_and_on_and_nothing_else_is(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    nodes = site.layout.comfyui / "custom_nodes"
    (nodes / "mine").mkdir(parents=True)
    with booted(site) as pod:
        pod.wait_for("ready")
        owner = Visitor(site.port, token_of(pod))
        assert owner.ask("/_pod/do/node-off", "POST", b'{"node": "mine"}').json["ok"]
        assert (nodes / "mine.disabled").is_dir()
        assert [row["state"] for row in (pod.status() or {})["nodes"] if "mine" in row["name"]] == ["disabled"]
        for name in ("mine", "../mine", "", "../../pristine", "mine.disabled/.."):
            body = json.dumps({"node": name}).encode()
            assert owner.ask("/_pod/do/node-off", "POST", body).status == 409
        assert owner.ask("/_pod/do/node-on", "POST", b'{"node": "mine.disabled"}').json["ok"]
        assert (nodes / "mine").is_dir()
        assert owner.ask("/_pod/do/node-on", "POST", b"[1]").status == 400


def test_g5_below_the_path_of_a_trusted_proxy_the_pods_own_pages_work(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    below = {"x-forwarded-prefix": "/studio/", "x-forwarded-for": "198.51.100.7", **PAGE}
    with booted(site, environ={"COMFYPOD_TRUSTED_PROXIES": "127.0.0.1"}) as pod:
        pod.wait_for("ready")
        stranger, owner = Visitor(site.port), Visitor(site.port, token_of(pod))
        assert 'action="/studio/_pod/login"' in stranger.ask("/", **below).text
        assert 'const base = "/studio";' in owner.ask("/_pod/", **below).text
        assert stranger.ask(f"/a?token={owner.token}", **below).headers["location"] == "/studio/a"
        for wrong in ('"><script>', "//evil.example", "/a\\b", "https://evil.example"):
            assert 'action="/_pod/login"' in stranger.ask("/", **{**below, "x-forwarded-prefix": wrong}).text


def test_a_path_that_anyone_claims_is_not_believed(stranger: Visitor) -> None:
    assert 'action="/_pod/login"' in stranger.ask("/", x_forwarded_prefix="/studio", **PAGE).text
