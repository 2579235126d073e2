"""Installing into a layer with the real uv and pip, over a real virtual environment as the image's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tarfile
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from comfypod import proc, uv_program
from comfypod.environment import requests
from comfypod.environment.install import Wanted, install, recover
from comfypod.environment.layer import Layer, create, read_marker
from comfypod.environment.rebuild import rebuild
from comfypod.environment.safety import clean
from comfypod.environment.succession import finished, previous_of
from comfypod.workspace.layout import Layout
from tests.kit.killer import suffer
from tests.kit.layers import TORCH, Volume, make_image, make_volume
from tests.kit.repos import make_repository
from tests.kit.web import serve, serve_wheels
from tests.kit.wheels import build_builder, build_sdist, build_wheel

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    return make_image(folder / "venv", folder / "image-wheels")


@pytest.fixture
def volume(tmp_path: Path, image: Path) -> Volume:
    return make_volume(tmp_path, image)


def _demanding(volume: Volume) -> None:
    """Write what hostile nodes ask for."""
    for name in ("torch", "opencv-python", "opencv-contrib-python"):
        volume.wheel(name, "1.13")
    volume.wheel("numpy", "1.26.0")
    volume.wheel("lib", "1.0", "torch==1.13", "opencv-contrib-python")
    volume.wheel("old-numpy", "1.0", "numpy<2")


def _torch(volume: Volume) -> str:
    return volume.value("__import__('torch').version.__version__, __import__('torch').version.cuda")


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("torch==1.13", "torch==2.9.1"),
        ("torch", None),
        ("numpy<2", "numpy==2.3.0"),
        ("opencv-python", None),
        ("opencv-contrib-python<2", "opencv-contrib-python==4.12.0"),
        ("torch @ https://example.invalid/torch-1.13-py3-none-any.whl", "torch==2.9.1"),
    ],
)
def test_c1_a_demand_on_what_stays_is_refused_for_that_node_and_the_rest_of_it_installed(
    volume: Volume, line: str, refused: str | None
) -> None:
    _demanding(volume)
    volume.wheel("further")
    before = _torch(volume)
    done = volume.install(Wanted("node:a", (line, "further")), Wanted("node:b", ("further",)))
    assert done.failed == ()
    assert done.added == ("further==1.0",)
    assert [(each.who, each.requirement, each.kept) for each in done.refused] == (
        [("node:a", line, refused)] if refused else []
    )
    assert _torch(volume) == before == f"{TORCH}+cu128 12.8"
    assert volume.value("__import__('cv2').who") == "image"
    assert volume.value("__import__('numpy').__version__") == "2.3.0"


def test_c1_what_a_package_of_a_node_demands_is_named_for_that_node_alone(volume: Volume) -> None:
    _demanding(volume)
    volume.wheel("simple")
    wanted = (Wanted("node:a", ("lib",)), Wanted("node:b", ("simple",)), Wanted("node:c", ("old-numpy",)))
    done = volume.install(*wanted)
    assert done.failed == ()
    assert sorted(done.added) == ["lib==1.0", "old-numpy==1.0", "simple==1.0"]
    named = {(each.who, each.requirement, each.kept) for each in done.refused}
    assert named == {
        ("node:a", "torch==1.13 (of lib)", "torch==2.9.1"),
        ("node:c", "numpy<2 (of old-numpy)", "numpy==2.3.0"),
    }
    assert volume.value("__import__('cv2').who") == "image"


def test_c1_another_numpy_of_the_same_major_may_stand_before_the_images(volume: Volume) -> None:
    volume.wheel("numpy", "2.4.0")
    volume.wheel("newer", "1.0", "numpy>=2.4")
    done = volume.install(Wanted("node:a", ("newer",)))
    assert (done.failed, done.refused) == ((), ())
    assert volume.value("__import__('numpy').__version__") == "2.4.0"


@pytest.mark.parametrize(
    ("arguments", "ok"),
    [
        (("-m", "pip", "install", "torch"), True),
        (("-m", "pip", "install", "torch==1.13"), False),
        (("-m", "pip", "install", "--upgrade", "torch"), None),
        (("-m", "pip", "install", "lib"), False),
        (("-m", "pip", "install", "numpy<2"), False),
        (("uv", "pip", "install", "torch"), True),
        (("uv", "pip", "install", "torch==1.13"), False),
        (("uv", "pip", "install", "opencv-python"), True),
    ],
)
def test_c2_the_constraints_hold_for_the_install_script_of_a_node(
    volume: Volume, tmp_path: Path, arguments: tuple[str, ...], ok: bool | None
) -> None:
    _demanding(volume)
    build_wheel(volume.wheels, "torch", "9.0")
    program = f"{uv_program.find_uv()!r}" if arguments[0] == "uv" else "sys.executable"
    script = tmp_path / "install.py"
    rest = arguments[1:] if arguments[0] == "uv" else arguments
    script.write_text(f"import subprocess, sys\nsys.exit(subprocess.call([{program}, *{list(rest)!r}]))\n")
    done = volume.run(str(script))
    assert ok is None or (done.returncode == 0) == ok, done.stdout + done.stderr
    assert _torch(volume) == f"{TORCH}+cu128 12.8"
    assert volume.value("__import__('numpy').__version__") == "2.3.0"
    assert volume.value("__import__('cv2').who") == "image"


def test_c2_a_torch_that_was_installed_past_the_constraints_is_set_aside(volume: Volume) -> None:
    _demanding(volume)
    uv = (uv_program.find_uv(), "pip", "install", "--python", str(volume.layer.python))
    done = proc.run((*uv, "--no-deps", "torch==1.13", "opencv-python==1.13"), seconds=60, env=volume.environ)
    assert done.ok, done.stderr
    assert volume.value("__import__('torch').__version__") == "1.13"
    refused = [problem for problem in clean(volume.layer, volume.layout) if problem.code == "refused"]
    assert [problem.message.split()[0] for problem in refused] == ["opencv-python==1.13", "torch==1.13"], refused
    assert clean(volume.layer, volume.layout) == ()
    assert _torch(volume) == f"{TORCH}+cu128 12.8"
    assert volume.value("__import__('cv2').who") == "image"
    kept = [path.name for path in volume.layout.set_aside.rglob("*.py")]
    assert "torch.py" in kept
    assert volume.run("-m", "pip", "install", "torch==1.13").returncode != 0


def test_c4_of_twenty_nodes_the_one_that_does_not_resolve_fails_alone(volume: Volume) -> None:
    for number in range(20):
        volume.wheel(f"lib{number}")
    wanted = [Wanted(f"node:{number}", (f"lib{number}",)) for number in range(20)]
    wanted[7] = Wanted("node:7", ("lib7", "lib6>5"))
    done = volume.install(*wanted)
    assert [failure.who for failure in done.failed] == ["node:7"]
    assert "lib6>5" in done.failed[0].reason
    assert len(done.added) == 19
    volume.value("[__import__(f'lib{n}') for n in range(20) if n != 7]")
    assert {row.who for row in requests.read(volume.layout)} == {f"node:{n}" for n in range(20) if n != 7}


def test_c6_what_is_said_to_be_installed_and_is_not_there_is_a_failure_and_leaves_nothing(volume: Volume) -> None:
    build_wheel(volume.wheels, "hollow", "1.0", modules={})
    volume.wheel("liar", "1.0", **{"torch/__init__.py": "stolen = True\n"})
    volume.wheel("sound")
    before = volume.names()
    wanted = [Wanted(f"node:{name}", (name,)) for name in ("hollow", "liar", "sound")]
    done = volume.install(*wanted)
    reasons = {failure.who: failure.reason for failure in done.failed}
    assert set(reasons) == {"node:hollow", "node:liar"}
    assert "nothing in it" in reasons["node:hollow"]
    assert "torch" in reasons["node:liar"]
    assert done.added == ("sound==1.0",)
    new = {name.split("/")[-2 if "dist-info/" in name else -1] for name in set(volume.names()) - set(before)}
    assert new == {"sound.py", "sound-1.0.dist-info"}


def test_c7_a_denied_package_is_not_installed_and_startup_code_comes_without_what_would_run_it(
    volume: Volume, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    volume.wheel("litellm", "1.82.8")
    line = f"import pathlib, sys; pathlib.Path({str(ran)!r}).touch(); sys.exit(3)\n"
    volume.wheel("breaker", "1.0", "sound", **{"breaker.pth": line, "breaker.py": ""})
    volume.wheel("sound")
    done = volume.install(Wanted("node:bad", ("litellm",)), Wanted("node:odd", ("breaker",)))
    (failure,) = done.failed
    assert (failure.who, failure.reason.split(":")[0]) == ("node:bad", "litellm==1.82.8 is denied")
    assert sorted(done.added) == ["breaker==1.0", "sound==1.0"]
    assert [problem.message.split(" was set aside")[0] for problem in done.aside] == [
        f"{volume.layer.site}/breaker.pth of breaker==1.0"
    ]
    assert volume.value("__import__('breaker').__name__") == "breaker"
    assert not ran.exists()


def test_c8_a_package_that_must_be_compiled_names_the_variant_that_can(volume: Volume) -> None:
    build_builder(volume.wheels, "9.0", needs="gcc")
    build_sdist(volume.wheels, "fast", "1.0")
    volume.wheel("simple")
    done = volume.install(Wanted("node:a", ("fast",)), Wanted("node:b", ("simple",)))
    (failure,) = done.failed
    assert failure.who == "node:a"
    assert failure.reason == (
        "fast must be compiled and this variant of the image has no compiler; use the image's `full` variant"
    )
    assert done.added == ("simple==1.0",)


def test_nothing_to_do_starts_uv_alone_and_writes_nothing(volume: Volume) -> None:
    volume.wheel("lib")
    volume.install(Wanted("node:a", ("lib",)))
    before = (volume.layer.site.stat().st_mtime_ns, volume.layout.requests.stat().st_mtime_ns)
    assert volume.install(Wanted("node:a", ("lib",))).added == ()
    assert (volume.layer.site.stat().st_mtime_ns, volume.layout.requests.stat().st_mtime_ns) == before


def test_an_upgrade_takes_the_files_of_the_one_before_along(volume: Volume) -> None:
    build_wheel(volume.wheels, "lib", "1.0", modules={"lib/__init__.py": "v = 1\n", "lib/old.py": ""})
    volume.install(Wanted("user", ("lib",)))
    build_wheel(volume.wheels, "lib", "2.0", modules={"lib/__init__.py": "v = 2\n", "lib/new.py": ""})
    assert volume.install(Wanted("user", ("lib>=2",))).added == ("lib==2.0",)
    assert volume.value("__import__('lib').v") == "2"
    assert not (volume.layer.site / "lib" / "old.py").exists()
    assert not (volume.layer.site / "lib-1.0.dist-info").exists()


def test_managers_command_line_runs_in_the_layer_and_is_told_where_comfyui_is(volume: Volume) -> None:
    volume.layout.comfyui.mkdir()
    code = "import os, sys\nprint(os.environ['COMFYUI_PATH'], sys.prefix, sys.argv[1])\n"
    volume.wheel("kit-manager", **{"cm_cli.py": code})
    assert volume.run("-m", "pip", "install", "kit-manager").ok
    done = proc.run((str(volume.layer.root / "bin" / "cm-cli"), "show"), seconds=60, env=volume.environ)
    assert done.stdout.split() == [str(volume.layout.comfyui), str(volume.layer.root), "show"], done.stderr


def test_what_was_installed_from_a_terminal_becomes_a_request_until_it_is_uninstalled(volume: Volume) -> None:
    volume.wheel("dep")
    volume.wheel("mine", "1.0", "dep")
    volume.wheel("theirs")
    requests.note_found(volume.layer, volume.layout)
    volume.install(Wanted("node:a", ("theirs",)))
    assert volume.run("-m", "pip", "install", "mine").ok
    assert requests.note_found(volume.layer, volume.layout).found == ("mine",)
    assert requests.note_found(volume.layer, volume.layout) == requests.Noted()
    rows = {(row.who, row.line, row.version) for row in requests.read(volume.layout)}
    assert rows == {("node:a", "theirs", "1.0"), ("user", "mine", "1.0")}
    assert volume.run("-m", "pip", "uninstall", "--yes", "mine").ok
    assert requests.note_found(volume.layer, volume.layout).gone == ("mine",)
    assert [row.name for row in requests.read(volume.layout)] == ["theirs"]


def _next(volume: Volume, image: Path, key: str = "two") -> Volume:
    return Volume(volume.layout, Layer(volume.layout.envs / key, key, image), volume.wheels)


def test_what_was_done_in_the_last_run_of_another_image_is_asked_for_under_the_next_one_until_it_is_uninstalled(
    volume: Volume,
) -> None:
    for name in ("kept", "late", "gone"):
        volume.wheel(name)
    assert volume.run("-m", "pip", "install", "kept", "gone").ok
    requests.note_found(volume.layer, volume.layout)
    assert volume.run("-m", "pip", "install", "late").ok
    assert volume.run("-m", "pip", "uninstall", "--yes", "gone").ok
    (other,) = finished(_next(volume, volume.layer.image).layer, volume.layout)
    requests.note_left(other, volume.layout)
    assert [row.name for row in requests.read(volume.layout)] == ["kept", "late"]
    requests.forget(volume.layout, "user", ["late"])
    (volume.layer.site / "something").touch()
    requests.note_left(other, volume.layout)
    assert [row.name for row in requests.read(volume.layout)] == ["kept"]


def test_c9_without_an_index_a_layer_is_rebuilt_from_the_one_before_and_what_is_missing_is_listed(
    volume: Volume, tmp_path: Path
) -> None:
    volume.wheel("dep")
    volume.wheel("piped", "1.0", "dep")
    volume.wheel("ours", "1.0", "torch")
    volume.wheel("whole")
    volume.wheel("broken")
    volume.install(Wanted("node:a", ("ours", "broken")))
    assert volume.run("-m", "pip", "install", "piped", "whole").ok
    requests.note_found(volume.layer, volume.layout)
    (volume.layer.site / "broken.py").unlink()
    shutil.rmtree(volume.wheels)
    shutil.rmtree(volume.layout.cache, ignore_errors=True)
    volume.wheels.mkdir()
    newer = _next(volume, make_image(tmp_path / "newer", tmp_path / "newer-wheels", "2.10.0"))
    asked = requests.read(volume.layout)
    assert previous_of(newer.layer, volume.layout) == Layer(volume.layer.root, "one", newer.layer.image)
    done = rebuild(newer.layer, newer.layout, volume.layer, network=False, environ=newer.environ)
    assert done.missing == (("broken", "broken==1.0 is not whole: broken.py is missing"),)
    assert sorted(done.installed) == ["dep==1.0", "ours==1.0", "piped==1.0", "whole==1.0"]
    assert newer.value("[__import__(name) and 0 for name in ('piped', 'whole', 'ours', 'dep')]") == "[0, 0, 0, 0]"
    assert newer.value("__import__('torch').__version__") == "2.10.0+cu128"
    assert requests.read(volume.layout) == asked
    marker = read_marker(newer.layer)
    assert marker is not None
    assert marker["missing"] == [list(each) for each in done.missing]
    assert read_marker(volume.layer) is not None
    assert "wheels" not in os.listdir(newer.layer.root)


def _online(volume: Volume, index: str) -> dict[str, str]:
    """Return the environment with an index and nothing else; one failure to reach it is as good as four."""
    clean = {name: value for name, value in volume.environ.items() if not name.startswith("UV_")}
    return {**clean, "UV_DEFAULT_INDEX": index, "UV_HTTP_RETRIES": "0"}


def test_an_index_that_has_no_torch_is_asked_only_for_what_is_wanted(volume: Volume) -> None:
    volume.wheel("dep")
    volume.wheel("lib", "1.0", "torch==1.13", "dep")
    with serve() as site:
        environ = _online(volume, serve_wheels(site, volume.wheels))
        wanted = [Wanted("node:a", ("lib", "torch")), Wanted("node:b", ("nowhere",))]
        done = install(volume.layer, volume.layout, wanted, network=True, environ=environ)
    assert sorted(done.added) == ["dep==1.0", "lib==1.0"]
    assert [failure.who for failure in done.failed] == ["node:b"]
    assert volume.value("__import__('lib').__version__") == "1.0"


def test_c9_an_index_that_is_gone_holds_up_nothing_that_is_in_the_cache(volume: Volume) -> None:
    for number in range(8):
        volume.wheel(f"lib{number}")
    wanted = [Wanted(f"node:{number}", (f"lib{number}",)) for number in range(8)]
    with serve() as site:
        environ = _online(volume, serve_wheels(site, volume.wheels))
        done = install(volume.layer, volume.layout, wanted[:4], network=True, environ=environ)
        assert len(done.added) == 4
    newer = _next(volume, volume.layer.image)
    create(newer.layer)
    done = install(newer.layer, newer.layout, wanted, network=True, environ=environ)
    assert sorted(done.added) == [f"lib{number}==1.0" for number in range(4)]
    assert [failure.who for failure in done.failed] == [f"node:{number}" for number in range(4, 8)]
    assert all("cannot be fetched" in failure.reason for failure in done.failed)


def test_c9_what_came_from_a_repository_that_is_gone_is_taken_as_it_was(volume: Volume, tmp_path: Path) -> None:
    build_builder(volume.wheels, "9.0")
    with tarfile.open(build_sdist(tmp_path, "fromgit", "1.0")) as bundle:
        bundle.extractall(tmp_path / "tree", filter="data")
    tree = tmp_path / "tree" / "fromgit-1.0"
    contents = {str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()}
    repository = make_repository(tmp_path / "repository", contents)
    line = f"fromgit @ git+{repository.url}@{repository.git('rev-parse', 'HEAD')}"
    done = volume.install(Wanted("node:a", (line,)))
    assert done.failed == ()
    shutil.rmtree(repository.folder)
    shutil.rmtree(volume.layout.cache)
    newer = _next(volume, volume.layer.image)
    rebuilt = rebuild(newer.layer, newer.layout, volume.layer, network=False, environ=newer.environ)
    assert (rebuilt.installed, rebuilt.missing) == (("fromgit==1.0",), ())
    assert [row.line for row in requests.read(newer.layout)] == [line]


def test_a_wheel_of_the_volume_is_installed_by_its_path(volume: Volume) -> None:
    volume.wheel("simple", "1.0")
    done = volume.install(Wanted("user", (f"simple @ file://{volume.wheels}/simple-1.0-py3-none-any.whl",)))
    assert done.added == (f"simple @ file://{volume.wheels}/simple-1.0-py3-none-any.whl",)
    assert volume.value("__import__('simple').__version__") == "1.0"


def test_an_editable_folder_is_found_where_the_workspace_is_now(volume: Volume, tmp_path: Path) -> None:
    build_builder(volume.wheels, "9.0")
    with tarfile.open(build_sdist(tmp_path, "mine", "1.0")) as bundle:
        bundle.extractall(volume.layout.root, filter="data")
    (volume.layout.root / "mine-1.0").rename(volume.layout.root / "my node")
    assert volume.install(Wanted("user", (f"-e {volume.layout.root}/my node",))).failed == ()
    assert [row.line for row in requests.read(volume.layout)] == ["-e ./my node"]
    moved = Layout(volume.layout.root.rename(tmp_path / "elsewhere"))
    newer = Volume(moved, Layer(moved.envs / "two", "two", volume.layer.image), volume.wheels)
    previous = previous_of(newer.layer, moved)
    assert rebuild(newer.layer, moved, previous, network=False, environ=newer.environ).missing == ()
    assert newer.value("__import__('mine').__file__") == str(moved.root / "my node" / "content" / "mine.py")


def test_a_file_with_another_hash_than_a_node_names_is_refused(volume: Volume) -> None:
    volume.wheel("lib")
    volume.wheel("further")
    done = volume.install(Wanted("node:a", (f"lib==1.0 --hash=sha256:{'0' * 64}",)), Wanted("node:b", ("further",)))
    assert [failure.who for failure in done.failed] == ["node:a"]
    assert done.added == ("further==1.0",)


def test_b9_under_another_python_pure_wheels_go_over_and_compiled_ones_are_listed(volume: Volume) -> None:
    volume.wheel("pure")
    volume.wheel("compiled")
    volume.install(Wanted("user", ("pure", "compiled")))
    tag = volume.layer.site / "compiled-1.0.dist-info" / "WHEEL"
    text = tag.read_text().replace("py3-none-any", "cp310-cp310-linux_x86_64")
    tag.unlink()
    tag.write_text(text)
    shutil.move(volume.layer.site.parent, volume.layer.root / "lib" / "python3.10")
    shutil.rmtree(volume.layout.cache, ignore_errors=True)
    shutil.rmtree(volume.wheels)
    volume.wheels.mkdir()
    newer = _next(volume, volume.layer.image)
    done = rebuild(newer.layer, newer.layout, volume.layer, network=False, environ=newer.environ)
    assert done.installed == ("pure==1.0",)
    ((line, reason),) = done.missing
    assert line == "compiled"
    assert "cp310" in reason
    volume.wheel("compiled", "1.1")
    again = rebuild(newer.layer, newer.layout, volume.layer, network=False, environ=newer.environ)
    assert (again.installed, again.missing) == (("compiled==1.1",), ())


def test_a_request_that_the_image_has_by_now_is_not_installed_again(volume: Volume) -> None:
    volume.wheel("torchsde")
    volume.install(Wanted("user", ("torchsde",)))
    requests.add(volume.layout, requests.asked("user", ["numpy @ https://example.invalid/numpy-2.3.0.zip", "torch"]))
    newer = _next(volume, volume.layer.image)
    done = rebuild(newer.layer, newer.layout, volume.layer, network=False, environ=newer.environ)
    assert (done.installed, done.missing) == (("torchsde==1.0",), ())


def _upgradable(volume: Volume) -> Wanted:
    """Install some packages, and write newer ones."""
    modules = {"lib/__init__.py": "v = 1\n", "lib/old.py": "", "shared/one.py": ""}
    build_wheel(volume.wheels, "lib", "1.0", modules=modules)
    volume.wheel("kept")
    volume.install(Wanted("user", ("lib", "kept")))
    modules = {"lib/__init__.py": "v = 2\n", "lib/sub/new.py": "", "shared/one.py": "2", "shared/two.py": ""}
    build_wheel(volume.wheels, "lib", "2.0", modules=modules)
    volume.wheel("more", "1.0", "numpy")
    return Wanted("node:a", ("lib>=2", "more"))


def _state(volume: Volume) -> tuple[dict[str, str], object]:
    return volume.names(), [(row.who, row.line) for row in requests.read(volume.layout)]


@pytest.mark.slow
def test_a2_every_durable_step_of_an_install_may_be_the_last(volume: Volume, tmp_path: Path) -> None:
    """Slow because no step is left out, each with uv's work before it."""
    wanted = _upgradable(volume)
    before, notes = _state(volume), tmp_path / "notes"
    after_volume = volume.copy(tmp_path / "after")
    assert suffer(partial(after_volume.install, wanted), 0, "kill", notes) == "done"
    steps, after = len(notes.read_text().splitlines()), _state(after_volume)
    assert before != after
    ends = []
    for step in range(1, steps + 1):
        each = volume.copy(tmp_path / "each")
        assert suffer(partial(each.install, wanted), step, "kill", notes) == "killed"
        recover(each.layer, each.layout)
        assert recover(each.layer, each.layout) == ()
        found = _state(each)
        assert found in (before, after), (step, notes.read_text())
        ends.append(found == after)
        shutil.rmtree(each.layout.root)
    assert ends == sorted(ends), "once it has happened it stays so"
    assert {*ends} == {False, True}


@pytest.mark.slow
def test_a2_a_recovery_that_is_killed_is_done_again(volume: Volume, tmp_path: Path) -> None:
    """Slow because no step is left out."""
    wanted = _upgradable(volume)
    notes = tmp_path / "notes"
    counted = volume.copy(tmp_path / "counted")
    suffer(partial(counted.install, wanted), 0, "kill", notes)
    after, lines = _state(counted), notes.read_text().splitlines()
    noted = next(number for number, line in enumerate(lines, 1) if "rename" in line and "installing.json" in line)
    for step in range(1, len(lines) - noted):
        each = volume.copy(tmp_path / "each")
        suffer(partial(each.install, wanted), noted + 1, "kill", notes)
        suffer(partial(recover, each.layer, each.layout), step, "kill", notes)
        recover(each.layer, each.layout)
        assert _state(each) == after, step
        shutil.rmtree(each.layout.root)


@pytest.mark.slow
def test_a2_killed_at_any_moment_of_uvs_work(volume: Volume, tmp_path: Path) -> None:
    """Slow because many moments are tried; which ones is the chance of the machine, what holds is not."""
    wanted = _upgradable(volume)
    before = _state(volume)
    whole = volume.copy(tmp_path / "whole")
    began = time.monotonic()
    whole.install(wanted)
    seconds, after = time.monotonic() - began, _state(whole)
    moments = random.Random(6)
    for number in range(12):
        each = volume.copy(tmp_path / f"each-{number}")
        pid = os.fork()
        if pid == 0:
            try:
                each.install(wanted)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        recover(each.layer, each.layout)
        assert _state(each) in (before, after)
        assert install(each.layer, each.layout, [wanted], network=False, environ=each.environ).failed == ()
        assert _state(each) == after


@pytest.mark.slow
def test_c9_a_rebuild_that_is_killed_is_done_again(volume: Volume, tmp_path: Path) -> None:
    """Slow because it is killed at one in nine of its steps, and rebuilt each time."""
    volume.wheel("lib")
    volume.install(Wanted("user", ("lib",)))
    expected: dict[str, str] = {}

    def work(each: Volume) -> None:
        old = each.layer
        newer = _next(each, each.layer.image)
        rebuild(newer.layer, newer.layout, old, network=False, environ=newer.environ)

    counted = volume.copy(tmp_path / "counted")
    assert suffer(partial(work, counted), 0, "kill", tmp_path / "notes") == "done"
    steps = len((tmp_path / "notes").read_text().splitlines())
    for step in range(1, steps, 9):
        each = volume.copy(tmp_path / "each")
        assert suffer(partial(work, each), step, "kill", tmp_path / "notes") == "killed"
        newer = _next(each, each.layer.image)
        recover(newer.layer, newer.layout)
        work(each)
        assert newer.value("__import__('lib').__version__") == "1.0"
        names = newer.names()
        expected = expected or names
        assert names.keys() == expected.keys(), step
        shutil.rmtree(each.layout.root)


def test_a_layer_that_was_just_made_has_nothing_to_recover(volume: Volume) -> None:
    create(volume.layer)
    assert recover(volume.layer, volume.layout) == ()
