"""Equal inputs, equal image: takes chance out of the configuration that buildah writes.

An image in Docker's format, which HEALTHCHECK and SHELL need, names the containers and intermediate images that it was
made with. They are of no use afterwards, and differ every time.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfypod.image.engine import Engine

_BY_CHANCE = ("container", "container_config", "parent")
_VERSION = "Directory Transport Version: 1.1\n"


def settle(engine: Engine, reference: str) -> None:
    """Give a name that buildah has just given to the same image with a settled configuration; no layer is copied.

    Does nothing with other engines: podman does not tell the configuration, and docker writes times into it.

    Raises:
        HostError: buildah or podman does not do as it is told.
    """
    if engine.name != "buildah":
        return
    found = json.loads(engine.ask_builder("inspect", "--type", "image", reference))
    manifest, config = settled(json.loads(found["Manifest"]), json.loads(found["Config"]))
    with TemporaryDirectory(prefix="comfypod-settle-") as folder:
        root = Path(folder)
        (root / "version").write_text(_VERSION, "ascii")
        (root / "manifest.json").write_bytes(_encoded(manifest))
        (root / sha256(_encoded(config)).hexdigest()).write_bytes(_encoded(config))
        # Layers are not in the folder: those of the same digest are here already.
        made = engine.ask("pull", "--quiet", f"dir:{root}").split()[-1]
    engine.tag(made, reference)


def settled(manifest: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and configuration without what differs between builds of the same."""
    config = {name: value for name, value in config.items() if name not in _BY_CHANCE}
    config["config"] = {**config.get("config", {}), "Hostname": ""}
    config["history"] = [
        {name: value for name, value in entry.items() if name != "comment"} for entry in config.get("history", ())
    ]
    data = _encoded(config)
    named = {"digest": f"sha256:{sha256(data).hexdigest()}", "size": len(data)}
    return {**manifest, "config": {**manifest["config"], **named}}, config


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
