"""What a container is started with: its name, the options of its engine, the command line of boot, the environment."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.host.wait import stop_limit
from comfypod.image.labels import PREFIX
from comfypod.settings import Settings, secret_variables
from comfypod.settings_table import TABLE
from comfypod.workspace.run import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.image.engine import Engine
    from comfypod.workspace.layout import Layout

WORKSPACE = "/workspace"
WORKSPACE_LABEL = f"{PREFIX}.workspace"
STOP_LABEL = f"{PREFIX}.stop-seconds"

# An image is made for a network of its own; on the host's these are decided here, whatever it says.
_DECIDED = ("listen", "port", "jupyter_listen", "jupyter_port", "control_listen", "control_port", "on_failure")
_NOT_PASSED = frozenset({"COMFYPOD_WORKSPACE", "COMFYPOD_DATA", "COMFYPOD_GIT_MIRRORS", MARK})
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PASSED = frozenset({
    *_PROXIES, *(name.upper() for name in _PROXIES), *(name for row in TABLE for name in row.variables),
})  # fmt: skip

_SHARED_MEMORY = "1g"


@dataclass(frozen=True, slots=True)
class Start:
    """One container to start; `gpu` are the options that hand it the GPU."""

    engine: Engine
    image: str
    layout: Layout
    options: tuple[str, ...]
    gpu: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """The container's name, one per workspace."""
        return name_of(self.layout)


def name_of(layout: Layout) -> str:
    """Return the name of the container that runs on a workspace."""
    return f"comfypod-{hashlib.sha256(os.fsencode(place_of(layout))).hexdigest()[:12]}"


def place_of(layout: Layout) -> str:
    """Return the one path of a workspace, however it was named."""
    return str(layout.root.resolve())


def run_options(layout: Layout, settings: Settings) -> tuple[str, ...]:
    """Return the engine's options for a pod on a workspace."""
    place, limit = place_of(layout), str(round(stop_limit(settings.stop_seconds, settings.drain_seconds)))
    source = place.replace('"', '""')
    return (
        "--name", name_of(layout), "--label", f"{WORKSPACE_LABEL}={place}", "--label", f"{STOP_LABEL}={limit}",
        "--mount", f'type=bind,"source={source}",destination={WORKSPACE}',
        "--network", "host", "--shm-size", _SHARED_MEMORY, "--stop-timeout", limit, "--restart", "no",
        "--pull", "never",
    )  # fmt: skip


def boot_command(settings: Settings, arguments: Mapping[str, str], *, json_end: bool) -> tuple[str, ...]:
    """Return what the container runs: boot, with what the command line says and the host decides."""
    shown = settings.shown()
    given = {**arguments, **{name: shown[name]["value"] for name in _DECIDED}}
    sets = (f"--set={name}={value}" for name, value in given.items() if name != "workspace")
    return ("comfypod", "boot", *(["--json"] * json_end), *sets)


def environment(settings: Settings, environ: Mapping[str, str], *, podman: bool) -> dict[str, str]:
    """Return the container's own variables: the caller's settings, secrets by value, who owns what it writes."""
    names = {name for name in environ if name.startswith("COMFYPOD_") or name in _PASSED}
    passed = {name: environ[name] for name in sorted(names - _NOT_PASSED - secret_variables()) if environ[name]}
    secrets = {row.variables[0]: getattr(settings, row.name) for row in TABLE if row.secret}
    return {**_owner(settings, podman=podman), **passed, **{name: value for name, value in secrets.items() if value}}


def _owner(settings: Settings, *, podman: bool) -> dict[str, str]:
    """Let files belong to the caller. Root leaves it to boot; to podman of anyone else, that user is root inside."""
    if os.geteuid() == 0 or settings.puid or settings.pgid:
        return {}
    return {"PUID": "0" if podman else str(os.geteuid()), "PGID": "0" if podman else str(os.getegid())}
