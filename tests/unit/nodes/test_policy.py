from __future__ import annotations

import configparser
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.nodes.policy import DEFAULTS, NEWEST, POLICIES, merge, parse, render, rules_of

NAMES = tuple(POLICIES[NEWEST])
_PIECES = [
    "[default]\n", "[DEFAULT]\n", "security_level", "allow_pip_install", " = ", "weak", "true", "\n", "\r", "%(", "%",
    ")s", " ", ";", "#", "[", "]", "\x0c", "\x85", "\ufeff",
]  # fmt: skip
_TEXTS = st.lists(st.sampled_from(_PIECES)).map("".join) | st.text()
_OURS = st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.sampled_from(["weak", "true", "false", "normal-", "x"]))


def _as_manager_reads(data: bytes) -> dict[str, str]:
    """Read as Manager does (glob/manager_core.py, `read_config`)."""
    reader = configparser.ConfigParser(strict=False)
    reader.read_string(data.decode())
    return dict(reader["default"])


@given(data=st.binary() | _TEXTS.map(str.encode), ours=_OURS, name=st.sampled_from(NAMES))
def test_b6_no_bytes_make_manager_read_anything_weaker_than_the_policy(
    data: bytes, ours: dict[str, str], name: str
) -> None:
    rules, _ = rules_of("4.2.2", name)
    keys = merge(parse(data)[0], ours, rules).keys
    body = render(keys, rules)
    read = _as_manager_reads(body)
    for key, rule in rules.items():
        assert read[key].lower() in rule.allowed
    assert merge(parse(body)[0], ours, rules).weak == {}


@given(data=_TEXTS.map(str.encode))
def test_what_is_sound_is_what_manager_reads(data: bytes) -> None:
    keys, sound = parse(data)
    if sound:
        # Reading a file, Python makes one kind of line end of all.
        assert _as_manager_reads(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")) == keys


@given(keys=st.dictionaries(st.sampled_from(["git_exe", "channel_url", "new"]), st.text("a%(s)$ \u00e9", min_size=1)))
def test_keys_of_the_user_come_through_a_rewriting_as_they_are(keys: dict[str, str]) -> None:
    rules, _ = rules_of("4.2.2", "registry")
    stripped = {key: value.strip() for key, value in keys.items()}
    merged = merge(stripped, {}, rules)
    assert {key: _as_manager_reads(render(merged.keys, rules))[key] for key in keys} == stripped


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_another_policy_takes_back_what_the_one_before_has_written(first: str, second: str) -> None:
    before = merge({}, {}, rules_of("4.2.2", first)[0])
    rules, _ = rules_of("4.2.2", second)
    after = merge(before.keys, before.ours, rules)
    assert after.keys == {key: rule.fill for key, rule in rules.items()}
    assert after.weak == {}


def test_what_the_user_wants_stricter_stays_through_every_policy() -> None:
    found = {"security_level": "strong", "allow_pip_install": "False"}
    merged = merge(found, {"allow_pip_install": "true"}, rules_of("4.2.2", "open")[0])
    assert (merged.keys["security_level"], merged.keys["allow_pip_install"]) == ("strong", "False")
    assert merged.keys["allow_git_url_install"] == "true"
    assert "security_level" not in merged.ours


def test_what_manager_has_written_of_itself_is_nobodys_wish() -> None:
    merged = merge({key: value.title() for key, value in DEFAULTS.items()}, {}, rules_of("4.2.2", "open")[0])
    assert (merged.keys["security_level"], merged.keys["allow_git_url_install"]) == ("normal-", "true")
    assert merged.weak == {}


def test_a_version_that_nobody_has_read_gets_the_strictest_rules() -> None:
    assert rules_of("5.0.0", "open") == (POLICIES[NEWEST]["locked"], False)
    for known in ("4.2.9", "4.1b6", "4.1"):
        assert rules_of(known, "open") == (POLICIES[NEWEST]["open"], True)
    assert rules_of("", "open") == rules_of("4.10", "open") == (POLICIES[NEWEST]["locked"], False)


def test_a_file_that_refers_to_itself_over_and_over_does_not_take_for_ever() -> None:
    lines = [f"k{number} = " + f"%(k{number - 1})s" * 200 for number in range(1, 10)]
    keys, sound = parse(("[default]\nk0 = x\n" + "\n".join(lines)).encode())
    assert not sound
    assert len(keys["k9"]) < 2000


def test_a_long_line_of_blanks_does_not_take_for_ever_and_the_rest_is_read() -> None:
    began = time.process_time()
    for line in (b" " * 65_000 + b"x", b"k" + b" " * 65_000 + b"x"):
        assert parse(b"[default]\nbypass_ssl = True\n" + line) == ({"bypass_ssl": "True"}, False)
    assert time.process_time() - began < 5
