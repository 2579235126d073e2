"""`up` and `down` with docker or podman: an image's pod in a container that behaves as the host engine's does.

The container shares the host's network, so addresses, ports and the control plane are those of the host engine.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.errors import BusyError, ComfypodError, HostError
from comfypod.host.image import ensure_built_from, ensure_platform, find_image, gpu_options, present
from comfypod.host.start import (
    STOP_LABEL,
    WORKSPACE,
    WORKSPACE_LABEL,
    Start,
    boot_command,
    environment,
    name_of,
    place_of,
    run_options,
)
from comfypod.host.startable import ensure_ports, ensure_unused
from comfypod.host.wait import boot_error, stop_limit, until_ready
from comfypod.result import Result
from comfypod.settings import resolve
from comfypod.workspace import run
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfypod.host.up import Options
    from comfypod.image.engine import Engine
    from comfypod.image.facts import Container
    from comfypod.lock.schema import Lock
    from comfypod.log import Console

_LOOK_SECONDS = 0.5
_STARTING_SECONDS = 10.0
_REMOVAL_SECONDS = 10.0
_KILLED = 137
_COMING_OR_GOING = ("created", "configured", "initialized", "removing")
_RUNNING = ("running", "paused", "restarting", "stopping")
_LIVING = ("created", "configured", "initialized", *_RUNNING)
_NO_TOOLKIT = {
    "docker": "install nvidia-container-toolkit, run `sudo nvidia-ctk runtime configure --runtime=docker` and "
    "restart docker",
    "podman": "install nvidia-container-toolkit and run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
}


def up(options: Options, built: Mapping[str, str], lock: Lock | None, console: Console) -> Result:
    """Run an image's pod; in the foreground this process becomes the engine's client and does not return.

    `built` are settings in place of the image's own, `lock` is what the image should have been built from.

    Raises:
        ComfypodError: something stands in the way; no container is left.
    """
    settings = resolve(built, os.environ, options.arguments)
    layout = Layout(settings.workspace)
    chosen = find_image(options.engine, options.image, options.profile, offline=options.offline, console=console)
    ensure_platform(chosen.image)
    gpu = gpu_options(chosen, allow_cpu=settings.allow_cpu, console=console)
    if lock is not None:
        ensure_built_from(lock, chosen, console)
    _ensure_alone(chosen.engine, layout, console)
    ensure_unused(layout, as_owner=False)
    ensure_ports(settings, jupyter=settings.jupyter and chosen.has_jupyter)
    start = Start(
        chosen.engine, chosen.reference, layout, run_options(layout, settings), gpu,
        boot_command(settings, options.arguments, json_end=options.detach),
        environment(settings, os.environ, podman=not chosen.engine.is_docker),
    )  # fmt: skip
    if not options.detach:
        _become(start)
    pod = _Pod(start, _started(start), stop_limit(settings.stop_seconds, settings.drain_seconds))
    console.line(f"{start.engine.name} runs {start.image} as {start.name}")
    return until_ready(pod, layout, settings, options.wait, console)


def _ensure_alone(engine: Engine, layout: Layout, console: Console) -> None:
    """Refuse a workspace whose container lives; remove one that has ended and was kept for what it printed."""
    found = engine.container(name_of(layout))
    if found is not None and found.labels.get(WORKSPACE_LABEL) != place_of(layout):
        raise HostError(
            f"there is a container {found.name} that comfypod did not make", f"rename it (`{engine.name} rename`)"
        )
    if found is not None and found.state in _COMING_OR_GOING:
        console.line(f"the container {found.name} is {found.state}; waiting for it")
        found = _settled(engine, found)
    if found is None:
        return
    if found.state in _RUNNING:
        raise _in_use(layout, found.name)
    _remove(engine, found.id)


def _settled(engine: Engine, container: Container) -> Container | None:
    """Wait for what another `up` is about to start; one that was killed before it could leaves it as it is."""
    deadline, found = time.monotonic() + _STARTING_SECONDS, engine.container(container.id)
    while found is not None and found.state in _COMING_OR_GOING and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        found = engine.container(container.id)
    return found


def _in_use(layout: Layout, name: str) -> BusyError:
    return BusyError(
        f"the workspace {layout.root} is in use by the container {name}",
        "`comfypod status` shows it, `comfypod down` stops it; or choose another --workspace",
    )


def _become(start: Start) -> None:
    """Turn into the engine's client, which passes signals on and ends with the pod's exit code."""
    if start.gpu:
        _try_gpu(start)
    given = ("--rm", *start.options, *start.gpu)
    argv = start.engine.run_command(start.image, given, start.command, tuple(start.environment))
    proc.replace(argv, {**os.environ, **start.engine.environment, **start.environment})


def _try_gpu(start: Start) -> None:
    """Hand the GPU to a container that does nothing: once we are the client, nobody explains a refusal."""
    try:
        start.engine.run(
            start.image,
            ("--rm", "--pull", "never", "--network", "none", "--entrypoint", "/bin/true", *start.gpu),
        )
    except HostError as error:
        raise _refused(start, error) from error


def _started(start: Start) -> str:
    """Start the container in the background; return its id."""
    try:
        return start.engine.run(start.image, (*start.options, *start.gpu), start.command, start.environment)
    except HostError as error:
        # A name is taken before whoever takes it can be looked at.
        taken = start.name in error.message and "already in use" in error.message
        if taken or start.engine.container(start.name) is not None:
            raise _in_use(start.layout, start.name) from error
        raise _refused(start, error) from error


def _refused(start: Start, error: HostError) -> HostError:
    if not start.gpu:
        return error
    hint = _NO_TOOLKIT["docker" if start.engine.is_docker else "podman"]
    return HostError(error.message, f"if the GPU is what it refuses: {hint}")


@dataclass(slots=True)
class _Pod:
    """A container as `until_ready` sees it."""

    start: Start
    container: str
    limit: float
    looked: float = field(default_factory=time.monotonic)

    def owns(self, status: Mapping[str, Any]) -> bool:
        """Compare with the record that boot writes; where that is closed to us, with the workspace inside."""
        path = self.start.layout.run_record
        try:
            if os.access(path, os.F_OK) and not os.access(path, os.R_OK):
                return bool(status["settings"]["workspace"]["value"] == WORKSPACE)
            record, boot = run.read(path), status["boot"]
            named = (boot["pid"], boot.get("namespace", ""))
        except (KeyError, TypeError, AttributeError):
            return False
        return record is not None and (record.boot.pid, record.boot.namespace) == named

    def ended(self) -> ComfypodError | None:
        """Ask the engine, now and then: that starts a program each time."""
        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return None
        engine, found = self.start.engine, self.start.engine.container(self.container)
        self.looked = time.monotonic()
        if found is not None and found.state in _LIVING:
            return None
        said = engine.logs(self.container).splitlines()
        _remove(engine, self.container)
        return _death(found, said, self.start)

    def stop(self) -> None:
        """Stop and remove it; a second interrupt removes it at once."""
        try:
            self.start.engine.stop(self.container, self.limit)
        finally:
            self.start.engine.remove(self.container)


def _death(found: Container | None, said: Sequence[str], start: Start) -> ComfypodError:
    if found is None:
        return HostError(f"the container {start.name} was removed while it started", "run `comfypod up` again")
    if found.out_of_memory:
        return HostError(f"the container {start.name} ran out of memory and was killed", "give it more memory")
    error = boot_error(found.exit_code, said, "run `comfypod up` without --detach to see all of it", start.layout)
    return type(error)(_outside(error.message, start.layout), _outside(error.hint, start.layout))


def _outside(text: str, layout: Layout) -> str:
    """Say where the workspace is on the host; boot knows it by its name inside."""
    return re.sub(rf"(?<![\w./-]){WORKSPACE}(?![\w.-])", lambda _: str(layout.root), text)


def down(layout: Layout, console: Console) -> Result | None:
    """Stop and remove the container of a workspace; None when no engine has one."""
    started = time.monotonic()
    found = [(engine, each) for engine in present() if (each := _container(engine, layout)) is not None]
    if not found:
        return None
    forced = [_ended(engine, container) for engine, container in found]
    if not any(container.running for _, container in found):
        name = name_of(layout)
        return Result("down", {"removed": name}, f"removed the container {name}, which had ended")
    if any(forced):
        console.warning("the pod did not stop by itself and was killed")
    seconds = time.monotonic() - started
    return Result("down", {"seconds": round(seconds, 2), "forced": any(forced)}, f"stopped in {seconds:.1f} s")


def _container(engine: Engine, layout: Layout) -> Container | None:
    """Return the container of a workspace; by its name, since a label's value is not safe in every engine's filter."""
    found = engine.container(name_of(layout))
    return found if found is not None and found.labels.get(WORKSPACE_LABEL) == place_of(layout) else None


def _ended(engine: Engine, container: Container) -> bool:
    """Stop and remove a container; True when it had to be killed."""
    limit = container.labels.get(STOP_LABEL, "")
    engine.stop(container.id, float(limit) if limit.isdecimal() else stop_limit(4, 5))
    after = engine.container(container.id)
    _remove(engine, container.id)
    return container.running and after is not None and after.exit_code == _KILLED


def _remove(engine: Engine, container: str) -> None:
    """Remove a container that has ended; its engine may be doing the same, when it ran in the foreground."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            engine.remove(container)
        except HostError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)
            if engine.container(container) is None:
                return
        else:
            return
