from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod import proc
from comfypod.boot.environment import prepare_environment
from comfypod.boot.gather import Gatherer
from comfypod.boot.health import StageView
from comfypod.environment import requests
from comfypod.environment.layer import create, put_stubs, read_marker
from comfypod.errors import InstallError
from comfypod.workspace.lease import Lease
from tests.kit.disks import tmpfs
from tests.kit.wheels import build_wheel, only_these
from tests.unit.boot.contexts import context_of, prepared

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.environment.layer import Layer


@pytest.mark.parametrize("kind", ["missing", "not a program", "a dangling link"])
def test_an_environment_without_its_python_is_not_believed_in(tmp_path: Path, kind: str) -> None:
    python = tmp_path / "python"
    if kind == "not a program":
        python.write_text("")
    elif kind == "a dangling link":
        python.symlink_to("/no/such/python")
    with pytest.raises(InstallError, match=f"{python} is missing"):
        prepare_environment(context_of(tmp_path, python=str(python)), StageView("environment"))


def test_everything_that_is_started_later_runs_in_the_volumes_layer(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    assert prepare_environment(context, StageView("environment")) == "torch 0"
    assert context.layer is not None
    assert context.layer.root.parent == context.layout.envs
    assert context.pod.python == str(context.layer.python)
    assert context.environ["PIP_CONSTRAINT"] == context.environ["UV_CONSTRAINT"] == str(context.layer.constraints)
    assert context.health.environment == {"key": context.layer.key, "torch": "0", "changed": []}


def test_a_layer_that_cannot_be_made_is_named_and_the_images_environment_is_used(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    context.layout.envs.write_text("")
    assert prepare_environment(context, StageView("environment")).endswith("without the packages of the volume")
    assert (context.layer, context.pod.python) == (None, sys.executable)
    assert [problem.code for problem in context.health.problems] == ["storage"]


def _booted(context: Context) -> Layer:
    """Run the stage once more, as the next boot does; return the layer, which has to be in use."""
    context.pod = replace(context.pod, python=sys.executable)
    context.layer = None
    prepare_environment(context, StageView("environment"))
    assert context.layer is not None, context.health.problems
    return context.layer


def _state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all that can be told of a tree: kinds and modes, times, contents."""
    facts = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {
        str(path): (fact.st_mode, fact.st_mtime_ns, path.read_bytes() if stat.S_ISREG(fact.st_mode) else b"")
        for path, fact in facts.items()
    }


def test_a_boot_with_nothing_changed_writes_nothing_to_the_layer(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    put_stubs(layer)
    _booted(context)
    before = _state(layer.root)
    _booted(context)
    assert _state(layer.root) == before


def test_a_pod_that_is_not_alone_writes_nothing_to_the_layer(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    (layer.site / "extra-1.0.dist-info").mkdir()
    (layer.site / "extra-1.0.dist-info" / "REQUESTED").touch()
    (layer.site / "sitecustomize.pth").touch()
    assert context.core is not None
    context.core = replace(context.core, alone=False)
    before = _state(layer.root)
    found = _booted(context)
    asyncio.run(Gatherer(context, _never).run())
    assert _state(found.root) == before
    assert [row["name"] for row in context.health.environment["changed"]] == ["extra"]


async def _never() -> None:
    raise AssertionError("ComfyUI is not started again")


def test_once_another_pod_has_come_nothing_is_gathered_and_nothing_written(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer, other = _booted(context), Lease(context.layout.pods)
    other.take()
    before = _state(layer.root)
    asyncio.run(Gatherer(context, _never).run())
    assert _state(layer.root) == before
    other.release()
    asyncio.run(Gatherer(context, _never).run())
    assert (read_marker(layer) or {})["stubs"]


def test_a_pod_that_is_not_alone_does_not_use_a_layer_that_would_have_to_be_mended(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    (layer.root / "lib").rename(tmp_path / "lib")
    (layer.root / "lib").symlink_to(tmp_path / "lib")
    assert context.core is not None
    context.core = replace(context.core, alone=False)
    context.pod, context.layer = replace(context.pod, python=sys.executable), None
    before = _state(layer.root)
    assert prepare_environment(context, StageView("environment")).endswith("without the packages of the volume")
    assert "another pod uses it" in context.health.problems[-1].message
    assert _state(layer.root) == before


_FILES = (
    "layer.json", "pyvenv.cfg", "constraints.txt", "pip.conf", "installing.json", "installing.lock", "bin/python",
    "bin/python3", "SITE/_comfypod_image.pth", "SITE/_comfypod_local.pth",
)  # fmt: skip


@pytest.mark.parametrize("name", _FILES)
def test_a_folder_in_the_place_of_one_of_the_layers_files_is_set_aside(tmp_path: Path, name: str) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    path = layer.root / name.replace("SITE", str(layer.site.relative_to(layer.root)))
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("precious")
    again = _booted(context)
    assert again.root == layer.root
    assert [each.read_text() for each in context.layout.set_aside.rglob("mine")] == ["precious"]
    assert any(f"{path} was set aside" in problem.message for problem in context.health.problems)
    assert proc.run((str(again.python), "-c", "import packaging"), seconds=60).ok


@pytest.mark.parametrize("name", ["", "bin", "lib", "SITE/..", "SITE"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_stands_in_the_place_of_one_of_the_layers_folders_is_set_aside_and_not_followed(
    tmp_path: Path, name: str, kind: str
) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    path = Path(os.path.normpath(layer.root / name.replace("SITE", str(layer.site.relative_to(layer.root)))))
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_text("precious")
    before = _state(elsewhere)
    again = _booted(context)
    assert _state(elsewhere) == before
    (aside,) = (each for each in context.layout.set_aside.iterdir() if each.suffix != ".json")
    assert aside.is_symlink() if kind == "link" else aside.read_text() == "precious"
    assert not path.is_symlink()
    assert proc.run((str(again.python), "-c", "import packaging"), seconds=60).ok


def test_constraints_that_somebody_has_taken_away_or_changed_are_put_back(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    files = (layer.constraints, layer.root / "pip.conf")
    before = [path.read_bytes() for path in files]
    layer.constraints.unlink()
    files[1].unlink()
    files[1].symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("[global]\n")
    _booted(context)
    assert [path.read_bytes() for path in files] == before
    assert (tmp_path / "mine").read_text() == "[global]\n"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_takes_no_note_leaves_a_sound_layer_in_use(tmp_path: Path, kind: str) -> None:
    with tmpfs(tmp_path / "workspace", megabytes=24) as disk:
        context = prepared(tmp_path, python=sys.executable)
        layer = _booted(context)
        (layer.site / "extra-1.0.dist-info").mkdir()
        (layer.site / "extra-1.0.dist-info" / "REQUESTED").touch()
        if kind == "full":
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        else:
            context.lease.release()
            assert proc.run(("mount", "-o", "remount,ro", str(disk)), seconds=30).ok
        _booted(context)
        assert {problem.code for problem in context.health.problems} >= {"storage"}
        assert [row["name"] for row in context.health.environment["changed"]] == ["extra"]
        asyncio.run(Gatherer(context, _never).run())
        assert "were not completed" in context.health.problems[-1].message


def test_a_time_ahead_of_ours_makes_no_boot_after_the_next_complete_the_layer(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    other = replace(layer, root=layer.root.with_name("other"))
    create(other)
    ahead = time.time_ns() + 10**15
    os.utime(other.marker, ns=(ahead, ahead))
    _booted(context)
    before = layer.marker.stat().st_mtime_ns
    _booted(context)
    assert layer.marker.stat().st_mtime_ns == before


def test_c7_what_comes_with_packages_that_a_boot_completes_is_looked_at_too(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer, ran = _booted(context), tmp_path / "ran"
    line = f"# tuning\nimport pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    build_wheel(tmp_path / "wheels", "thief", "1.0", modules={"thief.py": "", "thief.pth": line})
    requests.add(context.layout, requests.asked("user", ["thief"]))
    other = replace(layer, root=layer.root.with_name("other"))
    create(other)
    os.utime(layer.marker, ns=(1, 1))
    context.environ = {**context.environ, **only_these(tmp_path / "wheels")}
    again = _booted(context)
    assert "startup-code" in [problem.code for problem in context.health.problems], context.health.problems
    ran.unlink(missing_ok=True)
    assert proc.run((str(again.python), "-c", "import thief"), seconds=60).ok
    assert not ran.exists()


def _deep(levels: int) -> object:
    found: object = 1
    for _ in range(levels):
        found = [found]
    return found


_ODD: tuple[object, ...] = (
    None, True, -1, 1e308, "", "\0", "\ud800", "x" * 5000, [], ["\ud800"], [["a"]], [[None, {}]], {}, {"name": 1},
    [{"name": [], "state": {}, "version": 1, "image": None}], {"a": {"b": ["c"]}}, _deep(400),
)  # fmt: skip
_NAMES = (
    "schema", "root", "stubs", "seen", "site", "found", "changes", "missing", "met", "requests", "who", "name", "line",
    "version", "said", "gone",
)  # fmt: skip


@pytest.mark.parametrize("record", ["marker", "requests", "note", "RECORD", "INSTALLER", "direct_url.json", "denied"])
def test_whatever_the_records_of_a_layer_say_it_is_used(tmp_path: Path, record: str) -> None:
    context = prepared(tmp_path, python=sys.executable)
    layer = _booted(context)
    info = layer.site / "extra-1.0.dist-info"
    info.mkdir()
    (info / "REQUESTED").touch()
    sound = json.loads(layer.marker.read_text())
    place = {
        "marker": layer.marker, "requests": context.layout.requests, "note": layer.root / "installing.json",
        "denied": context.layout.denied,
    }.get(record, info / record)  # fmt: skip
    for name, value in itertools.product(_NAMES, _ODD):
        base = {**sound, "requests": [], "said": "", "gone": [], "rebuild": False}
        row = {"who": "user", "name": "a", "line": "a", "version": "", name: value}
        place.write_text(json.dumps({**base, name: value} if name != "requests" else {**base, "requests": [row]}))
        os.utime(layer.site, ns=(1, 1))
        _booted(context)
