from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import ManifestError, Problem, UsageError
from comfypod.manifest.load import default_text, load_manifest, parse
from comfypod.manifest.values import GitSource, SdistSource
from comfypod.models.packs import shipped

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL = 'schema = 1\nprofiles = ["cpu"]\n[comfyui]\nversion = "0.30.0"\n'
MODEL = '[[model]]\nname = "m"\nurl = "https://example.com/a/b.safetensors?x=1"\nfolder = "checkpoints"\n'


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ManifestError) as caught:
        parse(text, "m.toml")
    return caught.value.problems


def test_the_package_comes_with_a_manifest_of_all_profiles() -> None:
    manifest = load_manifest(None)
    assert manifest.profiles == ("4090", "5090", "cpu")
    assert manifest.comfyui.version == "0.30.0"
    assert manifest.jupyter.packages == ("jupyterlab",)


def test_the_commented_examples_of_the_default_manifest_are_valid() -> None:
    lines = default_text().splitlines()
    bare = [line.removeprefix("# ") for line in lines if not line.startswith("# ") or "=" in line or "[[" in line]
    text = "\n".join(line for line in bare if line != "#" and "`" not in line)
    text = text.replace('sha256 = "..."', f'sha256 = "{"0" * 64}"').replace("[settings]\n", "")
    manifest = parse(text, "default")
    assert [(node.name, node.git is None, node.path is None) for node in manifest.node] == [
        ("my-nodes", False, True), ("my-own-nodes", True, False), ("comfyui_controlnet_aux", False, True),
    ]  # fmt: skip
    assert [(model.filename, model.bake) for model in manifest.model] == [("mine.safetensors", True)]
    assert isinstance(manifest.comfyui.source[0], GitSource)


def test_every_table_is_read() -> None:
    text = MINIMAL + (
        f'[[comfyui.source]]\nkind = "sdist"\npackage = "p"\nversion = "1"\nsha256 = "{"a" * 64}"\nsubdir = "v/C"\n'
        '[python]\npackages = ["six"]\nconstraints = ["numpy<3"]\nsdists = ["a-b.c"]\n'
        "overrides = ['cv; python_version < \"3\"']\n[settings]\n"
        'on_failure = "stay"\nport = 9000\njupyter = true\n'
        '[[node]]\nname = "n"\ngit = "https://example.com/n.git"\nref = "v1"\n'
        '[[node]]\nname = "p"\npath = "../p"\n' + MODEL + "bake = true\n"
    )
    manifest = parse(text, "m")
    assert manifest.comfyui.source == (SdistSource("p", "1", "a" * 64, "v/C"),)
    assert manifest.python.constraints == ("numpy<3",)
    assert manifest.python.overrides == ('cv; python_version < "3"',)
    assert manifest.python.sdists == ("a-b.c",)
    assert [(node.git, node.ref, node.path) for node in manifest.node] == [
        ("https://example.com/n.git", "v1", None), (None, None, "../p"),
    ]  # fmt: skip
    assert manifest.model[0].bake is True
    assert manifest.settings == {"on_failure": "stay", "port": 9000, "jupyter": True}
    assert manifest.model[0].filename == "b.safetensors"


def test_all_problems_are_reported_together_in_the_order_of_lines() -> None:
    found = problems_of(
        'schema = 2\nprofiles = ["4091"]\ncolour = 1\n[comfyui]\nverison = "0.30.0"\n[settings]\nx = 1.5\n'
    )
    places = [problem.message.split(": ")[0] + " " + problem.message.split(": ")[1] for problem in found]
    assert places == [
        "m.toml:1 schema", "m.toml:2 profiles[0]", "m.toml:3 colour", "m.toml:4 comfyui",
        "m.toml:5 comfyui.verison", "m.toml:7 settings.x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (MINIMAL + "[pyhton]\n", "m.toml:5: pyhton: there is no such key", "did you mean 'python'?"),
        (MINIMAL.replace("cpu", "5091"), "m.toml:2: profiles[0]: there is no profile '5091'", "did you mean '5090'?"),
        (MINIMAL.replace("cpu", "CPU"), "m.toml:2: profiles[0]: there is no profile 'CPU'", "did you mean 'cpu'?"),
        (MINIMAL.replace('["cpu"]', "[]"), "m.toml:2: profiles: at least one profile is needed", "known are"),
        (MINIMAL + "[[comfyui.source]]\nkind = 'gti'\n", "m.toml:6: comfyui.source[0].kind: 'gti'", "kinds are: git"),
        (MINIMAL + "[python]\npackages = ['-r x']\n", "m.toml:6: python.packages[0]: '-r x' is not a requ", ""),
    ],
)
def test_a_problem_names_its_line_and_what_was_probably_meant(text: str, message: str, hint: str) -> None:
    (problem,) = problems_of(text)
    assert problem.message.startswith(message)
    assert hint in problem.hint


def test_the_manager_is_wanted_unless_it_is_switched_off() -> None:
    assert parse(MINIMAL, "m").comfyui.manager is True
    assert parse(MINIMAL + "manager = false\n", "m").comfyui.manager is False


@pytest.mark.parametrize(
    ("keys", "line", "place", "message", "hint"),
    [
        ("", 5, "node[0]", "it says neither `git` nor `path`", "`path` for a folder"),
        ('ref = "v1"\n', 5, "node[0]", "it says neither `git` nor `path`", "`git` and `ref`"),
        ('git = "https://h/n"\n', 7, "node[0].git", "the key 'ref' is missing", "(a commit, tag or branch)"),
        ('path = "p"\nref = "v1"\n', 8, "node[0].ref", "it stands beside `path`", "or `path` for a folder"),
        ('registry = "x"\n', 7, "node[0].registry", "the key 'version' is missing", ""),
        ('registry = "../x"\nversion = "1"\n', 7, "node[0].registry", "'../x' is not an id of the registry", ""),
        ('git = "https://h/n"\nref = "v1"\nversion = "1"\n', 9, "node[0].version", "it stands beside `git`", ""),
        ('path = ""\n', 7, "node[0].path", "'' is not a folder", ""),
        ('git = "n"\nref = "v1"\n', 7, "node[0].git", "'n' is not a Git address", ""),
    ],
)
def test_a_node_has_a_repository_with_a_reference_or_a_folder(
    keys: str, line: int, place: str, message: str, hint: str
) -> None:
    (problem,) = problems_of(MINIMAL + '[[node]]\nname = "n"\n' + keys)
    assert problem.message.startswith(f"m.toml:{line}: {place}: {message}")
    assert hint in problem.hint


def test_a_node_that_says_everything_is_told_of_every_key_too_many() -> None:
    found = problems_of(MINIMAL + '[[node]]\nname = "n"\ngit = "https://h/n"\nref = "v1"\npath = "p"\n')
    assert [problem.message.split(": ")[1] for problem in found] == ["node[0].git", "node[0].ref"]


@pytest.mark.parametrize("name", ["--all", "a b", "a>=1", "", "-a", "a/b"])
def test_what_is_built_from_source_is_a_name(name: str) -> None:
    (problem,) = problems_of(MINIMAL + f'[python]\nsdists = ["{name}"]\n')
    assert "is not the name of a package" in problem.message


@pytest.mark.parametrize(
    "change",
    [
        ('name = "m"', 'name = "../m"'),
        ('folder = "checkpoints"', 'folder = "../checkpoints"'),
        ('folder = "checkpoints"', 'folder = "/checkpoints"'),
        ('folder = "checkpoints"', 'folder = "a/../../b"'),
        ('folder = "checkpoints"', 'folder = ""'),
        ('folder = "checkpoints"', 'folder = "a\\\\..\\\\b"'),
        ('folder = "checkpoints"', 'folder = "loras"\nfile = "../x"'),
        ('folder = "checkpoints"', 'folder = "loras"\nfile = ".."'),
        ("b.safetensors?x=1", "%2e%2e"),
        ("b.safetensors?x=1", ""),
        ("https://", "ftp://"),
    ],
)
def test_g8_names_that_could_leave_their_folder_are_refused(change: tuple[str, str]) -> None:
    assert change[0] in MODEL
    assert len(problems_of(MINIMAL + MODEL.replace(*change))) == 1


def test_names_that_are_there_twice_are_refused_whatever_their_case() -> None:
    node = '[[node]]\nname = "{}"\ngit = "https://example.com/n.git"\nref = "v1"\n'
    found = problems_of(MINIMAL.replace('"cpu"', '"cpu", "cpu"') + node.format("N") + node.format("n") + MODEL + MODEL)
    assert [problem.message.split(": ", 2)[1] for problem in found] == [
        "profiles[1]",
        "node[1]",
        "model[1]",
        "model[1]",
    ]


@pytest.mark.parametrize(("text", "line"), [('schema = 1\nx = "\n', 2), ("a = 1\n\na = 2\n", 3), ("x = [1,\n", 2)])
def test_a_syntax_error_names_its_line(text: str, line: int) -> None:
    (problem,) = problems_of(text)
    assert problem.message.startswith(f"m.toml:{line}")


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load_manifest(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b"x = '\xe9'")
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(tmp_path / "latin.toml")


JSON = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "cpu", "../x", "git", "0.30.0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "kind", "version", "source", "packages", "url", "q"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["schema", "comfyui", "profiles", "python", "node", "model", "zz"]), JSON))
def test_any_document_is_either_a_manifest_or_a_list_of_problems(body: dict[str, object]) -> None:
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in body.items())
    found: tuple[Problem, ...] = ()
    try:
        parse(text, "m")
    except ManifestError as error:
        found = error.problems
    assert found or {"schema", "comfyui", "profiles"} <= body.keys()
    assert all(problem.message.startswith("m:") for problem in found)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case str():
            return f'"{value}"'
        case _:
            return str(value)


PACK = '[[pack]]\nname = "p"\nbake = true\n'
FILE = '[[pack.file]]\nurl = "hf:me/mine@v1/sub/{}.safetensors"\nfolder = "loras"\n'


def test_a_pack_holds_files_from_hugging_face_civitai_and_the_web() -> None:
    text = MINIMAL + PACK + FILE.format("a") + 'licence = "mit"\ngated = true\n'
    text += '[[pack.file]]\nurl = "civitai:123"\nfolder = "loras"\n'
    text += '[[pack.file]]\nurl = "http://h/m.pt"\nfolder = "loras"\nfile = "w.pt"\npickle = true\n'
    (pack,) = parse(text, "m").pack
    assert (pack.name, pack.bake) == ("p", True)
    assert [file.filename for file in pack.file] == ["a.safetensors", "", "w.pt"]
    assert [(file.licence, file.gated, file.pickle) for file in pack.file] == [
        ("mit", True, False), ("", False, False), ("", False, True),
    ]  # fmt: skip


def test_a_pack_without_files_is_one_that_comes_with_comfypod() -> None:
    name = next(iter(shipped()))
    assert parse(f'{MINIMAL}[[pack]]\nname = "{name}"\n', "m").pack[0].file == ()
    (problem,) = problems_of(MINIMAL + PACK.replace('"p"', f'"{name}s"'))
    assert problem.message == f"m.toml:6: pack[0].name: comfypod has no pack '{name}s'"
    assert f"did you mean {name!r}?" in problem.hint


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf:me/mine@v1", "is not an https:// or http:// address"),
        ("civitai:abc", "is not an https:// or http:// address"),
        ("https://me:secret@h/m.safetensors", "without a login or token"),
        ("https://civitai.com/api/download/models/1?type=Model&token=secret", "without a login or token"),
        ("hf:me/mine@v1/m.ckpt", "m.ckpt is of a format that can run code"),
    ],
)
def test_a_file_of_a_pack_that_cannot_be_used_is_named_by_its_line(url: str, message: str) -> None:
    text = MINIMAL + PACK + FILE.format("a") + f'[[pack.file]]\nurl = "{url}"\nfolder = "loras"\nfile = "f"\n'
    if "ckpt" in url:
        text = text.replace('file = "f"\n', "")
    (problem,) = problems_of(text)
    assert re.match(r"m\.toml:1[12]: pack\[0\]\.file\[1\]", problem.message)
    assert message in problem.message


@pytest.mark.parametrize(
    ("first", "second", "conflict"), [("a", "b", True), ("a", "a", False), ("", "a", False), ("", "", False)]
)
def test_d6_two_packs_may_name_one_place_for_one_file_alone(first: str, second: str, *, conflict: bool) -> None:
    digests = [f'sha256 = "{letter * 64}"\n' if letter else "" for letter in (first, second)]
    text = MINIMAL + PACK + FILE.format("a") + digests[0] + PACK.replace('"p"', '"q"') + FILE.format("a") + digests[1]
    if conflict:
        (problem,) = problems_of(text)
        assert "pack[1].file[0]: loras/a.safetensors is the place of pack[0].file[0] too" in problem.message
    else:
        assert len(parse(text, "m").pack) == 2


def test_one_pack_has_each_place_once() -> None:
    (problem,) = problems_of(MINIMAL + PACK + FILE.format("a") + FILE.format("a"))
    assert problem.message.startswith("m.toml:11: pack[0].file[1]: loras/a.safetensors is the place of pack[0].file[0]")
