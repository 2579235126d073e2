"""`comfypod boot`: what the container runs, and what `comfypod up --engine host` becomes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from comfypod import podfile
from comfypod.boot.context import Surroundings
from comfypod.boot.supervisor import Supervisor
from comfypod.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.log import Console
    from comfypod.result import Result

_DRAIN_SECONDS = 1.0


def boot(
    pod_path: Path,
    arguments: Mapping[str, str],
    console: Console,
    begun: float,
    surroundings: Surroundings | None = None,
) -> Result:
    """Run the pod of a `pod.json` until it is stopped; return how it ended.

    Raises:
        UsageError: `pod.json` or a setting cannot be used.
        BusyError: the control port is taken.
    """
    pod = podfile.load(pod_path)
    settings = resolve(pod.settings, os.environ, arguments)

    async def supervise() -> Result:
        return await Supervisor(pod, settings, console, begun, surroundings or Surroundings()).run()

    console.in_background()
    try:
        return asyncio.run(supervise())
    finally:
        console.drain(_DRAIN_SECONDS)
