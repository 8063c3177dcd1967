import inspect
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from dictionaries import make

from saekit.activations import ActivationStore, harvest
from saekit.agreement import MismatchWarning
from saekit.cli import COMMANDS, _first_sentence, main
from saekit.corpora import pack
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.loading.names import load_sae
from saekit.metrics import evaluate
from saekit.models import load_model
from saekit.report.report import write_report
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import VARIANTS, ReLU


@pytest.fixture
def text_file(tmp_path):
    lines = [f"The {i}. river runs under stone {i * i} and the king sleeps." for i in range(400)]
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(lines))
    return file


@pytest.fixture
def text_options(model_folder, text_file):
    place = ["--hook-point", "blocks.1.hook_resid_post", "--context-length", "16", "--tokens", "1600"]
    return ["--model", str(model_folder), "--text", str(text_file), *place]


@pytest.fixture
def fails(capsys):
    """The one sentence that a command ends with."""

    def fails(*arguments):
        assert main(["--quiet", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return fails


def test_harvest_and_train(text_options, tmp_path, capsys):
    for part in ("train", "held-out"):
        tokens = ["--tokens", "480"] if part == "held-out" else []
        assert main(["--quiet", "harvest", str(tmp_path / part), *text_options, "--part", part, *tokens]) == 0
        assert f"{480 if tokens else 1600} positions at blocks.1.hook_resid_post" in capsys.readouterr().out
    store = ActivationStore.open(tmp_path / "train")
    places = [str(tmp_path / "train"), str(tmp_path / "sae")]
    arguments = ["--quiet", "train", *places, "--kind", "batchtopk", "--k", "4", "--width", "24"]
    arguments += ["--steps", "60", "--batch-size", "128", "--held-out", str(tmp_path / "held-out")]
    assert main(arguments) == 0
    dictionary = Dictionary.load(tmp_path / "sae")
    assert (dictionary.kind, dictionary.width, dictionary.hook_point) == ("batchtopk", 24, store.hook_point)
    assert evaluate(dictionary, store).fvu < 1
    assert "fvu" in capsys.readouterr().out
    assert (tmp_path / "sae" / "checkpoint.csv").read_text().count("\n") == 2
    longer = [*arguments[:-6], "--steps", "70", *arguments[-4:]]
    assert main(longer) == 1
    found = "warmup is 6 there and 7 here (it follows the steps unless it is given); give --warmup 6 to go on"
    assert found in capsys.readouterr().err
    assert main([*longer, "--warmup", "6"]) == 0
    assert Dictionary.load(tmp_path / "sae").info["training"]["steps"] == 70, "it is extended"


def test_processing_and_bos_reach_the_store(gpt2_folder, text_file, tmp_path):
    arguments = ["--quiet", "harvest", str(tmp_path / "store"), "--model", str(gpt2_folder)]
    arguments += ["--text", str(text_file), "--tokens", "320", "--context-length", "16", "--bos"]
    arguments += ["--hook-point", "blocks.0.hook_resid_post", "--processing", "center_writing_weights"]
    assert main(arguments) == 0
    manifest = ActivationStore.open(tmp_path / "store").manifest
    assert manifest["corpus"]["prepend_bos"]
    on = [flag for flag, value in manifest["model"]["processing"].items() if value]
    assert on == ["center_writing_weights"]
    assert manifest["dtype"] == str(inspect.signature(harvest).parameters["dtype"].default).split(".")[1]


def test_training_while_harvesting_is_training_on_a_stream(text_options, tmp_path, capsys):
    arguments = ["--quiet", "train", "--stream", str(tmp_path / "sae"), *text_options, "--dtype", "float32"]
    assert main([*arguments, "--width", "24", "--target-l0", "5", "--steps", "20", "--batch-size", "64"]) == 0
    dictionary = Dictionary.load(tmp_path / "sae")
    assert dictionary.hook_point == "blocks.1.hook_resid_post"
    assert "steps: 20" not in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "sae").iterdir()} >= {"dictionary.json", "checkpoint.csv"}


def test_what_an_option_does_not_apply_to_is_an_error(store, tmp_path, fails, text_options):
    places = ("train", store.path, tmp_path / "sae")
    assert "target_l0 does not apply to topk" in fails(
        *places, "--kind", "topk", "--width", 8, "--target-l0", 2
    )
    assert "k does not apply to relu" in fails(*places, "--kind", "relu", "--width", 8, "--k", 2)
    assert "The width of the relu dictionary to train must be given" in fails(*places)
    assert "--bos applies only with --stream" in fails(*places, "--width", 48, "--bos")
    assert "Expected only the dictionary's folder" in fails(*places, "--stream", "--width", 48)
    assert "Expected a store and the dictionary's folder" in fails(*places[:2], "--width", 48)
    assert "--documents applies only to --dataset" in fails(
        "harvest", tmp_path / "store", *text_options, "--documents", 3
    )
    assert "smollm2-135m-instruct is embedded and has no revisions" in fails(
        "harvest", tmp_path / "store", "--revision", "main"
    )
    assert "There is no device 'cuda:99'" in fails(*places, "--width", 48, "--device", "cuda:99")
    assert not list((tmp_path / "sae").glob("*.safetensors")), "nothing was trained"


# ---------------------------------------------------------------------- settings from a file


YAML = """
kind: relu
width: 24
target-l0: 5
steps: 12
lr: 1e-3
batch_size: 64
weighted: true
"""
JSON = """{"kind": "relu", "width": 24, "target_l0": 5, "steps": 12, "lr": 1e-3,
	"batch_size": 64, "weighted": true}"""


@pytest.mark.parametrize(("name", "text"), [("run.yaml", YAML), ("run.json", JSON)])
def test_settings_from_a_file_are_those_of_the_command_line(name, text, store, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    for folder, steps in (("a", []), ("b", ["--steps", "15"])):
        places = [str(store.path), str(tmp_path / folder)]
        assert main(["--quiet", "train", *places, "--config", str(file), *steps]) == 0
        training = Dictionary.load(tmp_path / folder).info["training"]
        expected = TrainingConfig(
            ReLU(5.0, weighted=True), 24, steps=15 if steps else 12, lr=1e-3, batch_size=64
        )
        assert {name: training[name] for name in expected.describe()} == expected.describe()


def test_lists_and_flags_may_be_in_a_file_too(model_folder, text_file, tmp_path):
    settings = {"model": str(model_folder), "text": [str(text_file)], "bos": True, "tokens": 320}
    settings |= {"context_length": 16, "hook_point": "blocks.1.hook_resid_post", "documents": None}
    del settings["documents"]
    (tmp_path / "harvest.json").write_text(json.dumps(settings))
    assert main(["--quiet", "harvest", str(tmp_path / "s"), f"--config={tmp_path / 'harvest.json'}"]) == 0
    assert ActivationStore.open(tmp_path / "s").manifest["corpus"]["prepend_bos"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth: 3", "saekit train has no option depth; it has kind, width"),
        ("config: other.yaml", "saekit train has no option config"),
        ("- 3", "must hold options by name, found list"),
        ("width: [", "cannot be read: while parsing a flow node"),
        ("stream: perhaps", "stream must be true or false, found 'perhaps'"),
        ("lr: {a: 3}", "lr must be a value or a list of values"),
        ("lr: 3\nwidth: 8\nlr: 4", "lr twice"),
        ("lr: " + "[" * 5000, "cannot be read"),
        (b"lr: \xff", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_with_a_slip_is_refused(text, message, store, tmp_path, fails):
    (tmp_path / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = fails("train", store.path, tmp_path / "sae", "--config", tmp_path / "run.yaml")
    assert f"{tmp_path / 'run.yaml'}" in found
    assert message in found


# ---------------------------------------------------------------------- help and defaults


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_the_help_of_every_command_shows_its_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listing = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(command.help)}", listing)
        assert "usage: saekit" in help_of(name, capsys)
    training = help_of("train", capsys)
    for made in (TrainingConfig, *VARIANTS.values()):
        for field in fields(made):
            if field.name != "variant":
                assert f"--{field.name.replace('_', '-')}" in training
                if not (field.default is None or field.name == "width"):
                    assert f"default: {field.default})" in training, field.name


@pytest.mark.parametrize(
    ("command", "option", "function", "parameter"),
    [
        ("harvest", "dtype", harvest, "dtype"),
        ("harvest", "hook-point", harvest, "hook_point"),
        ("harvest", "context-length", pack, "context_length"),
        ("harvest", "model-dtype", load_model, "dtype"),
        ("train", "checkpoint-every", train, "checkpoint_every"),
        ("train", "device", train, "device"),
        ("report", "theta", write_report, "theta"),
        ("report", "k", write_report, "k"),
        ("report", "recipe", write_report, "recipe"),
    ],
)
def test_defaults_are_those_of_the_functions(command, option, function, parameter, capsys):
    default = str(inspect.signature(function).parameters[parameter].default).removeprefix("torch.")
    assert re.search(rf" --{option} [^(]*\(default: {re.escape(default)}\)", help_of(command, capsys))


def test_a_sentence_of_the_help_does_not_end_at_an_abbreviation(capsys):
    assert _first_sentence("Conerly\n  et al. use i.e. 5, e.g. 6, cf. 7. Another one.") == (
        "Conerly et al. use i.e. 5, e.g. 6, cf. 7."
    )
    assert _first_sentence("One. Two.") == "One."
    assert _first_sentence("No stop") == "No stop"
    training = help_of("train", capsys)
    assert not re.search(r"et al(?!\.)|\bet al\.? \(relu|<lambda>| X\b", training)
    assert training.count("(") == training.count(")")


def test_numbers_of_options_are_named_and_checked(capsys):
    training = help_of("train", capsys)
    for text in ("--width INT", "--lr FLOAT", "--target-l0 FLOAT|none", "--warmup INT|none", "--tokens INT"):
        assert text in training
    for option, value, message in (
        ("--width", "8.5", "must be a whole number, found '8.5'"),
        ("--lr", "fast", "must be a number, found 'fast'"),
        ("--target-l0", "nothing", "must be a number, found 'nothing'"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "a", "b", option, value])
        assert message in capsys.readouterr().err


def test_none_is_a_value_where_the_setting_takes_it(store, tmp_path):
    for text in ("none", "None"):
        arguments = ["--width", "48", "--steps", "2", "--batch-size", "64", "--l1", "0.01"]
        places = [str(store.path), str(tmp_path / text)]
        assert main(["--quiet", "train", *places, *arguments, "--target-l0", text]) == 0
        expected = TrainingConfig(ReLU(None, l1=0.01), 48, steps=2, batch_size=64).describe()
        training = Dictionary.load(tmp_path / text).info["training"]
        assert {name: training[name] for name in expected} == expected
        assert "target_l0" not in training


def test_the_kind_by_default_trains_with_the_defaults_of_its_class(store, tmp_path):
    assert main(["--quiet", "train", str(store.path), str(tmp_path / "sae"), "--width", "48", "--steps", "2",
                 "--batch-size", "64"]) == 0  # fmt: skip
    training = Dictionary.load(tmp_path / "sae").info["training"]
    expected = TrainingConfig(ReLU(), 48, steps=2, batch_size=64).describe()
    assert {name: training[name] for name in expected} == expected


# ---------------------------------------------------------------------- convert and report


def test_convert_writes_what_the_python_call_does(tmp_path, store, capsys):
    make(d_in=16, width=24).save(tmp_path / "own")
    x = store.read(store.positions[:64])
    for kind in ("saelens", "dictionary_learning", "saekit"):
        folder = tmp_path / kind
        assert main(["--quiet", "convert", str(tmp_path / "own"), str(folder), "--format", kind]) == 0
        assert capsys.readouterr().out == f"{folder}\n"
        expected, found = (load_sae(place).encode(x) for place in (tmp_path / "own", folder))
        torch.testing.assert_close(found, expected)


def topk(store, width, k=3):
    config = TrainingConfig(VARIANTS["topk"](k=k), width, steps=20, batch_size=64, lr=3e-3)
    return train(config, store, progress=False).dictionary


def test_report_takes_folders_and_says_where_the_page_is(store, tmp_path, monkeypatch, capsys):
    asked = {}

    def report(family, store, *, folder, **options):
        asked.update(
            options, widths=family.widths, kind=family.kind, tokens=store.n_tokens, folder=str(folder)
        )
        return folder / "index.html"

    monkeypatch.setattr("saekit.report.report.write_report", report)
    monkeypatch.setattr("saekit.cli._default", lambda function, name: None)  # of the stand-in
    monkeypatch.chdir(tmp_path)
    Family([make(d_in=16, width=width) for width in (8, 16)]).save(tmp_path / "toy")
    assert main(["--quiet", "report", "toy", "--store", str(store.path), "--theta", "0.5"]) == 0
    assert asked == {
        "widths": [8, 16],
        "kind": "relu",
        "tokens": store.n_tokens,
        "folder": "report-toy",
        "theta": 0.5,
        "model": None,
        "progress": False,
    }
    assert capsys.readouterr().out == "report-toy/index.html\n"
    Family([topk(store, 8), topk(store, 16)]).save(tmp_path / "competing")
    assert main(["--quiet", "report", "competing", "--store", str(store.path)]) == 0
    assert (asked["kind"], asked["widths"]) == ("jumprelu", [8, 16])
    out = capsys.readouterr().out
    assert out.count("is converted to thresholds, measured on the same store: L0 ") == 2
    assert main(["--quiet", "report", "nothing", "--store", str(store.path)]) == 1
    assert f"There is no file or folder {tmp_path / 'nothing'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "relu", "--out", "{}"],
        ["harvest", "{}"],
        ["train", "a-store", "{}", "--width", "48"],
        ["convert", "relu/576-seed0", "{}"],
        ["reproduce", "--profile", "gpt2", "--out", "{}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_place_that_cannot_be_written_is_refused_first(arguments, tmp_path, monkeypatch, fails):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "folder"

    def work(*_, **__):
        raise AssertionError("work before the place was tried")

    monkeypatch.setattr("saekit.cli._default", lambda function, name: None)  # of the stand-ins
    for name in ("loading.names.load_family", "loading.publishing.convert_sae", "models.load_model"):
        monkeypatch.setattr(f"saekit.{name}", work)
    assert f"Nothing can be written to the folder {place}" in fails(*(a.format(place) for a in arguments))


def test_a_report_asks_for_a_store_before_it_loads_a_model(tmp_path, monkeypatch, fails):
    def work(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("saekit.models.load_model", work)
    for name, info in (("model", {"model": "gpt2"}), ("place", {"hook_point": "blocks.1.hook_resid_post"})):
        members = [make(d_in=16, width=width) for width in (8, 16)]
        Family([replace(one, info={**one.info, **info}) for one in members]).save(tmp_path / name)
        error = fails("report", tmp_path / name, "--out", tmp_path / "out" / "page")
        assert next(iter(info.values())) in error
        assert "give --store" in error
        assert not (tmp_path / "out").exists(), "the folders that it made are gone"
    (tmp_path / "out").mkdir()
    fails("report", tmp_path / "model", "--out", tmp_path / "out")
    assert (tmp_path / "out").exists(), "a folder that was there stays"


def test_a_mismatch_is_worded_for_the_shell(store, tmp_path, monkeypatch, fails):
    members = [make(d_in=16, width=width) for width in (8, 16)]
    elsewhere = {"hook_point": "blocks.0.hook_resid_post"}
    Family([replace(one, info={**one.info, **elsewhere}) for one in members]).save(tmp_path / "family")
    arguments = ("report", tmp_path / "family", "--store", store.path, "--out", tmp_path / "out")
    arguments += ("--k", "1")  # there is one meta-latent to 16 directions
    error = fails(*arguments)
    assert error.endswith("Add --allow-mismatch if this is what you want.\n")
    assert "allow_mismatch" not in error
    monkeypatch.setattr("saekit.report.report._measured", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), pytest.warns(MismatchWarning):
        main(["--quiet", *map(str, arguments), "--allow-mismatch"])


def test_an_interrupt_is_one_sentence_that_is_true(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("saekit.training.trainer.train", stop)
    monkeypatch.setattr("saekit.activations.ActivationStore.open", lambda *_: None)
    monkeypatch.setattr("saekit.cli._default", lambda function, name: None)
    assert main(["train", "a", str(tmp_path / "sae"), "--width", "48"]) == 130
    assert capsys.readouterr().err == "saekit train: stopped; repeat the command to resume.\n"
    monkeypatch.setattr("saekit.loading.publishing.convert_sae", stop)
    assert main(["convert", "a", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "saekit convert: stopped.\n"


def test_errors_are_one_sentence_and_status_one(model_folder, text_file, tmp_path, fails):
    assert str(tmp_path / "nothing") in fails(
        "train", tmp_path / "nothing", tmp_path / "sae", "--width", "48"
    )
    error = fails(
        "harvest", tmp_path / "s", "--model", model_folder, "--text", text_file,
        "--tokens", "256", "--hook-point", "blocks.1.hook_resid_pst",
    )  # fmt: skip
    assert "blocks.1.hook_resid_post" in error, "the nearest hook points are named"


@pytest.mark.parametrize(
    ("content", "twice"),
    [
        ('{"lr": 1, "width": 8, "lr": 2}', "lr"),
        ('{"lr": 1, "lr": 1, "seed": 0, "k": 2, "seed": 1}', "lr, seed"),
    ],
)
def test_a_json_file_that_gives_a_name_twice_is_refused(content, twice, store, tmp_path, fails):
    file = tmp_path / "run.json"
    file.write_text(content)
    assert f"{file} gives {twice} twice." in fails("train", store.path, tmp_path / "sae", "--config", file)
    nested = tmp_path / "profile.json"
    nested.write_text('{"name": "a", "model": {"name": "gpt2", "name": "gpt2-xl"}}')
    assert f"{nested} gives name twice." in fails("reproduce", "--profile", nested)


@pytest.mark.parametrize(
    ("command", "folder"), [("families", "families"), ("kinds", "kinds"), ("order", "order")]
)
def test_long_work_names_the_place_it_writes_to_before_it_starts(
    command, folder, tmp_path, capsys, monkeypatch
):
    def stop(*_, **__):
        raise ValueError("far enough")

    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    for name in ("bundling", "kinds_grid", "seeds_and_order"):
        monkeypatch.setattr(f"saekit.series.{name}.embedded_store", stop)
    assert main([command]) == 1
    assert f"Dictionaries are trained in {tmp_path / 'home' / folder}." in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[" * 100_000, b'{"lr": "\xff"}', "{"])
def test_a_json_file_that_cannot_be_read_is_named(content, store, tmp_path, fails):
    file = tmp_path / "run.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{file} is not a JSON file" in fails("train", store.path, tmp_path / "sae", "--config", file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "8", "--lr", "1e30"], "diverged"),
        (["--width", f"{10**11}"], "not enough memory"),
        (["--width", f"{10**20}"], "not enough memory"),
    ],
)
def test_training_that_cannot_be_done_ends_with_a_sentence(options, message, store, tmp_path, fails):
    further = ["--target-l0", "3", "--steps", "5", "--batch-size", "16"]
    assert message in fails("train", store.path, tmp_path / "sae", *options, *further)


def test_an_error_of_the_program_itself_keeps_its_traceback(tmp_path, monkeypatch):
    def fault(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr("saekit.cli._default", lambda function, name: None)  # of the stand-in
    monkeypatch.setattr("saekit.loading.publishing.convert_sae", fault)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["convert", "a", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "arguments", [["train", "{}", "{}", "--width", "48"], ["convert", "relu/576-seed0", "{}"]]
)
def test_nothing_else_is_written_into_a_store(arguments, store, fails):
    before = {file.name for file in store.path.iterdir()}
    assert "holds an activation store" in fails(*(part.format(store.path) for part in arguments))
    assert {file.name for file in store.path.iterdir()} == before


def test_unknown_commands_and_kinds_are_refused(capsys):
    for arguments in (["train", "a", "b", "--width", "8", "--kind", "nonsense"], ["nonsense"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "nonsense" in capsys.readouterr().err


def test_cite_prints_the_entry_and_the_tex_of_a_figure(capsys):
    folder = Path(__file__).parents[1] / "figures"
    assert main(["cite", "02_max_cosine", "--folder", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("@misc{saekit-02_max_cosine,")
    assert (folder / "02_max_cosine.tex").read_text() in printed
    assert main(["cite", "other", "--folder", str(folder)]) == 1
    assert "other" in capsys.readouterr().err
