"""Which models a workflow names, in whatever form it comes, and that no file can do harm by being read."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import UsageError
from comfypod.models import workflow
from comfypod.models.needs import Need, Needs, inside
from tests.kit import comfyui
from tests.kit.workflows import HUB, data, graph, node, png, said, subgraph, webp, with_subgraphs

CHECKPOINT = node("CheckpointLoaderSimple", "a.safetensors", models=[said("a.safetensors", "checkpoints")])
FOUND = Need("a.safetensors", "checkpoints", f"{HUB}/a.safetensors", by="CheckpointLoaderSimple")


def _read(document: Any) -> Needs:
    return workflow.read(data(document))


def test_a_node_says_where_its_model_comes_from() -> None:
    assert _read(graph(CHECKPOINT, node("KSampler", 7, "euler", number=2))) == Needs(
        (FOUND,), ("CheckpointLoaderSimple", "KSampler")
    )


def test_a_digest_that_a_workflow_gives_is_taken_when_it_is_a_sha256() -> None:
    digest = "AB" * 32
    for kind, value, expected in (("SHA256", digest, digest.lower()), ("SHA256", "ab", ""), ("BLAKE3", digest, "")):
        models = [said("a.safetensors", "vae", hash=value, hash_type=kind)]
        assert _read(graph(node("VAELoader", "a.safetensors", models=models))).needs[0].sha256 == expected


def test_what_a_node_says_of_models_that_it_does_not_load_does_not_count() -> None:
    stale = node("CheckpointLoaderSimple", "b.safetensors", models=[said("a.safetensors", "checkpoints")])
    assert _read(graph(stale)).needs == (Need("b.safetensors", "checkpoints", by="CheckpointLoaderSimple"),)


def test_the_folder_comes_from_the_loader_then_from_what_is_said_then_from_the_input_s_usual_meaning() -> None:
    wrong = [said("a.gguf", "unet")]
    found = _read(
        graph(
            node("LoraLoader", "one.safetensors", 1.0, models=[said("one.safetensors", "elsewhere")]),
            node("UnetLoaderGGUF", "a.gguf", models=wrong),
            node("Some Loader", "two.safetensors", "three.safetensors", widgets="lora_name other"),
        )
    )
    assert {need.file: need.folder for need in found.needs} == {
        "one.safetensors": "loras", "a.gguf": "diffusion_models", "two.safetensors": "loras", "three.safetensors": "",
    }  # fmt: skip


def test_a_node_that_reads_from_two_folders_is_told_by_its_inputs() -> None:
    names = "text_encoder ckpt_name device"
    loader = node("LTXAVTextEncoderLoader", "t.safetensors", "c.safetensors", "default", widgets=names)
    assert {need.file: need.folder for need in _read(graph(loader)).needs} == {
        "t.safetensors": "text_encoders", "c.safetensors": "checkpoints",
    }  # fmt: skip


def test_a_folder_in_a_name_stays_part_of_it() -> None:
    loader = node("LoraLoader", "sdxl\\style.safetensors", models=[said("style.safetensors", "loras")])
    (need,) = _read(graph(loader)).needs
    assert (need.file, need.name, need.folder) == ("sdxl/style.safetensors", "style.safetensors", "loras")
    assert need.url == f"{HUB}/style.safetensors"


@pytest.mark.parametrize("mode", [2, 4])
def test_nodes_that_are_muted_or_bypassed_are_told_apart(mode: int) -> None:
    off = node("VAELoader", "v.safetensors", mode=mode)
    needs = _read(graph(CHECKPOINT, off))
    assert needs.active == (FOUND,)
    assert [need.file for need in needs.needs if need.idle] == ["v.safetensors"]
    on = node("VAELoader", "v.safetensors")
    assert all(not need.idle for need in _read(graph(off, on)).needs)


def test_subgraphs_are_read_where_they_are_used_and_idle_where_they_are_off() -> None:
    inner = subgraph("inner", CHECKPOINT)
    outer = subgraph("outer", node("inner"))
    never = subgraph("never", node("VAELoader", "v.safetensors"))
    assert _read(with_subgraphs(graph(node("outer")), inner, outer, never)).needs == (FOUND,)
    (idle,) = _read(with_subgraphs(graph(node("outer", mode=4)), inner, outer)).needs
    assert idle.idle


def test_a_value_outside_of_a_subgraph_stands_for_the_one_inside() -> None:
    inner = subgraph(
        "inner",
        node("UNETLoader", "old.safetensors", "default", number=3, widgets="unet_name weight_dtype"),
        node("VAELoader", "v.safetensors", number=4, widgets="vae_name", models=[said("v.safetensors", "vae")]),
        promoted=[(3, 0), (3, 1), (4, 0)],
    )
    two = (node("inner", "new.safetensors", "default", "v.safetensors"), node("inner", number=2))
    found = {need.file: need for need in _read(with_subgraphs(graph(*two), inner)).needs}
    assert set(found) == {"new.safetensors", "old.safetensors", "v.safetensors"}
    assert found["new.safetensors"].folder == "diffusion_models"
    assert found["v.safetensors"].complete
    assert set(_read(with_subgraphs(graph(two[0]), inner)).needs) == {found["new.safetensors"], found["v.safetensors"]}


def test_values_are_passed_on_through_nested_subgraphs() -> None:
    inner = subgraph("inner", node("VAELoader", "old.pt", number=3, widgets="vae_name"), promoted=[(3, 0)])
    outer = subgraph("outer", node("inner", "older.pt", number=5, widgets="vae_name"), promoted=[(5, 0)])
    found = _read(with_subgraphs(graph(node("outer", "new.pt")), inner, outer)).needs
    assert [(need.file, need.folder) for need in found] == [("new.pt", "vae")]


@pytest.mark.parametrize("mark", ["workflow/group", "workflow>group"])
def test_older_group_nodes_are_read_with_the_values_of_the_node_that_stands_for_them(mark: str) -> None:
    inner = {"nodes": [{"type": "CheckpointLoaderSimple", "widgets_values": ["old.safetensors"]}], "links": []}
    document = graph(node(mark, "new.safetensors", 7), extra={"groupNodes": {"group": inner}})
    assert _read(document).needs == (Need("new.safetensors", "checkpoints", by="CheckpointLoaderSimple"),)


def test_a_workflow_may_list_its_models_apart_from_its_nodes() -> None:
    document = graph(node("CheckpointLoaderSimple", "a.safetensors"), models=[said("a.safetensors", "checkpoints")])
    (need,) = _read(document).needs
    assert need.complete


def test_values_within_lists_and_tables_and_a_table_of_values_are_read() -> None:
    off = {"on": False, "lora": "off.safetensors"}
    stack = node("Lora Stack", {"on": True, "lora": "a.safetensors"}, off, [["b.safetensors"]])
    table = {**node("Video Loader"), "widgets_values": {"model": "c.pth", "rate": 3}}
    assert [need.file for need in _read(graph(stack, table)).needs] == ["a.safetensors", "b.safetensors", "c.pth"]


@pytest.mark.parametrize(
    "text", ["a photo of model.safetensors\nand more", "https://host/a.safetensors", "euler", "", "notes.md"]
)
def test_texts_that_name_no_file_are_not_taken_for_models(text: str) -> None:
    assert _read(graph(node("CLIPTextEncode", text), node("Note", "a.safetensors"))).needs == ()


def test_the_api_s_form_is_read_and_what_is_posted_to_prompt() -> None:
    prompt = comfyui.upscale("in.png", "up.safetensors")
    expected = (Need("up.safetensors", "upscale_models", by="UpscaleModelLoader"),)
    assert _read(prompt).needs == expected
    assert _read({"prompt": prompt}).needs == expected
    posted = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": graph(CHECKPOINT)}}}
    assert _read(posted).needs == (FOUND,)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_pictures_carry_the_workflow(packed: bool, international: bool) -> None:
    drawn = graph(CHECKPOINT, extra={"title": "häuschen 家"})
    prompt = comfyui.sample("other.safetensors", seed=1)
    assert workflow.read(png(prompt=prompt, workflow=drawn, packed=packed, international=international)).needs == (
        FOUND,
    )
    alone = workflow.read(png(prompt=prompt, packed=packed, international=international))
    assert [need.file for need in alone.needs] == ["other.safetensors"]


def test_webp_pictures_carry_it_in_exif() -> None:
    assert workflow.read(webp(graph(CHECKPOINT))).needs == (FOUND,)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"{", b"\x89PNG\r\n\x1a\n", b"RIFF", png(), b'{"a": 1}'],
    ids=lambda content: content[:4].hex() or "nothing",
)
def test_what_is_no_workflow_is_refused_with_what_to_do(content: bytes) -> None:
    with pytest.raises(UsageError, match="no workflow") as refused:
        workflow.read(content)
    assert refused.value.hint


NAMES = [
    "../../etc/x.safetensors", "/etc/x.pt", "C:\\x.pt", "..\\x.ckpt", "a/../../x.bin", "a//x.pt", "./x.pt", ".x.pt",
    "a\0b.pt", "a\x1b[31m.pt", " x.pt", "x" * 300 + ".pt", "\ud800.pt",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_d7_g8_a_name_that_leaves_its_folder_is_refused_and_told(name: str) -> None:
    for document in (graph(node("LoraLoader", name)), {"1": comfyui.node("LoraLoader", lora_name=name)}):
        assert _read(document) == Needs((), ("LoraLoader",), (repr(name),))
        assert not _read(document).complete


@pytest.mark.parametrize("folder", ["../up", "/etc", "a/../..", "C:\\x", ".hidden"])
def test_d7_g8_a_folder_that_leaves_models_is_as_good_as_none(folder: str) -> None:
    (need,) = _read(graph(node("Loader", "a.gguf", models=[said("a.gguf", folder)]))).needs
    assert need.folder == ""


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "https://", "https://h/a b", 7, None])
def test_an_address_that_is_none_is_as_good_as_none(url: Any) -> None:
    (need,) = _read(graph(node("Loader", "a.gguf", models=[{**said("a.gguf", "vae"), "url": url}]))).needs
    assert need.url == ""


def test_a_subgraph_that_holds_itself_and_one_that_doubles_at_each_level_are_read_in_bounded_steps() -> None:
    holds = subgraph("self", CHECKPOINT, node("self"))
    assert _read(with_subgraphs(graph(node("self")), holds)).needs == (FOUND,)
    doubles = [subgraph(f"s{level}", node(f"s{level + 1}"), node(f"s{level + 1}")) for level in range(60)]
    assert _read(with_subgraphs(graph(node("s0")), *doubles, subgraph("s60", CHECKPOINT))).needs == (FOUND,)


def test_a_subgraph_that_passes_its_values_on_in_every_order_is_refused_in_time() -> None:
    count = 8
    names, places = [f"{number}.pt" for number in range(count)], range(count)
    inner = [node("all", *names, number=number, widgets=" ".join(names)) for number in (1, 2)]
    orders = {1: [(place + 1) % count for place in places], 2: [1, 0, *places[2:]]}
    links = [
        {"id": f"{number}-{place}", "target_id": number, "target_slot": slot}
        for number, order in orders.items()
        for place, slot in enumerate(order)
    ]
    inputs = [{"linkIds": [f"1-{place}", f"2-{place}"]} for place in places]
    every = {"id": "all", "nodes": inner, "inputs": inputs, "links": links}
    with pytest.raises(UsageError, match="too large"):
        _read(with_subgraphs(graph(node("all", *names)), every))


def test_more_values_than_any_workflow_has_are_refused() -> None:
    with pytest.raises(UsageError, match="too large"):
        workflow.read(data({"nodes": [{"type": "a"}] * 100_001}))


def test_deep_nesting_and_packed_texts_of_any_size_do_no_harm() -> None:
    deep = b'{"nodes":' + b"[" * 200_000
    body = b"workflow\0\0" + zlib.compress(b" " * (64 << 20))
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", len(body), b"zTXt") + body + b"\0\0\0\0"
    for content in (deep, bomb):
        with pytest.raises(UsageError, match="no workflow"):
            workflow.read(content)


_KEYS = st.sampled_from(
    ["nodes", "links", "id", "type", "mode", "inputs", "widget", "name", "widgets_values", "properties", "models",
     "url", "directory", "hash", "hash_type", "definitions", "subgraphs", "extra", "groupNodes", "linkIds", "target_id",
     "target_slot", "class_type", "prompt", "workflow", "extra_data"]
)  # fmt: skip
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4), st.floats(),
    st.sampled_from(["a", "b", "workflow/a", "a.safetensors", "../b.pt", "c/d.gguf", "VAELoader", *NAMES]),
)  # fmt: skip
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6), max_leaves=60
)


@given(st.dictionaries(_KEYS, _JSON, max_size=6))
def test_any_json_is_read_or_refused_and_no_name_leaves_its_folder(document: dict[str, Any]) -> None:
    try:
        needs = workflow.read(json.dumps(document).encode())
    except UsageError:
        return
    for need in needs.needs:
        assert inside(need.file) == need.file
        assert inside(need.folder) == need.folder
        assert need.url == "" or need.url.startswith(("https://", "http://"))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF workflow:{", b"\xef\xbb\xbf{"]))
def test_any_bytes_are_read_or_refused(content: bytes, start: bytes) -> None:
    with pytest.raises(UsageError):
        workflow.read(start + content)


@given(st.data())
def test_a_picture_that_was_damaged_is_read_or_refused(draw: st.DataObject) -> None:
    picture = bytearray(png(workflow=graph(CHECKPOINT), packed=draw.draw(st.booleans())))
    for _ in range(draw.draw(st.integers(1, 4))):
        picture[draw.draw(st.integers(0, len(picture) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(UsageError):
        workflow.read(bytes(picture[: draw.draw(st.integers(0, len(picture)))]))
