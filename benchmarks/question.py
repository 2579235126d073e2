"""What a benchmark asks and found: values by way and run, as JSON, as a table in Markdown and as a plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


CHECK = "exit with 1 where what was aimed at is missed, by the medians and by run"


@dataclass(frozen=True, slots=True)
class Question:
    """Values in `unit` by way, one a run, measured in turn; each way is compared with the way `base`.

    `target` is what the ratio of the medians shall be at most (with `more_is_better`, at least), of the ways in
    `aimed`; `name` is that of its plot.
    """

    name: str
    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    base: str = ""
    target: float | None = None
    aimed: tuple[str, ...] = ()
    more_is_better: bool = False

    def ratio(self, way: str) -> float | None:
        """Return the median of a way to that of the base."""
        if not self.base or way == self.base:
            return None
        return statistics.median(self.values[way]) / statistics.median(self.values[self.base])

    def ratio_by_run(self, way: str) -> float | None:
        """Return the median of the ratios of runs that were next to each other."""
        if not self.base or way == self.base or len(self.values[way]) != len(self.values[self.base]):
            return None
        return statistics.median(a / b for a, b in zip(self.values[way], self.values[self.base], strict=True))

    def verdict(self, way: str) -> str:
        """Say what was aimed at, and whether it was met."""
        ratio = self.ratio(way)
        if self.target is None or ratio is None or way not in self.aimed:
            return ""
        wanted = "at least" if self.more_is_better else "at most"
        return f"{wanted} {self.target:g}: {'met' if self._meets(ratio) else 'missed'}"

    def _meets(self, ratio: float) -> bool:
        assert self.target is not None
        return ratio >= self.target if self.more_is_better else ratio <= self.target

    def missed(self) -> list[str]:
        """Say which ways miss the target, by the medians and by run: one of these alone is what a busy moment does."""
        found = []
        for way in self.values if self.target is not None else ():
            if way not in self.aimed:
                continue
            ratios = [ratio for ratio in (self.ratio(way), self.ratio_by_run(way)) if ratio is not None]
            if ratios and not any(map(self._meets, ratios)):
                found.append(f"{self.title}: {way} {self.verdict(way)}, {ratios[0]:.3f}")
        return found

    def shown(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    def table(self) -> str:
        """Render as Markdown."""
        head = f"| {self.unit} | min | median | max | of {self.base or 'base'} | by run | aim |"
        rows = [head, "| --- |" + " --- |" * 6]
        for way, values in self.values.items():
            figures = (min(values), statistics.median(values), max(values), self.ratio(way), self.ratio_by_run(way))
            cells = " | ".join("" if figure is None else _digits(figure) for figure in figures)
            rows.append(f"| {way} | {cells} | {self.verdict(way)} |")
        return "\n".join(rows)

    def plot(self, path: Path) -> None:
        """Draw every run as a dot, or percentiles where there are more than 100, and the median as a bar (SVG)."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        mpl.rcParams.update({"svg.hashsalt": self.name, "svg.fonttype": "none", "font.family": "sans-serif"})
        # A step of an image may have dollars in it, which is no formula.
        mpl.rcParams["text.parse_math"] = False
        figure = Figure(figsize=(7.5, 0.8 + 0.4 * len(self.values)), layout="constrained")
        axes = figure.subplots()
        names = list(self.values)[::-1]
        for row, name in enumerate(names):
            values = self.values[name]
            axes.barh(row, statistics.median(values), height=0.55, color="#c9d7ea" if name == self.base else "#7aa6d8")
            dots = values if len(values) <= 100 else statistics.quantiles(values, n=100)
            axes.plot(dots, [row] * len(dots), "o", color="#203040", markersize=3)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(self.unit)
        axes.set_title(self.title, fontsize=10, loc="left")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.3f}"


def machine() -> str:
    """Describe the machine and how busy it is."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def report(questions: Sequence[Question], before: str, *, plots: bool = False) -> str:
    """Render all as Markdown, with their plots or without; `before` is what the machine was like at the start."""
    parts = [f"{before} (load {os.getloadavg()[0]:.1f} at the end)"]
    for question in questions:
        parts += [f"## {question.title}", question.table()]
        parts += [f"![{question.title}]({question.name}.svg)"] if plots else []
    return "\n\n".join(parts)


def run(
    description: str | None,
    measure: Callable[[argparse.Namespace], Sequence[Question]],
    options: Callable[[argparse.ArgumentParser], object] = id,
) -> None:
    """Be the `main` of a benchmark: parse its arguments, measure, print the report or JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw a plot for each question there")
    parser.add_argument("--check", action="store_true", help=CHECK)
    chosen, before = parser.parse_args(), machine()
    questions = measure(chosen)
    if chosen.plots:
        chosen.plots.mkdir(parents=True, exist_ok=True)
        for question in questions:
            question.plot(chosen.plots / f"{question.name}.svg")
    whole = {"machine": before, "questions": [question.shown() for question in questions]}
    print(json.dumps(whole, indent=1) if chosen.json else report(questions, before))
    if chosen.check and (lines := missed(questions)):
        raise SystemExit("\n".join(lines))


def missed(questions: Sequence[Question]) -> list[str]:
    """Say which ways of any of the questions miss what is aimed at."""
    return [line for question in questions for line in question.missed()]
