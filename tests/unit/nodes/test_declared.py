from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import StorageError, UsageError
from comfypod.nodes import declared
from comfypod.wish import Wish, of_word

if TYPE_CHECKING:
    from pathlib import Path

FILE = """\
# mine
[settings]
jupyter = false  # not here

[[node]]
name = "one"  # the first
git = "https://h/one"
ref = "main"

# about two
[[node]]
registry = "two"
required = true

[[model]]
name = "m"
"""
ONE, TWO = Wish("one", "https://h/one", "main"), Wish("two", registry="two", required=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "comfypod.toml"
    path.write_text(FILE)
    return path


def test_nodes_of_the_file_and_of_the_setting_are_merged_and_the_setting_wins(path: Path) -> None:
    three, other = of_word("https://h/three"), of_word("https://elsewhere/ONE")
    assert declared.wishes(path, ()) == ({"one": ONE, "two": TWO}, ())
    assert declared.wishes(path, (three, other))[0] == {"ONE": other, "two": TWO, "three": three}
    assert declared.wishes(path.with_name("none"), (three,)) == ({"three": three}, ())


def test_a_table_that_is_wrong_is_left_out_and_named(path: Path) -> None:
    path.write_text(FILE + '[[node]]\nname = "../x"\ngit = "https://h/x"\n')
    found, problems = declared.wishes(path, ())
    assert list(found) == ["one", "two"]
    assert "node[2] is left out" in problems[0].message


@pytest.mark.parametrize("text", ["node = 3", "[node]\nname = 1", "no toml", "\xff"])
def test_a_file_that_cannot_be_read_leaves_the_setting(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    found, problems = declared.wishes(path, (ONE,))
    assert (found, len(problems)) == ({"one": ONE}, 1)


def test_adding_and_removing_leave_everything_else_as_it_is(path: Path) -> None:
    three = of_word("https://h/three@v1")
    declared.add(path, three)
    assert path.read_text().startswith(FILE)
    assert declared.wishes(path, ())[0]["three"] == three
    assert declared.remove(path, "three")
    assert path.read_text().rstrip() == FILE.rstrip()
    assert declared.remove(path, "ONE")
    assert not declared.remove(path, "one")
    body = tomllib.loads(path.read_text())
    assert [row["registry"] for row in body["node"]] == ["two"]
    assert "# mine" in path.read_text()
    assert declared.remove(path, "two")
    assert "node" not in tomllib.loads(path.read_text())


def test_a_node_of_the_same_name_is_replaced(path: Path) -> None:
    declared.add(path, Wish("one", "https://h/other", "v2"))
    assert declared.wishes(path, ())[0]["one"].git == "https://h/other"
    assert len(tomllib.loads(path.read_text())["node"]) == 2


def test_a_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    declared.add(tmp_path / "comfypod.toml", TWO)
    assert declared.wishes(tmp_path / "comfypod.toml", ())[0] == {"two": TWO}


@pytest.mark.parametrize(
    "text",
    ['node = [{git = "https://h/one"}, {git = "https://h/two"}]\n', "node = 3\n"],
)
def test_what_cannot_be_changed_without_touching_the_rest_is_left_to_its_author(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=r"only its author|is not an array"):
        declared.add(path, ONE)
    assert path.read_text() == text


def test_a_file_that_may_not_be_read_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "comfypod.toml"
    path.mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        declared.add(path, ONE)
    assert "cannot read" in declared.wishes(path, ())[1][0].message
