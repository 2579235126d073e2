"""The inventory of an image: CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/), from the lock and dpkg's records."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from comfypod import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfypod.image.recipe import Recipe
    from comfypod.lock.schema import LockedModel, Package

_NAMESPACE = uuid.UUID("6f0f9a46-3d0f-5c1e-9a55-1f8a4d0c2b11")


def inventory(recipe: Recipe, arch: str, packages: Iterable[Package]) -> bytes:
    """Render what the lock puts into an image: packages, ComfyUI, nodes and models, each with its digest."""
    lock = recipe.lock
    rows = [_package(package) for package in packages]
    rows.append(_tree("ComfyUI", lock.comfyui.version, lock.comfyui.digest, "application"))
    rows += [_tree(node.name, node.commit or "local", node.digest, "library") for node in recipe.nodes]
    rows += [_model(model) for model in recipe.models]
    about = {"type": "container", "name": f"comfypod-{recipe.profile.name}", "version": lock.comfyui.version}
    return _document(rows, {**about, "properties": [{"name": "comfypod:architecture", "value": arch}]})


def with_system(document: bytes, dpkg_status: str) -> bytes:
    """Add the Debian packages that dpkg's status file names to an inventory."""
    body: dict[str, Any] = json.loads(document)
    rows = [_debian(fields) for fields in map(_fields, dpkg_status.split("\n\n")) if _installed(fields)]
    return _document([*body["components"], *rows], body["metadata"]["component"])


def _document(rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> bytes:
    unique = {row["bom-ref"]: row for row in rows}
    components = sorted(unique.values(), key=lambda row: str(row["bom-ref"]))
    serial = uuid.uuid5(_NAMESPACE, json.dumps([about, components], sort_keys=True))
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": about,
            "tools": {"components": [{"type": "application", "name": "comfypod", "version": __version__}]},
        },
        "components": components,
    }
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _component(kind: str, name: str, version: str, purl: str, sha256: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"type": kind, "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return {**row, "hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else row


def _package(package: Package) -> dict[str, Any]:
    """A package with several fitting wheels has no digest of its own: which one was installed is not known here."""
    files = package.wheels or ((package.sdist,) if package.sdist else ())
    sha256 = files[0].sha256 if len(files) == 1 else ""
    return _component(
        "library", package.name, package.version, f"pkg:pypi/{quote(package.name)}@{quote(package.version)}", sha256
    )


def _model(model: LockedModel) -> dict[str, Any]:
    name = f"pkg:generic/{quote(model.name)}?checksum=sha256:{model.sha256}"
    row = _component("machine-learning-model", model.name, model.sha256[:12], name, model.sha256)
    return {**row, "licenses": [{"license": {"name": model.licence}}]} if model.licence else row


def _tree(name: str, version: str, digest: str, kind: str) -> dict[str, Any]:
    row = _component(kind, name, version, f"pkg:generic/{quote(name)}@{quote(version)}")
    return {**row, "properties": [{"name": "comfypod:tree-digest", "value": digest}]} if digest else row


def _fields(paragraph: str) -> dict[str, str]:
    return dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", paragraph, re.MULTILINE))


def _installed(fields: Mapping[str, str]) -> bool:
    return "Package" in fields and fields.get("Status", "").endswith(" installed")


def _debian(fields: Mapping[str, str]) -> dict[str, Any]:
    name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
    return _component("library", name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={quote(arch)}")
