from pathlib import Path

import pytest
from dictionaries import make

from saekit.activations import ActivationStore
from saekit.cli import main
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.metrics import evaluate


@pytest.fixture
def text_file(tmp_path):
    lines = [f"The {i}. river runs under stone {i * i} and the king sleeps." for i in range(400)]
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(lines))
    return file


def test_harvest_and_train(model_folder, text_file, tmp_path, capsys):
    common = ["--model", str(model_folder), "--text", str(text_file), "--context-length", "16"]
    harvest = ["--quiet", "harvest", str(tmp_path / "store"), *common, "--tokens", "1600"]
    # One document: the split puts it on one side as a whole.
    parts = [
        main([*harvest, "--hook-point", "blocks.1.hook_resid_post", "--part", p])
        for p in ("train", "held-out")
    ]
    assert sorted(parts) == [0, 1]
    assert "1600 positions at blocks.1.hook_resid_post" in capsys.readouterr().out
    store = ActivationStore.open(tmp_path / "store")
    train = ["--quiet", "train", str(tmp_path / "store"), str(tmp_path / "sae"), "--kind", "batchtopk"]
    assert main([*train, "--k", "4", "--width", "24", "--steps", "60", "--batch-size", "128"]) == 0
    dictionary = Dictionary.load(tmp_path / "sae")
    assert (dictionary.kind, dictionary.width, dictionary.hook_point) == ("batchtopk", 24, store.hook_point)
    assert evaluate(dictionary, store).fvu < 1
    assert "fvu" in capsys.readouterr().out


def test_report_takes_folders_and_says_where_the_page_is(store, tmp_path, monkeypatch, capsys):
    asked = {}

    def report(family, store, *, folder, **options):
        asked.update(options, widths=family.widths, tokens=store.n_tokens, folder=folder)
        return folder / "index.html"

    monkeypatch.setattr("saekit.report.report.write_report", report)
    monkeypatch.chdir(tmp_path)
    Family([make(d_in=16, width=width) for width in (8, 16)]).save(tmp_path / "toy")
    assert main(["--quiet", "report", "toy", "--store", str(store.path), "--theta", "0.5"]) == 0
    assert asked == {
        "widths": [8, 16],
        "tokens": store.n_tokens,
        "folder": Path("report-toy"),
        "theta": 0.5,
        "model": None,
        "progress": False,
    }
    assert capsys.readouterr().out == "report-toy/index.html\n"
    assert main(["--quiet", "report", "nothing", "--store", str(store.path)]) == 1
    assert "no family 'nothing'" in capsys.readouterr().err


def test_errors_are_one_sentence_and_status_one(model_folder, text_file, tmp_path, capsys):
    assert main(["train", str(tmp_path / "nothing"), str(tmp_path / "sae"), "--width", "8"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "nothing") in error
    assert error.count("\n") == 1
    arguments = ["harvest", str(tmp_path / "s"), "--model", str(model_folder), "--text", str(text_file)]
    for part in ("train", "held-out"):
        main([*arguments, "--tokens", "256", "--hook-point", "blocks.1.hook_resid_pst", "--part", part])
    assert "blocks.1.hook_resid_post" in capsys.readouterr().err, "the nearest hook points are named"


def test_unknown_commands_and_kinds_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "nonsense" in capsys.readouterr().err
    assert main(["train", "a", "b", "--width", "8", "--kind", "nonsense"]) == 1
    assert "--kind must be one of 'relu', 'gated'" in capsys.readouterr().err
