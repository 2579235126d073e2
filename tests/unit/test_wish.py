from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.wish import Wish, as_row, is_name, of_row, of_word, of_words

_COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("word", "wish"),
    [
        ("https://github.com/me/Pack.git", Wish("Pack", "https://github.com/me/Pack.git", "HEAD")),
        ("https://github.com/me/pack/", Wish("pack", "https://github.com/me/pack/", "HEAD")),
        ("https://github.com/me/pack@v1.2", Wish("pack", "https://github.com/me/pack", "v1.2")),
        ("https://github.com/me/pack@feature/x", Wish("pack", "https://github.com/me/pack", "feature/x")),
        (f"git@github.com:me/pack.git@{_COMMIT}", Wish("pack", "git@github.com:me/pack.git", _COMMIT)),
        ("git@github.com:me/pack", Wish("pack", "git@github.com:me/pack", "HEAD")),
        ("https://me:secret@host/pack", Wish("pack", "https://me:secret@host/pack", "HEAD")),
        ("https://host/@scope/pack", Wish("pack", "https://host/@scope/pack", "HEAD")),
        ("/srv/git/pack@main", Wish("pack", "/srv/git/pack", "main")),
        ("registry:kj-nodes@1.1.0", Wish("kj-nodes", registry="kj-nodes", version="1.1.0")),
        ("registry:kj-nodes", Wish("kj-nodes", registry="kj-nodes")),
    ],
)
def test_a_word_names_a_node(word: str, wish: Wish) -> None:
    assert of_word(word) == wish
    assert of_row(as_row(wish)) == wish


@pytest.mark.parametrize(
    "word",
    [
        "https://host/..", "https://host/a/.git", "https://host/", "https://host/x.disabled", "https://host/__pycache__",
        "registry:..", "registry:../../etc", "registry:", "registry:a/b", "registry:.hidden", "/srv/git/-x@main",
    ],
)  # fmt: skip
def test_g8_a_name_that_would_leave_the_folder_or_hide_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_word(word)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".git", "a/b", "a\\b", "a\0", "x.git", "", "a" * 101, "-x"])
def test_g8_the_name_in_a_file_is_judged_like_one_in_an_address(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be the name|known are") as refused:
        of_row({"name": name, "git": "https://host/pack", "ref": "main"} if name else {"nome": ""})
    assert "pack" not in str(refused.value)


@pytest.mark.parametrize(
    "word",
    ["--upload-pack=touch", "ext::sh -c id", "ext::sh", "https://host/pack@--upload-pack=x", "https://host/pack@a..b",
     "fd::17", "https://host/pack@", "registry:x@--y"],
)  # fmt: skip
def test_g8_options_of_git_are_neither_addresses_nor_references(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_word(word)


@pytest.mark.parametrize(
    "row",
    [
        "text", {"git": "https://h/p", "registry": "x"}, {"name": "x"}, {"git": "https://h/p", "version": "1"},
        {"registry": "x", "ref": "y"}, {"git": 3}, {"git": "https://h/p", "required": "yes"}, {"path": "/x"},
    ],
)  # fmt: skip
def test_a_table_that_is_no_node_is_refused(row: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_row(row)


def test_words_are_parted_by_commas_and_space_and_the_later_of_a_name_counts() -> None:
    found = of_words("https://h/a@v1, registry:b\n https://h/A@v2")
    assert [str(wish) for wish in found] == ["https://h/A@v2", "registry:b"]


@given(st.text(max_size=60) | st.text("./@:-abregisty\0 ", max_size=40))
def test_g8_whatever_is_written_a_name_is_one_plain_folder(text: str) -> None:
    try:
        found = of_words(text)
    except ValueError:
        return
    for wish in found:
        assert is_name(wish.name)
        assert "/" not in wish.name
        assert not wish.name.startswith((".", "-", "__"))
        assert of_row(as_row(wish)) == wish


def test_a_login_in_an_address_is_not_shown() -> None:
    assert "secret" not in str(of_word("https://me:secret@host/pack@v1"))
