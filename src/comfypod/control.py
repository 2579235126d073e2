"""Questions to a pod's control plane, from the host or from inside the pod."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 5.0


def ask(control: str, path: str) -> tuple[int, bytes] | None:
    """Return status and body of one GET, None when nothing answers within five seconds. Never through a proxy."""
    try:
        address = urlsplit(control)
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_SECONDS)
    except ValueError:
        return None
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def status(control: str) -> dict[str, Any] | None:
    """Return the pod's `/status`, None when it does not answer."""
    answer = ask(control, "/status")
    if answer is None or answer[0] != 200:
        return None
    try:
        body = json.loads(answer[1])
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
