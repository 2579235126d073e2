from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import HostError, SourceError, UsageError
from comfypod.gpu import Gpu, Survey
from comfypod.host import image
from comfypod.host.image import Choice, ensure_built_from, ensure_platform, find_image, gpu_options
from comfypod.image.labels import lock_digest
from comfypod.lock.load import read_lock
from comfypod.log import Console
from tests.unit.host import fakes
from tests.unit.host.fakes import FakeEngine, Memory, fake

if TYPE_CHECKING:
    from comfypod.image.engine import Engine

NOTHING = Survey(trouble="no NVIDIA driver is installed")
ADA = Survey("570.1", (Gpu("RTX 4090", 24_000_000_000, "8.9"),))
FOR_ADA = fakes.image(profile="4090", variant="full", driver="525", capabilities="7.0 8.9")
FOR_CPU = fakes.image(profile="cpu", variant="slim")


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(out: io.StringIO) -> Console:
    return Console(out)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine]:
    """What works on this machine, by name; both are on the PATH."""
    found: dict[str, FakeEngine] = {}

    def find(name: str = "auto", *, building: bool) -> Engine:
        assert not building
        if name not in found:
            raise HostError(f"{name} does not work")
        return found[name]

    monkeypatch.setattr("comfypod.image.detect.find", find)
    monkeypatch.setattr("comfypod.image.detect.programs", lambda name: [f"/usr/bin/{name}"])
    monkeypatch.setattr(image, "probe", lambda: NOTHING)
    return found


def found(console: Console, engine: str = "docker", reference: str | None = None, profile: str = "auto") -> Choice:
    return find_image(engine, reference, profile, offline=False, console=console)


def test_the_image_of_the_profile_that_fits_is_what_build_has_tagged(
    engines: dict[str, FakeEngine], console: Console, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["docker"] = fake(memory=Memory({"comfypod:4090": FOR_ADA, "comfypod:cpu": FOR_CPU}))
    chosen = found(console)
    assert (chosen.reference, chosen.profile, chosen.has_jupyter, chosen.named) == ("comfypod:cpu", "cpu", False, False)
    monkeypatch.setattr(image, "probe", lambda: ADA)
    chosen = found(console)
    assert (chosen.reference, chosen.has_jupyter) == ("comfypod:4090", True)
    assert "profile 4090: RTX 4090 has compute capability 8.9" in out.getvalue()
    assert found(console, profile="cpu").reference == "comfypod:cpu"
    with pytest.raises(UsageError, match="no profile 'none'"):
        found(console, profile="none")


def test_an_image_that_was_not_built_is_never_fetched(engines: dict[str, FakeEngine], console: Console) -> None:
    engines["docker"] = fake(memory=Memory(pulls={"comfypod:cpu": FOR_CPU}))
    with pytest.raises(HostError, match="there is no image comfypod:cpu in docker") as caught:
        found(console)
    assert "`comfypod build cpu`" in caught.value.hint
    assert "--image" in caught.value.hint
    assert engines["docker"].memory.done == []


def test_a_named_image_is_fetched_where_it_is_not_here_unless_offline(
    engines: dict[str, FakeEngine], console: Console, out: io.StringIO
) -> None:
    engines["docker"] = fake(memory=Memory(pulls={"r/a:1": FOR_CPU}))
    with pytest.raises(HostError, match="--offline forbids"):
        find_image("docker", "r/a:1", "auto", offline=True, console=console)
    assert engines["docker"].memory.done == []
    assert found(console, reference="r/a:1").named
    assert "pulling: layer" in out.getvalue()
    with pytest.raises(SourceError, match="docker cannot fetch the image r/b:1: not authorised"):
        found(console, reference="r/b:1")


def test_auto_takes_the_engine_that_has_the_image(engines: dict[str, FakeEngine], console: Console) -> None:
    engines["podman"] = fake("podman", Memory({"r/a:1": FOR_CPU}))
    assert found(console, "auto", "r/a:1").engine.name == "podman"
    engines["docker"] = fake(memory=Memory(pulls={"r/b:1": FOR_CPU}))
    assert found(console, "auto", "r/a:1").engine.name == "podman"
    assert found(console, "auto", "r/b:1").engine.name == "docker"
    engines.clear()
    with pytest.raises(HostError, match="auto does not work"):
        found(console, "auto", "r/a:1")
    with pytest.raises(HostError, match="podman does not work"):
        found(console, "podman", "r/a:1")


def test_an_image_that_is_not_ours_or_of_another_profile_is_refused(
    engines: dict[str, FakeEngine], console: Console
) -> None:
    engines["docker"] = fake(memory=Memory({"debian:12": fakes.image(), "r/a:1": FOR_ADA}))
    with pytest.raises(UsageError, match="comfypod did not build the image debian:12"):
        found(console, reference="debian:12")
    with pytest.raises(UsageError, match="is for profile 4090, not cpu"):
        found(console, reference="r/a:1", profile="cpu")


def test_an_image_of_another_lock_is_warned_of(console: Console, out: io.StringIO) -> None:
    lock = read_lock(None)
    ensure_built_from(lock, Choice(fake(), "a", fakes.image(profile="cpu", lock=lock_digest(lock))), console)
    assert out.getvalue() == ""
    ensure_built_from(lock, Choice(fake(), "a", fakes.image(profile="cpu", lock="0")), console)
    assert "WARNING a was built from another lock; `comfypod build cpu`" in out.getvalue()


def test_an_image_for_another_machine_needs_an_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(image, "ensure_runs", asked.append)
    for platform in ("linux/arm64/v8", "linux/amd64", "plan9/mips"):
        ensure_platform(fakes.image(platform))
    assert asked == ["linux/arm64", "linux/amd64"]


@pytest.mark.parametrize(
    ("survey", "choice", "options"),
    [
        (ADA, Choice(fake(), "a", FOR_ADA), ("--gpus", "all")),
        (ADA, Choice(fake("podman"), "a", FOR_ADA), ("--device", "nvidia.com/gpu=all")),
        (ADA, Choice(fake(), "a", FOR_CPU), ()),
        (NOTHING, Choice(fake(), "a", FOR_CPU), ()),
    ],
)
def test_the_gpu_is_handed_over_where_there_is_one_and_it_is_of_use(
    monkeypatch: pytest.MonkeyPatch, console: Console, survey: Survey, choice: Choice, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(image, "probe", lambda: survey)
    assert gpu_options(choice, allow_cpu=False, console=console) == options


@pytest.mark.parametrize(
    ("survey", "named", "words"),
    [
        (NOTHING, False, "profile 4090 needs an NVIDIA GPU: no NVIDIA driver is installed; use --profile cpu, or set"),
        (NOTHING, True, "use an image of profile cpu, or set COMFYPOD_ALLOW_CPU=1"),
        (Survey("570.1", (Gpu("RTX 5090", 1, "12.0"),)), True, "is for 7.0, 8.9 .*; use an image of profile 5090"),
        (Survey("470.1", ADA.gpus), False, "older than 525.*; update the driver or use --profile cpu, or set"),
    ],
)
def test_e10_a_machine_that_cannot_run_the_image_is_told_what_can(
    monkeypatch: pytest.MonkeyPatch, console: Console, out: io.StringIO, survey: Survey, named: bool, words: str
) -> None:
    monkeypatch.setattr(image, "probe", lambda: survey)
    choice = Choice(fake(), "a", FOR_ADA, named=named)
    with pytest.raises(HostError, match=words):
        gpu_options(choice, allow_cpu=False, console=console)
    assert gpu_options(choice, allow_cpu=True, console=console) == (("--gpus", "all") if survey.gpus else ())
    assert "it runs on the CPU because COMFYPOD_ALLOW_CPU=1" in out.getvalue()
