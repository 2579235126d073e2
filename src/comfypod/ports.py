"""Whether the ports that `up` wants are free, and who holds those that are not."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.errors import BusyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LISTENING = "0A"
_SPAN = 5000


@dataclass(frozen=True, slots=True)
class Busy:
    """A port that is taken: the option that changes it, and its holder as "name (pid N)" where that is known."""

    option: str
    port: int
    holder: str

    def __str__(self) -> str:
        """Say it as part of a sentence."""
        return f"port {self.port} is in use by {self.holder or 'another process'}"


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if address in ("localhost", "::1"):
        return True
    try:
        return socket.inet_pton(socket.AF_INET, address)[0] == 127
    except (OSError, ValueError):
        return False


def connect_host(listen: str) -> str:
    """Return where to reach a server on this machine that listens on an address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104 - compared, not bound


def http_url(host: str, port: int, *, secure: bool = False) -> str:
    """Return the address of a server; IPv6 goes in brackets."""
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def choose_free(begin: int, like: int | None = None, host: str = "127.0.0.1") -> int:
    """Return a free port below those that the kernel hands out, so that no outgoing connection takes it meanwhile.

    It is one of five thousand from `begin` on, so that two services that do not listen yet never choose the same, and
    the one that `like` leads to, if given, where that is free, so that it stays: ComfyUI names its logs after its port.

    Raises:
        BusyError: none of many that were tried is free.
    """
    offsets = [secrets.randbelow(_SPAN) for _ in range(200)]
    for offset in offsets if like is None else (like % _SPAN, *offsets):
        port = begin + offset
        if _opens(host, port, "--port"):
            return port
    raise BusyError(f"no port from {begin} to {begin + _SPAN - 1} is free on {host}", "stop what uses them")


def ensure_free(listen: str, ports: Mapping[str, int]) -> None:
    """Check that ports can be opened on an address; `ports` is by the option that sets each, such as "--port".

    Raises:
        BusyError: some are taken; all of them are named.
        UsageError: the address is not this machine's, a port may not be opened, or two options name one port.
    """
    twice = {port for port in ports.values() if port and list(ports.values()).count(port) > 1}
    if twice:
        options = " and ".join(option for option, port in ports.items() if port in twice)
        raise UsageError(f"{options} both name port {min(twice)}", "give each a port of its own")
    taken = busy(listen, ports)
    if taken:
        options = " or ".join(entry.option for entry in taken)
        raise BusyError("; ".join(map(str, taken)), f"stop what holds it, or choose another port with {options}")


def busy(listen: str, ports: Mapping[str, int]) -> tuple[Busy, ...]:
    """Return the ports that are taken on an address; port 0 is always free.

    Raises:
        UsageError: the address is not this machine's, or a port may not be opened.
    """
    taken = {option: port for option, port in ports.items() if port and not _opens(listen, port, option)}
    holders = _holders(set(taken.values())) if taken else {}
    return tuple(Busy(option, port, holders.get(port, "")) for option, port in taken.items())


def resolve(address: str, port: int) -> tuple[int, int, int, Any]:
    """Return family, kind, protocol and place of a socket that is to listen.

    Raises:
        OSError: nobody knows the address.
        ValueError: it cannot be one.
    """
    # As bytes, a name that is plain anyway spares Python the tables of all others (encodings.idna).
    host = address.encode() if address.isascii() else address
    family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, kind, number, place


def _opens(listen: str, port: int, option: str) -> bool:
    try:
        family, kind, number, address = resolve(listen, port)
        with socket.socket(family, kind, number) as probe:
            # As servers do: connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (socket.gaierror, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--listen {listen!r}: {reason}", "give an address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(f"port {port} may not be opened by this user", f"choose another with {option}") from error
        raise UsageError(f"--listen {listen}: {error.strerror}", "give an address of this machine") from error
    return True


def _holders(ports: set[int]) -> dict[int, str]:
    sockets = dict(_listening(ports))
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        # Other users' processes are closed to us, and any may end while we look.
        with contextlib.suppress(OSError):
            for handle in (process / "fd").iterdir():
                port = sockets.get(str(handle.readlink()))
                if port is not None:
                    found.setdefault(port, f"{(process / 'comm').read_text().strip()} (pid {process.name})")
    return found


def _listening(ports: set[int]) -> Iterator[tuple[str, int]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text("ascii").splitlines()[1:]:
                fields = row.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == _LISTENING and port in ports:
                    yield f"socket:[{fields[9]}]", port
