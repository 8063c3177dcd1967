from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from saekit.dictionary import Dictionary
from saekit.training import side_by_side
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import ReLU, TopK

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module

CONFIG = TrainingConfig(variant=TopK(k=4), width=24, steps=30, batch_size=64, warmup=5, log_every=10)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """Folders of two runs that ended, and of one whose checkpoint belongs to other settings."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {
        "topk": CONFIG,
        "relu": replace(CONFIG, variant=ReLU(target_l0=5.0), seed=3),
        "other": replace(CONFIG, width=20),
    }
    checkpoint = folder / "other" / "checkpoint.safetensors"
    train(replace(CONFIG, width=20, seed=1, steps=1), store, checkpoint=checkpoint, progress=False)
    jobs = [(config, folder / name) for name, config in configs.items()]
    with pytest.raises(ValueError, match="belongs to another run"):
        side_by_side.train_side_by_side(jobs[::-1], store, store, snapshots=True, progress=False)
    return jobs


def test_side_by_side_gives_the_bits_of_one_after_the_other(trained, store):
    for config, folder in trained[:2]:
        expected = train(config, store, held_out=store, progress=False)
        assert Dictionary.load(folder).content_hash == expected.dictionary.content_hash
        pd.testing.assert_frame_equal(pd.read_csv(folder / "log.csv"), expected.log)
        assert not (folder / "checkpoint.safetensors").exists()


def test_snapshots_are_the_decoder_at_every_row_of_the_log(trained):
    for _, folder in trained[:2]:
        snapshots = [load_file(side_by_side.snapshot_path(folder, step))["W_dec"] for step in (10, 20, 30)]
        assert len(list((folder / "snapshots").iterdir())) == 3
        assert not torch.equal(snapshots[0], snapshots[1])
        assert torch.equal(snapshots[2], Dictionary.load(folder).W_dec.half())


def test_a_run_that_fails_leaves_no_dictionary(trained):
    folder = trained[2][1]
    assert {file.name for file in folder.iterdir()} == {
        "checkpoint.safetensors",
        "checkpoint.before-decay.safetensors",
        "checkpoint.csv",
    }


def test_what_is_there_is_not_trained_again(trained, store, monkeypatch):
    monkeypatch.setattr(side_by_side, "in_processes", None)  # not even started
    side_by_side.train_side_by_side(trained[:2], store, store, progress=False)
    with pytest.raises(TypeError):
        side_by_side.train_side_by_side(trained, store, store, progress=False)
