"""Who may come in: login, and what a foreign web page may not do with somebody else's. Pure but for the throttle."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfypod.gateway import session
from comfypod.ports import is_loopback

if TYPE_CHECKING:
    from comfypod.gateway.door import Door
    from comfypod.gateway.request import Request

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@?#\s]+)(?::(\d+))?")

By = Literal["nobody", "open", "local", "session", "header", "query"]


@dataclass(frozen=True, slots=True)
class Visitor:
    """How a request was let in, and how long it must wait if it guessed too often."""

    by: By
    pause: float = 0.0

    @property
    def known(self) -> bool:
        """Whether it may pass."""
        return self.by != "nobody"

    @property
    def by_browser(self) -> bool:
        """Whether a browser may have added what let it in without its user's doing."""
        return self.by in ("open", "local", "session")


def visitor(request: Request, door: Door, throttle: session.Throttle, *, guarded: bool) -> Visitor:
    """Say who sends a request. `guarded` asks for a login also where the door asks for none."""
    name = session.cookie_name(door.keys) if door.keys else ""
    in_session = bool(name) and session.holds(request.cookie(name), door.keys, time.time())
    given: tuple[tuple[By, str], ...] = (("header", request.bearer()), ("query", request.query_token()))
    for by, secret in given:
        if in_session and session.fits(secret, door.keys):
            return Visitor(by)
        if secret and door.keys and not in_session:
            return checked(secret, by, request, door, throttle)
    if in_session:
        return Visitor("session")
    if door.open and not guarded:
        return Visitor("open")
    if door.local and not guarded and _is_local(request):
        return Visitor("local")
    return Visitor("nobody")


def checked(secret: str, by: By, request: Request, door: Door, throttle: session.Throttle) -> Visitor:
    """Compare a secret with the keys, unless its address has guessed too often."""
    if pause := throttle.pause(request.address):
        return Visitor("nobody", pause)
    if session.fits(secret, door.keys):
        return Visitor(by)
    throttle.failed(request.address)
    return Visitor("nobody", throttle.pause(request.address))


def _is_local(request: Request) -> bool:
    """Whether a client is on this machine and named it: no proxy between us, no name of a foreign page.

    JupyterLab's port may be open to the world while the pod's own is not, so where it comes from counts as well.
    """
    if not is_loopback(request.address):
        return False
    names = {name for name, _ in request.headers}
    if names & {b"forwarded", b"via", b"x-real-ip", b"cf-connecting-ip"} or any(
        name.startswith(b"x-forwarded-") for name in names
    ):
        return False
    found = _HOST.fullmatch(request.host)
    return request.host == "" or (found is not None and is_loopback(found[1].strip("[]")))


def foreign(request: Request) -> str:
    """Say why a request may be the doing of a foreign web page; empty when it is not.

    Browsers name the page that sends a request: by `Sec-Fetch-Site`, which no script can set and which they send over
    https and on this machine, or else by `Origin`. A client that is no browser sends neither. A page may be linked to
    from anywhere, but only what a person then sees.
    """
    site, changes = request.header("sec-fetch-site"), request.method not in _SAFE or request.upgrades
    if site == "same-origin":
        return ""
    origin = request.header("origin")
    if origin and _origin_host(origin) != _with_port(request.host, secure=origin.lower().startswith("https:")):
        return f"it comes from a page of {origin}"
    if site in ("", "none"):
        return ""
    if changes or request.header("sec-fetch-mode") != "navigate" or request.header("sec-fetch-dest") != "document":
        return "it comes from a page of another site"
    return ""


def linked(request: Request) -> bool:
    """Whether a foreign page has led a person here, to an address that may do more than show something."""
    if request.header("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    return request.path != "/" and not request.path.startswith(("/_pod/", "/jupyter/lab", "/jupyter/tree"))


def _origin_host(origin: str) -> str:
    scheme, _, host = origin.lower().partition("://")
    return _with_port(host, secure=scheme == "https") if scheme in ("http", "https") else ""


def _with_port(host: str, *, secure: bool) -> str:
    found = _HOST.fullmatch(host)
    return f"{found[1]}:{found[2] or (443 if secure else 80)}" if found else "-"
