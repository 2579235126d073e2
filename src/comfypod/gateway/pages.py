"""The gateway's own pages: login, the pod (boot page and dashboard in one), and two sentences."""

from __future__ import annotations

import html
import secrets
from functools import cache
from importlib import resources

from comfypod.gateway.wire import Reply

_HTML = "text/html; charset=utf-8"


def login(base: str, target: str, *, wrong: bool = False) -> Reply:
    """Ask for the token; `target` is where to go then, and `base` the path that a proxy has cut off, here and below."""
    said = "That is not this pod's token." if wrong else ""
    return _page(401, "login", {"BASE": base, "NEXT": target, "SAID": said})


def pod(base: str) -> Reply:
    """Return the dashboard."""
    return _page(200, "pod", {"BASE": base, "MODE": "dashboard"})


def boot(base: str) -> Reply:
    """Return the page of a pod that is not ready; it turns into the service by itself."""
    return _page(503, "pod", {"BASE": base, "MODE": "boot"}, (("Retry-After", "2"),))


def early() -> Reply:
    """Say to anyone that the pod starts: who may see more is not known yet."""
    return _page(503, "early", {}, (("Retry-After", "1"), ("Refresh", "1")))


def follow(base: str, target: str) -> Reply:
    """Let a person decide about an address that another site has led to."""
    return _page(403, "follow", {"TARGET": base + target})


def _page(status: int, name: str, values: dict[str, str], headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    nonce = secrets.token_urlsafe(12)
    text = _template(name).replace("{STYLE}", _template("style")).replace("{NONCE}", nonce)
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", html.escape(value))
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return Reply(status, text.encode(), _HTML, (("Content-Security-Policy", policy), *headers))


@cache
def _template(name: str) -> str:
    return resources.files("comfypod.resources").joinpath("pages", f"{name}.html").read_text("utf-8")
