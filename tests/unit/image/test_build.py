from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from comfypod.errors import (
    ComfypodError,
    HostError,
    ImageError,
    InstallError,
    IntegrityError,
    LockError,
    SourceError,
    StorageError,
    UsageError,
)
from comfypod.image import build as building
from comfypod.image import plan
from comfypod.image.build import Options, build
from comfypod.image.facts import Image, Layer
from comfypod.image.plan import Base
from comfypod.image.progress import Steps, build_error
from comfypod.image.render import render
from comfypod.image.smoke import Check
from comfypod.lock.load import read_lock
from comfypod.log import Console
from comfypod.manifest.profiles import load_profiles
from comfypod.proc import Completed

if TYPE_CHECKING:
    from comfypod.image.engine import Engine as RealEngine
    from comfypod.image.engine import Watch
    from comfypod.image.request import Build

BASE = load_profiles()["cpu"].base
PINNED = f"debian@sha256:{'a' * 64}"
LAYERS = (Layer("sha256:base", 5, "base"),)


def image(identifier: str = "sha256:00base", *layers: Layer, **labels: str) -> Image:
    return Image(identifier, "", (), plan.native(), 9, labels, (), (), (), "", layers or LAYERS)


@dataclass
class Engine:
    """As much of an engine as a build needs, in memory."""

    images: dict[str, Image] = field(default_factory=lambda: {BASE: image()})
    fails: tuple[str, ...] = ()
    ends: BaseException | None = None
    requests: list[Build] = field(default_factory=list)
    secrets: list[dict[str, str]] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    there: tuple[str, ...] = ()
    name = "docker"
    program = "/bin/docker"
    version = "1"
    builder = ("/bin/docker", "build")

    def image(self, reference: str) -> Image | None:
        return self.images.get(reference)

    def build_command(self, request: Build) -> list[str]:
        return ["docker", "build", *(f"--secret=id={name},src={path}" for name, path in request.secrets.items())]

    def build(self, request: Build, log: Path, watch: Watch) -> Completed:
        self.requests.append(request)
        self.secrets.append({name: path.read_text() for name, path in request.secrets.items()})
        log.write_text("\n".join(self.fails))
        for line in self.fails:
            watch.line(line)
        if self.ends is not None:
            raise self.ends
        if not self.fails:
            added = Layer("sha256:new", 4, "RUN")
            self.images[request.tag] = image("sha256:11new", *LAYERS, added, **request.labels)
        return Completed((), 1 if self.fails else 0, "", "")

    def tag(self, reference: str, name: str) -> None:
        self.images[name] = next(each for each in self.images.values() if reference == each.id)

    def remove_image(self, reference: str) -> bool:
        return self.images.pop(reference, None) is not None

    def push(self, reference: str, log: Path, watch: Watch) -> Completed:
        self.pushed.append(reference)
        return Completed((), 0, "", "")

    def published(self, reference: str) -> bool:
        return reference in self.there

    @property
    def tags(self) -> set[str]:
        return set(self.images) - {BASE}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    found = Engine()
    monkeypatch.chdir(tmp_path)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "SSL_CERT_FILE", "COMFYPOD_GIT_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COMFYPOD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(building, "find", lambda _: found)
    monkeypatch.setattr("comfypod.image.structure.program", lambda: "/bin/container-structure-test")
    monkeypatch.setattr("comfypod.image.smoke.smoke", lambda *_: [Check("boot", 1.0, "ready")])
    monkeypatch.setattr(
        "comfypod.image.context.write_context", lambda _, __, folder, ___: (folder / "f").write_text("x")
    )
    return found


def cpu(**more: Any) -> Options:
    return Options(profiles=("cpu",), **more)


def short() -> str:
    from comfypod.image.labels import lock_digest

    return lock_digest(read_lock(None))[:12]


def test_an_image_is_tried_and_then_gets_a_fixed_and_a_moving_tag(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def look(*_: Any) -> list[Check]:
        seen.append(engine.tags)
        return []

    monkeypatch.setattr("comfypod.image.smoke.smoke", look)
    result = build(cpu(variants=("all",)), Console(quiet=True))
    version = read_lock(None).comfyui.version
    fixed = [f"comfypod:{version}-cpu-{variant}-{short()}" for variant in ("slim", "full")]
    assert engine.tags == {*fixed, "comfypod:cpu", "comfypod:cpu-slim"}
    assert len(seen[0]) == 1
    assert all(tag.startswith("comfypod-candidate:") for tag in seen[0])
    first = result.data["images"][0]
    assert (first["variant"], first["tags"]) == ("slim", [fixed[0], "comfypod:cpu-slim"])
    assert set(first["seconds"]) == {"context", "build", "smoke"}
    assert Path(first["log"]).is_file()
    request = engine.requests[0]
    assert (request.target, request.args, request.platform) == ("slim", {"BASE": BASE}, None)
    assert request.labels["org.opencontainers.image.base.digest"] == "sha256:00base"
    assert request.timestamp is not None


def test_the_same_may_be_built_again_and_something_else_may_not_take_its_tag(engine: Engine) -> None:
    build(cpu(), Console(quiet=True))
    build(cpu(), Console(quiet=True))
    engine.images[BASE] = image("sha256:22other")
    count = len(engine.requests)
    with pytest.raises(UsageError, match="is here already, made from something else") as caught:
        build(cpu(), Console(quiet=True))
    assert "--tag" in caught.value.hint
    assert len(engine.requests) == count
    build(cpu(tag="mine:1"), Console(quiet=True))
    assert "mine:1" in engine.tags


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), HostError("the daemon is gone")])
def test_whatever_ends_a_build_no_name_is_left(engine: Engine, end: BaseException) -> None:
    engine.ends = end
    with pytest.raises(type(end)):
        build(cpu(), Console(quiet=True))
    assert engine.tags == set()
    assert not any(path.exists() for request in engine.requests for path in request.secrets.values())
    assert not engine.requests[0].context.exists()


def test_an_image_that_does_not_pass_gets_no_tag(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> list[Check]:
        raise ImageError("a node cannot be imported")

    monkeypatch.setattr("comfypod.image.smoke.smoke", refuse)
    with pytest.raises(ImageError):
        build(cpu(push=True, tag="registry.example/a:1"), Console(quiet=True))
    assert (engine.tags, engine.pushed) == (set(), [])


def test_a_base_whose_tag_moved_meanwhile_is_noticed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "images", {BASE: image("sha256:33", Layer("sha256:other", 1, ""))})
    with pytest.raises(IntegrityError, match="not built on"):
        build(cpu(), Console(quiet=True))
    assert engine.tags == set()


def test_a_failing_build_names_the_locked_item_and_keeps_its_log(engine: Engine) -> None:
    engine.fails = ("#8 0.1 COMFYPOD FAILED torch: the digest differs", "executor failed running [...]")
    with pytest.raises(IntegrityError, match="cpu full was not built: torch: the digest differs") as caught:
        build(cpu(tag="a/b:c"), Console(quiet=True))
    assert engine.tags == set()
    assert Path(caught.value.hint.removeprefix("the whole log is ")).read_text().startswith("#8")


def test_dry_run_says_everything_and_does_nothing(engine: Engine, tmp_path: Path) -> None:
    result = build(cpu(dry_run=True, index="https://u:pa55@i/"), Console(quiet=True))
    assert engine.requests == []
    assert engine.tags == set()
    assert not (tmp_path / "data").exists()
    assert "pa55" not in result.text + str(result.data)
    for said in ("layer torch", "base debian", "tag comfypod:cpu", "id=build,src=<build>", "nothing was built"):
        assert said in result.text
    assert result.data["images"][0]["base"]["digest"] == "sha256:00base"


def test_g9_passwords_reach_a_build_as_secrets_alone(engine: Engine) -> None:
    build(cpu(index="https://u:pa55@i/"), Console(quiet=True))
    request = engine.requests[0]
    assert "pa55" in engine.secrets[0]["build"]
    assert "pa55" not in f"{request.args}{request.labels}{request.tag}"


def test_push_needs_a_registry_and_comes_last(engine: Engine) -> None:
    with pytest.raises(UsageError, match="names no registry"):
        build(cpu(push=True), Console(quiet=True))
    build(cpu(push=True, tag="registry.example/a:1"), Console(quiet=True))
    assert engine.pushed == ["registry.example/a:1"]


def test_a_tag_that_does_not_move_is_pushed_once(engine: Engine) -> None:
    build(cpu(push=True, repository="registry.example/a"), Console(quiet=True))
    fixed, moving = engine.pushed
    assert moving.endswith(":cpu")
    engine.pushed.clear()
    engine.there = (fixed,)
    build(cpu(push=True, repository="registry.example/a"), Console(quiet=True))
    assert engine.pushed == [moving]


@pytest.mark.parametrize(
    "base", ["debian", "debian:latest", "registry.example:5000/debian", "debian:bullseye", "debian@sha256:12", "--help"]
)
def test_h2_a_base_that_nothing_pins_is_refused(engine: Engine, base: str) -> None:
    engine.images["debian:latest"] = image()
    with pytest.raises(UsageError, match=r"not pinned|is not the name of an image") as caught:
        build(cpu(base=base), Console(quiet=True))
    assert "@sha256:" in caught.value.hint
    assert engine.requests == []


def test_a_pinned_base_need_not_be_here(engine: Engine) -> None:
    build(cpu(base=PINNED), Console(quiet=True))
    assert engine.requests[0].labels["org.opencontainers.image.base.digest"] == PINNED.partition("@")[2]


def test_a_base_for_another_machine_is_refused(engine: Engine) -> None:
    engine.images["debian:other"] = replace(image(), platform="linux/s390x")
    with pytest.raises(UsageError, match="is for linux/s390x"):
        build(cpu(base="debian:other"), Console(quiet=True))


@pytest.mark.parametrize(
    ("options", "family", "said"),
    [
        (cpu(variants=("thin",)), UsageError, "full, slim or all"),
        (cpu(variants=("all",), tag="a:1"), UsageError, "2 are to be built"),
        (cpu(tag="a"), UsageError, "NAME:TAG is expected"),
        (cpu(tag="host:5000/a"), UsageError, "NAME:TAG is expected"),
        (cpu(tag="-a:1"), UsageError, "NAME:TAG is expected"),
        (cpu(tag="a..b:1"), UsageError, "NAME:TAG is expected"),
        (cpu(tag="Upper:1"), UsageError, "NAME:TAG is expected"),
        (cpu(tag="a/b/:1"), UsageError, "NAME:TAG is expected"),
        (Options(profiles=("none",)), UsageError, "there is no profile"),
        (cpu(lock=Path("/none.lock")), LockError, "cannot read"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is(
    engine: Engine, options: Options, family: type[ComfypodError], said: str
) -> None:
    with pytest.raises(family, match=said):
        build(options, Console(quiet=True))
    assert engine.requests == []


def test_a_lock_out_of_step_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "comfypod.toml").write_text("schema = 1\n")
    with pytest.raises(LockError, match=r"no comfypod\.lock beside it"):
        build(cpu(), Console(quiet=True))


def test_without_names_every_profile_of_the_platform_is_built(engine: Engine) -> None:
    result = build(Options(dry_run=True), Console(quiet=True))
    arch = next(arch for arch, name in plan.PLATFORMS.items() if name == plan.native())
    expected = [target.profile for target in read_lock(None).targets if target.arch == arch]
    assert [each["profile"] for each in result.data["images"]] == expected


def test_another_platform_needs_an_emulator_that_containers_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    plan.ensure_runs("linux/amd64", tmp_path)
    with pytest.raises(HostError, match="cannot run programs for linux/arm64") as caught:
        plan.ensure_runs("linux/arm64", tmp_path)
    assert "qemu-user-static" in caught.value.hint
    entry = tmp_path / "qemu-aarch64"
    entry.write_text("enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: P\n")
    with pytest.raises(HostError):
        plan.ensure_runs("linux/arm64", tmp_path)
    entry.write_text("enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\n")
    plan.ensure_runs("linux/arm64", tmp_path)
    monkeypatch.setenv("DOCKER_HOST", "ssh://elsewhere")
    plan.ensure_runs("linux/arm64", tmp_path / "none")


def test_tags_of_another_architecture_say_so(engine: Engine) -> None:
    engine.images["debian:arm"] = replace(image(), platform="linux/arm64/v8")
    chosen, door = [load_profiles()["cpu"]], cast("RealEngine", engine)
    found = plan.make_plans(read_lock(None), chosen, ("slim",), "linux/arm64", base="debian:arm", tag=None, engine=door)
    assert [tag.endswith("-arm64") for tag in found[0].tags] == [True, True]


def test_layers_below_must_be_the_base_s() -> None:
    plan.ensure_from(Base("a", "d"), image())
    plan.ensure_from(Base("a", "d", ("sha256:base",)), image())
    with pytest.raises(IntegrityError):
        plan.ensure_from(Base("a", "d", ("sha256:base", "sha256:more")), image())


@pytest.mark.parametrize(
    ("lines", "family", "said"),
    [
        (
            ["#8 0.4 COMFYPOD FAILED numpy: Failed to fetch https://i/: dns error"],
            SourceError,
            "numpy: Failed to fetch",
        ),
        (["0.4 COMFYPOD FAILED node a: git.example answered 404"], SourceError, "node a: git.example answered 404"),
        (["COMFYPOD FAILED x 1: no matching hash"], IntegrityError, "x 1: no matching hash"),
        (["COMFYPOD FAILED x: no solution", "COMFYPOD FAILED y: cannot compile"], InstallError, "y: cannot compile"),
        (["COMFYPOD FAILED x: No space left on device"], StorageError, "x: No space"),
        (['RUN echo "COMFYPOD FAILED x: y"', "exit code: 1"], ImageError, "exit code: 1"),
        (["#9 write /x: no space left on device"], StorageError, "no space left"),
        (["#9 1.2 https://u:pa55@i/ is wrong", "------", ""], ImageError, "https://i/ is wrong"),
        ([], ImageError, "the engine printed nothing"),
    ],
)
def test_the_end_of_a_build_is_read_from_what_was_printed(
    lines: list[str], family: type[ComfypodError], said: str
) -> None:
    error = build_error(lines, "cpu slim", "/log")
    assert type(error) is family
    assert said in error.message
    assert "pa55" not in error.message
    assert error.hint == "the whole log is /log"


class Lines(Console):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def line(self, text: str = "", *, private: bool = False) -> None:
        self.said.append(text)


def test_every_step_is_said_once_and_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Lines()
    now = [100.0]
    monkeypatch.setattr("comfypod.image.progress.time.monotonic", lambda: now[0])
    steps = Steps(console, "cpu")
    for text in (
        "#1 [internal] load build definition", "#5 [slim 2/9] RUN --mount=type=secret,id=build apt-get update",
        "#5 0.2 Get:1 http://u:pa55@mirror", "#5 [slim 2/9] RUN --mount=type=secret,id=build apt-get update",
        "[1/2] STEP 2/7: COPY a /a", "#9 exporting to image", "#9 sha256:12 done",
    ):  # fmt: skip
        steps.line(text)
    steps.tick()
    now[0] += 20
    steps.tick()
    steps.tick()
    assert console.said == [
        "  cpu [slim 2/9] RUN apt-get update",
        "  cpu [1/2] STEP 2/7: COPY a /a",
        "  cpu exporting to image",
        "  cpu 20 s: exporting to image",
    ]


def test_render_prints_one_file_or_writes_many(engine: Engine, tmp_path: Path) -> None:
    one = render("dockerfile", ["cpu"], None, None)
    assert one.text.startswith("#")
    assert one.data["files"] == ["Dockerfiles/Dockerfile.cpu"]
    assert 'target "cpu-slim"' in render("bake", [], None, None).text
    assert "services:" in render("compose", [], None, None).text
    with pytest.raises(UsageError, match="standard output takes one"):
        render("dockerfile", [], None, None)
    with pytest.raises(UsageError, match="standard output takes one"):
        render("all", ["cpu"], None, None)
    written = render("all", ["cpu"], None, tmp_path)
    assert written.data["changed"] == written.data["files"]
    assert (tmp_path / "Dockerfiles/Dockerfile.cpu").read_text() == one.text + "\n"
    (tmp_path / "compose.yaml").write_text("edited")
    assert render("all", ["cpu"], None, tmp_path).data["changed"] == ["compose.yaml"]
    assert render("bake", ["cpu"], None, tmp_path / "other").data["files"] == ["docker-bake.hcl"]
