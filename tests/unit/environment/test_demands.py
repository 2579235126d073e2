from __future__ import annotations

import pytest

from comfypod.environment.demands import Refusal, Wanted, granted, image_of, logical, name_of, refused_within
from comfypod.environment.dists import Dist

_DISTS = {
    name: Dist(name, version, f"{name}-{version}.dist-info")
    for name, version in {"torch": "2.9.1+cu128", "numpy": "2.2.0", "scipy": "1.15", "opencv-python": "4.10"}.items()
}
_IMAGE = image_of(_DISTS, "3.12")


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("torch", ""),
        ("torch==2.9.1", ""),
        ("torch>=2.6", ""),
        ("torch<2.9", "torch==2.9.1+cu128"),
        ("Torch ~= 1.13", "torch==2.9.1+cu128"),
        ("torch @ git+https://example.invalid/torch", "torch==2.9.1+cu128"),
        ("numpy<2", "numpy==2.2.0"),
        ("numpy==1.26.*", "numpy==2.2.0"),
        ("numpy>=2.3", ""),
        ("numpy==2.0.1", ""),
        ("numpy>=3", "numpy==2.2.0"),
        ("numpy<2; python_version<'3.9'", ""),
        ("opencv-contrib-python-headless>=4.5", ""),
        ("opencv-contrib-python==3.4", "opencv-contrib-python==4.10"),
        ("scipy==1.2", ""),
        ("./folder", ""),
        ("numpy<2; python_version ~= 'x'", ""),
        (f"numpy<2; {'(' * 5000}os_name == 'posix'{')' * 5000}", ""),
        ("git+https://example.invalid/x.git@main#egg=x", ""),
    ],
)
def test_a_demand_is_granted_or_names_what_stays(line: str, kept: str) -> None:
    party, refused = granted(Wanted("node:a", (line,)), _IMAGE)
    assert refused == ((Refusal("node:a", line, kept),) if kept else ())
    assert party.lines == (() if kept else (line,))


def test_lines_are_read_as_pip_reads_them() -> None:
    lines = ["# all", "", "one>=1  # why", "two==1 \\", "  --hash=sha256:00", "-r more.txt", "--no-binary :all:"]
    places = ["-i https://a.invalid/simple", "--find-links=/w", "-e ./here", "git+https://b.invalid/x#egg=x"]
    assert list(logical([*lines, *places])) == [
        "one>=1",
        "two==1    --hash=sha256:00",
        "--extra-index-url https://a.invalid/simple",
        "--find-links /w",
        "-e ./here",
        "git+https://b.invalid/x#egg=x",
    ]


@pytest.mark.parametrize(
    ("line", "name"), [("Foo_Bar[x]>=1 --hash=sha256:00", "foo-bar"), ("a @ file:///a.whl", "a"), ("-e ./x", "-e ./x")]
)
def test_a_line_is_known_by_the_name_that_it_asks_for(line: str, name: str) -> None:
    assert name_of(line) == name


def test_what_packages_demand_is_refused_for_those_who_brought_them_in() -> None:
    requires = {"a": ["b>=1", "torch>=2"], "b": ["torch<2", "a", "numpy<2; extra == 'old'"], "c": ["numpy<2"]}
    parties = [Wanted("node:x", ("a",)), Wanted("node:y", ("B",)), Wanted("node:z", ("d",))]
    found = refused_within(parties, requires, _IMAGE)
    assert found == (
        Refusal("node:x", "torch<2 (of b)", "torch==2.9.1+cu128"),
        Refusal("node:y", "torch<2 (of b)", "torch==2.9.1+cu128"),
    )
