from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from comfypod import control
from tests.kit.pods import free_port
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def test_an_answer_is_status_and_body_also_when_it_is_no(site: Site) -> None:
    site.answers["/readyz"] = Answer(b"starting\n", status=503)
    assert control.ask(site.url, "/readyz") == (503, b"starting\n")


def test_what_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert control.ask(f"http://127.0.0.1:{free_port()}", "/livez") is None
    monkeypatch.setattr(control, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert control.ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "/livez") is None


def test_an_answer_that_is_cut_short_is_none(site: Site) -> None:
    site.answers["/status"] = Answer(b'{"phase": "ready"}', cut=3)
    assert control.ask(site.url, "/status") is None
    assert control.status(site.url) is None


def test_no_proxy_stands_between_us_and_the_pod(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.answers["/livez"] = Answer(b"live\n")
    assert control.ask(site.url, "/livez") == (200, b"live\n")


def test_a_status_is_the_document_of_a_pod_that_answers_200(site: Site) -> None:
    assert control.status(site.url) is None
    site.answers["/status"] = Answer(b'{"phase": "ready"}')
    assert control.status(site.url) == {"phase": "ready"}
