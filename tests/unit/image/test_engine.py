from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import proc
from comfypod.errors import HostError
from comfypod.image import detect, facts
from comfypod.image.api import docker_api
from comfypod.image.detect import find
from comfypod.image.engine import Engine
from comfypod.image.request import Build, options
from comfypod.image.settle import settle
from tests.kit import engine as kit

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = '{"Client": {"Version": "CLIENT"}, "Server": {"Version": "20.10.24", "ApiVersion": "1.41"}}'
NO_SERVER = '{"Client": {"Version": "20.10.24"}, "Server": null}'


class Machine:
    """A PATH of stand-ins for engines, each a few lines of shell."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.folders: list[str] = []
        self._monkeypatch = monkeypatch
        self._set()

    def _set(self) -> None:
        self._monkeypatch.setattr("comfypod.image.detect.os.get_exec_path", lambda: self.folders)

    def program(self, name: str, *cases: str) -> str:
        """Put a program on the PATH behind those that are there; a case is `PATTERN) COMMANDS`."""
        folder = self.root / str(len(self.folders))
        folder.mkdir()
        body = "\n".join(f"{case} ;;" for case in cases)
        path = folder / name
        path.write_text(f'#!/bin/sh\ncase "$*" in\n{body}\n*) exit 125 ;;\nesac\n')
        path.chmod(0o755)
        self.folders.append(str(folder))
        return str(path)

    def docker(self, client: str = "20.10.24", *cases: str) -> str:
        return self.program("docker", f"version*) echo '{SERVER.replace('CLIENT', client)}'", *cases)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


BUILDX = ('"buildx version") echo buildx', '"buildx inspect") echo driver')


def test_docker_with_buildx_is_taken_before_an_earlier_docker_without(machine: Machine) -> None:
    machine.docker("20.10.24")
    second = machine.docker("28.1.0", *BUILDX)
    engine = find("docker")
    assert (engine.program, engine.builder) == (second, (second, "buildx", "build"))
    assert "DOCKER_BUILDKIT" not in engine.environment


def test_an_old_client_builds_with_the_buildkit_that_it_has_within(machine: Machine) -> None:
    machine.docker("28.1.0")
    old = machine.docker("20.10.24+dfsg1")
    engine = find()
    assert (engine.program, engine.builder, engine.environment["DOCKER_BUILDKIT"]) == (old, (old, "build"), "1")


def test_a_new_client_without_buildx_runs_containers_and_does_not_build(machine: Machine) -> None:
    program = machine.docker("28.1.0")
    assert find("docker", building=False).program == program
    with pytest.raises(HostError, match="cannot build with BuildKit") as caught:
        find("docker")
    assert "buildx" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        ("echo 'Cannot connect to the Docker daemon. Is it running?' >&2; exit 1", "is not running", "systemctl start"),
        ("echo 'dial unix docker.sock: connect: permission denied' >&2; exit 1", "may not use", "usermod"),
        ("true", "names no server", "podman"),
    ],
)
def test_each_lack_of_docker_has_its_sentence(machine: Machine, answer: str, message: str, hint: str) -> None:
    machine.program("docker", f"version*) echo '{NO_SERVER}'; {answer}")
    with pytest.raises(HostError, match=message) as caught:
        find("docker")
    assert hint in caught.value.hint


def test_a_daemon_that_never_answers_is_not_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "_SECONDS", 0.5)
    machine.program("docker", "version*) sleep 60")
    with pytest.raises(HostError, match="did not answer"):
        find("docker")


def test_no_engine_at_all_says_what_to_install(machine: Machine) -> None:
    with pytest.raises(HostError, match="no container engine: neither docker nor podman") as caught:
        find()
    assert "apt install docker.io" in caught.value.hint
    for name in ("docker", "podman", "buildah"):
        with pytest.raises(HostError, match=f"{name} is not on the PATH"):
            find(name)


def test_podman_is_taken_where_docker_does_not_work(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.program("docker", "version*) exit 1")
    podman = machine.program("podman", 'info*) echo \'{"version": {"Version": "4.3.1"}}\'')
    engine = find()
    assert (engine.name, engine.version, engine.builder) == ("podman", "4.3.1", (podman, "build"))


def test_buildah_needs_podman_and_falls_back_to_chroot_where_nothing_can_be_started(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUILDAH_ISOLATION", raising=False)
    buildah = machine.program("buildah", "from*) echo probe", "run*) echo 'runc: no' >&2; exit 1", "rm*) true")
    with pytest.raises(HostError, match="podman is not on the PATH, which runs them"):
        find("buildah")
    podman = machine.program("podman", "info*) echo '{}'")
    engine = find("buildah")
    assert (engine.program, engine.builder) == (podman, (buildah, "build"))
    assert engine.environment == {"BUILDAH_ISOLATION": "chroot"}


def test_a_link_to_a_program_is_tried_once(machine: Machine) -> None:
    program = machine.docker()
    folder = machine.root / "links"
    folder.mkdir()
    (folder / "docker").symlink_to(program)
    machine.folders.append(str(folder))
    assert detect.programs("docker") == [program]


def request(**more: Any) -> Build:
    return Build(Path("/c"), Path("/c/Dockerfile"), "slim", "a:1", **more)


def test_a_build_is_told_to_each_engine_in_its_own_words() -> None:
    full = request(
        platform="linux/arm64", args={"BASE": "b:1"}, labels={"l": "v"}, secrets={"build": Path("/s")}, network="host",
        timestamp=7,
    )  # fmt: skip
    common = "--file /c/Dockerfile --target slim --tag a:1 --platform linux/arm64 --network host --build-arg BASE=b:1 "
    common += "--label l=v --secret id=build,src=/s /c"
    assert " ".join(options(full, docker=True, buildx=False)) == f"--progress plain {common}"
    assert " ".join(options(full, docker=True, buildx=True)) == (
        f"--progress plain --load --provenance=false --allow network.host {common}"
    )
    assert " ".join(options(full, docker=False, buildx=False)) == (
        f"--layers --force-rm --format docker --timestamp 7 {common}"
    )
    assert "--network" not in options(request(), docker=True, buildx=False)


def test_layers_are_joined_with_the_steps_that_made_them() -> None:
    body = {
        "Id": "ab", "Os": "linux", "Architecture": "arm64", "Variant": "v8", "Size": 30, "RepoTags": ["a:1"],
        "RepoDigests": ["a@sha256:77"], "RootFS": {"Layers": ["sha256:1", "sha256:2", "sha256:3"]},
        "Config": {"Labels": {"k": "v"}, "Env": ["A=1"], "Entrypoint": ["tini"], "Cmd": None, "User": "7"},
    }  # fmt: skip
    history = [
        {"CreatedBy": 'CMD ["x"]', "Size": "0"},
        {"CreatedBy": "RUN /bin/sh -c true # buildkit", "Size": "0"},
        {"CreatedBy": "/bin/sh -c #(nop) COPY file:1 in /a ", "Size": "10"},
        {"CreatedBy": "", "Comment": "Imported from -", "Size": "20"},
    ]
    image = facts.image(body, history)
    assert (image.id, image.digest, image.platform) == ("sha256:ab", "sha256:77", "linux/arm64/v8")
    assert [(layer.digest, layer.size, layer.step) for layer in image.layers] == [
        ("sha256:1", 20, "Imported from -"),
        ("sha256:2", 10, "COPY file:1 in /a"),
        ("sha256:3", 0, "RUN /bin/sh -c true"),
    ]
    assert image.command == ()
    unknown = facts.image(body, history[:1])
    assert [layer.size for layer in unknown.layers] == [None, None, None]


def test_ports_and_health_of_a_container_are_read() -> None:
    body = {
        "Id": "c", "Name": "/n", "Image": "sha256:i", "Config": {"Labels": None},
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "Health": {"Status": "unhealthy"}},
        "NetworkSettings": {"Ports": {"1/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8188"}], "2/tcp": None}},
    }  # fmt: skip
    found = facts.container(body)
    assert (found.name, found.running, found.exit_code, found.out_of_memory) == ("n", False, 137, True)
    assert (found.health, found.ports) == ("unhealthy", {"1/tcp": ("127.0.0.1", 8188)})


# From here on with real engines.


@pytest.fixture(scope="module", params=["docker", "podman", "buildah"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "docker" and isinstance(kit.found(), str) and os.environ.get("CI") == "true":
        pytest.fail(str(kit.found()))
    try:
        return find(request.param)
    except HostError as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    name = f"comfypod-test-engine:{secrets.token_hex(4)}"
    yield name
    engine.remove_image(name)


def context(folder: Path, text: str) -> Path:
    (folder / "file").write_text("contents")
    (folder / "Dockerfile").write_text(text)
    return folder


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ticks = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def tick(self) -> None:
        self.ticks += 1


SCRATCH = 'FROM scratch AS slim\nCOPY file /file\nFROM slim AS full\nCOPY file /more\nENV A=1\nENTRYPOINT ["/x"]\n'


def test_an_image_is_built_named_looked_at_and_removed(engine: Engine, tag: str, tmp_path: Path) -> None:
    folder, log, told = context(tmp_path, SCRATCH), tmp_path / "log", Told()
    build = Build(folder, folder / "Dockerfile", "full", tag, labels={"k": "v"}, timestamp=0)
    done = engine.build(build, log, told)
    assert done.ok, log.read_text()
    assert told.lines == log.read_text().splitlines()
    assert log.stat().st_mode & 0o777 == 0o600
    image = engine.image(tag)
    assert image is not None
    assert (image.labels["k"], image.entrypoint, "A=1" in image.environment) == ("v", ("/x",), True)
    assert len(image.layers) == 2
    assert all(layer.digest.startswith("sha256:") and layer.size for layer in image.layers)
    other = f"{tag}-2"
    engine.tag(image.id, other)
    assert engine.image(other) is not None
    assert engine.remove_image(other)
    assert not engine.remove_image(other)
    assert engine.image(other) is None


def test_h1_buildah_gives_equal_inputs_the_same_manifest_digest(engine: Engine, tag: str, tmp_path: Path) -> None:
    if engine.name != "buildah":
        pytest.skip("only buildah's images are settled")
    folder = context(tmp_path, SCRATCH + "HEALTHCHECK CMD true\n")
    digests = set()
    for _ in range(2):
        done = engine.build(Build(folder, folder / "Dockerfile", "full", tag, timestamp=0), tmp_path / "log")
        assert done.ok
        before = engine.image(tag)
        settle(engine, tag)
        image = engine.image(tag)
        assert image is not None
        assert before is not None
        assert [layer.digest for layer in image.layers] == [layer.digest for layer in before.layers]
        assert "Healthcheck" in engine.ask("image", "inspect", tag)
        digests.add((image.id, image.digest))
        engine.remove_image(tag)
        engine.remove_image(before.id)
    assert len(digests) == 1


def test_a_build_that_fails_says_so_and_leaves_no_name(engine: Engine, tag: str, tmp_path: Path) -> None:
    folder, told = context(tmp_path, "FROM scratch AS slim\nCOPY missing /missing\n"), Told()
    done = engine.build(Build(folder, folder / "Dockerfile", "slim", tag), tmp_path / "log", told)
    assert not done.ok
    assert any("missing" in line for line in told.lines)
    assert engine.image(tag) is None


@pytest.fixture
def base(engine: Engine) -> str:
    if engine.image(kit.BASE) is None:
        pytest.skip(f"{engine.name} has no image {kit.BASE}; {kit.SETUP}")
    return kit.BASE


def test_a_build_is_bounded_and_its_secrets_stay_out_of_the_image(
    engine: Engine, base: str, tag: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-4711")
    step = "RUN --mount=type=secret,id=build test -s /run/secrets/build"
    folder = context(tmp_path, f"ARG BASE\nFROM ${{BASE}} AS slim\n{step}\n")
    build = Build(folder, folder / "Dockerfile", "slim", tag, args={"BASE": base}, secrets={"build": secret})
    done = engine.build(build, tmp_path / "log")
    assert done.ok, (tmp_path / "log").read_text()
    assert "canary" not in repr(engine.image(tag))
    folder = context(tmp_path, f"FROM {base} AS slim\nRUN sleep 300 # {tag}\n")
    began = time.monotonic()
    slow = engine.build(Build(folder, folder / "Dockerfile", "slim", f"{tag}-slow"), tmp_path / "log", seconds=4)
    assert slow.timed_out
    assert time.monotonic() - began < 30
    assert engine.image(f"{tag}-slow") is None


def test_a_container_runs_answers_stops_and_is_removed(engine: Engine, base: str) -> None:
    label = f"comfypod-test={secrets.token_hex(4)}"
    script = "trap 'exit 3' TERM; echo told $SECRET; while :; do sleep 0.1; done"
    argv = ("--network", "none", "--label", label, "--volume", "/data")
    container = engine.run(base, argv, ("bash", "-c", script), {"SECRET": "canary"})
    try:
        found = engine.container(container)
        assert found is not None
        assert (found.running, found.id) == (True, container)
        assert engine.containers(label) == [container]
        done = engine.exec(container, ["sh", "-c", "echo $0 $B; exit 4", "zero"], environment={"B": "two"}, user="7:0")
        assert (done.returncode, done.stdout) == (4, "zero two\n")
        assert engine.logs(container) == engine.logs(container, 1) == "told canary\n"
        assert engine.stop(container, 5)
        found = engine.container(container)
        assert found is not None
        assert (found.running, found.exit_code) == (False, 3)
    finally:
        assert engine.remove(container)
    assert not engine.remove(container)
    assert not engine.stop(container, 1)
    assert engine.container(container) is None
    assert engine.logs(container) == ""


def test_a_container_that_cannot_start_leaves_nothing(engine: Engine, base: str) -> None:
    label = f"comfypod-test={secrets.token_hex(4)}"
    with pytest.raises(HostError, match=f"{engine.name} cannot start .*no-such-program"):
        engine.run(base, ("--network", "none", "--label", label), ("/no-such-program",))
    assert engine.containers(label) == []


def test_an_image_that_is_nowhere_cannot_be_pulled(engine: Engine, tmp_path: Path) -> None:
    name = "127.0.0.1:9/nothing:1"
    for work in (engine.pull, engine.push):
        told = Told()
        assert not work(name, tmp_path / "log", told).ok
        assert told.lines
    with pytest.raises(HostError, match="failed at `tag"):
        engine.tag(name, "other:1")


def test_programs_that_speak_dockers_api_reach_the_engine(engine: Engine) -> None:
    with docker_api(engine) as environ:
        host = environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if not Path(host.removeprefix("unix://")).is_socket():
            pytest.skip("this docker answers elsewhere")
        curl = ["curl", "--silent", "--unix-socket", host.removeprefix("unix://"), "http://d/v1.40/version"]
        done = proc.run(curl, seconds=20)
        assert re.search(r'"ApiVersion":\s*"', done.stdout)
    if environ:
        assert not Path(host.removeprefix("unix://")).exists()
