from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod.boot.health import StageView
from comfypod.boot.models import check_models
from comfypod.errors import ModelError
from comfypod.podfile import LockedModel
from tests.kit.models import upscaler
from tests.unit.boot.contexts import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.boot.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A boot whose workspace is taken and seeded, and that may fetch nothing."""
    context = prepared(tmp_path)
    context.settings = replace(context.settings, offline=True)
    yield context
    context.lease.release()


def locked(name: str, size: int = 10) -> LockedModel:
    return LockedModel(name, "vae", f"{name}.bin", "0" * 64, size, f"https://example.org/{name}.bin", pickle=True)


def states(context: Context) -> list[tuple[str, str, int, int]]:
    return [(row["name"], row["state"], row["bytes"], row["total"]) for row in context.health.models]


def test_models_that_are_not_there_are_named_and_the_rest_counted(context: Context) -> None:
    folder = context.layout.comfyui / "models" / "vae"
    folder.mkdir()
    (folder / "whole.bin").write_bytes(b"x" * 10)
    context.pod = replace(context.pod, models=(locked("whole"),))
    assert check_models(context, StageView("models")) == "1 wanted"
    (folder / "half.bin").write_bytes(b"x" * 5)
    context.pod = replace(context.pod, models=(locked("whole"), locked("half"), locked("none")))
    with pytest.raises(ModelError, match=r"half, none$"):
        check_models(context, StageView("models"))
    assert states(context) == [("whole", "present", 10, 10), ("half", "wrong", 0, 10), ("none", "missing", 0, 10)]
    assert "5 bytes of 10" in context.health.models[1]["reason"]


def test_a_pod_that_may_fetch_does_not_complain_of_what_is_about_to_come(context: Context) -> None:
    context.settings = replace(context.settings, offline=False)
    context.pod = replace(context.pod, models=(locked("none"),))
    assert check_models(context, StageView("models")) == "1 wanted, 1 of them not there yet"


def test_what_is_wanted_with_required_counts_for_readiness_a_pack_as_a_whole(context: Context) -> None:
    context.layout.manifest.write_text("""
        [[model]]
        name = "mine"
        url = "https://example.org/a.safetensors"
        folder = "loras"
        required = true
        [[pack]]
        name = "both"
        required = true
        [[pack.file]]
        url = "https://example.org/b.safetensors"
        folder = "loras"
        [[pack.file]]
        url = "https://example.org/c.safetensors"
        folder = "vae"
    """)
    context.required += ("node", "mine")
    with pytest.raises(ModelError, match=r"mine, both/b.safetensors, both/c.safetensors$"):
        check_models(context, StageView("models"))
    assert context.required == ("node", "mine", "both")


def test_wishes_that_make_no_sense_are_named_and_the_others_stand(context: Context) -> None:
    words = ("no such pack:", f"workflow:{'x' * 300}", "loras=https://example.org/x.safetensors")
    context.settings = replace(context.settings, offline=False, models=words)
    context.layout.manifest.write_text('[[pack]]\nname = "sdlx"\nrequired = true\n')
    assert check_models(context, StageView("models")) == "1 wanted, 1 of them not there yet"
    assert [row["name"] for row in context.health.models] == ["x.safetensors"]
    for problem, word in zip(context.health.problems, ("no such pack:", "sdlx", "xxx"), strict=True):
        assert word in problem.message
    assert "sdlx" in context.required


@pytest.mark.parametrize("target", ["\\ud800", "\\u0000", "../../../x", "/etc/passwd", "a"])
def test_no_record_of_a_download_that_anybody_has_planted_ends_the_look(context: Context, target: str) -> None:
    folder = context.layout.downloads / "planted"
    folder.mkdir(parents=True)
    (folder / "record").write_text(f'{{"target": "{target}", "url": "u"}}\n')
    assert check_models(context, StageView("models")) == "0 wanted"
    assert context.health.models == []


def test_folders_of_models_that_are_given_are_used_where_they_are(context: Context, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "models" / "upscale_models"
    elsewhere.mkdir(parents=True)
    upscaler(elsewhere / "up.safetensors")
    size = (elsewhere / "up.safetensors").stat().st_size
    model = LockedModel("up", "upscale_models", "up.safetensors", "0" * 64, size)
    context.pod = replace(context.pod, models=(model,))
    context.settings = replace(context.settings, model_folders=(tmp_path / "disk",))
    assert check_models(context, StageView("models")) == "1 wanted"
    assert states(context) == [("up", "present", size, size)]
    assert context.extra_paths is not None
    assert json.loads(context.extra_paths.read_text())["found_models"] == {"upscale_models": str(elsewhere)}


@pytest.mark.parametrize(
    ("own", "baked", "state"),
    [(None, 10, "present"), (10, 5, "present"), (5, 10, "wrong"), (None, 4, "missing")],
)
def test_a_locked_model_may_be_in_the_image_unless_comfyui_finds_another_first(
    context: Context, tmp_path: Path, own: int | None, baked: int, state: str
) -> None:
    for base, size in ((context.layout.comfyui / "models", own), (tmp_path / "opt", baked)):
        (base / "vae").mkdir(parents=True)
        if size is not None:
            (base / "vae" / "m.bin").write_bytes(b"x" * size)
    context.pod = replace(context.pod, models=(locked("m"),), models_path=str(tmp_path / "opt"))
    if state == "present":
        assert check_models(context, StageView("models")) == "1 wanted"
    else:
        with pytest.raises(ModelError):
            check_models(context, StageView("models"))
    assert context.health.models[0]["state"] == state
