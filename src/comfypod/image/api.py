"""Docker's API, for programs that speak it and no command line; podman serves it when it is asked to."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.errors import HostError
from comfypod.image.engine import limits

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from comfypod.image.engine import Engine

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


@contextmanager
def docker_api(engine: Engine) -> Iterator[dict[str, str]]:
    """Yield the variables that lead a program to the engine's API, for as long as the block runs.

    Raises:
        HostError: podman does not serve it.
    """
    if engine.is_docker:
        yield {}
        return
    with TemporaryDirectory(prefix="comfypod-api-") as folder:
        socket, config = Path(folder, "api.sock"), Path(folder, "containers.conf")
        config.write_text(f"[containers]\ndefault_ulimits = {json.dumps(limits())}\n", "utf-8")
        environ = {**os.environ, "CONTAINERS_CONF": str(config)}
        argv = engine.command("system", "service", "--time", "0", f"unix://{socket}")
        child = proc.detach(argv, Path(folder, "output"), environ)
        try:
            _wait(child, socket)
            yield {"DOCKER_HOST": f"unix://{socket}"}
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()


def _wait(child: subprocess.Popen[bytes], socket: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not socket.exists():
        if child.poll() is not None or time.monotonic() > deadline:
            raise HostError("podman does not serve docker's API", "`podman system service` shows why")
        time.sleep(0.05)
