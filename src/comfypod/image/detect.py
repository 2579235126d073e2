"""Finding a container engine that works: by trying each program on the PATH, and saying what each one lacks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.errors import HostError
from comfypod.image.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfypod.image.engine import Wanted

_SECONDS = 20.0
# Clients from 23 on build with BuildKit through buildx alone; older ones have it built in.
_FIRST_WITHOUT_BUILDKIT = 23
_BUILDKIT_API = (1, 39)
_PROGRESS = {"BUILDKIT_PROGRESS": "plain", "DOCKER_CLI_HINTS": "false"}


@dataclass(frozen=True, slots=True)
class Lack:
    """Why an engine cannot be used, and what would help."""

    message: str
    hint: str


def find(name: Wanted = "auto", *, building: bool = True) -> Engine:
    """Return an engine that works; `auto` takes docker with buildx, docker with BuildKit, podman or buildah.

    With `building` false it only has to run containers.

    Raises:
        HostError: none works; the message says what each one lacks, the hint what to install or to start.
    """
    lacks: list[Lack] = []
    for each in _FINDERS if name == "auto" else (name,):
        found = _FINDERS[each](building)
        if isinstance(found, Engine):
            return found
        lacks.append(found)
    if name != "auto":
        raise HostError(lacks[0].message, lacks[0].hint)
    present = [lack for lack in lacks if not lack.message.endswith("is not on the PATH")]
    if not present:
        raise HostError(
            "there is no container engine: neither docker nor podman nor buildah is on the PATH",
            "install one, for instance with `apt install docker.io`",
        )
    raise HostError("no container engine works: " + "; ".join(each.message for each in present), present[0].hint)


def _docker(building: bool) -> Engine | Lack:
    found: list[Engine | Lack] = []
    for program in programs("docker"):
        engine = _docker_at(program, building)
        if isinstance(engine, Engine) and (not building or "buildx" in engine.builder):
            return engine
        found.append(engine)
    engines = [each for each in found if isinstance(each, Engine)]
    lacks = [each for each in found if isinstance(each, Lack)]
    missing = Lack("docker is not on the PATH", "install it, for instance with `apt install docker.io`")
    return (engines or lacks or [missing])[0]


def _docker_at(program: str, building: bool) -> Engine | Lack:
    done = _ask(program, "version", "--format", "{{json .}}")
    body = _object(done.stdout)
    client, server = body.get("Client") or {}, body.get("Server")
    if not server:
        return _no_server(program, done)
    version = f"{client.get('Version', '?')} (server {server.get('Version', '?')})"
    if not building:
        return Engine("docker", program, version, (), _PROGRESS)
    if _ask(program, "buildx", "version").ok and _ask(program, "buildx", "inspect").ok:
        return Engine("docker", program, version, (program, "buildx", "build"), _PROGRESS)
    old = _numbers(client.get("Version", ""))[:1] < (_FIRST_WITHOUT_BUILDKIT,)
    if old and _numbers(server.get("ApiVersion", "")) >= _BUILDKIT_API:
        return Engine("docker", program, version, (program, "build"), {**_PROGRESS, "DOCKER_BUILDKIT": "1"})
    return Lack(
        f"{program} {client.get('Version', '')} cannot build with BuildKit: it has no working buildx",
        "install the buildx plugin (`docker-buildx-plugin`, `docker-buildx`), or use podman",
    )


def _no_server(program: str, done: proc.Completed) -> Lack:
    said = done.stderr.strip().splitlines()
    text = " ".join(said).lower()
    if done.timed_out:
        return Lack(f"docker's daemon did not answer {program} within {_SECONDS:.0f} s", "restart the daemon")
    if "permission denied" in text:
        return Lack(
            f"this user may not use docker's socket ({program})",
            "add the user to the group: `sudo usermod -aG docker $USER`, and log in again",
        )
    if done.ok:
        return Lack(f"{program} is not docker: it names no server", "use --engine podman, or install docker")
    reason = said[-1] if said else f"it ended with {done.returncode}"
    return Lack(
        f"docker's daemon is not running or not reachable: {reason}",
        "start it: `sudo systemctl start docker`, or `dockerd` where there is no systemd",
    )


def _podman(building: bool) -> Engine | Lack:
    return _with_podman("podman", ("build",) if building else ())


def _buildah(building: bool) -> Engine | Lack:
    """Use buildah to build, and podman, which shares its images, for the rest."""
    builder = next(iter(programs("buildah")), None)
    if builder is None:
        return Lack("buildah is not on the PATH", "install it, for instance with `apt install buildah podman`")
    engine = _with_podman("buildah", (builder,) if building else ())
    if isinstance(engine, Engine):
        return engine
    return Lack(f"buildah builds images, and {engine.message}, which runs them", engine.hint)


def _with_podman(name: Any, build: tuple[str, ...]) -> Engine | Lack:
    program = next(iter(programs("podman")), None)
    if program is None:
        return Lack("podman is not on the PATH", "install it, for instance with `apt install podman`")
    done = _ask(program, "info", "--format", "json")
    if not done.ok:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else "it does not answer"
        return Lack(f"podman does not work: {reason}", "`podman info` shows more")
    version = str(_object(done.stdout).get("version", {}).get("Version", "?"))
    builder = (program, "build") if build == ("build",) else (*build, "build") if build else ()
    return Engine(name, program, version, builder, _isolation() if builder else {})


def _isolation() -> dict[str, str]:
    """Choose how build steps are kept apart: as the caller says, else chroot where the runtime cannot start one."""
    if "BUILDAH_ISOLATION" in os.environ:
        return {}
    buildah = next(iter(programs("buildah")), None)
    if buildah is None:
        return {}
    made = _ask(buildah, "from", "scratch")
    if not made.ok:
        return {}
    container = made.stdout.strip()
    done = _ask(buildah, "run", container, "--", "/comfypod-probe")
    _ask(buildah, "rm", container)
    reached = "/comfypod-probe: no such file" in done.stderr or "executable file not found" in done.stderr
    return {} if reached else {"BUILDAH_ISOLATION": "chroot"}


def programs(name: str) -> list[str]:
    """Return every program of a name on the PATH, in its order, each once."""
    found: dict[Path, str] = {}
    for folder in os.get_exec_path():
        path = Path(folder, name)
        # A folder on the PATH may be closed to this user.
        if os.access(path, os.X_OK) and path.is_file():
            found.setdefault(path.resolve(), str(path))
    return list(found.values())


def _ask(*argv: str) -> proc.Completed:
    return proc.run(argv, seconds=_SECONDS, env={**os.environ, "LC_ALL": "C.UTF-8"})


def _object(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _numbers(version: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: "20.10.24+dfsg1" is (20, 10, 24)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


_FINDERS: Mapping[str, Callable[[bool], Engine | Lack]] = {"docker": _docker, "podman": _podman, "buildah": _buildah}
