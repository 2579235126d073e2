"""Whole images of the lab's lock, built by a real engine: the same twice, pinned, without traces, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import ImageError, InstallError, IntegrityError, LockError, SourceError, UsageError
from comfypod.image import detect
from comfypod.manifest.profiles import load_profiles
from tests.kit.engine import BASE, LAB, Docker
from tests.kit.images import GIT_HOST, ImageLab, serve_git, serve_index
from tests.kit.repos import make_repository
from tests.kit.web import Answer, serve
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.images.conftest import Servers
    from tests.kit.web import Site

NODE = "lab-node"


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.mark.slow  # Twice without the cache: only what is really made anew can differ.
@pytest.mark.parametrize(("profile", "from_debian"), [("cpu", True), ("5090", False)])
def test_h1_one_lock_built_twice_has_the_same_packages_files_and_labels(
    profile: str, from_debian: bool, docker: Docker, tmp_path: Path, servers: Servers, system: str
) -> None:
    lab = ImageLab(tmp_path, servers.index, servers.git, ("cpu", "5090"))
    lab.add_node(NODE, {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"})
    lab.make_lock()
    # A name of its own: an engine shares the steps of builds that run at the same time when their bases have one name.
    base = f"{LAB}-base-{profile}:1"
    docker.ask("tag", BASE if from_debian else system, base)
    names = [lab.image(docker.engine, f"{LAB}-{profile}:{n}", profile, base=base, fresh=True) for n in (1, 2)]
    one, other = (docker.files(name) for name in names)
    assert len(one) > 8000
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()
    images = [docker.image(name) for name in names]
    assert images[0].labels == images[1].labels
    assert images[0].environment == images[1].environment
    if profile == "cpu":
        # The engine writes the time at which it mounts into the layers of RUN; those of COPY hold nothing but ours.
        copied = [[layer for layer in image.layers if layer.step.startswith("COPY")] for image in images]
        assert len(copied[0]) >= 8
        assert copied[0] == copied[1]


@pytest.mark.slow  # buildah starts from nothing, and again.
def test_h1_buildah_gives_the_same_manifest_digest_twice(docker: Docker, lab: ImageLab, system: str) -> None:
    buildah = detect.find("buildah")
    lab.make_lock()
    base = f"localhost/{system}"
    docker.ask("save", "--output", str(lab.folder / "base.tar"), system)
    subprocess.run(["podman", "load", "--quiet", "--input", str(lab.folder / "base.tar")], check=True)
    tags = [f"localhost/{LAB}-buildah:{n}" for n in (1, 2)]
    try:
        digests = [
            found.digest for tag in tags if (found := buildah.image(lab.image(buildah, tag, base=base, fresh=True)))
        ]
    finally:
        for tag in (*tags, base):
            buildah.remove_image(tag)
    assert digests[0]
    assert digests[0] == digests[1]


def test_h2_a_base_that_nothing_pins_is_refused(docker: Docker, lab: ImageLab) -> None:
    lab.make_lock()
    for base in ("debian:latest", "debian", "debian:no-such-tag", "registry.example.invalid/debian:bookworm"):
        done = lab.build(f"{LAB}-unpinned:1", "--base", base)
        assert done.returncode == UsageError.exit_code
        assert f"the base {base} is not pinned" in said(done)
    assert not [name for name in docker.names() if name.startswith(f"{LAB}-unpinned")]


def test_h2_a_node_without_a_commit_is_refused(docker: Docker, lab: ImageLab) -> None:
    lab.make_lock()
    lab.edit_lock(lambda lock: lock["nodes"][0].update(commit=""))
    done = lab.build(f"{LAB}-no-commit:1")
    assert done.returncode == LockError.exit_code
    assert f"node {NODE} has not exactly one of a commit, a folder and an archive" in said(done)


@pytest.mark.slow  # A whole image, which must start before its nodes are looked at.
def test_h3_a_baked_node_that_cannot_import_fails_the_build_naming_it(docker: Docker, lab: ImageLab) -> None:
    lab.add_node("broken-node", {"__init__.py": "import not_there_at_all\n"})
    lab.make_lock()
    done = lab.build(f"{LAB}-broken:1")
    assert done.returncode == ImageError.exit_code
    assert "broken-node: No module named 'not_there_at_all'" in said(done)
    assert left_over(docker, lab, f"{LAB}-broken:1") == set()


def left_over(docker: Docker, lab: ImageLab, tag: str) -> set[str]:
    """Name what there is of a build that failed: its tag, a candidate of its lock, a container that tried one."""
    names = docker.names()
    digest = hashlib.sha256(lab.lock.read_bytes()).hexdigest()
    images = [(name, docker.engine.image(name)) for name in names if name.startswith("comfypod-candidate")]
    mine = {name for name, image in images if image is not None and image.labels["io.comfypod.lock"] == digest}
    return mine | names & {tag} | set(docker.engine.containers(f"io.comfypod.lock={digest}"))


@pytest.mark.slow  # A whole image: what was locked is one thing, what is in it another.
def test_h4_an_index_that_offers_a_newer_torch_is_not_followed(docker: Docker, lab: ImageLab) -> None:
    for name in ("torch", "torchvision", "torchaudio"):
        build_wheel(lab.index.folder, name, "99.0")
    lab.make_lock()
    wanted = load_profiles()["cpu"].torch
    lock = json.loads(lab.lock.read_text())
    versions = {package["version"] for each in lock["environments"] for package in each["packages"]
                if package["name"] == "torch"}  # fmt: skip
    assert versions == {wanted}
    image = lab.image(docker.engine, f"{LAB}-torch:1")
    code = "import torch; print(torch.__version__)"
    assert docker.ask("run", "--rm", "--entrypoint", "/opt/venv/bin/python", image, "-c", code) == wanted


CANARY = "canary-7d1f0c55"


@pytest.mark.slow  # apt's step is done anew, and every layer is read.
def test_g9_build_secrets_are_in_no_layer_no_history_no_label_and_no_log(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    authority = tmp_path / "ca.pem"
    authority.write_bytes(f"# {CANARY}\n".encode() + _certificates())
    base = docker.unlike_any(f"{LAB}-base-canary:1")
    with (
        serve_index(tmp_path / "wheels", login=f"me:{CANARY}") as index,
        serve_git(tmp_path) as git,
        serve() as site,
    ):
        lab = ImageLab(tmp_path, index, f"{git}{CANARY}/")
        lab.nodes[NODE] = make_repository(tmp_path / CANARY / NODE, {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"})
        lab.make_lock(gated_pack(site))
        assert CANARY not in lab.lock.read_text()
        index.requests.clear()
        done = lab.build(
            f"{LAB}-canary:1", "--apt-mirror", f"{index.root}/debian", "--ca", str(authority), "--base", base,
            HF_ENDPOINT=site.url, HF_TOKEN=f"hf-{CANARY}", CIVITAI_TOKEN=f"civitai-{CANARY}",
        )  # fmt: skip
    assert done.returncode == 0, said(done)
    for asked in ("/debian/dists/", "/debian-security/dists/", "/simple/uv/", "/files/torch-"):
        assert any(path.startswith(asked) for path in index.requests), asked
    assert set(site.logins) == {f"Bearer hf-{CANARY}"}
    assert CANARY not in said(done)
    secret, known = [
        [name for name, data in docker.everything(f"{LAB}-canary:1") if word.encode() in data]
        for word in (CANARY, "NODE_CLASS_MAPPINGS")
    ]
    assert secret == []
    assert [name for name in docker.files(f"{LAB}-canary:1") if name.endswith("opt/models/loras/gated.safetensors")]
    assert [name for name in known if name.endswith(f"{NODE}/__init__.py")]
    logs = list((tmp_path / "data" / "builds").iterdir())
    assert logs
    assert not [log for log in logs if CANARY in log.read_text()]


def gated_pack(site: Site) -> str:
    """Return the table of a pack that is baked, and let the site have its file."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    body = len(header).to_bytes(8, "little") + header + b"x"
    site.answers[f"/me/gated/resolve/{'c' * 40}/gated.safetensors"] = Answer(body)
    return (
        f'[[pack]]\nname = "p"\nbake = true\n[[pack.file]]\nurl = "hf:me/gated@{"c" * 40}/gated.safetensors"\n'
        f'folder = "loras"\ngated = true\nsize = {len(body)}\nsha256 = "{hashlib.sha256(body).hexdigest()}"\n'
    )


def _certificates() -> bytes:
    named = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    with open(named, "rb") as handle:
        return handle.read()


def tamper_wheel(lab: ImageLab) -> None:
    build_wheel(lab.index.folder, "lab-bulk", "1.0", modules={"lab_bulk/__init__.py": "x = 'other'\n"})


def lose_wheel(lab: ImageLab) -> None:
    (lab.index.folder / "lab_bulk-1.0-py3-none-any.whl").unlink()


def stop_git(lab: ImageLab) -> None:
    lab.git = "git://127.0.0.1:1/"


def change_tree(lab: ImageLab) -> None:
    (lab.tree / "main.py").write_text("print('other')\n")


def change_node(lab: ImageLab) -> None:
    lab.edit_lock(lambda lock: lock["nodes"][0].update(digest="sha256:" + "0" * 64))


@pytest.mark.parametrize(
    ("harm", "item", "code"),
    [
        (tamper_wheel, "lab-bulk", IntegrityError.exit_code),
        (lose_wheel, "lab-bulk", InstallError.exit_code),
        (stop_git, f"node {NODE}", SourceError.exit_code),
        (change_tree, "ComfyUI 0.30.0", IntegrityError.exit_code),
        (change_node, f"node {NODE}", IntegrityError.exit_code),
    ],
)
def test_a_build_that_fails_in_the_middle_names_the_item_and_leaves_nothing(
    harm: Callable[[ImageLab], None], item: str, code: int, docker: Docker, lab: ImageLab
) -> None:
    lab.make_unlike_any()
    lab.make_lock()
    harm(lab)
    done = lab.build(f"{LAB}-harmed:1")
    assert f"cpu slim was not built: {item}: " in said(done)
    assert done.returncode == code, said(done)
    assert left_over(docker, lab, f"{LAB}-harmed:1") == set()


def test_a_git_mirror_is_asked_and_what_it_has_is_checked(docker: Docker, lab: ImageLab, tmp_path: Path) -> None:
    lab.make_unlike_any()
    lab.make_lock()
    false_node = make_repository(tmp_path / "false" / NODE, {"__init__.py": f"# {tmp_path}\n"})
    with serve_git(tmp_path / "false") as false:
        # The commit that the lock names is not there.
        done = lab.build(f"{LAB}-mirrored:1", "--git-mirror", f"{GIT_HOST}={false}")
        assert done.returncode == SourceError.exit_code, said(done)
        assert f"node {NODE}: " in said(done)
        # It is there and is another tree: the digest tells.
        commit = false_node.git("rev-parse", "HEAD")
        lab.edit_lock(lambda lock: lock["nodes"][0].update(commit=commit))
        done = lab.build(f"{LAB}-mirrored:1", "--git-mirror", f"{GIT_HOST}={false}")
        assert done.returncode == IntegrityError.exit_code, said(done)
    assert left_over(docker, lab, f"{LAB}-mirrored:1") == set()


def bytes_to_pull(docker: Docker, old: str, new: str) -> int:
    """Count the bytes of the layers that one image has and the other has not, uncompressed."""
    have = set(docker.layers(old))
    missing = [layer for layer in docker.image(new).layers if layer.digest not in have]
    assert all(layer.size is not None for layer in missing)
    return sum(layer.size or 0 for layer in missing)


def steps_to_pull(docker: Docker, old: str, new: str) -> list[str]:
    have = set(docker.layers(old))
    found = [layer.step for layer in docker.image(new).layers if layer.digest not in have]
    return [match[1] if (match := re.search(r"COPY /layers/(\S+)/", step)) else step.split()[0] for step in found]


@pytest.mark.slow  # Three images from one cache.
def test_h5_a_bump_of_a_node_or_of_comfyui_changes_its_layers_and_no_others(docker: Docker, lab: ImageLab) -> None:
    def image(name: str) -> str:
        lab.make_lock()
        return lab.image(docker.engine, f"{LAB}-bump:{name}", stage="full")

    first = image("first")
    lab.nodes[NODE].commit({"new.py": "x = 1\n"})
    node = image("node")
    assert steps_to_pull(docker, first, node) == [f"node-{NODE}", "RUN"]
    assert bytes_to_pull(docker, first, node) < 200_000
    (lab.tree / "nodes.py").write_text("x = 1\n")
    comfyui = image("comfyui")
    assert steps_to_pull(docker, node, comfyui) == ["comfyui", "RUN"]
    assert bytes_to_pull(docker, node, comfyui) < 300_000


def test_the_rendered_dockerfile_works_with_plain_docker_build(docker: Docker, lab: ImageLab) -> None:
    lab.make_lock()
    with lab.request("cpu", "slim", "", BASE) as request:
        secrets = [part for name, path in request.secrets.items() for part in ("--secret", f"id={name},src={path}")]
        done = subprocess.run(
            [
                docker.engine.program, "build", "-f", "Dockerfiles/Dockerfile.cpu", "--target", "slim",
                "-t", f"{LAB}-plain:1", "--network", "host", *secrets, ".",
            ],
            cwd=request.context, env={**os.environ, **docker.engine.environment}, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, said(done)
    assert docker.image(f"{LAB}-plain:1").labels["org.opencontainers.image.base.name"] == BASE
