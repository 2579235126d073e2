"""Write the tables of the docs from the code: `uv run python docs/reference.py`, with `--check` only compare."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from comfypod import arguments, errors
from comfypod.boot.metrics import TABLE as METRICS
from comfypod.boot.process import MOVES
from comfypod.boot.stages import STAGES
from comfypod.environment import denied
from comfypod.log import human_bytes
from comfypod.manifest import schema
from comfypod.manifest.profiles import load_profiles
from comfypod.models import packs
from comfypod.nodes.policy import NEWEST, POLICIES
from comfypod.settings_table import TABLE as SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from comfypod.manifest.profiles import Profile
    from comfypod.nodes.policy import Rule

DOCS = Path(__file__).resolve().parent
TEMPLATES = DOCS.parent / "deploy" / "runpod"
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def code(text: str) -> str:
    """Render as code; nothing stays nothing."""
    return f"`{text}`" if text else ""


def settings_table() -> str:
    """Render every setting of a pod."""
    rows = []
    for row in SETTINGS:
        variables = [*row.variables, *(f"{name}_FILE" for name in row.variables if row.secret)]
        rows.append((code(row.name), ", ".join(map(code, variables)), code(row.default) or "none", row.help))
    return table(("setting", "environment", "default", "meaning"), rows)


def exit_codes() -> str:
    """Render the table of exit codes."""
    rows = [(str(number), code(name), meaning) for number, name, meaning in errors.exit_code_table()]
    return table(("exit code", "`code` in `errors`", "meaning"), rows)


def profiles() -> str:
    """Render the table of profiles."""
    rows = [
        (
            code(each.name),
            each.summary,
            ", ".join(each.families) or "none",
            ", ".join(each.capabilities) or "none",
            f"{each.torch} / {each.torchvision} / {each.torchaudio}",
            each.cuda or "not used",
            str(each.driver or "none"),
            ", ".join(each.hosts) or "any",
            each.python,
            ", ".join(each.architectures),
        )
        for each in load_profiles().values()
    ]
    header = (
        "profile", "for", "GPU families", "compute capability", "torch / torchvision / torchaudio", "CUDA",
        "oldest driver", "CUDA version of a machine", "Python", "architectures",
    )  # fmt: skip
    return table(header, rows)


def template(profile: Profile) -> str:
    """Render what RunPod's API takes to start a pod (`POST /v1/pods`), for machines whose driver runs the image."""
    body = {
        "name": f"comfypod-{profile.name}", "imageName": f"comfyui:{profile.name}", "containerDiskInGb": 20,
        "volumeInGb": 60, "volumeMountPath": "/workspace", "ports": ["8188/http", "8888/http"], "env": {},
        "allowedCudaVersions": list(profile.hosts),
    }  # fmt: skip
    return json.dumps(body, indent=2) + "\n"


def manifest_keys() -> str:
    """Render every key of `comfypod.toml`, in the order of the schema."""
    return table(("table", "key", "value", "needed"), _keys(schema.Manifest, ""))


def _keys(struct: Any, name: str) -> Iterator[tuple[str, ...]]:
    later: list[tuple[Any, str]] = []
    for field in msgspec.structs.fields(struct):
        facts = msgspec.inspect.type_info(field.type)
        below = f"{name}.{field.name}" if name else field.name
        if isinstance(facts, msgspec.inspect.StructType):
            later.append((facts.cls, f"[{below}]"))
        elif isinstance(facts, msgspec.inspect.VarTupleType) and not _is_plain(facts.item_type):
            kinds = get_args(field.type)[0]
            later += [(kind, f"[[{below}]]") for kind in get_args(kinds) or (kinds,)]
        else:
            needed = "yes" if field.required else "no"
            yield code(_bracketed(name)), code(field.name), _value(facts), needed
    for kind, title in later:
        own = code(_bracketed(title.strip("[]")))
        shown = code(title)
        if tag := kind.__struct_config__.tag:
            yield shown, code("kind"), f'`"{tag}"`: {_first_line(kind)}', "yes"
            shown += f" of kind `{tag}`"
        for place, *rest in _keys(kind, title.strip("[]")):
            yield (shown if place == own else place, *rest)


def _bracketed(name: str) -> str:
    return f"[{name}]" if name else ""


def _is_plain(kind: msgspec.inspect.Type) -> bool:
    return not isinstance(kind, (msgspec.inspect.StructType, msgspec.inspect.UnionType))


def _first_line(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _value(kind: msgspec.inspect.Type) -> str:  # noqa: PLR0911 - one return a kind
    match kind:
        case msgspec.inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _value(inner))
        case msgspec.inspect.VarTupleType(item_type=item) | msgspec.inspect.ListType(item_type=item):
            return f"a list; each is {_value(item)}"
        case msgspec.inspect.UnionType(types=types):
            each = [_value(kind) for kind in types if not isinstance(kind, msgspec.inspect.NoneType)]
            return " or ".join(dict.fromkeys(each))
        case msgspec.inspect.DictType(value_type=item):
            return f"a table of names; each value is {_value(item)}"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return "a number"
        case msgspec.inspect.BoolType():
            return "`true` or `false`"
        case _:
            return "text"


def verbs() -> str:
    """Render every verb with its arguments."""
    blocks = []
    for name, parser, text in _verbs():
        rows = [
            (", ".join(map(code, action.option_strings)) or code(action.dest), _takes(action), action.help or "")
            for action in parser._actions
            if action.dest != "help"
        ]
        blocks.append(f"### {name}\n\n{text[0].upper()}{text[1:]}.\n\n" + table(("argument", "takes", "meaning"), rows))
    return "\n\n".join(blocks)


def _verbs() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in arguments.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, parser in action.choices.items():
                yield name, parser, helps[name]


def verb_names() -> frozenset[str]:
    """Return the names of all verbs."""
    return frozenset(name for name, _, _ in _verbs())


def _takes(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(map(code, map(str, action.choices)))
    if action.nargs == 0:
        return ""
    shown = str(action.metavar or action.dest).upper()
    return code(f"{shown}...") if action.nargs == "*" else code(shown)


def stages() -> str:
    """Render the stages of a boot."""
    rows = [(code(stage.name), code(stage.policy), _first_line(stage.work)) for stage in STAGES]
    return table(("stage", "policy", "what it does"), rows)


def states() -> str:
    """Render the state machine of a service."""
    return table(
        ("state", "may become"),
        [(code(state), ", ".join(code(each) for each in sorted(after))) for state, after in MOVES.items()],
    )


def node_policies() -> str:
    """Render what each policy writes into the configuration of ComfyUI-Manager, and what of the user's may stay."""
    policies = POLICIES[NEWEST]
    keys = next(iter(policies.values()))
    rows = [(code(key), *(_rule(policies[name][key]) for name in policies)) for key in keys]
    return table((f"key (ComfyUI-Manager {NEWEST})", *map(code, policies)), rows)


def _rule(rule: Rule) -> str:
    others = sorted(rule.allowed - {rule.fill})
    return code(rule.fill) + (f" (kept: {', '.join(map(code, others))})" if others else "")


def denied_list() -> str:
    """Render the deny list that comes with comfypod."""
    shipped, _ = denied.load(DOCS / "none")
    rows = [("package", code(each.name), ", ".join(sorted(each.versions)), each.reason) for each in shipped.packages]
    rows += [("node", code(each.name), ", ".join(sorted(each.origins)), each.reason) for each in shipped.nodes]
    return table(("what", "name", "versions, or where it comes from", "why"), rows)


def model_packs() -> str:
    """Render the model packs that come with comfypod."""
    rows = []
    for name, files in packs.shipped().items():
        names = ", ".join(f"{code(file.place)} ({human_bytes(file.size)})" for file in files)
        rows.append((code(name), names, ", ".join(dict.fromkeys(file.licence for file in files))))
    return table(("pack", "files", "licence"), rows)


def metrics() -> str:
    """Render every metric."""
    rows = [(code(row.name), row.kind, ", ".join(map(code, row.labels)) or "none", row.help) for row in METRICS]
    return table(("metric", "type", "labels", "meaning"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "exit-codes": exit_codes,
    "profiles": profiles,
    "manifest-keys": manifest_keys,
    "verbs": verbs,
    "stages": stages,
    "states": states,
    "node-policies": node_policies,
    "denied": denied_list,
    "metrics": metrics,
    "packs": model_packs,
}


def renewed(text: str) -> str:
    """Return a page with every generated block as the code has it now."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def pages() -> list[Path]:
    """Return every page that may hold generated blocks."""
    return sorted(DOCS.rglob("*.md"))


def made() -> dict[Path, str]:
    """Return every file that is made here, or in part, as the code has it now."""
    texts = {page: renewed(page.read_text("utf-8")) for page in pages()}
    return texts | {TEMPLATES / f"{each.name}.json": template(each) for each in load_profiles().values() if each.hosts}


def main(arguments: Sequence[str]) -> int:
    """Write what has changed; with `--check` write nothing and return 1 where something would change."""
    texts = made()
    stale = [page for page, text in texts.items() if not page.is_file() or page.read_text("utf-8") != text]
    for page in stale:
        sys.stdout.write(f"{'out of step' if '--check' in arguments else 'wrote'}: {page.relative_to(DOCS.parent)}\n")
        if "--check" not in arguments:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(texts[page], "utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
