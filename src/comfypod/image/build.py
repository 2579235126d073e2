"""`comfypod build`: a lock in, images out that were tried before they got their names."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import tempfile
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.errors import HostError, ImageError, SourceError, UsageError
from comfypod.host.store import data_folder
from comfypod.image import context, plan, smoke, structure
from comfypod.image.bake import REPOSITORY
from comfypod.image.detect import find
from comfypod.image.labels import PREFIX
from comfypod.image.layer import EPOCH
from comfypod.image.network import network, secret_files
from comfypod.image.network import secrets as build_secrets
from comfypod.image.progress import Steps, build_error
from comfypod.image.request import Build
from comfypod.image.settle import settle
from comfypod.lock.load import read_lock
from comfypod.lock.step import ensure_in_step
from comfypod.log import human_bytes
from comfypod.manifest.profiles import profile
from comfypod.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from comfypod.image.engine import Engine, Wanted
    from comfypod.image.facts import Image
    from comfypod.image.network import Network
    from comfypod.image.plan import Plan
    from comfypod.lock.schema import Lock
    from comfypod.log import Console

_BASE = "org.opencontainers.image.base"
_RECIPE = f"{PREFIX}.recipe"


@dataclass(frozen=True, slots=True)
class Options:
    """What `build` was asked for; see `comfypod build --help`."""

    profiles: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    platform: str | None = None
    base: str | None = None
    tag: str | None = None
    repository: str = REPOSITORY
    suffix: str | None = None
    push: bool = False
    dry_run: bool = False
    lock: Path | None = None
    engine: Wanted = "auto"
    index: str | None = None
    apt_mirror: str | None = None
    git_mirrors: tuple[str, ...] = ()
    ca: Path | None = None
    network: str = "default"


@dataclass(slots=True)
class _Seconds:
    """How long each phase of a build took."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Take the time of a phase, in seconds."""
        begun = time.monotonic()
        yield
        self.phases[phase] = round(time.monotonic() - begun, 1)


def build(options: Options, console: Console) -> Result:
    """Build images, try each, and only then give it its tags.

    Raises:
        ComfypodError: something cannot be built or does not work; no tag and no candidate is left of that image.
    """
    lock = read_lock(options.lock)
    ensure_in_step(options.lock, lock)
    wanted = network(
        os.environ, index=options.index, apt_mirror=options.apt_mirror, git_mirrors=options.git_mirrors,
        ca=options.ca, mode=options.network,
    )  # fmt: skip
    engine = find(options.engine)
    plans = _plans(options, lock, engine)
    if options.push:
        _ensure_pushable(plans)
    console.line(f"{engine.name} {engine.version}: {' '.join(engine.builder)}")
    for note in wanted.notes:
        console.line(note)
    if options.dry_run:
        return _dry_run(plans, engine, wanted)
    structure.program()
    folder = (options.lock or Path("comfypod.lock")).absolute().parent
    images = [_one(each, engine, wanted, folder, console, push=options.push) for each in plans]
    text = "\n".join(f"{image['tags'][0]}  {image['id'][7:19]}  {human_bytes(image['size'])}" for image in images)
    return Result("build", {"engine": _engine_facts(engine), "images": images}, text)


def _plans(options: Options, lock: Lock, engine: Engine) -> list[Plan]:
    platform = options.platform or plan.native()
    plan.ensure_runs(platform)
    arch = next((arch for arch, name in plan.PLATFORMS.items() if name == platform), platform)
    names = options.profiles or tuple(target.profile for target in lock.targets if target.arch == arch)
    return plan.make_plans(
        lock, [profile(name) for name in dict.fromkeys(names)], plan.variants(options.variants), platform,
        base=options.base, tag=options.tag, engine=engine, repository=options.repository,
        suffix=options.suffix,
    )  # fmt: skip


def _ensure_pushable(plans: list[Plan]) -> None:
    """Refuse names without a registry: they would go to Docker Hub's own library, where nobody may write."""
    for tag in (tag for each in plans for tag in each.tags):
        if "/" not in tag:
            raise UsageError(f"--push: {tag} names no registry", "give it with --repository REGISTRY/NAME or --tag")


def _engine_facts(engine: Engine) -> dict[str, Any]:
    return {"name": engine.name, "program": engine.program, "version": engine.version, "builder": list(engine.builder)}


def _dry_run(plans: list[Plan], engine: Engine, wanted: Network) -> Result:
    images, lines = [], []
    for each in plans:
        hidden = {name: Path(f"<{name}>") for name in build_secrets(wanted)}
        command = shlex.join(engine.build_command(_request(each, Path("<context>"), "<candidate>", hidden, wanted, "")))
        base = {"name": each.base.name, "digest": each.base.digest}
        facts = {"profile": each.recipe.profile.name, "variant": each.variant, "platform": each.platform}
        images.append({**facts, "base": base, "tags": list(each.tags), "command": command})
        lines += [*plan.described(each), f"  {command}"]
    data = {"dry_run": True, "engine": _engine_facts(engine), "images": images}
    return Result("build", data, "\n".join([*lines, "nothing was built (--dry-run)"]))


def _request(wanted: Plan, folder: Path, tag: str, hidden: Mapping[str, Path], reached: Network, recipe: str) -> Build:
    labels = {f"{_BASE}.name": wanted.base.name, f"{_BASE}.digest": wanted.base.digest, _RECIPE: recipe}
    return Build(
        context=folder,
        dockerfile=folder / "Dockerfiles" / f"Dockerfile.{wanted.recipe.profile.name}",
        target=wanted.variant,
        tag=tag,
        platform=wanted.platform if wanted.emulated else None,
        args={"BASE": wanted.base.name},
        labels={name: value for name, value in labels.items() if value},
        secrets=hidden,
        network=reached.mode,
        timestamp=EPOCH,
    )


def _one(wanted: Plan, engine: Engine, reached: Network, base: Path, console: Console, *, push: bool) -> dict[str, Any]:
    """Build, try, tag and push one image; whatever ends it, the candidate's name is removed."""
    seconds = _Seconds()
    candidate = f"comfypod-candidate:{secrets.token_hex(6)}"
    log = data_folder(os.environ) / "builds" / f"{wanted.tags[0].replace('/', '_').replace(':', '_')}.log"
    files.make_folder(log.parent)
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="comfypod-context-") as folder, contextlib.ExitStack() as undo:
        with seconds.of("context"):
            context.write_context(wanted.recipe.lock, [wanted.recipe.profile], Path(folder), base)
            recipe = _recipe_digest(wanted, Path(folder))
        _ensure_free(wanted, recipe, engine)
        undo.callback(_forget, engine, candidate)
        with seconds.of("build"), secret_files(reached) as hidden:
            _build(_request(wanted, Path(folder), candidate, hidden, reached, recipe), wanted, engine, log, console)
        image = _found(engine, candidate)
        plan.ensure_from(wanted.base, image)
        with seconds.of("smoke"):
            checks = smoke.smoke(engine, candidate, wanted, console)
        for tag in wanted.tags:
            engine.tag(image.id, tag)
    console.line(f"{wanted.name}: {', '.join(wanted.tags)}")
    if push:
        with seconds.of("push"):
            _push(engine, wanted, log, console)
    image = _found(engine, wanted.tags[0])
    return _facts(wanted, image, seconds.phases, checks, log)


def _recipe_digest(wanted: Plan, folder: Path) -> str:
    """Return a digest over all that an image is made from, its base included: 64 hex digits."""
    parts = (files.tree_facts(folder).digest, wanted.base.digest, wanted.variant, wanted.platform)
    return sha256("\n".join(parts).encode()).hexdigest()


def _ensure_free(wanted: Plan, recipe: str, engine: Engine) -> None:
    """Refuse to give a tag that does not move to something else than it stands for."""
    there = engine.image(wanted.fixed) if wanted.fixed is not None else None
    if there is not None and there.labels.get(_RECIPE) != recipe:
        raise UsageError(
            f"{wanted.fixed} is here already, made from something else (another base or comfypod)",
            f"give another name with --tag, or remove it: `{engine.name} rmi {wanted.fixed}`",
        )


def _build(request: Build, wanted: Plan, engine: Engine, log: Path, console: Console) -> None:
    console.line(f"{wanted.name}: building, log in {log}")
    steps = Steps(console, wanted.name)
    done = engine.build(request, log, steps)
    if done.timed_out:
        raise ImageError(f"{wanted.name} was not built: it took too long", f"the whole log is {log}")
    if done.ok:
        settle(engine, request.tag)
    else:
        raise build_error(steps.lines, wanted.name, str(log))


def _forget(engine: Engine, candidate: str) -> None:
    """Remove a candidate's name; an engine that has gone away meanwhile must not hide why."""
    with contextlib.suppress(HostError):
        engine.remove_image(candidate)


def _found(engine: Engine, reference: str) -> Image:
    image = engine.image(reference)
    if image is None:
        raise ImageError(f"{engine.name} built {reference} and does not have it", "build it again")
    return image


def _push(engine: Engine, wanted: Plan, log: Path, console: Console) -> None:
    for tag in wanted.tags:
        if tag == wanted.fixed and engine.published(tag):
            console.line(f"{wanted.name}: {tag} is published already, and stays what it is")
            continue
        steps = Steps(console, f"push {tag}")
        done = engine.push(tag, log, steps)
        if not done.ok:
            last = " / ".join([line for line in steps.lines if line.strip()][-2:]) or "no reason was given"
            raise SourceError(f"{tag} was built and not pushed: {last}", f"log in to the registry; the log is {log}")


def _facts(
    wanted: Plan, image: Image, seconds: Mapping[str, float], checks: list[smoke.Check], log: Path
) -> dict[str, Any]:
    return {
        "profile": wanted.recipe.profile.name,
        "variant": wanted.variant,
        "platform": wanted.platform,
        "id": image.id,
        "digest": image.digest,
        "tags": list(wanted.tags),
        "size": image.size,
        "layers": [asdict(layer) for layer in image.layers],
        "base": {"name": wanted.base.name, "digest": wanted.base.digest},
        "seconds": dict(seconds),
        "smoke": [asdict(check) for check in checks],
        "log": str(log),
    }
