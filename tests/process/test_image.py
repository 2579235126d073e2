"""`comfypod boot` as an image's program, without the image: real users, a stand-in ComfyUI, nothing outside a folder.

The same scenarios run in containers in `tests/images`; these are quick and need no engine.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import proc
from comfypod.workspace import run
from tests.kit import users
from tests.kit.disks import tmpfs
from tests.kit.pods import ROOT, Running, Site, booted, image_command, image_site
from tests.kit.standin import Orders
from tests.kit.strangers import ai_dock_storage, plain_clone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture
def folder() -> Iterator[Path]:
    with users.common_folder() as folder:
        yield folder


@pytest.fixture
def python() -> str:
    found = users.anyones_python()
    if found is None:
        pytest.skip("there is no Python here that every user may run")
    return found


@pytest.fixture
def site(folder: Path, python: str) -> Site:
    return image_site(folder, python)


def boot(
    site: Site, *more: str, environ: Mapping[str, str] | None = None, **process: Any
) -> AbstractContextManager[Running]:
    extra = {"PYTHONPATH": f"{ROOT / 'src'}:{users.libraries()}", "HOME": "/root", **(environ or {})}
    return booted(site, *more, command=image_command(site), environ=extra, **process)


def owners(site: Site) -> set[tuple[int, int]]:
    """Return the owners of everything in the workspace."""
    root = site.layout.root
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in (root, *root.rglob("*"))}


def codes(status: dict[str, Any]) -> set[str]:
    return {problem["code"] for problem in status["problems"]}


def test_f1_root_on_a_new_workspace_becomes_the_usual_user_and_everything_is_theirs(site: Site) -> None:
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert (status["identity"]["uid"], status["identity"]["gid"]) == (1000, 1000)
        assert "runs-as-root" not in codes(status)
        start = site.starts()[0]
        assert (start["uids"], start["gids"], start["groups"]) == ([1000] * 3, [1000] * 3, [1000])
        assert (site.layout.run_record.stat().st_uid, site.layout.token.stat().st_mode & 0o777) == (1000, 0o600)
        assert owners(site) == {(1000, 1000)}
        assert pod.stop() == 0
    assert "Traceback" not in pod.output_so_far()
    with boot(site) as pod:
        assert pod.wait_for("ready")["identity"]["reason"] == "the owner of the workspace"
        assert pod.stop() == 0
    assert owners(site) == {(1000, 1000)}
    assert site.tree.stat().st_uid == 0


def test_f1_puid_and_pgid_own_what_is_written(site: Site) -> None:
    with boot(site, environ={"PUID": "4321", "PGID": "8765"}) as pod:
        pod.wait_for("ready")
        start = site.starts()[0]
        assert (start["uids"], start["gids"]) == ([4321] * 3, [8765] * 3)
        assert (start["user"], start["env"]["HOME"]) == ("comfypod", str(site.layout.home))
        assert stat.S_IMODE(site.layout.home.stat().st_mode) == 0o700
        assert pod.stop() == 0
    assert owners(site) == {(4321, 8765)}


def test_f1_a_user_without_a_passwd_entry_starts_and_owns_the_files(site: Site) -> None:
    site.layout.root.mkdir()
    site.layout.root.chmod(0o775)
    with boot(site, user=12345, group=0, extra_groups=[]) as pod:
        status = pod.wait_for("ready")
        assert (status["identity"]["uid"], status["identity"]["gid"]) == (12345, 0)
        start = site.starts()[0]
        assert (start["user"], start["env"]["HOME"]) == ("comfypod", str(site.layout.home))
        assert pod.stop() == 0
    assert owners(site) == {(0, 0), (12345, 0)}
    assert site.layout.root.stat().st_uid == 0


def test_f1_an_old_volume_of_roots_works_and_is_reported(site: Site) -> None:
    site.layout.root.mkdir()
    (site.layout.root / "mine.txt").write_text("mine")
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert status["identity"]["uid"] == 0
        assert "runs-as-root" in codes(status)
        assert site.starts()[0]["uids"] == [0] * 3
        assert pod.stop() == 0


def test_f2_a_puid_that_cannot_write_the_volume_names_path_owner_and_remedy(site: Site) -> None:
    site.layout.root.mkdir(mode=0o755)
    (site.layout.root / "mine.txt").write_text("mine")
    with boot(site, environ={"PUID": "1000"}) as pod:
        status = pod.wait_for("failed")
        assert f"{site.layout.root} belongs to 0:0 (mode 0755)" in status["reasons"][0]
        assert "chown -R 1000:1000" in status["problems"][0]["hint"]
        assert pod.probe("/livez") == (200, "live")
        assert os.listdir(site.layout.root) == ["mine.txt"]
        assert pod.stop() == 8


def test_f2_a_container_user_that_cannot_write_the_volume_is_told_what_to_do(site: Site) -> None:
    site.layout.root.mkdir(mode=0o755)
    with boot(site, "--set", "on_failure=exit", user=12345, group=0, extra_groups=[]) as pod:
        assert pod.process.wait(20) == 8
    said = pod.output_so_far()
    assert f"{site.layout.root} belongs to 0:0 (mode 0755) and cannot be written by 12345:0" in said
    assert "--user 0:0" in said


def test_f7_files_of_the_users_keep_their_owner_and_mode(site: Site) -> None:
    model = site.layout.comfyui / "models" / "vae" / "mine.bin"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"mine")
    os.chown(site.layout.root, 1000, 1000)
    os.chown(site.layout.comfyui, 1000, 1000)
    before = model.stat()
    with boot(site) as pod:
        assert pod.wait_for("ready")["identity"]["uid"] == 1000
        assert pod.stop() == 0
    after = model.stat()
    assert (after.st_uid, after.st_mode, after.st_ctime_ns) == (before.st_uid, before.st_mode, before.st_ctime_ns)


def test_services_that_a_killed_boot_left_are_ended_by_the_next_one_of_the_same_user(site: Site) -> None:
    with boot(site) as pod:
        orphan = pod.wait_for("ready")["services"][0]["pid"]
        pod.process.kill()
        pod.process.wait()
        with boot(site) as again:
            assert again.wait_for("ready")["services"][0]["pid"] != orphan
            assert proc.start_ticks(orphan) is None
            assert again.stop() == 0
    assert proc.with_variable(f"{run.MARK}={site.layout.root}") == []


def test_root_may_ask_a_pod_of_another_user(site: Site) -> None:
    with boot(site) as pod:
        pod.wait_for("ready")
        environ = {**os.environ, "COMFYPOD_CONTROL_PORT": str(site.control_port)}
        argv = (ROOT / ".venv/bin/python", "-m", "comfypod", "health", "--workspace", site.layout.root)
        for gone in (False, True):
            if gone:
                site.layout.run_record.unlink()
            asked = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
            assert (asked.returncode, asked.stdout) == (0, "ready\n")


def test_a7_a_workspace_that_is_no_volume_works_and_is_reported(site: Site) -> None:
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert codes(status) == {"not-a-mount"}
        assert "lost with the container" in status["problems"][0]["message"]
        assert "-v " in status["problems"][0]["hint"]
    with tmpfs(site.layout.root.with_name("volume")) as volume, boot(site, "--workspace", str(volume)) as pod:
        assert codes(pod.wait_for("ready")) == set()


def test_the_link_of_the_image_leads_to_the_volume_and_a_folder_there_is_left_alone(site: Site) -> None:
    link = site.folder / "root" / "ComfyUI"
    with boot(site) as pod:
        pod.wait_for("ready")
        assert link.readlink() == site.layout.comfyui
        assert pod.stop() == 0
    link.unlink()
    link.mkdir()
    with boot(site) as pod:
        assert "link" in codes(pod.wait_for("ready"))
        assert pod.stop() == 0
    assert not link.is_symlink()


def test_where_the_link_may_not_be_changed_it_is_said_and_no_problem(site: Site) -> None:
    site.layout.root.mkdir()
    os.chown(site.layout.root, 12345, 0)
    with boot(site, user=12345, group=0, extra_groups=[]) as pod:
        status = pod.wait_for("ready")
        assert codes(status) == {"not-a-mount"}
        assert "does not lead there (Permission denied)" in status["stages"][0]["detail"]
    assert (site.folder / "root" / "ComfyUI").readlink() == site.tree


def test_f9_baked_nodes_and_models_are_used_where_they_are(site: Site) -> None:
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert [(row["name"], row["state"]) for row in status["nodes"]] == [("pack", "loaded")]
        argv = site.starts()[0]["argv"]
        given = json.loads((site.layout.records / "extra_model_paths.yaml").read_text())
        assert argv[argv.index("--extra-model-paths-config") + 1] == str(site.layout.extra_paths)
        assert given["baked_pack"] == {"custom_nodes": str(site.folder / "opt" / "nodes" / "pack")}
        assert given["baked_models"]["base_path"] == str(site.folder / "opt" / "models")
        assert not os.path.lexists(site.layout.comfyui / "custom_nodes" / "pack")


@pytest.mark.parametrize("name", ["models", "custom_nodes"])
def test_f9_only_one_folder_mounted_still_gives_a_pod_with_the_baked_nodes(site: Site, name: str) -> None:
    (site.layout.comfyui / name).mkdir(parents=True)
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert [(row["name"], row["state"]) for row in status["nodes"]] == [("pack", "loaded")]
        assert "seeded ComfyUI 1" in status["stages"][0]["detail"]
        assert pod.stop() == 0


def test_e10_a_gpu_image_without_a_gpu_is_refused_and_runs_on_the_cpu_when_asked(folder: Path, python: str) -> None:
    from comfypod import gpu
    from comfypod.podfile import GpuNeed

    if gpu.probe().gpus:
        pytest.skip("this machine has a GPU")
    need = GpuNeed("4090", "RTX 40 series", ("8.9",), 525)
    site = image_site(folder, python, Orders(), gpu=need, comfyui_args=())
    with boot(site, "--set", "on_failure=exit") as pod:
        assert pod.process.wait(20) == 13
    said = pod.output_so_far()
    for words in ("COMFYPOD_ALLOW_CPU=1", "--gpus all", "profile cpu", "no NVIDIA driver is installed"):
        assert words in said
    assert site.starts() == []
    with boot(site, environ={"COMFYPOD_ALLOW_CPU": "1"}) as pod:
        assert "no-gpu" in codes(pod.wait_for("ready"))
        assert site.starts()[0]["argv"].count("--cpu") == 1


def test_f6_a_read_only_root_with_a_writable_workspace_is_enough(site: Site) -> None:
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    sealed = ("unshare", "--mount", "sh", "-c", script, str(site.folder))
    with boot(site, prefix=sealed, environ={"HOME": "/"}) as pod:
        status = pod.wait_for("ready")
        assert [stage["state"] for stage in status["stages"]] == ["done"] * 5
        assert site.starts()[0]["env"]["HOME"] == str(site.layout.home)
        assert pod.stop() == 0
    assert "Read-only" not in pod.output_so_far()
    assert "Traceback" not in pod.output_so_far()


def test_a12_a_clone_on_the_volume_runs_at_once_is_reported_and_taken_over_when_asked_for(site: Site) -> None:
    plain_clone(site.layout)
    node = site.layout.comfyui / "custom_nodes" / "pack" / "__init__.py"
    with boot(site) as pod:
        status = pod.wait_for("ready")
        assert codes(status) >= {"adoptable"}
        assert {row["name"] for row in status["nodes"]} == {"pack", "ComfyUI-Manager"}
        assert site.starts()[0]["argv"].count("--base-directory") == 1
        assert pod.stop() == 0
    with boot(site, environ={"COMFYPOD_ADOPT": "auto"}) as pod:
        status = pod.wait_for("ready")
        assert "adopted, with ComfyUI 1" in status["stages"][0]["detail"]
        assert "a Git clone was found" in status["stages"][0]["detail"]
        assert "adoptable" not in codes(status)
        assert "--base-directory" not in site.starts()[1]["argv"]
        assert pod.stop() == 0
    assert "mine" in node.read_text()
    assert (site.layout.adopted / "1" / "ComfyUI" / "comfy" / "edited.py").read_text() == "edited by hand"


def test_models_of_an_adopted_volume_are_named_to_comfyui(site: Site) -> None:
    ai_dock_storage(site.layout)
    with boot(site, environ={"COMFYPOD_ADOPT": "auto"}) as pod:
        pod.wait_for("ready")
        given = json.loads(site.layout.extra_paths.read_text())["adopted_1"]
        assert pod.stop() == 0
    stored = "storage/stable_diffusion/models"
    assert given == {"base_path": str(site.layout.root), "checkpoints": f"{stored}/ckpt", "loras": f"{stored}/lora"}


def test_f4_a_noexec_volume_and_lost_exec_bits_work_and_the_former_is_said(site: Site) -> None:
    with tmpfs(site.layout.root.with_name("volume"), noexec=True) as volume:
        for _ in range(2):
            with boot(site, "--workspace", str(volume)) as pod:
                status = pod.wait_for("ready")
                assert codes(status) == {"noexec"}
                assert "mount it without noexec" in status["problems"][0]["hint"]
                assert pod.stop() == 0
            for path in (volume / "ComfyUI").rglob("*.py"):
                if not path.is_symlink():
                    path.chmod(0o644)
