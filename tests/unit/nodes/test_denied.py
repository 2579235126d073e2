from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.nodes.denied import set_denied_aside
from comfypod.workspace.aside import listed
from comfypod.workspace.layout import Layout
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from pathlib import Path


def test_denied_nodes_are_set_aside_and_the_others_stay(tmp_path: Path) -> None:
    layout, nodes = Layout(tmp_path), tmp_path / "ComfyUI" / "custom_nodes"
    url = '[remote "origin"]\n\turl = https://github.com/AppleBotzz/ComfyUI_LLMVISION\n'
    for name in ("comfyui_llmvision", "other", "old.disabled"):
        write_tree(nodes / name, {"__init__.py": ""})
    write_tree(nodes / "renamed", {".git/config": url})
    problems = set_denied_aside(layout, nodes)
    assert [each.code for each in problems] == ["denied"] * 2
    assert "change what secrets it could reach" in problems[0].hint
    assert sorted(path.name for path in nodes.iterdir()) == ["old.disabled", "other"]
    assert [each.name for each in listed(layout)] == ["comfyui_llmvision-1", "renamed-1"]
    assert set_denied_aside(layout, nodes) == ()
    assert set_denied_aside(layout, tmp_path / "missing") == ()
