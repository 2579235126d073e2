from __future__ import annotations

import hashlib
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfypod import fetch
from comfypod.download import connection as layer
from comfypod.errors import IntegrityError, SourceError
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = b"weights" * 1000


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.answers["/a"] = Answer(BODY)
        yield running


def test_a_download_arrives_whole_and_tells_how_far_it_is(site: Site, tmp_path: Path) -> None:
    told = list[int]()
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetch.download(f"{site.url}/a", tmp_path / "a", sha256=digest, advance=told.append) == len(BODY)
    assert (tmp_path / "a").read_bytes() == BODY
    assert told == sorted(told)
    assert told[-1] == len(BODY)


def test_other_bytes_than_the_lock_names_are_removed(site: Site, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        fetch.download(f"{site.url}/a", tmp_path / "a", sha256="0" * 64)
    for words in (f"{site.url}/a", "0" * 64, hashlib.sha256(BODY).hexdigest()):
        assert words in caught.value.message
    assert "comfypod lock --upgrade" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_that_is_cut_short_says_how_much_arrived(site: Site, tmp_path: Path) -> None:
    site.answers["/cut"] = Answer(BODY, cut=10)
    with pytest.raises(SourceError, match=f"{len(BODY) - 10} of {len(BODY)} bytes arrived"):
        fetch.download(f"{site.url}/cut", tmp_path / "a")


def test_a_connection_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        asked = pool.submit(fetch.download, url, tmp_path / "a")
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst bytes")
            with pytest.raises(SourceError, match="the connection broke after"):
                asked.result(20)


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_a_refusal_names_the_address_and_the_status(site: Site, tmp_path: Path, status: int) -> None:
    site.answers["/no"] = Answer(b"go away", status=status)
    for ask in (fetch.head, fetch.get_json, lambda url: fetch.download(url, tmp_path / "a")):
        with pytest.raises(SourceError, match=f"{site.url}/no answered {status}"):
            ask(f"{site.url}/no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/a", "/etc/passwd", "", "HTTP//x", "data:,x"])
def test_only_http_addresses_are_fetched(url: str) -> None:
    with pytest.raises(SourceError, match="only http and https"):
        fetch.get_json(url)


def test_a_redirect_to_a_file_is_not_followed(site: Site) -> None:
    site.answers["/away"] = Answer(status=302, headers={"Location": "file:///etc/passwd"})
    with pytest.raises(SourceError, match="answered 302"):
        fetch.head(f"{site.url}/away")


def test_a_host_that_does_not_answer_comes_with_a_hint() -> None:
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9/a is not reachable: .*refused") as caught:
        fetch.head("http://127.0.0.1:9/a")
    assert "check the network" in caught.value.hint


def test_head_follows_redirects_as_head_and_keeps_the_headers_on_the_way(site: Site) -> None:
    site.answers["/hop"] = Answer(status=302, headers={"Location": "/a", "X-Linked-Etag": "digest", "X-Both": "1"})
    site.answers["/a"] = Answer(BODY, headers={"X-Both": "2"})
    found = fetch.head(f"{site.url}/hop")
    assert site.requests == [("HEAD", "/hop"), ("HEAD", "/a")]
    assert (found["x-linked-etag"], found["x-both"], found["content-length"]) == ("digest", "2", str(len(BODY)))


def test_a_document_is_asked_for_by_type_and_decoded(site: Site) -> None:
    site.answers["/doc"] = Answer('{"a": ["ü"]}'.encode())
    assert fetch.get_json(f"{site.url}/doc") == {"a": ["ü"]}


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=30))
def test_whatever_is_not_json_is_a_source_that_failed(body: bytes) -> None:
    with serve() as site:
        site.answers["/doc"] = Answer(b"<" + body)
        with pytest.raises(SourceError, match="did not answer with JSON"):
            fetch.get_json(f"{site.url}/doc")


def test_a_document_that_is_cut_short_is_a_source_that_failed(site: Site) -> None:
    site.answers["/doc"] = Answer(b'{"a": 1}', cut=3)
    with pytest.raises(SourceError, match="the connection broke"):
        fetch.get_json(f"{site.url}/doc")


@pytest.mark.parametrize("address", ["http://h:x/a", "http://127.0.0.1:9/a b", "http://[::1/a", "http://a..b/a"])
def test_an_address_that_cannot_be_one_is_a_source_that_failed(address: str) -> None:
    with pytest.raises(SourceError):
        fetch.head(address)


def test_an_address_with_letters_beyond_ascii_is_a_source_that_answers_or_fails(site: Site) -> None:
    with pytest.raises(SourceError):
        fetch.head(f"{site.url}/模型.safetensors")
