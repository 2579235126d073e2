"""Following a pod that was started in the background, until it is ready or has ended; the same for every engine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Protocol

from comfypod import control, ports
from comfypod.errors import ComfypodError, NotReadyError, Problem, ServiceError, error_of, exit_code_table
from comfypod.files import tail
from comfypod.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfypod.log import Console
    from comfypod.settings import Settings
    from comfypod.workspace.layout import Layout

_POLL_SECONDS = 0.2
_STOP_SLACK = 10.0
_NEWS_SECONDS = 5.0


class Pod(Protocol):
    """A pod that was started in the background, as its engine knows it."""

    def owns(self, status: Mapping[str, Any]) -> bool:
        """Whether this pod gave that `/status`; another one may answer at the same address."""

    def ended(self) -> ComfypodError | None:
        """Return what it died of, None while it runs; nothing of it is left then."""

    def stop(self) -> None:
        """Stop it in order and wait for its end."""


def stop_limit(stop_seconds: float, drain_seconds: float) -> float:
    """Return how long a pod may take to stop: a prompt that ends, two services one after the other, and some room."""
    return drain_seconds + 2 * stop_seconds + _STOP_SLACK


def until_ready(pod: Pod, layout: Layout, settings: Settings, seconds: float, console: Console) -> Result:
    """Follow a pod until it is ready, or ComfyUI answers at least (`degraded`); an interrupt stops it again.

    Raises:
        NotReadyError: it is not ready in time; it goes on starting.
        ComfypodError: it ended, and this is what it said.
    """
    address = ports.http_url(ports.connect_host(settings.control_listen), settings.control_port)
    deadline, news = time.monotonic() + seconds, News(console)
    try:
        while time.monotonic() < deadline:
            if (error := pod.ended()) is not None:
                raise error
            status = control.status(address)
            if status is not None and pod.owns(status):
                if status["ready"] or status.get("phase") == "degraded":
                    return _ready(layout, status)
                news.tell("; ".join(status["reasons"]))
            time.sleep(_POLL_SECONDS)
    except (KeyboardInterrupt, SystemExit):
        pod.stop()
        raise
    raise NotReadyError(
        f"the pod is not ready after {seconds:.0f} s: {news.last or 'it does not answer yet'}",
        "it goes on starting; see `comfypod status` and `comfypod logs`, or stop it with `comfypod down`",
    )


class News:
    """Says what a starting pod is doing: every step at once, progress within a step every five seconds."""

    def __init__(self, console: Console) -> None:
        self.last = ""
        self._console = console
        self._told = 0.0

    def tell(self, text: str) -> None:
        """Take what is known now, and say it when it is due."""
        same_step = text.partition(":")[0] == self.last.partition(":")[0]
        due = time.monotonic() - self._told > _NEWS_SECONDS if same_step else True
        if text and text != self.last and due:
            self._console.line(f"  {text}")
            self.last, self._told = text, time.monotonic()


def _ready(layout: Layout, status: Mapping[str, Any]) -> Result:
    urls = dict(status["urls"])
    lines = [f"ready after {status['boot']['seconds_to_ready']:.1f} s"]
    given = status["settings"]
    is_open = given["auth"]["value"] == "none" or ports.is_loopback(given["listen"]["value"])
    door = "" if is_open else _login(layout, given, "/")
    lines += [f"  ComfyUI:    {urls['comfyui']}{door}"]
    if "jupyter" in urls:
        states = {row["name"]: row["state"] for row in status["services"]}
        shown = urls["jupyter"] + _login(layout, given, "/lab")
        lines.append(f"  JupyterLab: {shown}" + (" (starting)" if states.get("jupyter") != "ready" else ""))
    lines += [f"  workspace:  {layout.root}", "stop it with `comfypod down`, watch it with `comfypod logs -f`"]
    lines += [f"NOT READY {reason}" for reason in status["reasons"]]
    lines += [f"WARNING {problem['message']}" for problem in status["problems"]]
    data = {"workspace": str(layout.root), "urls": urls, "token_file": str(layout.token), "status": status}
    return Result("up", data, "\n".join(lines), "success" if status["ready"] and not status["problems"] else "partial")


def _login(layout: Layout, given: Mapping[str, Any], place: str) -> str:
    """Return what to add to an address so that it logs in: the workspace's own token, if we may read it."""
    if given["token"]["value"] != "not given":
        return ""
    found = tail(layout.token, 1)
    return f"{place}?token={found[0].strip()}" if found else f" (log in with the token in {layout.token})"


def boot_error(returncode: int, said: Sequence[str], hint: str, layout: Layout) -> ComfypodError:
    """Turn what `boot --json` said before its end into the error that it reports.

    `hint` is for when it reported none.
    """
    envelopes = [line for line in said if line.startswith('{"command": "boot"')]
    problems: list[dict[str, str]] = json.loads(envelopes[-1])["errors"] if envelopes else []
    if not problems:
        # Another boot of this workspace may have taken the place of what this one said.
        code = next((code for number, code, _ in exit_code_table() if number == returncode), "")
        return error_of(Problem(code, f"boot ended with {returncode}: {' / '.join(said[-3:])}", hint))
    problem = Problem(**problems[0])
    if problem.code != ServiceError.code:
        return error_of(problem)
    last = tail(layout.logs / "comfyui.log", 3)
    return ServiceError(
        f"ComfyUI did not start: {problem.message}; its last words: {' / '.join(last)}",
        f"its whole log is {layout.logs / 'comfyui.log'}",
    )
