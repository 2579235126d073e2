from __future__ import annotations

import json

import pytest

from benchmarks.question import Question, report, run

_TIMES = Question("t", "Time", "seconds", {"bare": [2.0, 4.0, 3.0], "ours": [2.0, 2.0, 6.0]}, "bare", 0.7, ("ours",))
_RATES = Question("r", "Rate", "MB/s", {"curl": [100.0], "ours": [90.0]}, "curl", 0.95, ("ours",), more_is_better=True)


def test_medians_are_compared_with_the_base_and_runs_with_those_beside_them() -> None:
    assert _TIMES.ratio("ours") == pytest.approx(2 / 3)
    assert _TIMES.ratio_by_run("ours") == 1.0
    assert _TIMES.ratio("bare") is None
    assert Question("n", "No base", "s", {"a": [1.0]}).ratio("a") is None


def test_what_was_missed_is_said_whichever_way_is_better() -> None:
    assert _TIMES.verdict("ours") == "at most 0.7: met"
    assert _RATES.verdict("ours") == "at least 0.95: missed"
    assert _TIMES.verdict("bare") == ""


def test_a_target_counts_as_missed_where_the_medians_and_the_runs_miss_it() -> None:
    assert _RATES.missed() == ["Rate: ours at least 0.95: missed, 0.900"]
    medians_alone, runs_alone = [0.9, 1.9, 1.0], [5.0, 1.6, 7.2]
    for ours in (medians_alone, runs_alone):
        values = {"bare": [1.0, 2.0, 9.0], "ours": ours}
        assert Question("t", "Time", "seconds", values, "bare", 0.85, ("ours",)).missed() == []
    assert Question("n", "No target", "s", {"bare": [1.0], "ours": [9.0]}, "bare").missed() == []


@pytest.mark.parametrize("shape", [[], ["--json"]])
def test_a_benchmark_that_is_checked_ends_with_1_where_a_target_is_missed_and_prints_its_figures(
    shape: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 1.0, 1.0))
    monkeypatch.setattr("sys.argv", ["benchmark", *shape])
    run("A benchmark.", lambda _: [_TIMES, _RATES])
    plain = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["benchmark", *shape, "--check"])
    with pytest.raises(SystemExit, match=r"ours at least 0\.95: missed"):
        run("A benchmark.", lambda _: [_TIMES, _RATES])
    assert capsys.readouterr().out == plain
    run("A benchmark.", lambda _: [_TIMES])


def test_a_report_has_every_question_with_its_table() -> None:
    told = report([_TIMES, _RATES], "a machine", plots=True)
    assert "| ours | 2.000 | 2.000 | 6.000 | 0.667 | 1.000 | at most 0.7: met |" in told
    assert told.count("\n## ") == 2
    assert "![Rate](r.svg)" in told


def test_json_of_a_benchmark_can_be_read_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--json"])
    run("A benchmark.", lambda _: [_TIMES])
    (found,) = json.loads(capsys.readouterr().out)["questions"]
    assert Question(**{**found, "aimed": tuple(found["aimed"])}) == _TIMES
