"""Imports run one way: the layers are those of docs/architecture.md."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def layers_of(page):
    """Layer of each module or package of saekit, from the table under "Layers"."""
    section = re.search(r"^## Layers\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
    layers = {}
    for layer, modules in re.findall(r"^\| (\d+) \| (.+?) \|", section, re.MULTILINE):
        for module in re.findall(r"`(\w+)`", modules):
            assert module not in layers, f"{module} is listed twice"
            layers[module] = int(layer)
    return layers


def imports_of(package):
    """Modules of a package (dotted names below it), each with those it imports, also inside functions."""
    files = {dotted(file, package): file for file in sorted(package.rglob("*.py"))}
    return {name: imported(file.read_text(), name, set(files)) for name, file in files.items()}


def dotted(file, package):
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source, name, known):
    """Modules out of `known` that a source imports, those that only type checkers see left out."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node = ast.Module(node.orelse, [])
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found & known - {name}


def upward(imports, layers):
    """Imports from a later layer, as text."""
    room = {name: name.split(".")[1] for name in imports if "." in name}
    return [
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in others
        if name in room and (other not in room or layers[room[name]] < layers[room[other]])
    ]


def cycle_in(graph):
    """The members of a cycle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.fixture(scope="module")
def imports():
    return imports_of(ROOT / "saekit")


@pytest.fixture(scope="module")
def layers():
    return layers_of(PAGE.read_text())


def test_the_page_lists_every_module(imports, layers):
    top = {name.split(".")[1] for name in imports if "." in name}
    assert top - set(layers) == set(), "list it in the table of docs/architecture.md"
    assert set(layers) - top == set(), "docs/architecture.md lists a module that does not exist"


def test_no_import_goes_up(imports, layers):
    assert upward(imports, layers) == []


def test_there_is_no_cycle(imports, layers):
    assert cycle_in(imports) is None
    rooms = {room: set() for room in layers}
    for name, others in imports.items():
        for other in others:
            if "." in name and "." in other and name.split(".")[1] != other.split(".")[1]:
                rooms[name.split(".")[1]].add(other.split(".")[1])
    assert cycle_in(rooms) is None


def test_every_kind_of_forbidden_import_is_found(tmp_path):
    package = tmp_path / "toy"
    (package / "high").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "low.py": "def f():\n    from toy.high import part\n",
        "middle.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.high import part\n",
        "high/__init__.py": "import toy.middle",
        "high/part.py": "from toy.low import f\nfrom toy import middle",
        "facade.py": "import toy",
    }
    for name, source in files.items():
        (package / name).write_text(source)
    imports = imports_of(package)
    layers = layers_of(
        "## Layers\n| layer | modules |\n| 1 | `low`, `middle` |\n| 2 | `high` |\n| 3 | `facade` |\n## x"
    )
    assert upward(imports, layers) == ["toy.facade imports toy", "toy.low imports toy.high.part"]
    assert set(cycle_in(imports)) == {"toy.low", "toy.high.part"}
