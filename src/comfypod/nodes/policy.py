"""What ComfyUI-Manager may do, as keys of its `config.ini`. Pure.

Manager judges "local" by the address that ComfyUI listens on, which behind the gateway is loopback for everybody, so
its own defaults protect nobody here: its policy is written for the version that is there.
"""

from __future__ import annotations

import configparser
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTION = "default"
NEWEST = "4.2"
_LONGEST_LINE = 1 << 11
_RELEASE = re.compile(r"[0-9]+\.[0-9]+")
# What Manager 4.2 itself writes where nobody has said anything, so that it is nobody's wish.
DEFAULTS = {
    "security_level": "normal", "network_mode": "public", "allow_git_url_install": "false",
    "allow_pip_install": "false", "bypass_ssl": "false", "http_channel_enabled": "false",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """One key: what is written where the user has said nothing or too weak a thing, and what of the user's may stay."""

    fill: str
    allowed: frozenset[str]


def _rule(fill: str, *others: str) -> Rule:
    return Rule(fill, frozenset({fill, *others}))


_NO, _YES, _EITHER = _rule("false"), _rule("true", "false"), _rule("false", "true")
_NETWORK = _rule("public", "private", "offline")
_CLOSED = {"allow_git_url_install": _NO, "allow_pip_install": _NO, "bypass_ssl": _NO, "http_channel_enabled": _NO}
# On loopback `strong` refuses what asks for `middle` or `middle+` (whatever installs, updates or removes), `normal`
# refuses `high+` (glob/utils/security_utils.py); each flag allows what it names (common/manager_security.py). 4.1 has
# the same levels (read in 4.1b6) and no flags for Git and pip, which ask for `high+` there.
_SINCE_4_1: Mapping[str, Mapping[str, Rule]] = {
    "locked": {"security_level": _rule("strong"), "network_mode": _NETWORK, **_CLOSED},
    "registry": {"security_level": _rule("normal", "strong"), "network_mode": _NETWORK, **_CLOSED},
    "open": {
        "security_level": _rule("normal-", "weak", "normal", "strong"),
        "network_mode": _rule("public", "private", "offline", "personal_cloud"),
        "allow_git_url_install": _YES, "allow_pip_install": _YES, "bypass_ssl": _EITHER,
        "http_channel_enabled": _EITHER,
    },
}  # fmt: skip
POLICIES = {NEWEST: _SINCE_4_1, "4.1": _SINCE_4_1}


def rules_of(version: str, policy: str, *, offline: bool = False) -> tuple[Mapping[str, Rule], bool]:
    """Return what holds for a version of Manager, and whether it is known; an unknown one gets the strictest.

    In a pod that is `offline` Manager is so as well, unless its user has chosen another network than the public one.
    """
    found = _RELEASE.match(version)
    table = POLICIES.get(found[0]) if found is not None else None
    rules = POLICIES[NEWEST]["locked"] if table is None else table[policy]
    if offline:
        rules = {**rules, "network_mode": Rule("offline", rules["network_mode"].allowed - {"public"})}
    return rules, table is not None


@dataclass(frozen=True, slots=True)
class Merged:
    """All keys for `config.ini`, those among them that are the policy's, and what the user had that was too weak."""

    keys: Mapping[str, str]
    ours: Mapping[str, str]
    weak: Mapping[str, str]


def merge(found: Mapping[str, str], ours: Mapping[str, str], rules: Mapping[str, Rule]) -> Merged:
    """Put a policy over what was found; `ours` is what an earlier policy had written.

    What the user wants stricter than the policy stays. What an earlier policy or nobody has wanted does not count.
    """
    nobodys = {**DEFAULTS, **ours}
    wishes = {key: value for key, value in found.items() if key in rules and value.lower() != nobodys.get(key)}
    weak = {key: value for key, value in wishes.items() if value.lower() not in rules[key].allowed}
    filled = {key: rule.fill for key, rule in rules.items() if key in weak or key not in wishes}
    same = {key: found[key] for key, fill in filled.items() if found.get(key, "").lower() == fill}
    return Merged({**found, **filled, **same}, filled, weak)


def parse(data: bytes) -> tuple[dict[str, str], bool]:
    """Return the keys of a `config.ini`, and whether Manager would read them all the same.

    Where it would not, it forgets the whole file and goes by its defaults. Nothing is expanded, and no long line is
    read: what refers to itself often enough, or is blanks, takes for ever.
    """
    try:
        text, sound = data.decode("utf-8"), True
    except UnicodeDecodeError:
        text, sound = data.decode("utf-8", "replace"), False
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    short = [line for line in lines if len(line) <= _LONGEST_LINE]
    sound = sound and short == lines
    reader = configparser.RawConfigParser(strict=False)
    try:
        reader.read_string("\n".join(short))
        raw = dict(reader[SECTION])
    except (configparser.Error, KeyError, AttributeError):
        return {}, False
    sound = sound and not any("%" in value.replace("%%", "") for value in raw.values())
    return {key: value.replace("%%", "%") for key, value in raw.items()}, sound


def render(keys: Mapping[str, str], rules: Mapping[str, Rule]) -> bytes:
    """Write what Manager reads as these keys; of keys that cannot be written so, those of the rules alone."""
    writer, sink = configparser.RawConfigParser(strict=False), io.StringIO()
    writer[SECTION] = {key: value.replace("%", "%%") for key, value in keys.items()}
    writer.write(sink)
    data = sink.getvalue().encode("utf-8", "replace")
    return data if parse(data) == (dict(keys), True) else render({key: keys[key] for key in rules}, rules)
