from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.silence import BUSY_FACTOR, Judgement, Look, Silence, after, begun, judge, wedged

_LIMIT = 60.0
_STEP = 10.0


def _history(looks: list[tuple[bool, float]], prompts: int = 0) -> list[Silence]:
    """Return what is known after each look, ten seconds apart: silent or not, share of a processor since the last."""
    silence, cpu, seen = begun(0.0), 0.0, []
    for number, (silent, share) in enumerate(looks, 1):
        cpu += share * _STEP
        silence = after(silence, Look(number * _STEP, silent, cpu if silent else 0.0, prompts))
        seen.append(silence)
    return seen


def _judged(looks: list[tuple[bool, float]], prompts: int = 0) -> list[Judgement]:
    return [judge(silence, _LIMIT) for silence in _history(looks, prompts)]


def test_e3_silence_as_long_as_the_limit_is_too_long() -> None:
    assert _judged([(True, 1.0)] * 6) == ["wait"] * 5 + ["wedged"]


def test_e3_a_prompt_at_work_has_ten_times_as_long() -> None:
    judged = _judged([(True, 1.0)] * 60, prompts=1)
    assert judged == ["wait", *["busy"] * 58, "wedged"]


def test_e3_a_prompt_that_stops_to_work_has_the_limit_from_there() -> None:
    judged = _judged([(True, 1.0)] * 20 + [(True, 0.0)] * 6, prompts=1)
    assert "wedged" not in judged[:-1]
    assert judged[-1] == "wedged"


def test_e3_a_prompt_that_does_no_work_is_no_excuse() -> None:
    assert _judged([(True, 0.001)] * 6, prompts=3)[-1] == "wedged"


def test_e3_a_pause_of_the_whole_pod_is_not_its_silence() -> None:
    silence = after(begun(0.0), Look(5.0, silent=True))
    silence = after(silence, Look(9000.0, silent=True))
    assert judge(silence, _LIMIT) == "wait"


def test_e3_the_reason_names_the_time() -> None:
    cause = wedged(_history([(True, 0.0)] * 6)[-1])
    assert cause.code == "wedged"
    assert "did not answer for 60 s" in cause.told


_LOOKS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.01, 0.5, 2.0])), min_size=1, max_size=90)


@given(_LOOKS, st.integers(0, 3))
def test_e3_nothing_is_wedged_before_the_limit_or_kept_after_ten_times_of_it(
    looks: list[tuple[bool, float]], prompts: int
) -> None:
    for silence in _history(looks, prompts):
        assert 0 <= silence.idle <= silence.seconds
        judgement = judge(silence, _LIMIT)
        if judgement == "wedged":
            assert silence.seconds >= _LIMIT
        else:
            assert silence.seconds < _LIMIT * (BUSY_FACTOR if prompts else 1)


@given(_LOOKS, st.integers(0, 3))
def test_e3_one_answer_makes_up_for_any_silence(looks: list[tuple[bool, float]], prompts: int) -> None:
    assert _judged([*looks, (False, 0.0)], prompts)[-1] == "wait"
    assert _history([*looks, (False, 0.0)], prompts)[-1].seconds == 0


@given(st.lists(st.floats(0, 1e6), max_size=50), st.integers(0, 3))
def test_e4_what_does_not_listen_yet_is_never_wedged(times: list[float], prompts: int) -> None:
    silence = begun(0.0)
    for at in sorted(times):
        silence = after(silence, Look(at, silent=False, prompts=prompts))
        assert judge(silence, _LIMIT) == "wait"


@pytest.mark.parametrize("prompts", [0, 1])
def test_e3_without_a_limit_nothing_is_wedged(prompts: int) -> None:
    assert "wedged" not in {judge(silence, 0.0) for silence in _history([(True, 0.0)] * 500, prompts)}
