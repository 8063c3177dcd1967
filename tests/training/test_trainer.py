"""The trainer: results, logs, checkpoints and what it refuses."""

import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import saekit.files
from saekit.metrics import evaluate
from saekit.training.config import TrainingConfig
from saekit.training.sources import normalisation
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK

D_IN = 16
VARIANTS = {
    "relu": ReLU(target_l0=5.0),
    "gated": Gated(target_l0=5.0),
    "jumprelu": JumpReLU(target_l0=5.0),
    "topk": TopK(k=5),
    "batchtopk": BatchTopK(k=5, dead_after=300),
    "matryoshka": Matryoshka(k=5, dead_after=300, prefixes=(0.25, 1.0)),
}
LARGEST_FVU = {"relu": 0.28} | dict.fromkeys(("gated", "jumprelu", "topk", "batchtopk", "matryoshka"), 0.17)


def activations(n=2000, seed=0):
    """Sparse mixtures of 40 directions, off-centre and badly scaled, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(99))
    latents = torch.rand(n, 40, generator=generator) * (torch.rand(n, 40, generator=generator) < 0.1)
    noise = 0.02 * torch.randn(n, D_IN, generator=generator)
    return 30 * (latents @ directions + noise) + 100


def config(kind="batchtopk", **settings):
    return TrainingConfig(
        **{"variant": VARIANTS[kind], "width": 48, "steps": 60, "batch_size": 64, "lr": 3e-3, "warmup": 5}
        | {"log_every": 25}
        | settings
    )


def run(settings, x, **kwargs):
    return train(settings, x, progress=False, **kwargs)


class Interrupted(Exception):
    """Stands for a kill."""


class Store:
    """A store's interface over a tensor, which may fail on the way."""

    def __init__(self, x, stop_before=math.inf, hook_point="blocks.3.hook_resid_post", model=None):
        self.x, self.stop_before = x, stop_before
        self.d_in, self.positions = x.shape[1], torch.arange(len(x))
        self.content_hash = "a hash"
        model = model or {"name": "a-model", "revision": "abc", "processing": {}}
        self.manifest = {"model": model, "hook_point": hook_point}

    def read(self, positions):
        return self.x[positions]

    def shuffled(self, batch_size, *, seed, start_step=0):
        step = start_step
        while True:
            if step >= self.stop_before:
                raise Interrupted
            generator = torch.Generator().manual_seed(1000 * seed + step)
            yield self.x[torch.randint(len(self.x), (batch_size,), generator=generator)]
            step += 1


def same(a, b):
    return a.dictionary.content_hash == b.dictionary.content_hash and a.log.equals(b.log)


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("kind", VARIANTS)
def test_training_reconstructs_held_out_activations_at_the_sparsity_asked_for(kind):
    held_out = activations(1000, seed=1)
    steps = 1800 if kind == "jumprelu" else 600  # it begins at four times the target
    result = run(config(kind, steps=steps, log_every=200), activations(), held_out=held_out)
    evaluation = evaluate(result.dictionary, held_out)
    assert evaluation.l0 == pytest.approx(5.0, rel=0.1)
    assert evaluation.fvu < LARGEST_FVU[kind]
    assert result.summary["fvu"] == evaluation.fvu
    assert result.summary["l0"] == evaluation.l0
    assert result.log.loss.iloc[-1] < result.log.loss.iloc[0]


def test_the_log_has_a_row_at_every_interval_and_at_the_end():
    result = run(config("relu"), activations())
    assert result.log.step.tolist() == [25, 50, 60]
    assert result.log.tokens.tolist() == [25 * 64, 50 * 64, 60 * 64]
    assert list(result.log.columns) == ["step", "tokens", "loss", "fvu", "l0", "l1", "dead"]
    assert result.frame is result.log
    assert json.loads(json.dumps(result.summary))["dictionary"] == "relu 48 (seed 0)"


def test_the_dictionary_says_what_it_is_and_how_it_was_trained():
    settings = config("relu", seed=7)
    result = run(settings, Store(activations()))
    info = json.loads(json.dumps(result.dictionary.info))
    training = info.pop("training")
    assert info == {
        "kind": "relu",
        "seed": 7,
        "model": "a-model",
        "model_revision": "abc",
        "model_processing": {},
        "hook_point": "blocks.3.hook_resid_post",
    }
    assert training["variant"] == {"kind": "relu"} | settings.variant.describe()
    assert training["steps"] == 60
    assert training["tokens"] == 60 * 64
    assert training["activations"] == "a hash"
    assert training["l1"] == result.summary["l1"]
    assert result.dictionary.kind == "relu"
    assert run(settings, activations()).dictionary.hook_point is None


def test_same_seed_same_bits_and_another_seed_others():
    x = activations()
    assert same(run(config(), x), run(config(), x))
    first, other = (run(config(seed=seed), x).dictionary for seed in (0, 1))
    cosines = first.W_dec @ other.W_dec.T
    assert not torch.isclose(cosines, torch.ones(())).any()


def test_decoder_rows_stay_of_unit_norm_and_gradients_orthogonal_to_them(monkeypatch):
    steps = []

    def step(self, closure=None):
        W_dec = self.param_groups[0]["params"][2]
        steps.append((W_dec.grad * W_dec).sum(dim=1).abs().max() / W_dec.grad.norm(dim=1).max())
        original(self, closure)

    original = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    result = run(config("relu"), activations())
    assert len(steps) == 60
    assert max(steps) < 1e-5
    torch.testing.assert_close(result.dictionary.W_dec.norm(dim=1), torch.ones(48))


def test_inputs_are_centred_and_scaled_to_norm_sqrt_d_in():
    x = activations()
    ((mean, scale),) = normalisation(Store(x))
    torch.testing.assert_close(mean, x.double().mean(0).float())
    assert ((x - mean) * scale).norm(dim=1).mean() == pytest.approx(math.sqrt(D_IN))


def test_results_do_not_depend_on_the_units_of_the_activations():
    x = activations()
    first, second = run(config("relu"), x), run(config("relu"), 8 * x - 50)
    torch.testing.assert_close(first.dictionary.W_dec, second.dictionary.W_dec, rtol=0, atol=1e-2)
    assert second.summary["fvu"] == pytest.approx(first.summary["fvu"], rel=1e-2)


def test_the_learning_rate_rises_stays_and_falls():
    settings = config(steps=100, warmup=10, decay=0.2, lr=1.0)
    rates = [settings.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([(20 - i) / 20 for i in range(20)])
    assert config(warmup=0, decay=0.0, lr=0.5).lr_at(59) == 0.5


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("stop_before", [3, 10, 31, 50, 59])
def test_interrupted_and_resumed_equals_uninterrupted(kind, stop_before, tmp_path):
    x, checkpoint = activations(), tmp_path / "checkpoint.safetensors"
    whole = run(config(kind), Store(x))
    with pytest.raises(Interrupted):
        run(config(kind), Store(x, stop_before), checkpoint=checkpoint, checkpoint_every=10)
    with safe_open(checkpoint, framework="pt") as file:
        assert json.loads(file.metadata()["saekit"])["step"] == stop_before
    resumed = run(config(kind), Store(x), checkpoint=checkpoint, checkpoint_every=10)
    assert same(resumed, whole)


def test_resuming_a_plain_tensor_goes_on_with_the_same_batches(tmp_path):
    x, checkpoint = activations(300), tmp_path / "checkpoint.safetensors"  # 4 batches an epoch
    whole = run(config(), x)
    taken = 0
    original = torch.optim.Adam.step

    def step(self, closure=None):
        nonlocal taken
        taken += 1
        if taken == 27:
            raise Interrupted
        original(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        with pytest.raises(Interrupted):
            run(config(), x, checkpoint=checkpoint, checkpoint_every=10)
    assert same(run(config(), x, checkpoint=checkpoint), whole)


@pytest.mark.parametrize("where", ["write_bytes", "replace"])
def test_a_kill_during_a_checkpoint_write_leaves_the_one_before(where, tmp_path, monkeypatch):
    x, checkpoint = activations(), tmp_path / "checkpoint.safetensors"
    whole = run(config(), Store(x))

    def fail_once_there_is_a_checkpoint(original):
        def wrapped(*args):
            if checkpoint.exists():
                if where == "write_bytes":
                    original(args[0], args[1][: len(args[1]) // 2])
                raise Interrupted
            return original(*args)

        return wrapped

    owner = saekit.files.Path if where == "write_bytes" else saekit.files.os
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fail_once_there_is_a_checkpoint(getattr(owner, where)))
        with pytest.raises(Interrupted):
            run(config(), Store(x), checkpoint=checkpoint, checkpoint_every=10)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "checkpoint.csv"}
    with safe_open(checkpoint, framework="pt") as file:
        assert json.loads(file.metadata()["saekit"])["step"] == 10
    assert same(run(config(), Store(x), checkpoint=checkpoint), whole)


KILLED = """
import os, signal, sys, torch
import saekit.training.trainer
sys.path.insert(0, sys.argv[1])
from training.test_trainer import activations, config, run
torch.set_num_threads(1)
write = saekit.training.trainer.write_tensors
def killed_at_step_20(path, tensors, metadata):
    if '"step": 20,' in metadata["saekit"]:
        (path.parent / f".{path.name}.leftover").write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, tensors, metadata)
saekit.training.trainer.write_tensors = killed_at_step_20
run(config(), activations(), checkpoint=sys.argv[2], checkpoint_every=10)
"""


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(checkpoint)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = run(config(), activations(), checkpoint=checkpoint)
        assert same(resumed, run(config(), activations()))
    finally:
        torch.set_num_threads(threads)
    names = {"checkpoint.safetensors", "checkpoint.before-decay.safetensors", "checkpoint.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names, "no leftovers of the kill"


def test_a_finished_checkpoint_gives_the_result_without_training(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    whole = run(config(), Store(activations()), checkpoint=checkpoint)
    assert same(run(config(), Store(activations(), stop_before=0), checkpoint=checkpoint), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3}, "lr is 0.003 there and 0.001 here"),
        ({"variant": BatchTopK(k=6, dead_after=300)}, "k is 5 there and 6 here"),
        ({"variant": TopK(k=5, dead_after=300)}, "kind is 'batchtopk' there and 'topk' here"),
        ({"variant": ReLU()}, "kind is 'batchtopk' there and 'relu' here"),
        ({"width": 50}, "width is 48 there and 50 here"),
        ({"seed": 1}, "seed is 0 there and 1 here; give --seed 0 to go on with it, name another"),
        ({"lr": 1e-3, "decay": 0.3}, "lr is 0.003 there and 0.001 here, decay is "),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(changes, message, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(config(), Store(activations()), checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        run(config(**changes), Store(activations()), checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(config(), activations(), checkpoint=checkpoint)
    with pytest.raises(ValueError, match="belongs to another run: activations is"):
        run(config(), activations(seed=1), checkpoint=checkpoint)
    with pytest.raises(ValueError, match="belongs to another run: held_out is"):
        run(config(), activations(), held_out=activations(seed=1), checkpoint=checkpoint)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(config(), activations(), checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        run(config(), activations(), checkpoint=checkpoint)
    saekit.files.write_tensors(checkpoint, {"W": torch.zeros(2)})
    with pytest.raises(ValueError, match="does not have format"):
        run(config(), activations(), checkpoint=checkpoint)


# ---------------------------------------------------------------------- refusals


def test_activations_that_are_not_finite_are_named_and_the_checkpoint_kept(tmp_path):
    x, checkpoint = activations(), tmp_path / "checkpoint.safetensors"

    class Spoilt(Store):
        def shuffled(self, batch_size, *, seed, start_step=0):
            for step, batch in enumerate(super().shuffled(batch_size, seed=seed, start_step=start_step)):
                if start_step + step == 15:
                    batch[3, 2] = float("nan")
                    batch[5, 0] = float("inf")
                yield batch

    with pytest.raises(ValueError, match="2 of the 64 activations of step 16 are not finite"):
        run(config(), Spoilt(x), checkpoint=checkpoint, checkpoint_every=10)
    assert same(run(config(), Store(x), checkpoint=checkpoint), run(config(), Store(x)))

    x[::2] = float("nan")
    with pytest.raises(ValueError, match="the activations hold values that are not finite"):
        run(config(), x)


def test_a_loss_that_is_not_finite_is_an_error():
    settings = config("relu", lr=1e30, warmup=0)
    with pytest.raises(FloatingPointError, match=r"relu 48 \(seed 0\) diverged at step 2 \(the loss is"):
        run(settings, activations())


def test_ruined_parameters_never_reach_a_checkpoint(tmp_path, monkeypatch):
    checkpoint, taken, original = tmp_path / "checkpoint.safetensors", 0, torch.optim.Adam.step

    def step(self, closure=None):
        nonlocal taken
        taken += 1
        original(self, closure)
        if taken == 20:
            with torch.no_grad():
                self.param_groups[0]["params"][1][3] = float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        with pytest.raises(FloatingPointError, match=r"b_enc holds values that are not finite.*lower lr"):
            run(config(), Store(activations()), checkpoint=checkpoint, checkpoint_every=10)
    assert same(
        run(config(), Store(activations()), checkpoint=checkpoint), run(config(), Store(activations()))
    )


@pytest.mark.parametrize(
    ("x", "held_out", "message"),
    [
        (torch.zeros(5, 2, 3), None, r"Activations must be \[n, d_in\], found shape \[5, 2, 3\]"),
        (torch.zeros(0, 3), None, r"There is nothing to train on: the activations are \[0, 3\]"),
        (torch.ones(100, 3), None, "the activations do not vary"),
        (torch.ones(10, 3), None, "A batch takes 64 tokens, but there are only 10 to train on"),
        (activations(), torch.zeros(100, 3), "held-out activations have d_in 3, those to train on 16"),
        (
            Store(activations()),
            Store(activations(), model={"name": "a-model", "revision": "def"}),
            "but their model revision is 'def', not 'abc'",
        ),
        (
            Store(activations()),
            Store(activations(), model={"name": "a-model", "weights": "w", "processing": {"fold_ln": True}}),
            r"but their weight processing is \('fold_ln',\), not \(\)",
        ),
        (
            Store(activations()),
            Store(activations(), hook_point="elsewhere"),
            "but their hook point is 'elsewhere', not 'blocks.3.hook_resid_post'",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(x, held_out, message):
    with pytest.raises(ValueError, match=message):
        run(config(), x, held_out=held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width must be at least 1, found 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "lr must be above 0, found -1"),
        ({"decay": 1.5}, "decay must be between 0 and 1, found 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config(), **changes)


def test_the_progress_bar_counts_tokens_and_can_be_quiet(capfd):
    run(config(), activations())
    assert capfd.readouterr().err == ""
    train(config(), activations())
    shown = capfd.readouterr().err
    assert "batchtopk 48 (seed 0)" in shown
    assert "token/s" in shown
    assert "3.84k/3.84k" in shown


@pytest.mark.parametrize("kind", VARIANTS)
def test_candidates_in_bfloat16_train_the_same_dictionary(kind):
    x, held_out = activations(), activations(1000, seed=1)
    exact, fast = (run(config(kind, bf16_candidates=b), x, held_out=held_out) for b in (False, True))
    assert fast.summary["fvu"] == pytest.approx(exact.summary["fvu"], rel=5e-3)
    cosines = (exact.dictionary.W_dec * fast.dictionary.W_dec).sum(dim=1)
    assert cosines.min() > 0.99
