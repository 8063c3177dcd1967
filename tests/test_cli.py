import pytest

from saekit.activations import ActivationStore
from saekit.cli import main
from saekit.dictionary import Dictionary
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
        main(["train", "a", "b", "--width", "8", "--kind", "nonsense"])
    assert "nonsense" in capsys.readouterr().err
