"""Real `comfypod boot` processes for tests: start, look, signal, wait."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import control
from comfypod.podfile import BakedNode
from comfypod.workspace.layout import Layout
from tests.kit import standin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]


# As `comfypod`, but with a link of the test's in the place of the image's /ComfyUI.
_IMAGE = """
import sys, time
from functools import partial
from pathlib import Path
if len(sys.argv[2].split(":")) == 3:
    from tests.kit.killer import Steps
    step, fault, notes = sys.argv.pop(2).split(":")
    Steps(int(step), fault, Path(notes)).install()
from comfypod import cli
from comfypod.boot import main
from comfypod.boot.context import Surroundings
main.boot = partial(main.boot, surroundings=Surroundings(Path(sys.argv[1])))
raise SystemExit(cli.run(sys.argv[2:], time.monotonic()))
"""


def _ports() -> Iterator[int]:
    """Yield ports without an end: below those that boot and the kernel choose from, and apart for each worker."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = 8_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    yield from itertools.cycle(
        random.SystemRandom().sample(range(10_000 + size * worker, 10_000 + size * (worker + 1)), size)
    )


_PORTS = _ports()


def free_port() -> int:
    """Return a port that was free a moment ago, and that nobody else is given for long."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def comfypod(
    *arguments: str, env: dict[str, str] | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run one `comfypod` command to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "comfypod", *arguments],
        capture_output=True, text=True, timeout=seconds, env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip


@dataclass
class Site:
    """A place for one pod: workspace, stand-in, ports."""

    folder: Path
    behaviour: standin.Orders = field(default_factory=standin.Orders)
    port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tree = self.folder / "pristine"
        if not self.tree.exists():
            standin.tree(self.tree)
        self.orders = standin.orders(self.folder, self.behaviour)
        self.pod_file = standin.pod_file(self.folder, self.tree, facts=self.facts, **self.settings)
        self.layout = Layout(self.folder / "workspace")

    @property
    def control(self) -> str:
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "STANDIN_ORDERS": str(self.orders)}

    def obey(self, behaviour: standin.Orders) -> None:
        """Give the stand-in new orders for its next start."""
        standin.orders(self.folder, behaviour)

    def arguments(self, *more: str) -> list[str]:
        return [
            "boot", "--pod", str(self.pod_file), "--workspace", str(self.layout.root),
            "--port", str(self.port), "--control-port", str(self.control_port), *more,
        ]  # fmt: skip

    def starts(self) -> list[dict[str, Any]]:
        """Return what each start of the stand-in saw: pid, arguments, environment."""
        path = self.folder / "starts"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def image_site(folder: Path, python: str, behaviour: standin.Orders | None = None, **facts: Any) -> Site:
    """Make a place for a pod as an image has it, with one node and one model baked in; all below `folder`."""
    (folder / "opt").mkdir(exist_ok=True)
    node = folder / "opt" / "nodes" / "pack" / "pack"
    node.mkdir(parents=True, exist_ok=True)
    (node / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    model = folder / "opt" / "models" / "vae" / "baked.bin"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(bytes(10))
    venv = folder / "opt" / "venv"
    if not venv.exists():
        subprocess.run([python, "-m", "venv", "--without-pip", "--symlinks", str(venv)], check=True)
    body = {
        "engine": "image", "python": str(venv / "bin" / "python"), "nodes": (BakedNode("pack", str(node), "1.0"),),
        "models_path": str(folder / "opt" / "models"), **facts,
    }  # fmt: skip
    site = Site(folder, behaviour or standin.Orders(), facts=body)
    link = site.tree / "custom_nodes" / "pack"
    if not link.is_symlink():
        link.symlink_to(node)
    (folder / "root").mkdir(exist_ok=True)
    if not (folder / "root" / "ComfyUI").is_symlink():
        (folder / "root" / "ComfyUI").symlink_to(site.tree)
    return site


def image_command(site: Site, *, fault: str = "") -> tuple[str, ...]:
    """Return what starts boot in a place of `image_site`, after Python; `fault` is the killer's `step:fault:notes`."""
    return ("-c", _IMAGE, str(site.folder / "root" / "ComfyUI"), *([fault] if fault else []))


@dataclass
class Running:
    """A boot that runs."""

    site: Site
    process: subprocess.Popen[str]

    def status(self) -> dict[str, Any] | None:
        return control.status(self.site.control)

    def probe(self, path: str) -> tuple[int, str]:
        answer = control.ask(self.site.control, path)
        return (0, "") if answer is None else (answer[0], answer[1].decode().strip())

    def wait_for(self, phase: str, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until `/status` shows a phase."""
        deadline, seen = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            seen = self.status()
            if seen is not None and seen["phase"] == phase:
                return seen
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"never {phase}: {seen}; {self.process.poll()} {self.output_so_far()}")

    def output_so_far(self) -> str:
        return (self.site.folder / "boot.out").read_text()

    def stop(self, signum: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> int:
        self.process.send_signal(signum)
        return self.process.wait(seconds)


@contextmanager
def booted(
    site: Site, *more: str, command: Sequence[str] = ("-m", "comfypod"), environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (), **popen: Any,
) -> Iterator[Running]:  # fmt: skip
    """Run boot; whatever the test leaves of it is killed at the end. `prefix` is a program
    that becomes it, `popen` goes to Popen."""
    with (site.folder / "boot.out").open("w") as output:
        process = subprocess.Popen(
            [*prefix, site.facts.get("python", sys.executable), *command, *site.arguments(*more)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True,
            env={**site.environ, **(environ or {})}, cwd=ROOT, **popen,
        )  # fmt: skip
        running = Running(site, process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
