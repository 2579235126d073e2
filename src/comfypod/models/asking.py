"""Asking hosts about several files at once, in threads that hold up neither a plan nor whoever interrupts it."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.models import facts
from comfypod.models import source as sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfypod.models.file import ModelFile
    from comfypod.models.site import Site

_AT_ONCE = 8
# For all questions about one file. Each has a time of its own, but a name is looked up in a call without one.
PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.1


def learn(files: Sequence[ModelFile], site: Site) -> list[ModelFile]:
    """Return files with what their hosts say of them; `trouble` says of whom nothing came in time.

    What a signal raises here ends it at once; who still waits for a host then is left to itself.
    """
    silent: dict[str, str] = {}
    answers: queue.SimpleQueue[tuple[int, ModelFile]] = queue.SimpleQueue()

    def ask(number: int) -> None:
        try:
            answers.put((number, facts.learn(files[number], site.terms, site.endpoints, silent)))
        except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            # A host may answer anything, and the other files are not to suffer from it.
            told = f"its host answers with nonsense: {type(error).__name__}"
            answers.put((number, replace(files[number], trouble=told)))

    left, asked, found = deque(range(len(files))), dict[int, float](), list(files)
    while left or asked:
        while left and len(asked) < _AT_ONCE:
            number = left.popleft()
            asked[number] = time.monotonic()
            threading.Thread(target=ask, args=(number,), name="asking", daemon=True).start()
        _take(answers, asked, found)
        for number in [each for each, since in asked.items() if time.monotonic() - since > PATIENCE_SECONDS]:
            del asked[number]
            host = facts.host_of(sources.of_text(files[number].url), site.endpoints)
            silent[host] = f"{host} did not answer in time: within {PATIENCE_SECONDS:g} seconds"
            found[number] = replace(files[number], trouble=silent[host])
    return found


def _take(answers: queue.SimpleQueue[tuple[int, ModelFile]], asked: dict[int, float], found: list[ModelFile]) -> None:
    """Take an answer as soon as there is one; one that comes too late counts for nothing."""
    try:
        number, file = answers.get(timeout=_LOOK_SECONDS)
    except queue.Empty:
        return
    if asked.pop(number, None) is not None:
        found[number] = file
