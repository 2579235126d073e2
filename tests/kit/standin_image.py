"""A small image of comfypod around the stand-in ComfyUI, so that tests of containers take seconds.

It is laid out as the real ones are, from Debian's Python and the sources that are tested.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.image.request import Build
from comfypod.podfile import GpuNeed
from tests.kit import standin, users
from tests.kit.pods import ROOT

if TYPE_CHECKING:
    from comfypod.image.engine import Engine

BASE = "debian:bookworm-slim"
ORDERS = "/opt/standin/orders.json"
_MAIN = """\
#!/usr/bin/python3 -P
import sys
sys.path.insert(0, "/opt/comfypod/lib")
from comfypod.__main__ import main
sys.exit(main())
"""
_DOCKERFILE = f"""\
ARG BASE={BASE}
FROM ${{BASE}} AS standin
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 tini >/dev/null \\
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/comfypod/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin STANDIN_ORDERS={ORDERS}
ENV PYTHONPATH=/opt/comfypod/lib
COPY opt /opt
COPY etc /etc
RUN chmod 0755 /opt/comfypod/bin/comfypod && chmod 0777 /opt/standin \\
    && python3 -m venv --without-pip --symlinks /opt/venv && ln -s /opt/comfyui /ComfyUI
WORKDIR /workspace
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["comfypod", "boot"]
"""


def build(
    engine: Engine, folder: Path, tag: str, orders: standin.Orders | None = None, *, need: GpuNeed | None = None
) -> str:
    """Build the image as `tag`, with orders for the stand-in; return the tag. With `need` it is one for a GPU."""
    context = Path(tempfile.mkdtemp(dir=folder))
    _context(context, orders or standin.Orders(), need)
    marks = {"profile": "cpu", "variant": "slim"}
    if need is not None:
        marks |= {"profile": need.name, "driver": str(need.driver), "capabilities": " ".join(need.capabilities)}
    found = engine.build(
        Build(
            context, context / "Dockerfile", "standin", tag, network="host",
            labels={f"io.comfypod.{name}": value for name, value in marks.items()},
        ),
        folder / "build.log",
    )  # fmt: skip
    assert found.ok, (folder / "build.log").read_text()
    return tag


def _context(folder: Path, orders: standin.Orders, need: GpuNeed | None) -> None:
    opt, etc = folder / "opt", folder / "etc" / "comfypod"
    for made in (opt / "comfypod" / "bin", opt / "standin", etc):
        made.mkdir(parents=True)
    (folder / "Dockerfile").write_text(_DOCKERFILE)
    (opt / "comfypod" / "bin" / "comfypod").write_text(_MAIN)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "comfypod", opt / "comfypod" / "lib" / "comfypod", ignore=ignored)
    shutil.copytree(users.libraries() / "h11", opt / "comfypod" / "lib" / "h11", ignore=ignored)
    standin.tree(opt / "comfyui")
    standin.orders(opt / "standin", orders)
    facts = {
        "engine": "image", "python": "/opt/venv/bin/python", "comfyui_path": "/opt/comfyui", "variant": "slim",
        "comfyui_args": (), "gpu": need,
    }  # fmt: skip
    standin.pod_file(etc, opt / "comfyui", facts=facts, listen="0.0.0.0")
