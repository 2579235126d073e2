from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.environment.dists import Dist, canonical, parse_info
from comfypod.environment.protect import FAMILIES, aliases, constraints, is_allowed


def image_of(*pairs: str) -> dict[str, Dist]:
    found = [
        Dist(name, version, f"{name}-{version}.dist-info") for name, _, version in (p.partition("==") for p in pairs)
    ]
    return {dist.name: dist for dist in found}


IMAGE = image_of("torch==2.9.1", "nvidia-cublas-cu12==12.8", "numpy==2.3.0", "opencv-python==4.12", "requests==2.0")


def test_constraints_hold_torch_cuda_the_major_of_numpy_and_the_one_opencv() -> None:
    assert constraints(IMAGE) == (
        "numpy>=2,<3", "nvidia-cublas-cu12==12.8", "opencv-contrib-python-headless==4.12",
        "opencv-contrib-python==4.12", "opencv-python-headless==4.12", "opencv-python==4.12", "torch==2.9.1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dist", "allowed"),
    [
        ("torch==2.9.1", False), ("torch==1.13", False), ("numpy==2.4.0", True), ("numpy==1.26.4", False),
        ("opencv-python-headless==4.12", False), ("requests==3.0", True), ("unknown==1", True),
        ("comfyui-new==1", True),
    ],
)  # fmt: skip
def test_c1_what_stays_may_not_be_put_before_the_images(dist: str, allowed: bool) -> None:
    (found,) = image_of(dist).values()
    assert is_allowed(IMAGE, found) is allowed


@given(st.sets(st.sampled_from([name for family in FAMILIES for name in family])))
def test_of_a_family_that_the_image_has_every_name_counts_as_installed_and_of_others_none(names: set[str]) -> None:
    image = image_of(*(f"{name}=={number + 1}" for number, name in enumerate(sorted(names))))
    found = {**aliases(image), **image}
    for family in FAMILIES:
        assert set(family) <= found.keys() or not set(family) & found.keys()
    assert not aliases(image).keys() & image.keys()
    bounds = {line.partition("==")[0] for line in constraints(image)}
    assert found.keys() == bounds


@given(st.text("aB9-_.", min_size=1, max_size=12))
def test_names_are_compared_as_the_index_compares_them(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name) == canonical(name.upper())
    assert canonical(name.replace("-", "_")) == canonical(name)


@pytest.mark.parametrize(
    "entry", ["a.dist-info", "a-1", "-1.dist-info", "a-1.dist-info.bak", "a-1-2.dist-info", "~a-1.dist-info"]
)
def test_what_is_no_folder_of_metadata_is_left_out(entry: str) -> None:
    assert parse_info(entry) is None
