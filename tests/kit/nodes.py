"""A place for custom nodes: a core with ComfyUI's own way of importing them, and nodes good and bad."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.environment.install import Failure, Installed, Refusal, Wanted
from comfypod.environment.layer import Layer
from comfypod.nodes.site import Site, site_of
from comfypod.workspace.layout import Layout
from tests.kit.repos import write_tree
from tests.kit.web import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.kit.web import Site as Web

GOOD = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"}
HOSTILE = {
    "raises": "raise RuntimeError('no such luck')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "segfaults": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
    "hangs": "import time\ntime.sleep(600)\n",
    "lacks": "import not_there_at_all\n",
    "empty": "x = 1\n",
}
# What ComfyUI 0.30.0 does in `nodes.load_custom_node`, without what it does with the mappings.
CORE = {
    "comfy/__init__.py": "",
    "comfy/options.py": "def enable_args_parsing(enable=True):\n    pass\n",
    "folder_paths.py": "places = []\ndef add_model_folder_path(kind, path):\n    places.append((kind, path))\n",
    "server.py": "class PromptServer:\n    instance = None\n    def __init__(self, loop):\n"
    "        PromptServer.instance = self\n",
    "nodes.py": """\
import importlib.util, logging, os, sys, traceback
NODE_CLASS_MAPPINGS = {}

async def load_custom_node(module_path, ignore=set(), module_parent="custom_nodes"):
    name = module_path.replace(".", "_x_")
    try:
        spec = importlib.util.spec_from_file_location(name, os.path.join(module_path, "__init__.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
            return True
        logging.warning(f"Skip {module_path} module for custom nodes due to the lack of NODE_CLASS_MAPPINGS")
        return False
    except Exception as e:
        logging.warning(traceback.format_exc())
        logging.warning(f"Cannot import {module_path} module for custom nodes: {e}")
        return False
""",
}


def make_site(folder: Path, registry: str = "http://127.0.0.1:9") -> Site:
    """Make a workspace whose ComfyUI imports nodes, and an environment with nothing in it."""
    layout = Layout(folder / "workspace")
    write_tree(layout.comfyui, CORE)
    (layout.comfyui / "custom_nodes").mkdir()
    layout.records.mkdir()
    layer = Layer(folder / "layer", "key", folder / "image")
    layer.python.parent.mkdir(parents=True)
    layer.python.symlink_to(os.path.realpath(sys.executable))
    return site_of(layout, layer, layout.comfyui, layout.comfyui, os.environ, registry)


@dataclass
class Recorded:
    """An installer that notes what it is asked for; `fails` and `keeps` are what it answers, by requirement."""

    fails: tuple[str, ...] = ()
    keeps: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, tuple[str, ...]]] = field(default_factory=list)

    def __call__(self, layer: Layer, layout: Layout, wanted: Sequence[Wanted], **_: Any) -> Installed:
        self.calls.append({each.who.removeprefix("node:"): each.lines for each in wanted})
        rows = [(each.who, line) for each in wanted for line in each.lines]
        return Installed(
            refused=tuple(Refusal(who, line, self.keeps[line]) for who, line in rows if line in self.keeps),
            failed=tuple(Failure(who, f"no version fits {line}") for who, line in rows if line in self.fails),
        )


def publish(web: Web, name: str, version: str, contents: Mapping[str, str], **more: str) -> None:
    """Put a version of a node into a registry; also as its newest."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        for path, text in contents.items():
            bundle.writestr(path, text)
    web.answers[f"/{name}-{version}.zip"] = Answer(packed.getvalue())
    body = {"downloadUrl": f"{web.url}/{name}-{version}.zip", "version": version, **more}
    for query in (f"?version={version}", ""):
        web.answers[f"/nodes/{name}/install{query}"] = Answer(json.dumps(body).encode())
