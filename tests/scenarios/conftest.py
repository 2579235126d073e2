"""The real ComfyUI, installed once per session into an empty data directory by `comfypod up` itself."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.workspace.layout import Layout
from tests.kit.comfyui import Client
from tests.kit.pods import comfypod, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Machine:
    """A data directory with the real store, shared by the session's workspaces."""

    folder: Path

    def site(self, name: str) -> RealSite:
        return RealSite(self, Layout(self.folder / name))


@dataclass
class RealSite:
    """One workspace and its ports on the machine."""

    machine: Machine
    layout: Layout
    ports: tuple[int, int, int] = field(default_factory=lambda: (free_port(), free_port(), free_port()))

    @property
    def environ(self) -> dict[str, str]:
        return {"COMFYPOD_DATA": str(self.machine.folder / "data")}

    def up_arguments(self, *more: str) -> list[str]:
        port, jupyter, control = map(str, self.ports)
        return [
            "up", "--engine", "host", "--profile", "cpu", "--detach", "--wait", "900", "--json", "--workspace",
            str(self.layout.root), "--port", port, "--jupyter-port", jupyter, "--control-port", control, *more,
        ]  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return comfypod(*arguments, env=self.environ, seconds=960)

    def up(self, *more: str) -> dict[str, Any]:
        """Bring the pod up and return the envelope; a failure fails the test with what was said."""
        done = self.run(*self.up_arguments(*more))
        assert done.returncode == 0, done.stdout + done.stderr
        envelope: dict[str, Any] = json.loads(done.stdout)
        return envelope

    def wait_for_jupyter(self) -> list[int]:
        """Wait until JupyterLab answers too; return the pids of both services."""
        deadline = time.monotonic() + 60
        while True:
            rows = {row["name"]: row for row in self.status()["services"]}
            if rows.get("jupyter", {}).get("state") == "ready":
                return [rows["comfyui"]["pid"], rows["jupyter"]["pid"]]
            assert time.monotonic() < deadline, rows
            time.sleep(0.2)

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.run("down", "--workspace", str(self.layout.root))

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json", "--workspace", str(self.layout.root))
        body: dict[str, Any] = json.loads(done.stdout)["data"]
        return body

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.ports[0]}")


@dataclass(frozen=True)
class FirstUp:
    """The pod that `up` brought from nothing, and what it said meanwhile."""

    site: RealSite
    envelope: dict[str, Any]
    said: str


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="session")
def first_up(machine: Machine) -> Iterator[FirstUp]:
    """Run `comfypod up` on an empty data directory; the pod stays up for the session."""
    site = machine.site("first")
    assert not (machine.folder / "data").exists()
    done = site.run(*site.up_arguments())
    assert done.returncode == 0, done.stdout + done.stderr
    yield FirstUp(site, json.loads(done.stdout), done.stderr)
    site.down()


@pytest.fixture
def site(first_up: FirstUp, request: pytest.FixtureRequest) -> Iterator[RealSite]:
    """Give one more workspace on the prepared machine; its pod is stopped afterwards."""
    fresh = first_up.site.machine.site(request.node.name.replace("/", "-"))
    yield fresh
    fresh.down()
