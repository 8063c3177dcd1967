"""What a figure's hash covers: the modules that it came through, and of these the code alone."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import saekit
from saekit import plots, source
from saekit.source import code_hash, modules_behind

PACKAGE = Path(source.__file__).parent
PLOTS = sorted(f"saekit.plots.{file.stem}" for file in (PACKAGE / "plots").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", PLOTS)
def test_an_edit_of_an_explorer_or_the_command_line_reaches_no_figure(module):
    behind = modules_behind([module])
    parts = {name.split(".")[1] for name in behind}
    assert not parts & {"widgets", "cli", "report", "site", "gallery", "series", "loading", "baselines"}
    assert {module, "saekit.figures", "saekit.colours"} <= set(behind)
    assert "saekit.plots" not in behind  # the package only passes names on
    others = set(PLOTS) - {module, "saekit.plots.common"}
    assert len(others & set(behind)) <= 1


def test_every_module_behind_is_one_that_an_import_names():
    """Against the imports as written, module by module, without resolving any names."""
    behind = set(modules_behind(["saekit.plots.novelty"]))
    assert {"saekit.analysis.novelty", "saekit.analysis.similarity", "saekit.passes"} <= behind
    for name in behind:
        place = PACKAGE.parent.joinpath(*name.split("."))
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.ImportFrom) and node.module.startswith("saekit")):
                continue
            for alias in node.names:
                whole = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                if whole.with_suffix(".py").exists():
                    assert f"{node.module}.{alias.name}" in behind
                elif PACKAGE.parent.joinpath(*node.module.split(".")).with_suffix(".py").exists():
                    assert node.module in behind


def test_a_name_that_a_package_passes_on_leads_to_its_module(tmp_path, monkeypatch):
    package = tmp_path / "saekit"
    (package / "shapes").mkdir(parents=True)
    (package / "shapes" / "__init__.py").write_text(
        "from saekit.shapes.round import circle\nfrom saekit.shapes.flat import line\nSIDES = 4\n"
    )
    (package / "shapes" / "round.py").write_text("def circle():\n    import saekit.maths\n")
    (package / "shapes" / "flat.py").write_text("line = 1\n")
    (package / "maths.py").write_text("from numpy import pi\n")
    (package / "plot.py").write_text("from saekit.shapes import circle\n")
    (package / "sides.py").write_text("from saekit.shapes import SIDES\n")
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    assert modules_behind(["saekit.plot"]) == ["saekit.maths", "saekit.plot", "saekit.shapes.round"]
    assert "saekit.shapes.flat" in modules_behind(["saekit.sides"])  # the package itself, and what it reads
    assert modules_behind(["__main__", "numpy"]) == []


CODE = '''"""A module."""
import math  # for pi

TEXT = """one

# two"""

def area(radius):
    """The area."""
    # r squared
    return math.pi * radius**2
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# for pi", "# of circles", True),
        ("    # r squared\n", "", True),
        ('"""A module."""', '"""Another docstring."""', True),
        ('    """The area."""\n', '    """The area.\n\n    In metres.\n    """\n', True),
        ("import math", "\n\nimport math", True),
        ("radius**2", "radius**3", False),
        ("# two", "# three", False),  # no comment, since it is in a string
        ("one\n\n", "one\n", False),
        ("def area", "@print\ndef area", False),
        ("import math", "import math as math", False),
    ],
)
def test_only_code_counts(tmp_path, monkeypatch, old, new, same):
    (tmp_path / "saekit").mkdir()
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    file = tmp_path / "saekit" / "it.py"
    file.write_text(CODE)
    before = code_hash(["saekit.it"])
    assert CODE.count(old) == 1
    file.write_text(CODE.replace(old, new))
    assert (code_hash(["saekit.it"]) == before) is same
    assert source._code(CODE) == "\n".join(
        [
            "import math",
            'TEXT = """one',
            "",
            '# two"""',
            "def area(radius):",
            "    return math.pi * radius**2",
        ]
    )


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no module 'saekit\.nothing'"):
        code_hash(["saekit.nothing"])


def test_a_plot_records_the_module_that_drew_it(tmp_path):
    found = plots.kinds_frontier(saekit.kinds_table())
    assert found.modules == ("saekit.plots.training",)
    manifest = json.loads(found.save("kinds", folder=tmp_path)[-1].read_text())
    assert manifest["modules"] == ["saekit.plots.training"]
    assert manifest["source"] == code_hash(modules_behind(["saekit.plots.training"]))
    assert replace(found, alt="A chart.").modules == found.modules  # made by `dataclasses`
