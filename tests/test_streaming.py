"""Activations that training draws while they are harvested, against a store of the same rows."""

import itertools
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import HOOK_POINT

from saekit import activations, streaming
from saekit.activations import harvest
from saekit.models import capture, load_model
from saekit.streaming import StreamedActivations
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK

CTX = 16
SETTINGS = {"dtype": torch.float32, "batch_rows": 2}


@pytest.fixture
def stream(model, token_rows):
    """Buffers of 5 rows or, since 22 rows are five buffers of equal size, 4."""
    return StreamedActivations(model, token_rows, HOOK_POINT, buffer_tokens=5 * CTX + 3, **SETTINGS)


@pytest.fixture
def massive(monkeypatch):
    """A rule that excludes some norms of the tiny model too."""
    monkeypatch.setattr(activations, "NORM_MULTIPLE", 1.3)
    monkeypatch.setattr(activations, "NORM_SAMPLE", 100)
    monkeypatch.setattr(streaming, "NORM_SAMPLE", 100)


@pytest.fixture
def harvested(monkeypatch):
    """Rows run through the model, in order."""
    rows = []

    def counting(model, tokens, hook_point):
        rows.extend(map(tuple, tokens.tolist()))
        return capture(model, tokens, hook_point)

    monkeypatch.setattr(activations, "capture", counting)
    return rows


def take(source, n, batch_size, **kwargs):
    return list(itertools.islice(source.shuffled(batch_size, **kwargs), n))


def texts(store, positions):
    """How often each context occurs: what positions, some of which share it, are told apart by."""
    rows = store.tokens.tolist()
    return Counter(tuple(rows[i // CTX][: i % CTX + 1]) for i in positions)


def nearest(store, batches):
    """The store's position whose activation is nearest to each row of batches, none being far."""
    distances = torch.cdist(torch.cat(batches).double(), store.rows(0, 22).flatten(0, 1).double())
    assert distances.min(dim=1).values.max() < 1e-5
    return distances.argmin(dim=1).tolist()


def candidates(store):
    """Positions that are neither special nor first: what is known before harvesting."""
    known = store.special.clone()
    known[:, 0] = True
    return known.logical_not()


# ---------------------------------------------------------------------------------- order


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_an_epoch_visits_the_positions_of_a_store_up_to_a_rest(stream, store, batch_size):
    orders = []
    for epoch in range(2):
        order = torch.randperm(22, generator=activations.random_stream(3, epoch))
        sizes = [int(candidates(store)[rows].sum()) for rows in order.tensor_split(5)]
        orders.append([size // batch_size for size in sizes])
        assert sum(size % batch_size for size in sizes) < 5 * batch_size
    batches = take(stream, sum(map(sum, orders)), batch_size, seed=3)
    assert {batch.shape for batch in batches} == {(batch_size, 16)}
    epochs = [batches[: sum(orders[0])], batches[sum(orders[0]) :]]
    used, seen = texts(store, store.positions.tolist()), []
    for epoch in epochs:
        seen.append(nearest(store, epoch))
        assert texts(store, seen[-1]) <= used
        if batch_size == 1:
            assert texts(store, seen[-1]) == used
    assert seen[0] != seen[1]


def test_positions_with_massive_norms_never_come_and_others_fill_their_place(
    massive, model, token_rows, tmp_path
):
    store = harvest(
        model, token_rows, HOOK_POINT, path=tmp_path / "s", shard_rows=4, progress=False, **SETTINGS
    )
    stream = StreamedActivations(model, token_rows, HOOK_POINT, buffer_tokens=22 * CTX, **SETTINGS)
    assert stream.manifest["exclusion"]["norm_limit"] == store.manifest["exclusion"]["norm_limit"]
    n, n_used = int(candidates(store).sum()), len(store.positions)
    assert n > n_used + 5
    drawn = nearest(store, take(stream, n // 8, 8, seed=0))
    used = texts(store, store.positions.tolist())
    assert texts(store, drawn[:n_used]) == used
    assert drawn[n_used:] == drawn[: len(drawn) - n_used]


def test_starting_later_equals_skipping(stream, harvested):
    batches = take(stream, 60, 7, seed=5)  # through the first epoch and into the second
    assert sum(map(len, batches)) > 22 * CTX
    for start in (0, 1, 9, 40, 59):
        harvested.clear()
        torch.testing.assert_close(
            take(stream, 1, 7, seed=5, start_step=start)[0], batches[start], rtol=0, atol=0
        )
        assert len(harvested) <= 5  # one buffer


def test_seeds_give_other_orders(stream):
    a, b, c = (torch.cat(take(stream, 5, 7, seed=seed)) for seed in (0, 1, 0))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_positions_are_shuffled_over_the_whole_buffer(stream, store):
    found = nearest(store, take(stream, 2, 12, seed=0))
    assert len({position // CTX for position in found[:12]}) > 2
    assert len({position % CTX for position in found[:12]}) > 5


# ---------------------------------------------------------------------------------- memory and work


def test_a_buffer_is_bounded_and_each_row_is_harvested_once_an_epoch(
    model, token_rows, stream, harvested, monkeypatch
):
    held, buffers = [], []
    fill = StreamedActivations._fill

    def measured(self, numbers):
        assert all(buffer() is None for buffer in buffers)  # the last one has made way
        buffer = fill(self, numbers)
        buffers.append(weakref.ref(buffer))
        held.append(buffer.untyped_storage().nbytes() // (4 * 16))
        return buffer

    monkeypatch.setattr(StreamedActivations, "_fill", measured)
    assert stream.manifest["d_in"] == 16  # with the norm limit, which takes rows of its own
    harvested.clear()
    batches = stream.shuffled(1, seed=0)
    first = next(batches)
    assert len(harvested) <= 5  # no more than a buffer before the first batch
    while len(held) <= 5:
        next(batches)
    assert max(held) <= 5 * CTX
    assert Counter(harvested[:22]) == Counter(map(tuple, token_rows.tokens.tolist()))
    assert first.dtype == torch.float32


def test_bfloat16_is_held_rounded(model, token_rows, tmp_path):
    settings = {"dtype": torch.bfloat16, "batch_rows": 2}
    store = harvest(
        model, token_rows, HOOK_POINT, path=tmp_path / "s", shard_rows=4, progress=False, **settings
    )
    stream = StreamedActivations(model, token_rows, HOOK_POINT, **settings)
    torch.testing.assert_close(stream.read(store.positions), store.read(store.positions), rtol=2**-7, atol=0)
    assert stream._fill(torch.arange(4)).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------- reading


def test_reading_equals_a_store(stream, store):
    chosen = torch.randint(22 * CTX, (100,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stream.read(chosen), store.read(chosen), rtol=1e-5, atol=1e-5)
    everything = torch.arange(22 * CTX)  # the same batches of rows: the same bits
    torch.testing.assert_close(stream.read(everything), store.read(everything), rtol=0, atol=0)
    assert stream.read(torch.tensor([], dtype=torch.long)).shape == (0, 16)
    with pytest.raises(IndexError, match="between 0 and 351"):
        stream.read(torch.tensor([352]))


def test_positions_are_used_ones_of_rows_spread_over_the_data(
    massive, model, token_rows, tmp_path, monkeypatch
):
    store = harvest(
        model, token_rows, HOOK_POINT, path=tmp_path / "s", shard_rows=4, progress=False, **SETTINGS
    )

    def positions():
        return StreamedActivations(model, token_rows, HOOK_POINT, **SETTINGS).positions

    assert torch.equal(positions(), store.positions)
    monkeypatch.setattr(streaming, "SAMPLE_TOKENS", 4 * CTX)
    rows = torch.tensor([0, 5, 11, 16])
    expected = store.positions[torch.isin(store.positions // CTX, rows)]
    assert torch.equal(positions(), expected)


# ---------------------------------------------------------------------------------- training


def config(**settings):
    return TrainingConfig(
        **{"variant": BatchTopK(k=4), "width": 32, "steps": 60, "batch_size": 8, "warmup": 5} | settings
    )


class Killed(BaseException):
    """Like a signal."""


def test_training_killed_and_resumed_ends_with_the_same_bits(
    model, token_rows, stream, tmp_path, monkeypatch
):
    whole = train(config(), stream, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    fill, fills = StreamedActivations._fill, itertools.count()

    def dying(self, numbers):
        if next(fills) == 3:
            raise Killed
        return fill(self, numbers)

    monkeypatch.setattr(StreamedActivations, "_fill", dying)
    with pytest.raises(Killed):
        train(config(), stream, checkpoint=path, checkpoint_every=7, progress=False)
    monkeypatch.setattr(StreamedActivations, "_fill", fill)
    again = StreamedActivations(model, token_rows, HOOK_POINT, buffer_tokens=5 * CTX + 3, **SETTINGS)
    resumed = train(config(), again, checkpoint=path, checkpoint_every=7, progress=False)
    assert resumed.dictionary.content_hash == whole.dictionary.content_hash
    assert resumed.log.equals(whole.log)
    assert whole.dictionary.info["hook_point"] == HOOK_POINT
    assert whole.dictionary.info["model"] == "tiny-llama"


@pytest.mark.parametrize("hook_point", ["blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"])
def test_training_on_other_hook_points_from_a_stream_and_from_a_store(
    model, token_rows, tmp_path, hook_point
):
    """A dictionary of the concatenated heads (Kissane et al. 2024) or of the MLP's output."""
    stream = StreamedActivations(model, token_rows, hook_point, **SETTINGS)
    store = harvest(
        model, token_rows, hook_point, path=tmp_path / "s", shard_rows=4, progress=False, **SETTINGS
    )
    for source in (stream, store):
        result = train(config(steps=300), source, held_out=store, progress=False)
        assert result.dictionary.info["hook_point"] == hook_point
        assert result.dictionary.d_in == 16
        assert result.summary["fvu"] < 0.5


def test_a_checkpoint_of_other_data_is_refused(model, token_rows, stream, tmp_path, gpt2_folder):
    path = tmp_path / "checkpoint.safetensors"
    train(config(steps=2), stream, checkpoint=path, progress=False)
    fewer = replace(token_rows, tokens=token_rows.tokens[:20], document=token_rows.document[:20])
    others = [
        StreamedActivations(model, token_rows, HOOK_POINT, buffer_tokens=4 * CTX, **SETTINGS),
        StreamedActivations(model, fewer, HOOK_POINT, buffer_tokens=5 * CTX, **SETTINGS),
        StreamedActivations(
            load_model(gpt2_folder), token_rows, HOOK_POINT, buffer_tokens=5 * CTX, **SETTINGS
        ),
    ]
    for other in others:
        with pytest.raises(ValueError, match="belongs to another run: activations is"):
            train(config(steps=2), other, checkpoint=path, progress=False)


# ---------------------------------------------------------------------------------- refused


def test_settings_are_checked(model, token_rows, stream):
    with pytest.raises(ValueError, match="buffer_tokens must be at least 16, found 15"):
        StreamedActivations(model, token_rows, HOOK_POINT, buffer_tokens=15)
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.9"):
        StreamedActivations(model, token_rows, "blocks.9.hook_resid_post")
    with pytest.raises(ValueError, match="not as float16"):
        StreamedActivations(model, token_rows, HOOK_POINT, dtype=torch.float16)
    with pytest.raises(ValueError, match="No buffer of 5 rows fills a batch of 81 positions"):
        next(stream.shuffled(81, seed=0))


def test_activations_that_are_not_finite_are_named(stream, token_rows, monkeypatch):
    def broken(model, tokens, hook_point):
        x = capture(model, tokens, hook_point)
        x[(tokens == token_rows.tokens[9]).all(dim=1), 5, 2] = float("nan")
        return x

    monkeypatch.setattr(activations, "capture", broken)
    with pytest.raises(ValueError, match="activations of row 9 are not finite"):
        take(stream, 60, 7, seed=0)


def test_a_buffer_of_excluded_positions_is_refused(stream, monkeypatch):
    monkeypatch.setattr(activations, "NORM_MULTIPLE", 0)
    with pytest.raises(ValueError, match="All positions of 5 rows are excluded"):
        take(stream, 1, 7, seed=0)
