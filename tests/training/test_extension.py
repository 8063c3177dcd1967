"""Going on with a run that had ended."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from saekit.training import trainer
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, Gated, JumpReLU, ReLU, TopK

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
VARIANTS = (ReLU(target_l0=4), ReLU(target_l0=None), Gated(target_l0=4, steering=0.5), JumpReLU(target_l0=4))
VARIANTS += (TopK(k=4), BatchTopK(k=4, dead_after=200))
SHORT = TrainingConfig(ReLU(target_l0=4), 24, steps=40, batch_size=32, lr=3e-3, warmup=4, log_every=15)


def run(config, **options):
    return train(config, X, progress=False, **options)


def same(a, b):
    return a.dictionary.content_hash == b.dictionary.content_hash and a.log.equals(b.log)


def step_of(checkpoint):
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["saekit"])["step"]


@pytest.fixture
def steps_taken(monkeypatch):
    taken, original = [], trainer._Run.train_step

    def train_step(self, x):
        original(self, x)
        taken.append(self.step)

    monkeypatch.setattr(trainer._Run, "train_step", train_step)
    return taken


@pytest.mark.parametrize("decay", [0.2, 0.0])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.kind)
def test_an_extended_run_is_the_one_that_was_longer_from_the_start(variant, decay, tmp_path, steps_taken):
    checkpoint, short = tmp_path / "c.safetensors", replace(SHORT, variant=variant, decay=decay)
    run(short, checkpoint=checkpoint)
    longer = replace(short, steps=70)
    steps_taken.clear()
    extended = run(longer, checkpoint=checkpoint)
    assert steps_taken == list(range(short.plateau_end + 1, 71))
    assert same(extended, run(longer))
    assert run(replace(short, steps=71), checkpoint=checkpoint).log.step.iloc[-1] == 71, "and on again"


def test_a_run_is_extended_from_before_anything_that_depends_on_its_length():
    for variant, decay, expected in (
        (TopK(k=4), 0.2, 33),  # the learning rate of step 32, counted from 0, is the plateau's still
        (TopK(k=4), 0.0, 40),
        (ReLU(target_l0=4), 0.0, 36),  # steering ends at 0.9 of the run
        (ReLU(target_l0=None), 0.0, 40),
        (Gated(target_l0=4, steering=0.5), 0.2, 20),
    ):
        config = replace(SHORT, variant=variant, decay=decay)
        endless = replace(config, steps=10**6)
        assert config.plateau_end == expected
        assert all(config.schedule(i) == endless.schedule(i) for i in range(expected))
        if expected < 40:
            assert config.schedule(expected) != endless.schedule(expected)


def test_an_interrupted_run_can_be_made_longer_or_shorter(tmp_path, steps_taken):
    checkpoint = tmp_path / "c.safetensors"

    def stop(_dictionary, step):
        if step == 15:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(SHORT, checkpoint=checkpoint, on_log=stop)
    assert step_of(checkpoint) == 15
    for steps in (70, 30):
        steps_taken.clear()
        copy = tmp_path / f"{steps}.safetensors"
        copy.write_bytes(checkpoint.read_bytes())
        assert same(run(replace(SHORT, steps=steps), checkpoint=copy), run(replace(SHORT, steps=steps)))
        assert steps_taken[0] == 16


def test_what_lies_behind_must_be_the_same_in_both_runs(tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    run(SHORT, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"lr is 0.003 there and 0.001 here; give --lr 0.003"):
        run(replace(SHORT, steps=70, lr=1e-3), checkpoint=checkpoint)
    with pytest.raises(ValueError, match="of which the first 9 are the same in one of 10; no state"):
        run(replace(SHORT, steps=10), checkpoint=checkpoint)
    (tmp_path / "c.before-decay.safetensors").unlink()
    with pytest.raises(ValueError, match="of which the first 33 are the same in one of 70"):
        run(replace(SHORT, steps=70), checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_warm_up_that_depends_on_the_length_cannot_be_extended(tmp_path):
    checkpoint, short = tmp_path / "c.safetensors", replace(SHORT, warmup=None)
    run(short, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"warmup is 4 there and 7 here .*give --warmup 4"):
        run(replace(short, steps=70), checkpoint=checkpoint)
    longer = replace(short, steps=70, warmup=4)
    assert same(run(longer, checkpoint=checkpoint), run(longer))
