"""From a workflow to the models that it names. Pure; whatever a file holds, reading it ends soon and never fails oddly.

Read are what the editor saves (nodes with `widgets_values`, subgraphs, older group nodes), what `/prompt` takes (nodes
with `class_type` and `inputs`), and pictures that hold either. What the editor saves is described in
https://docs.comfy.org/specs/workflow_json; a node's `properties.models` say where its models come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfypod.errors import UsageError
from comfypod.models import carriers, loaders
from comfypod.models import source as sources
from comfypod.models.loose import at, rows, table, text
from comfypod.models.needs import Need, Needs, folder_of, inside, is_model, is_sha256, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

# `LGraphEventMode` of the editor: never, and bypass.
_OFF = (2, 4)
_NOTES = ("", "Note", "MarkdownNote")
_MOST_STEPS = 100_000
_DEEPEST_VALUE = 4

# A value of a node: what links call the node, and the position in its `widgets_values`.
_Place = tuple[Any, int]
# Texts among the values of a node, by their position.
_Values = dict[int, str]
# Which values inside of a subgraph each file stands for that is given to it.
_Slots = tuple[list[_Place], ...]
# What is said of models, by their names.
_Said = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Use:
    """A subgraph as a node uses it: with files in the order of its slots, and switched off or not."""

    kind: str = ""
    files: tuple[str, ...] = ()
    idle: bool = False


@dataclass(slots=True)
class _Found:
    """What has been found so far."""

    needs: list[Need] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def add(self, given: str, kind: str, name: str, models: _Said, *, idle: bool) -> None:
        """Take a file that the input `name` of a node names; what the node says of it comes along."""
        if not (file := inside(given)):
            self.refused.add(repr(given))
            return
        said = models.get(file.rpartition("/")[2], {})
        sha256 = text(said, "hash").lower() if text(said, "hash_type").upper() == "SHA256" else ""
        folder = loaders.folder_read(kind, name, folder_of(text(said, "directory")))
        url = sources.canonical(text(said, "url"))
        self.needs.append(Need(file, folder, url, sha256 if is_sha256(sha256) else "", kind, idle))


def read(data: bytes) -> Needs:
    """Return what the workflow in a file names: JSON as the editor or the API has it, or a picture that ComfyUI made.

    Raises:
        UsageError: there is no workflow in it, or one beyond all measure.
    """
    for document in carriers.documents(data):
        for inner in _unwrapped(document):
            if isinstance(inner.get("nodes"), list):
                return _needs(_of_graph(inner))
            if any(isinstance(node, dict) and "class_type" in node for node in inner.values()):
                return _needs(_of_prompt(inner))
    told = "there is no workflow in it, as ComfyUI saves or exports one"
    raise UsageError(told, "save it from ComfyUI's menu, or give a PNG that ComfyUI has made")


def _unwrapped(document: Any) -> Iterator[dict[str, Any]]:
    """Yield what may be the workflow: itself, and where a request to `/prompt` has it."""
    for path in ((), ("workflow",), ("extra_data", "extra_pnginfo", "workflow"), ("prompt",)):
        if isinstance(inner := at(document, *path), dict):
            yield inner


def _needs(found: _Found) -> Needs:
    return Needs(merged(found.needs), tuple(sorted(found.nodes)), tuple(sorted(found.refused)))


def _of_prompt(prompt: dict[str, Any]) -> _Found:
    found = _Found()
    for node in prompt.values():
        if not (kind := text(node, "class_type")):
            continue
        found.nodes.add(kind)
        for name, value in table(node, "inputs").items():
            for file in filter(is_model, _texts(value)):
                found.add(file, kind, name, {}, idle=False)
    return found


def _of_graph(document: dict[str, Any]) -> _Found:
    """Walk from the outermost graph, which has no name, into the subgraphs that are used."""
    found, graphs = _Found(), {"": document, **_definitions(document)}
    for name, said in _models(rows(document, "models")).items():
        found.add(name, "", "", {name: said}, idle=False)
    slots = {kind: tuple(_slots(graph)) for kind, graph in graphs.items()}
    todo, seen, steps = [_Use()], {_Use()}, 0
    while todo:
        use = todo.pop()
        for node, values in _with_given(graphs[use.kind], slots[use.kind], use.files):
            if (steps := steps + 1 + len(values)) > _MOST_STEPS:
                raise UsageError("the workflow is too large", "save the part of it that is needed by itself")
            kind, idle = text(node, "type"), use.idle or node.get("mode") in _OFF
            if not kind or kind not in graphs:
                _of_node(found, node, values, idle=idle)
            elif (inner := _Use(kind, _given(slots[kind], values), idle)) not in seen:
                seen.add(inner)
                todo.append(inner)
    return found


def _given(slots: _Slots, values: _Values) -> tuple[str, ...]:
    """Return which files a node gives to the subgraph that it stands for; none where it has more or fewer than that."""
    files = tuple(filter(is_model, values.values()))
    return files if len(files) == len(slots) else ()


def _with_given(
    graph: dict[str, Any], slots: _Slots, files: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], _Values]]:
    """Yield the nodes of a graph with their values, or those that are given in their place."""
    given = {place: file for places, file in zip(slots, files, strict=False) for place in places}
    for key, node in _nodes(graph):
        yield node, {place: given.get((key, place), value) for place, value in _values(node).items()}


def _of_node(found: _Found, node: dict[str, Any], values: _Values, *, idle: bool) -> None:
    if (kind := text(node, "type")) in _NOTES:
        return
    found.nodes.add(kind)
    names = [text(entry, "widget", "name") for entry in rows(node, "inputs") if _is_widget(entry)]
    models = _models(rows(node, "properties", "models"))
    for place, value in values.items():
        if is_model(value):
            found.add(value, kind, names[place] if place < len(names) else "", models, idle=idle)


def _definitions(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return subgraphs by the type of the nodes that stand for them, older group nodes too."""
    found = {name: graph for graph in rows(document, "definitions", "subgraphs") if (name := text(graph, "id"))}
    groups = {name: graph for name, graph in table(document, "extra", "groupNodes").items() if isinstance(graph, dict)}
    return found | {f"workflow{mark}{name}": graph for name, graph in groups.items() for mark in "/>"}


def _slots(graph: dict[str, Any]) -> Iterator[list[_Place]]:
    """Yield which values inside each value outside stands for, where these are names of models.

    The inputs of a subgraph lead to them; a group node has all that its nodes have, in their order.
    """
    nodes = {key: node for key, node in _nodes(graph) if key is not None}
    places = [(key, place) for key, node in nodes.items() for place, value in _values(node).items() if is_model(value)]
    if not isinstance(graph.get("inputs"), list):
        yield from ([place] for place in places)
        return
    known, named = set(places), {key: _named_values(node) for key, node in nodes.items()}
    links = {_key(link, "id"): link for link in rows(graph, "links")}
    for entry in graph["inputs"]:
        ends = [links.get(number) for number in rows(entry, "linkIds") if isinstance(number, (int, str))]
        keys = [(_key(end, "target_id"), _key(end, "target_slot")) for end in ends]
        led = [(key, named.get(key, {}).get(slot, -1)) for key, slot in keys]
        if found := [place for place in led if place in known]:
            yield found


def _named_values(node: dict[str, Any]) -> dict[int, int]:
    """Return which of a node's values an input is the name of, by the input's position."""
    slots = [slot for slot, entry in enumerate(rows(node, "inputs")) if _is_widget(entry)]
    return {slot: place for place, slot in enumerate(slots)}


def _is_widget(entry: Any) -> bool:
    return isinstance(at(entry, "widget"), dict)


def _nodes(graph: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield nodes with what links call them; those of a group node are counted."""
    for index, node in enumerate(rows(graph, "nodes")):
        if isinstance(node, dict):
            yield _key(node, "id", index), node


def _values(node: dict[str, Any]) -> _Values:
    """Return the texts among a node's values by their position; those within lists and tables come after."""
    values = node.get("widgets_values")
    values = values if isinstance(values, list) else [values]
    plain = {place: value for place, value in enumerate(values) if isinstance(value, str)}
    deep = [inner for value in values if not isinstance(value, str) for inner in _texts(value)]
    return plain | dict(enumerate(deep, len(values)))


def _texts(value: Any, depth: int = _DEEPEST_VALUE) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    # Lists of LoRAs with a switch for each, as in rgthree's nodes.
    elif isinstance(value, (list, dict)) and depth and at(value, "on") is not False:
        for inner in value if isinstance(value, list) else value.values():
            yield from _texts(inner, depth - 1)


def _models(listed: list[Any]) -> _Said:
    """Return what is said of models by their names, without folders."""
    return {name.replace("\\", "/").rpartition("/")[2]: row for row in listed if (name := text(row, "name"))}


def _key(value: Any, name: str, default: Any = None) -> Any:
    return found if isinstance(found := at(value, name), (int, str)) else default
