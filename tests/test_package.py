import subprocess
import sys

import saekit


def test_every_public_name_is_there():
    for name in saekit.__all__:
        assert getattr(saekit, name) is not None, name
    assert set(saekit.__all__) <= set(dir(saekit))


def test_using_a_dictionary_imports_no_language_model():
    code = """
import sys, torch, saekit
eye = torch.eye(3)
dictionary = saekit.Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), torch.zeros(3))
x = torch.rand(5, 3)
assert saekit.evaluate(dictionary, x).fvu == 0
assert saekit.best_matches(dictionary, dictionary) is not None
loaded = {"transformer_lens", "transformers", "datasets", "ipywidgets"} & set(sys.modules)
assert not loaded, loaded
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
