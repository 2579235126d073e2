"""The arm64 image, built and started under emulation; selected with `-m arm64`, as it takes half an hour and more."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kit.real_images import REPOSITORY, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.real_images import RealImages

pytestmark = [pytest.mark.arm64, pytest.mark.slow, pytest.mark.real]

BASE = "debian:bookworm-slim-arm64"


@pytest.fixture(scope="module")
def base(real_images: RealImages, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a Debian for arm64 where there is none; `docker import` of 20.10 would record the wrong architecture."""
    if real_images.engine.image(BASE) is None:
        folder: Path = tmp_path_factory.mktemp("arm64")
        mirror = "http://deb.debian.org/debian"
        argv = ["mmdebstrap", "--architectures=arm64", "--variant=minbase", "bookworm", "rootfs.tar", mirror]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=1200)
        (folder / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        build = [*real_images.engine.builder, "--quiet", "--platform", "linux/arm64", "--tag", BASE, str(folder)]
        subprocess.run(
            build, check=True, capture_output=True, timeout=600, env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin"}
        )
    return BASE


def test_f8_an_arm64_image_is_built_from_the_same_dockerfile_and_starts(
    real_images: RealImages, base: str, tmp_path: Path
) -> None:
    done = real_images.build("cpu", "slim", "--platform", "linux/arm64", "--base", base)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    result = json.loads(done.stdout)["data"]["images"][0]
    assert result["platform"] == "linux/arm64"
    assert {"structure", "boot", "nodes", "workflow", "logs", "stop"} <= {check["name"] for check in result["smoke"]}
    assert result["tags"][1] == f"{REPOSITORY}:cpu-slim-arm64"
    options = ("--platform", "linux/arm64", "--network", "none", "-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, result["tags"][0], *options) as container:
        container.wait_ready(1800)
        assert container.python("import platform; print(platform.machine())") == "aarch64"
        assert json.loads(container.python("print(open('/etc/comfypod/pod.json').read())"))["arch"] == "aarch64"
