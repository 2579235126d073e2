from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.environment import requests
from comfypod.environment.layer import Layer, remember
from comfypod.environment.requests import Request, add, asked, forget, note_found, read, write
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_the_same_name_is_asked_for_once_by_each_party(layout: Layout) -> None:
    add(layout, asked("user", ["lib>=1", "other"]))
    add(layout, asked("node:a", ["lib"]))
    add(layout, asked("user", ["Lib>=2"]))
    assert [(row.who, row.line) for row in read(layout)] == [
        ("node:a", "lib"), ("user", "Lib>=2"), ("user", "other"),
    ]  # fmt: skip


def test_the_version_that_was_there_is_kept_when_a_request_is_made_again(layout: Layout) -> None:
    write(layout, [Request("user", "lib", "lib", "1.0")])
    add(layout, asked("user", ["lib"]))
    assert read(layout) == (Request("user", "lib", "lib", "1.0"),)


def test_a_party_forgets_some_or_all_and_others_nothing(layout: Layout) -> None:
    add(layout, [*asked("user", ["one", "two"]), *asked("node:a", ["one"])])
    forget(layout, "user", ["one"])
    assert [(row.who, row.name) for row in read(layout)] == [("node:a", "one"), ("user", "two")]
    forget(layout, "node:a")
    assert [row.who for row in read(layout)] == ["user"]


def test_the_same_requests_are_not_written_again(layout: Layout) -> None:
    add(layout, asked("user", ["one"]))
    before = layout.requests.stat().st_ino
    add(layout, asked("user", ["one"]))
    assert layout.requests.stat().st_ino == before


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_a_record_that_something_else_wrote_is_read_as_far_as_it_makes_sense(
    tmp_path_factory: pytest.TempPathFactory, body: object
) -> None:
    layout = Layout(tmp_path_factory.mktemp("garbage"))
    layout.records.mkdir()
    sound = {"who": "user", "name": "lib", "line": "lib", "version": ""}
    layout.requests.write_text(json.dumps({"requests": [body, sound, {**sound, "line": "a\n--index-url x"}]}))
    assert read(layout)[-1] == Request("user", "lib", "lib")
    layout.requests.write_text(json.dumps(body))
    assert read(layout) == ()


@pytest.mark.parametrize(
    ("direct", "line"),
    [
        (None, "lib"),
        ("not json", "lib"),
        ({"url": "https://a.invalid/lib.whl", "archive_info": {}}, "lib @ https://a.invalid/lib.whl"),
        (
            {"url": "https://a.invalid/x.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}, "subdirectory": "s"},
            "lib @ git+https://a.invalid/x.git@c0ffee#subdirectory=s",
        ),
        ({"url": "file://WORKSPACE/my%20lib", "dir_info": {"editable": True}}, "-e ./my lib"),
        ({"url": "file:///elsewhere", "dir_info": {"editable": True}}, "-e /elsewhere"),
        ({"url": "file:///elsewhere", "dir_info": {}}, "lib @ file:///elsewhere"),
    ],
)
def test_what_was_installed_from_somewhere_is_asked_for_from_there(
    tmp_path: Path, layout: Layout, direct: object, line: str
) -> None:
    image = tmp_path / "image"
    (image / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    layer = Layer(layout.envs / "one", "one", image)
    info = layer.site / "lib-1.0.dist-info"
    info.mkdir(parents=True)
    remember(layer)
    (info / "REQUESTED").touch()
    if direct is not None:
        text = direct if isinstance(direct, str) else json.dumps(direct)
        (info / "direct_url.json").write_text(text.replace("WORKSPACE", str(tmp_path)))
    assert note_found(layer, layout).found == ("lib",)
    assert read(layout) == (Request("user", "lib", line, "1.0"),)
    assert requests.added(layer).keys() == {"lib"}
