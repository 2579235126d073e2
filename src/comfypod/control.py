"""Questions to a pod's control plane, from the host or from inside the pod."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from comfypod.errors import NotRunningError
from comfypod.workspace import run

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout

_SECONDS = 5.0


def ask(control: str, path: str) -> tuple[int, bytes] | None:
    """Return status and body of one GET, None when nothing answers within five seconds. Never through a proxy."""
    address = urlsplit(control)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
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


def running(layout: Layout) -> run.RunRecord:
    """Return the record of the pod that runs on a workspace.

    Raises:
        NotRunningError: there is none.
    """
    record = run.running(layout.run_record)
    if record is None:
        raise NotRunningError(
            f"no pod runs on the workspace {layout.root}",
            "start one with `comfypod up`, or name its workspace with --workspace",
        )
    return record
