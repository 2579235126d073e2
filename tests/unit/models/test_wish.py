from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfypod.models.file import ModelFile
from comfypod.models.wish import Wish, of_model, of_pack, of_word, wishes

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://h/x/m.safetensors"
DIGEST = "ab" * 32
FILE = f"""\
[settings]
port = 1

[[model]]
name = "mine"
url = "{URL}"
folder = "loras/styles"
size = 5
required = true

[[model]]
url = "{URL}"
folder = "../loras"

[[pack]]
name = "sdxl"

[[pack]]
name = "own"
bake = true
[[pack.file]]
url = "{URL}?download=true"
folder = "vae"
sha256 = "{DIGEST}"
gated = true
licence = "MIT"
[[pack.file]]
url = "{URL}"
folder = "vae"
file = "other.ckpt"
pickle = true
"""


@pytest.mark.parametrize(
    ("word", "wish"),
    [
        ("sdxl-1.0", Wish("pack", "sdxl-1.0")),
        ("template:flux_dev", Wish("template", "flux_dev")),
        ("workflow:/w/my work.json", Wish("workflow", "/w/my work.json")),
        (f"loras={URL}", Wish("files", "m.safetensors", (ModelFile("m.safetensors", URL, "loras", "m.safetensors"),))),
        (URL, Wish("files", "m.safetensors", (ModelFile("m.safetensors", URL, "", "m.safetensors"),))),
        ("civitai:123", Wish("files", "civitai:123", (ModelFile("civitai:123", "civitai:123", "", ""),))),
        (
            f"a/b={URL}?x=1",
            Wish("files", "m.safetensors", (ModelFile("m.safetensors", f"{URL}?x=1", "a/b", "m.safetensors"),)),
        ),
    ],
)
def test_a_word_is_a_pack_a_template_a_workflow_or_an_address(word: str, wish: Wish) -> None:
    assert of_word(word) == wish


@pytest.mark.parametrize(
    "word",
    ["template:", "../x", "/etc/passwd", "ftp://h/x", f"../loras={URL}", f"/abs={URL}", f"a//b={URL}", f"a/./b={URL}",
     "loras=https://h/..", "loras=https://h/%2e%2e%2f", "loras=https://h/", "loras=https://h/a%00b",
     "loras=https://h/a%1b[2J", f"loras=https://h/{'x' * 256}", "template:\x1b[2J",
     f"--workspace={URL}"],
)  # fmt: skip
def test_g8_words_that_leave_the_folder_or_name_nothing_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_word(word)


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../x"}, {"folder": "/x"}, {"folder": ""}, {"file": ".."}, {"file": "a/b"}, {"file": "a\\b"},
        {"file": "a\nb"}, {"sha256": "AB" * 32}, {"sha256": "ab"}, {"size": -1}, {"size": "5"}, {"size": True},
        {"gated": 1}, {"url": 3}, {"url": ""}, {"nonsense": 1},
    ],
)  # fmt: skip
def test_d7_a_table_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    row = {"name": "m", "url": URL, "folder": "loras", **change}
    with pytest.raises(ValueError, match=r"."):
        of_model(row)
    with pytest.raises(ValueError, match=r"."):
        of_pack({"name": "p", "file": [{**row, "name": "m"}]})


@pytest.mark.parametrize(
    "row", [3, {"name": "../x"}, {"name": 3}, {}, {"name": "p", "file": "x"}, {"name": "p", "file": [1]}]
)
def test_what_is_no_pack_is_refused(row: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_pack(row)


def test_file_and_words_and_lock_are_merged_and_what_is_wrong_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "comfypod.toml"
    path.write_text(FILE)
    locked = ModelFile("baked", URL, "unet", "b.safetensors", DIGEST, 7)
    found, problems = wishes(path, ("sdxl", "template:t", "../x", "template:t"), (locked,))
    mine = ModelFile("mine", URL, "loras/styles", "m.safetensors", size=5, required=True)
    own = (
        ModelFile(
            "own/m.safetensors",
            f"{URL}?download=true",
            "vae",
            "m.safetensors",
            DIGEST,
            0,
            "MIT",
            gated=True,
            pack="own",
        ),
        ModelFile("own/other.ckpt", URL, "vae", "other.ckpt", pickle=True, pack="own"),
    )
    assert found == (
        Wish("files", "baked", (locked,)), Wish("files", "mine", (mine,), required=True), Wish("pack", "sdxl"),
        Wish("pack", "own", own), Wish("template", "t"),
    )  # fmt: skip
    assert [problem.message.partition(" is left out")[0] for problem in problems] == [
        f"{path}: model[1]", "the model ../x",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["not toml", "model = 3", "\xff", "pack = {}"])
def test_a_file_that_makes_no_sense_is_named_and_the_words_count(tmp_path: Path, text: str) -> None:
    path = tmp_path / "comfypod.toml"
    path.write_bytes(text.encode("latin-1"))
    found, problems = wishes(path, ("sdxl",))
    assert (found, len(problems)) == ((Wish("pack", "sdxl"),), 1)
    assert wishes(tmp_path / "none", ()) == ((), ())
