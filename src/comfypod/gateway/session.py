"""Who has logged in: sessions that need no memory, secrets compared in constant time, guessing slowed down."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SESSION_SECONDS = 30 * 24 * 3600
_FREE_GUESSES = 5
_LONGEST_PAUSE = 60.0
_FORGET_SECONDS = 900.0
_MOST_REMEMBERED = 10_000


def fits(given: str, keys: Sequence[str]) -> bool:
    """Whether a secret is one of the keys; takes as long for every guess of one length."""
    raw = given.encode("utf-8", "surrogateescape")
    found = [hmac.compare_digest(raw, key.encode("utf-8", "surrogateescape")) for key in keys]
    return any(found)


def cookie_name(keys: Sequence[str]) -> str:
    """Return the cookie's name: cookies know no ports, so two pods on one host need two names."""
    return f"comfypod_{hashlib.sha256(b'name' + keys[0].encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def issue(keys: Sequence[str], now: float) -> str:
    """Return a session that holds for thirty days, or until the first key is another one."""
    ends = str(int(now) + SESSION_SECONDS)
    return f"{ends}.{_signature(keys[0], ends)}"


def holds(value: str, keys: Sequence[str], now: float) -> bool:
    """Whether a session is ours and not over."""
    ends, _, signature = value.partition(".")
    if not keys or not (ends.isascii() and ends.isdecimal()):
        return False
    ours = hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), _signature(keys[0], ends).encode())
    return ours and int(ends[:16]) > now


def _signature(key: str, ends: str) -> str:
    return hmac.new(key.encode("utf-8", "surrogateescape"), f"session {ends}".encode(), hashlib.sha256).hexdigest()


@dataclass(slots=True)
class _Guesses:
    count: int = 0
    until: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class Throttle:
    """Slows guessing down by address (an IPv6 network of 64 bits counts as one).

    Five guesses are free, then the pause doubles from one second to a minute; a quarter of an hour without a guess is
    forgiven. While an address pauses, no secret of it is looked at, so a right guess does not stand out.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Guesses] = field(default_factory=dict)

    def pause(self, address: str) -> float:
        """Return the seconds that an address must wait, 0 when it may try."""
        found = self._seen.get(_network(address))
        return max(0.0, found.until - self.clock()) if found else 0.0

    def failed(self, address: str) -> None:
        """Note a wrong guess."""
        now, key = self.clock(), _network(address)
        found = self._seen.pop(key, None) or _Guesses()
        if now - found.last > _FORGET_SECONDS:
            found.count = 0
        found.count, found.last = found.count + 1, now
        if found.count >= _FREE_GUESSES:
            found.until = now + min(_LONGEST_PAUSE, 2.0 ** min(found.count - _FREE_GUESSES, 10))
        self._seen[key] = found
        if len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
