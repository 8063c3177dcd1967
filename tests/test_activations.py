import errno
import itertools
import json
import shutil
import signal
import sys
import warnings
from collections import Counter
from dataclasses import replace

import dictionaries
import numpy as np
import pytest
import torch
from conftest import HOOK_POINT
from safetensors.torch import load_file

from saekit import activations, files, metrics
from saekit.activations import ActivationStore, batches_of, harvest
from saekit.analysis import collect, group_insertion, insertion
from saekit.convert import as_jumprelu
from saekit.corpora import TokenRows
from saekit.identity import UnrecordedWarning
from saekit.models import capture, load_model
from saekit.passes import one_pass
from saekit.streaming import StreamedActivations

SETTINGS = {"dtype": torch.float32, "batch_rows": 2, "shard_rows": 4, "progress": False}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the store to damage."""
    return shutil.copytree(store.path, tmp_path / "copy")


@pytest.fixture(scope="module")
def dense(store):
    """All activations, read by safetensors itself."""
    shards = [load_file(store.path / f"shard-{i:05d}.safetensors") for i in range(6)]
    return torch.cat([shard["activations"] for shard in shards])


@pytest.fixture
def sized(tmp_path):
    """Make a store of random activations with known exclusions, without a model."""

    def make(n_rows, ctx=16, d_in=4, dtype="float32", shard_rows=8, excluded=None):
        generator = torch.Generator().manual_seed(n_rows)
        x = torch.randn(n_rows, ctx, d_in, generator=generator).to(activations.DTYPES[dtype])
        if excluded is None:
            excluded = torch.rand(n_rows, ctx, generator=generator) < 0.2
        folder = tmp_path / f"{n_rows}-{dtype}"
        shards = []
        for start in range(0, n_rows, shard_rows):
            part = x[start : start + shard_rows]
            file = folder / f"shard-{len(shards):05d}.safetensors"
            files.write_tensors(file, {"activations": part, "norms": part.float().norm(dim=2)})
            entry = {"file": file.name, "rows": [start, start + len(part)]}
            shards.append({**entry, "bytes": file.stat().st_size, "sha256": files.hash_file(file)})
        zeros = torch.zeros(n_rows, ctx, dtype=torch.int32)
        files.write_tensors(
            folder / "positions.safetensors",
            {"tokens": zeros, "document": zeros - 1, "excluded": excluded.to(torch.uint8)},
        )
        manifest = {"dtype": dtype, "d_in": d_in, "context_length": ctx, "rows": n_rows}
        manifest |= {"shard_rows": shard_rows, "shards": shards, "files": []}
        return ActivationStore(folder, manifest), x

    return make


# ---------------------------------------------------------------------------------- harvesting


def test_a_store_holds_what_capture_gives(store, model, token_rows, dense):
    for start in range(0, 22, 2):
        expected = capture(model, token_rows.tokens[start : start + 2], HOOK_POINT)
        torch.testing.assert_close(dense[start : start + 2], expected, rtol=0, atol=0)
    assert (store.n_rows, store.context_length, store.d_in, store.n_tokens) == (22, 16, 16, 352)
    assert store.hook_point == HOOK_POINT
    assert torch.equal(store.tokens, token_rows.tokens.long())
    assert torch.equal(store.document, token_rows.document.long())
    assert store.documents == token_rows.documents
    torch.testing.assert_close(store.norms, dense.norm(dim=2))
    store.verify()


def test_the_manifest_says_where_activations_come_from(store, token_rows):
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["model"]["name"] == "tiny-llama"
    assert manifest["corpus"] == token_rows.info
    assert [shard["rows"] for shard in manifest["shards"]] == [
        [0, 4], [4, 8], [8, 12], [12, 16], [16, 20], [20, 22]
    ]  # fmt: skip
    assert str(store.path.parent) not in json.dumps(manifest)


def test_exclusion_equals_brute_force(store, token_rows, dense, model, tmp_path, monkeypatch):
    # On the tiny model no norm is ten times the median, so the rule is run with a lower multiple.
    monkeypatch.setattr(activations, "NORM_MULTIPLE", 1.3)
    monkeypatch.setattr(activations, "NORM_SAMPLE", 100)
    found = harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    norms = [[sum(v * v for v in x) ** 0.5 for x in row] for row in dense.double().tolist()]
    sample = sorted(list(itertools.chain.from_iterable(norms))[:100])
    limit = 1.3 * sample[49]  # the lower of the two middle ones, as torch has it
    counts = Counter()
    for row in range(22):
        for column in range(16):
            reasons = {
                "special": int(token_rows.tokens[row, column]) in (0, 1),
                "first": column == 0,
                "norm": norms[row][column] > limit,
            }
            counts.update(name for name, holds in reasons.items() if holds)
            counts["total"] += any(reasons.values())
            assert bool(found.excluded[row, column]) == any(reasons.values())
    assert found.excluded_counts == {**counts, "positions": 352}
    assert min(counts.values()) > 5
    assert found.manifest["exclusion"]["norm_limit"] == pytest.approx(limit, rel=1e-6)
    assert len(found.positions) == 352 - counts["total"]


def test_every_hook_point_can_be_harvested(model, token_rows, tmp_path):
    few = replace(token_rows, tokens=token_rows.tokens[:3], document=token_rows.document[:3])
    for name, hook_point in {"z": "blocks.0.attn.hook_z", "mlp": "blocks.2.hook_mlp_out"}.items():
        found = harvest(model, few, hook_point, path=tmp_path / name, **SETTINGS)
        expected = torch.cat(
            [capture(model, few.tokens[:2], hook_point), capture(model, few.tokens[2:], hook_point)]
        )
        torch.testing.assert_close(found.rows(0, 3), expected, rtol=0, atol=0)


def test_bfloat16_is_stored_rounded(model, token_rows, tmp_path, dense):
    found = harvest(
        model, token_rows, HOOK_POINT, path=tmp_path / "s", **{**SETTINGS, "dtype": torch.bfloat16}
    )
    torch.testing.assert_close(found.rows(0, 22), dense.bfloat16().float(), rtol=0, atol=0)
    assert found.read(torch.tensor([5])).dtype == torch.float32


def test_a_complete_store_is_opened_at_once(model, token_rows, store, monkeypatch):
    def fail(*args):
        raise AssertionError("harvested again")

    monkeypatch.setattr(activations, "capture", fail)
    again = harvest(model, token_rows, HOOK_POINT, path=store.path, **SETTINGS)
    assert again.content_hash == store.content_hash


class Killed(BaseException):
    """Like a signal: no `except Exception` sees it."""


@pytest.fixture
def captured(monkeypatch):
    """Numbers of rows of the forward passes."""
    counts = []

    def counting(model, tokens, hook_point):
        x = capture(model, tokens, hook_point)
        counts.append(len(tokens))
        return x

    monkeypatch.setattr(activations, "capture", counting)
    return counts


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_write_loses_nothing(model, token_rows, store, tmp_path, monkeypatch, when, captured):
    """Stop before or after each file appears, resume, and compare every byte."""
    expected, real = contents(store.path), files.os.replace
    n_writes = 1 + 6 + 3  # manifest; shards; positions, documents, manifest
    for fatal in range(n_writes):
        folder, writes = tmp_path / f"{when}-{fatal}", itertools.count()
        captured.clear()

        def dying(source, target, writes=writes, fatal=fatal):
            now = next(writes) == fatal
            if not (now and when == "before"):
                real(source, target)
            if now:
                raise Killed

        monkeypatch.setattr(files.os, "replace", dying)
        with pytest.raises(Killed):
            harvest(model, token_rows, HOOK_POINT, path=folder, **SETTINGS)
        monkeypatch.setattr(files.os, "replace", real)
        finished = len(list(folder.glob("shard-*")))
        assert finished == min(6, max(0, fatal - 1 + (when == "after")))
        harvest(model, token_rows, HOOK_POINT, path=folder, **SETTINGS)
        assert contents(folder) == expected
        # No row is harvested twice but those of the shard that was not written.
        lost = [4, 4, 4, 4, 4, 2][fatal - 1] if when == "before" and 1 <= fatal <= 6 else 0
        assert sum(captured) == 22 + lost


def test_a_kill_in_any_forward_pass_loses_nothing(model, token_rows, store, tmp_path, monkeypatch, captured):
    expected, counting = contents(store.path), activations.capture
    for fatal in range(11):
        calls = itertools.count()
        captured.clear()

        def dying(model, tokens, hook_point, calls=calls, fatal=fatal):
            if next(calls) == fatal:
                raise Killed
            return counting(model, tokens, hook_point)

        monkeypatch.setattr(activations, "capture", dying)
        with pytest.raises(Killed):
            harvest(model, token_rows, HOOK_POINT, path=tmp_path / f"{fatal}", **SETTINGS)
        monkeypatch.setattr(activations, "capture", counting)
        harvest(model, token_rows, HOOK_POINT, path=tmp_path / f"{fatal}", **SETTINGS)
        assert contents(tmp_path / f"{fatal}") == expected
        assert sum(captured) == 22  # each row once: the finished part of a shard is kept too


def interrupted_at(lines, call):
    """Call, and interrupt after so many lines of saekit's code; how many lines ran."""
    ran = 0

    def trace(frame, event, _):
        nonlocal ran
        if "/saekit/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            ran += 1
            if ran == lines:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return ran


def test_an_interrupt_at_any_moment_loses_at_most_a_batch(model, token_rows, store, tmp_path, captured):
    """At twenty random lines of saekit's code."""

    def run(name):
        return harvest(model, token_rows, HOOK_POINT, path=tmp_path / name, **SETTINGS)

    n_lines = interrupted_at(None, lambda: run("whole"))
    assert contents(tmp_path / "whole") == contents(store.path)
    kept = 0
    for point in torch.randperm(n_lines, generator=torch.Generator().manual_seed(0))[:20].tolist():
        captured.clear()
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(point + 1, lambda name=f"{point}": run(name))
        before = sum(captured)
        kept += before
        run(f"{point}")
        assert contents(tmp_path / f"{point}") == contents(store.path)
        assert sum(captured) <= 22 + 2
    assert kept > 100  # of the 440 rows: the points are all over the harvest


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_or_turns_read_only_loses_no_shard(
    model, token_rows, store, tmp_path, monkeypatch, code, captured
):
    """After twenty random numbers of bytes."""
    size = sum(map(len, contents(store.path).values()))
    real = files.write_bytes
    for capacity in torch.randint(size, (20,), generator=torch.Generator().manual_seed(0)).tolist():
        free = [capacity]

        def write(path, data, free=free):
            free[0] -= len(data)
            if free[0] < 0:
                raise OSError(code, "No more")
            real(path, data)

        folder = tmp_path / f"{capacity}"
        captured.clear()
        monkeypatch.setattr(files, "write_bytes", write)
        with pytest.raises(OSError, match=r"The disk is full|No more"):
            harvest(model, token_rows, HOOK_POINT, path=folder, **SETTINGS)
        monkeypatch.setattr(files, "write_bytes", real)
        finished = sum(len(load_file(file)["norms"]) for file in folder.glob("shard-*"))
        captured.clear()
        harvest(model, token_rows, HOOK_POINT, path=folder, **SETTINGS)
        assert contents(folder) == contents(store.path)
        assert sum(captured) <= 22 - finished


def test_a_place_that_cannot_be_written_is_tried_before_the_work(model, token_rows, tmp_path, captured):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"Nothing can be written to the folder .*file/s"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path / "file" / "s", **SETTINGS)
    assert captured == []


def test_files_of_killed_writes_are_swept_up_and_others_left(model, token_rows, tmp_path):
    (tmp_path / "s").mkdir()
    for name in (".shard-00003.safetensors.x1y2", ".manifest.json.abc", ".gitignore"):
        (tmp_path / "s" / name).write_text("left over")
    harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    assert [name for name in contents(tmp_path / "s") if name.startswith(".")] == [".gitignore"]


def test_a_full_disk_keeps_finished_shards(model, token_rows, store, tmp_path, monkeypatch):
    real = activations.write_tensors

    def full(path, *args):
        if "00003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args)

    monkeypatch.setattr(activations, "write_tensors", full)
    with pytest.raises(OSError, match=r"The disk is full; .* keeps its finished shards"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    with pytest.raises(ValueError, match=r"is incomplete \(12 of 22 rows\): harvest again"):
        ActivationStore.open(tmp_path / "s")
    monkeypatch.setattr(activations, "write_tensors", real)
    harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    assert contents(tmp_path / "s") == contents(store.path)


def test_other_settings_are_not_resumed(model, token_rows, copy):
    def refused(message, rows=token_rows, hook_point=HOOK_POINT, **settings):
        with pytest.raises(ValueError, match=message):
            harvest(model, rows, hook_point, path=copy, **{**SETTINGS, **settings})

    before = contents(copy)
    refused('dtype is "float32" there, and "bfloat16" was asked for', dtype=torch.bfloat16)
    refused('hook_point is "blocks.1.hook_resid_post"', hook_point="blocks.0.hook_resid_post")
    refused("shard_rows is 4 there, and 8 was asked for", shard_rows=8)
    refused("rows is 22 there, and 20", TokenRows(token_rows.tokens[:20]))
    other = token_rows.tokens.clone()
    other[3, 3] += 1
    refused("tokens_hash is", replace(token_rows, tokens=other))
    assert contents(copy) == before


def test_a_shard_of_other_settings_is_not_taken_over(model, token_rows, store, tmp_path):
    """An unlisted shard counts as finished only if it was harvested with these settings."""
    stale = harvest(model, token_rows, "blocks.0.hook_resid_post", path=tmp_path / "s", **SETTINGS)
    (stale.path / "manifest.json").unlink()
    harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    assert contents(tmp_path / "s") == contents(store.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_named(model, token_rows, tmp_path, monkeypatch, value):
    def broken(model, tokens, hook_point):
        x = capture(model, tokens, hook_point)
        if torch.equal(tokens, token_rows.tokens[8:10]):
            x[1, 5, 2] = value
        return x

    monkeypatch.setattr(activations, "capture", broken)
    with pytest.raises(ValueError, match="activations of row 9 are not finite"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    assert sorted(file.name for file in (tmp_path / "s").glob("shard-*")) == [
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]


# ---------------------------------------------------------------------------------- which model


def test_another_model_of_the_same_name_is_not_resumed(model, model_folder, token_rows, copy, captured):
    """Neither returned where the store is complete, nor mixed into one that is not."""
    changed = load_model(model_folder)
    with torch.no_grad():
        changed.blocks[0].mlp.out.weight[0, 0] += 1

    def again(model):
        return harvest(model, token_rows, HOOK_POINT, path=copy, **SETTINGS)

    for _ in ("complete", "incomplete"):
        before = contents(copy)
        with pytest.raises(ValueError, match=r'other settings.*model weights is "[0-9a-f]{64}" there'):
            again(changed)
        assert contents(copy) == before
        manifest = files.read_json(copy / "manifest.json")
        files.write_json(copy / "manifest.json", manifest | {"complete": False, "shards": []})
        (copy / "shard-00003.safetensors").unlink(missing_ok=True)
    assert captured == []
    again(model)
    assert sum(captured) == 4


def test_the_same_model_under_another_name_is_resumed(model_folder, token_rows, copy, tmp_path, captured):
    renamed = load_model(shutil.copytree(model_folder, tmp_path / "another name"))
    store = harvest(renamed, token_rows, HOOK_POINT, path=copy, **SETTINGS)
    assert captured == []
    assert store.manifest["model"]["name"] == "tiny-llama"


def test_a_store_without_the_weights_of_its_model_opens_and_is_finished(model, token_rows, copy, captured):
    """As they were written before weights were recorded: with what is known, and a warning."""
    manifest = files.read_json(copy / "manifest.json")
    del manifest["model"]["weights"]
    files.write_json(copy / "manifest.json", manifest)
    assert ActivationStore.open(copy).model_name == "tiny-llama"
    with pytest.warns(UnrecordedWarning, match="copy does not record the weights of its model"):
        harvest(model, token_rows, HOOK_POINT, path=copy, **SETTINGS)
    assert captured == []
    manifest["model"]["name"] = "another"
    files.write_json(copy / "manifest.json", manifest)
    with (
        pytest.raises(ValueError, match='model is "another" there, and "tiny-llama" was asked for'),
        pytest.warns(UnrecordedWarning),
    ):
        harvest(model, token_rows, HOOK_POINT, path=copy, **SETTINGS)


# ---------------------------------------------------------------------------------- what notebooks have


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, "numpy", "list"])
def test_token_rows_of_ones_own(model, store, token_rows, tmp_path, kind):
    few = token_rows.tokens[:4] % 256  # for uint8
    tokens = {"numpy": few.numpy().astype("int64"), "list": few.tolist()}.get(kind)
    rows = TokenRows(few.to(kind) if tokens is None else tokens)
    made = harvest(model, rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS)
    made.verify()
    assert torch.equal(ActivationStore.open(tmp_path / "s").tokens, few.long())
    assert (made.document == -1).all()
    expected = torch.cat([capture(model, few[:2], HOOK_POINT), capture(model, few[2:], HOOK_POINT)])
    assert torch.equal(made.rows(0, 4), expected)


def test_rows_that_the_model_cannot_take_are_refused_before_the_work(model, tmp_path, captured):
    def refused(message, tokens):
        for make in (harvest, StreamedActivations):
            keywords = {"path": tmp_path / "s"} if make is harvest else {}
            with pytest.raises((ValueError, TypeError), match=message):
                make(model, tokens, HOOK_POINT, **keywords)

    refused(
        "context length of 65, but tiny-llama takes at most 64 tokens",
        TokenRows(torch.ones(2, 65, dtype=torch.long)),
    )
    refused("hold token 320, but the tokens of tiny-llama are 0 to 319", TokenRows([[1, 320]]))
    refused("hold token -1, but", TokenRows([[1, -1]]))
    refused("rows must be TokenRows, found Tensor: pack text", torch.ones(2, 8, dtype=torch.long))
    assert captured == []
    assert not (tmp_path / "s").exists()


def test_settings_of_numpy_are_settings(model, token_rows, store, tmp_path):
    settings = SETTINGS | {"batch_rows": np.int64(2), "shard_rows": np.int32(4)}
    harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **settings)
    assert contents(tmp_path / "s") == contents(store.path)
    batches = [next(store.shuffled(np.int64(8), seed=seed)) for seed in (3, np.int64(3))]
    assert torch.equal(*batches)
    with pytest.raises(TypeError, match=r"batch_rows must be a whole number, found 2\.0"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path / "s", **SETTINGS | {"batch_rows": 2.0})


def test_settings_are_checked(model, token_rows, tmp_path):
    with pytest.raises(ValueError, match="stored as float32 or bfloat16, not as float16"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path, **{**SETTINGS, "dtype": torch.float16})
    with pytest.raises(ValueError, match="multiple of batch_rows, found 4 and 3"):
        harvest(model, token_rows, HOOK_POINT, path=tmp_path, **{**SETTINGS, "batch_rows": 3})


# ---------------------------------------------------------------------------------- arrays


@pytest.fixture
def array(monkeypatch):
    """50 activations in shards of 16."""
    monkeypatch.setattr(activations, "ARRAY_SHARD", 16)
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


def from_array(folder, array, **keywords):
    return ActivationStore.from_array(folder, array, **{"hook_point": "vision.layer4"} | keywords)


def test_a_store_of_an_array_holds_it(array, tmp_path):
    np.save(tmp_path / "x.npy", array.numpy())
    sources = {
        "tensor": array,
        "gradient": array.clone().requires_grad_(),
        "mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "float64": array.double().numpy(),
        "reversed": np.ascontiguousarray(array.numpy()[::-1])[::-1],
        "other bytes": array.numpy().astype(">f4"),
    }
    for name, source in sources.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = from_array(tmp_path / name, source)
        store.verify()
        assert len(list(store.path.glob("shard-*"))) == 4
        assert torch.equal(store.read(store.positions), array)
        assert (store.d_in, store.n_tokens, store.hook_point) == (6, 50, "vision.layer4")
        assert store.excluded_counts["total"] == 0
        torch.testing.assert_close(store.norms[:, 0], array.norm(dim=1))
        batches = torch.cat(list(itertools.islice(store.shuffled(25, seed=0), 2)))
        assert sorted(map(tuple, batches.tolist())) == sorted(map(tuple, array.tolist()))
        for read in (lambda store=store: store.tokens, lambda store=store: store.document):
            with pytest.raises(ValueError, match="made from an array, so it holds no tokens"):
                read()
    half = from_array(tmp_path / "half", array, dtype=torch.bfloat16)
    assert torch.equal(half.read(half.positions), array.bfloat16().float())


class Residuals:
    def __init__(self, dictionary):
        self.dictionary, self.parts = dictionary, []

    def __call__(self, batch):
        self.parts.append(batch.residual(self.dictionary))


def test_a_pass_gives_the_same_on_an_array_and_its_store(array, tmp_path):
    dictionary = dictionaries.make(6, 24)
    dictionary = replace(dictionary, info=dictionary.info | {"hook_point": "vision.layer4"})
    store = from_array(tmp_path / "s", array)
    expected = Residuals(dictionary)
    one_pass(array, expected, dictionaries=[dictionary], purpose="a test")
    for source in (store, array.numpy(), array.double().numpy(), array.clone().requires_grad_()):
        found = Residuals(dictionary)
        tokens = one_pass(source, found, dictionaries=[dictionary], purpose="a test")
        assert torch.equal(torch.cat(found.parts), torch.cat(expected.parts))
        assert (tokens.n_tokens, tokens.n_excluded) == (50, 0)


def test_a_pass_without_dictionaries_gives_the_moments_of_what_is_kept(store, array):
    kept = store.read(store.positions)
    for source, x, n_excluded in ((array, array, 0), (store, kept, int(store.excluded.sum()))):
        tokens, x = one_pass(source, purpose="a test", batch_size=7), x.double()
        assert (tokens.n_tokens, tokens.n_excluded) == (len(x), n_excluded)
        torch.testing.assert_close(tokens.moments.mean, x.mean(0), rtol=1e-12, atol=1e-12)
        assert tokens.total_variance == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-12)


def test_a_store_of_an_array_records_its_model(array, tmp_path, model, store):
    named = from_array(tmp_path / "named", array, model="resnet")
    assert (named.model_name, from_array(tmp_path / "none", array).model_name) == ("resnet", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_array(tmp_path / "named", array, model="resnet").content_hash == named.content_hash
    with pytest.raises(ValueError, match='model is "resnet" there, and "vit" was asked for'):
        from_array(tmp_path / "named", array, model="vit")
    of_model = from_array(tmp_path / "model", array, model=model)
    assert of_model.manifest["model"] == store.manifest["model"]


def test_a_store_of_an_array_is_resumed(array, tmp_path, monkeypatch):
    expected = contents(from_array(tmp_path / "whole", array).path)
    real = files.os.replace
    for fatal in range(1 + 4 + 3):
        writes = itertools.count()

        def dying(source, target, writes=writes, fatal=fatal):
            if next(writes) == fatal:
                raise Killed
            real(source, target)

        monkeypatch.setattr(files.os, "replace", dying)
        with pytest.raises(Killed):
            from_array(tmp_path / f"{fatal}", array)
        monkeypatch.setattr(files.os, "replace", real)
        from_array(tmp_path / f"{fatal}", array)
        assert contents(tmp_path / f"{fatal}") == expected
    with pytest.raises(ValueError, match=r"harvested with other settings.*array_hash"):
        from_array(tmp_path / "whole", array + 1)


def test_arrays_that_are_no_activations_are_refused(array, tmp_path):
    def refused(message, source):
        with pytest.raises((ValueError, TypeError), match=message):
            from_array(tmp_path / "s", source)
        assert not list(tmp_path.glob("s/shard-*"))

    refused(r"must be \[n, d_in\], found shape \[50, 6, 1\]", array[..., None])
    refused("not empty", array[:0])
    refused("dense real numbers, found torch.complex64", array.to(torch.complex64))
    refused("dense real numbers, found torch.bool", array > 0)
    refused("dense real numbers, found torch.float32", array.to_sparse())
    refused("real numbers, found an array of object", array.numpy().astype(object))
    refused("a tensor or a NumPy array, found list", array.tolist())
    array[40, 3] = float("nan")
    with pytest.raises(ValueError, match="activations of row 40 are not finite"):
        from_array(tmp_path / "s", array)
    with pytest.raises(ValueError, match=r"s is incomplete \(32 of 50 rows\)"):
        ActivationStore.open(tmp_path / "s")


# ---------------------------------------------------------------------------------- opening


def test_opening_checks_hook_point_and_dimension(store):
    ActivationStore.open(store.path, hook_point=HOOK_POINT, d_in=16)
    with pytest.raises(ValueError, match=r"hook_point 'blocks\.1.*expected 'blocks\.2\.hook_resid_post'"):
        ActivationStore.open(store.path, hook_point="blocks.2.hook_resid_post")
    with pytest.raises(ValueError, match="with d_in 16, expected 768"):
        ActivationStore.open(store.path, d_in=768)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no activation store: expected a manifest\.json"):
        ActivationStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="does not have format 'saekit-activations-1'"):
        ActivationStore.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("dtype", "float16"), ("dtype", ["float32"]), ("shard_rows", 0), ("shard_rows", 5), ("rows", True)],
        *[("rows", 21), ("d_in", "16"), ("context_length", None), ("complete", "no"), ("complete", 1)],
        *[
            ("shards", None),
            ("shards", []),
            ("shards", [3]),
            ("files", {}),
            ("hash", None),
            ("model", "gpt2"),
        ],
        *[("exclusion", []), ("hook_point", None)],
        ("files", [{"file": "../documents.json", "bytes": 3, "sha256": "0"}]),
    ],
)
def test_a_manifest_that_was_edited_is_refused_by_name(copy, model, token_rows, name, value):
    manifest = files.read_json(copy / "manifest.json")
    files.write_json(copy / "manifest.json", manifest | {name: value})
    wrong = "shards" if (name, value) in (("shard_rows", 5), ("rows", 21)) else name
    for call in (
        lambda: ActivationStore.open(copy),
        lambda: harvest(model, token_rows, HOOK_POINT, path=copy, **SETTINGS),
    ):
        with pytest.raises(ValueError, match=rf"manifest\.json does not describe a store: {wrong} is wrong"):
            call()


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "positions.safetensors", "documents.json"])
def test_damage_is_named(copy, model, token_rows, name):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-3])
    message = rf"{name} is damaged: expected {len(whole)} bytes, found {len(whole) - 3}"
    with pytest.raises(ValueError, match=message):
        ActivationStore.open(copy)
    with pytest.raises(ValueError, match=message):
        harvest(model, token_rows, HOOK_POINT, path=copy, **SETTINGS)
    (copy / name).write_bytes(whole[:-3] + b"abc")
    with pytest.raises(ValueError, match=f"{name} is damaged: its hash"):
        ActivationStore.open(copy).verify()
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is damaged: .* there is no such file"):
        ActivationStore.open(copy)


def test_a_shard_that_is_no_safetensors_file_is_named(copy):
    file = copy / "shard-00001.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged or not a safetensors file"):
        ActivationStore.open(copy).rows(0, 1)


# ---------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_mapped_reading_equals_dense(sized, dtype):
    store, x = sized(29, dtype=dtype)
    flat = x.float().flatten(0, 1)
    chosen = torch.randint(29 * 16, (300,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(store.read(chosen), flat[chosen], rtol=0, atol=0)
    torch.testing.assert_close(store.rows(6, 19), x[6:19].float(), rtol=0, atol=0)
    assert store.read(torch.tensor([], dtype=torch.long)).shape == (0, 4)
    for wrong in (-1, 29 * 16):
        with pytest.raises(IndexError, match="between 0 and 463"):
            store.read(torch.tensor([3, wrong]))


def test_reading_cannot_change_the_file(sized):
    store, _ = sized(8)
    before = contents(store.path)
    store._shards[0]["activations"].zero_()
    assert contents(store.path) == before


@pytest.mark.parametrize("batch_size", [1, 50, 100_000])
def test_batches_are_the_used_positions_in_order(sized, batch_size):
    store, x = sized(13)
    used = [i for i, out in enumerate(store.excluded.flatten().tolist()) if not out]
    positions, read = zip(*store.batches(batch_size), strict=True)
    assert torch.cat(positions).tolist() == used == store.positions.tolist()
    torch.testing.assert_close(torch.cat(read), x.flatten(0, 1)[used], rtol=0, atol=0)
    assert all(len(p) == batch_size for p in positions[:-1])
    everything = list(store.batches(batch_size, include_excluded=True))
    torch.testing.assert_close(torch.cat([b for _, b in everything]), x.flatten(0, 1), rtol=0, atol=0)


def test_batches_of_a_store_or_a_tensor(sized):
    store, x = sized(5)
    for (p, a), (q, b) in zip(batches_of(store, 7), store.batches(7), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(a, b)
    positions, read = zip(*batches_of(x[0].double(), 5), strict=True)
    assert torch.cat(positions).tolist() == list(range(16))
    assert torch.equal(torch.cat(read), x[0])
    with pytest.raises(ValueError, match=r"must be \[n, d_in\], found shape \[5, 16, 4\]"):
        next(batches_of(x))
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        next(batches_of(x[0], 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite_are_refused_by_position(sized, value):
    store, x = sized(5)
    used = int(store.positions[10])
    x.flatten(0, 1)[used, 2] = value
    store.__dict__["_shards"] = [{"activations": x}]
    with pytest.raises(ValueError, match=f"The activations of position {used} are not finite"):
        list(batches_of(store, 7))
    for source in (x.flatten(0, 1), x.flatten(0, 1).numpy()):
        with pytest.raises(ValueError, match=f"The activations of position {used} are not finite"):
            list(batches_of(source, 7))
    x.flatten(0, 1)[used, 2] = 0
    excluded = int(store.excluded.flatten().nonzero()[3, 0])
    x.flatten(0, 1)[excluded, 2] = value  # an excluded position is not read
    assert sum(len(batch) for _, batch in batches_of(store, 7)) == len(store.positions)


def test_what_float32_cannot_hold_is_not_finite():
    with pytest.raises(ValueError, match="position 1 are not finite"):
        list(batches_of(np.array([[1.0, 2.0], [1e39, 0.0]])))


def test_batches_come_to_the_device_asked_for(sized):
    store, x = sized(5)
    for source in (store, x[0]):  # the meta device has no values, but is another one
        for positions, batch in batches_of(source, 7, device="meta"):
            assert (positions.device.type, batch.device.type) == ("cpu", "meta")
            assert (batch.shape, batch.dtype) == ((len(positions), 4), torch.float32)


def test_analyses_ask_for_batches_on_the_device_of_their_dictionary(monkeypatch):
    """Without a GPU to run on: what the pass of each analysis asks `batches_of` for."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    large, small = (dictionaries.make(8, width).to(dtype=torch.float32) for width in (24, 16))
    inserted = insertion(small, large, x)
    asked = []

    def spy(activations, batch_size=4096, *, device=None):
        asked.append(device)
        return batches_of(activations, batch_size, device=device)

    for name, module in list(sys.modules.items()):
        if name.startswith("saekit.") and name != "saekit.activations" and hasattr(module, "batches_of"):
            monkeypatch.setattr(module, "batches_of", spy)
    metrics.evaluate(large, x)
    collect(large, x)
    insertion(small, large, x)
    group_insertion(small, large, inserted, x)
    as_jumprelu(replace(large, k=3), x)
    assert len(asked) >= 5
    assert set(asked) == {large.W_enc.device}


# ---------------------------------------------------------------------------------- shuffled


def identify(store, x, batches):
    """Positions of the rows of batches: random activations are all different."""
    of = {tuple(row): i for i, row in enumerate(x.flatten(0, 1).tolist())}
    return [of[tuple(row)] for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("buffer", [40, 64, 1 << 18])
@pytest.mark.parametrize("batch_size", [1, 24, 37])
def test_an_epoch_visits_every_used_position_once(sized, monkeypatch, batch_size, buffer):
    monkeypatch.setattr(activations, "BUFFER_TOKENS", buffer)
    store, x = sized(21)
    n = len(store.positions)
    n_batches = -(-3 * n // batch_size)
    batches = list(itertools.islice(store.shuffled(batch_size, seed=5), n_batches))
    assert {batch.shape for batch in batches} == {(batch_size, 4)}
    order = identify(store, x, batches)
    epochs = [order[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == store.positions.tolist()
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("buffer", [40, 64, 1 << 18])
def test_starting_later_equals_skipping(sized, monkeypatch, buffer):
    monkeypatch.setattr(activations, "BUFFER_TOKENS", buffer)
    store, _ = sized(21)
    batches = list(itertools.islice(store.shuffled(37, seed=5), 25))  # through three epochs
    for start in range(25):
        later = store.shuffled(37, seed=5, start_step=start)
        for expected in batches[start : start + 3]:
            assert torch.equal(next(later), expected)


def test_the_order_is_random_over_the_whole_store(sized, monkeypatch):
    monkeypatch.setattr(activations, "BUFFER_TOKENS", 64)
    store, x = sized(200, excluded=torch.zeros(200, 16, dtype=torch.bool))
    order = torch.tensor(identify(store, x, itertools.islice(store.shuffled(32, seed=0), 100)))
    correlation = torch.corrcoef(torch.stack([order.double(), torch.arange(3200.0).double()]))[0, 1]
    # Rows move together, so the null has 200 independent rows: standard error 0.07.
    assert abs(correlation) < 0.25
    columns = (order % 16).view(-1, 64)
    assert (columns.sort(dim=1).values != columns).any(dim=1).all()  # shuffled within each buffer


def test_seeds_give_other_orders_and_excluded_positions_never_come(sized):
    store, x = sized(21)
    n = len(store.positions)
    orders = [identify(store, x, itertools.islice(store.shuffled(n, seed=seed), 1)) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert not store.excluded.flatten()[torch.tensor(orders[0])].any()


@pytest.mark.parametrize("source", ["store", "stream"])
def test_positions_are_whole_numbers_or_a_mask(source, store, model, token_rows):
    source = {"store": store, "stream": StreamedActivations(model, token_rows, HOOK_POINT)}[source]
    mask = np.arange(store.n_tokens) % 7 == 3
    expected = source.read(torch.arange(3, store.n_tokens, 7))
    assert torch.equal(source.read(mask), expected)
    assert torch.equal(source.read(torch.from_numpy(mask)), expected)
    assert torch.equal(source.read(range(3, store.n_tokens, 7)), expected)
    for wrong, error in (
        ([0.7], TypeError),
        ([True, 2], TypeError),
        (mask[:-1], ValueError),
        (3.0, TypeError),
    ):
        with pytest.raises(error):
            source.read(wrong)
    with pytest.raises(IndexError, match="positions must be between 0 and 351, found -1"):
        source.read([-1])
    for batch_size, error in ((0, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match="batch_size"):
            next(source.shuffled(batch_size, seed=0))
    with pytest.raises(ValueError, match="start_step"):
        next(source.shuffled(8, seed=0, start_step=-1))


def test_rows_and_batches_of_a_store_take_whole_numbers(store, dense):
    assert torch.equal(store.rows(np.int64(3), 5), dense[3:5])
    for start, stop, error in (
        (-1, 2, ValueError),
        (0, 23, ValueError),
        (2, 1, ValueError),
        (0, 2.0, TypeError),
    ):
        with pytest.raises(error):
            store.rows(start, stop)
    for batch_size, error in ((0, ValueError), (-1, ValueError), (True, TypeError)):
        with pytest.raises(error, match="batch_size"):
            next(store.batches(batch_size))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_finished_rows_of_a_shard(signum, model, token_rows, store, tmp_path, monkeypatch):
    """In the sixth batch, which is the second of the third shard."""
    received, ran, plain = [], [], activations.harvest_rows

    def interrupted(*arguments):
        ran.append(len(arguments[1]))
        if len(ran) == 6:
            signal.raise_signal(signum)
        return plain(*arguments)

    class Terminated(BaseException):
        pass

    def terminate(*_):
        received.append(signum)
        raise Terminated

    before = signal.signal(signum, terminate)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(activations, "harvest_rows", interrupted)
            with pytest.raises(Terminated):
                harvest(model, token_rows, HOOK_POINT, path=tmp_path, **SETTINGS)
    finally:
        signal.signal(signum, before)
    assert received == [signum]
    assert len(load_file(tmp_path / "partial-00002.safetensors")["norms"]) == 2
    harvest(model, token_rows, HOOK_POINT, path=tmp_path, **SETTINGS)
    assert contents(tmp_path) == contents(store.path)


def test_batches_larger_than_the_store_go_around(sized):
    store, x = sized(3)
    n = len(store.positions)
    order = identify(store, x, [next(store.shuffled(2 * n + 1, seed=0))])
    assert Counter(Counter(order).values()) == {2: n - 1, 3: 1}


def test_a_store_without_used_positions_is_refused(sized):
    store, _ = sized(4, excluded=torch.ones(4, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="no positions to train on: all are excluded"):
        next(store.shuffled(8, seed=0))
