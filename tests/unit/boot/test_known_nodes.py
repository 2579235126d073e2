from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import known_nodes
from comfypod.boot.known_nodes import Known

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    (folder / ".git" / "refs").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/main\n")
    (folder / ".git" / "refs" / "main").write_text("a" * 40)
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "web").mkdir()
    return folder


def _mark(node: Path, surroundings: str = "r e") -> str:
    return known_nodes.prints([node], surroundings)["node"]


@pytest.mark.parametrize("name", ["__pycache__/x.pyc", ".git/index.lock", "settings.json", "run.log", "web/cache.js"])
def test_what_a_node_and_git_write_beside_code_makes_no_other_node(node: Path, name: str) -> None:
    (node / "settings.json").write_text("{}")
    (node / "run.log").write_text("")
    before = _mark(node)
    (node / name).parent.mkdir(exist_ok=True)
    (node / name).write_text("more")
    assert _mark(node) == before


def test_other_code_another_commit_and_another_environment_make_another_node(node: Path) -> None:
    marks = [_mark(node), _mark(node, "r other")]
    (node / "__init__.py").write_text("x = 12\n")
    marks.append(_mark(node))
    os.utime(node / "__init__.py", (1, 1))
    marks.append(_mark(node))
    (node / ".git" / "refs" / "main").write_text("b" * 40)
    marks.append(_mark(node))
    (node / "more").mkdir()
    marks.append(_mark(node))
    assert len(set(marks)) == 6


def test_a_node_that_is_gone_or_planted_with_a_pipe_has_a_print_all_the_same(node: Path, tmp_path: Path) -> None:
    (node / ".git" / "HEAD").unlink()
    os.mkfifo(node / ".git" / "HEAD")
    os.mkfifo(node / "pipe.py")
    assert set(known_nodes.prints([node, tmp_path / "gone"], "")) == {"node", "gone"}


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    known = Known({"a": "1"}, {"b": ("2", "it ended ComfyUI")})
    known_nodes.write(tmp_path / "known.json", known)
    assert known_nodes.read(tmp_path / "known.json") == known


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["works", "aside", "x"]), inner),
)


@given(_JSON)
def test_a_damaged_record_counts_as_none(tmp_path_factory: pytest.TempPathFactory, body: object) -> None:
    path = tmp_path_factory.mktemp("known") / "known.json"
    path.write_text(json.dumps(body))
    known = known_nodes.read(path)
    assert all(isinstance(why, str) for _, why in known.aside.values())
    path.write_bytes(b"\xff{")
    assert known_nodes.read(path) == Known({}, {})
