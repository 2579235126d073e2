"""What the stages of a boot share, and what a stage is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comfypod.boot import memory
from comfypod.boot.identity import Identity, current

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfypod.boot.health import Health, StageView
    from comfypod.environment.layer import Layer
    from comfypod.errors import Problem
    from comfypod.log import Console
    from comfypod.models.file import ModelFile
    from comfypod.models.places import Places
    from comfypod.podfile import BakedNode, PodFile
    from comfypod.settings import Settings
    from comfypod.workspace.core import Core
    from comfypod.workspace.layout import Layout
    from comfypod.workspace.lease import Lease

Policy = Literal["stop", "degrade"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pod has outside its workspace.

    The link to the live ComfyUI of an image, the table of mounts (proc(5)), the control groups.
    """

    link: Path = Path("/ComfyUI")
    mounts: Path = Path("/proc/self/mountinfo")
    cgroup: Path = memory.ROOT


@dataclass(slots=True)
class Context:
    """What stages share.

    `taken` is called once the workspace is ours. What follows is made by one stage and read by later ones and by what
    starts the services: `identity`, `environ`, `core` and `token` by the workspace stage, `cpu` and `gpus` (how many
    there are, 0 where none is needed) by the GPU stage, `layer` by the environment stage (None where it cannot be
    used), `extra_paths`, `baked_nodes` (those that count), `node_paths` (what ComfyUI will load) and `required` (nodes
    and models that must be there) by the node stage, `places` (where models are) and `models` (those that are wanted)
    by the model stage, `asked_models` by who has asked for more since. `node_outcomes` says by name what became of each
    in the ComfyUI that runs, state and reason; `allow_node` gives it one again that is set aside. `record` is what its
    imports are taken from (`launch/bundle.py`), a file and the key of its packages.
    """

    pod: PodFile
    settings: Settings
    layout: Layout
    health: Health
    console: Console
    cancelled: Callable[[], bool]
    lease: Lease
    taken: Callable[[], None]
    surroundings: Surroundings = field(default_factory=Surroundings)
    identity: Identity = field(default_factory=current)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    core: Core | None = None
    token: str = ""
    token_made: bool = False
    cpu: bool = False
    gpus: int = 0
    extra_paths: Path | None = None
    baked_nodes: tuple[BakedNode, ...] = ()
    places: Places | None = None
    models: tuple[ModelFile, ...] = ()
    asked_models: tuple[str, ...] = ()
    layer: Layer | None = None
    required: tuple[str, ...] = ()
    node_paths: tuple[Path, ...] = ()
    node_outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    allow_node: Callable[[str], object] = str
    record: tuple[str, str] | None = None

    @property
    def in_image(self) -> bool:
        """Whether this is a container of ours, and not somebody's own machine."""
        return self.pod.engine != "host"

    @property
    def alone(self) -> bool:
        """Whether this pod has prepared the workspace, and no other has come to it since.

        Raises:
            OSError: the disk failed.
        """
        return self.core is not None and self.core.alone and not self.lease.others()

    def warn(self, problem: Problem) -> None:
        """Report what is wrong and does not stop the boot."""
        self.health.report(problem)
        self.console.warning(f"{problem.message}; {problem.hint}")


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the boot. `stop`: its failure ends the boot. `degrade`: it is reported and the boot goes on.

    What it does is the function of its `place`, `module:function`, imported when it is its turn: probes are answered
    before that.
    """

    name: str
    policy: Policy
    place: str

    @property
    def work(self) -> Callable[[Context, StageView], str]:
        """The function that does it."""
        module, _, name = self.place.partition(":")
        found: Callable[[Context, StageView], str] = getattr(import_module(f"comfypod.boot.{module}"), name)
        return found


class StageCancelledError(Exception):
    """The boot was told to stop while a stage was at work; what it had staged is removed."""


def stopper(context: Context) -> Callable[[], None]:
    """Return what ends a work in a thread once the pod is told to stop."""

    def tick() -> None:
        if context.cancelled():
            raise StageCancelledError

    return tick
