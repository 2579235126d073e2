from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.policy import Attempts, Limits, after_death, exit_code

_COMFYUI = Limits(has_safe_mode=True)
_JUPYTER = Limits(quick_deaths=5)


def _deaths(limits: Limits, count: int) -> list[Attempts]:
    history = [Attempts()]
    for _ in range(count):
        history.append(after_death(history[-1], limits, None))
    return history[1:]


def test_pauses_grow_then_safe_mode_then_the_end() -> None:
    seen = [(step.delay, step.safe_mode, step.gave_up) for step in _deaths(_COMFYUI, 5)]
    assert seen == [(1, False, False), (2, False, False), (1, True, False), (1, True, False), (2, True, True)]


def test_a_service_without_safe_mode_is_given_up() -> None:
    assert [step.gave_up for step in _deaths(_JUPYTER, 5)] == [False] * 4 + [True]


def test_a_long_run_forgives_earlier_deaths() -> None:
    assert after_death(Attempts(quick=2), _COMFYUI, 3600.0) == Attempts(delay=1.0)


def test_a_long_run_in_safe_mode_stays_in_safe_mode() -> None:
    assert after_death(Attempts(quick=1, safe_mode=True), _COMFYUI, 3600.0).safe_mode


def test_exit_codes_follow_the_shell() -> None:
    assert [exit_code(code) for code in (0, 7, -9, -15)] == [0, 7, 137, 143]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=200), st.booleans())
def test_pauses_stay_bounded_and_quick_deaths_alone_end_a_service(runs: list[float | None], safe: bool) -> None:
    limits, attempts, quick = Limits(has_safe_mode=safe), Attempts(), 0
    for seconds in runs:
        attempts = after_death(attempts, limits, seconds)
        quick = quick + 1 if seconds is None or seconds < limits.quick_seconds else 0
        assert 1 <= attempts.delay <= 60
        if attempts.gave_up:
            assert quick >= min(limits.quick_deaths, limits.safe_deaths)
            return


def test_changed_nodes_are_searched_before_safe_mode_and_safe_mode_follows_where_it_is_not_them() -> None:
    attempts = Attempts()
    for _ in range(_COMFYUI.quick_deaths):
        attempts = after_death(attempts, _COMFYUI, None, ("a", "b"))
    assert attempts.search is not None
    assert (attempts.search.left_out, attempts.safe_mode, attempts.gave_up) == (frozenset("ab"), False, False)
    after = after_death(attempts, _COMFYUI, None, ("a", "b"))
    assert (after.search, after.safe_mode) == (None, True)


def test_where_there_is_no_safe_mode_nothing_is_searched() -> None:
    attempts = Attempts()
    for _ in range(_JUPYTER.quick_deaths):
        attempts = after_death(attempts, _JUPYTER, None, ("a",))
    assert (attempts.search, attempts.gave_up) == (None, True)
