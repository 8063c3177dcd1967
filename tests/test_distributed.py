"""Two processes that torchrun starts, against one."""

import json
import os
import socket
import subprocess
import sys
from itertools import islice

import pytest
import torch
from conftest import HOOK_POINT, sentences
from safetensors.torch import load_file

from saekit import cli
from saekit.corpora import TokenRows
from saekit.distributed import (
    all_gather,
    all_reduce_mean,
    all_reduce_sum,
    barrier,
    distributed,
    is_main,
    local_slice,
    rank,
    world_size,
)
from saekit.files import write_tensors
from saekit.streaming import StreamedActivations
from saekit.training import trainer
from saekit.training.config import TrainingConfig
from saekit.training.variants import TopK

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module


def torchrun(*arguments, processes=2, **environment):
    """Run a module or a script in several processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), *map(str, arguments)]
    quiet = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    return subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------------------------- primitives

SCRIPT = """
import sys
from itertools import islice

import torch
from safetensors.torch import load_file

from saekit.corpora import TokenRows
from saekit.distributed import *
from saekit.files import write_tensors
from saekit.models import load_model
from saekit.streaming import StreamedActivations

folder, model_folder, hook_point = sys.argv[1:]
with distributed():
    r = rank()
    assert world_size() == 2 and is_main() == (r == 0)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(r), dtype=torch.float64)
    out = {"x": x, "sum": all_reduce_sum(x.clone()), "mean": all_reduce_mean(x.clone())}
    out["count"] = all_reduce_sum(torch.tensor([3 + r, 10**12]))
    out["slice"] = torch.arange(9)[local_slice(9)]
    out["none"] = torch.arange(1)[local_slice(1)]

    # A parameter's gradient, of a loss that is the mean over a batch.
    batch = torch.randn(10, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (batch[local_slice(10)] @ w).square().mean().backward()
    out["grad"] = all_reduce_mean(w.grad)

    # The k-th largest of values of which each process holds a few.
    values = torch.randn(5 + 20 * r, generator=torch.Generator().manual_seed(r))
    gathered = all_gather(values)
    out |= {"values": values, "first": gathered[0], "second": gathered[1]}
    out["kth"] = torch.cat(gathered).topk(8).values[-1:]
    out["ragged_rows"] = torch.cat(all_gather(torch.full((r, 3), r, dtype=torch.bfloat16)))
    out["empty"] = torch.cat(all_gather(torch.zeros(0)))

    tokens = load_file(f"{folder}/tokens.safetensors")["tokens"]
    rows = TokenRows(tokens)
    stream = StreamedActivations(load_model(model_folder), rows, hook_point, buffer_tokens=160, batch_rows=3)
    out["streamed"] = torch.stack(list(islice(stream.shuffled(8, seed=0), 50)))
    barrier()
    write_tensors(f"{folder}/{r}.safetensors", out)
assert world_size() == 1
"""


@pytest.fixture(scope="module")
def results(model_folder, token_rows, tmp_path_factory):
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("two")
    write_tensors(folder / "tokens.safetensors", {"tokens": token_rows.tokens})
    (folder / "script.py").write_text(SCRIPT)
    done = torchrun(folder / "script.py", folder, model_folder, HOOK_POINT)
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"{r}.safetensors") for r in (0, 1)]


def test_all_processes_hold_the_same_bits(results):
    for name in ("sum", "mean", "count", "grad", "first", "second", "kth", "ragged_rows", "streamed"):
        assert torch.equal(results[0][name], results[1][name]), name


def test_sums_and_means(results):
    x = [result["x"].numpy() for result in results]
    torch.testing.assert_close(results[0]["sum"].numpy(), x[0] + x[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0]["mean"].numpy(), (x[0] + x[1]) / 2, rtol=0, atol=0)
    assert results[0]["count"].tolist() == [7, 2 * 10**12]


def test_mean_gradients_are_the_gradient_of_the_whole_batch(results):
    batch = torch.randn(10, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64).numpy()
    expected = 2 * batch.T @ (batch @ [1, 1, 1, 1]) / 10
    torch.testing.assert_close(results[0]["grad"].numpy(), expected, rtol=1e-12, atol=0)


def test_ragged_tensors_are_gathered(results):
    values = [result["values"] for result in results]
    assert [len(v) for v in values] == [5, 25]
    assert torch.equal(results[0]["first"], values[0])
    assert torch.equal(results[0]["second"], values[1])
    assert results[0]["kth"].item() == sorted(torch.cat(values).tolist(), reverse=True)[7]
    assert results[0]["ragged_rows"].tolist() == [[1.0] * 3]
    assert len(results[0]["empty"]) == 0


def test_shares_are_equal_up_to_one_and_nothing_is_left_out(results):
    assert [result["slice"].tolist() for result in results] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert sorted(len(result["none"]) for result in results) == [0, 1]


def test_two_processes_stream_the_batches_of_one(results, model, token_rows):
    rows = TokenRows(token_rows.tokens)
    stream = StreamedActivations(model, rows, HOOK_POINT, buffer_tokens=160, batch_rows=3)
    expected = torch.stack(list(islice(stream.shuffled(8, seed=0), 50)))
    assert torch.equal(results[0]["streamed"], expected)


def test_one_process_is_enough():
    with distributed():
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        x = torch.arange(6.0)
        assert all_reduce_sum(x) is x
        assert torch.equal(all_reduce_mean(x), torch.arange(6.0))
        assert all_gather(x)[0] is x
        assert x[local_slice(6)].tolist() == x.tolist()
        barrier()


# ---------------------------------------------------------------------------------- harvesting


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_processes_write_the_bytes_of_one_and_keep_what_one_began(model_folder, tmp_path):
    text = [tmp_path / f"{i}.txt" for i in range(40)]
    for i, file in enumerate(text):
        file.write_text(" ".join(sentences(60, seed=i)))
    arguments = ["--model", model_folder, "--hook-point", HOOK_POINT, "--context-length", 16]
    arguments += ["--tokens", 16 * 1600, "--text", *text]
    single, double = tmp_path / "single", tmp_path / "double"
    assert cli.main(["--quiet", "harvest", str(single), *map(str, arguments)]) == 0

    # As an interruption leaves it: the second of four shards is there, and no shard is listed.
    manifest = json.loads((single / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [
        [0, 512],
        [512, 1024],
        [1024, 1536],
        [1536, 1600],
    ]
    begun = {key: manifest[key] for key in manifest if key not in ("d_in", "exclusion", "files", "hash")}
    double.mkdir()
    (double / "manifest.json").write_text(json.dumps(begun | {"complete": False, "shards": []}))
    kept = double / "shard-00001.safetensors"
    kept.write_bytes((single / kept.name).read_bytes())
    written = kept.stat().st_mtime_ns

    done = torchrun("-m", "saekit", "--quiet", "harvest", double, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("positions at") == 1  # the first process alone speaks
    assert contents(double) == contents(single)
    assert kept.stat().st_mtime_ns == written


# ---------------------------------------------------------------------------------- training

TRAINING = """
import sys

import torch
from safetensors.torch import load_file

from saekit.distributed import distributed, rank
from saekit.files import write_tensors
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import VARIANTS

folder, bf16 = sys.argv[1], sys.argv[2] == "bf16"
x = load_file(f"{folder}/x.safetensors")["x"]
with distributed():
    out = {}
    for kind, variant in VARIANTS.items():
        made = variant(**{variant.sparsity: 4}, dead_after=300)
        config = TrainingConfig(
            made, 48, steps=40, batch_size=64, lr=3e-3, log_every=20, bf16_candidates=bf16
        )
        result = train(config, x, checkpoint=f"{folder}/{kind}-{bf16}.safetensors", progress=False)
        out |= {f"{kind}.{name}": tensor for name, tensor in result.dictionary.tensors().items()}
        out[f"{kind}.fvu"] = torch.tensor(result.log["fvu"].to_numpy())
        out[f"{kind}.dead"] = torch.tensor(result.log["dead"].to_numpy())
    write_tensors(f"{folder}/trained-{bf16}-{rank()}.safetensors", out)
"""


@pytest.mark.parametrize("mode", ["exact", "bf16"])
def test_two_processes_train_what_one_trains(tmp_path, mode):
    """To 1e-3 of each tensor's norm after 40 steps: sums over a batch are added in another order."""
    generator = torch.Generator().manual_seed(0)
    write_tensors(tmp_path / "x.safetensors", {"x": torch.randn(2000, 24, generator=generator)})
    (tmp_path / "script.py").write_text(TRAINING)
    found = {}
    for processes in (1, 2):
        done = torchrun(tmp_path / "script.py", tmp_path, mode, processes=processes)
        assert done.returncode == 0, done.stderr
        found[processes] = [
            load_file(tmp_path / f"trained-{mode == 'bf16'}-{r}.safetensors") for r in range(processes)
        ]
        for checkpoint in tmp_path.glob(f"*-{mode == 'bf16'}.safetensors"):
            checkpoint.unlink()
    (one,), two = found[1], found[2]
    for name, expected in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        error = (two[0][name].double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-9)
        assert error < 1e-3, (name, error)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(trainer, "world_size", lambda: 3)
    config = TrainingConfig(TopK(k=2), 8, batch_size=64)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes, found 64"):
        trainer.train(config, torch.randn(200, 4))
