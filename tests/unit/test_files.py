from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfypod import files
from comfypod.errors import BusyError, StorageError
from tests.kit.disks import tmpfs
from tests.kit.trees import contents, plant

_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in {".", "..", ".git", "__pycache__"}
)
_TREE = st.dictionaries(st.lists(_NAME, min_size=1, max_size=3).map(tuple), st.binary(max_size=40), max_size=6)

_HOLDER = (
    "import pathlib, sys; from comfypod.files import FolderLock;"
    "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire(); print('held', flush=True); sys.stdin.read()"
)


def fill_with_files(folder: Path) -> None:
    for number in range(9):
        (folder / str(number)).write_bytes(b"")


def test_a_file_is_replaced_with_the_mode_given(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old, and longer")
    files.write_atomic(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, before: bytes | None
) -> None:
    path = tmp_path / "state"
    if before is not None:
        path.write_bytes(before)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="no space"):
            files.write_atomic(path, b"new")
    assert contents(tmp_path) == ({} if before is None else {"state": before})


def test_a_write_is_durable_in_file_and_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = list[str](), os.fsync

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    files.write_atomic(tmp_path / "a", b"x", durable=False)
    assert synced == []
    files.write_atomic(tmp_path / "a", b"y")
    assert synced == [".a.new", tmp_path.name]


def test_what_a_killed_writer_staged_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.new").write_bytes(b"half of something much longer")
    files.write_atomic(tmp_path / "a", b"x")
    assert contents(tmp_path) == {"a": b"x"}


def test_a_file_system_that_cannot_sync_folders_is_left_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(code: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    files.fsync_folder(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        files.fsync_folder(tmp_path)


def test_a_real_file_system_is_synced(tmp_path: Path) -> None:
    files.sync_filesystem(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync_filesystem(tmp_path / "none")


@settings(max_examples=40, deadline=None)
@given(_TREE)
def test_the_digest_ignores_times_modes_empty_folders_and_what_is_not_content(
    tree: dict[tuple[str, ...], bytes],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = plant(Path(folder, "one"), tree), plant(Path(folder, "two"), tree)
        for path in two.rglob("*"):
            if path.is_file():
                path.chmod(0o755)
            os.utime(path, (1, 1))
        for name in (".git", "__pycache__", "empty/empty"):
            two.joinpath(name).mkdir(parents=True, exist_ok=True)
        (two / ".git" / "HEAD").write_text("x")
        (two / "__pycache__" / "a.pyc").write_text("x")
        facts = files.tree_facts(one)
        assert files.tree_facts(two) == facts
        found = contents(one)
        assert (facts.files, facts.bytes) == (len(found), sum(map(len, found.values())))


@settings(max_examples=40, deadline=None)
@given(_TREE, _TREE)
def test_the_digest_depends_on_every_name_and_byte(
    first: dict[tuple[str, ...], bytes], second: dict[tuple[str, ...], bytes]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = plant(Path(folder, "one"), first), plant(Path(folder, "two"), second)
        same = contents(one) == contents(two)
        assert (files.tree_facts(one).digest == files.tree_facts(two).digest) is same
        (one / "one more").write_bytes(b"")
        assert files.tree_facts(one).digest != files.tree_facts(two).digest or (two / "one more").exists()


def test_the_digest_depends_on_where_links_lead_and_not_on_what_is_there(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", {("a",): b"1"})
    (root / "link").symlink_to("a")
    (root / "folder").symlink_to("/usr")
    digests = [files.tree_facts(root)]
    (root / "link").unlink()
    (root / "link").symlink_to("b")
    digests.append(files.tree_facts(root))
    (root / "link").unlink()
    (root / "link").write_text("b")
    digests.append(files.tree_facts(root))
    assert len({facts.digest for facts in digests}) == 3
    assert [facts.files for facts in digests] == [3, 3, 3]


def test_names_that_are_not_text_are_digested(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff")).write_bytes(b"x")
    first = files.tree_facts(tmp_path)
    (tmp_path / os.fsdecode(b"a\xff")).rename(tmp_path / os.fsdecode(b"a\xfe"))
    assert files.tree_facts(tmp_path).digest != first.digest


def test_the_bytes_of_a_tree_count_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    once = files.tree_bytes(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert once >= 1_000_000
    assert files.tree_bytes(tmp_path) == once


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "the disk quota is used up", "larger quota"),
        (errno.EROFS, "the file system is read-only", "mount it writable"),
        (errno.EACCES, "permission denied", "owner or mode"),
        (errno.EPERM, "not permitted", "owner or mode"),
        (errno.EIO, "input/output error", "check the disk"),
        (errno.ENOTDIR, "a file stands where a folder is needed", "move that file away"),
        (errno.EEXIST, "a file stands where a folder is needed", "move that file away"),
        (errno.EMLINK, "Too many links", "try again"),
    ],
)
def test_a_disk_error_is_a_sentence_with_the_next_step(tmp_path: Path, code: int, reason: str, hint: str) -> None:
    error = files.storage_error(OSError(code, os.strerror(code), str(tmp_path)), "cannot do it")
    assert error.message.startswith("cannot do it: ")
    assert error.message.endswith(f": {tmp_path}")
    assert reason in error.message
    assert hint in error.hint


def test_the_bytes_needed_are_named_where_room_is_the_problem() -> None:
    full = OSError(errno.ENOSPC, "x")
    assert files.storage_error(full, "cannot", 2_000_000).message == "cannot: the disk is full (2.0 MB needed)"
    assert "needed" not in files.storage_error(OSError(errno.EIO, "x"), "cannot", 2_000_000).message
    assert files.storage_error(OSError("odd"), "cannot").message == "cannot: odd"


@pytest.mark.root
def test_a_disk_without_inodes_is_not_called_full(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", inodes=4) as disk:
        assert (files.room(disk).inodes or 0) > 0
        with pytest.raises(OSError, match="No space") as caught:
            fill_with_files(disk)
        told = files.storage_error(caught.value, "cannot write")
        assert files.room(disk).inodes == 0
    assert "the disk has no inodes left" in told.message
    assert "inodes" in told.hint


def test_room_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    here, facts = files.room(tmp_path / "not" / "yet"), os.statvfs(tmp_path)
    assert 0 < here.bytes <= facts.f_blocks * facts.f_frsize
    assert files.nearest_folder(tmp_path / "not" / "yet") == tmp_path
    assert files.nearest_folder(Path("/")) == Path("/")


def test_a_folder_is_made_with_its_parents_or_refused_in_words(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="a file stands where a folder is needed"):
            files.make_folder(path)


def test_a_tree_a_file_and_a_link_are_removed_and_nothing_behind_the_link(tmp_path: Path) -> None:
    kept = plant(tmp_path / "kept", {("a",): b"1"})
    tree = plant(tmp_path / "tree", {("a", "b"): b"1"})
    (tree / "link").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").write_text("")
    for name in ("tree", "link", "file", "none"):
        files.remove_tree(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert contents(kept) == {"a": b"1"}


def test_a_lock_is_held_against_other_processes_until_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    argv = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = files.FolderLock(path)
        with pytest.raises(BusyError, match="is in use by another process"):
            lock.acquire()
        assert not lock.held
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert lock.acquire()
    assert lock.held
    lock.release()
    lock.release()
    assert not lock.held


def test_a_file_system_without_locks_is_told_apart_from_one_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(code: int) -> None:
        def flock(*_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    lock = files.FolderLock(tmp_path / "lock")
    handles = len(os.listdir("/proc/self/fd"))
    refuse(errno.ENOLCK)
    assert lock.acquire() is False
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        lock.acquire()
    assert not lock.held
    assert len(os.listdir("/proc/self/fd")) == handles


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "a") == expected


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        files.open_plain(tmp_path / "pipe", flags)
    with pytest.raises(OSError, match="null"):
        files.open_plain(Path("/dev/null"), flags)


def test_a_record_that_is_huge_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b" " * (1 << 20) + b"1")
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read_small(tmp_path / "huge")
    with pytest.raises(OSError, match="not a plain file"):
        files.read_small(tmp_path)
