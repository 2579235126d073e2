from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from comfypod import control, proc
from comfypod.errors import NotRunningError
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit.pods import free_port
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def test_the_record_of_the_pod_that_runs_is_found_and_no_other(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    with pytest.raises(NotRunningError, match=f"no pod runs on the workspace {tmp_path}") as caught:
        control.running(layout)
    assert "comfypod up" in caught.value.hint
    started = proc.start_ticks(os.getpid())
    assert started is not None
    record = run.RunRecord(run.Child("boot", os.getpid(), started), "http://127.0.0.1:1", {})
    run.write(layout.run_record, record)
    assert control.running(layout) == record
    run.write(layout.run_record, run.RunRecord(run.Child("boot", os.getpid(), started + 1), "http://127.0.0.1:1", {}))
    with pytest.raises(NotRunningError):
        control.running(layout)
