"""Tiny real Git repositories."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod import proc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WHO = ("-c", "user.name=kit", "-c", "user.email=kit@example.invalid", "-c", "commit.gpgsign=false")
# The same contents are the same commits on every machine.
_DATE = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}


def write_tree(folder: Path, contents: Mapping[str, str]) -> Path:
    """Write files by their relative names below a folder, which is made when missing."""
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@dataclass(frozen=True)
class Repository:
    """A repository with a work tree at `folder`; its branch is `main`."""

    folder: Path

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def commit(self, contents: Mapping[str, str], *, tag: str | None = None) -> str:
        """Add or replace files and commit them; return the commit."""
        write_tree(self.folder, contents)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")
        if tag is not None:
            self.git("tag", "--annotate", "--message", tag, tag)
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        done = proc.run(["git", "-C", str(self.folder), *_WHO, *arguments], seconds=30, env={**os.environ, **_DATE})
        if not done.ok:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()


def make_repository(folder: Path, contents: Mapping[str, str], *, tag: str | None = None) -> Repository:
    """Make a repository with one commit."""
    folder.mkdir(parents=True)
    repository = Repository(folder)
    repository.git("init", "--quiet", "--initial-branch=main")
    repository.commit(contents, tag=tag)
    return repository
