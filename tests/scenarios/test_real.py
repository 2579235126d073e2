"""The main job on the real ComfyUI: from an empty machine to pictures, without a network, again and again."""

from __future__ import annotations

import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from comfypod import podfile, proc
from comfypod.lock.load import read_lock
from comfypod.log import human_bytes
from tests.kit import comfyui, models
from tests.kit.pods import ROOT, free_port

if TYPE_CHECKING:
    from tests.scenarios.conftest import FirstUp, RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]


def _picture(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    noise = random.Random(3)
    picture.putdata([(noise.randrange(190), noise.randrange(190), noise.randrange(190)) for _ in range(width * height)])
    return picture


def _png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def test_up_on_an_empty_data_directory_prints_the_urls(first_up: FirstUp) -> None:
    """The first run of all: ComfyUI, its environment and JupyterLab fetched, installed, seeded, started."""
    site, envelope = first_up.site, first_up.envelope
    urls = envelope["data"]["urls"]
    assert urls == {"comfyui": f"http://127.0.0.1:{site.ports[0]}", "jupyter": f"http://127.0.0.1:{site.ports[1]}"}
    lock = read_lock(None)
    target = lock.target("cpu", platform.machine())
    environment, jupyter = lock.environment(target.comfyui), lock.environment(target.jupyter)
    assert f"{len(environment.packages)} packages for ComfyUI" in first_up.said
    fetched = lock.comfyui.bytes + environment.download_bytes + jupyter.download_bytes
    assert f"{human_bytes(fetched)} to fetch" in first_up.said
    assert envelope["data"]["status"]["comfyui"]["version"] == "0.30.0"
    stats = json.loads(site.client.get("/system_stats"))
    assert stats["system"]["comfyui_version"] == "0.30.0"
    assert stats["devices"][0]["type"] == "cpu"
    assert b"<html" in site.client.get("/").lower()
    assert site.client.get("/object_info/KSampler")


def test_a_clean_boot_has_no_warning_or_error_of_ours(first_up: FirstUp) -> None:
    lines = (first_up.site.layout.logs / "boot.log").read_text().splitlines()
    assert [line for line in lines if "WARNING" in line or "ERROR" in line] == []
    assert first_up.envelope["data"]["status"]["problems"] == []
    assert first_up.envelope["errors"] == []


def test_an_uploaded_picture_through_an_upscale_model_gives_the_right_pixels(first_up: FirstUp) -> None:
    client = first_up.site.client
    models.upscaler(first_up.site.layout.comfyui / "models" / "upscale_models" / "tiny.safetensors")
    source = _picture(12, 9)
    (result,) = client.render(comfyui.upscale(client.upload("source.png", _png(source)), "tiny.safetensors"))
    enlarged = Image.open(io.BytesIO(result)).convert("RGB")
    assert enlarged.size == (24, 18)
    for y in range(18):
        for x in range(24):
            lift = round(models.LIFT[2 * (y % 2) + x % 2] * 255)
            expected = tuple(value + lift for value in source.getpixel((x // 2, y // 2)))  # type: ignore[union-attr]
            found = enlarged.getpixel((x, y))
            assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), (x, y)  # type: ignore[arg-type]


def test_the_whole_sampling_path_renders(first_up: FirstUp) -> None:
    """Checkpoint loader, text encoder, KSampler and VAE decoder, on a checkpoint of random weights.

    Text encoder and VAE have Stable Diffusion 1's real shapes, the UNet two of its four levels: what fits two cores.
    """
    site = first_up.site
    pod = podfile.load(site.layout.pod_file)
    models.checkpoint(
        site.layout.comfyui / "models" / "checkpoints" / "random.safetensors", pod.python, site.layout.comfyui
    )
    pictures = [site.client.render(comfyui.sample("random.safetensors", seed=seed))[0] for seed in (1, 2)]
    first, second = (Image.open(io.BytesIO(data)).convert("RGB") for data in pictures)
    assert first.size == (64, 64)
    assert len(first.getcolors(64 * 64) or ()) > 100
    assert first.tobytes() != second.tobytes()


def test_jupyterlab_asks_for_its_token(first_up: FirstUp) -> None:
    first_up.site.wait_for_jupyter()
    url = f"http://127.0.0.1:{first_up.site.ports[1]}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/api/contents", timeout=10)
    with refused.value:
        assert refused.value.code == 401
    token = first_up.site.layout.token.read_text().strip()
    request = urllib.request.Request(f"{url}/api/contents", headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        names = [entry["name"] for entry in json.load(response)["content"]]
    assert "ComfyUI" in names
    assert first_up.site.layout.token.stat().st_mode & 0o777 == 0o600
    for log in first_up.site.layout.logs.iterdir():
        assert token not in log.read_text()


def test_comfyui_is_reachable_from_this_machine_alone(first_up: FirstUp) -> None:
    first_up.site.wait_for_jupyter()
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    for port in first_up.site.ports:
        rows = [row.split()[3] for row in listening.splitlines() if row.split()[3].endswith(f":{port}")]
        assert rows == [f"127.0.0.1:{port}"]


def test_another_workspace_uses_the_same_store(site: RealSite) -> None:
    envelope = site.up()
    assert envelope["data"]["status"]["boot"]["seconds_to_ready"] < 120
    markers = list((site.machine.folder / "data" / "store").glob("*/*/.complete"))
    assert len(markers) == 3


@pytest.mark.root
def test_a11_no_network_at_all_on_a_second_up(site: RealSite) -> None:
    """In a network namespace with nothing but loopback: `up`, a picture, `down`."""
    site.up()
    site.down()
    arguments = [sys.executable, "-m", "comfypod", *site.up_arguments()]
    script = 'ip link set lo up && ! getent hosts example.com && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, timeout=300,
        env={**os.environ, **site.environ}, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pid = json.loads(done.stdout)["data"]["status"]["services"][0]["pid"]
    inside = ["nsenter", "--net", "--target", str(pid), sys.executable, "-m", "comfypod"]
    workspace = ["--workspace", str(site.layout.root)]
    health = subprocess.run([*inside, "health", *workspace], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (health.returncode, health.stdout) == (0, "ready\n")
    assert subprocess.run([*inside, "down", *workspace], capture_output=True, cwd=ROOT, check=False).returncode == 0


@pytest.mark.root
def test_an_empty_store_with_no_network_names_every_source_and_leaves_nothing(tmp_path: Path) -> None:
    """The default lock in a network namespace with nothing but loopback and no caches."""
    ports = [word for flag in ("--port", "--jupyter-port", "--control-port") for word in (flag, str(free_port()))]
    arguments = ["up", "--profile", "cpu", "--detach", "--workspace", str(tmp_path / "workspace"), *ports]
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    done = subprocess.run(
        [*alone, sys.executable, "-m", "comfypod", *arguments],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
        env={**os.environ, "COMFYPOD_DATA": str(tmp_path / "data"), "UV_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    for source in ("from the package index", "ComfyUI.git at v0.30.0", "archive/refs/tags/v0.30.0"):
        assert source in done.stdout
    assert "check the network" in done.stdout
    assert not list((tmp_path / "data" / "store").glob("comfyui*/*"))
    assert not (tmp_path / "workspace" / "ComfyUI").exists()


def test_e1_a_node_that_ends_comfyui_at_import_is_left_out(site: RealSite) -> None:
    site.up()
    site.down()
    node = site.layout.comfyui / "custom_nodes" / "deadly"
    node.mkdir()
    (node / "__init__.py").write_text("import os\nprint('deadly node leaves', flush=True)\nos._exit(7)\n")
    envelope = site.up()
    status = envelope["data"]["status"]
    assert envelope["status"] == "partial"
    assert status["services"][0]["safe_mode"] is False
    assert status["services"][0]["restarts"] == 1
    reason = "ComfyUI ended with 7 while it was loaded"
    assert status["nodes"] == [{"name": "deadly", "state": "aside", "reason": reason}]
    shutil.rmtree(node)


def test_a_broken_core_ends_up_with_comfyuis_last_words(site: RealSite) -> None:
    site.up()
    site.down()
    main = site.layout.comfyui / "main.py"
    kept = main.read_text()
    main.write_text("raise RuntimeError('core is broken')\n")
    done = site.run(*site.up_arguments())
    assert done.returncode == 10
    error = json.loads(done.stdout)["errors"][0]
    assert "core is broken" in error["message"]
    assert error["hint"].endswith("comfyui.log")
    main.write_text(kept)


def test_e5_sigterm_when_idle_stops_everything_cleanly(site: RealSite) -> None:
    site.up()
    pids = site.wait_for_jupyter()
    done = site.down()
    assert done.returncode == 0
    assert float(done.stdout.split()[-2]) < 8
    assert [proc.start_ticks(pid) for pid in pids] == [None, None]
    assert "Stopped server" in (site.layout.logs / "comfyui.log").read_text()


def test_a10_ten_boots_in_a_row(site: RealSite) -> None:
    """Ten real boots: each is clean, nothing of ours grows, no process is left."""
    boots: list[dict[Path, int]] = []
    for _ in range(10):
        envelope = site.up()
        assert envelope["status"] == "success"
        assert envelope["data"]["status"]["problems"] == []
        site.down()
        kept = [path for path in site.layout.root.rglob("*") if path.is_file() and site.layout.logs not in path.parents]
        boots.append({path: path.stat().st_size for path in kept})
    # ComfyUI-Manager keeps the logs of two earlier runs.
    assert [sorted(kept.keys() - boots[2].keys()) for kept in boots[3:]] == [[]] * 7
    assert abs(sum(boots[-1].values()) - sum(boots[2].values())) < 100_000


def test_an_edit_survives_the_next_boot(site: RealSite) -> None:
    site.up()
    saved = site.layout.comfyui / "user" / "default" / "workflows" / "mine.json"
    request = urllib.request.Request(
        f"{site.client.url}/userdata/workflows%2Fmine.json", b'{"mine": 1}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
    site.down()
    site.up()
    assert json.loads(site.client.get("/userdata/workflows%2Fmine.json")) == {"mine": 1}
    assert Path(saved).is_file()
