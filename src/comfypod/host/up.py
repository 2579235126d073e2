"""`comfypod up` and `down` with the host engine: prepare, hand over to boot, wait for it, stop it."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import control, errors, files, ports, proc
from comfypod.errors import (
    BusyError,
    ComfypodError,
    HostError,
    LockError,
    NotReadyError,
    NotRunningError,
    Problem,
    ServiceError,
    error_of,
)
from comfypod.files import tail
from comfypod.host import running
from comfypod.host.gpu import choose, probe, verdict
from comfypod.host.prepare import prepare
from comfypod.host.store import data_folder
from comfypod.lock.load import read_lock
from comfypod.lock.reconcile import drift
from comfypod.manifest.load import FILE_NAME, load_manifest
from comfypod.manifest.profiles import Profile, load_profiles, profile
from comfypod.result import Result
from comfypod.settings import Settings, as_text, resolve
from comfypod.workspace import run, state
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

    from comfypod.lock.schema import Lock
    from comfypod.log import Console

_POLL_SECONDS = 0.2
_STOP_SLACK = 10.0
_NEWS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for; `arguments` are settings given on the command line, by name."""

    arguments: Mapping[str, str]
    profile: str = "auto"
    lock: Path | None = None
    offline: bool = False
    detach: bool = False
    wait: float = 600.0


def default_settings() -> dict[str, str]:
    """Return what the host engine sets where an image's `pod.json` would."""
    return {"workspace": str(files.home() / "comfypod-workspace"), "on_failure": "exit"}


def up(options: Options, console: Console) -> Result:
    """Make the pod run; in the foreground this process becomes boot and does not return.

    Raises:
        ComfypodError: something stands in the way; nothing half done is left.
    """
    lock = read_lock(options.lock)
    _ensure_in_step(options.lock, lock)
    built = {**default_settings(), **{name: as_text(name, value) for name, value in lock.settings.items()}}
    settings = resolve(built, os.environ, options.arguments)
    layout = Layout(settings.workspace)
    if lock.nodes:
        names = ", ".join(node.name for node in lock.nodes)
        console.warning(f"locked nodes are built into images; the host engine does not install them: {names}")
    chosen = _profile(options.profile, console)
    _ensure_startable(layout, settings)
    base = options.lock.parent if options.lock is not None else Path.cwd()
    pod = prepare(
        lock, chosen, platform.machine(), data=data_folder(os.environ), base=base, offline=options.offline,
        jupyter=settings.jupyter, console=console,
    )  # fmt: skip
    pod = pod.with_settings(built)
    with _held(layout):
        files.write_atomic(layout.pod_file, pod.encode(), durable=False)
    argv = _boot_command(layout.pod_file, options.arguments, json_end=options.detach)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if not options.detach:
        proc.replace(argv, environ)
    child = proc.detach(argv, layout.boot_output, environ)
    return _wait(child, layout, settings, options.wait, console)


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


def _ensure_in_step(path: Path | None, lock: Lock) -> None:
    """Refuse a lock that no longer says what the manifest beside it says."""
    manifest = (path.parent if path is not None else Path()) / FILE_NAME
    if not manifest.is_file():
        return
    if path is None:
        raise LockError(f"{manifest} has no comfypod.lock beside it", "run `comfypod lock`")
    if found := drift(load_manifest(manifest), load_profiles(), lock):
        message = f"{path} is out of step with {manifest.name}"
        raise LockError(message, "run `comfypod lock`", tuple(each.problem for each in found))


def _ensure_startable(layout: Layout, settings: Settings) -> None:
    """Find out what would stop boot before anything is fetched."""
    if run.running(layout.run_record) is not None:
        raise run.in_use(layout.root, layout.run_record)
    state.read(layout.state)
    files.make_folder(layout.records)
    with _held(layout):
        run.end_orphans(layout.root)
    wanted = {"--port": settings.port}
    if settings.jupyter:
        wanted["--jupyter-port"] = settings.jupyter_port
    ports.ensure_free(settings.listen, wanted)
    ports.ensure_free(settings.control_listen, {"--control-port": settings.control_port})


@contextlib.contextmanager
def _held(layout: Layout) -> Iterator[None]:
    """Hold the workspace for a moment, as boot does for as long as it runs."""
    lock = files.FolderLock(layout.lock)
    try:
        lock.acquire()
        yield
    except BusyError as error:
        raise run.in_use(layout.root, layout.run_record) from error
    except OSError as error:
        raise files.storage_error(error, f"cannot use the workspace {layout.root}") from error
    finally:
        lock.release()


def _boot_command(pod_file: Path, arguments: Mapping[str, str], *, json_end: bool) -> list[str]:
    """Build boot's command line; comfypod's own bytecode is made first, whatever the caller's Python settings."""
    compileall.compile_dir(Path(errors.__file__).parent, quiet=2)
    given = [f"--set={name}={value}" for name, value in arguments.items()]
    return [sys.executable, "-P", "-m", "comfypod", "boot", "--pod", str(pod_file), *given, *(["--json"] * json_end)]


def _wait(
    child: subprocess.Popen[bytes], layout: Layout, settings: Settings, seconds: float, console: Console
) -> Result:
    """Follow a detached boot until it is ready; an interrupt stops it again."""
    address = ports.http_url(ports.connect_host(settings.control_listen), settings.control_port)
    deadline, news = time.monotonic() + seconds, News(console)
    try:
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise _ended(child.returncode, layout)
            status = control.status(address)
            if status is not None and status.get("boot", {}).get("pid") != child.pid:
                status = None
            if status is not None and status["ready"]:
                return _ready(layout, status)
            if status is not None:
                news.tell("; ".join(status["reasons"]))
            time.sleep(_POLL_SECONDS)
    except (KeyboardInterrupt, SystemExit):
        child.terminate()
        _end_boot(run.Boot(child.pid, proc.start_ticks(child.pid) or 0), layout, settings.stop_seconds)
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
    lines += [f"  ComfyUI:    {urls['comfyui']}"]
    if "jupyter" in urls:
        shown, given = urls["jupyter"], status["settings"]
        if given["token"]["value"] == given["jupyter_password"]["value"] == "not given":
            shown += f"/lab?token={layout.token.read_text('ascii').strip()}"
        states = {row["name"]: row["state"] for row in status["services"]}
        lines.append(f"  JupyterLab: {shown}" + (" (starting)" if states.get("jupyter") != "ready" else ""))
    lines += [f"  workspace:  {layout.root}", "stop it with `comfypod down`, watch it with `comfypod logs -f`"]
    lines += [f"WARNING {problem['message']}" for problem in status["problems"]]
    data = {"workspace": str(layout.root), "urls": urls, "token_file": str(layout.token), "status": status}
    return Result("up", data, "\n".join(lines), "partial" if status["problems"] else "success")


def _ended(returncode: int, layout: Layout) -> ComfypodError:
    """Turn the envelope that boot left into the error that it reports."""
    lines = tail(layout.boot_output, 400)
    envelopes = [line for line in lines if line.startswith('{"command": "boot"')]
    problems: list[dict[str, str]] = json.loads(envelopes[-1])["errors"] if envelopes else []
    if not problems:
        said = " / ".join(lines[-3:])
        return ComfypodError(f"boot ended with {returncode}: {said}", f"all of it is in {layout.boot_output}")
    problem = Problem(**problems[0])
    if problem.code != ServiceError.code:
        return error_of(problem)
    last = tail(layout.logs / "comfyui.log", 3)
    return ServiceError(
        f"ComfyUI did not start: {problem.message}; its last words: {' / '.join(last)}",
        f"its whole log is {layout.logs / 'comfyui.log'}",
    )


def down(layout: Layout, console: Console) -> Result:
    """Stop the pod that runs on a workspace and wait for its end.

    Raises:
        NotRunningError: there is none.
    """
    started = time.monotonic()
    try:
        record = running.find(layout)
    except NotRunningError:
        if ended := _end_left_over(layout):
            return Result("down", {"ended": ended}, f"ended {ended} processes that a killed pod had left running")
        raise
    status = control.status(record.control)
    shown = (status or {}).get("settings", {}).get("stop_seconds", {}).get("value", "4")
    if not proc.signal_process(record.boot.pid, signal.SIGTERM) and record.boot.alive:
        raise HostError(f"the pod (pid {record.boot.pid}) belongs to another user", "stop it as that user, or as root")
    forced = _end_boot(record.boot, layout, float(shown))
    if forced:
        console.warning("the pod did not stop by itself and was killed")
    seconds = time.monotonic() - started
    return Result("down", {"seconds": round(seconds, 2), "forced": forced}, f"stopped in {seconds:.1f} s")


def _end_left_over(layout: Layout) -> int:
    if not layout.records.is_dir():
        return 0
    with _held(layout):
        return run.end_orphans(layout.root)


def _end_boot(boot: run.Boot, layout: Layout, stop_seconds: float) -> bool:
    """Wait for a boot that was told to stop; kill it and what it started when it does not. True when it was killed."""
    deadline = time.monotonic() + 2 * stop_seconds + _STOP_SLACK
    while boot.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    if not boot.alive:
        return False
    proc.signal_process(boot.pid, signal.SIGKILL)
    run.end_orphans(layout.root)
    return True
