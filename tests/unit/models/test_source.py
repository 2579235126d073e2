"""How people write where a model comes from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.models import source
from comfypod.models.source import Civitai, Endpoints, HuggingFace, Source, Web

COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"hf:org/repo@{COMMIT}/a/b.safetensors", HuggingFace("org/repo", COMMIT, "a/b.safetensors")),
        ("hf:org/repo/b.safetensors", HuggingFace("org/repo", "main", "b.safetensors")),
        ("hf:org/re.po-1@refs%2Fpr%2F1/b c.pt", HuggingFace("org/re.po-1", "refs/pr/1", "b c.pt")),
        (
            "https://huggingface.co/org/repo/resolve/main/a/b.pt?download=true",
            HuggingFace("org/repo", "main", "a/b.pt"),
        ),
        ("https://huggingface.co/org/repo/blob/v1/b%20c.pt", HuggingFace("org/repo", "v1", "b c.pt")),
        ("https://hf.co/datasets/org/repo/resolve/main/b.pt", HuggingFace("datasets/org/repo", "main", "b.pt")),
        ("https://huggingface.co/org/repo", Web("https://huggingface.co/org/repo")),
        ("civitai:2514310", Civitai("2514310")),
        ("civitai:827184@2514310", Civitai("2514310")),
        ("https://civitai.com/api/download/models/7?token=secret", Civitai("7")),
        ("https://civitai.com/api/download/models/7?fp=fp16&type=Model", Civitai("7", "type=Model&fp=fp16")),
        ("https://civitai.com/models/5/name?modelVersionId=7", Civitai("7")),
        ("https://host/a/b%20c.pt?x=1", Web("https://host/a/b%20c.pt?x=1")),
        ("http://host:81/a.pt", Web("http://host:81/a.pt")),
    ],
)
def test_the_usual_ways_to_write_a_source_are_understood(text: str, expected: Source) -> None:
    assert source.of_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "ftp://host/a", "file:///etc/passwd", "hf:repo/a.pt", "hf:org/repo", "hf:org/repo@/a.pt",
        "hf:../repo/a.pt", "civitai:", "civitai:x", "civitai:1/2", "https://", "https://[", "https://host/a b",
        "https://civitai.com/models/5/name", "civitai:" + "1" * 30, "https://h/\x1b[0m",
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|is a model's page"):
        source.of_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf:org/repo/../a.pt", "hf:org/repo@main/a/../../b.pt", "hf:org/repo@../b.pt", "hf:org/repo@../c/b.pt",
        "https://huggingface.co/org/repo/resolve/main/..%2F..%2Fb.pt",
        "https://huggingface.co/org/repo/resolve/../b.pt",
    ],
)  # fmt: skip
def test_d7_g8_a_file_that_leaves_its_repository_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        source.of_text(text)


def test_no_login_and_no_query_of_an_address_stands_in_a_message() -> None:
    for text in ("https://user:secret@civitai.com/models/5?key=secret", "https://user:secret@host/a b?key=secret"):
        with pytest.raises(ValueError, match=r"civitai|host") as refused:
            source.of_text(text)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("hf:o/r@refs%2Fpr%2F1/a/b c#1.pt", "https://mirror/hub/o/r/resolve/refs%2Fpr%2F1/a/b%20c%231.pt", "b c#1.pt"),
        ("civitai:7", "https://civitai.com/api/download/models/7", ""),
        ("https://civitai.com/api/download/models/7?fp=fp16", "https://civitai.com/api/download/models/7?fp=fp16", ""),
        ("https://host/a/b%20c.pt?x=1", "https://host/a/b%20c.pt?x=1", "b c.pt"),
    ],
)  # fmt: skip
def test_a_mirror_s_address_and_the_file_s_name_follow_from_the_source(text: str, expected: str, name: str) -> None:
    found = source.of_text(text)
    assert source.address(found, Endpoints("https://mirror/hub")) == expected
    assert found.file == name


@given(
    st.from_regex(r"[a-z][a-z0-9.-]{0,9}/[a-z][a-z0-9._-]{0,9}", fullmatch=True),
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}(/[a-z0-9]{1,9})?", fullmatch=True),
    st.from_regex(r"[^\W_][\w%#?&+=@é -]{0,9}(?<! )(/[^\W_][\w %#?&=@-]{0,9})?\.pt", fullmatch=True),
)
def test_the_address_of_a_repository_s_file_means_the_same_file(repo: str, revision: str, path: str) -> None:
    file = HuggingFace(repo, revision, path)
    text = source.address(file, Endpoints())
    assert source.of_text(text) == file
    assert source.canonical(text) == text


@given(st.text(max_size=40) | st.text(st.sampled_from("htps:/.@ab[]?#%\0"), max_size=30))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    for prefix in ("", "hf:org/repo/", "https://huggingface.co/", "https://"):
        found = source.canonical(prefix + text)
        assert found == "" or found.startswith(("http://", "https://"))
