"""A text of one's own, and what a latent's absence costs, against the model run by hand."""

import pytest
import torch
import torch.nn.functional as F
from toy_effects import HOOK_POINT, sae

from saekit.analysis import measure_ablation, read_text
from saekit.corpora import separator_of
from saekit.dictionary import Dictionary

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


def test_every_active_latent_of_a_text_is_found(model):
    dictionary, text = sae(), "the old king sleeps over the river"
    reading = read_text(model, dictionary, text)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    row = torch.tensor([[separator_of(model.tokenizer), *ids]])
    with torch.no_grad():
        _, cache = model.run_with_cache(row)
    dense = dictionary.encode(cache[HOOK_POINT][0, 1:])
    assert reading.tokens == tuple(model.tokenizer.decode([i]) for i in ids)
    for latent in range(dictionary.width):
        assert reading.of(latent) == pytest.approx(dense[:, latent].tolist(), rel=1e-5, abs=1e-6)
    frame = reading.frame
    assert frame["latent"].tolist() == dense.max(0).values.argsort(descending=True)[: len(frame)].tolist()
    assert len(frame) == int((dense > 0).any(0).sum())
    for row in frame.itertuples():
        values = dense[:, row.latent]
        assert row.max == pytest.approx(float(values.max()), rel=1e-5)
        assert row.place == int(values.argmax())
        assert row.token == reading.tokens[row.place]
        assert row.n_active == int((values > 0).sum())
        assert row.mean == pytest.approx(float(values[values > 0].mean()), rel=1e-5)
    expected = [int(row.argmax()) if row.max() > 0 else -1 for row in dense]
    assert reading.strongest == expected
    assert reading.summary["l0"] == pytest.approx(float((dense > 0).sum(1).double().mean()))


def test_a_text_that_cannot_be_read_is_refused(model):
    with pytest.raises(TypeError, match="text must be a str, found int"):
        read_text(model, sae(), 3)
    with pytest.raises(ValueError, match="holds no token"):
        read_text(model, sae(), "")
    with pytest.raises(ValueError, match="The text has 2,000 tokens, but the model takes at most 63 after"):
        read_text(model, sae(), " king" * 2000)
    with pytest.raises(ValueError, match="holds only special tokens"):
        read_text(model, sae(), "<|begin|><|endoftext|>")
    with pytest.raises(ValueError, match="half of a surrogate pair at character 4"):
        read_text(model, sae(), "king\ud83d")
    bare = Dictionary(**sae().tensors())
    with pytest.raises(ValueError, match="names no hook point"):
        read_text(model, bare, "king")


def test_no_latent_is_active_on_a_special_token(model):
    dictionary, text = sae(), "<|begin|>the old<|endoftext|> king"
    reading = read_text(model, dictionary, text)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([[separator_of(model.tokenizer), *ids]]))
    dense = dictionary.encode(cache[HOOK_POINT][0, 1:])
    special = [reading.tokens.index(token) for token in ("<|begin|>", "<|endoftext|>")]
    assert reading.special == (0, special[1])
    assert (dense[special] > 0).any(1).all()  # there is something to leave out
    dense[special] = 0
    for latent in range(dictionary.width):
        assert reading.of(latent) == pytest.approx(dense[:, latent].tolist(), rel=1e-5, abs=1e-6)
    assert reading.summary["l0"] == pytest.approx(int((dense > 0).sum()) / (len(ids) - 2))


def test_nothing_is_measured_at_the_ends_of_rows(model, store):
    last = store.context_length - 1
    found = measure_ablation(model, sae(), 0, store, [last]).frame
    assert found["position"].tolist() == [last]
    assert found["change"].isna().all()
    assert measure_ablation(model, sae(), 0, store, []).frame.empty


def test_the_loss_of_an_ablation_is_that_of_the_edited_model(model, store):
    dictionary = sae()
    length, tokens = store.context_length, store.tokens
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens.long())
    dense = dictionary.encode(cache[HOOK_POINT].flatten(0, 1))
    latent = int((dense > 0).sum(0).argmax())
    active = dense[:, latent].nonzero()[:, 0]
    chosen = [*active[:9].tolist(), length - 1, 3, int(active[-1])]  # one at the end of its row
    found = measure_ablation(model, dictionary, latent, store, chosen, batch_size=4).frame
    assert found["position"].tolist() == chosen
    for row in found.itertuples():
        place, line = row.position % length, row.position // length
        if place == length - 1:
            assert row.change != row.change
            continue

        def ablate(x, hook, place=place, value=dense[row.position, latent]):
            x[0, place] -= value * dictionary.W_dec[latent]
            return x

        with torch.no_grad():
            one = tokens[line : line + 1].long()
            losses = [
                float(F.cross_entropy(logits[0, place], one[0, place + 1]))
                for logits in (model(one), model.run_with_hooks(one, fwd_hooks=[(HOOK_POINT, ablate)]))
            ]
        assert row.activation == pytest.approx(float(dense[row.position, latent]), rel=1e-5, abs=1e-6)
        assert [row.loss, row.ablated] == pytest.approx(losses, rel=1e-4)
        assert row.change == pytest.approx(losses[1] - losses[0], abs=2e-5)
        assert (abs(row.change) > 1e-9) == (row.activation > 0)


def test_latents_that_compete_are_refused(model, store):
    topk = Dictionary(**sae().tensors(), k=3, info=sae().info)
    with pytest.raises(ValueError, match="Ablation of one latent needs latents that do not depend"):
        measure_ablation(model, topk, 0, store, [3])
