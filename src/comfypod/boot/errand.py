"""A call that a dead disk or driver may hold for ever, made in a thread that holds up nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from comfypod.errors import ComfypodError

if TYPE_CHECKING:
    from collections.abc import Callable

_Found_co = TypeVar("_Found_co", covariant=True)


class Errand(Generic[_Found_co]):
    """One call, made again and again: who asks while it is under way waits for that one, and none is made twice."""

    def __init__(self, work: Callable[[], _Found_co], seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._found: asyncio.Future[_Found_co | OSError | ComfypodError] | None = None

    async def run(self) -> _Found_co:
        """Return what the call returns.

        Raises:
            TimeoutError: it takes too long.
            OSError: the call's own.
            ComfypodError: the same.
        """
        if self._found is None or self._found.done():
            self._found = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._go, args=(self._found,), daemon=True).start()
        async with asyncio.timeout(self._seconds):
            found = await asyncio.shield(self._found)
        if isinstance(found, (OSError, ComfypodError)):
            raise found
        return found

    def _go(self, found: asyncio.Future[_Found_co | OSError | ComfypodError]) -> None:
        try:
            result: _Found_co | OSError | ComfypodError = self._work()
        except (OSError, ComfypodError) as error:
            result = error
        except (ValueError, TypeError, RuntimeError) as error:
            result = OSError(errno.EINVAL, str(error))
        # The loop is closed when the pod has ended meanwhile.
        with contextlib.suppress(RuntimeError):
            found.get_loop().call_soon_threadsafe(found.set_result, result)
