"""What happens before ComfyUI starts, in order: stages, each with a policy for its failure."""

from __future__ import annotations

from comfypod.boot.context import Stage

STAGES = (
    Stage("workspace", "stop", "volume:prepare_workspace"),
    Stage("gpu", "stop", "fit:check_gpu"),
    Stage("environment", "stop", "environment:prepare_environment"),
    Stage("nodes", "degrade", "nodes:prepare_nodes"),
    Stage("models", "degrade", "models:check_models"),
)
