"""Ctrl-C and SIGTERM at any moment: no finished step is lost, and nothing changes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import saekit.training
from saekit.interrupts import Interrupts, Stopped
from saekit.training import trainer
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, ReLU

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
ROOMS = (str(Path(saekit.training.__file__).parent), saekit.interrupts.__file__)


def config(variant):
    return TrainingConfig(variant, width=32, steps=60, batch_size=32, lr=3e-3, log_every=20)


def same(a, b):
    return a.dictionary.content_hash == b.dictionary.content_hash and a.log.equals(b.log)


def step_of(checkpoint):
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["saekit"])["step"]


class Terminated(Exception):
    """Stands for the end of the process by SIGTERM."""


@contextmanager
def signal_at_line(number, signum):
    """Send a signal before the line of training code with this number runs, counted from the start."""
    lines, before = [0], sys.gettrace()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(ROOMS):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == number:
                signal.raise_signal(signum)
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.fixture
def steps_taken(monkeypatch):
    taken, original = [], trainer._Run.train_step

    def train_step(self, x):
        original(self, x)
        taken.append(self.step)

    monkeypatch.setattr(trainer._Run, "train_step", train_step)
    return taken


@pytest.fixture
def sigterm_raises():
    def terminate(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [BatchTopK(k=4, dead_after=300), ReLU(target_l0=4)], ids=["k", "l1"])
@pytest.mark.usefixtures("sigterm_raises")
def test_twenty_interrupts_at_random_lines_lose_no_step_and_change_no_bit(variant, tmp_path, steps_taken):
    with signal_at_line(0, signal.SIGINT) as lines:
        whole = train(config(variant), X, checkpoint=tmp_path / "whole.safetensors", progress=False)
    csv = (tmp_path / "whole.csv").read_text()
    rng, stopped_at = random.Random(7), set()
    for number in range(20):
        checkpoint = tmp_path / f"{number}.safetensors"
        signum, error = ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated))[number % 2]
        steps_taken.clear()
        with signal_at_line(rng.randrange(1, lines[0]), signum), pytest.raises(error):
            # No checkpoint is due before the end: the interrupt itself has to keep what there is.
            train(config(variant), X, checkpoint=checkpoint, checkpoint_every=10_000, progress=False)
        done = len(steps_taken)
        assert (step_of(checkpoint) if checkpoint.exists() else 0) == done
        stopped_at.add(done)
        resumed = train(config(variant), X, checkpoint=checkpoint, progress=False)
        assert len(steps_taken) == 60
        assert same(resumed, whole)
        assert checkpoint.with_suffix(".csv").read_text() == csv
    assert len(stopped_at) > 10


def test_a_run_that_is_interrupted_again_and_again_ends_as_one_that_is_not(tmp_path):
    settings, checkpoint = config(ReLU(target_l0=4)), tmp_path / "checkpoint.safetensors"
    with signal_at_line(0, signal.SIGINT) as lines:
        whole = train(settings, X, progress=False)
    interrupts = 0
    while interrupts < 100:
        try:
            with signal_at_line(lines[0] // 3, signal.SIGINT):
                resumed = train(settings, X, checkpoint=checkpoint, progress=False)
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 3
    assert same(resumed, whole)


PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from training.test_interrupts import X, TrainingConfig, ReLU, train
torch.set_num_threads(1)
config = TrainingConfig(ReLU(target_l0=4), width=32, steps=1_000_000, batch_size=32, log_every=100)
train(config, X, checkpoint=sys.argv[2], checkpoint_every=10**9, on_log=lambda *_: print("row", flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_as_it_would_have_but_the_state_is_kept(signum, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parents[1]), str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "row\n", process.stderr.read()
            process.send_signal(signum)
            _, error = process.communicate(timeout=120)
            assert process.returncode == -signum
        finally:
            process.kill()
    assert ("KeyboardInterrupt" in error) == (signum == signal.SIGINT)
    assert step_of(checkpoint) >= 100


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path, monkeypatch):
    settings, checkpoint = config(ReLU(target_l0=4)), tmp_path / "checkpoint.safetensors"
    whole, write, full = train(settings, X, progress=False), trainer.write_tensors, [False]

    def write_until_full(path, *rest):
        full[0] = full[0] or checkpoint.exists()
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_tensors", write_until_full)
        with pytest.raises(OSError, match=r"checkpoint of step 20 cannot be written .* resumes from"):
            train(settings, X, checkpoint=checkpoint, checkpoint_every=10, progress=False)
    assert step_of(checkpoint) == 10
    assert same(train(settings, X, checkpoint=checkpoint, progress=False), whole)


def test_a_place_that_cannot_be_written_is_refused_before_any_step(tmp_path, steps_taken):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"Nothing can be written to the folder {tmp_path / 'file'}"):
        train(config(ReLU(target_l0=4)), X, checkpoint=tmp_path / "file" / "checkpoint.safetensors")
    assert not steps_taken


# ---------------------------------------------------------------------- the mechanism


def test_signals_wait_while_they_are_held_and_act_at_once_otherwise():
    done = []

    def work(hold):
        with Interrupts() as interrupts:
            if hold:
                with interrupts.held():
                    signal.raise_signal(signal.SIGINT)
                    signal.raise_signal(signal.SIGINT)  # another one changes nothing
                    done.append("held")
            try:
                signal.raise_signal(signal.SIGINT)
            except Stopped as stopped:
                done.append(stopped.signum)
                raise
            done.append("never")

    for hold in (True, False):
        with pytest.raises(KeyboardInterrupt):
            work(hold)
    assert done == ["held", signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored_and_handlers_that_return_end_the_work():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        seen = []
        signal.signal(signal.SIGINT, lambda *_: seen.append("own handler"))
        with pytest.raises(KeyboardInterrupt), Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        assert seen == ["own handler"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_handlers(tmp_path):
    found = {}

    def work():
        found["result"] = train(config(ReLU(target_l0=4)), X, progress=False)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert same(found["result"], train(config(ReLU(target_l0=4)), X, progress=False))
