"""Where things are in a workspace; the one place that knows these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one workspace."""

    root: Path

    @property
    def comfyui(self) -> Path:
        """The live ComfyUI: core, and the user's `models custom_nodes input output user`."""
        return self.root / "ComfyUI"

    @property
    def logs(self) -> Path:
        """`boot.log`, `comfyui.log`, `jupyter.log`."""
        return self.root / "logs"

    @property
    def records(self) -> Path:
        """What comfypod keeps about the volume."""
        return self.root / ".comfypod"

    @property
    def state(self) -> Path:
        """Schema, release and environment of the volume, and who wrote them."""
        return self.records / "state.json"

    @property
    def journal(self) -> Path:
        """The change that is under way, if one is."""
        return self.records / "journal.json"

    @property
    def releases(self) -> Path:
        """The core that was in place before, kept to go back to: a folder per release."""
        return self.records / "releases"

    @property
    def edits(self) -> Path:
        """What users had changed in a core that is gone, or left in its way: a folder per release. Never deleted."""
        return self.records / "edits"

    @property
    def adopted(self) -> Path:
        """What stood in `ComfyUI/` before an adoption, and what was adopted: a folder per adoption."""
        return self.records / "adopted"

    @property
    def databases(self) -> Path:
        """Copies of ComfyUI's database, one for each migration that it has been at: `NUMBER-MIGRATION.db`."""
        return self.records / "databases"

    @property
    def adopting(self) -> Path:
        """Says what the next boot shall do: nothing in it, adopt what it finds; `undo NUMBER`, give that back."""
        return self.records / "adopt"

    @property
    def choice(self) -> Path:
        """Which release shall stay although the image brings another one."""
        return self.records / "choice.json"

    @property
    def staging(self) -> Path:
        """Trees that are not in place yet; whatever a boot finds here is left over."""
        return self.records / "staging"

    @property
    def token(self) -> Path:
        """The login token, mode 0600."""
        return self.records / "token"

    @property
    def home(self) -> Path:
        """A home for a user that has none, mode 0700."""
        return self.records / "home"

    @property
    def extra_paths(self) -> Path:
        """Where ComfyUI finds the nodes and models of the image."""
        return self.records / "extra_model_paths.yaml"

    @property
    def envs(self) -> Path:
        """Layers of packages over the image's environment: a folder per key."""
        return self.records / "envs"

    @property
    def requests(self) -> Path:
        """Which packages were asked for, and by whom; layers are made again from it."""
        return self.records / "requests.json"

    @property
    def cache(self) -> Path:
        """What installers have fetched, kept for a start without a network: `pip`, `uv`, `git`."""
        return self.records / "cache"

    @property
    def nodes(self) -> Path:
        """What is known of custom nodes: where they came from, which were set aside and why."""
        return self.records / "nodes.json"

    @property
    def nodes_lock(self) -> Path:
        """Locked by whoever installs or removes custom nodes."""
        return self.records / "nodes.lock"

    @property
    def manifest(self) -> Path:
        """Optional: the nodes, models and settings that this volume wants."""
        return self.root / "comfypod.toml"

    @property
    def node_starts(self) -> Path:
        """Which nodes ComfyUI has been ready with, and which it is not given because they ended it."""
        return self.records / "node-starts.json"

    @property
    def pages(self) -> Path:
        """Which parts of large libraries ComfyUI has had in its memory, to read ahead."""
        return self.records / "pages.json"

    @property
    def downloads(self) -> Path:
        """Parts of models that are being fetched; what is left here is gone on with."""
        return self.records / "downloads"

    @property
    def models(self) -> Path:
        """Which models comfypod has fetched, from where, and what they were then."""
        return self.records / "models.json"

    @property
    def models_lock(self) -> Path:
        """Locked by whoever changes that record."""
        return self.records / "models.lock"

    @property
    def model_notes(self) -> Path:
        """Why a model could not be fetched, until it is tried again, or waits for its host: a file each."""
        return self.records / "model-notes"

    @property
    def manager(self) -> Path:
        """Which keys of ComfyUI-Manager's configuration are the policy's, and not the user's, with their values."""
        return self.records / "manager.json"

    @property
    def denied(self) -> Path:
        """Packages and nodes that are denied on this volume, beside those that comfypod denies anywhere."""
        return self.records / "denied.toml"

    @property
    def set_aside(self) -> Path:
        """What was taken out of ComfyUI's sight and can be put back: a folder per thing. Never deleted."""
        return self.records / "set-aside"

    @property
    def queue(self) -> Path:
        """Prompts that ComfyUI had not finished when the pod was stopped, mode 0600."""
        return self.records / "queue.json"

    @property
    def run_record(self) -> Path:
        """The boot that runs now: pid, addresses, children."""
        return self.records / "run.json"

    @property
    def pods(self) -> Path:
        """A ticket for each pod that uses the workspace now."""
        return self.records / "pods"

    @property
    def pod_file(self) -> Path:
        """`pod.json` of the host engine."""
        return self.records / "pod.json"

    @property
    def boot_output(self) -> Path:
        """What a detached boot wrote to its standard streams."""
        return self.records / "boot.out"
