"""All benchmarks, one report: `uv run --group bench python -m benchmarks [--image IMAGE] [--output FOLDER]`.

Runs each benchmark by itself, one after the other, and writes to the folder what it found as JSON, a report in Markdown
and a plot for each question. Those that start containers need an image and root. `--only NAME...` runs some of them,
`--runs N` sets how often each measures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.question import Question, machine, report


def main() -> None:
    """Run them and write the report."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", action="append", default=[], help="to start containers of; may be repeated")
    parser.add_argument("--entrypoint", help="a shell entrypoint to compare with")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of: " + ", ".join(_commands([], None, None)))
    parser.add_argument("--runs", type=int, help="rounds of each (default: each benchmark's own)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-report"), metavar="FOLDER")
    chosen = parser.parse_args()
    before, found = machine(), list[Question]()
    for name, words in _commands(chosen.image, chosen.entrypoint, chosen.runs).items():
        if name not in (chosen.only or (name,)):
            continue
        if name in {"start", "budgets", "images"} and not chosen.image:
            print(f"{name}: left out, for no --image is given", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *words, "--json"], stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            print(f"{name}: ended with {done.returncode}, and is not in the report", file=sys.stderr)
            continue
        found += [
            Question(**{**question, "aimed": tuple(question["aimed"])})
            for question in json.loads(done.stdout)["questions"]
        ]
        _write(chosen.output, found, before)


def _commands(images: list[str], entrypoint: str | None, runs: int | None) -> dict[str, list[str]]:
    """Return the arguments of each benchmark, in the order in which they run."""
    often = ["--runs", str(runs)] if runs else []
    compared = ["--entrypoint", entrypoint] if entrypoint else []
    return {
        "start": [*images, *compared, *often], "budgets": [*images[:1], *often], "restart": often, "boot": often,
        "cold": often, "seeding": often, "downloads": often, "gateway": often, "images": images,
    }  # fmt: skip


def _write(folder: Path, questions: list[Question], before: str) -> None:
    """Write what has been found so far, so that a benchmark that fails late costs nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report(questions, before, plots=True) + "\n", "utf-8")
    body = {"machine": before, "questions": [question.shown() for question in questions]}
    (folder / "report.json").write_text(json.dumps(body, indent=1) + "\n", "utf-8")
    for question in questions:
        question.plot(folder / f"{question.name}.svg")


if __name__ == "__main__":
    main()
