"""What boot tells the gateway: who may come in, and what stands behind the door. One frozen type, sent as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Backend:
    """A service behind the door, by the path that it answers below; `/` is ComfyUI.

    `secret` is what the service itself asks for, as an `Authorization` header. A backend that is `guarded` wants a
    login also where the door itself wants none. One that is `declared` is the user's own: boot knows nothing of it.
    """

    name: str
    prefix: str
    host: str
    port: int
    ready: bool
    secret: str = ""
    guarded: bool = False
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Door:
    """The door as boot wants it now.

    `keys` are the secrets that log in; without one nobody can, which is so until boot has read its token. `open` says
    that no login is asked from anyone, `local` that none is asked from this machine. `identity` is the user and group
    to become, null while that is not decided.
    """

    keys: tuple[str, ...] = ()
    open: bool = False
    local: bool = False
    proxies: tuple[str, ...] = ()
    identity: tuple[int, int] | None = None
    draining: bool = False
    backends: tuple[Backend, ...] = field(default_factory=tuple)

    def encode(self) -> dict[str, Any]:
        """Return it as what JSON can say."""
        return asdict(self)


def decode(body: dict[str, Any]) -> Door:
    """Return the door that `encode` has written."""
    identity = body["identity"]
    return Door(
        **body
        | {
            "keys": tuple(body["keys"]),
            "proxies": tuple(body["proxies"]),
            "identity": None if identity is None else (identity[0], identity[1]),
            "backends": tuple(Backend(**each) for each in body["backends"]),
        }
    )


def behind(door: Door, path: str) -> Backend | None:
    """Return the service that answers a path: the longest prefix wins."""
    fitting = [each for each in door.backends if path.startswith(each.prefix) or f"{path}/" == each.prefix]
    return max(fitting, key=lambda each: len(each.prefix), default=None)
