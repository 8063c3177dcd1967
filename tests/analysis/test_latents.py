from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make
from toy_stores import in_memory

from saekit.agreement import MismatchError
from saekit.analysis import collect, contexts, logit_table, top_contexts, top_tokens
from saekit.dictionary import Dictionary
from saekit.identity import UnrecordedWarning

ROWS, LENGTH, VOCAB, D_IN, WIDTH = 14, 40, 30, 12, 25
WORDS = [f"<{i}>" for i in range(VOCAB)]


@pytest.fixture(scope="module")
def store():
    """Rows of tokens cut from documents of two sources; first positions are excluded."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    # Documents of 9 to 15 tokens run over the ends of rows.
    lengths = torch.randint(9, 16, (ROWS * LENGTH,), generator=generator)
    document = torch.arange(len(lengths)).repeat_interleave(lengths)[: ROWS * LENGTH].view(ROWS, LENGTH)
    documents = [
        {"source": "even" if i % 2 == 0 else "odd", "title": f"Title {i}"}
        for i in range(int(document.max()) + 1)
    ]
    excluded = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    excluded[:, 0] = True
    document[tokens == 0] = -1  # a separator belongs to no document
    excluded[tokens == 0] = True
    return in_memory(
        torch.randn(ROWS, LENGTH, D_IN, generator=generator) * 2,
        tokens=tokens,
        special=tokens == 0,
        excluded=excluded,
        document=document,
        documents=documents,
    )


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    made = make(D_IN, WIDTH, seed=6)
    threshold = made.threshold.clone()
    threshold[3] = 1e6  # dead
    return Dictionary(**{**made.tensors(), "threshold": threshold}, info=made.info)


@pytest.fixture(scope="module")
def activations(dictionary, store):
    return collect(dictionary, store, batch_size=33)


@pytest.fixture(scope="module")
def dense(dictionary, store) -> torch.Tensor:
    """Latents at every position, 0 where excluded: `[ROWS * LENGTH, WIDTH]`."""
    latents = dictionary.encode(store.rows(0, ROWS).flatten(0, 1))
    latents[store.excluded.flatten()] = 0
    return latents


def test_entries_are_the_dense_latents(activations, dense) -> None:
    for latent in range(WIDTH):
        positions, values = activations.entries(latent)
        assert torch.equal(positions, dense[:, latent].nonzero()[:, 0])
        torch.testing.assert_close(values, dense[positions, latent], rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError, match="between 0 and 24, found 25"):
        activations.entries(WIDTH)


def test_statistics(activations, dense, store) -> None:
    active = dense > 0
    n = len(store.positions)
    assert activations.n_tokens == n
    assert activations.n_excluded == store.excluded.sum()
    assert torch.equal(activations.counts, active.sum(0))
    assert torch.equal(activations.density, active.sum(0).double() / n)
    torch.testing.assert_close(activations.max, dense.max(0).values, rtol=1e-5, atol=0)
    mean = dense.double().sum(0) / active.sum(0).clamp(min=1)
    torch.testing.assert_close(activations.mean, mean, rtol=1e-5, atol=0)
    assert activations.frame.query("dead")["latent"].tolist() == [3]
    assert activations.frame.loc[3, ["n_active", "density", "mean", "max"]].tolist() == [0, 0, 0, 0]
    assert activations.summary["l0"] == pytest.approx(float(active.sum()) / n)


def test_a_plain_tensor_and_other_batches_give_the_same(dictionary, store, activations) -> None:
    plain = collect(dictionary, store.read(store.positions), batch_size=1000)
    assert torch.equal(plain.offsets, activations.offsets)
    assert torch.equal(store.positions[plain.positions], activations.positions)
    assert plain.n_excluded == 0


def test_top(activations, dense) -> None:
    for latent in (0, 3, 10):
        positions, values = activations.top(latent, 7)
        expected = dense[:, latent].sort(descending=True, stable=True)
        n = min(7, int((dense[:, latent] > 0).sum()))
        assert positions.tolist() == expected.indices[:n].tolist()
        assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_values_at_any_position(activations, dense) -> None:
    positions = torch.arange(ROWS * LENGTH).flip(0)
    for latent in (0, 3, 10):
        torch.testing.assert_close(
            activations.values_at(latent, positions), dense[positions, latent], rtol=1e-5, atol=1e-6
        )


def test_histogram_and_intervals_share_out_all_activations(activations) -> None:
    _, values = activations.entries(10)
    histogram, intervals = activations.histogram(10, bins=10), activations.intervals(10, bins=10, n=3)
    assert len(intervals) == len(histogram) == 10
    assert histogram["count"].sum() == len(values)
    assert intervals[0].high == pytest.approx(float(values.max()))
    assert sum(interval.share for interval in intervals) == pytest.approx(1)
    for interval, row in zip(intervals, reversed(list(histogram.itertuples())), strict=True):
        inside = (values.double() > interval.low) & (values.double() <= interval.high)
        assert interval.count == row.count == inside.sum()
        found = activations.values_at(10, interval.positions).double()
        assert ((found > interval.low) & (found <= interval.high)).all()
        assert len(interval.positions) == min(3, interval.count) == len(interval.positions.unique())


def test_intervals_are_seeded(activations) -> None:
    def sample(seed: int) -> list[list[int]]:
        return [interval.positions.tolist() for interval in activations.intervals(10, bins=2, seed=seed)]

    assert sample(0) == sample(0) != sample(1)


def test_dead_latents_have_nothing_to_show(activations, store) -> None:
    assert activations.histogram(3).empty
    assert activations.intervals(3) == []
    assert len(activations.top(3)[0]) == 0
    assert len(top_contexts(activations, 3, store, WORDS)) == 0
    assert top_contexts(activations, 3, store, WORDS).frame.empty
    assert top_tokens(activations, 3, store, WORDS).frame.empty
    assert top_tokens(activations, 3, store, WORDS).summary["top"] is None


def test_contexts_stop_at_rows_and_documents(store, activations, dense) -> None:
    everywhere = range(ROWS * LENGTH)
    found = contexts(store, everywhere, WORDS, activations=activations, latent=10, before=3, after=2)
    tokens, document = store.tokens.flatten(), store.document.flatten()
    assert len(found) == ROWS * LENGTH
    for p, context in zip(everywhere, found, strict=True):
        window = [
            q
            for q in range(p - 3, p + 3)
            if 0 <= q < ROWS * LENGTH and q // LENGTH == p // LENGTH and document[q] == document[p]
        ]
        assert context.position == p
        assert context.tokens == tuple(WORDS[int(tokens[q])] for q in window)
        assert context.focus == window.index(p)
        assert context.values == pytest.approx(dense[window, 10].tolist(), rel=1e-5, abs=1e-6)
        assert context.title == (f"Title {int(document[p])}" if document[p] >= 0 else "")


def test_contexts_by_source(store) -> None:
    everywhere = range(ROWS * LENGTH)
    document = store.document.flatten()
    odd = contexts(store, everywhere, WORDS, sources=["odd"])
    assert [context.position for context in odd] == [
        p for p in everywhere if document[p] >= 0 and document[p] % 2 == 1
    ]
    assert {context.source for context in odd} == {"odd"}
    assert all(sum(context.values) == 0 for context in odd)
    with pytest.raises(ValueError, match=r"sources \['even', 'odd'\], found \['other'\]"):
        contexts(store, [0], WORDS, sources=["other"])


def test_at_most_25_tokens_are_shown(store) -> None:
    assert len(contexts(store, [5], WORDS, before=12, after=12)) == 1
    with pytest.raises(ValueError, match="At most 25 tokens"):
        contexts(store, [5], WORDS, before=13, after=12)


def test_contexts_need_both_activations_and_latent(store, activations) -> None:
    with pytest.raises(ValueError, match="both activations and latent"):
        contexts(store, [0], WORDS, activations=activations)


def test_top_contexts_come_from_different_documents(store, activations, dense) -> None:
    found = top_contexts(activations, 10, store, WORDS, n=5, sources=["even"])
    document = store.document.flatten()
    best = {}
    for p in dense[:, 10].argsort(descending=True).tolist():
        if dense[p, 10] > 0 and document[p] % 2 == 0:
            best.setdefault(int(document[p]), p)
    assert [context.position for context in found] == list(best.values())[:5]
    assert [context.values[context.focus] for context in found] == pytest.approx(
        [float(dense[p, 10]) for p in list(best.values())[:5]], rel=1e-5
    )


@pytest.mark.parametrize("chunk", [None, 4])
def test_logit_table(dictionary, chunk: int | None) -> None:
    unembedding = torch.randn(D_IN, VOCAB, generator=torch.Generator().manual_seed(2))
    table = logit_table(dictionary, unembedding, WORDS, n=4, chunk=chunk)
    logits = dictionary.W_dec.double() @ unembedding.double()
    for latent in range(WIDTH):
        order = logits[latent].argsort(descending=True)
        rows = table.latent(latent)
        assert rows["top_token"].tolist() == [WORDS[i] for i in order[:4]]
        assert rows["bottom_token"].tolist() == [WORDS[i] for i in order.flip(0)[:4]]
        top, bottom = logits[latent][order[:4]], logits[latent][order.flip(0)[:4]]
        assert rows["top_logit"].tolist() == pytest.approx(top.tolist(), abs=1e-5)
        assert rows["bottom_logit"].tolist() == pytest.approx(bottom.tolist(), abs=1e-5)
    part = table.frame.query("latent == 5").drop(columns="latent").reset_index(drop=True)
    assert part.equals(table.latent(5))


def test_logit_table_needs_a_fitting_unembedding(dictionary) -> None:
    with pytest.raises(ValueError, match=r"must be \[12, vocab\]"):
        logit_table(dictionary, torch.zeros(VOCAB, D_IN), WORDS)


@pytest.mark.parametrize("by", ["mean", "lift"])
def test_top_tokens(store, activations, dense, by: str) -> None:
    result = top_tokens(activations, 10, store, WORDS, n=1000, by=by, min_count=12)
    table = result.frame
    assert result.summary["top"] == table["token"][0]
    tokens, used = store.tokens.flatten(), ~store.excluded.flatten()
    density = float((dense[:, 10] > 0).sum()) / int(used.sum())
    rows = table.set_index("token_id")
    for token in range(VOCAB):
        here = used & (tokens == token)
        active = dense[here, 10] > 0
        if here.sum() < 12 or not active.any():
            assert token not in rows.index
            continue
        row = rows.loc[token]
        assert (row["token"], row["count"], row["n_active"]) == (WORDS[token], here.sum(), active.sum())
        assert row["mean"] == pytest.approx(float(dense[here, 10].double().mean()), rel=1e-5)
        assert row["lift"] == pytest.approx(float(active.double().mean()) / density, rel=1e-6)
    assert 0 < len(table) < VOCAB
    assert table[by].is_monotonic_decreasing
    assert top_tokens(activations, 10, store, WORDS, n=3, by=by, min_count=12).frame.equals(table.head(3))
    with pytest.raises(ValueError, match="by must be one of 'mean', 'lift', found 'count'"):
        top_tokens(activations, 10, store, WORDS, by="count")


# ---------------------------------------------------------------------- what is refused


def test_contexts_are_a_result(store, activations, dense) -> None:
    found = top_contexts(activations, 10, store, WORDS, n=3)
    assert found.frame["value"].tolist() == [context.values[context.focus] for context in found]
    assert found.frame["text"][0] == "".join(found[0].tokens)
    assert found.summary["greatest"] == pytest.approx(float(dense[:, 10].max()), rel=1e-5)
    assert len(repr(found)) < 200
    assert len(repr(activations)) < 300


def test_positions_are_masks_and_columns_too(store) -> None:
    mask = torch.zeros(ROWS * LENGTH, dtype=torch.bool)
    mask[[7, 70, 500]] = True
    for positions in (mask, mask.numpy(), pd.Series([7, 70, 500]), [7, 70, 500]):
        assert [context.position for context in contexts(store, positions, WORDS)] == [7, 70, 500]
    for positions in ([ROWS * LENGTH], [-1]):
        with pytest.raises(IndexError, match="positions must be between 0 and 559"):
            contexts(store, positions, WORDS)


@pytest.mark.parametrize("latent", [-1, WIDTH, 2.0, True, [1]])
def test_a_latent_is_one_whole_number(store, activations, latent) -> None:
    for call in (
        lambda: activations.entries(latent),
        lambda: activations.top(latent),
        lambda: activations.histogram(latent),
        lambda: activations.intervals(latent),
        lambda: activations.values_at(latent, torch.arange(3)),
        lambda: contexts(store, [5], WORDS, activations=activations, latent=latent),
        lambda: top_contexts(activations, latent, store, WORDS),
        lambda: top_tokens(activations, latent, store, WORDS),
    ):
        with pytest.raises((IndexError, TypeError), match="latent"):
            call()
    assert torch.equal(activations.entries(torch.tensor(3))[0], activations.entries(np.int64(3))[0])


def test_another_store_is_refused(store, activations) -> None:
    """Positions mean other tokens in it."""
    other = in_memory(
        torch.randn(ROWS, LENGTH, D_IN), tokens=store.tokens, special=store.special, excluded=store.excluded
    )
    for call in (
        lambda: contexts(other, [0], WORDS, activations=activations, latent=1),
        lambda: top_contexts(activations, 1, other, WORDS),
        lambda: top_tokens(activations, 1, other, WORDS),
    ):
        with pytest.raises(ValueError, match="were collected over the store"):
            call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(dictionary, bad) -> None:
    x = torch.randn(20, D_IN)
    x[7, 2] = bad
    with pytest.raises(ValueError, match="activations of position 7 are not finite"):
        collect(dictionary, x)


def test_a_store_of_another_hook_point_is_refused(dictionary, store) -> None:
    elsewhere = replace(dictionary, info={**dictionary.info, "hook_point": "blocks.3.hook_resid_post"})
    with pytest.raises(MismatchError, match="hook point"):
        collect(elsewhere, store)
    with pytest.warns(UserWarning, match="do not belong together"):
        found = collect(elsewhere, store, allow_mismatch=True)
    assert found.dictionary == elsewhere.identity != dictionary.identity
    assert found.store == store.content_hash


# ---------------------------------------------------------------------- logit effects


def at(dictionary: Dictionary, place: str | None) -> Dictionary:
    return replace(dictionary, info={**dictionary.info, "hook_point": place})


@pytest.mark.parametrize(
    "place",
    [
        *("blocks.0.attn.hook_z", "blocks.11.attn.hook_q", "blocks.2.mlp.hook_post", "blocks.2.mlp.hook_pre"),
        *("blocks.1.ln1.hook_normalized", "blocks.1.hook_q_input", "blocks.1.attn.hook_result"),
        *("blocks.1.mlp.hook_in", "blocks.1.attn.k.hook_out"),
    ],
)
def test_directions_inside_a_block_have_no_logit_effects(dictionary, place) -> None:
    unembedding = torch.randn(D_IN, VOCAB)
    with pytest.raises(ValueError, match=r"need directions in the residual stream.*are inside a block"):
        logit_table(at(dictionary, place), unembedding, WORDS)
    with pytest.warns(UserWarning, match="inside a block"):
        table = logit_table(at(dictionary, place), unembedding, WORDS, allow_mismatch=True)
    assert table.summary["width"] == WIDTH


@pytest.mark.parametrize(
    "place",
    [
        *("blocks.0.hook_resid_pre", "blocks.11.hook_resid_mid", "blocks.2.hook_resid_post"),
        *("blocks.2.hook_mlp_out", "blocks.2.hook_attn_out", "hook_embed", "blocks.2.hook_out"),
        *("ln_final.hook_normalized", "blocks.3.mlp.hook_out"),
    ],
)
def test_directions_in_the_residual_stream_do(dictionary, place, recwarn) -> None:
    logit_table(at(dictionary, place), torch.randn(D_IN, VOCAB), WORDS)
    assert not recwarn


@pytest.mark.parametrize(("place", "why"), [(None, "does not record"), ("layers.2.mlp", "not known here")])
def test_an_unknown_place_is_a_warning(dictionary, place, why) -> None:
    with pytest.warns(UnrecordedWarning, match=why):
        logit_table(at(dictionary, place), torch.randn(D_IN, VOCAB), WORDS)


def test_settings_of_a_logit_table_are_checked_first(dictionary) -> None:
    here, unembedding = at(dictionary, "blocks.0.hook_resid_pre"), torch.randn(D_IN, VOCAB)
    with pytest.raises(ValueError, match="n must be between 1 and 30, found 31"):
        logit_table(here, unembedding, WORDS, n=31)
    with pytest.raises(ValueError, match="needs 30 display strings, found 29"):
        logit_table(here, unembedding, WORDS[:-1])
    with pytest.raises(ValueError, match="not finite"):
        logit_table(here, unembedding.fill_(torch.nan), WORDS)
