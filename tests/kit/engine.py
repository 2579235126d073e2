"""A real container engine for tests: found once, or a reason why there is none; images read file by file."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import secrets
import subprocess
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from comfypod.errors import HostError
from comfypod.image.detect import find
from comfypod.manifest.profiles import load_profiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.image.engine import Engine
    from comfypod.image.facts import Image

BASE = load_profiles()["cpu"].base
# Names of images that a session makes and removes begin so.
LAB = "comfypod-lab"
SETUP = "`bash tests/kit/engine.sh` installs and starts what is missing"


@functools.cache
def found() -> Engine | str:
    """Return docker with the base image, or why it cannot be used."""
    try:
        engine = find("docker")
        if engine.image(BASE) is None:
            return f"docker has no image {BASE}; {SETUP}"
    except HostError as error:
        return f"{error.message}; {SETUP}"
    return engine


@dataclass(frozen=True)
class Entry:
    """What an image has at a path: all that makes two files equal but their times."""

    kind: str
    mode: int
    owner: tuple[int, int]
    contents: str


@dataclass(frozen=True)
class Docker:
    """The docker command line of an engine."""

    engine: Engine

    def call(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run docker to its end."""
        return subprocess.run(
            [self.engine.program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=seconds, check=False, env={**os.environ, **self.engine.environment},
        )  # fmt: skip

    def ask(self, *arguments: str, seconds: float = 300) -> str:
        """Run docker and return what it printed; it must go well."""
        done = self.call(*arguments, seconds=seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def names(self) -> set[str]:
        """Return the names of all images."""
        return set(self.ask("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split())

    def image(self, name: str) -> Image:
        """Return what the engine knows of an image that is here."""
        found = self.engine.image(name)
        assert found is not None, name
        return found

    def layers(self, image: str) -> list[str]:
        """Return the digests of an image's layers, uncompressed."""
        return [layer.digest for layer in self.image(image).layers]

    def unlike_any(self, name: str, base: str = BASE) -> str:
        """Make a base image with a file that no image has, so that nothing built on it comes from a cache."""
        text = f"FROM {base}\nRUN echo {secrets.token_hex(8)} > /etc/unlike-any\n"
        subprocess.run(
            [self.engine.program, "build", "--quiet", "--tag", name, "-"], input=text.encode(), check=True,
            capture_output=True, env={**os.environ, **self.engine.environment},
        )  # fmt: skip
        return name

    @contextmanager
    def exported(self, image: str) -> Iterator[tarfile.TarFile]:
        """Read an image's whole file system."""
        container = self.ask("create", image, "true")
        try:
            with self._piped("export", container) as stream, tarfile.open(fileobj=stream, mode="r|") as bundle:
                yield bundle
        finally:
            self.ask("rm", container)

    @contextmanager
    def _piped(self, *arguments: str) -> Iterator[IO[bytes]]:
        with subprocess.Popen([self.engine.program, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            process.stdout.read()

    def files(self, image: str) -> dict[str, Entry]:
        """Return everything in an image by path."""
        with self.exported(image) as bundle:
            return {member.name: _entry(bundle, member) for member in bundle}

    def everything(self, image: str) -> Iterator[tuple[str, bytes]]:
        """Yield all that an image consists of: configuration, history and every file of every layer, deleted or not."""
        with self._piped("save", image) as stream, tarfile.open(fileobj=stream, mode="r|") as whole:
            for member in whole:
                data = _read(whole, member)
                if not tarfile.is_tarfile(io.BytesIO(data)):
                    yield member.name, data
                    continue
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    yield from ((f"{member.name}/{each.name}", _read(layer, each)) for each in layer)


def _read(bundle: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = bundle.extractfile(member) if member.isfile() else None
    return handle.read() if handle else b""


def _entry(bundle: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    contents = member.linkname or hashlib.sha256(_read(bundle, member)).hexdigest()
    return Entry(member.type.decode("ascii"), member.mode, (member.uid, member.gid), contents)
