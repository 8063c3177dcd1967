"""How notebooks are run."""

import nbformat
import pytest

from saekit.series.reproduce import run_notebook


@pytest.mark.slow
def test_a_kernel_starts_without_noise(tmp_path, capfd):
    cell = nbformat.v4.new_code_cell("print(6 * 7)", metadata={"tags": ["headline"]})
    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert run_notebook(path) == ["42"]
    assert "TCP" not in capfd.readouterr().err
