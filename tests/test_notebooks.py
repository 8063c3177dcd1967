"""The committed notebooks: executed, readable on a page that runs nothing."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def text_of(output):
    data = output.get("data", {})
    parts = [output.get("text", ""), *(data.get(mime, "") for mime in ("text/plain", "text/html"))]
    return "".join("".join(part) for part in parts)


def test_the_series_is_numbered_without_gaps():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02d}" for i in range(len(NOTEBOOKS))]
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_every_code_cell_was_run_in_order_and_without_errors(self, path):
        code = [cell for cell in cells_of(path) if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert not [output for output in outputs if output.get("name") == "stderr"]

    def test_it_opens_with_its_question_and_its_parameters(self, path):
        cells = cells_of(path)
        assert cells[0]["cell_type"] == "markdown"
        assert re.search(r"\*\*.+\?\*\*", "".join(cells[0]["source"]), re.DOTALL)
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        tags = first["metadata"]["tags"]
        assert tags in (
            ["parameters"],
            ["parameters", "embedded"],
        )  # it alone
        assignments = [line for line in "".join(first["source"]).splitlines() if line.strip()]
        assert all(re.match(r"[A-Z0-9_, ]+ = [\w\s\"'.,_()-]+(#.*)?$", line) for line in assignments), (
            "literals only"
        )

    def test_its_claims_are_checked_and_its_numbers_collected(self, path):
        cells = cells_of(path)
        checked = [cell for cell in cells if "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])]
        headline = [cell for cell in cells if "headline" in cell["metadata"].get("tags", [])]
        assert checked
        assert headline
        assert all(cell["outputs"] for cell in [*checked, *headline])
        source = "".join("".join(cell["source"]) for cell in checked)
        assert "series.require(claims)" in source or "assert all(claims.values())" in source

    def test_it_can_be_read_where_nothing_runs(self, path):
        notebook = json.loads(path.read_text())
        assert "widgets" not in notebook["metadata"]
        mimes = {
            mime for cell in notebook["cells"] for o in cell.get("outputs", []) for mime in o.get("data", {})
        }
        assert "application/vnd.jupyter.widget-view+json" not in mimes
        assert "image/png" in mimes
        assert path.stat().st_size < 2_000_000
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text()), "paths of a machine"

    def test_text_comes_from_sources_that_may_be_shown(self, path):
        shown = "".join(text_of(output) for cell in cells_of(path) for output in cell.get("outputs", []))
        assert "Probing prompt" not in shown
