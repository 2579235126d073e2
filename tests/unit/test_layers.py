"""The folders show how data flows, and no import points back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[2] / "src" / "comfypod"
_HOST_SIDE = {"host", "image", "lock", "manifest"}
# Handed to another Python, so they stand alone on the standard library.
_ALONE = {
    "image/layer.py",
    "image/workflow.py",
    "launch/bundle.py",
    "launch/collector.py",
    "launch/comfyui.py",
    "launch/guard.py",
    "launch/imports.py",
    "launch/inquiries.py",
    "launch/packages.py",
    "launch/record.py",
    "launch/standby.py",
    "launch/structure.py",
    "launch/writer.py",
    "nodes/probe.py",
}
_MAY_NOT = {
    "manifest": {"lock", "image", "host", "boot", "workspace"},
    "lock": {"image", "host", "boot", "workspace"},
    "image": {"boot", "workspace"},
    "host": {"boot"},
    "workspace": {*_HOST_SIDE, "boot", "environment", "nodes"},
    "download": {*_HOST_SIDE, "boot", "environment", "nodes", "models"},
    "environment": {*_HOST_SIDE, "boot", "nodes"},
    "nodes": {*_HOST_SIDE, "boot"},
    "models": {*_HOST_SIDE, "boot", "environment", "nodes"},
    "boot": _HOST_SIDE,
    "resources": {*_HOST_SIDE, "boot", "workspace"},
    "": {*_HOST_SIDE, "boot", "workspace"},
}


def _imported(path: Path) -> set[str]:
    """Return the packages of ours that a module names anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "comfypod":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("comfypod.")}
    return found


@pytest.mark.parametrize("package", _MAY_NOT)
def test_no_import_points_back(package: str) -> None:
    modules = [path for path in (_SOURCE / package).glob("*.py") if path.name != "cli.py"]
    assert modules
    back = {path.name: sorted(_imported(path) & _MAY_NOT[package]) for path in modules}
    assert {name: found for name, found in back.items() if found} == {}


@pytest.mark.parametrize(
    ("module", "door"),
    [
        ("subprocess", {"proc.py"}),
        ("urllib.request", {"download/connection.py"}),
        ("http.client", {"download/connection.py", "control.py"}),
        ("shutil", {"proc.py", "files.py", "lock/sources.py", "unpack.py", "image/context.py"}),
    ],
)
def test_what_has_a_door_goes_through_it(module: str, door: set[str]) -> None:
    users = set()
    for path in _SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        typing_only = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if module in named and id(node) not in typing_only:
                users.add(str(path.relative_to(_SOURCE)))
    assert users - _ALONE <= door


@pytest.mark.parametrize("module", sorted(_ALONE))
def test_what_stands_alone_imports_nothing_of_ours(module: str) -> None:
    assert _imported(_SOURCE / module) == set()
