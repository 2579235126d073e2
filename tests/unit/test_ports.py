"""Ports: free or not, held by whom, on which address."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import BusyError, UsageError
from comfypod.ports import busy, ensure_free, http_url, is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_free_ports_pass() -> None:
    ensure_free("127.0.0.1", {"--port": _free(), "--jupyter-port": 0, "--control-port": 0})


def test_a_busy_port_is_named_with_its_process_and_its_option(taken: int) -> None:
    with pytest.raises(BusyError) as caught:
        ensure_free("127.0.0.1", {"--port": _free(), "--jupyter-port": taken})
    with open("/proc/self/comm", encoding="utf-8") as handle:
        name = handle.read().strip()
    assert caught.value.message == f"port {taken} is in use by {name} (pid {os.getpid()})"
    assert "--jupyter-port" in caught.value.hint
    assert "--port " not in caught.value.hint


def test_a_port_taken_on_one_address_is_busy_for_all_of_them(taken: int) -> None:
    assert [entry.port for entry in busy("0.0.0.0", {"--port": taken})] == [taken]


def test_every_busy_port_is_named(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        second = other.getsockname()[1]
        with pytest.raises(BusyError, match=f"port {taken} .*; port {second} ") as caught:
            ensure_free("127.0.0.1", {"--port": taken, "--control-port": second})
    assert "--port or --control-port" in caught.value.hint


def test_two_options_with_one_port_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--port and --jupyter-port both name port 8188"):
        ensure_free("127.0.0.1", {"--port": 8188, "--jupyter-port": 8188})


@pytest.mark.parametrize("listen", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError, match=f"--listen '?{listen}"):
        ensure_free(listen, {"--port": _free()})


def test_ipv6_addresses_work() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert busy("::1", {"--port": server.getsockname()[1]})[0].holder.endswith(f"(pid {os.getpid()})")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.9", "localhost", "::1"])
def test_addresses_of_this_machine_alone_are_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "", "127.example.com", "127.0.0.1.example.com", "127.1", "10.0.0.1", "128.0.0.1"]
)
def test_everything_else_is_not_even_when_it_begins_like_it(address: str) -> None:
    assert not is_loopback(address)


@given(st.ip_addresses().map(str), st.integers(1, 65535))
def test_a_url_leads_back_to_its_host_and_port(host: str, port: int) -> None:
    parts = urlsplit(http_url(host, port))
    assert (parts.scheme, parts.hostname, parts.port) == ("http", host, port)


@pytest.mark.parametrize(
    "listen", ["a..b", "x" * 70, "\N{SNOWMAN}" * 70], ids=["empty label", "long label", "long international label"]
)
def test_an_address_that_cannot_be_one_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError, match="--listen"):
        busy(listen, {"--port": 8188})
