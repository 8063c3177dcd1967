"""What `saekit serve` refuses and warns of, and the notebook that it gives to Voila."""

import json
import os
import socket
import sys

import pytest
from dictionaries import make

from saekit.cli import main, workspace
from saekit.family import Family
from saekit.site import serve


def test_without_voila_one_sentence_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--quiet", "serve", "no-family"]) == 1
    expected = "saekit serve: Serving needs Voila, which is not installed: pip install 'saekit[serve]'.\n"
    assert capsys.readouterr().err == expected


def test_a_port_in_use_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(serve, "require_voila", lambda: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--quiet", "serve", "no-family", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"at 127.0.0.1, port {port} (Address already in use): choose another --port" in error


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_another_host_is_warned_of(host, warned, monkeypatch, capsys):
    monkeypatch.setattr(serve, "require_voila", lambda: None)
    monkeypatch.setattr("saekit.cli._atlas", lambda family, options: None)
    asked = {}
    monkeypatch.setattr(serve, "serve", lambda source, **options: asked.update(options, source=source))
    assert main(["--quiet", "serve", "relu", "--host", host, "--port", "0", "--no-browser"]) == 0
    shown = capsys.readouterr()
    assert ("Warning: everyone who reaches" in shown.err) == warned
    assert f"http://{host}:0/" in shown.out
    assert (asked["host"], asked["open_browser"]) == (host, False)
    assert asked["source"].splitlines()[-1] == "workspace(**{'family': 'relu'})"


def test_the_notebook_runs_this_python_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = serve._write(tmp_path / "made", "1 + 1")
    (cell,) = json.loads(notebook.read_text())["cells"]
    here = os.getcwd()
    os.chdir("/")
    exec(cell["source"])
    assert os.getcwd() == here
    kernel = json.loads((tmp_path / "made" / "kernels" / "saekit" / "kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable


def test_a_visitor_gets_the_family_that_the_command_names(store, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    Family(make(d_in=16, width=width) for width in (8, 16)).save(tmp_path / "family")
    opened = workspace(
        family=str(tmp_path / "family"), store=str(store.path), model=str(model_folder), allow_mismatch=True
    )
    assert opened.atlas.widths == [8, 16]
    assert opened.atlas.store.content_hash == store.content_hash
    assert opened.atlas.model is not None
