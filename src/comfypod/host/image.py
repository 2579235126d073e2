"""Which image `up` runs, with which engine, and whether this machine can run it; decided before anything is started."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import HostError, SourceError, UsageError
from comfypod.gpu import choose, lack, probe, verdict
from comfypod.host.wait import News
from comfypod.image import detect
from comfypod.image.bake import REPOSITORY
from comfypod.image.labels import PREFIX, lock_digest
from comfypod.image.plan import PLATFORMS, ensure_runs
from comfypod.manifest.profiles import load_profiles, profile
from comfypod.podfile import GpuNeed

if TYPE_CHECKING:
    from comfypod.gpu import Survey
    from comfypod.image.engine import Engine
    from comfypod.image.facts import Image
    from comfypod.lock.schema import Lock
    from comfypod.log import Console


@dataclass(frozen=True, slots=True)
class Choice:
    """An image that is here, and the engine that has it; `named` by the user, or else chosen by its profile."""

    engine: Engine
    reference: str
    image: Image
    named: bool = True

    @property
    def profile(self) -> str:
        """The profile that it was built for."""
        return self.image.labels[f"{PREFIX}.profile"]

    @property
    def has_jupyter(self) -> bool:
        """Whether JupyterLab may be in it."""
        return self.image.labels.get(f"{PREFIX}.variant") != "slim"


def find_image(engine: str, reference: str | None, wanted: str, *, offline: bool, console: Console) -> Choice:
    """Find the image that was named, or what `comfypod build` made for a profile; only a named one is ever fetched.

    `engine` is "docker", "podman" or "auto", `wanted` a profile or "auto".

    Raises:
        HostError: there is no engine, or it has no such image.
        SourceError: the image cannot be fetched.
        UsageError: the image is not comfypod's, or of another profile.
    """
    named = reference or f"{REPOSITORY}:{_profile(wanted, console)}"
    if named.startswith("-"):
        raise UsageError(f"--image {named!r} is not the name of an image", "such as comfypod:4090")
    engines = working(engine)
    for each in engines:
        if (image := each.image(named)) is not None:
            return _ours(Choice(each, named, image, named=reference is not None), wanted)
    missing = f"there is no image {named} in {' or '.join(each.name for each in engines)}"
    if reference is None:
        name = named.rpartition(":")[2]
        raise HostError(missing, f"`comfypod build {name}` builds it; --image REF names another")
    if offline:
        raise HostError(f"{missing}, and --offline forbids fetching it", "leave --offline out once")
    return _ours(Choice(engines[0], named, _fetched(engines[0], named, console)), wanted)


def working(name: str) -> list[Engine]:
    """Return the engine of a name, or with "auto" every one that works.

    Raises:
        HostError: there is none; the message says what each one lacks.
    """
    if name in ("docker", "podman"):
        return [detect.find("docker" if name == "docker" else "podman", building=False)]
    return present() or [detect.find(building=False)]


def present() -> list[Engine]:
    """Return every engine that works here, perhaps none."""
    found: list[Engine] = []
    for name in ("docker", "podman"):
        try:
            found += working(name) if detect.programs(name) else []
        except HostError:
            continue
    return found


def _profile(name: str, console: Console) -> str:
    if name != "auto":
        return profile(name).name
    choice = choose(probe(), load_profiles())
    console.line(f"profile {choice.profile.name}: {choice.reason}")
    return choice.profile.name


def _ours(choice: Choice, wanted: str) -> Choice:
    """Refuse an image that is not what it is taken for."""
    label = f"{PREFIX}.profile"
    if label not in choice.image.labels:
        raise UsageError(
            f"comfypod did not build the image {choice.reference}: it has no label {label}",
            "`comfypod build` builds one",
        )
    if wanted not in ("auto", choice.profile):
        raise UsageError(
            f"the image {choice.reference} is for profile {choice.profile}, not {wanted}", "leave --profile out"
        )
    return choice


class _Pulling:
    """Shows that a pull goes on, a line every five seconds."""

    def __init__(self, console: Console) -> None:
        self._news, self._last = News(console), ""

    def line(self, text: str) -> None:
        """Take what the engine printed."""
        self._last = text.strip() or self._last

    def tick(self) -> None:
        """Say it when it is due."""
        self._news.tell(f"pulling: {self._last}" if self._last else "")


def _fetched(engine: Engine, reference: str, console: Console) -> Image:
    with tempfile.TemporaryDirectory(prefix="comfypod-pull-") as folder:
        log = Path(folder, "log")
        console.line(f"{engine.name} pull {reference}")
        done = engine.pull(reference, log, _Pulling(console))
        said = [line for line in files.tail(log, 20) if line.strip()]
    image = engine.image(reference) if done.ok else None
    if image is None:
        why = said[-1].strip() if said else f"it ended with {done.returncode}"
        raise SourceError(
            f"{engine.name} cannot fetch the image {reference}: {why}", "check its name, the network and the login"
        )
    return image


def ensure_built_from(lock: Lock, choice: Choice, console: Console) -> None:
    """Warn of an image that is not what the lock says now."""
    if choice.image.labels.get(f"{PREFIX}.lock") != lock_digest(lock):
        console.warning(
            f"{choice.reference} was built from another lock; `comfypod build {choice.profile}` builds it from this one"
        )


def ensure_platform(image: Image) -> None:
    """Make sure that this machine can run an image's programs.

    Raises:
        HostError: they are another platform's, and nothing emulates it.
    """
    wanted = "/".join(image.platform.split("/")[:2])
    if wanted in PLATFORMS.values():
        ensure_runs(wanted)


def need_of(image: Image) -> GpuNeed:
    """Read what an image needs of GPU and driver from its labels."""
    name = image.labels.get(f"{PREFIX}.profile", "")
    known = load_profiles().get(name)
    driver = image.labels.get(f"{PREFIX}.driver", "")
    return GpuNeed(
        name,
        known.summary if known is not None else f"profile {name}",
        tuple(image.labels.get(f"{PREFIX}.capabilities", "").split()),
        int(driver) if driver.isdecimal() else 0,
    )


def gpu_options(choice: Choice, *, allow_cpu: bool, console: Console) -> tuple[str, ...]:
    """Compare the image with the machine's GPU; return the options that hand it to the container.

    Raises:
        HostError: the image cannot run here.
    """
    need = need_of(choice.image)
    if not need.needs_gpu:
        return ()
    found = probe()
    if reason := lack(found, need):
        if not allow_cpu:
            raise HostError(
                f"{reason}; {_remedy(choice, found, need)}, or set COMFYPOD_ALLOW_CPU=1 to run on the CPU, slowly",
                "`comfypod doctor` shows what this machine has",
            )
        console.warning(f"{reason}; it runs on the CPU because COMFYPOD_ALLOW_CPU=1")
    if not found.gpus:
        return ()
    return ("--gpus", "all") if choice.engine.is_docker else ("--device", "nvidia.com/gpu=all")


def _remedy(choice: Choice, found: Survey, need: GpuNeed) -> str:
    """Say what to use instead: a profile, where the image was chosen by one."""
    if choice.named:
        return f"use an image of profile {choose(found, load_profiles()).profile.name}"
    return verdict(found, need).rpartition("; ")[2]
