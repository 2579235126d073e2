"""All benchmarks, one report: `uv run --group bench python -m benchmarks [--image IMAGE] [--output FOLDER]`.

Runs each benchmark by itself, one after the other, and writes to the folder what it found as JSON, a report in Markdown
and a plot for each question. Those that start containers need an image and root. `--only NAME...` runs some of them,
`--runs N` sets how often each measures. CI runs some of them one by one, with `--check`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.question import CHECK, Question, machine, missed, report

NAMES = ("start", "budgets", "restart", "boot", "cold", "seeding", "downloads", "gateway", "images")


def main() -> None:
    """Run them and write the report."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", action="append", default=[], help="to start containers of; may be repeated")
    parser.add_argument("--entrypoint", help="a shell entrypoint to compare with")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="some of them")
    parser.add_argument("--upgrade-from", metavar="IMAGE", help="also weigh what an upgrade of that image fetches")
    parser.add_argument("--runs", type=int, help="rounds of each (default: each benchmark's own)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-report"), metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help=CHECK)
    chosen = parser.parse_args()
    before, found, failed = machine(), list[Question](), list[str]()
    for name, words in _commands(chosen).items():
        if name in {"start", "images"} and not chosen.image:
            if chosen.only:
                parser.error(f"{name} needs an --image")
            print(f"{name}: left out, for no --image is given", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr)
        argv = [sys.executable, "-m", f"benchmarks.{name}", *words, "--json"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            failed.append(f"{name}: ended with {done.returncode}, and is not in the report")
            continue
        found += [
            Question(**{**question, "aimed": tuple(question["aimed"])})
            for question in json.loads(done.stdout)["questions"]
        ]
        _write(chosen.output, found, before)
    print(report(found, before))
    if failed := [*failed, *(missed(found) if chosen.check else ())]:
        raise SystemExit("\n".join(failed))


def _commands(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of each benchmark that was chosen, in the order in which they run."""
    often = ["--runs", str(chosen.runs)] if chosen.runs else []
    own = {
        "start": [*chosen.image, *(["--entrypoint", chosen.entrypoint] if chosen.entrypoint else [])],
        "budgets": chosen.image[:1],
        "images": [*chosen.image, *(["--upgrade-from", chosen.upgrade_from] if chosen.upgrade_from else [])],
    }
    return {name: [*own.get(name, []), *(often if name != "images" else [])] for name in chosen.only or NAMES}


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
