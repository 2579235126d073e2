"""Scenarios F1 and F2 in small: real users in forked processes, on real folders."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import identity
from comfypod.boot.identity import Folder, Identity, decide
from comfypod.errors import StorageError
from tests.kit import users

if TYPE_CHECKING:
    from collections.abc import Iterator

_IDS = st.integers(0, 2**32 - 2)
_FOLDERS = st.none() | st.builds(Folder, _IDS, _IDS, st.booleans(), st.none() | st.tuples(_IDS, _IDS))
_GIVEN = st.just("") | _IDS.map(str)
NEW = Folder(0, 0, empty=True)
ROOTS = Folder(0, 0, empty=False)


@pytest.fixture
def workspace() -> Iterator[Path]:
    with users.common_folder() as folder:
        (folder / "workspace").mkdir(mode=0o755)
        yield folder / "workspace"


def status_of(task: Path) -> str:
    """Return what the kernel says of a thread; one that has just ended says nothing."""
    try:
        return (task / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def fill(workspace: Path) -> None:
    """Make a folder look used."""
    (workspace / "mine.txt").write_text("mine")


@pytest.mark.parametrize(
    ("puid", "pgid", "folder", "expected"),
    [
        ("", "", None, (1000, 1000)),
        ("", "", NEW, (1000, 1000)),
        ("", "", Folder(33, 44, empty=False), (33, 44)),
        ("", "", Folder(33, 44, empty=True), (33, 44)),
        ("", "", ROOTS, (0, 0)),
        ("", "", Folder(0, 0, empty=False, records=(0, 0)), (0, 0)),
        ("", "", Folder(0, 0, empty=False, records=(33, 44)), (33, 44)),
        ("", "", Folder(0, 0, empty=True, made=(Path("/workspace"),)), (1000, 1000)),
        ("", "", Folder(0, 0, empty=True, records=(33, 44), made=(Path("/workspace"),)), (33, 44)),
        ("7", "", ROOTS, (7, 7)),
        ("7", "8", NEW, (7, 8)),
        ("", "8", NEW, (1000, 8)),
        ("0", "", Folder(33, 44, empty=False), (0, 0)),
    ],
)
def test_f1_root_becomes_who_was_asked_for_or_who_owns_the_workspace(
    puid: str, pgid: str, folder: Folder | None, expected: tuple[int, int]
) -> None:
    found = decide(0, 0, puid, pgid, folder)
    assert (found.uid, found.gid) == expected
    assert found.told


def test_root_is_a_problem_only_where_nobody_asked_for_it() -> None:
    problem = decide(0, 0, "", "", ROOTS).problem
    assert problem is not None
    assert problem.code == "runs-as-root"
    assert "chown -R" in problem.hint
    assert "PUID" in problem.hint
    assert decide(0, 0, "0", "", ROOTS).problem is None


@given(_IDS.filter(bool), _IDS, _GIVEN, _GIVEN, _FOLDERS)
def test_f1_whoever_is_not_root_stays_who_they_are(
    uid: int, gid: int, puid: str, pgid: str, folder: Folder | None
) -> None:
    found = decide(uid, gid, puid, pgid, folder)
    assert (found.uid, found.gid, found.problem) == (uid, gid, None)
    assert ("no effect" in found.told) is bool(puid or pgid)


@given(_GIVEN, _GIVEN, _FOLDERS)
def test_root_runs_services_only_when_asked_for_or_told_as_a_problem(
    puid: str, pgid: str, folder: Folder | None
) -> None:
    found = decide(0, 0, puid, pgid, folder)
    assert found.uid != 0 or puid == "0" or found.problem is not None


@pytest.mark.root
def test_f1_a_dropped_process_has_no_way_back_in_any_thread() -> None:
    def become() -> None:
        identity.assume(1234, 5678)
        identity.settle()

    def drop() -> tuple[tuple[int, ...], tuple[int, ...], list[int], set[str]]:
        holding = threading.Event()
        waiting = threading.Thread(target=holding.wait)
        waiting.start()
        worker = threading.Thread(target=become)
        worker.start()
        worker.join()
        lines = {
            line
            for task in Path("/proc/self/task").iterdir()
            for line in status_of(task).splitlines()
            if line.startswith(("Uid", "Gid", "CapEff", "CapPrm"))
        }
        holding.set()
        waiting.join()
        for attempt in (os.seteuid, os.setuid, os.setgid):
            with pytest.raises(PermissionError):
                attempt(0)
        with pytest.raises(PermissionError):
            os.setgroups([0])
        with identity.as_root():
            assert os.geteuid() == 1234
        return os.getresuid(), os.getresgid(), os.getgroups(), lines

    uids, gids, groups, lines = users.in_child(drop)
    assert (uids, gids, groups) == ((1234,) * 3, (5678,) * 3, [5678])
    zero = "0000000000000000"
    same = "\t".join(["1234"] * 4), "\t".join(["5678"] * 4)
    assert lines == {f"Uid:\t{same[0]}", f"Gid:\t{same[1]}", f"CapEff:\t{zero}", f"CapPrm:\t{zero}"}


@pytest.mark.root
def test_groups_that_the_container_was_given_are_kept_and_roots_is_not() -> None:
    def drop() -> list[int]:
        os.setgroups([0, 44, 109])
        identity.assume(1234, 5678)
        return os.getgroups()

    assert users.in_child(drop) == [44, 109, 5678]


@pytest.mark.root
def test_root_can_be_had_for_a_moment_until_all_is_settled(workspace: Path) -> None:
    def work() -> list[int]:
        identity.assume(1234, 1234)
        seen = [os.geteuid()]
        with identity.as_root():
            seen.append(os.geteuid())
        seen.append(os.geteuid())
        identity.settle()
        with identity.as_root():
            seen.append(os.geteuid())
        return seen

    assert users.in_child(work) == [1234, 0, 1234, 1234]


def taken(workspace: Path, puid: str = "", pgid: str = "", drop: tuple[int, ...] = ()) -> tuple[Identity, int, int]:
    """Take on an identity in a process of its own; return it with the user and group that a new file there has."""

    def take() -> tuple[Identity, int, int]:
        users.drop_capabilities(*drop)
        found = identity.take_on(workspace, puid, pgid)
        identity.settle()
        (workspace / "new").touch()
        facts = (workspace / "new").stat()
        return found, facts.st_uid, facts.st_gid

    return users.in_child(take)


@pytest.mark.root
@pytest.mark.parametrize("there", [True, False])
def test_f1_an_empty_workspace_of_roots_is_given_to_the_usual_user(workspace: Path, there: bool) -> None:
    if not there:
        workspace.rmdir()
    found, uid, gid = taken(workspace)
    assert (found.uid, found.gid, found.problem) == (1000, 1000, None)
    assert (uid, gid) == (1000, 1000)
    assert (workspace.stat().st_uid, workspace.stat().st_mode & 0o777) == (1000, 0o755)
    again, uid, _ = taken(workspace)
    assert (again.uid, again.problem, uid) == (1000, None, 1000)


@pytest.mark.root
def test_f1_a_new_disk_with_its_lost_and_found_counts_as_empty(workspace: Path) -> None:
    (workspace / "lost+found").mkdir(mode=0o700)
    assert taken(workspace)[0].uid == 1000
    assert (workspace / "lost+found").stat().st_uid == 0


@pytest.mark.root
def test_f1_puid_and_pgid_get_the_files(workspace: Path) -> None:
    found, uid, gid = taken(workspace, "4321", "8765")
    assert (found.uid, found.gid, found.problem, uid, gid) == (4321, 8765, None, 4321, 8765)


@pytest.mark.root
def test_f1_an_old_volume_of_roots_is_used_as_root_and_left_as_it_is(workspace: Path) -> None:
    fill(workspace)
    found, uid, _ = taken(workspace)
    assert (found.uid, uid) == (0, 0)
    assert found.problem is not None
    assert found.problem.code == "runs-as-root"
    assert (workspace.stat().st_uid, (workspace / "mine.txt").stat().st_uid) == (0, 0)


@pytest.mark.root
def test_f1_root_on_purpose_is_no_problem(workspace: Path) -> None:
    fill(workspace)
    found, uid, _ = taken(workspace, "0")
    assert (found.uid, found.problem, uid) == (0, None, 0)


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ((users.SETUID,), "changing to 1000:1000 was refused"),
        ((users.SETGID,), "changing to 1000:1000 was refused"),
        ((users.CHOWN,), "to 1000:1000 was refused"),
    ],
)
def test_f3_a_refused_change_leaves_root_at_work_and_says_so(
    workspace: Path, drop: tuple[int, ...], words: str
) -> None:
    found, uid, gid = taken(workspace, drop=drop)
    assert (found.uid, found.gid, uid, gid) == (0, 0, 0, 0)
    assert found.problem is not None
    assert words in found.problem.message
    assert "run as root" in found.problem.message


@pytest.mark.root
def test_f3_without_the_right_to_chown_a_folder_is_used_through_its_group(workspace: Path) -> None:
    os.chown(workspace, 0, 1000)
    workspace.chmod(0o775)
    found, uid, _ = taken(workspace, drop=(users.CHOWN,))
    assert (found.uid, found.problem, uid) == (1000, None, 1000)
    assert workspace.stat().st_uid == 0


@pytest.mark.root
def test_a_folder_open_to_all_is_used_by_the_same_user_every_time(workspace: Path) -> None:
    workspace.chmod(0o777)
    assert taken(workspace)[0].uid == 1000
    (workspace / ".comfypod").mkdir()
    os.chown(workspace / ".comfypod", 1000, 1000)
    found, uid, _ = taken(workspace)
    assert (found.uid, found.problem, uid) == (1000, None, 1000)


@pytest.mark.root
@pytest.mark.parametrize("name", ["ComfyUI", ".comfypod"])
def test_a_folder_inside_that_the_owner_may_not_write_makes_nobody_root(workspace: Path, name: str) -> None:
    """Otherwise the owner, and any node, would become root by closing a folder."""
    os.chown(workspace, 1000, 1000)
    (workspace / name).mkdir(mode=0o755)
    with pytest.raises(StorageError, match=r"belongs to 0:0 \(mode 0755\) and cannot be written by 1000:1000"):
        taken(workspace)


@pytest.mark.root
def test_f2_a_puid_that_cannot_write_the_volume_is_refused_with_path_owner_and_remedy(workspace: Path) -> None:
    fill(workspace)
    with pytest.raises(StorageError) as caught:
        taken(workspace, "1000")
    assert caught.value.message == f"{workspace} belongs to 0:0 (mode 0755) and cannot be written by 1000:1000"
    assert "chown -R 1000:1000" in caught.value.hint
    assert "PUID=0 PGID=0" in caught.value.hint
    assert workspace.stat().st_uid == 0


def as_user(workspace: Path, uid: int, gid: int) -> Identity:
    def take() -> Identity:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        found = identity.take_on(workspace, "", "")
        identity.settle()
        (workspace / "new").touch()
        return found

    return users.in_child(take)


@pytest.mark.root
def test_f2_a_container_user_without_the_right_is_told_path_owner_and_remedy(workspace: Path) -> None:
    with pytest.raises(StorageError) as caught:
        as_user(workspace, 12345, 0)
    assert caught.value.message == f"{workspace} belongs to 0:0 (mode 0755) and cannot be written by 12345:0"
    assert "--user 0:0" in caught.value.hint


@pytest.mark.root
def test_f2_a_container_user_works_through_the_group(workspace: Path) -> None:
    workspace.chmod(0o775)
    assert as_user(workspace, 12345, 0) == Identity(12345, 0, "the container's user")
    assert (workspace / "new").stat().st_uid == 12345


def test_a_home_that_can_be_used_is_kept(tmp_path: Path) -> None:
    changed = identity.environ({"HOME": str(tmp_path), "A": "b"}, tmp_path / "home")
    assert (changed["HOME"], changed["A"]) == (str(tmp_path), "b")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("given", [None, "", "relative", "/no/such/home", "/etc/passwd"])
def test_a_home_that_cannot_be_used_is_replaced_by_one_in_the_workspace(tmp_path: Path, given: str | None) -> None:
    home = tmp_path / "home"
    changed = identity.environ({} if given is None else {"HOME": given}, home)
    assert changed["HOME"] == str(home)
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.root
def test_f1_a_user_without_a_passwd_entry_has_a_name_and_a_home(workspace: Path) -> None:
    def names() -> dict[str, str]:
        identity.assume(12345, 0)
        return identity.environ({"HOME": "/root", "USER": "root"}, workspace.parent / "home")

    changed = users.in_child(names)
    assert (changed["USER"], changed["LOGNAME"]) == ("comfypod", "comfypod")
    assert changed["HOME"] == str(workspace.parent / "home")
    assert (workspace.parent / "home").stat().st_uid == 12345


def test_f9_folders_that_the_engine_made_for_a_mount_are_known_from_those_that_hold_more(tmp_path: Path) -> None:
    mount = tmp_path / "ws" / "ComfyUI" / "models"
    mount.mkdir(parents=True)
    (mount / "theirs").write_text("")
    assert identity.made_for(tmp_path / "ws", [mount]) == (tmp_path / "ws", tmp_path / "ws" / "ComfyUI")
    empty = tmp_path / "ws" / "ComfyUI" / "output"
    empty.mkdir()
    assert (empty in identity.made_for(tmp_path / "ws", [mount, empty])) == (os.geteuid() == 0)
    empty.rmdir()
    assert identity.made_for(tmp_path / "ws", []) == ()
    (tmp_path / "ws" / "ComfyUI" / "main.py").write_text("")
    assert identity.made_for(tmp_path / "ws", [mount]) == ()
