"""A container engine that only remembers, for what is decided before and after a real one is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.errors import HostError
from comfypod.image.engine import Engine
from comfypod.image.facts import Container, Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def image(platform: str = "linux/amd64", **labels: str) -> Image:
    """Return an image with labels by their last word."""
    marks = {f"io.comfypod.{name}": value for name, value in labels.items()}
    return Image("sha256:0", "", (), platform, 1, marks, (), (), (), "", ())


def container(name: str, state: str, labels: Mapping[str, str], **facts: Any) -> Container:
    """Return a container in a state."""
    return replace(
        Container("id", name, "sha256:0", state, 0, out_of_memory=False, error="", health="", labels=labels), **facts
    )


@dataclass
class Memory:
    """What the engine has, will say, and was asked to do."""

    images: dict[str, Image] = field(default_factory=dict)
    pulls: dict[str, Image] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    later: list[Container | None] = field(default_factory=list)
    refusal: str = ""
    said: str = ""
    done: list[tuple[Any, ...]] = field(default_factory=list)


class FakeEngine(Engine):
    """An `Engine` over a `Memory`."""

    memory: Memory

    def image(self, reference: str) -> Image | None:
        return self.memory.images.get(reference)

    def pull(self, reference: str, log: Path, watch: Any = None) -> proc.Completed:
        self.memory.done.append(("pull", reference))
        found = self.memory.pulls.get(reference)
        log.write_text("layer\ndone\n" if found else "layer\nnot authorised\n")
        watch.line("layer")
        watch.tick()
        if found is not None:
            self.memory.images[reference] = found
        return proc.Completed(("pull",), 0 if found else 1, "", "")

    def container(self, reference: str) -> Container | None:
        if self.memory.later:
            return self.memory.later.pop(0)
        return self.memory.containers.get(reference)

    def run(
        self, image: str, options: Sequence[str] = (), command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None, *, seconds: float = 0,
    ) -> str:  # fmt: skip
        self.memory.done.append(("run", image, tuple(options), tuple(command), dict(environment or {})))
        if self.memory.refusal:
            raise HostError(self.memory.refusal, "info")
        return "id"

    def logs(self, container: str, lines: int | None = None) -> str:
        return self.memory.said

    def stop(self, container: str, seconds: float = 10.0) -> bool:
        self.memory.done.append(("stop", container, seconds))
        return True

    def remove(self, container: str) -> bool:
        self.memory.done.append(("remove", container))
        return True


def fake(name: Any = "docker", memory: Memory | None = None) -> FakeEngine:
    """Return an engine of a name with a memory of its own, unless one is given."""
    engine = FakeEngine(name, f"/usr/bin/{name}", "1")
    object.__setattr__(engine, "memory", memory or Memory())
    return engine
