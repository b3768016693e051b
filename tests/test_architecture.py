"""Imports point one way: the graph, drawn from the source, against the table of floors in docs/architecture.md."""

import ast
import graphlib
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR = re.compile(r"^\|[^|]*\|((?:\s*`\w+`,?)+)\s*\|", re.MULTILINE)


def floors():
    """The rooms of each floor, top first."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    return [re.findall(r"\w+", rooms) for rooms in FLOOR.findall(text)]


def modules():
    """The source of every module, by its dotted name; the `snnzoo` package's own is the facade, no room."""
    sources = {}
    for folder, package in ((ROOT / "snnzoo", ["snnzoo"]), (ROOT / "cli", ["snnzoo", "cli"])):
        for file in folder.rglob("*.py"):
            parts = [*package, *file.relative_to(folder).with_suffix("").parts]
            sources[".".join(part for part in parts if part != "__init__")] = file.read_text("utf-8")
    del sources["snnzoo"]
    return sources


def imports(source, names):
    """The modules of the package that a module's source imports, anywhere in it; `snnzoo` is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "snnzoo"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "snnzoo":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in names else node.module for name in submodules}
    return found


def arrows_up(graph, table):
    """What the graph of modules holds that the floors forbid, a line each."""
    floor = {room: number for number, rooms in enumerate(table) for room in rooms}
    wrong = []
    for module, imported in graph.items():
        room = module.split(".")[1]
        for other in imported:
            to = other.partition(".")[2].partition(".")[0]
            if not to and room != "cli":
                wrong.append(f"{module} imports the package itself")
            elif to and to != room and floor[to] <= floor[room]:
                wrong.append(f"{module} imports {other}, on floor {floor[to]} and not below {floor[room]}")
    return wrong


@pytest.fixture(scope="module")
def graph():
    sources = modules()
    return {name: imports(source, sources) for name, source in sources.items()}


def test_every_room_is_on_a_floor_and_on_one_only(graph):
    rooms = [room for rooms in floors() for room in rooms]
    assert len(rooms) == len(set(rooms))
    assert {name.split(".")[1] for name in graph} <= set(rooms), "give the new room a floor in docs/architecture.md"


def test_every_import_points_to_a_lower_floor(graph):
    assert arrows_up(graph, floors()) == []


def test_no_modules_import_each_other_in_a_circle(graph):
    exports = {name for name, source in modules().items() if "lazy_exports(\n" in source}  # not imported until used
    tuple(graphlib.TopologicalSorter({n: set() if n in exports else i for n, i in graph.items()}).static_order())


def test_only_the_command_line_imports_typer_and_rich():
    for name, source in modules().items():
        if not name.startswith("snnzoo.cli"):
            assert re.search(r"^\s*(from|import) (typer|rich)\b", source, re.MULTILINE) is None, name


@pytest.mark.parametrize("package", ["", *(name for name, source in modules().items() if "= lazy_exports(" in source)])
def test_what_a_package_exports_is_there_and_dir_names_it(package):
    module = importlib.import_module(package or "snnzoo")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_an_arrow_upwards_or_across_and_the_package_itself_are_seen_inside_functions_too():
    names = {"snnzoo.low", "snnzoo.low.part", "snnzoo.mid", "snnzoo.side"}
    table = [["mid", "side"], ["low"]]
    sources = {
        "snnzoo.low.part": "def f():\n    from snnzoo.mid import thing\n",
        "snnzoo.mid": "import snnzoo\nfrom snnzoo import low, side\nfrom snnzoo.low import part, thing\n",
    }
    graph = {name: imports(source, names) for name, source in sources.items()}
    assert graph["snnzoo.mid"] == {"snnzoo", "snnzoo.low", "snnzoo.side", "snnzoo.low.part"}
    assert [line.partition(",")[0] for line in sorted(arrows_up(graph, table))] == [
        "snnzoo.low.part imports snnzoo.mid",
        "snnzoo.mid imports snnzoo.side",
        "snnzoo.mid imports the package itself",
    ]
