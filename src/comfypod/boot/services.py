"""The programs that a pod runs, as data: command line, environment, where they answer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from comfypod.boot.policy import Limits
from comfypod.files import write_atomic
from comfypod.ports import connect_host, http_url, is_loopback
from comfypod.settings import secret_variables
from comfypod.workspace import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.podfile import PodFile
    from comfypod.settings import Settings
    from comfypod.workspace.core import Core
    from comfypod.workspace.layout import Layout

SAFE_MODE_ARGUMENT = "--disable-all-custom-nodes"
_PYTHON_VARIABLES = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
)


@dataclass(frozen=True, slots=True)
class Service:
    """One program. It is ready when `path` on `host`:`port` answers 200."""

    name: str
    argv: tuple[str, ...]
    safe_argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    host: str
    port: int
    path: str
    critical: bool
    limits: Limits
    stop_seconds: float

    @property
    def url(self) -> str:
        """Where it answers on this machine."""
        return http_url(self.host, self.port)


def child_environ(environ: Mapping[str, str], python: Path, workspace: Path) -> dict[str, str]:
    """Return what a child sees: no secrets of ours, no Python settings of the caller's, its own venv first.

    It also carries the mark by which a later boot knows what an earlier one left running.
    """
    hidden = secret_variables() | _PYTHON_VARIABLES
    kept = {name: value for name, value in environ.items() if name not in hidden}
    binaries = python.parent
    path = f"{binaries}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {
        **kept,
        "PATH": path,
        "VIRTUAL_ENV": str(binaries.parent),
        "PYTHONUNBUFFERED": "1",
        run.MARK: str(workspace),
    }


def comfyui(
    pod: PodFile,
    settings: Settings,
    core: Core,
    environ: Mapping[str, str],
    *,
    cpu: bool = False,
    extra_paths: Path | None = None,
) -> Service:
    """Describe ComfyUI. A launcher of ours, when there is one, goes between Python and `main.py` here.

    `cpu` is for an image whose GPU is missing, `extra_paths` names the nodes and models of the image. While a new
    release is on trial there is no safe mode: what does not start is taken back.
    """
    argv = [pod.python, str(core.core / "main.py"), *pod.comfyui_args, *settings.comfyui_args]
    argv += ["--listen", settings.listen, "--port", str(settings.port), "--disable-auto-launch"]
    if cpu and "--cpu" not in argv:
        argv.append("--cpu")
    if extra_paths is not None:
        argv += ["--extra-model-paths-config", str(extra_paths)]
    if core.core != core.base:
        # ComfyUI's database library undoes percent-escapes, and takes `?` for the begin of options.
        database = f"sqlite:///{quote(str(core.base / 'user' / 'comfyui.db'))}"
        argv += ["--base-directory", str(core.base)] + (["--database-url", database] if core.alone else [])
    if not core.alone:
        # ComfyUI locks its database: one process has it.
        argv += ["--database-url", "sqlite:///:memory:"]
    safe = (*argv, SAFE_MODE_ARGUMENT)
    return Service(
        name="comfyui",
        argv=safe if settings.safe_mode else tuple(argv),
        safe_argv=safe,
        env=child_environ(environ, Path(pod.python), settings.workspace),
        cwd=core.base,
        host=connect_host(settings.listen),
        port=settings.port,
        path="/system_stats",
        critical=True,
        limits=Limits(has_safe_mode=not settings.safe_mode and not core.trial),
        stop_seconds=settings.stop_seconds,
    )


def jupyter(pod: PodFile, settings: Settings, layout: Layout, token: str, environ: Mapping[str, str]) -> Service | None:
    """Describe JupyterLab; None where it is switched off or not installed.

    Its terminals find ComfyUI's Python first. The token comes by environment, a password by a file of mode 0600:
    neither stands in an argument list.
    """
    if pod.jupyter is None or not settings.jupyter:
        return None
    argv = [pod.jupyter, f"--ServerApp.ip={settings.jupyter_listen}", f"--ServerApp.port={settings.jupyter_port}"]
    argv += ["--ServerApp.port_retries=0", "--no-browser", f"--ServerApp.root_dir={settings.workspace}"]
    if os.geteuid() == 0:
        argv.append("--allow-root")
    if not is_loopback(settings.jupyter_listen):
        argv.append("--ServerApp.allow_remote_access=True")
    env = child_environ(environ, Path(pod.python), settings.workspace)
    if not is_loopback(settings.jupyter_listen):
        env |= _without_config(Path(env.get("HOME", settings.workspace)))
    if settings.jupyter_password:
        argv.append(f"--config={_password_file(layout, settings.jupyter_password)}")
    else:
        env["JUPYTER_TOKEN"] = token
    return Service(
        name="jupyter",
        argv=tuple(argv),
        safe_argv=tuple(argv),
        env=env,
        cwd=settings.workspace,
        host=connect_host(settings.jupyter_listen),
        port=settings.jupyter_port,
        path="/api",
        critical=False,
        limits=Limits(quick_deaths=5),
        stop_seconds=settings.stop_seconds,
    )


def _without_config(home: Path) -> dict[str, str]:
    """Keep files in the home, which any node may write, from taking JupyterLab's login away; its looks stay."""
    lab = home / ".jupyter" / "lab"
    return {
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(lab / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(lab / "workspaces"),
    }


def _password_file(layout: Layout, password: str) -> Path:
    """Write the salted hash in the form that jupyter_server checks (`algorithm:salt:digest` over password and salt)."""
    salt = os.urandom(12).hex()
    digest = hashlib.sha256(os.fsencode(password) + salt.encode("ascii")).hexdigest()
    identity = {"hashed_password": f"sha256:{salt}:{digest}"}
    body = {"PasswordIdentityProvider": identity, "IdentityProvider": {"token": ""}}
    write_atomic(layout.jupyter_config, json.dumps(body).encode(), 0o600, durable=False)
    return layout.jupyter_config
