from __future__ import annotations

import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import log
from comfypod.errors import Problem
from comfypod.log import Console, human_bytes
from comfypod.result import Result


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (5e6, "5.0 MB"), (7.25e12, "7.2 TB")],
)
def test_byte_counts_are_written_in_powers_of_1000(count: float, text: str) -> None:
    assert human_bytes(count) == text


@given(st.integers(0, 10**15))
def test_a_byte_count_loses_at_most_a_twentieth(count: int) -> None:
    number, unit = human_bytes(count).split()
    shown = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(shown - count) <= 0.05 * count


def test_a_problem_stands_above_its_hint() -> None:
    out = io.StringIO()
    Console(out).problem(Problem("x", "it broke", "mend it"))
    Console(out).problem(Problem("x", "no hint"))
    assert out.getvalue() == "ERROR it broke\n      mend it\nERROR no hint\n"


def test_private_lines_reach_the_terminal_and_no_mirror() -> None:
    out, mirrored = io.StringIO(), list[str]()
    console = Console(out)
    console.mirror(mirrored.append)
    console.line("open")
    console.line("token", private=True)
    console.warning("odd")
    assert out.getvalue() == "open\ntoken\nWARNING odd\n"
    assert mirrored == ["open", "WARNING odd"]


def test_lines_for_people_leave_standard_output_to_the_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.line("at work")
    console.render(Result("x", {"a": 1}, "text", errors=(Problem("c", "m"),)))
    said = capsys.readouterr()
    assert said.err == "at work\n"
    assert said.out.count("\n") == 1
    assert json.loads(said.out)["data"] == {"a": 1}


def test_a_result_is_rendered_as_its_text_and_its_problems() -> None:
    out = io.StringIO()
    Console(out).render(Result("x", {"a": 1}, "done", errors=(Problem("c", "but", "so"),)))
    assert out.getvalue() == "done\nERROR but\n      so\n"


def test_a_reader_that_went_away_is_no_error_and_mirrors_go_on() -> None:
    mirrored = list[str]()
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        console = Console(out)
        console.mirror(mirrored.append)
        console.line("one")
        console.line("two")
    assert mirrored == ["one", "two"]


def test_a_line_that_a_terminal_cannot_show_does_not_silence_the_rest() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(out)
    console.line("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    console.line("after")
    assert raw.getvalue().endswith(b"after\n")


def test_progress_without_a_terminal_is_lines_with_the_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_PLAIN_INTERVAL", 0.0)
    out = io.StringIO()
    with Console(out).progress("copying", 2_000_000) as advance:
        advance(1_000_000)
    assert out.getvalue() == "  copying: 1.0 MB of 2.0 MB after 0 s\n"


def test_progress_without_a_terminal_is_quiet_for_short_work() -> None:
    out = io.StringIO()
    with Console(out).progress("copying") as advance:
        for done in range(100):
            advance(done)
    assert out.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    with Console(out).progress("copying", 10) as advance:
        advance(10)
    assert "copying" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")


def test_lines_that_come_beside_a_bar_stay_above_it() -> None:
    out = _Terminal()
    console = Console(out)
    with console.progress("copying", 10) as advance:
        advance(5)
        console.line("[bold]one file failed[/bold]: " + "x" * 200)
    console.line("after")
    lines = out.getvalue().splitlines()
    assert any(line.endswith("[bold]one file failed[/bold]: " + "x" * 200) for line in lines)
    assert lines[-1].endswith("after")
