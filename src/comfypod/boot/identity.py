"""Who the services of an image run as, so that whatever is written to the volume belongs to its owner.

Boot itself becomes that user, so nothing ever needs a recursive chown. Owner and mode of what boot did not make stay as
they are, with one exception: the workspace folder itself, while it is empty and root's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import HostError, Problem, StorageError
from comfypod.release import USER_FOLDERS
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NAME = "comfypod"
_USUAL = 1000
_ROOT = 0
# prctl(2): programs with the setuid bit give no rights any more.
_NO_NEW_PRIVS = 38
# A new ext4 file system holds this one, and it is root's.
_NOT_CONTENT = frozenset({"lost+found"})


@dataclass(frozen=True, slots=True)
class Identity:
    """User and group of everything that boot does, why (`told`), and what is wrong with that."""

    uid: int
    gid: int
    told: str
    problem: Problem | None = None
    chosen: bool = False

    def shown(self) -> dict[str, int | str]:
        """Return it as it stands in `/status`."""
        return {"uid": self.uid, "gid": self.gid, "reason": self.told}


@dataclass(frozen=True, slots=True)
class Folder:
    """The workspace folder as it was found.

    `records` is who owns the records of earlier boots in it, or else what is mounted below it; None without any. `made`
    are the folders that the engine made for those mounts.
    """

    uid: int
    gid: int
    empty: bool
    records: tuple[int, int] | None = None
    made: tuple[Path, ...] = ()


def current(told: str = "the user that started it") -> Identity:
    """Return the identity that this process has now."""
    return Identity(os.geteuid(), os.getegid(), told)


def made_for(workspace: Path, mounts: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders that the engine made to mount something below the workspace, itself first.

    They belong to the container and hold nothing but each other and what is mounted; none where they hold more. A
    mounted folder that is empty and root's was made by the engine, too.
    """
    made = {parent for mount in mounts for parent in mount.parents if parent.is_relative_to(workspace)}
    known = {*made, *mounts}
    try:
        if not all(entry in known for folder in made for entry in folder.iterdir()):
            return ()
        new = {mount for mount in mounts if mount.stat().st_uid == _ROOT and mount.is_dir() and not os.listdir(mount)}
    except OSError:
        return ()
    return tuple(sorted(made | new))


def look(workspace: Path, mounts: Sequence[Path] = ()) -> Folder | None:
    """Look at the workspace folder, and at what is mounted below it; None when it is not there."""
    try:
        facts = workspace.stat()
    except FileNotFoundError:
        return None
    try:
        empty = _NOT_CONTENT.issuperset(os.listdir(workspace))
    except OSError:
        empty = False
    records = None
    with contextlib.suppress(OSError):
        kept = Layout(workspace).records.lstat()
        records = (kept.st_uid, kept.st_gid)
    if made := made_for(workspace, mounts):
        owners = [(about.st_uid, about.st_gid) for about in map(Path.stat, mounts) if about.st_uid != _ROOT]
        return Folder(facts.st_uid, facts.st_gid, empty=True, records=next(iter(owners), None), made=made)
    return Folder(facts.st_uid, facts.st_gid, empty, records)


def decide(euid: int, egid: int, puid: str, pgid: str, folder: Folder | None) -> Identity:
    """Say who the services should be. Pure; `puid` and `pgid` are empty when not given."""
    if euid != _ROOT:
        ignored = "; PUID and PGID have no effect without root" if puid or pgid else ""
        return Identity(euid, egid, f"the container's user{ignored}")
    if puid or pgid:
        uid = int(puid or _USUAL)
        return Identity(uid, int(pgid or uid), "PUID and PGID", chosen=True)
    if folder is not None and folder.uid == _ROOT and folder.records is not None and folder.records[0] != _ROOT:
        whose = "of what is mounted in the workspace" if folder.made else "of the workspace's records"
        return Identity(*folder.records, f"the owner {whose}")
    if folder is None or (folder.uid == _ROOT and folder.empty):
        return Identity(_USUAL, _USUAL, "the usual user, for a new workspace")
    if folder.uid != _ROOT:
        return Identity(folder.uid, folder.gid, "the owner of the workspace")
    return _as_root(egid, "the workspace is root's and has contents")


def take_on(workspace: Path, puid: str, pgid: str, mounts: Sequence[Path] = ()) -> Identity:
    """Become who `decide` says, as far as this container and this volume allow; root can be had back until `settle`.

    Raises:
        StorageError: a user that was asked for cannot use the workspace.
        OSError: the workspace folder cannot be made.
    """
    folder = look(workspace, mounts)
    wanted = decide(os.geteuid(), os.getegid(), puid, pgid, folder)
    if (wanted.uid, wanted.gid) == (os.geteuid(), os.getegid()):
        if (path := blocked(workspace)) is not None:
            raise _unusable(path, wanted)
        return wanted
    if folder is None:
        workspace.mkdir(parents=True, exist_ok=True)
    try:
        assume(wanted.uid, wanted.gid)
    except OSError as error:
        hint = (
            f"start it with the right to (--cap-add SETUID --cap-add SETGID), or with --user {wanted.uid}:{wanted.gid}"
        )
        return _as_root(os.getegid(), f"changing to {wanted.uid}:{wanted.gid} was refused ({error.strerror})", hint)
    ours = folder.made if folder is not None and folder.made else (workspace,)
    giveable = folder is None or (folder.empty and folder.uid == _ROOT)
    return _settled_with(wanted, workspace, ours if giveable else ())


def _settled_with(wanted: Identity, workspace: Path, giveable: Sequence[Path]) -> Identity:
    """Make sure that the workspace can be used as who we are now, or become root again."""
    path = blocked(workspace)
    if path is None:
        return wanted
    if giveable:
        try:
            with as_root():
                for folder in giveable:
                    os.chown(folder, wanted.uid, wanted.gid, follow_symlinks=False)
        except OSError as error:
            _give_up()
            return _as_root(_ROOT, f"giving {workspace} to {wanted.uid}:{wanted.gid} was refused ({error.strerror})")
        path = blocked(workspace)
        if path is None:
            return wanted
    # Not as root: whoever owns the volume could otherwise become root by closing a folder.
    raise _unusable(path, wanted)


def assume(uid: int, gid: int) -> None:
    """Become another user and group, in every thread; groups of the process other than root's own are kept.

    The saved user id stays, so that `as_root` can go back until `settle`.

    Raises:
        OSError: the container lacks the right, or knows no such user; nothing has changed then.
    """
    groups, gids, saved = os.getgroups(), os.getresgid(), os.geteuid()
    os.setgroups(sorted({gid, *(group for group in groups if group != _ROOT)}))
    try:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, saved)
    except OSError:
        os.setresgid(*gids)
        os.setgroups(groups)
        raise


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """Have root's rights for a moment, where they were kept; otherwise stay as we are."""
    uid = os.geteuid()
    if os.getresuid()[2] != _ROOT:
        yield
        return
    os.seteuid(_ROOT)
    try:
        yield
    finally:
        os.seteuid(uid)


def _give_up() -> None:
    """Be root again, for good."""
    os.seteuid(_ROOT)
    os.setresuid(_ROOT, _ROOT, _ROOT)
    os.setresgid(_ROOT, _ROOT, _ROOT)


def settle() -> None:
    """Give up the way back for good.

    Raises:
        HostError: that did not work; nothing may be started then.
    """
    uid, gid = os.geteuid(), os.getegid()
    if os.getresuid() != (uid, uid, uid):
        os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise HostError("root could not be given up", "start the container with --user and the owner of the workspace")


def renounce() -> None:
    """Let no setuid program give rights to what this thread starts from now on; root keeps what it has."""
    import ctypes

    if os.geteuid() != _ROOT:
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)


def blocked(workspace: Path) -> Path | None:
    """Return the folder that we have to write to and may not; a read-only file system is not judged here."""
    layout = Layout(workspace)
    wanted = [files.nearest_folder(workspace)]
    if any(not os.path.lexists(layout.comfyui / name) for name in USER_FOLDERS):
        wanted.append(layout.comfyui)
    wanted.append(layout.records)
    return next((path for path in wanted if path.is_dir() and not _may_write(path)), None)


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK) or bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _as_root(gid: int, why: str, hint: str = "") -> Identity:
    usual = f"`chown -R {_USUAL}:{_USUAL}` the volume once and set PUID={_USUAL}; PUID=0 says that root is meant"
    problem = Problem("runs-as-root", f"ComfyUI and JupyterLab run as root: {why}", hint or usual)
    return Identity(_ROOT, gid, why, problem)


def _described(path: Path) -> str:
    facts = path.stat()
    return f"{path} belongs to {facts.st_uid}:{facts.st_gid} (mode {stat.S_IMODE(facts.st_mode):04o})"


def _unusable(path: Path, wanted: Identity) -> StorageError:
    facts = path.stat()
    theirs = f"{facts.st_uid}:{facts.st_gid}"
    other = f"PUID={facts.st_uid} PGID={facts.st_gid}" if wanted.chosen else f"--user {theirs}"
    return StorageError(
        f"{_described(path)} and cannot be written by {wanted.uid}:{wanted.gid}",
        f"run `chown -R {wanted.uid}:{wanted.gid}` on it once, or start the container with {other}",
    )


def environ(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return an environment in which programs find a name and a home: their own, or `home`, which is then made.

    Raises:
        OSError: `home` cannot be made.
    """
    changed = dict.fromkeys(("USER", "LOGNAME"), _name())
    given = Path(environment.get("HOME", ""))
    if not (given.is_absolute() and os.access(given, os.W_OK | os.X_OK) and given.is_dir()):
        home.mkdir(mode=0o700, exist_ok=True)
        changed["HOME"] = str(home)
    return {**environment, **changed}


def _name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return NAME
