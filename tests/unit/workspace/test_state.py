from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import __version__
from comfypod.errors import StorageError
from comfypod.workspace import state
from comfypod.workspace.state import State

_TEXT = st.text(st.characters(codec="utf-8"))
STATE = State("1-abc", "key", "/workspace")


@given(st.builds(State, _TEXT, _TEXT, _TEXT))
def test_a_record_comes_back_as_it_was_written(record: State) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        state.write(path, record)
        assert state.read(path) == record
    assert (record.writer, record.schema) == (__version__, state.SCHEMA)


def test_an_unchanged_record_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state.write(path, STATE)
    before = path.stat()
    state.write(path, STATE)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    state.write(path, replace(STATE, release="2"))
    assert state.read(path) == replace(STATE, release="2")


def test_a_record_of_a_newer_schema_is_refused_with_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / ".comfypod" / "state.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"schema": state.SCHEMA + 1, "writer": "9.1", "unknown": {}}))
    with pytest.raises(StorageError) as caught:
        state.read(path)
    for words in (str(tmp_path), "9.1", f"schema {state.SCHEMA + 1}", "changes nothing"):
        assert words in caught.value.message
    assert "another workspace" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff", b"[]", b"3", b"null", b"{}", b'{"schema": "x"}', b'{"schema": null}', b'{"schema": 1}',
        b'{"schema": 1e999}',
    ],
)  # fmt: skip
def test_a_damaged_record_counts_as_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    assert state.read(path) is None
    state.write(path, STATE)
    assert state.read(path) == STATE


def test_no_record_is_none(tmp_path: Path) -> None:
    assert state.read(tmp_path / "none" / "state.json") is None


@given(st.binary(max_size=50))
def test_no_bytes_are_taken_for_a_record(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        path.write_bytes(data)
        assert state.read(path) is None


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token, made = state.keep_token(path)
    assert made
    assert len(bytes.fromhex(token)) == 24
    assert path.stat().st_mode & 0o777 == 0o600
    assert state.keep_token(path) == (token, False)
    assert state.keep_token(tmp_path / "other")[0] != token


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe", bytes(9)], ids=repr)
def test_a_token_file_without_a_token_gets_one(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(data)
    token, made = state.keep_token(path)
    assert made
    assert state.keep_token(path) == (token, False)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_of_the_users_own_is_kept(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("  mine \n")
    assert state.keep_token(tmp_path / "token") == ("mine", False)


def test_a_token_that_is_a_pipe_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    token, made = state.keep_token(tmp_path / "token")
    assert made
    assert (tmp_path / "token").read_text().strip() == token
