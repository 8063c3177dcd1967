"""Where the rows of a training log go."""

import json
import sys
from types import ModuleType

import pandas as pd
import pytest
import torch

from saekit.training.config import TrainingConfig
from saekit.training.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, ReLU

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
CONFIG = TrainingConfig(ReLU(target_l0=4), width=24, steps=50, batch_size=32, log_every=20)


class Stop(Exception):
    """Ends a run on the way."""


class Recorder:
    """A logger of one's own."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def begin(self, name, settings, rows):
        self.calls.append(("begin", name, json.loads(json.dumps(settings)), [dict(row) for row in rows]))

    def log(self, row):
        self.calls.append(("log", row["step"]))
        if row["step"] == self.stop_at:
            raise Stop

    def end(self):
        self.calls.append(("end",))


def run(config=CONFIG, **options):
    return train(config, X, progress=False, **options)


def test_a_logger_hears_of_the_run_its_rows_and_its_end():
    recorder = Recorder()
    result = run(loggers=[recorder])
    begin, *rows, end = recorder.calls
    assert begin == ("begin", "relu 24 (seed 0)", json.loads(json.dumps(CONFIG.describe())), [])
    assert rows == [("log", 20), ("log", 40), ("log", 50)]
    assert end == ("end",)
    assert result.log.step.tolist() == [20, 40, 50]


def test_a_run_that_goes_on_tells_which_rows_there_are(tmp_path):
    checkpoint, first, second = tmp_path / "c.safetensors", Recorder(stop_at=40), Recorder()
    with pytest.raises(Stop):
        run(loggers=[first], checkpoint=checkpoint)
    assert first.calls[-1] == ("end",)
    result = run(loggers=[second], checkpoint=checkpoint)
    begin, *rows, _ = second.calls
    assert begin[3] == result.log.iloc[:2].to_dict("records")
    assert rows == [("log", 50)]


@pytest.mark.parametrize("variant", [ReLU(target_l0=4), BatchTopK(k=4)], ids=["l1", "k"])
def test_the_file_beside_the_checkpoint_is_the_log_also_when_resumed(variant, tmp_path):
    config = TrainingConfig(variant, width=24, steps=50, batch_size=32, log_every=20)
    whole = run(config, checkpoint=tmp_path / "whole.safetensors")
    file = tmp_path / "whole.csv"
    pd.testing.assert_frame_equal(
        pd.read_csv(file, float_precision="round_trip"), whole.log, check_exact=True
    )
    assert file.read_text() == whole.log.to_csv(index=False)
    seen = []

    def look(_dictionary, step):
        seen.append(len(pd.read_csv(tmp_path / "c.csv")))  # a row is there as soon as it is measured
        if step == 40:
            raise Stop

    with pytest.raises(Stop):
        run(config, checkpoint=tmp_path / "c.safetensors", on_log=look)
    assert seen == [1, 2]
    with open(tmp_path / "c.csv", "a") as damaged:
        damaged.write("rows of after the checkpoint")
    run(config, checkpoint=tmp_path / "c.safetensors")
    assert (tmp_path / "c.csv").read_text() == file.read_text()


def test_a_csv_file_of_its_own_needs_no_checkpoint(tmp_path):
    result = run(loggers=[CSVLogger(tmp_path / "log.csv")])
    assert (tmp_path / "log.csv").read_text() == result.log.to_csv(index=False)


# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    ("make", "module", "name"),
    [
        (lambda: TensorBoardLogger("folder"), "torch.utils.tensorboard", "tensorboard"),
        (lambda: WandbLogger("project"), "wandb", "wandb"),
    ],
)
def test_a_package_that_is_missing_is_named_when_the_logger_is_made(make, module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs {name}: pip install {name}"):
        make()


@pytest.fixture
def tensorboard(monkeypatch):
    """A stand-in with the calls of `torch.utils.tensorboard.SummaryWriter`."""
    module = ModuleType("torch.utils.tensorboard")
    module.calls = []

    class SummaryWriter:
        def __init__(self, log_dir, purge_step=None):
            module.calls.append(("open", log_dir, purge_step))

        def add_scalar(self, tag, scalar_value, global_step):
            module.calls.append((tag, scalar_value, global_step))

        def add_text(self, tag, text_string, global_step):
            module.calls.append((tag, text_string, global_step))

        def close(self):
            module.calls.append(("close",))

    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return module


def test_tensorboard_gets_a_scalar_for_each_column(tensorboard, tmp_path):
    result = run(loggers=[TensorBoardLogger(tmp_path / "events")])
    opened, text, *scalars, closed = tensorboard.calls
    assert opened == ("open", str(tmp_path / "events"), 0)
    assert text[0] == "settings"
    assert "'target_l0': 4.0" in text[1]
    rows = result.log.to_dict("records")
    expected = [(name, row[name], row["step"]) for row in rows for name in row if name != "step"]
    assert scalars == expected
    assert closed == ("close",)


def test_tensorboard_drops_what_a_run_wrote_after_its_last_checkpoint(tensorboard, tmp_path):
    with pytest.raises(Stop):
        run(loggers=[Recorder(stop_at=40)], checkpoint=tmp_path / "c.safetensors")
    run(loggers=[TensorBoardLogger(tmp_path / "events")], checkpoint=tmp_path / "c.safetensors")
    assert tensorboard.calls[0] == ("open", str(tmp_path / "events"), 41)
    assert {call[2] for call in tensorboard.calls[2:-1]} == {50}


def test_wandb_gets_the_settings_and_every_row(monkeypatch):
    calls = []

    class Run:
        def log(self, data, step):
            calls.append((data, step))

        def finish(self):
            calls.append("finished")

    module = ModuleType("wandb")
    module.init = lambda **options: calls.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    result = run(loggers=[WandbLogger("splitting", id="abc", resume="allow")])
    init, *rows, finished = calls
    assert init == {
        "project": "splitting",
        "name": "relu 24 (seed 0)",
        "config": CONFIG.describe(),
        "id": "abc",
        "resume": "allow",
    }
    records = result.log.to_dict("records")
    assert rows == [({k: v for k, v in row.items() if k != "step"}, row["step"]) for row in records]
    assert finished == "finished"
