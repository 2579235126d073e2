from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import ManifestError, Problem, StorageError
from comfypod.result import Result, failure, interrupted

_TEXT = st.text(st.characters(codec="utf-8"))
_JSON = st.recursive(st.none() | st.booleans() | st.integers() | _TEXT, lambda inner: st.lists(inner, max_size=3))


@given(_TEXT, st.dictionaries(_TEXT, _JSON, max_size=4), st.lists(st.builds(Problem, _TEXT, _TEXT, _TEXT), max_size=3))
def test_an_envelope_is_one_line_that_says_everything(
    command: str, data: dict[str, object], problems: list[Problem]
) -> None:
    line = Result(command, data, "for people", "partial", 3, tuple(problems)).envelope()
    assert "\n" not in line
    assert json.loads(line) == {
        "command": command,
        "status": "partial",
        "exit_code": 3,
        "data": data,
        "errors": [{"code": each.code, "message": each.message, "hint": each.hint} for each in problems],
    }


def test_the_text_for_people_is_not_in_the_envelope() -> None:
    assert "for people" not in Result("x", {}, "for people").envelope()


def test_a_failure_has_the_exit_code_and_all_problems_of_its_error() -> None:
    found = (Problem("manifest", "one"), Problem("manifest", "two", "so"))
    result = failure("lock", ManifestError("two problems", found=found))
    assert (result.status, result.exit_code, result.errors) == ("error", 3, found)
    assert result.data == {}
    assert failure("up", StorageError("full", "free some")).data == {}


def test_an_interrupted_command_says_that_it_can_go_on() -> None:
    result = interrupted("up", "terminated", 143)
    assert (result.command, result.status, result.exit_code) == ("up", "error", 143)
    assert [(each.code, bool(each.hint)) for each in result.errors] == [("terminated", True)]
