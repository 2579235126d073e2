"""Recipe in, Dockerfile out: pure text, in the dialect that Docker 20.10's BuildKit, newer ones and buildah share.

No `# syntax` line (it pulls a frontend), no heredocs, no `COPY --link`; see `docs/images.md` for how to read one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.image import recipe as made
from comfypod.image.labels import labels
from comfypod.image.network import TOKENS
from comfypod.log import human_bytes
from comfypod.manifest.values import PathSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from comfypod.image.recipe import PackageLayer, Recipe, Variant

LOCKED = "Dockerfiles/locked"
LOCAL = "Dockerfiles/local"
SYSTEM_PACKAGES = ("ca-certificates", "ffmpeg", "git", "libegl1", "libgl1", "libglib2.0-0", "python3", "tini")
COMPILER_PACKAGES = ("g++", "gcc", "make", "python3-dev")

_SOURCE = "--mount=type=bind,source=src/comfypod,target=/run/build/src/comfypod"
_SCRIPT = "--mount=type=bind,source=src/comfypod/image/layer.py,target=/run/build/layer.py"
_SECRETS = ("--mount=type=secret,id=build", "--mount=type=secret,id=ca,mode=0444")
_APT_SECRETS = ("--mount=type=secret,id=apt", "--mount=type=secret,id=sources")
# For the hosts of models; no other step sees them.
_TOKENS = tuple(f"--mount=type=secret,id={name}" for name in TOKENS)
# Beside what is only of use here: what would differ each time, such as fontconfig's cache, which holds times.
_CLEAN = (
    "rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/*/*-old /var/cache/ldconfig /var/cache/fontconfig/* "
    "/var/lib/dpkg/*-old /var/log/* /tmp/*"
)
_DELIVER = "PYTHONPATH=/run/build/src /opt/comfypod/bin/python -m comfypod.image.deliver"


def dockerfile(recipe: Recipe) -> str:
    """Render the Dockerfile of a profile; its last stages are `slim` and `full`, and `full` is the default."""
    several = recipe.profile.stages == "multi"
    blocks = [_head(recipe), _system(recipe)]
    if several:
        blocks += _builder(recipe)
        blocks += _packages(recipe)
    for variant in made.VARIANTS:
        blocks += _collected(recipe, variant) if several else _in_place(recipe, variant)
        blocks += _end(recipe, variant)
    return "\n".join(blocks)


def _head(recipe: Recipe) -> str:
    profile, lock = recipe.profile, recipe.lock
    torch = f"torch {recipe.triple['torch']}" + (f" for CUDA {profile.cuda}" if profile.cuda else "")
    style = "built in a stage of its own and copied" if profile.stages == "multi" else "built in place, in one stage"
    return "\n".join([
        f"# ComfyUI {lock.comfyui.version} for {profile.summary}: {torch}, Python {profile.python}; {style}.",
        "# Rendered by `comfypod render` from comfypod.lock: change comfypod.toml instead, then run `comfypod lock`.",
        "#",
        f"#   docker build -f Dockerfiles/Dockerfile.{profile.name} -t comfyui:{profile.name} .",
        f"#   docker build -f Dockerfiles/Dockerfile.{profile.name} --target slim -t comfyui:{profile.name}-slim .",
        "#",
        "# Whatever is fetched is named by its digest in Dockerfiles/locked. The secrets `build`, `ca`, `apt` and",
        "# `sources` are for machines behind a mirror or with a certificate of their own; they may all be absent.",
        "",
        f"ARG BASE={profile.base}",
        "",
    ])  # fmt: skip


def _system(recipe: Recipe) -> str:
    python = recipe.profile.python
    return "\n".join([
        "# What every image has from Debian. torch's wheels bring CUDA's libraries: no CUDA base image is needed.",
        "FROM ${BASE} AS system",
        'SHELL ["/bin/bash", "-euo", "pipefail", "-c"]',
        *_arguments(),
        _apt(SYSTEM_PACKAGES, f"python{python} --version"),
        "ENV PATH=/opt/venv/bin:/opt/comfypod/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\",
        "    LANG=C.UTF-8 \\",
        "    NVIDIA_VISIBLE_DEVICES=all \\",
        "    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video,graphics",
        "",
    ])  # fmt: skip


def _arguments() -> list[str]:
    """Bash reads the file that BASH_ENV names before each RUN, if there is one."""
    return ["ARG BASH_ENV=/run/secrets/build", "ARG DEBIAN_FRONTEND=noninteractive"]


def _apt(packages: Iterable[str], *after: str) -> str:
    commands = ("apt-get update", f"apt-get install -y --no-install-recommends {' '.join(packages)}", *after, _CLEAN)
    return "# hadolint ignore=DL3008\n" + _run((*_SECRETS, *_APT_SECRETS), commands)


def _run(mounts: Sequence[str], commands: Sequence[str]) -> str:
    lines = [*(f"    {mount} \\" for mount in mounts), *(f"    {command} \\" for command in commands[:1])]
    lines += [f"    && {command} \\" for command in commands[1:]]
    return "RUN " + "\n".join(lines).lstrip().removesuffix(" \\")


def _builder(recipe: Recipe) -> list[str]:
    """Every layer is collected in a folder of its own, so that equal contents are equal layers whatever came before."""
    venvs = ["/opt/comfypod", made.VENV, *_jupyter_venv(recipe, "full")]
    return [
        "# Everything is fetched and compiled here, each layer in a folder of its own.",
        "FROM system AS builder",
        *_arguments(),
        "",
        _bootstrap(recipe, venvs, *_keep(recipe)),
        "",
        *(
            _install(layer, f"/layers/{layer.name}", "--tests /layers/tests")
            for layer in recipe.packages
            if layer.venv != made.COMFYPOD
        ),
        *_models(recipe, collect=True),
        _core(recipe, collect=True),
        *_nodes(recipe, collect=True),
        _code("/layers/comfypod"),
    ]


def _keep(recipe: Recipe) -> Iterator[str]:
    """Copy the environments, which are used where they are, to their layers."""
    yield f"python3 /run/build/layer.py keep --root /layers/{recipe.packages[0].name} {made.COMFYPOD} {made.VENV}"
    for layer in recipe.packages:
        if layer.venv == made.JUPYTER:
            yield f"python3 /run/build/layer.py keep --root /layers/{layer.name} {made.JUPYTER}"


def _jupyter_venv(recipe: Recipe, variant: Variant) -> list[str]:
    has = variant == "full" and any(layer.venv == made.JUPYTER for layer in recipe.packages)
    return [made.JUPYTER] if has else []


def _bootstrap(recipe: Recipe, venvs: Sequence[str], *after: str) -> str:
    """Install uv by Debian's pip, which is unpacked and not installed, and by uv what comfypod needs."""
    layer = next(layer for layer in recipe.packages if layer.venv == made.COMFYPOD)
    commands = (
        "cd /tmp",
        "apt-get update",
        "apt-get download python3-pip-whl",
        "dpkg --extract python3-pip-whl_*.deb pip",
        "PYTHONPATH=$(echo pip/usr/share/python-wheels/pip-*.whl) python3 -m pip install --quiet --no-cache-dir "
        f"--no-deps --require-hashes --target uv --requirement {_locked(layer, suffix='.uv.txt')} "
        '|| { echo "COMFYPOD FAILED uv: pip could not fetch it as locked" >&2; exit 1; }',
        f"python3 /run/build/layer.py venvs {' '.join(venvs)}",
        f"python3 /run/build/layer.py packages --uv /tmp/uv/bin/uv --locked {_locked(layer)} --venv {made.COMFYPOD}",
        *after,
        _CLEAN,
    )
    title = f"# {layer.why[0].upper()}{layer.why[1:]}. uv installs everything that follows.\n"
    mounts = (_SCRIPT, _bind(layer.name), *_SECRETS, *_APT_SECRETS)
    return title + "# hadolint ignore=DL3003,DL3042\n" + _run(mounts, commands)


def _locked(layer: PackageLayer, suffix: str = "") -> str:
    """Name the list of the architecture that is built for."""
    return f'"/run/build/locked/{layer.list_name("$(uname -m)")}{suffix}"'


def _bind(name: str) -> str:
    return f"--mount=type=bind,source={LOCKED}/{name},target=/run/build/locked"


def _install(layer: PackageLayer, root: str | None, tests: str) -> str:
    where = f" --root {root}" if root else ""
    command = (
        f"python3 /run/build/layer.py packages --locked {_locked(layer)} --venv {layer.venv}{where} {tests}".rstrip(),
    )
    title = f"# {layer.why[0].upper()}{layer.why[1:]}. {human_bytes(layer.download_bytes)} of wheels.\n"
    return title + _run((_SCRIPT, _bind(layer.name), *_SECRETS), command) + "\n"


def _models(recipe: Recipe, *, collect: bool) -> Iterator[str]:
    """Fetch models; each is compared with the lock's digest before it becomes part of anything, as all trees are."""
    for model in recipe.models:
        yield _deliver("model", made.model_layer(model), f"The model {model.name}", collect=collect)


def _core(recipe: Recipe, *, collect: bool) -> str:
    comfyui = recipe.lock.comfyui
    title = f"ComfyUI {comfyui.version}, {comfyui.files} files"
    local = any(isinstance(source, PathSource) for source in comfyui.sources)
    return _deliver("tree", "comfyui", title, collect=collect, local=local)


def _nodes(recipe: Recipe, *, collect: bool) -> Iterator[str]:
    for node in recipe.nodes:
        title = f"The node {node.name}, {node.commit[:12] or node.path or node.asked}"
        yield _deliver("tree", f"node-{node.name}", title, collect=collect, local=bool(node.path))


def _deliver(kind: str, name: str, title: str, *, collect: bool, local: bool = False) -> str:
    root = f" --root /layers/{name}" if collect else ""
    if collect and kind == "tree":
        root += f" --large /layers/data-{name}"
    folder = (f"--mount=type=bind,source={LOCAL}/{name},target=/run/build/local/{name}",) if local else ()
    mounts = (_SOURCE, _bind(name), *folder, *_SECRETS, *(_TOKENS if kind == "model" else ()))
    command = f"{_DELIVER} {kind} --facts /run/build/locked/facts.json{root}"
    return f"# {title}; what arrives must have the digest that the lock names.\n" + _run(mounts, (command,)) + "\n"


def _code(root: str | None) -> str:
    where = f" --root {root}" if root else ""
    command = f"python3 /run/build/layer.py code --source /run/build/src/comfypod --venv {made.COMFYPOD}{where}"
    return "# comfypod itself.\n" + _run((_SCRIPT, _SOURCE), (command,)) + "\n"


def _collected(recipe: Recipe, variant: Variant) -> list[str]:
    """Take the layers from the builder, the ones that change least first, and of those what both variants share."""
    wanted, full = _of(recipe, variant), variant == "full"
    nodes = [f"node-{node.name}" for node in recipe.nodes]
    own = [layer.name for layer in wanted if not layer.late and layer.full_only]
    often = [f"data-{name}" for name in ("comfyui", *nodes)] + [made.model_layer(model) for model in recipe.models]
    often += [layer.name for layer in wanted if layer.late] + ["comfyui"]
    return [
        _variant_title(variant),
        f"FROM packages AS {variant}-start",
        *_copies(["base"], "packages-recorder"),
        *((*_compiler(), *_copies([*own, "tests"])) if full else ()),
        *_copies(often),
        "",
        f"FROM {variant}-start AS {variant}-recorder",
        _recording(recipe, "--root /layers/record"),
        f"FROM {variant}-start AS {variant}",
        *_copies(["record"], f"{variant}-recorder"),
        *_copies([*nodes, "comfypod"]),
    ]


def _packages(recipe: Recipe) -> list[str]:
    """Assemble what both variants and every ComfyUI have in common."""
    return [
        "# The packages that do not come with ComfyUI.",
        "FROM system AS packages",
        *_copies(layer.name for layer in recipe.packages if not layer.late and not layer.full_only),
        "",
        "FROM packages AS packages-recorder",
        _recording(recipe, "--packages --root /layers/base"),
    ]


def _recording(recipe: Recipe, where: str) -> str:
    """Record a start before there are nodes, so that a node's bump changes nothing of it."""
    mounts = (_SOURCE, _bind(f"{recipe.profile.name}-start"))
    command = f'{_DELIVER} record --facts "/run/build/locked/$(uname -m).json" {where}'.rstrip()
    what = "Packages are imported" if "--packages" in where else "ComfyUI starts"
    title = f"# {what} once: for cold disks, bytecode becomes one file, and what else a start reads is noted.\n"
    return title + _run(mounts, (command,)) + "\n"


def _copies(names: Iterable[str], stage: str = "builder") -> list[str]:
    return [f"COPY --from={stage} /layers/{name}/ /" for name in names]


def _variant_title(variant: Variant) -> str:
    if variant == "slim":
        return "# For API pods: no JupyterLab, no compiler, no template media, no test suites."
    return "# For people: with JupyterLab, and with a compiler for nodes and torch.compile."


def _compiler() -> list[str]:
    return [*_arguments(), _apt(COMPILER_PACKAGES)]


def _of(recipe: Recipe, variant: Variant) -> list[PackageLayer]:
    return [layer for layer in recipe.packages if variant == "full" or not layer.full_only]


def _in_place(recipe: Recipe, variant: Variant) -> list[str]:
    """Install straight into the image, a layer at a time: the disk holds the image and one layer's wheels at most."""
    slim = variant == "slim"
    wanted = [layer for layer in _of(recipe, variant) if layer.venv != made.COMFYPOD]
    venvs = ["/opt/comfypod", made.VENV, *_jupyter_venv(recipe, variant)]
    return [
        _variant_title(variant),
        f"FROM system AS {variant}",
        *(_arguments() if slim else _compiler()),
        "",
        _bootstrap(recipe, venvs),
        "",
        *(_install(layer, None, "--without-tests" if slim else "") for layer in wanted),
        *_models(recipe, collect=False),
        _core(recipe, collect=False),
        _recording(recipe, ""),
        *_nodes(recipe, collect=False),
        _code(None),
    ]


def _end(recipe: Recipe, variant: Variant) -> list[str]:
    name = f"{recipe.profile.name}-{variant}"
    mounts = (_SOURCE, f"--mount=type=bind,source={LOCKED}/{name},target=/run/build/locked")
    rows = [f'      {key}="{value}" \\' for key, value in labels(recipe, variant).items()]
    return [
        "# What the image says about itself (/etc/comfypod), and the names that users look for.",
        _run(mounts, (f'{_DELIVER} facts --locked "/run/build/locked/$(uname -m)"',)),
        "ARG BASE",
        "LABEL " + "\n".join([*rows[:-1], rows[-1].removesuffix(" \\")]).lstrip(),
        "EXPOSE 8188 8888",
        "HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \\",
        '    CMD ["/opt/comfypod/bin/comfypod", "health"]',
        "WORKDIR /workspace",
        'ENTRYPOINT ["/usr/bin/tini", "--"]',
        'CMD ["comfypod", "boot"]',
        "",
    ]
