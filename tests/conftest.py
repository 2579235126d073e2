"""What every test gets: an environment without the caller's settings, and a reason where a test cannot run."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# A slow disk or a busy machine is no failure; speed is measured in benchmarks/.
settings.register_profile("comfypod", deadline=None)
settings.load_profile("comfypod")

_OURS = ("COMFYPOD_", "JUPYTER_", "STANDIN_")


def pytest_configure() -> None:
    """Take Ctrl-C as at a terminal: a shell that starts this in the background has it ignored, also in children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_the_caller() -> None:
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give a worker whole folders, as their tests share images and stores."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("/")[1]

    return Folders(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root for anyone else, with the reason shown; under CI that is a failure of the run.

    What emulates another machine runs only when `-m` names it.
    """
    if "arm64" not in config.getoption("markexpr"):
        emulating = [item for item in items if item.get_closest_marker("arm64")]
        items[:] = [item for item in items if item not in emulating]
        config.hook.pytest_deselected(items=emulating)
    if os.geteuid() == 0:
        return
    lacking = [item for item in items if item.get_closest_marker("root")]
    if lacking and os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{len(lacking)} tests need root, and under CI none may be left out")
    for item in lacking:
        item.add_marker(pytest.mark.skip(reason="needs root: it mounts file systems or makes network namespaces"))
