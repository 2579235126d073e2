"""The locked ComfyUI-Manager in an environment of its own, asked what it allows.

Its code is the real one. Doubles stand for what it takes from ComfyUI alone: `folder_paths`, `comfy.cli_args`, `server`
and `nodes`, with nothing in them but what is read on the way to a decision.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.lock.load import read_lock
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.lock.schema import Package

# What its modules import; its own dependencies would bring torch.
_NEEDED = (
    "aiohttp", "gitpython", "huggingface-hub", "packaging", "pydantic", "pyyaml", "requests", "rich", "toml", "tqdm",
)  # fmt: skip
_DOUBLES = {
    "folder_paths.py": """
import os
user_directory = os.environ["DOUBLE_USER"]
def get_system_user_directory(name):
    return os.path.join(user_directory, "__" + name)
def get_folder_paths(name):
    return [os.path.join(os.path.dirname(user_directory), name)]
""",
    "comfy/__init__.py": "",
    "comfy/cli_args.py": """
from types import SimpleNamespace
args = SimpleNamespace(listen="127.0.0.1", enable_manager=True, enable_manager_legacy_ui=True)
""",
    "server.py": """
from types import SimpleNamespace
from aiohttp import web
class PromptServer:
    instance = SimpleNamespace(routes=web.RouteTableDef(), app=web.Application(), send_sync=print)
""",
    "nodes.py": "",
}
# A route that refuses does so before it reads its request; one that reads it has let the request in.
_ASK = """
import asyncio, json
from comfyui_manager.glob.utils import security_utils
from comfyui_manager.legacy import manager_server

class Read(Exception):
    pass

class Request:
    content_type = "application/json"
    async def text(self):
        raise Read
    json = text

def is_let_in(route):
    try:
        return asyncio.run(route(Request())).status != 403
    except Read:
        return True

def both(level):
    new, old = (each.is_allowed_security_level(level) for each in (security_utils, manager_server))
    assert new == old, level
    return new

print(json.dumps({
    "registry": both("middle+"),
    "git": is_let_in(manager_server.install_custom_node_git_url),
    "pip": is_let_in(manager_server.install_custom_node_pip),
    "remove": both("middle"),
    "fix": both("high+"),
}))
"""


class NotToBeHadError(Exception):
    """The package index does not answer."""


@dataclass(frozen=True)
class Manager:
    """An environment with the locked version."""

    folder: Path
    version: str

    def decisions(self, user: Path) -> dict[str, bool]:
        """Return what it allows with the configuration below a user folder, to one who comes over loopback."""
        python = self.folder / "venv" / "bin" / "python"
        doubles = self.folder / "doubles"
        environ = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(doubles), "COMFYUI_PATH": str(doubles),
            "DOUBLE_USER": str(user), "HOME": str(self.folder),
        }  # fmt: skip
        done = subprocess.run(
            [python, "-c", _ASK], env=environ, cwd=doubles, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
        return found


def locked() -> Package:
    """Return the Manager of the lock that comes with comfypod."""
    environments = read_lock(None).environments
    return next(each for found in environments for each in found.packages if each.name == "comfyui-manager")


def install(folder: Path) -> Manager:
    """Install the very wheel of the lock, without its dependencies, and what it imports.

    Raises:
        NotToBeHadError: the index does not answer.
    """
    package = locked()
    write_tree(folder / "doubles", _DOUBLES)
    pin = f"{package.name}=={package.version} --hash=sha256:{package.wheels[0].sha256}\n"
    write_tree(folder, {"manager.txt": pin})
    pip = ("uv", "pip", "install", "-q", "--python", str(folder / "venv" / "bin" / "python"))
    for argv in (
        ("uv", "venv", "-q", "--no-project", str(folder / "venv")),
        (*pip, "--no-deps", "--require-hashes", "-r", str(folder / "manager.txt")),
        (*pip, *_NEEDED),
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise NotToBeHadError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else " ".join(argv))
    return Manager(folder, package.version)
