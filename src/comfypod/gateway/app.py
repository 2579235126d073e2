"""What the gateway does with a request: probes, login, its own pages below `/_pod/`, or on to a service."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

import h11

from comfypod.counts import GatewayCounts
from comfypod.gateway import access, pages, session
from comfypod.gateway.door import Backend, Door, behind, decode
from comfypod.gateway.proxy import Proxy, UnreachableError
from comfypod.gateway.request import seen_through
from comfypod.gateway.wire import Reply

if TYPE_CHECKING:
    from comfypod.gateway.link import Line
    from comfypod.gateway.request import Request
    from comfypod.gateway.wire import Client

_PROBES = ("/livez", "/startupz", "/readyz")
_ASK_SECONDS = 5.0
_ACT_SECONDS = 30.0
_RETRY = ("Retry-After", "2")
# What a client sends to ComfyUI to have pictures made; refused while the pod drains.
_WORK = "/prompt", "/api/prompt"
# ComfyUI-Manager's restart button, which its policy may refuse, is the pod's own here, with all that guards that one.
_RESTART = "/v2/manager/reboot", "/api/v2/manager/reboot"


class App:
    """The gateway's behaviour; `door` is replaced whenever boot says so."""

    def __init__(self, line: Line) -> None:
        self.door = Door()
        self._line = line
        self._throttle = session.Throttle()
        self._proxy = Proxy()
        self.counts = GatewayCounts()

    async def handle(self, client: Client, request: Request, default: str) -> None:
        """Answer one request and count it; `default` is the path that the port is for, `/` or `/jupyter/`."""
        client.status, began = 0, time.monotonic()
        await self._answer(client, request, default)
        if client.status:
            kind = "read" if request.method in ("GET", "HEAD", "OPTIONS") else "write"
            self.counts = self.counts.answered(kind, f"{client.status // 100}xx", time.monotonic() - began)

    async def _answer(self, client: Client, request: Request, default: str) -> None:
        request = seen_through(request, self.door.proxies)
        if request.path in _PROBES and default == "/":
            reply: Reply | None = await self._probe(request)
        else:
            reply = await self._enter(client, _placed(request, default))
        if reply is not None:
            await client.reply(reply, head=request.method == "HEAD")

    def count_connection(self, change: int) -> None:
        """Count a connection that has come, or that has gone."""
        self.counts = replace(self.counts, connections=self.counts.connections + change)

    async def _enter(self, client: Client, request: Request) -> Reply | None:
        """Return our own answer, None when a service has given its own."""
        backend = behind(self.door, request.path)
        visitor = access.visitor(request, self.door, self._throttle, guarded=_guarded(request, backend))
        if (refusal := self._refusal(request, visitor)) is not None:
            return refusal
        if request.path == "/_pod/login":
            return await self._login(client, request)
        if not visitor.known:
            return self._stranger(request)
        if visitor.by == "query" and request.is_page:
            return self._welcome(request, request.without_token().target)
        if request.path == "/_pod" or request.path.startswith("/_pod/"):
            return await self._own(client, request)
        return await self._onward(client, self._bare(request), backend)

    def _refusal(self, request: Request, visitor: access.Visitor) -> Reply | None:
        """Stop who guesses, and what a foreign page does with the login of somebody else."""
        if visitor.pause:
            return self._slow(visitor.pause)
        if not (visitor.known and visitor.by_browser):
            return None
        if reason := access.foreign(request):
            return Reply(403, f"refused: {reason}\n".encode())
        return pages.follow(request.prefix, _here(request.target)) if access.linked(request) else None

    async def _probe(self, request: Request) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return Reply(405, b"only-get\n")
        known = access.visitor(request, self.door, self._throttle, guarded=False).known
        target = request.without_token().target if known else request.path
        return await self._control(target) or Reply(200 if request.path == "/livez" else 503, b"no-answer\n")

    async def _control(self, target: str) -> Reply | None:
        """Ask boot for what its control plane answers to a GET."""
        answer = await self._line.ask({"get": target}, _ASK_SECONDS)
        if answer is None:
            return None
        return Reply(int(answer["status"]), answer["body"].encode(), answer["kind"])

    def _slow(self, pause: float) -> Reply:
        seconds = str(int(pause) + 1)
        return Reply(429, f"too many wrong tokens; wait {seconds} s\n".encode(), headers=(("Retry-After", seconds),))

    def _stranger(self, request: Request) -> Reply:
        """Answer someone who is not logged in: a form for people, 401 for programs."""
        if not self.door.keys:
            return pages.early() if request.is_page else Reply(503, b"starting\n", headers=(_RETRY,))
        if request.is_page:
            return pages.login(request.prefix, request.target)
        hint = b"log in: Authorization: Bearer TOKEN, or ?token=TOKEN in a browser\n"
        return Reply(401, hint, headers=(("WWW-Authenticate", 'Bearer realm="comfypod"'),))

    async def _login(self, client: Client, request: Request) -> Reply:
        if request.method != "POST":
            return pages.login(request.prefix, "/")
        if reason := access.foreign(request):
            return Reply(403, f"refused: {reason}\n".encode())
        form = parse_qs((await client.form()).decode("utf-8", "replace"))
        given, target = form.get("token", [""])[0].strip(), form.get("next", ["/"])[0]
        visitor = access.checked(given, "query", request, self.door, self._throttle)
        if visitor.known:
            return self._welcome(request, target)
        return self._slow(visitor.pause) if visitor.pause else pages.login(request.prefix, target, wrong=True)

    def _welcome(self, request: Request, target: str) -> Reply:
        """Give a browser its session and send it to where it wanted to go, with no token in the address."""
        value = f"{session.cookie_name(self.door.keys)}={session.issue(self.door.keys, time.time())}"
        cookie = f"{value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={session.SESSION_SECONDS}"
        secure = request.secure or request.header("x-forwarded-proto") == "https"
        return _redirect(request, target, ("Set-Cookie", cookie + ("; Secure" if secure else "")))

    def _bare(self, request: Request) -> Request:
        """Take from a request what is ours: no service behind the door sees the token or the session."""
        if not self.door.keys:
            return request
        headers = request.without_cookie(session.cookie_name(self.door.keys))
        if session.fits(request.bearer(), self.door.keys):
            headers = tuple(each for each in headers if each[0] != b"authorization")
        if session.fits(request.query_token(), self.door.keys):
            request = request.without_token()
        return replace(request, headers=headers)

    async def _own(self, client: Client, request: Request) -> Reply:
        """Answer below `/_pod/`."""
        match request.method, request.path:
            case (("GET" | "HEAD"), ("/_pod" | "/_pod/")):
                return pages.pod(request.prefix)
            case (("GET" | "HEAD"), ("/_pod/status" | "/_pod/metrics")):
                return await self._control(self._bare(request).target.removeprefix("/_pod")) or _silent()
            case (("GET" | "HEAD"), path) if path.startswith("/_pod/logs/"):
                answer = await self._line.ask({"log": path.removeprefix("/_pod/logs/")}, _ASK_SECONDS)
                return Reply(404, b"there is no such log\n") if answer is None else Reply(200, answer.encode())
            case "POST", "/_pod/logout" if self.door.keys:
                return _redirect(
                    request, "/", ("Set-Cookie", f"{session.cookie_name(self.door.keys)}=; Path=/; Max-Age=0")
                )
            case "POST", path if path.startswith("/_pod/do/"):
                return await self._act(client, path.removeprefix("/_pod/do/"))
            case _:
                return Reply(404, b"not-found\n")

    async def _act(self, client: Client, action: str) -> Reply:
        try:
            body: Any = json.loads(await client.form() or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return Reply(400, b"an object in JSON is expected\n")
        answer = await self._line.ask({"do": action, "with": body}, _ACT_SECONDS)
        if answer is None:
            return _silent()
        status = 200 if answer.get("ok") else int(answer.get("status", 409))
        return Reply(status, json.dumps(answer).encode(), "application/json")

    async def _onward(self, client: Client, request: Request, backend: Backend | None) -> Reply | None:
        if backend is None:
            return Reply(404, b"nothing is here: that service does not run\n")
        if self.door.draining and request.method == "POST" and request.path in _WORK:
            return Reply(503, b"the pod is stopping\n", headers=(_RETRY,))
        if request.path + "/" == backend.prefix:
            return _redirect(request, backend.prefix)
        if not backend.ready:
            return await self._wait(request, backend)
        try:
            await self._proxy.forward(client, request, backend)
        except UnreachableError:
            return await self._wait(request, backend)
        except h11.RemoteProtocolError as error:
            raise ConnectionResetError(str(error)) from error
        return None

    async def _wait(self, request: Request, backend: Backend) -> Reply:
        """Say what the pod is doing: as a page that turns into the service, or as JSON."""
        if backend.declared:
            return Reply(502, f"{backend.name} does not answer on port {backend.port}\n".encode())
        if request.is_page:
            return pages.boot(request.prefix)
        status = await self._control("/status")
        body = status.body if status is not None else b'{"phase": "starting"}'
        return Reply(503, body, "application/json", (_RETRY,))

    def tell(self, message: dict[str, Any]) -> None:
        """Take what boot says."""
        if "door" in message:
            self.door = decode(message["door"])


def _placed(request: Request, default: str) -> Request:
    """Return a request to a service's own port as the pod's port would see it, and what the pod does itself as that."""
    if default != "/" and not request.path.startswith((default, "/_pod/")):
        return replace(request, target=default + request.target[1:])
    if request.method == "POST" and request.path in _RESTART:
        return replace(request, target="/_pod/do/restart" + request.target.removeprefix(request.path))
    return request


def _guarded(request: Request, backend: Backend | None) -> bool:
    """Whether a request asks for the login also where ComfyUI does not: at a shell, and at the key to it."""
    if request.path.startswith("/_pod/"):
        return request.path == "/_pod/do/new-token"
    return backend is not None and backend.guarded


def _here(target: str) -> str:
    """Return a target that cannot be read as the name of another host."""
    return "/" + target.lstrip("/\\")


def _silent() -> Reply:
    return Reply(504, b"boot does not answer\n")


def _redirect(request: Request, target: str, *headers: tuple[str, str]) -> Reply:
    place = request.prefix + quote(_here(target), safe="/?&=%:@!$'()*+,;~#[]-._")
    return Reply(303, headers=(("Location", place), *headers))
