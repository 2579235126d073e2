"""Everything an image is built from, as files of a build context: pure text first, then what is copied."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from comfypod import files, podfile
from comfypod.copying import copy_tree
from comfypod.image import recipe as made
from comfypod.image.bake import bake, compose
from comfypod.image.deliver import ModelFacts, StartFacts, TreeFacts
from comfypod.image.dockerfile import LOCAL, LOCKED, dockerfile
from comfypod.image.labels import lock_digest
from comfypod.image.sbom import inventory
from comfypod.lock.listing import listing
from comfypod.manifest.values import PathSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from comfypod.image.recipe import Recipe, Variant
    from comfypod.lock.schema import Lock, Package
    from comfypod.manifest.profiles import Profile
    from comfypod.manifest.values import Source

_PURPOSES = {made.COMFYPOD: "comfypod", made.VENV: "comfyui", made.JUPYTER: "jupyter"}
_PYTHON = f"{made.VENV}/bin/python"
_LOCAL_IN_BUILD = "/run/build/local"
_IGNORE = "*\n!Dockerfiles\n!src\n**/__pycache__\n"
# A container is reached from outside only; the gateway asks for the token there.
_SETTINGS = {"listen": "0.0.0.0"}  # noqa: S104


def rendered(lock: Lock, profiles: Sequence[Profile]) -> dict[str, bytes]:
    """Return the text part of a build context by relative path: what `render` prints and the repository keeps.

    Raises:
        LockError: the lock lacks a profile, or names what cannot be named in a list.
    """
    recipes = [made.make_recipe(lock, profile) for profile in profiles]
    found: dict[str, bytes] = {}
    for each in recipes:
        found[f"Dockerfiles/Dockerfile.{each.profile.name}"] = dockerfile(each).encode()
        found.update(_lists(each))
        found.update(_facts(each))
    found["docker-bake.hcl"] = bake(recipes).encode()
    found["compose.yaml"] = compose(recipes).encode()
    found[".dockerignore"] = _IGNORE.encode()
    return dict(sorted(found.items()))


def write_context(lock: Lock, profiles: Sequence[Profile], folder: Path, base: Path) -> None:
    """Write a whole build context into `folder`: rendered text, comfypod's source, nodes that are local folders.

    Relative node paths start at `base`.

    Raises:
        LockError: as `rendered`.
        StorageError: the disk forbids it.
    """
    try:
        for name, data in rendered(lock, profiles).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with resources.as_file(resources.files("comfypod")) as source:
            shutil.copytree(source, folder / "src" / "comfypod", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / LOCAL).mkdir(parents=True, exist_ok=True)
        for name, place in _local_folders(lock):
            copy_tree(base / place, folder / LOCAL / name)
    except OSError as error:
        raise files.storage_error(error, "cannot write the build context") from error


def _local_folders(lock: Lock) -> Iterator[tuple[str, str]]:
    for name, sources in (
        ("comfyui", lock.comfyui.sources),
        *((f"node-{node.name}", (node.source,)) for node in lock.nodes),
    ):
        for source in sources:
            if isinstance(source, PathSource):
                yield name, source.path


def _lists(recipe: Recipe) -> Iterator[tuple[str, bytes]]:
    """Yield a list per layer and architecture, empty where the layer is: a list that is missing fails the build."""
    for layer in recipe.packages:
        purpose = _PURPOSES[layer.venv]
        for arch in recipe.profile.architectures:
            environment = recipe.environment(purpose, arch)
            packages = layer.lists.get(environment.name, ())
            stem = f"{LOCKED}/{layer.name}/{layer.list_name(arch)}"
            yield f"{stem}.txt", _list(packages).encode()
            if layer.venv == made.COMFYPOD:
                yield f"{stem}.uv.txt", listing(package for package in packages if package.name == "uv").encode()
            if any(package.sdist for package in packages):
                yield f"{stem}.build.txt", listing(environment.build).encode()


def _list(packages: Iterable[Package]) -> str:
    packages = tuple(packages)
    head = [f"# from source: {package.name}\n" for package in packages if package.sdist is not None]
    return "".join(head) + listing(packages)


def _facts(recipe: Recipe) -> Iterator[tuple[str, bytes]]:
    lock = recipe.lock
    tree = TreeFacts(
        f"ComfyUI {lock.comfyui.version}", made.COMFYUI, lock.comfyui.digest,
        _in_build("comfyui", lock.comfyui.sources), podfile.release_name(lock.comfyui.version, lock.comfyui.digest),
    )  # fmt: skip
    yield f"{LOCKED}/comfyui/facts.json", _json(tree)
    for node in recipe.nodes:
        name = f"node-{node.name}"
        target = f"{made.NODES}/{node.name}/{node.name}"
        facts = TreeFacts(f"node {node.name}", target, node.digest, _in_build(name, (node.source,)))
        yield f"{LOCKED}/{name}/facts.json", _json(facts)
    for model in recipe.models:
        place = f"{made.MODELS}/{model.place}"
        wanted = ModelFacts(f"model {model.name}", place, model.url, model.sha256, model.size)
        yield f"{LOCKED}/{made.model_layer(model)}/facts.json", _json(wanted)
    for arch in recipe.profile.architectures:
        key = recipe.environment("comfyui", arch).key
        start = StartFacts(made.RECORD, made.BASE, _PYTHON, made.COMFYUI, _arguments(recipe), key)
        yield f"{LOCKED}/{recipe.profile.name}-start/{arch}.json", _json(start)
    for variant in made.VARIANTS:
        for arch in recipe.profile.architectures:
            place = f"{LOCKED}/{recipe.profile.name}-{variant}/{arch}"
            yield f"{place}.pod.json", pod_file(recipe, variant, arch).encode()
            yield f"{place}.cdx.json", inventory(recipe, arch, _packages(recipe, variant, arch))


def _json(facts: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(facts, order="deterministic"), indent=1) + b"\n"


def _in_build(name: str, sources: Iterable[Source]) -> tuple[Source, ...]:
    """Local folders stand elsewhere in a build."""
    return tuple(
        PathSource(f"{_LOCAL_IN_BUILD}/{name}") if isinstance(source, PathSource) else source for source in sources
    )


def _packages(recipe: Recipe, variant: Variant, arch: str) -> list[Package]:
    names = {recipe.environment(purpose, arch).name for purpose in ("comfyui", "jupyter", "comfypod")}
    return [
        package
        for layer in recipe.packages
        if variant == "full" or not layer.full_only
        for name, packages in layer.lists.items()
        if name in names
        for package in packages
    ]


def pod_file(recipe: Recipe, variant: Variant, arch: str) -> podfile.PodFile:
    """Return the facts that boot reads in the image."""
    lock, profile = recipe.lock, recipe.profile
    environment = recipe.environment("comfyui", arch)
    has_jupyter = variant == "full" and bool(recipe.environment("jupyter", arch).packages)
    need = podfile.GpuNeed(profile.name, profile.summary, profile.capabilities, profile.driver)
    return podfile.PodFile(
        profile=profile.name,
        variant=variant,
        arch=arch,
        lock=lock_digest(lock),
        comfyui_version=lock.comfyui.version,
        comfyui_digest=lock.comfyui.digest,
        comfyui_path=made.COMFYUI,
        environment_key=environment.key,
        torch=environment.version("torch") or "",
        python=_PYTHON,
        jupyter=f"{made.JUPYTER}/bin/jupyter-lab" if has_jupyter else None,
        engine="image",
        comfyui_args=_arguments(recipe),
        settings={**_SETTINGS, **lock.settings},
        models=tuple(model.for_pod() for model in lock.models),
        nodes=tuple(
            podfile.BakedNode(node.name, f"{made.NODES}/{node.name}/{node.name}", (node.commit or node.digest)[:19])
            for node in recipe.nodes
        ),
        models_path=made.MODELS if recipe.models else None,
        gpu=need if profile.needs_gpu else None,
        record=made.RECORD,
    )


def _arguments(recipe: Recipe) -> tuple[str, ...]:
    manager = ("--enable-manager",) if recipe.lock.comfyui.manager else ()
    return (*recipe.profile.comfyui_args, *manager)
