"""The only door to container engines: docker, podman and buildah by their command lines; `detect.py` finds one."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from comfypod import proc
from comfypod.errors import HostError
from comfypod.image import facts
from comfypod.image.request import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfypod.image.facts import Container, Image
    from comfypod.image.request import Build

EngineName = Literal["docker", "podman", "buildah"]
Wanted = Literal["auto", "docker", "podman", "buildah"]

_ASK_SECONDS = 60.0
_START_SECONDS = 300.0
_PUSH_SECONDS = 4 * 3600.0
_BUILD_SECONDS = 4 * 3600.0
_ADVICE = ("See '", "Run '")
_NO_LIMIT = 1 << 20
_UNKNOWN = ("no such image", "no such container", "no such object", "image not known", "no container with")


class Watch(Protocol):
    """Follows long work of an engine."""

    def line(self, text: str) -> None:
        """Take a line that the engine printed."""

    def tick(self) -> None:
        """Take notice that the work goes on; called twice a second."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that works.

    `program` handles images and containers; `builder` is the command line that builds, empty where it was not asked
    for. `environment` is added to the caller's.
    """

    name: EngineName
    program: str
    version: str
    builder: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_docker(self) -> bool:
        """Whether a daemon does the work."""
        return self.name == "docker"

    def build_command(self, build: Build) -> list[str]:
        """Return the command line of a build."""
        return [*self.builder, *options(build, docker=self.is_docker, buildx="buildx" in self.builder)]

    def build(
        self, build: Build, log: Path, watch: Watch | None = None, *, seconds: float = _BUILD_SECONDS
    ) -> proc.Completed:
        """Build an image; what the engine prints is added to `log`, and `watch` is told each line of it.

        Ends after `seconds` at the latest, and with this process. Whether it went well is in the return value.

        Raises:
            HostError: the engine cannot be started.
        """
        return self._stream(self.build_command(build), log, watch, seconds)

    def pull(self, reference: str, log: Path, watch: Watch | None = None) -> proc.Completed:
        """Fetch an image from its registry, as `build` does."""
        return self._stream([self.program, "pull", reference], log, watch, _PUSH_SECONDS)

    def push(self, reference: str, log: Path, watch: Watch | None = None) -> proc.Completed:
        """Send an image to its registry, as `build` does; podman compresses with zstd, docker's own push cannot."""
        options = () if self.is_docker else ("--compression-format", "zstd")
        return self._stream([self.program, "push", *options, reference], log, watch, _PUSH_SECONDS)

    def published(self, reference: str) -> bool:
        """Whether a registry has an image of this name already; one that does not answer has none."""
        done = proc.run([self.program, "manifest", "inspect", reference], seconds=_ASK_SECONDS, env=self._environ())
        return done.ok

    def _stream(self, argv: Sequence[str], log: Path, watch: Watch | None, seconds: float) -> proc.Completed:
        reader = _Lines(log, watch)
        done = proc.run(argv, seconds=seconds, env=self._environ(), output=log, tick=reader.read, tied=True)
        reader.read(last=True)
        return done

    def image(self, reference: str) -> Image | None:
        """Return what is known about an image that is here, None when it is not.

        Raises:
            HostError: the engine does not answer.
        """
        found = self._inspect("image", reference)
        if found is None:
            return None
        options = ("--no-trunc", "--human=false")
        if not self.is_docker:
            return facts.image(found, json.loads(self.ask("history", *options, "--format", "json", reference)))
        said = self.ask("history", *options, "--format", "{{json .}}", reference)
        return facts.image(found, [json.loads(line) for line in said.splitlines()])

    def container(self, reference: str) -> Container | None:
        """Return the state of a container, None when there is none of this name or id.

        Raises:
            HostError: the engine does not answer.
        """
        found = self._inspect("container", reference)
        return None if found is None else facts.container(found)

    def containers(self, label: str) -> list[str]:
        """Return the ids of all containers with a label ("name" or "name=value"), running or not."""
        return self.ask("ps", "--all", "--no-trunc", "--quiet", "--filter", f"label={label}").split()

    def tag(self, reference: str, name: str) -> None:
        """Give an image one more name."""
        self.ask("tag", reference, name)

    def remove_image(self, reference: str) -> bool:
        """Remove a name, and the image when it was the last one; False when there was none."""
        return self._gone("image", "rm", reference)

    def run(
        self,
        image: str,
        options: Sequence[str] = (),
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        seconds: float = _START_SECONDS,
    ) -> str:
        """Start a container in the background; return its id.

        Values of `environment` do not appear on any command line.

        Raises:
            HostError: it cannot be started; what there is of it is removed.
        """
        given = dict(environment or {})
        with tempfile.TemporaryDirectory(prefix="comfypod-run-") as folder, ExitStack() as undo:
            made = Path(folder, "id")
            undo.callback(self._undo, made)
            argv = self.run_command(image, ("--detach", "--cidfile", str(made), *options), command, given)
            done = proc.run(argv, seconds=seconds, env=self._environ(given))
            if not done.ok:
                raise HostError(f"{self.name} cannot start {image}: {_why(done, seconds)}", _HINTS[self.name])
            undo.pop_all()
            return made.read_text("ascii").strip()

    def _undo(self, made: Path) -> None:
        """Remove what there is of a container that could not be started."""
        if made.is_file() and (container := made.read_text("ascii").strip()):
            self.remove(container)

    def run_command(
        self,
        image: str,
        options: Sequence[str],
        command: Sequence[str] = (),
        environment: Sequence[str] | Mapping[str, str] = (),
    ) -> list[str]:
        """Return the command line that `run` uses; `environment` are names whose values it takes from its own."""
        names = [part for name in environment for part in ("--env", name)]
        return [self.program, "run", *self._limits(), *names, *options, image, *command]

    def _limits(self) -> list[str]:
        return [] if self.is_docker else [part for limit in limits() for part in ("--ulimit", limit)]

    def exec(
        self,
        container: str,
        argv: Sequence[str],
        *,
        seconds: float = _ASK_SECONDS,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> proc.Completed:
        """Run a program in a running container; what it returned and printed is the caller's to judge."""
        given = dict(environment or {})
        names = [part for name in given for part in ("--env", name)]
        who = [] if user is None else ["--user", user]
        command = [self.program, "exec", *names, *who, container, *argv]
        return proc.run(command, seconds=seconds, env=self._environ(given))

    def logs(self, container: str, lines: int | None = None) -> str:
        """Return what a container printed, both streams, or the last `lines` of it; nothing when it is gone."""
        number = "all" if lines is None else str(lines)
        tail = [] if lines is None and not self.is_docker else ["--tail", number]
        done = proc.run([self.program, "logs", *tail, container], seconds=_ASK_SECONDS, env=self._environ())
        return done.stdout + done.stderr if done.ok else ""

    def stop(self, container: str, seconds: float = 10.0) -> bool:
        """Stop a container in order, kill it after `seconds`; False when there was none."""
        return self._gone("stop", "--time", str(round(seconds)), container, seconds=seconds + _ASK_SECONDS)

    def remove(self, container: str) -> bool:
        """Remove a container with its anonymous volumes, running or not; False when there was none."""
        return self._gone("rm", "--force", "--volumes", container)

    def ask(self, *arguments: str) -> str:
        """Return what the engine prints to a short question.

        Raises:
            HostError: it fails, or does not answer within a minute.
        """
        return self._answer([self.program, *arguments])

    def ask_builder(self, *arguments: str) -> str:
        """Return what the program that builds prints to a short question, as `ask` does."""
        return self._answer([self.builder[0], *arguments])

    def _answer(self, argv: Sequence[str]) -> str:
        done = proc.run(argv, seconds=_ASK_SECONDS, env=self._environ())
        if not done.ok:
            raise self._failed(argv[1:], done, _ASK_SECONDS)
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        """Return a command line for `proc.replace`, such as `command("logs", "--follow", container)`."""
        return [self.program, *arguments]

    def _inspect(self, kind: str, reference: str) -> dict[str, Any] | None:
        done = self._call(kind, "inspect", reference)
        if not done.ok:
            if _is_unknown(done):
                return None
            raise self._failed((kind, "inspect"), done, _ASK_SECONDS)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found[0] if found else None

    def _gone(self, *arguments: str, seconds: float = _ASK_SECONDS) -> bool:
        done = self._call(*arguments, seconds=seconds)
        if not done.ok and not _is_unknown(done):
            raise self._failed(arguments, done, seconds)
        return done.ok and bool(done.stdout.strip())

    def _call(self, *arguments: str, seconds: float = _ASK_SECONDS) -> proc.Completed:
        return proc.run([self.program, *arguments], seconds=seconds, env=self._environ())

    def _failed(self, arguments: Sequence[str], done: proc.Completed, seconds: float) -> HostError:
        verb = " ".join(arguments[:2])
        return HostError(f"{self.name} failed at `{verb}`: {_why(done, seconds)}", _HINTS[self.name])

    def _environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C.UTF-8", **self.environment, **(more or {})}


_HINTS = {
    "docker": "`docker info` shows whether its daemon is well",
    "podman": "`podman info` shows whether it is well",
    "buildah": "`buildah info` and `podman info` show whether they are well",
}


class _Lines:
    """Hands on the lines that are added to a file."""

    def __init__(self, path: Path, watch: Watch | None) -> None:
        self._path = path
        self._watch = watch
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self, *, last: bool = False) -> None:
        """Hand on what is new; the `last` time also a line without its end."""
        if self._watch is None:
            return
        with suppress(FileNotFoundError), self._path.open("rb") as handle:
            handle.seek(self._at)
            new = handle.read()
            self._at += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in [*lines, self._rest] if last and self._rest else lines:
                self._watch.line(line.decode("utf-8", "replace").rstrip("\r"))
        self._watch.tick()


def limits() -> list[str]:
    """Return our own limits, to hand on: podman asks for more, which a root without CAP_SYS_RESOURCE is not given."""
    # podman lowers its own limit to the number of processes that the kernel can name.
    processes = int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))
    most = {"nofile": _hard(resource.RLIMIT_NOFILE), "nproc": min(_hard(resource.RLIMIT_NPROC), processes)}
    return [f"{name}={limit}:{limit}" for name, limit in most.items()]


def _hard(number: int) -> int:
    hard = resource.getrlimit(number)[1]
    return _NO_LIMIT if hard == resource.RLIM_INFINITY else hard


def _is_unknown(done: proc.Completed) -> bool:
    said = done.stderr.lower()
    return not done.timed_out and any(phrase in said for phrase in _UNKNOWN)


def _why(done: proc.Completed, seconds: float) -> str:
    if done.timed_out:
        return f"no answer within {seconds:.0f} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith(_ADVICE)]
    return lines[-1] if lines else f"it ended with {done.returncode} and said nothing"
