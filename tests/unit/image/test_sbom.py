from __future__ import annotations

import json
from typing import Any

from comfypod.image.recipe import make_recipe
from comfypod.image.sbom import inventory, with_system
from comfypod.manifest.profiles import load_profiles
from tests.kit import locks

CPU = load_profiles()["cpu"]
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: the C library
 Version: of its own

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def made() -> bytes:
    packages = [locks.package("torch"), locks.package("old", sdist=True)]
    models = [locks.model("m", bake=True, licence="mit"), locks.model("n", bake=True, pack="p")]
    lock = locks.lock({"x86_64": packages, "aarch64": []}, [CPU], nodes=[locks.node("a")], models=models)
    return inventory(make_recipe(lock, CPU), "x86_64", packages)


def rows(document: bytes) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(document)["components"]}


def test_everything_of_the_lock_is_in_it_with_its_digest() -> None:
    found = rows(made())
    assert found.keys() == {"ComfyUI", "torch", "old", "a", "m", "p/n.bin"}
    assert found["torch"]["purl"] == "pkg:pypi/torch@1.0"
    for name in ("torch", "old", "m"):
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": locks.sha256(name)}]
    assert found["a"]["properties"] == [{"name": "comfypod:tree-digest", "value": locks.DIGEST}]
    assert found["m"]["type"] == "machine-learning-model"
    assert found["m"]["licenses"] == [{"license": {"name": "mit"}}]
    assert "licenses" not in found["p/n.bin"]


def test_it_is_cyclonedx_as_its_specification_wants_it() -> None:
    body = json.loads(made())
    assert (body["bomFormat"], body["specVersion"], body["version"]) == ("CycloneDX", "1.5", 1)
    assert body["serialNumber"].startswith("urn:uuid:")
    references = [row["bom-ref"] for row in body["components"]]
    assert len(references) == len(set(references))


def test_h1_the_same_contents_are_the_same_document_and_others_have_another_serial_number() -> None:
    assert made() == made()
    assert json.loads(made())["serialNumber"] != json.loads(with_system(made(), STATUS))["serialNumber"]


def test_debians_packages_are_added_and_removed_ones_are_not() -> None:
    found = rows(with_system(made(), STATUS))
    assert found["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    assert "gone" not in found
    assert rows(made()).keys() < found.keys()
