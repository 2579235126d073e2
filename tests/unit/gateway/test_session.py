from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.gateway import session

KEYS = ("right token",)


def test_a_session_holds_for_its_time_and_for_one_token() -> None:
    value = session.issue(KEYS, 1000.0)
    assert session.holds(value, KEYS, 1000.0 + session.SESSION_SECONDS - 1)
    assert not session.holds(value, KEYS, 1000.0 + session.SESSION_SECONDS + 1)
    assert not session.holds(value, ("another",), 1000.0)
    assert not session.holds(value, (), 1000.0)


@given(st.text())
def test_nothing_that_was_not_issued_holds(value: str) -> None:
    assert not session.holds(value, KEYS, 0.0)


@given(st.integers(0, 80), st.characters(codec="ascii"))
def test_a_session_that_was_changed_does_not_hold(place: int, other: str) -> None:
    value = session.issue(KEYS, 1000.0)
    changed = value[:place] + other + value[place + 1 :]
    assert session.holds(changed, KEYS, 0.0) is (changed == value)


def test_two_tokens_have_cookies_of_two_names_since_cookies_know_no_ports() -> None:
    assert session.cookie_name(("a",)) != session.cookie_name(("b",))
    assert "right" not in session.cookie_name(KEYS)


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_a_secret_fits_when_it_is_one_of_the_keys(given_: str, keys: list[str]) -> None:
    assert session.fits(given_, keys) is (given_ in keys)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_g10_guessing_is_slowed_down_and_forgiven_in_time() -> None:
    clock = Clock()
    throttle = session.Throttle(clock)
    pauses = []
    for _ in range(14):
        throttle.failed("192.0.2.1")
        pauses.append(throttle.pause("192.0.2.1"))
        clock.now += throttle.pause("192.0.2.1")
    assert pauses == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert throttle.pause("192.0.2.2") == 0
    clock.now += 901
    throttle.failed("192.0.2.1")
    assert throttle.pause("192.0.2.1") == 0


def test_g10_an_ipv6_network_is_one_guesser() -> None:
    throttle = session.Throttle(Clock())
    for number in range(6):
        throttle.failed(f"2001:db8:1:2::{number:x}")
    assert throttle.pause("2001:db8:1:2:ffff::1") > 0
    assert throttle.pause("2001:db8:1:3::1") == 0
    for _ in range(6):
        throttle.failed("::ffff:192.0.2.1")
    assert throttle.pause("192.0.2.1") > 0
    assert throttle.pause("::ffff:192.0.2.2") == 0


def test_g10_what_is_remembered_of_guessers_is_bounded() -> None:
    throttle = session.Throttle(Clock())
    for number in range(25_000):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._seen) == 10_000


def test_g10_every_key_is_compared_in_constant_time_also_after_one_has_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    original = hmac.compare_digest

    def noted(given_: bytes, key: bytes) -> bool:
        compared.append(key)
        return original(given_, key)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    assert session.fits("a", ("a", "b"))
    assert not session.fits("c", ("a", "b"))
    assert compared == [b"a", b"b", b"a", b"b"]
