"""The real images, built by `comfypod build` from the default lock, run by a real engine without a GPU.

Slow, and worth it: these are the very files that users run. One build serves all tests of the session.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from comfypod.lock.load import read_lock
from tests.kit.pods import free_port
from tests.kit.real_images import (
    NODE,
    NODE_FILES,
    REPOSITORY,
    Container,
    RealImages,
    changed_bytes,
    make_node,
    problems,
    running,
    with_node,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.real]

# These share their layers; the 5090's, which shares none, comes last: both and their caches do not fit on 40 GB.
SHARED = [("cpu", "slim"), ("cpu", "full"), ("4090", "slim")]
# Gzipped bytes that a machine with the image before the change fetches again.
NODE_BUDGET = 20_000_000
COMFYUI_BUDGET = 100_000_000
_OPEN = {"COMFYPOD_AUTH": "none"}


@pytest.fixture(scope="package")
def cpu(real_images: RealImages) -> str:
    return real_images.image("cpu", "slim")


def python_of(images: RealImages, image: str, code: str) -> Any:
    """Run code with ComfyUI's Python in a container of its own; it prints JSON."""
    options = ["--rm", "--network", "none", "--entrypoint", "/opt/venv/bin/python"]
    argv = [images.engine.program, "run", *options, image, "-c", code]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.parametrize(("profile", "variant"), SHARED)
def test_h6_every_image_boots_on_cpu_loads_all_baked_nodes_and_runs_a_workflow_before_its_tag(
    real_images: RealImages, profile: str, variant: str
) -> None:
    ensure_tried(real_images, profile, variant)


def ensure_tried(real_images: RealImages, profile: str, variant: str) -> None:
    """Look at what the build tried, and at the names that it gave."""
    result = real_images.result(profile, variant)
    checks = {check["name"]: check for check in result["smoke"]}
    assert {"structure", "boot", "nodes", "workflow", "logs", "stop"} <= set(checks)
    assert ("jupyter" in checks) == (variant == "full")
    assert checks["nodes"]["detail"] == "1 of 1 import"
    fixed, moving = result["tags"]
    assert fixed.startswith(f"{REPOSITORY}:0.30.0-{profile}-{variant}-")
    assert moving == f"{REPOSITORY}:{profile}" + ("" if variant == "full" else "-slim")
    assert all(real_images.engine.image(tag) is not None for tag in result["tags"])


def test_the_4090_image_has_a_torch_with_native_code_for_its_cards(real_images: RealImages) -> None:
    # torch.cuda.get_arch_list() is empty without a GPU; it returns these flags with one.
    code = "import json, torch; print(json.dumps([torch.version.cuda, torch._C._cuda_getArchFlags().split()]))"
    cuda, flags = python_of(real_images, real_images.image("4090", "slim"), code)
    assert cuda == "12.8"
    # Code for 8.6 runs on 8.9: a binary runs on any later minor version of its major one.
    assert {"sm_86", "sm_89"} & set(flags), flags


def test_a7_a_workspace_that_is_no_mount_is_warned_about_and_works(real_images: RealImages, cpu: str) -> None:
    with running(real_images.engine, cpu, "--network", "none") as container:
        status = container.wait_ready()
        assert "lost with the container" in problems(status)["not-a-mount"]
        assert "KitInvert" in container.nodes()


def test_a11_no_network_at_all_first_boot_and_later_boots(real_images: RealImages, cpu: str, tmp_path: Path) -> None:
    for boot in range(3):
        with running(real_images.engine, cpu, "--network", "none", "-v", f"{tmp_path}/ws:/workspace") as container:
            status = container.wait_ready()
            told = next(stage["detail"] for stage in status["stages"] if stage["name"] == "workspace")
            assert ("seeded" in told) == (boot == 0)
            assert problems(status) == {}
            assert container.python("import os; print(os.path.realpath('/ComfyUI'))") == "/workspace/ComfyUI"


def test_e10_a_gpu_image_without_a_gpu_is_refused_with_a_sentence_and_allow_cpu_runs(
    real_images: RealImages, tmp_path: Path
) -> None:
    image = real_images.image("4090", "slim")
    volume = ("-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, image, "--network", "none", *volume) as container:
        status = container.wait_for("failed")
        (reason,) = status["reasons"]
        assert "needs an NVIDIA GPU" in reason
        told = json.dumps(status["problems"])
        assert "COMFYPOD_ALLOW_CPU=1" in told
        assert "--gpus all" in told
    allowed = {"COMFYPOD_ALLOW_CPU": "1"}
    with running(real_images.engine, image, "--network", "none", *volume, env=allowed) as container:
        container.wait_ready()
        assert json.loads(container.ask("/system_stats")[1])["devices"][0]["type"] == "cpu"


@pytest.mark.parametrize(
    ("options", "env", "owner"),
    [
        ((), {}, (1000, 1000)),
        ((), {"PUID": "4321", "PGID": "8765"}, (4321, 8765)),
        (("--user", "12345:0"), {}, (12345, 0)),
        ((), {"PUID": "0"}, (0, 0)),
    ],
    ids=["root", "puid", "user", "root-on-purpose"],
)
def test_f1_any_user_starts_and_files_get_that_owner(
    real_images: RealImages, cpu: str, tmp_path: Path, options: tuple[str, ...], env: dict[str, str],
    owner: tuple[int, int],
) -> None:  # fmt: skip
    workspace = tmp_path / "ws"
    if options:
        workspace.mkdir()
        os.chown(workspace, *owner)
    volume = ("-v", f"{workspace}:/workspace")
    with running(real_images.engine, cpu, "--network", "none", *volume, *options, env=env) as container:
        status = container.wait_ready()
        assert (status["identity"]["uid"], status["identity"]["gid"]) == owner
        assert "runs-as-root" not in problems(status)
        found = {(path.lstat().st_uid, path.lstat().st_gid) for path in [workspace, *workspace.rglob("*")]}
        assert found == {owner}
        pids = [service["pid"] for service in status["services"]]
        who = container.python(f"import os; print([os.stat(f'/proc/{{pid}}').st_uid for pid in {pids}])")
        assert who == str([owner[0]] * len(pids))


def test_f2_a_volume_of_roots_and_a_container_that_is_not_is_named_with_its_remedy(
    real_images: RealImages, cpu: str, tmp_path: Path
) -> None:
    (tmp_path / "ws" / "old").mkdir(parents=True)
    (tmp_path / "ws").chmod(0o755)
    volume = ("-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, cpu, "--network", "none", *volume, "--user", "12345:12345") as container:
        status = container.wait_for("failed")
        told = json.dumps(status["problems"])
        assert "/workspace" in told
        assert "0:0" in told
        assert "chown" in told
    (tmp_path / "ws").chmod(0o775)
    with running(real_images.engine, cpu, "--network", "none", *volume, "--user", "12345:0") as container:
        container.wait_ready()


def test_where_chown_is_refused_the_status_says_what_was_done_instead(
    real_images: RealImages, cpu: str, tmp_path: Path
) -> None:
    volume = ("-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, cpu, "--network", "none", *volume, "--cap-drop", "CHOWN") as container:
        status = container.wait_ready()
        assert status["identity"]["uid"] == 0
        assert "root" in problems(status)["runs-as-root"]


def test_a_platform_that_has_only_root_works_and_says_so(real_images: RealImages, cpu: str, tmp_path: Path) -> None:
    volume = ("-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, cpu, "--network", "none", *volume, "--cap-drop", "ALL") as container:
        status = container.wait_ready()
        assert "runs-as-root" in problems(status)


def test_f6_a_read_only_root_with_a_tmpfs_starts(real_images: RealImages, cpu: str, tmp_path: Path) -> None:
    options = ("--read-only", "--tmpfs", "/tmp", "-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, cpu, "--network", "none", *options) as container:
        status = container.wait_ready()
        assert problems(status) == {}
        assert "KitInvert" in container.nodes()


def test_f8_the_architecture_inside_is_the_machines(real_images: RealImages, cpu: str) -> None:
    code = (
        "import json, platform\n"
        "print(json.dumps([platform.machine(), json.load(open('/etc/comfypod/pod.json'))['arch']]))"
    )
    machine, arch = python_of(real_images, cpu, code)
    assert machine == arch == os.uname().machine


@pytest.mark.parametrize("inner", ["ComfyUI/custom_nodes", "ComfyUI/models", ""], ids=["nodes", "models", "all"])
def test_f9_baked_nodes_are_there_whatever_is_mounted(
    real_images: RealImages, cpu: str, tmp_path: Path, inner: str
) -> None:
    mounted = tmp_path / "mounted"
    user = mounted / {"": "ComfyUI/custom_nodes"}.get(inner, ".") / "user_node"
    if inner != "ComfyUI/models":
        user.mkdir(parents=True)
        (user / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {'UserNode': type('UserNode', (), {})}\n")
    volume = ("-v", f"{mounted}:/workspace/{inner}")
    with running(real_images.engine, cpu, "--network", "none", *volume) as container:
        status = container.wait_ready()
        assert "KitInvert" in container.nodes()
        names = {row["name"]: row["state"] for row in status["nodes"]}
        assert names[NODE] == "baked"
        if inner:
            assert (status["identity"]["uid"], set(problems(status))) == (1000, {"not-a-mount"})
        if inner != "ComfyUI/models":
            assert names["user_node"] == "present"


def test_h5_a_node_bump_pulls_less_than_20_mb_again(real_images: RealImages, cpu: str) -> None:
    lock = read_lock(real_images.lock)
    newer = make_node(real_images.folder / "newer", {"__init__.py": NODE_FILES["__init__.py"] + "\n# newer\n"})
    shutil.move(real_images.folder / "newer" / NODE, real_images.folder / "git" / "newer")
    bumped = msgspec.structs.replace(newer, url=newer.url.replace(NODE, "newer"))
    fetched = changed_bytes(real_images.engine, cpu, real_images.other("cpu", "slim", with_node(lock, bumped)))
    print(json.dumps(fetched, indent=1))
    assert any(f"node-{NODE}" in step for step in fetched)
    assert sum(fetched.values()) < NODE_BUDGET


def test_h5_a_comfyui_bump_pulls_less_than_100_mb_again(real_images: RealImages, cpu: str) -> None:
    older = real_images.older("0.27.0")
    fetched = changed_bytes(real_images.engine, older, cpu)
    print(json.dumps(fetched, indent=1))
    assert any("/layers/comfyui/" in step for step in fetched)
    assert sum(fetched.values()) < COMFYUI_BUDGET


def test_no_layer_is_much_larger_than_1_5_gb(real_images: RealImages, cpu: str) -> None:
    sizes = {layer["step"]: layer["size"] for layer in real_images.result("cpu", "full")["layers"]}
    # torch is one wheel of 1.7 GB, and a wheel is not cut.
    assert max(size for step, size in sizes.items() if "/layers/torch/" not in step) < 1.6e9, sizes
    assert max(sizes.values()) < 1.9e9, sizes


def test_the_seeds_run_line_works_on_a_folder_that_docker_makes(real_images: RealImages, tmp_path: Path) -> None:
    image, port, jupyter = real_images.image("cpu", "full"), free_port(), free_port()
    workspace = tmp_path / "test-workspace"
    options = ("-p", f"127.0.0.1:{port}:8188", "-p", f"127.0.0.1:{jupyter}:8888", "-v", f"{workspace}:/workspace")
    with running(real_images.engine, image, *options, env=_OPEN) as container:
        status = container.wait_ready()
        assert workspace.stat().st_uid == 1000
        assert set(problems(status)) == {"no-login"}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=30) as answer:
            assert answer.status == 200
        token = (workspace / ".comfypod" / "token").read_text().strip()
        _wait_jupyter(container)
        url = f"http://127.0.0.1:{jupyter}/api/status"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(url, timeout=30)
        with urllib.request.urlopen(f"{url}?token={token}", timeout=30) as answer:
            assert answer.status == 200


def _wait_jupyter(container: Container) -> None:
    for _ in range(240):
        states = {row["name"]: row["state"] for row in container.status()["services"]}
        if states.get("jupyter") == "ready":
            return
        container.python("import time; time.sleep(0.5)", "/opt/comfypod/bin/python")
    raise AssertionError("JupyterLab is not ready")


def test_by_default_comfyui_is_not_reachable_from_outside_the_container(
    real_images: RealImages, cpu: str, tmp_path: Path
) -> None:
    port = free_port()
    with running(
        real_images.engine, cpu, "-p", f"127.0.0.1:{port}:8188", "-v", f"{tmp_path}/ws:/workspace"
    ) as container:
        container.wait_ready()
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


def test_the_health_check_is_comfypods_own(real_images: RealImages, cpu: str) -> None:
    with running(real_images.engine, cpu, "--network", "none", "--health-interval", "1s") as container:
        container.wait_ready()
        for _ in range(60):
            state = real_images.engine.container(container.id)
            assert state is not None
            if state.health == "healthy":
                return
            container.python("import time; time.sleep(0.5)", "/opt/comfypod/bin/python")
    raise AssertionError("never healthy")


def test_h6_the_image_that_is_built_in_place_is_tried_like_the_others(real_images: RealImages) -> None:
    ensure_tried(real_images, "5090", "slim")


def test_the_5090_image_has_a_torch_with_sm_120(real_images: RealImages) -> None:
    code = "import json, torch; print(json.dumps([torch.version.cuda, torch._C._cuda_getArchFlags().split()]))"
    cuda, flags = python_of(real_images, real_images.image("5090", "slim"), code)
    assert cuda == "12.8"
    assert "sm_120" in flags


def test_h5_an_image_is_little_more_than_its_wheels_unpacked_and_slim_is_smaller(
    real_images: RealImages, cpu: str
) -> None:
    slim, full = real_images.result("cpu", "slim"), real_images.result("cpu", "full")
    assert slim["size"] < full["size"]
    # What the wheels' own records say that they unpack to, bytecode apart: it is made here.
    code = (
        "import csv, glob, json\n"
        "records = [path for top in ('venv', 'comfypod', 'jupyter')"
        " for path in glob.glob(f'/opt/{top}/lib/python3*/site-packages/*.dist-info/RECORD')]\n"
        "print(json.dumps(sum(int(row[2] or 0) for path in records for row in csv.reader(open(path)))))"
    )
    base = real_images.engine.image("debian:bookworm-slim")
    assert base is not None
    for profile, variant in (*SHARED, ("5090", "slim")):
        wheels = python_of(real_images, real_images.image(profile, variant), code)
        assert real_images.result(profile, variant)["size"] <= 1.15 * (wheels + base.size)
