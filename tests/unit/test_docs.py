"""The docs say what the code does: generated tables, links, names of tests, modules, commands and messages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from comfypod.git import MIRRORS
from comfypod.settings_table import TABLE
from comfypod.workspace.run import MARK
from docs import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *reference.pages()])
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text("utf-8"))


@cache
def _sources() -> str:
    return "".join(path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


@cache
def _anchors(page: Path) -> frozenset[str]:
    titles = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_tables_are_as_the_code_has_them(page: Path) -> None:
    text = page.read_text("utf-8")
    assert reference.renewed(text) == text, "run `uv run python docs/reference.py`"


def test_every_generated_table_stands_on_a_page() -> None:
    told = re.findall(r"<!-- generated: ([a-z-]+) -->", "".join(page.read_text("utf-8") for page in PAGES))
    assert sorted(told) == sorted(reference.BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(found), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert set(re.findall(r"`(test_\w+)`", _prose(page))) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_settings_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    verbs = set(re.findall(r"`(?:uv run )?comfypod ([a-z]+)", text))
    for block in _FENCED.findall(text):
        verbs |= set(re.findall(r"^comfypod ([a-z]+)", block, re.MULTILINE))
    assert verbs <= reference.verb_names()
    variables = {name for row in TABLE for name in row.variables} | {"COMFYPOD_DATA", MARK, MIRRORS}
    assert {name.removesuffix("_FILE") for name in re.findall(r"\bCOMFYPOD_[A-Z_]+\b", text)} <= variables
    for module in re.findall(r"`((?:\w+/)*\w+\.py)`", _prose(page)):
        assert (ROOT / "src" / "comfypod" / module).is_file() or (ROOT / module).is_file() or module == "main.py", (
            module
        )


def test_messages_in_the_troubleshooting_table_are_in_the_code() -> None:
    section = (ROOT / "docs" / "running.md").read_text("utf-8").partition("## Troubleshooting by message")[2]
    messages = [
        message for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for message in re.findall("`(.*?)`", row)
    ]
    assert len(messages) > 10
    assert [message for message in messages if message not in _sources()] == []


def test_the_first_screen_of_the_readme_has_the_two_commands_each_in_its_own_block() -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("\n## ")[0]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks == ["pip install uv && uv run comfypod up\n", "pip install uv && uv run pytest\n"]


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [verb for verb in reference.verb_names() if f"`comfypod {verb}" not in text] == []
