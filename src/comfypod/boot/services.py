"""The programs that a pod runs, as data: command line, environment, where they answer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from comfypod import ports
from comfypod.boot.guardline import LAUNCHER
from comfypod.boot.policy import Limits
from comfypod.ports import http_url, is_loopback
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.podfile import PodFile
    from comfypod.settings import Settings
    from comfypod.workspace.core import Core

JUPYTER_PREFIX = "/jupyter/"
LOOPBACK = "127.0.0.1"
SAFE_MODE_ARGUMENT = "--disable-all-custom-nodes"


@dataclass(frozen=True, slots=True)
class Service:
    """One program. It is ready when `path` on `host`:`port` answers 200.

    Silent for `wedged_seconds` it is killed (`boot/silence.py`); 0 leaves it alone. One that `tells` says when it
    listens (`Supervised.listens`).
    """

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
    keep: tuple[int, ...] = ()
    wedged_seconds: float = 0.0
    tells: bool = False

    @property
    def url(self) -> str:
        """Where it answers on this machine."""
        return http_url(self.host, self.port)


def comfyui(
    pod: PodFile,
    settings: Settings,
    core: Core,
    environ: Mapping[str, str],
    *,
    cpu: bool = False,
    extra_paths: Path | None = None,
    guard: tuple[int, int] | None = None,
) -> Service:
    """Describe ComfyUI. With `guard`, descriptors of a `GuardLine`, a launcher of ours stands before `main.py`.

    `cpu` is for an image whose GPU is missing, `extra_paths` names the nodes and models of the image. While a new
    release is on trial there is no safe mode: what does not start is taken back.
    """
    launcher = [str(LAUNCHER), ",".join(map(str, guard))] if guard else []
    argv = [pod.python, *launcher, str(core.core / "main.py"), *pod.comfyui_args, *settings.comfyui_args]
    port = ports.choose_free(20000, settings.port)
    argv += ["--listen", LOOPBACK, "--port", str(port), "--disable-auto-launch"]
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
        host=LOOPBACK,
        port=port,
        path="/system_stats",
        critical=True,
        limits=Limits(has_safe_mode=not settings.safe_mode and not core.trial),
        stop_seconds=settings.stop_seconds,
        keep=guard or (),
        wedged_seconds=settings.wedged_seconds,
        tells=guard is not None,
    )


# What JupyterLab's own packages switch on by files of the environment, which go unread with those of the home.
_LAB_EXTENSIONS = ("jupyter_server_terminals", "jupyter_lsp", "notebook_shim")


def jupyter(pod: PodFile, settings: Settings, environ: Mapping[str, str]) -> Service | None:
    """Describe JupyterLab; None where it is switched off or not installed.

    Its terminals find ComfyUI's Python first. It answers on loopback, to a token that only it and the gateway know: the
    pod's own token and password are in no service's environment.
    """
    if pod.jupyter is None or not settings.jupyter:
        return None
    port = ports.choose_free(25000, settings.jupyter_port)
    argv = [pod.jupyter, f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.port={port}"]
    argv += [f"--ServerApp.base_url={JUPYTER_PREFIX}", "--ServerApp.allow_remote_access=True"]
    argv += ["--ServerApp.port_retries=0", "--no-browser", f"--ServerApp.root_dir={settings.workspace}"]
    if os.geteuid() == 0:
        argv.append("--allow-root")
    env = child_environ(environ, Path(pod.python), settings.workspace)
    if not (is_loopback(settings.listen) and is_loopback(settings.jupyter_listen)):
        env |= _without_config(Path(env.get("HOME", settings.workspace)))
        argv += [f"--ServerApp.jpserver_extensions={name}=True" for name in _LAB_EXTENSIONS]
    env["JUPYTER_TOKEN"] = os.urandom(24).hex()
    return Service(
        name="jupyter",
        argv=tuple(argv),
        safe_argv=tuple(argv),
        env=env,
        cwd=settings.workspace,
        host=LOOPBACK,
        port=port,
        path=f"{JUPYTER_PREFIX}api",
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
