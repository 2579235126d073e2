"""Boot's side of the door: opens its ports, runs the gateway behind them, tells it what it must know, acts for it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from comfypod import ports
from comfypod.boot.policy import Limits
from comfypod.boot.process import State
from comfypod.boot.services import JUPYTER_PREFIX, Service
from comfypod.counts import decode
from comfypod.errors import BusyError, ComfypodError, Problem, UsageError
from comfypod.files import read_small, tail
from comfypod.gateway.door import Backend, Door
from comfypod.gateway.link import Line
from comfypod.ports import connect_host, http_url, is_loopback
from comfypod.workspace import run
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.boot.context import Context
    from comfypod.boot.httpd import Handler

NAME = "gateway"
_LOGS = ("boot", "comfyui", "jupyter")
_LOG_LINES = 200
_SERVING = (State.READY, State.DEGRADED)
_BACKLOG = 4096
_LARGEST_CERTIFICATE = 1 << 20


class Actions(Protocol):
    """What a person may ask of a pod, by its page."""

    async def restart_comfyui(self, *, toggle_safe_mode: bool) -> str:
        """Start ComfyUI again; say what was done.

        Raises:
            ComfypodError: it cannot be done now.
        """

    async def roll_back(self) -> str:
        """Go back to the release that the volume keeps; say what was done.

        Raises:
            ComfypodError: it cannot be done now.
        """

    def pull_models(self, text: str) -> str:
        """Fetch models that are asked for in words; say what follows.

        Raises:
            ComfypodError: they cannot be had.
        """

    async def new_token(self) -> str:
        """Replace the token and return it.

        Raises:
            ComfypodError: it is not ours to replace, or cannot be kept.
        """


class Doorway:
    """The door of one pod. Its listening sockets are boot's own, so no connection is refused while a gateway starts."""

    def __init__(self, context: Context, actions: Actions, respond: Handler) -> None:
        self._context, self._actions, self._respond = context, actions, respond
        self._settings = context.settings
        self._doors: list[tuple[socket.socket, str]] = []
        self._plain: socket.socket | None = None
        self._tls: int | None = None
        self._ours, self._theirs = socket.socketpair()
        self._line = Line(self._asked)

    def open(self) -> None:
        """Listen on the pod's port, and on JupyterLab's where that is free.

        Raises:
            BusyError: the pod's port is taken.
            UsageError: its address is not this machine's, or the certificate cannot be used.
        """
        settings = self._settings
        if settings.tls_cert:
            self._tls = _certificate(Path(settings.tls_cert), settings.tls_key)
            # Boot's own probe speaks no TLS.
            self._plain = _listen("127.0.0.1", 0, "--port")
        self._doors.append((_listen(settings.listen, settings.port, "--port"), "/"))
        if not settings.jupyter or self._context.pod.jupyter is None:
            return
        try:
            door = _listen(settings.jupyter_listen, settings.jupyter_port, "--jupyter-port")
        except ComfypodError as error:
            told = f"JupyterLab has no port of its own: {error.message}"
            self._context.warn(Problem("jupyter", told, f"it answers below {self.url('jupyter')}"))
        else:
            self._doors.append((door, JUPYTER_PREFIX))

    def service(self) -> Service:
        """Describe the gateway's process; it has no secret in its environment and no file of the volume.

        Its Python is boot's, settings and all. It has no mark: it ends with its boot by itself, and is not to be taken
        for what a killed boot has left.
        """
        settings = self._settings
        env = child_environ(os.environ, Path(sys.executable), settings.workspace)
        env |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        del env[run.MARK]
        host, port = connect_host(settings.listen), settings.port
        keep = (self._theirs.fileno(), *(door.fileno() for door, _ in self._doors))
        argv = (sys.executable, "-P", "-m", "comfypod.gateway.main", "--line", str(self._theirs.fileno()))
        doors = tuple(f"--door={door.fileno()}={path}" for door, path in self._doors)
        if self._plain is not None and self._tls is not None:
            keep = (*keep, self._plain.fileno(), self._tls)
            doors = (*doors, f"--plain={self._plain.fileno()}", f"--tls={self._tls}")
            host, port = self._plain.getsockname()
        return Service(
            name=NAME, argv=(*argv, *doors), safe_argv=(*argv, *doors),
            env=env, cwd=Path("/"),
            host=host, port=port, path="/livez", critical=False,
            limits=Limits(quick_deaths=sys.maxsize), stop_seconds=1.0, keep=keep,
        )  # fmt: skip

    def url(self, name: str) -> str:
        """Return where a service is reached from this machine."""
        settings = self._settings
        own = name == "jupyter" and any(path == JUPYTER_PREFIX for _, path in self._doors)
        listen, port = (settings.jupyter_listen, settings.jupyter_port) if own else (settings.listen, settings.port)
        below = JUPYTER_PREFIX.rstrip("/") if name == "jupyter" and not own else ""
        return http_url(connect_host(listen), port, secure=bool(settings.tls_cert)) + below

    def announce(self) -> None:
        """Say on the console where the pod is, and to a person who could not know it how to come in."""
        health, console = self._context.health, self._context.console
        console.line(f"ready after {time.monotonic() - health.begun:.1f} s")
        for name, url in health.urls.items():
            console.line(f"  {name}: {url}")
        wanted = [name for name in health.urls if name == "jupyter" or self.asks]
        if wanted and (console.interactive or self._context.token_made):
            for name in wanted:
                console.line(f"  log in to {name}: {self.login(name)}", private=True)
            console.line(f"  the token is kept in {self._context.layout.token}")

    def login(self, name: str) -> str:
        """Return a link that logs in."""
        return self.url(name) + ("/lab" if name == "jupyter" else "/") + f"?token={self._context.token}"

    @property
    def asks(self) -> bool:
        """Whether someone who comes by the pod's port is asked for the token."""
        return self._settings.auth != "none" and not is_loopback(self._settings.listen)

    async def run(self) -> None:
        """Keep the line to the gateway, whichever process that is."""
        await self._line.run(self._ours)

    def push(self) -> None:
        """Tell the gateway how things stand."""
        self._line.tell({"door": self._door().encode()})

    def end(self) -> None:
        """Tell the gateway to end: it may be another user, whom boot cannot signal any more."""
        self._line.tell({"end": True})

    def close(self) -> None:
        """Stop listening."""
        for door, _ in self._doors:
            door.close()
        if self._plain is not None and self._tls is not None:
            self._plain.close()
            os.close(self._tls)
        self._ours.close()
        self._theirs.close()

    def _door(self) -> Door:
        context, settings = self._context, self._settings
        token = context.token or settings.token
        decided = context.in_image and context.health.stages[0].state not in ("waiting", "running")
        return Door(
            keys=tuple(key for key in (token, settings.jupyter_password) if key) if token else (),
            open=settings.auth == "none",
            local=is_loopback(settings.listen),
            proxies=settings.trusted_proxies,
            identity=(os.geteuid(), os.getegid()) if decided else None,
            draining=context.health.stopping,
            backends=tuple(self._backends()),
        )

    def _backends(self) -> list[Backend]:
        found = []
        for each in self._context.health.services:
            service, prefix = each.service, {"comfyui": "/", "jupyter": JUPYTER_PREFIX}.get(each.service.name)
            if prefix is not None:
                secret = f"token {service.env['JUPYTER_TOKEN']}" if prefix == JUPYTER_PREFIX else ""
                found.append(
                    Backend(
                        service.name, prefix, service.host, service.port, each.state in _SERVING, secret,
                        guarded=prefix == JUPYTER_PREFIX,
                    )
                )  # fmt: skip
        found += [
            Backend(each.name, each.path, "127.0.0.1", each.port, ready=True, guarded=True, declared=True)
            for each in self._settings.services
        ]
        if not any(each.prefix == "/" for each in found):
            found.append(Backend("comfyui", "/", "127.0.0.1", 0, ready=False))
        return found

    async def _asked(self, message: Mapping[str, Any]) -> Any:
        """Answer the gateway; None where the question makes no sense."""
        match message:
            case {"hello": _}:
                self.push()
            case {"counts": dict(counts)}:
                self._context.health.gateway = decode(counts)
            case {"get": str(target)}:
                asked, _, query = target.partition("?")
                answer = await self._respond(asked, query)
                return {"status": answer.status, "kind": answer.kind, "body": answer.body.decode()}
            case {"log": str(name)} if name in _LOGS:
                path = self._context.layout.logs / f"{name}.log"
                return "\n".join(await asyncio.to_thread(tail, path, _LOG_LINES)) + "\n"
            case {"do": str(action), "with": dict(given)}:
                return await self._act(action, given)
        return None

    async def _act(self, action: str, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            match action:
                case "restart" | "safe-mode":
                    said = await self._actions.restart_comfyui(toggle_safe_mode=action == "safe-mode")
                case "roll-back":
                    said = await self._actions.roll_back()
                case "pull":
                    said = self._actions.pull_models(str(given.get("what", "")))
                case "node-on" | "node-off":
                    from comfypod.boot.contents import switch_node

                    on, name = action == "node-on", str(given.get("node", ""))
                    said = await asyncio.to_thread(switch_node, self._context, name, on=on)
                case "new-token":
                    token = await self._actions.new_token()
                    self.push()
                    return {
                        "ok": True,
                        "message": "the token is a new one",
                        "token": token,
                        "login": f"/?token={token}",
                    }
                case _:
                    return {"ok": False, "status": 404, "message": f"there is no action {action!r}"}
        except ComfypodError as error:
            return {"ok": False, "message": f"{error.message}; {error.hint}"}
        return {"ok": True, "message": said}


def _listen(address: str, port: int, option: str) -> socket.socket:
    """Open a listening socket.

    Raises:
        BusyError: the port is taken; its holder is named.
        UsageError: the address is not this machine's, or the port may not be opened.
    """
    try:
        family, kind, number, place = ports.resolve(address, port)
        door = socket.socket(family, kind, number)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(place)
        door.listen(_BACKLOG)
    except (OSError, ValueError) as error:
        ports.ensure_free(address, {option: port})
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise BusyError(f"port {port} is in use", f"choose another with {option}") from error
        raise UsageError(f"cannot listen on {address}:{port}: {error}", "give an address of this machine") from error
    return door


def _certificate(path: Path, key: str) -> int:
    """Return a descriptor of certificate and key in memory, for a gateway of a user who may not read them.

    Raises:
        UsageError: they cannot be used.
    """
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key or None, password="")
        parts = [read_small(each, _LARGEST_CERTIFICATE) for each in (path, *([Path(key)] if key else []))]
    except (OSError, ValueError) as error:
        hint = "give files in PEM, without a password, as COMFYPOD_TLS_CERT and COMFYPOD_TLS_KEY"
        raise UsageError(f"cannot speak TLS with {path}: {error}", hint) from error
    descriptor = os.memfd_create("tls")
    with os.fdopen(descriptor, "wb", closefd=False) as memory:
        memory.write(b"\n".join(parts))
    return descriptor
