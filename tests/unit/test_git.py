from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import git
from comfypod.errors import SourceError, UsageError
from tests.kit.repos import Repository, make_repository

URL = "https://example.invalid/a.git"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repo", {"main.py": "print()\n", "sub/x.txt": "one\ntwo\n"}, tag="v1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the user's own, for settings in `.gitconfig`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return home


def test_every_kind_of_name_leads_to_its_commit(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    second = repository.commit({"main.py": "2\n"})
    repository.git("tag", "light")
    repository.git("branch", "feature/a+b", first)
    names = ("v1", "light", "main", "feature/a+b", "HEAD", "refs/heads/main")
    assert [git.resolve(repository.url, name) for name in names] == [first, second, second, first, second, second]
    assert git.resolve(str(repository.folder), "main") == second


def test_a_tag_goes_before_a_branch_of_its_name(repository: Repository) -> None:
    tagged = repository.git("rev-parse", "HEAD")
    repository.commit({"main.py": "2\n"})
    repository.git("branch", "v1")
    assert git.resolve(repository.url, "v1") == tagged


def test_a_branch_whose_last_part_is_the_name_is_another_branch(repository: Repository) -> None:
    repository.git("branch", "mine/next")
    with pytest.raises(SourceError, match="has no commit, tag or branch 'next'"):
        git.resolve(repository.url, "next")


@pytest.mark.parametrize("length", [40, 64])
def test_a_full_commit_is_believed_without_asking(length: int) -> None:
    assert git.resolve(URL, "a" * length) == "a" * length


@given(st.text(max_size=70))
def test_only_40_or_64_lower_hex_digits_are_a_commit(text: str) -> None:
    assert git.is_commit(text) is (len(text) in (40, 64) and set(text) <= set("0123456789abcdef"))


@pytest.mark.parametrize(
    "reference", ["-h", "--upload-pack=x", "a..b", "main\n", "a b", "", "a:b", "^main", "~1", "@{u}", "a\0b"]
)
def test_a_name_that_git_could_read_as_something_else_is_refused(reference: str) -> None:
    with pytest.raises(SourceError, match="is not a commit, tag or branch name"):
        git.resolve(URL, reference)


@pytest.mark.parametrize(
    "url", ["--upload-pack=x", "ext::sh -c id", "relative/path", "https://h/a b", "https://h/a\n", "", "fd::3"]
)
def test_an_address_that_is_none_is_refused_with_those_that_are(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a Git address") as caught:
        git.resolve(url, "main")
    assert "https://" in caught.value.hint
    with pytest.raises(SourceError):
        git.export(url, "main", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_the_files_of_one_commit_and_nothing_of_git(repository: Repository, tmp_path: Path) -> None:
    commit = repository.git("rev-parse", "HEAD")
    repository.commit({"main.py": "newer\n", "later.py": ""})
    assert git.export(repository.url, "v1", tmp_path / "out") == commit
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["main.py", "sub/x.txt"]
    assert (tmp_path / "out" / "main.py").read_text() == "print()\n"


def test_an_export_fetches_one_commit_of_the_history(repository: Repository, tmp_path: Path) -> None:
    for number in range(5):
        repository.commit({"main.py": f"{number}\n"})
    git.export(repository.url, "main", tmp_path / "out")
    store = Repository(tmp_path / "out.git")
    assert store.git("rev-list", "--all", "--count", "FETCH_HEAD") == "1"
    assert store.git("rev-parse", "--is-shallow-repository") == "true"


def test_a_commit_that_is_no_name_is_exported_too(repository: Repository, tmp_path: Path) -> None:
    first = repository.git("rev-parse", "HEAD~0")
    repository.commit({"main.py": "newer\n"})
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    assert git.export(repository.url, first, tmp_path / "out") == first
    assert (tmp_path / "out" / "main.py").read_text() == "print()\n"


def test_what_is_not_there_is_named_with_its_address(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no commit, tag or branch 'v9'"):
        git.resolve(repository.url, "v9")
    with pytest.raises(SourceError, match=f"file://{tmp_path}/none is not reachable"):
        git.resolve(f"file://{tmp_path}/none", "main")
    with pytest.raises(SourceError, match=f"{repository.url} at {'0' * 40}"):
        git.export(repository.url, "0" * 40, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "_REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(SourceError, match="no answer in time"):
            git.resolve(url, "main")


def test_no_password_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called, asked = tmp_path / "called", tmp_path / "asked"
    for name, line in (("ssh", f'echo "$@" >> {called}; exit 1'), ("helper", f"touch {asked}; echo x")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("GIT_ASKPASS", "SSH_ASKPASS", "GIT_SSH_COMMAND"):
        monkeypatch.setenv(name, str(tmp_path / "helper"))
    with pytest.raises(SourceError, match="is not reachable"):
        git.resolve("git@127.0.0.1:a.git", "main")
    assert "-oBatchMode=yes" in called.read_text()
    assert not asked.exists()


def test_hooks_of_the_users_do_not_run(repository: Repository, home: Path, tmp_path: Path) -> None:
    hooks, ran = tmp_path / "template" / "hooks", tmp_path / "ran"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\necho $0 >> {ran}\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f'[init]\n\ttemplateDir = "{tmp_path / "template"}"\n[core]\n\thooksPath = "{hooks}"\n'
    )
    git.export(repository.url, "main", tmp_path / "out")
    assert not ran.exists()


def test_line_ends_are_those_of_the_commit(repository: Repository, home: Path, tmp_path: Path) -> None:
    (home / ".gitconfig").write_text("[core]\n\tautocrlf = true\n\teol = crlf\n")
    git.export(repository.url, "main", tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "x.txt").read_bytes() == b"one\ntwo\n"


def test_a_git_environment_of_the_callers_is_not_used(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_repository(tmp_path / "other", {"other.py": ""})
    before = other.git("for-each-ref")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.folder))
    git.export(repository.url, "main", tmp_path / "out")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert (tmp_path / "out" / "main.py").is_file()
    assert other.git("for-each-ref") == before


MIRRORS = "https://github.com/=http://127.0.0.1:8000/ https://github.com/me/=file:///srv/me/\ngit@host:=/srv/host/"


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://github.com/you/n.git", "http://127.0.0.1:8000/you/n.git"),
        ("https://github.com/me/n.git", "file:///srv/me/n.git"),
        ("git@host:me/n.git", "/srv/host/me/n.git"),
        ("https://gitlab.com/me/n.git", "https://gitlab.com/me/n.git"),
        ("http://github.com/you/n.git", "http://github.com/you/n.git"),
    ],
)
def test_the_longest_part_that_a_mirror_serves_is_replaced(url: str, asked: str) -> None:
    assert git.mirrored(url, {"COMFYPOD_GIT_MIRRORS": MIRRORS}) == asked
    assert git.mirrored(url, {"COMFYPOD_GIT_MIRRORS": " ".join(reversed(MIRRORS.split()))}) == asked
    assert git.mirrored(url, {}) == git.mirrored(url, {"COMFYPOD_GIT_MIRRORS": " "}) == url


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/",
        "=file:///srv/",
        "https://github.com/=",
        "github.com=file:///srv/",
        "https://h/=--upload",
        "x",
    ],
)
def test_mirrors_that_are_written_wrong_are_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(UsageError, match="is not FROM=TO") as caught:
        git.mirrored(URL, {"COMFYPOD_GIT_MIRRORS": f"https://a/=https://b/ {text}"})
    assert 'COMFYPOD_GIT_MIRRORS="https://github.com/=http://127.0.0.1:8000/"' in caught.value.hint


def test_a_login_of_a_mirror_is_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        git.mirrored(URL, {"COMFYPOD_GIT_MIRRORS": "https://me:secret@h/"})
    assert "secret" not in caught.value.message


def test_what_a_mirror_has_is_resolved_and_exported(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYPOD_GIT_MIRRORS", f"https://example.invalid/=file://{tmp_path}/")
    commit = repository.git("rev-parse", "HEAD")
    url = "https://example.invalid/repo"
    assert git.resolve(url, "v1") == commit
    assert git.export(url, commit, tmp_path / "out") == commit
    assert (tmp_path / "out" / "main.py").read_text() == "print()\n"


def test_a_mirror_that_fails_is_named_beside_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYPOD_GIT_MIRRORS", f"https://example.invalid/=file://{tmp_path}/")
    through = f"https://example.invalid/a.git through file://{tmp_path}/a.git"
    with pytest.raises(SourceError, match=f"^{through} is not reachable"):
        git.resolve(URL, "main")
    with pytest.raises(SourceError, match=f"^{through} at {'0' * 40}"):
        git.export(URL, "0" * 40, tmp_path / "out")


@pytest.mark.root
def test_f5_a_repository_of_another_user_is_read(repository: Repository, tmp_path: Path) -> None:
    commit = repository.git("rev-parse", "HEAD")
    for folder, names, found in os.walk(repository.folder):
        for name in (".", *names, *found):
            os.chown(Path(folder, name), 12345, 12345)
    assert git.resolve(repository.url, "v1") == commit
    assert git.export(repository.url, "v1", tmp_path / "out") == commit


def test_a_clone_is_one_commit_that_git_knows_the_origin_of(repository: Repository, tmp_path: Path) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.commit({"main.py": "2\n"})
    target = tmp_path / "clone"
    assert git.clone(repository.url, "v1", target) == first
    clone = Repository(target)
    assert clone.git("rev-list", "--all", "HEAD") == first
    assert clone.git("remote", "get-url", "origin") == repository.url
    assert clone.git("status", "--porcelain") == ""


def test_submodules_of_a_mirrored_repository_come_from_the_mirror(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = make_repository(tmp_path / "inner", {"part.py": "x = 1\n"})
    far = "https://far.invalid/"
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.url, "inner")
    repository.git("config", "--file", ".gitmodules", "submodule.inner.url", f"{far}inner")
    repository.commit({})
    monkeypatch.setenv(git.MIRRORS, f"{far}=file://{tmp_path}/")
    git.clone(f"{far}repo", "main", tmp_path / "clone")
    assert (tmp_path / "clone" / "inner" / "part.py").read_text() == "x = 1\n"
