"""`comfypod up` and `down`; with the host engine: prepare, hand over to boot, wait for it, stop it."""

from __future__ import annotations

import compileall
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import control, errors, files, proc
from comfypod.errors import ComfypodError, HostError, NotRunningError, UsageError
from comfypod.files import tail
from comfypod.gpu import choose, probe, verdict
from comfypod.host import container, running
from comfypod.host.prepare import prepare
from comfypod.host.startable import ensure_ports, ensure_unused, held
from comfypod.host.store import data_folder
from comfypod.host.wait import boot_error, stop_limit, until_ready
from comfypod.lock.load import read_lock
from comfypod.lock.step import ensure_in_step
from comfypod.manifest.profiles import Profile, load_profiles, profile
from comfypod.result import Result
from comfypod.settings import Settings, as_text, resolve
from comfypod.workspace import run
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from comfypod.lock.schema import Lock
    from comfypod.log import Console


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for; `arguments` are settings given on the command line, by name."""

    arguments: Mapping[str, str]
    profile: str = "auto"
    lock: Path | None = None
    offline: bool = False
    detach: bool = False
    wait: float = 600.0
    engine: str = "auto"
    image: str | None = None


def default_settings() -> dict[str, str]:
    """Return what the host engine sets where an image's `pod.json` would."""
    return {"workspace": str(files.home() / "comfypod-workspace"), "on_failure": "exit"}


def up(options: Options, console: Console) -> Result:
    """Make the pod run; in the foreground this process becomes boot, or an engine's client, and does not return.

    Raises:
        ComfypodError: something stands in the way; nothing half done is left.
    """
    if options.image is not None:
        if options.engine == "host":
            raise UsageError("--image needs a container engine", "leave --engine out, or name docker or podman")
        return container.up(options, default_settings(), None, console)
    lock = read_lock(options.lock)
    ensure_in_step(options.lock, lock)
    built = {**default_settings(), **{name: as_text(name, value) for name, value in lock.settings.items()}}
    if options.engine in ("docker", "podman"):
        return container.up(options, built, lock, console)
    return _on_host(options, built, lock, console)


def _on_host(options: Options, built: dict[str, str], lock: Lock, console: Console) -> Result:
    settings = resolve(built, os.environ, options.arguments)
    layout = Layout(settings.workspace)
    if lock.nodes:
        names = ", ".join(node.name for node in lock.nodes)
        console.warning(f"locked nodes are built into images; the host engine does not install them: {names}")
    chosen = _profile(options.profile, console)
    ensure_unused(layout)
    ensure_ports(settings, jupyter=settings.jupyter)
    base = options.lock.parent if options.lock is not None else Path.cwd()
    pod = prepare(
        lock, chosen, platform.machine(), data=data_folder(os.environ), base=base, offline=options.offline,
        jupyter=settings.jupyter, console=console,
    )  # fmt: skip
    pod = pod.with_settings(built)
    with held(layout):
        files.write_atomic(layout.pod_file, pod.encode(), durable=False)
    argv = _boot_command(layout.pod_file, options.arguments, json_end=options.detach)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if not options.detach:
        proc.replace(argv, environ)
    child = _Child(proc.detach(argv, layout.boot_output, environ), layout, settings)
    return until_ready(child, layout, settings, options.wait, console)


def _profile(name: str, console: Console) -> Profile:
    found = probe()
    if name != "auto":
        chosen = profile(name)
        if reason := verdict(found, chosen):
            raise HostError(reason, "`comfypod doctor` shows what this machine has")
        return chosen
    choice = choose(found, load_profiles())
    console.line(f"profile {choice.profile.name}: {choice.reason}")
    return choice.profile


def _boot_command(pod_file: Path, arguments: Mapping[str, str], *, json_end: bool) -> list[str]:
    """Build boot's command line; comfypod's own bytecode is made first, whatever the caller's Python settings."""
    compileall.compile_dir(Path(errors.__file__).parent, quiet=2)
    given = [f"--set={name}={value}" for name, value in arguments.items()]
    return [sys.executable, "-P", "-m", "comfypod", "boot", "--pod", str(pod_file), *given, *(["--json"] * json_end)]


@dataclass(frozen=True, slots=True)
class _Child:
    """A detached boot as `until_ready` sees it."""

    process: subprocess.Popen[bytes]
    layout: Layout
    settings: Settings

    def owns(self, status: Mapping[str, Any]) -> bool:
        return bool(status.get("boot", {}).get("pid") == self.process.pid)

    def ended(self) -> ComfypodError | None:
        if self.process.poll() is None:
            return None
        said = tail(self.layout.boot_output, 400)
        return boot_error(self.process.returncode, said, f"all of it is in {self.layout.boot_output}", self.layout)

    def stop(self) -> None:
        self.process.terminate()
        boot = run.Boot(self.process.pid, proc.start_ticks(self.process.pid) or 0)
        _end_boot(boot, self.layout, stop_limit(self.settings.stop_seconds, self.settings.drain_seconds))


def down(layout: Layout, console: Console) -> Result:
    """Stop the pod that runs on a workspace and wait for its end.

    Raises:
        NotRunningError: there is none.
        HostError: it belongs to another user, or to a container that `up` did not make.
    """
    started = time.monotonic()
    try:
        record = running.find(layout)
    except (NotRunningError, HostError) as error:
        if (done := container.down(layout, console)) is not None:
            return done
        if isinstance(error, NotRunningError) and (ended := _end_left_over(layout)):
            return Result("down", {"ended": ended}, f"ended {ended} processes that a killed pod had left running")
        raise
    status = control.status(record.control)
    shown = (status or {}).get("settings", {})
    stop, drain = (
        shown.get(name, {}).get("value", usual) for name, usual in (("stop_seconds", 4), ("drain_seconds", 5))
    )
    if not proc.signal_process(record.boot.pid, signal.SIGTERM) and record.boot.alive:
        raise HostError(f"the pod (pid {record.boot.pid}) belongs to another user", "stop it as that user, or as root")
    forced = _end_boot(record.boot, layout, stop_limit(float(stop), float(drain)))
    if forced:
        console.warning("the pod did not stop by itself and was killed")
    seconds = time.monotonic() - started
    return Result("down", {"seconds": round(seconds, 2), "forced": forced}, f"stopped in {seconds:.1f} s")


def _end_left_over(layout: Layout) -> int:
    if not layout.records.is_dir():
        return 0
    with held(layout):
        return run.end_orphans(layout.root)


def _end_boot(boot: run.Boot, layout: Layout, seconds: float) -> bool:
    """Wait for a boot that was told to stop; kill it and what it started when it does not. True when it was killed."""
    deadline = time.monotonic() + seconds
    while boot.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    if not boot.alive:
        return False
    proc.signal_process(boot.pid, signal.SIGKILL)
    run.end_orphans(layout.root)
    return True
