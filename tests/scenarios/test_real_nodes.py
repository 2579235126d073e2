"""Custom nodes that do their worst to the real ComfyUI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

_GOOD = """
class Node:
    @classmethod
    def INPUT_TYPES(cls): return {"required": {}}
    RETURN_TYPES, FUNCTION, CATEGORY = (), "run", "test"
    def run(self): return ()
NODE_CLASS_MAPPINGS = {"NAME": Node}
"""
_HOSTILE = {
    "raises": ("raise ImportError('no module named nothing')", "failed", "ImportError: no module named nothing"),
    "exits": ("raise SystemExit(3)", "failed", "it called sys.exit(3)"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "aside", "ComfyUI ended with signal 11 while it was loaded"),
    "hangs": ("import time; time.sleep(120)", "aside", "it took longer than 5 s to load"),
    "half": (None, "failed", "it has no __init__.py: it is cloned by half, or no node"),
}


def _node(nodes: Path, name: str, code: str | None) -> None:
    (nodes / name / ".git").mkdir(parents=True)
    if code is not None:
        (nodes / name / "__init__.py").write_text(code)


def test_c3_of_twenty_nodes_five_are_hostile_and_fifteen_work(site: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first boot pays for what kills ComfyUI with a start; later ones are as quick as without the five."""
    monkeypatch.setenv("COMFYPOD_NODE_SECONDS", "5")
    nodes = site.layout.comfyui / "custom_nodes"
    good = {f"Good{number}" for number in range(15)}
    for name in good:
        _node(nodes, name.lower(), _GOOD.replace("NAME", name))
    site.up()
    site.down()
    alone = site.up()["data"]["status"]["boot"]["seconds_to_ready"]
    site.down()
    for name, (code, _, _) in _HOSTILE.items():
        _node(nodes, name, code)
    first = site.up()["data"]["status"]
    site.down()
    later = site.up()["data"]["status"]
    for status, restarts in ((first, 1), (later, 0)):
        service = status["services"][0]
        assert (service["restarts"], service["safe_mode"]) == (restarts, False)
        rows = {row["name"]: (row["state"], row["reason"]) for row in status["nodes"]}
        assert {name: rows.pop(name) for name in _HOSTILE} == {
            name: (state, reason) for name, (_, state, reason) in _HOSTILE.items()
        }
        assert rows == {name.lower(): ("loaded", "") for name in good}
        named = " ".join(problem["message"] for problem in status["problems"] if problem["code"] == "node")
        assert all(f"the node {name} " in named for name in _HOSTILE)
    assert good <= set(json.loads(site.client.get("/object_info")))
    # Measured on a quiet machine they are the same; what else a busy one does shall not fail this.
    assert later["boot"]["seconds_to_ready"] < 1.5 * alone + 2
