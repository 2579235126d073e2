from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfypod.manifest.locate import line_of, locate

KEYS = st.text("abcdefg_-", min_size=1, max_size=6)
SCALARS = st.sampled_from(
    ['"text"', "3", "true", '["a", "b"]', '[\n  "a",\n\n  "b", # why\n]', '"""\n[no]\nx = 1\n"""']
)


def test_each_key_has_the_line_on_which_it_begins() -> None:
    text = '\n# first\na = [\n  "[b]",\n]\nc = """\nd = 1\n"""\n[t]\ne.f = 1\n'
    lines = locate(text)
    assert [lines[path] for path in (("a",), ("c",), ("t",), ("t", "e", "f"))] == [3, 6, 9, 10]
    assert ("d",) not in lines


def test_tables_in_arrays_are_counted() -> None:
    text = (
        "[[n]]\nx = 1\n[[n]]\nx = 2\n[n.sub]\ny = 3\n[[n.deep]]\nz = 4\n[[n.deep]]\nz = 5\n[[n]]\n[[n.deep]]\nz = 6\n"
    )
    lines = locate(text)
    assert lines["n", 0, "x"] == 2
    assert lines["n", 1, "x"] == 4
    assert lines["n", 1, "sub", "y"] == 6
    assert lines["n", 1, "deep", 1, "z"] == 10
    assert lines["n", 2, "deep", 0, "z"] == 13


def test_an_unknown_path_has_the_line_of_its_nearest_parent() -> None:
    lines = locate("a = 1\n[t]\nb = [1,\n2]\n")
    assert line_of(lines, ("t", "b", 7, "c")) == 3
    assert line_of(lines, ("t", "missing")) == 2
    assert line_of(lines, ("nowhere",)) == 1


@given(st.lists(st.tuples(KEYS, st.booleans(), st.dictionaries(KEYS, SCALARS, max_size=3)), max_size=5))
def test_every_key_of_any_valid_text_is_found_on_a_line_that_names_it(
    tables: list[tuple[str, bool, dict[str, str]]],
) -> None:
    text = ""
    for name, many, pairs in tables:
        text += f"\n# {name}\n" + (f"[[{name}]]" if many else f"[{name}]") + "\n"
        text += "".join(f"{key} = {value}\n" for key, value in pairs.items())
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines, written = locate(text), text.split("\n")
    for path in _paths(body):
        assert str(path[-1]) in written[lines[path] - 1]


def _paths(body: dict[str, Any]) -> list[tuple[str | int, ...]]:
    found: list[tuple[str | int, ...]] = []
    for name, value in body.items():
        rows = [((name,), value)] if isinstance(value, dict) else [((name, i), row) for i, row in enumerate(value)]
        found += [(*prefix, key) for prefix, row in rows for key in row]
    return found
