from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.download.address import authorization, parse, path, shown
from comfypod.errors import SourceError

TOKENS = {"huggingface.co": "canary", "127.0.0.1": "canary"}


@pytest.mark.parametrize(
    ("first", "now", "sent"),
    [
        ("https://huggingface.co/a", "https://huggingface.co/a", "Bearer canary"),
        ("https://HuggingFace.co/a", "https://huggingface.co:443/b", "Bearer canary"),
        ("http://huggingface.co/a", "https://huggingface.co/a", "Bearer canary"),
        ("http://127.0.0.1:8/a", "http://127.0.0.1:8/a", "Bearer canary"),
        ("http://huggingface.co/a", "http://huggingface.co/a", ""),
        ("https://huggingface.co/a", "http://huggingface.co/a", ""),
        ("https://huggingface.co:443/a", "http://huggingface.co:443/a", ""),
        ("https://huggingface.co/a", "https://huggingface.co:8443/a", ""),
        ("https://huggingface.co/a", "https://cdn.huggingface.co/a", ""),
        ("https://huggingface.co/a", "https://huggingface.co.evil.example/a", ""),
        ("https://evil.example/a", "https://huggingface.co/a", ""),
        ("https://me:secret@h/a", "https://h/b", "Basic bWU6c2VjcmV0"),
        ("https://me:secret@h/a", "http://h/b", ""),
        ("https://me:secret@h/a", "https://other/b", ""),
        ("https://me:secret@h:81/a", "https://h:82/b", ""),
    ],
)
def test_d5_credentials_go_to_the_host_that_they_are_for_and_to_no_other(first: str, now: str, sent: str) -> None:
    assert authorization(parse(first), parse(now), TOKENS) == sent


@pytest.mark.parametrize(
    "url",
    [
        "https://me:canary@h/a", "https://h/a?token=canary", "https://h/a?b=1&X-Amz-Signature=canary&c=2",
        "https://h/a?api_key=canary#x", "see https://h/a?Token=canary and more", "https://h/a?X-Amz-Credential=canary%2F",
    ],
)  # fmt: skip
def test_g6_what_is_shown_of_an_address_has_no_secret(url: str) -> None:
    assert "canary" not in shown(url)
    assert "h/a" in shown(url)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"http://h/{text}"):
        try:
            parts = parse(url)
        except SourceError:
            continue
        assert path(parts).isascii()
        assert parts.hostname


def test_letters_beyond_ascii_are_quoted_once() -> None:
    assert path(parse("https://h/模型 %20?q=ü")) == "/%E6%A8%A1%E5%9E%8B%20%20?q=%C3%BC"
