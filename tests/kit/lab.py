"""Everything `comfypod up` needs, tiny and local: a stand-in ComfyUI in a folder, small wheels, a lock made of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfypod import control
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.lockable import OWN, TORCH, manifest_text
from tests.kit.pods import ROOT, comfypod, free_port
from tests.kit.wheels import build_wheel, only_these

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass
class Lab:
    """One machine in a folder: its own home, data directory, wheels and workspace."""

    folder: Path
    behaviour: standin.Orders = field(default_factory=standin.Orders)
    bulk_files: int = 0
    port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.tree = standin.tree(self.folder / "tree", release="0.30.0")
        (self.tree / "requirements.txt").write_text("torch\ntorchvision\ntorchaudio\nbulk\n")
        self.wheels = self.folder / "wheels"
        for name, version in (*TORCH, *OWN):
            build_wheel(self.wheels, name, version)
        files = {f"bulk/m{number}.py": f"x = {number}\n" for number in range(self.bulk_files)}
        build_wheel(self.wheels, "bulk", "1.0", modules={"bulk/__init__.py": "", **files})
        build_wheel(self.wheels, "jupyterlab", "4.0")
        self.orders = standin.orders(self.folder, self.behaviour)
        self.layout = Layout(self.folder / "workspace")
        self.data = self.folder / "data"
        self.lock = self.folder / "comfypod.lock"
        (self.folder / "comfypod.toml").write_text(manifest_text())
        done = self.run("lock", "--manifest", str(self.folder / "comfypod.toml"))
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def environ(self) -> dict[str, str]:
        home = {"HOME": str(self.folder), "COMFYPOD_DATA": str(self.data), "STANDIN_ORDERS": str(self.orders)}
        return {**home, **only_these(self.wheels)}

    def run(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one `comfypod` command on this machine."""
        return comfypod(*arguments, env=self.environ, seconds=seconds)

    def obey(self, behaviour: standin.Orders) -> None:
        """Give the stand-in new orders for its next start."""
        standin.orders(self.folder, behaviour)

    def up_arguments(self, *more: str) -> list[str]:
        return [
            "up", "--engine", "host", "--lock", str(self.lock), "--workspace", str(self.layout.root), "--no-jupyter",
            "--port", str(self.port), "--control-port", str(self.control_port), *more,
        ]  # fmt: skip

    def up(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod up --detach` to its end."""
        return self.run(*self.up_arguments("--detach", "--wait", "30", *more))

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.run("down", "--workspace", str(self.layout.root))

    def status(self) -> dict[str, Any] | None:
        return control.status(f"http://127.0.0.1:{self.control_port}")

    def objects(self) -> dict[str, bool]:
        """Return what the store holds, and whether each is complete."""
        return {
            f"{path.parent.name}/{path.name}": (path / ".complete").is_file()
            for path in sorted((self.data / "store").glob("*/*"))
            if path.is_dir()
        }

    def children(self) -> list[int]:
        """Return the pids of programs that still run out of this machine's folder."""
        own, found = os.getpid(), []
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal() or int(entry.name) == own:
                continue
            try:
                with open(f"/proc/{entry.name}/cmdline", "rb") as handle:
                    if str(self.folder).encode() in handle.read():
                        found.append(int(entry.name))
            except OSError:
                continue
        return found

    @contextmanager
    def started(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Run `comfypod up` in a process group of its own, as a terminal does; killed at the end if it is left."""
        with (self.folder / "up.out").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "comfypod", *self.up_arguments(*more)], stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environ}, cwd=ROOT,
                process_group=0,
            )  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def said(self) -> str:
        return (self.folder / "up.out").read_text()

    def edit_lock(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Tamper with the lock."""
        body = json.loads(self.lock.read_text())
        change(body)
        self.lock.write_text(json.dumps(body))


def until(done: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.005)
