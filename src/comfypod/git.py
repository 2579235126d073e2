"""The only Git door: never prompts, never reads the user's hooks, every call bounded."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.download.address import shown
from comfypod.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MIRRORS = "COMFYPOD_GIT_MIRRORS"
_REACH_SECONDS = 15.0
_FETCH_SECONDS = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_SUBMODULES = ("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
_URL = re.compile(r"((https?|ssh|git|file)://|[\w.-]+@[\w.-]+:|/)[^\s\x00-\x1f]*")


def is_commit(text: str) -> bool:
    """Tell a full object name from a branch or a tag."""
    return _COMMIT.fullmatch(text) is not None


def mirrored(url: str, environ: Mapping[str, str]) -> str:
    """Return the address that Git asks in place of `url`, which is `url` where no mirror serves it.

    `COMFYPOD_GIT_MIRRORS` holds pairs FROM=TO, parted by spaces; the longest FROM that `url` begins with wins.

    Raises:
        UsageError: the variable is not written like that.
    """
    serving = [pair for pair in _mirrors(environ.get(MIRRORS, "")) if url.startswith(pair[0])]
    if not serving:
        return url
    prefix, place = max(serving, key=lambda pair: len(pair[0]))
    return place + url.removeprefix(prefix)


def _mirrors(text: str) -> Iterator[tuple[str, str]]:
    for pair in text.split():
        prefix, _, place = pair.partition("=")
        if not _URL.fullmatch(prefix) or not _URL.fullmatch(place):
            raise UsageError(
                f"{MIRRORS}: {shown(pair)!r} is not FROM=TO with two Git addresses",
                f'write it like {MIRRORS}="https://github.com/=http://127.0.0.1:8000/", pairs parted by spaces',
            )
        yield prefix, place


def _named(url: str, place: str) -> str:
    """Name an address in a message, and the mirror that was asked for it."""
    return shown(url) if place == url else f"{shown(url)} through {shown(place)}"


def _git(*arguments: str, seconds: float, tick: Callable[[], None] | None = None) -> proc.Completed:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "SSL" in name},
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ASKPASS": "true",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
        "LC_ALL": "C",
    }
    options = ("-c", "core.hooksPath=/dev/null", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=20")
    return proc.run([proc.find_program("git"), *options, *arguments], seconds=seconds, env=env, tick=tick)


def ensure_address(url: str, reference: str) -> None:
    """Refuse what Git could read as an option, a program to run, or a path of its own.

    Raises:
        SourceError: it is no address, or no name of a commit, tag or branch.
    """
    if not _URL.fullmatch(url):
        raise SourceError(f"{shown(url)!r} is not a Git address", "use https://, ssh:// or an absolute path")
    if not _REFERENCE.fullmatch(reference) or ".." in reference:
        raise SourceError(f"{reference!r} is not a commit, tag or branch name")


def _upload_pack(url: str) -> tuple[str, ...]:
    """Let a repository on this machine be read whoever owns it; what comes from it is checked by digest."""
    local = url.startswith(("/", "file://"))
    return ("--upload-pack=git -c safe.directory=* upload-pack",) if local else ()


def resolve(url: str, reference: str) -> str:
    """Return the commit that a tag, a branch or `HEAD` names now; a full commit is returned as it is.

    Raises:
        SourceError: not reachable within 15 seconds, or there is no such name.
        UsageError: see `mirrored`.
    """
    ensure_address(url, reference)
    if is_commit(reference):
        return reference
    place = mirrored(url, os.environ)
    done = _git("ls-remote", *_upload_pack(place), "--", place, reference, f"{reference}^{{}}", seconds=_REACH_SECONDS)
    if not done.ok:
        raise SourceError(f"{_named(url, place)} is not reachable: {_last_line(done)}")
    rows = (line.split("\t", 1) for line in done.stdout.splitlines())
    commits = {name: commit for commit, name in rows}
    for name in (f"refs/tags/{reference}^{{}}", f"refs/tags/{reference}", f"refs/heads/{reference}", reference):
        if name in commits:
            return commits[name]
    raise SourceError(f"{_named(url, place)} has no commit, tag or branch {reference!r}")


def export(url: str, reference: str, target: Path, tick: Callable[[], None] | None = None) -> str:
    """Put the files of one commit, fetched shallow, into the new folder `target` without `.git`; return the commit.

    Raises:
        SourceError: not reachable, no such commit, or the transfer broke.
        UsageError: see `mirrored`.
    """
    commit, place = resolve(url, reference), mirrored(url, os.environ)
    store = target.with_name(target.name + ".git")
    inside = ("-C", str(store))
    work = ("-c", "core.autocrlf=false", f"--work-tree={target}")
    for arguments in (
        ("init", "--quiet", "--bare", str(store)),
        (*inside, "fetch", "--quiet", "--depth=1", *_upload_pack(place), "--", place, commit),
    ):
        _step(url, place, commit, arguments, tick)
    target.mkdir()
    _step(url, place, commit, (*inside, *work, "checkout", "--quiet", "--force", commit, "--", "."), tick)
    return commit


def clone(url: str, reference: str, target: Path, tick: Callable[[], None] | None = None) -> str:
    """Put one commit, fetched shallow, with its submodules into the new folder `target`; return the commit.

    Git knows the folder afterwards as a clone of `url`, without a login that may stand in it.

    Raises:
        SourceError: not reachable, no such commit, or the transfer broke.
        UsageError: see `mirrored`.
    """
    commit, place = resolve(url, reference), mirrored(url, os.environ)
    inside, upload = ("-C", str(target)), _upload_pack(place)
    steps = [
        ("init", "--quiet", str(target)),
        (*inside, "remote", "add", "origin", shown(url)),
        (*inside, "fetch", "--quiet", "--depth=1", *upload, "--", place, commit),
        (*inside, "-c", "core.autocrlf=false", "-c", "advice.detachedHead=false", "checkout", "--quiet", commit),
    ]
    for arguments in steps:
        _step(url, place, commit, arguments, tick)
    if (target / ".gitmodules").is_file():
        _step(url, place, commit, (*inside, *_mirror_options(place), *_SUBMODULES), tick)
    return commit


def _step(url: str, place: str, commit: str, arguments: tuple[str, ...], tick: Callable[[], None] | None) -> None:
    done = _git(*arguments, seconds=_FETCH_SECONDS, tick=tick)
    if not done.ok:
        raise SourceError(f"{_named(url, place)} at {commit}: {_last_line(done)}")


def _mirror_options(place: str) -> Iterator[str]:
    """Yield what makes Git ask mirrors for submodules too; folders of this machine only where it came from one."""
    for prefix, mirror in _mirrors(os.environ.get(MIRRORS, "")):
        yield from ("-c", f"url.{mirror}.insteadOf={prefix}")
    if place.startswith(("/", "file://")):
        yield from ("-c", "protocol.file.allow=always", "-c", "safe.directory=*")


def _last_line(done: proc.Completed) -> str:
    if done.timed_out:
        return "no answer in time"
    lines = done.stderr.strip().splitlines()
    fatal = [line for line in lines if line.startswith("fatal:")]
    return (fatal or lines[-1:] or [f"git ended with {done.returncode}"])[0]
