"""The real images, built by `comfypod build` from the default lock, run by a real engine without a GPU.

Slow, and worth it: these are the very files that users run. One build serves all tests of the session.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import msgspec
import pytest
from PIL import Image

from comfypod.image.workflow import read_png
from comfypod.lock.load import read_lock
from tests.kit import comfyui
from tests.kit.models import LIFT
from tests.kit.pods import free_port
from tests.kit.real_images import (
    MODEL,
    NODE,
    NODE_FILES,
    TOKEN,
    Container,
    Inside,
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

VARIANTS = ("slim", "full")
# Gzipped bytes that a machine with the image before the change fetches again.
NODE_BUDGET = 20_000_000
COMFYUI_BUDGET = 100_000_000
_OWN_ADDRESS = "import socket; print(socket.gethostbyname(socket.gethostname()))"
_DOORS = (
    ("GET", 8188, "/"), ("POST", 8188, "/prompt"), ("GET", 8188, "/ws"), ("GET", 8188, "/view?filename=a.png"),
    ("POST", 8188, "/upload/image"), ("GET", 8188, "/api/manager/reboot"), ("GET", 8188, "/v2/manager/queue/start"),
    ("GET", 8188, "/_pod/status"), ("GET", 8188, "/jupyter/api/contents"), ("GET", 8888, "/api/contents"),
    ("GET", 8888, "/lab"), ("GET", 8888, "/api/kernels"),
)  # fmt: skip
# A scan of every port, then a request to each door with no token.
_SCAN = f"""
import http.client, json, socket
def opens(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("{{address}}", port)) == 0
answers = {{{{}}}}
for method, port, path in {_DOORS!r}:
    connection = http.client.HTTPConnection("{{address}}", port, timeout=10)
    connection.request(method, path, b"" if method == "POST" else None)
    answers[f"{{{{method}}}} {{{{port}}}} {{{{path}}}}"] = connection.getresponse().status
print(json.dumps({{{{"open": [port for port in range(1, 65536) if opens(port)], "answers": answers}}}}))
"""


@pytest.fixture(scope="package")
def cpu(real_images: RealImages) -> str:
    return real_images.image("cpu", "slim")


@pytest.mark.parametrize("variant", VARIANTS)
def test_h6_every_image_boots_on_cpu_loads_all_baked_nodes_and_runs_a_workflow_before_its_tag(
    real_images: RealImages, variant: str
) -> None:
    real_images.ensure_tried("cpu", variant)


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
    machine, arch = real_images.python(cpu, code)
    assert machine == arch == os.uname().machine


def test_a_baked_pack_is_used_by_a_workflow_and_is_not_copied_to_the_volume(
    real_images: RealImages, cpu: str, tmp_path: Path
) -> None:
    with running(real_images.engine, cpu, "--network", "none", "-v", f"{tmp_path}/ws:/workspace") as container:
        status = container.wait_ready()
        assert [(row["name"], row["state"]) for row in status["models"]] == [(f"kit/{MODEL}", "present")]
        client, drawn = Inside(container), io.BytesIO()
        Image.new("RGB", (8, 6), (10, 100, 190)).save(drawn, "PNG")
        (result,) = client.render(comfyui.upscale(client.upload("plain.png", drawn.getvalue()), MODEL))
    width, height, colours = read_png(result)
    assert (width, height) == (16, 12)
    lifts = sorted(round(lift * 255) for lift in LIFT)
    for found, lift in zip(sorted(colours), lifts, strict=True):
        assert all(abs(a - b - lift) <= 1 for a, b in zip(found, (10, 100, 190), strict=True))
    assert list((tmp_path / "ws").rglob(MODEL)) == []


def test_g9_a_gated_pack_is_fetched_with_its_hosts_token_which_no_image_tells(
    real_images: RealImages, cpu: str
) -> None:
    assert f"Bearer {TOKEN}" in real_images.site.logins
    engine = real_images.engine
    image = engine.image(cpu)
    assert image is not None
    assert image.labels["io.comfypod.models.licences"] == "cc0-1.0"
    assert any(f"model-kit-{MODEL}" in layer.step for layer in image.layers)
    assert TOKEN not in engine.ask("image", "inspect", cpu) + engine.ask("history", "--no-trunc", cpu)
    document = real_images.python(cpu, "print(open('/etc/comfypod/sbom.cdx.json').read())")
    (row,) = (row for row in document["components"] if row["name"] == f"kit/{MODEL}")
    assert row["licenses"] == [{"license": {"name": "cc0-1.0"}}]


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
        assert names[NODE] == "loaded"
        if inner:
            assert (status["identity"]["uid"], set(problems(status))) == (1000, {"not-a-mount"})
        if inner != "ComfyUI/models":
            assert names["user_node"] == "loaded"


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
    with running(real_images.engine, image, *options) as container:
        status = container.wait_ready()
        assert workspace.stat().st_uid == 1000
        assert problems(status) == {}
        token = (workspace / ".comfypod" / "token").read_text().strip()
        _wait_jupyter(container)
        for url in (f"http://127.0.0.1:{port}/system_stats", f"http://127.0.0.1:{jupyter}/api/status"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
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


def test_g1_from_another_container_only_the_published_ports_answer_and_want_the_token(
    real_images: RealImages, tmp_path: Path
) -> None:
    image = real_images.image("cpu", "full")
    with running(real_images.engine, image, "-v", f"{tmp_path}/ws:/workspace") as container:
        container.wait_ready()
        _wait_jupyter(container)
        address = container.python(_OWN_ADDRESS, "/opt/comfypod/bin/python")
        with running(real_images.engine, image, "--entrypoint", "sleep", command=("600",)) as other:
            found = json.loads(other.python(_SCAN.format(address=address), "/opt/comfypod/bin/python"))
    assert found["open"] == [8188, 8888]
    assert set(found["answers"].values()) == {401}, found["answers"]
    assert len(found["answers"]) == len(_DOORS)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_h5_an_image_is_little_more_than_its_wheels_unpacked(real_images: RealImages, variant: str) -> None:
    real_images.ensure_lean("cpu", variant)


def test_h5_slim_is_smaller_than_full(real_images: RealImages) -> None:
    assert real_images.result("cpu", "slim")["size"] < real_images.result("cpu", "full")["size"]
