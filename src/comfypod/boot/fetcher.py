"""What fetches models beside ComfyUI: a process of its own, whose progress stands on the volume for all to see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.boot.context import StageCancelledError, stopper
from comfypod.boot.errand import Errand
from comfypod.boot.models import also, missing, survey
from comfypod.errors import ComfypodError, ModelError, Problem, UsageError
from comfypod.settings_table import TABLE
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfypod.boot.context import Context
    from comfypod.proc import Completed

_SECONDS = 7 * 24 * 3600.0
_LOOK_SECONDS = 1.0
_PATIENCE = 10.0
# A network that is late, or a licence that is accepted meanwhile: what failed is tried again after pauses that double.
_FIRST_PAUSE = 60.0
_LONGEST_PAUSE = 3600.0
_HOW = "write a pack, template:NAME, workflow:PATH or FOLDER=ADDRESS"
_AGAIN = "try `comfypod models pull` in a terminal"
_HANDED_ON = ("models", "model_folders", "hf_token", "hf_endpoint", "civitai_token", "download_rate")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How many files were fetched, how many not, and what is to be told."""

    done: int = 0
    failed: int = 0
    problems: tuple[Problem, ...] = ()


class Fetcher:
    """Fetches what is wanted and not there, then what people ask for, one after the other, and again what failed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._failed: dict[tuple[str, ...], tuple[Problem, ...]] = {}
        self._asked: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()

    def ask(self, text: str) -> str:
        """Fetch what somebody has asked for in words; say what follows.

        Raises:
            UsageError: they make no sense, or nothing may be fetched.
        """
        from comfypod.models.wish import of_word

        words = tuple(text.replace(",", " ").split())
        if self._context.settings.offline:
            raise UsageError("this pod fetches nothing", "start it without COMFYPOD_OFFLINE")
        try:
            for word in words:
                of_word(word)
        except ValueError as error:
            raise UsageError(str(error), _HOW) from error
        if not words:
            raise UsageError("nothing was asked for", _HOW)
        self._asked.put_nowait(words)
        return f"{' '.join(words)} is asked for; the list of models shows how far it is"

    async def run(self) -> None:
        """Fetch until cancelled; what is under way then is continued by the next boot."""
        context = self._context
        if missing(context.health.models) and not context.settings.offline:
            await self._pull(())
        pause = _FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(pause if self._failed else None):
                    words = await self._asked.get()
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE)
                for words in tuple(self._failed):
                    await self._pull(words)
            else:
                pause = _FIRST_PAUSE
                await self._pull(words)

    async def _pull(self, words: tuple[str, ...]) -> None:
        """Run one `comfypod models pull`, and show how far it is."""
        context = self._context
        with contextlib.suppress(OSError, TimeoutError, ComfypodError):
            await Errand(partial(also, context, words), _PATIENCE).run()
        context.health.fetching, seen = True, _Progress(context)
        await seen.look(fetching=False)
        pulling = asyncio.ensure_future(Errand(partial(_pulled, context, words), _SECONDS).run())
        while not (await asyncio.wait([pulling], timeout=_LOOK_SECONDS))[0]:
            await seen.look(fetching=True)
        try:
            outcome = await pulling
        except ComfypodError as error:
            outcome = _Outcome(problems=tuple(error.problems))
        except (OSError, TimeoutError) as error:
            outcome = _Outcome(problems=(Problem(ModelError.code, f"models are not fetched: {error}", _AGAIN),))
        await seen.look(fetching=False)
        downloads = context.health.downloads.ended(done=outcome.done, failed=outcome.failed)
        context.health.downloads, context.health.fetching = downloads, False
        self._tell(words, outcome)
        if outcome.done:
            context.console.line(f"{outcome.done} model file{'s are' if outcome.done > 1 else ' is'} fetched")

    def _tell(self, words: tuple[str, ...], outcome: _Outcome) -> None:
        """Report what is wrong now, and take back what was and is over."""
        before, health = self._failed.pop(words, ()), self._context.health
        if outcome.failed:
            self._failed[words] = outcome.problems
        health.problems[:] = [each for each in health.problems if each not in before or each in outcome.problems]
        for problem in outcome.problems:
            if problem not in before:
                self._context.warn(problem)


class _Progress:
    """Bytes so far of each file, a look ago."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before: dict[str, int] | None = None
        self._at = 0.0
        self._survey = Errand(partial(survey, context), _PATIENCE)

    async def look(self, *, fetching: bool) -> None:
        """Show what has come since the last look, and how quickly; a disk that refuses shows nothing new."""
        context, now = self._context, time.monotonic()
        try:
            rows = await self._survey.run()
        except (OSError, TimeoutError, ComfypodError):
            return
        here = {row["name"]: int(row["bytes"]) for row in rows}
        before = here if self._before is None else self._before
        came = {name: max(0, size - before.get(name, 0)) for name, size in here.items()}
        for row in rows:
            if fetching and row["state"] == "incomplete":
                row |= {"state": "fetching", "rate": round(came[row["name"]] / max(now - self._at, 0.001))}
        fetched = context.health.downloads.fetched + sum(came.values())
        rate = float(sum(row["rate"] for row in rows))
        context.health.downloads = replace(context.health.downloads, fetched=fetched, rate=rate)
        context.health.models, self._before, self._at = rows, here, now


def _pulled(context: Context, words: Sequence[str]) -> _Outcome:
    """Run the process to its end, out of ComfyUI's way."""
    root = context.layout.root
    argv = (sys.executable, "-P", "-m", "comfypod", "models", "pull", "--json", "--workspace", str(root), *words)
    env = {**child_environ(context.environ, Path(sys.executable), root), **_settings(context)}
    try:
        done = proc.run(("nice", "-n", "19", *argv), seconds=_SECONDS, env=env, tick=stopper(context))
    except StageCancelledError:
        return _Outcome()
    return _read(done)


def _settings(context: Context) -> dict[str, str]:
    """Return the settings that hold here, wherever they came from: the process reads them from its environment."""
    rows = {row.variables[0]: getattr(context.settings, row.name) for row in TABLE if row.name in _HANDED_ON}
    texts = {name: shlex.join(map(str, row)) if isinstance(row, tuple) else str(row) for name, row in rows.items()}
    # Words for models are not quoted: none holds a blank.
    return {**texts, "COMFYPOD_MODELS": " ".join(context.settings.models)}


def _read(done: Completed) -> _Outcome:
    """Read the envelope of `models pull --json`."""
    try:
        body = json.loads(done.stdout)
        problems = tuple(Problem(row["code"], row["message"], row["hint"]) for row in body["errors"])
        data = body["data"]
        asked = sum(row["state"] in ("fetch", "part") for row in data.get("models", ()))
        count = len(data.get("fetched", ())) + len(data.get("shared", ()))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        told = Problem(ModelError.code, f"fetching models ended: {last}", _AGAIN)
        return _Outcome(failed=1, problems=(told,))
    return _Outcome(count, asked - count, problems)
