"""Hosts that misbehave, and the door with pauses and pieces that suit small files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.download import lane, pieces, refusal
from tests.kit.hosts import Host, certificate, host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(pieces, "LEAST", 1 << 16)
    monkeypatch.setattr(pieces, "_WORTH", 1 << 12)
    monkeypatch.setattr(lane, "GRACE_SECONDS", 1.0)
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web(small: None) -> Iterator[Host]:
    with host() as running:
        yield running


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(small: None, pem: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with host(pem) as running:
        yield running
