from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.workspace import queue
from comfypod.workspace.queue import Saved

_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
_JSON = st.recursive(st.none() | st.booleans() | st.integers() | _TEXT, lambda each: st.lists(each, max_size=3))
_TABLE = st.dictionaries(_TEXT, _JSON, max_size=3)
_SAVED = st.builds(
    Saved, _TEXT, st.floats(allow_nan=False, allow_infinity=False), _TABLE, _TABLE, st.none() | _TEXT,
    st.none() | st.lists(_TEXT, max_size=2).map(tuple), st.integers(0, 5),
)  # fmt: skip
_QUEUES = st.lists(_SAVED, max_size=5, unique_by=lambda prompt: prompt.prompt_id)


def prompt(name: str, number: float = 0, attempts: int = 0) -> Saved:
    return Saved(name, number, {}, {}, attempts=attempts)


@given(_QUEUES)
def test_a_record_comes_back_as_it_was_written(prompts: list[Saved]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "queue.json")
        queue.write(path, prompts)
        assert queue.read(path) == tuple(prompts)
        assert path.exists() is bool(prompts)
        assert not prompts or path.stat().st_mode & 0o777 == 0o600


@given(_QUEUES, _QUEUES, _QUEUES)
def test_nothing_is_lost_or_doubled_by_adding_what_comfyui_has(
    kept: list[Saved], running: list[Saved], pending: list[Saved]
) -> None:
    names = [each.prompt_id for each in queue.merged(kept, running, pending)]
    assert set(names) == {each.prompt_id for each in (*kept, *running, *pending)}
    assert len(names) == len(set(names))
    assert names[: len(kept)] == [each.prompt_id for each in kept]


def test_an_attempt_counts_for_what_ran_and_not_for_what_waited() -> None:
    kept = (prompt("ran", attempts=1), prompt("waited", attempts=1), prompt("new"))
    found = queue.merged(kept, [prompt("ran")], [prompt("b", 2), prompt("waited", 9), prompt("a", 1)])
    assert [(each.prompt_id, each.attempts) for each in found] == [
        ("ran", 1), ("waited", 0), ("new", 0), ("a", 0), ("b", 0),
    ]  # fmt: skip


def test_an_item_of_comfyui_becomes_a_record_without_its_logins() -> None:
    extra = {"client_id": "me", "api_key_comfy_org": "secret", "auth_token_comfy_org": "secret", "x": 1}
    found = queue.from_item([3, "id", {"1": {}}, extra, ["1"], {"api_key_comfy_org": "secret"}])
    assert found == Saved("id", 3.0, {"1": {}}, {"client_id": "me", "x": 1}, "me", ("1",))
    assert found is not None
    assert "secret" not in json.dumps(found.body())


@pytest.mark.parametrize("item", [1, None, [], [1, 2, 3, 4], [1, "id", {}, 3], ["x", "id", {}, {}], [1, "id", [], {}]])
def test_what_is_no_prompt_is_left_out(item: Any) -> None:
    assert queue.from_item(item) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"prompts": 3}', b'{"prompts": [{}]}', b"[" * 100_000])
def test_a_damaged_record_is_not_taken_for_an_empty_one(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "queue.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        queue.read(path)
