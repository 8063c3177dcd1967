"""The top of the package: what is there after `import saekit`, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import saekit

ROOT = Path(__file__).resolve().parents[1]


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_public_name_is_there():
    for name in dir(saekit):
        assert getattr(saekit, name) is not None, name


def test_the_help_names_every_export_and_nothing_else():
    table = saekit.__doc__.split("\n\n")[1]
    listed = re.findall(r"\w+", re.sub(r"^.{17}", "", table, flags=re.MULTILINE))
    assert len(listed) == len(set(listed))
    assert set(listed) == {*saekit._HOMES, *saekit._SHORT, "plots", "figures"}


def test_help_opens_with_the_calls_and_fits_a_screen():
    lines = run("import saekit; help(saekit)").splitlines()
    before_the_modules = lines.index("PACKAGE CONTENTS")
    assert before_the_modules < 40
    assert len(lines) < 100
    assert max(map(len, lines)) <= 100


def test_every_module_is_there_after_importing_saekit():
    paths = [
        path
        for path in (ROOT / "saekit").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    names = [path.stem for path in paths if not path.name.startswith(("_", "."))]
    assert {"corpora", "models", "loading", "plots"} <= set(names) <= set(dir(saekit))
    code = f"import saekit\nfor name in {names}: print(getattr(saekit, name).__name__)"
    assert run(code).split() == [f"saekit.{name}" for name in names]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_call'"):
        _ = saekit.no_such_call
    assert not hasattr(saekit, "_repr_html_")


def test_a_module_that_lacks_a_dependency_says_which(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_dependency")
    monkeypatch.setattr(saekit, "__path__", [*saekit.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        _ = saekit.broken


def test_using_a_dictionary_imports_no_language_model():
    run("""
import sys, torch, saekit
eye = torch.eye(3)
dictionary = saekit.Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), torch.zeros(3))
x = torch.rand(5, 3)
assert saekit.evaluate(dictionary, x).fvu == 0
assert saekit.best_matches(dictionary, dictionary) is not None
loaded = {"transformer_lens", "transformers", "datasets", "ipywidgets"} & set(sys.modules)
assert not loaded, loaded
""")


def test_the_version_is_written_in_one_place():
    written = re.compile(rf"(?<![\d.=]){re.escape(saekit.__version__)}(?![\d.])")
    files = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "README.md", "mkdocs.yml")]
    files += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "saekit").rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if written.search(path.read_text())]
    assert found == ["saekit/__init__.py"]
