"""Edits equal activation patching where everything is swapped, and a loop that runs the whole model."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import HOOK_POINT, WORDS, sentences
from dictionaries import make

from saekit.activations import harvest
from saekit.agreement import MismatchError
from saekit.analysis.edits import PATCHING, RANDOM, Filled, _pairs, known_facts, measure_edits
from saekit.analysis.meta.sae import MetaSAE
from saekit.corpora import Document, pack, separator_of
from saekit.dictionary import Dictionary, Transcoder
from saekit.models import capture, load_model, logits_with_replacement

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")

TEMPLATES = {"first": "the {entity} runs", "second": "an old {entity} over the"}
SIZES = (2, 5)


@pytest.fixture(scope="module")
def words(model):
    """Words of one token after a space."""
    return [
        w for w in dict.fromkeys(WORDS) if len(model.tokenizer.encode(f" {w}", add_special_tokens=False)) == 1
    ]


def facts_of(model, words):
    """The two answers per attribute that split the words most evenly, each the one that the model prefers."""
    rows = []
    for attribute, template in TEMPLATES.items():
        logits = logits_of(model, template, words, words)
        first = [
            (abs(2 * int((logits[:, a] > logits[:, b]).sum()) - len(words)), a, b)
            for a, b in combinations(range(len(words)), 2)
        ]
        _, a, b = min(first)
        answers = [words[a if row[a] > row[b] else b] for row in logits]
        rows += [(word, attribute, answer) for word, answer in zip(words, answers, strict=True)]
    return pd.DataFrame(rows, columns=["entity", "attribute", "answer"])


@pytest.fixture(scope="module")
def facts(model, words):
    return facts_of(model, words)


def at_hook_point(width, seed):
    made = make(d_in=16, width=width, seed=seed)
    return replace(made, info={**made.info, "hook_point": HOOK_POINT})


@pytest.fixture(scope="module")
def sae():
    return at_hook_point(24, 0)


@pytest.fixture(scope="module")
def meta(sae):
    """A meta-SAE by hand: six random directions, active where they point along a latent's."""
    rows = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(3)), dim=1)
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}}
    made = Dictionary(
        rows.T.contiguous(), torch.zeros(6), rows, 0.01 * rows[0], torch.full((6,), 0.1), info=info
    )
    return MetaSAE(made, (sae,), torch.zeros(24, dtype=torch.bool))


@pytest.fixture(scope="module")
def edits(model, sae, facts, store, meta):
    return measure_edits(model, sae, facts, TEMPLATES, store, meta=meta, sizes=SIZES, n_pairs=3, n_text=2)


def tokens_of(model, template, word):
    ids = model.tokenizer.encode(template.format(entity=word), add_special_tokens=False)
    return torch.tensor([[separator_of(model.tokenizer), *ids]])


def one(model, word):
    return model.tokenizer.encode(f" {word}", add_special_tokens=False)[0]


def logits_of(model, template, words, answers):
    ids = [one(model, answer) for answer in answers]
    return torch.stack([model(tokens_of(model, template, word))[0, -1, ids] for word in words])


def activation(model, template, word):
    """The model's own activation at the word, and its position."""
    tokens = tokens_of(model, template, word)
    place = 1 + len(model.tokenizer.encode(template.split(" {entity}")[0], add_special_tokens=False))
    assert tokens[0, place] == one(model, word)
    return capture(model, tokens, HOOK_POINT)[0, place].float(), place


def asked(model, template, word, change, answers):
    """Probabilities of answers with the activation at the word changed, by a pass over the whole model."""
    tokens, (_, place) = tokens_of(model, template, word), activation(model, template, word)

    def replaced(x):
        x = x.clone()
        x[0, place] += change
        return x

    logits = logits_with_replacement(model, tokens, HOOK_POINT, replaced)
    return logits[0, -1, [one(model, answer) for answer in answers]].softmax(0)


def means(facts, attribute, values, answer):
    """The mean of values by entity over those with an answer."""
    chosen = facts[(facts["attribute"] == attribute) & (facts["answer"] == answer)]["entity"]
    return torch.stack([values[entity] for entity in chosen]).mean(0)


def in_components(model, sae, meta, facts, template, method):
    """Values of each entity and directions of the components that a method swaps."""
    entities = facts["entity"].unique()
    x = {word: activation(model, template, word)[0] for word in entities}
    if method == "neurons":
        return x, torch.eye(16)
    if method == "principal components":
        stacked = torch.stack(list(x.values())).double()
        axes = torch.linalg.eigh(torch.cov(stacked.T)).eigenvectors.T.float()
        return {word: axes @ value for word, value in x.items()}, axes
    latents = {word: sae.encode(value[None])[0] for word, value in x.items()}
    if method == "latents":
        return latents, sae.W_dec
    parts = meta.dictionary.encode(sae.W_dec)
    return {word: value @ parts for word, value in latents.items()}, meta.dictionary.W_dec


@pytest.mark.parametrize("method", ["latents", "meta-latents", "neurons", "principal components"])
def test_swaps_equal_a_loop_over_the_whole_model(model, sae, meta, facts, edits, method):
    answer = facts.set_index(["entity", "attribute"])["answer"]
    rows = edits.frame[edits.frame["method"] == method]
    assert len(rows) == 3 * len(TEMPLATES) * len(TEMPLATES) * len(SIZES)
    for row in rows.itertuples():
        template = TEMPLATES[row.asked]
        values, directions = in_components(model, sae, meta, facts, template, method)
        groups = [
            means(facts, row.attribute, values, answer[word, row.attribute])
            for word in (row.source, row.base)
        ]
        chosen = (groups[0] - groups[1]).abs().topk(min(row.n, len(directions))).indices
        change = (values[row.source] - values[row.base])[chosen] @ directions[chosen]
        assert row.norm == pytest.approx(float(change.norm()), rel=1e-3, abs=1e-5)
        names = edits.candidates[row.asked]
        expected = asked(model, template, row.base, change, names)
        place = edits.frame.index[edits.frame["asked"] == row.asked].get_loc(row.Index)
        torch.testing.assert_close(edits.after[row.asked][place], expected, atol=2e-5, rtol=1e-3)
        wanted = answer[row.source if row.asked == row.attribute else row.base, row.asked]
        assert (row.wanted, row.answer) == (wanted, names[int(expected.argmax())])
        assert row.reached == (row.answer == wanted)


def test_swapping_all_latents_and_the_error_is_activation_patching(model, sae, facts, store, edits):
    """And on a dictionary without an error, swapping all latents alone is."""
    rows = edits.frame[edits.frame["method"] == PATCHING]
    for row in rows.itertuples():
        template, names = TEMPLATES[row.asked], edits.candidates[row.asked]
        base, source = (activation(model, template, word)[0] for word in (row.base, row.source))
        latents = [sae.encode(x[None])[0] for x in (base, source)]
        errors = [x - sae.reconstruct(x[None])[0] for x in (base, source)]
        change = (latents[1] - latents[0]) @ sae.W_dec + errors[1] - errors[0]
        place = edits.frame.index[edits.frame["asked"] == row.asked].get_loc(row.Index)
        expected = asked(model, template, row.base, change, names)
        torch.testing.assert_close(edits.after[row.asked][place], expected, atol=2e-5, rtol=1e-3)
    exact = Dictionary(
        torch.cat([torch.eye(16), -torch.eye(16)], 1),
        torch.zeros(32),
        torch.cat([torch.eye(16), -torch.eye(16)]),
        torch.zeros(16),
        torch.zeros(32),
        info={"hook_point": HOOK_POINT},
    )
    found = measure_edits(model, exact, facts, TEMPLATES, store, sizes=[1], n_pairs=2, n_text=1)
    for name, after in found.after.items():
        methods = found.frame.loc[found.frame["asked"] == name, "method"].to_numpy()
        patched, swapped = (after[methods == method] for method in (PATCHING, "all latents"))
        torch.testing.assert_close(patched, swapped)


def test_the_other_changes_are_their_definitions(model, sae, meta, facts, edits):
    answer = facts.set_index(["entity", "attribute"])["answer"]
    entities = facts["entity"].unique()
    parts = meta.dictionary.encode(sae.W_dec)
    norms = edits.frame.set_index(["method", "n", "base", "source", "attribute", "asked"])["norm"]
    for row in edits.frame[edits.frame["method"] == "reconstruction"].itertuples():
        x = {word: activation(model, TEMPLATES[row.asked], word)[0] for word in entities}
        latents = {word: sae.encode(value[None])[0] for word, value in x.items()}
        total = torch.stack(list(latents.values())).sum(0)
        own, other = (int((latents[word] / (total + 1)).argmax()) for word in (row.base, row.source))
        new = meta.dictionary.b_dec.clone()
        turned = sae.W_dec[own].clone()
        for i, direction in enumerate(meta.dictionary.W_dec):
            if parts[other, i] > 0 and parts[own, i] == 0:
                new, turned = new + parts[other, i] * direction, turned + 100 * direction
            elif parts[other, i] > 0:
                new = new + parts[own, i] * direction
            elif parts[own, i] > 0:
                turned = turned - 100 * direction
        greatest = max(float(latents[word][own]) for word in entities)
        groups = [
            means(facts, row.attribute, x, answer[word, row.attribute]) for word in (row.source, row.base)
        ]
        expected = {
            ("reconstruction", 0): sae.reconstruct(x[row.base][None])[0] - x[row.base],
            ("difference of means", 1): groups[0] - groups[1],
            ("all latents", 24): (latents[row.source] - latents[row.base]) @ sae.W_dec,
            ("meta-latents, as in the post", 1): latents[row.base][own] * (new / new.norm() - sae.W_dec[own]),
            ("meta-latents, as in the code", 1): greatest * turned / turned.norm()
            - latents[row.base][own] * sae.W_dec[own],
        }
        for (method, n), change in expected.items():
            key = (method, n, row.base, row.source, row.attribute, row.asked)
            assert norms[key] == pytest.approx(float(change.norm()), rel=1e-3, abs=1e-5)
            names = edits.candidates[row.asked]
            asked_rows = edits.frame[edits.frame["asked"] == row.asked].reset_index(drop=True)
            columns = ["method", "n", "base", "source", "attribute"]
            place = [*asked_rows[columns].itertuples(index=False, name=None)].index(key[:5])
            after = asked(model, TEMPLATES[row.asked], row.base, change, names)
            torch.testing.assert_close(edits.after[row.asked][place], after, atol=2e-5, rtol=1e-3)
        for n, like in [(size, ("latents", size)) for size in SIZES] + [(16, (PATCHING, 16))]:
            rest = (row.base, row.source, row.attribute, row.asked)
            assert norms[(RANDOM, n, *rest)] == pytest.approx(norms[(*like, *rest)], rel=1e-4)


def test_damage_is_the_loss_with_the_change_at_every_position(model, store, facts, edits):
    """Of the first and last patching edit, by passes over the whole model."""
    answer = edits.frame[
        (edits.frame["method"] == PATCHING) & (edits.frame["attribute"] == edits.frame["asked"])
    ]
    damage = edits.damage[edits.damage["method"] == PATCHING]
    assert damage["row"].tolist() == [0, store.n_rows - 1]
    for row, edit in zip(damage.itertuples(), (answer.iloc[0], answer.iloc[-1]), strict=True):
        base, source = (
            activation(model, TEMPLATES[edit["asked"]], edit[who])[0] for who in ("base", "source")
        )
        tokens, kept = store.tokens[[row.row]], ~store.excluded[[row.row], :, None]
        losses = []
        for change in (0 * base, source - base):
            logits = logits_with_replacement(model, tokens, HOOK_POINT, lambda x, c=change * kept: x + c)
            loss = F.cross_entropy(logits[0, :-1].double(), tokens[0, 1:].long(), reduction="none")
            losses.append(float(loss[~store.special[row.row, 1:]].mean()))
        assert row.loss == pytest.approx(losses[1] - losses[0], abs=1e-5)


def test_the_table_is_means_over_pairs_with_a_bootstrap(edits):
    frame, table = edits.frame, edits.table
    pairs = frame[["base", "source"]].drop_duplicates()
    assert len(pairs) == edits.summary["n_pairs"] == 3
    for row in table.itertuples():
        same = frame[(frame["method"] == row.method) & (frame["n"] == row.n)]
        by_pair = []
        for base, source in pairs.itertuples(index=False):
            part = same[(same["base"] == base) & (same["source"] == source)]
            edited = part["attribute"] == part["asked"]
            by_pair.append((part[edited]["reached"].mean(), part[~edited]["reached"].mean()))
        by_pair = np.array(by_pair)
        assert (row.cause, row.isolation) == pytest.approx(tuple(by_pair.mean(0)))
        assert row.disentangle == pytest.approx(by_pair.mean())
        assert by_pair[:, 0].min() <= row.cause_low <= row.cause <= row.cause_high <= by_pair[:, 0].max()
    quiet = table[table["method"] == "reconstruction"].iloc[0]
    assert quiet["damage_low"] <= quiet["damage"] <= quiet["damage_high"]
    pd.testing.assert_frame_equal(table, edits.table)


def test_known_facts_are_those_that_the_whole_model_ranks_first(model, facts):
    wrong = facts.copy()
    flipped = wrong.groupby("attribute")["answer"].transform(lambda each: each[::-1].to_numpy())
    wrong["answer"] = flipped
    templates = {"first": [TEMPLATES["first"], TEMPLATES["second"]], "second": TEMPLATES["second"]}
    known = known_facts(model, wrong, templates, batch_rows=5)
    assert known.index.equals(wrong.index)
    for row in known.itertuples():
        names = sorted(wrong[wrong["attribute"] == row.attribute]["answer"].unique())
        asked_with = templates[row.attribute]
        margins = []
        for template in [asked_with] if isinstance(asked_with, str) else asked_with:
            logits = logits_of(model, template, [row.entity], names)[0]
            right = names.index(row.answer)
            margins.append(float(logits[right] - logits[1 - right]))
        assert row.margin == pytest.approx(min(margins), abs=1e-4)
        assert (row.n_right, row.n_templates) == (sum(m > 0 for m in margins), len(margins))
        assert row.known == (row.n_right == row.n_templates)


def test_what_cannot_be_edited_gets_one_sentence(model, sae, facts, store, meta, words):
    def refused(error, match, *, sae=sae, facts=facts, templates=TEMPLATES, **settings):
        with pytest.raises(error, match=match) as raised:
            measure_edits(model, sae, facts, templates, store, **settings)
        assert str(raised.value).count("\n") == 0

    first = facts["entity"].iloc[0]
    refused(
        ValueError, "'zzzqqq' is .* tokens .* only names of one token", facts=facts.replace(first, "zzzqqq")
    )
    wrong = facts.copy()
    answers = facts.loc[facts["attribute"] == "first", "answer"].unique()
    wrong.loc[0, "answer"] = next(answer for answer in answers if answer != facts["answer"][0])
    refused(ValueError, f"does not know the first of {first}: .*known_facts", facts=wrong)
    elsewhere = replace(sae, info={**sae.info, "hook_point": "blocks.0.hook_resid_post"})
    refused(MismatchError, "blocks.0.hook_resid_post", sae=elsewhere)
    refused(ValueError, "no template for the attribute 'second'", templates={"first": TEMPLATES["first"]})
    refused(ValueError, "{entity} once", templates=TEMPLATES | {"second": "an old one"})
    refused(TypeError, "one prompt per attribute", templates=TEMPLATES | {"second": [TEMPLATES["second"]]})
    refused(ValueError, "Isolation needs a second attribute", facts=facts[facts["attribute"] == "first"])
    refused(ValueError, "The second of .* is missing", facts=facts.drop(index=len(facts) - 1))
    gap = facts.copy()
    gap.loc[1, "answer"] = float("nan")
    refused(ValueError, "Every answer of the facts must be text, found nan in row 1", facts=gap)
    refused(ValueError, "Every entity .* found 7 in row 0", facts=facts.replace(first, 7))
    several = facts.replace({"answer": {facts["answer"][0]: "kingdom come"}})
    refused(ValueError, r"The first \(answer\) 'kingdom come' is .* only names of one token", facts=several)
    refused(ValueError, "given twice", facts=pd.concat([facts, facts[:1]]))
    refused(TypeError, "entity, attribute and answer", facts=facts[["entity", "answer"]])
    refused(ValueError, "There are no facts", facts=facts[:0])
    same = facts.assign(answer=facts["answer"].where(facts["attribute"] == "second", words[0]))
    refused(ValueError, "same first", facts=same)
    refused(ValueError, "meta-SAE of this dictionary", meta=meta, sae=at_hook_point(24, 5))
    refused(ValueError, "sizes", sizes=[0])
    transcoder = Transcoder(
        sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold, info={**sae.info, "target": HOOK_POINT}
    )
    refused(ValueError, "target|transcoder", sae=transcoder)


def test_pairs_differ_in_every_attribute():
    def prompts(*right):
        return Filled(torch.zeros(4, 3), 1, ["a", "b"], torch.tensor([1, 2]), torch.tensor(right))

    attributes = {"one": prompts(0, 0, 1, 1), "two": prompts(0, 1, 0, 1)}
    assert sorted(_pairs(attributes, 9, 0)) == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert _pairs(attributes, 2, 1) == _pairs(attributes, 9, 1)[:2]
    with pytest.raises(ValueError, match="No two entities differ in every attribute"):
        _pairs(attributes | {"three": prompts(0, 1, 1, 0)}, 9, 0)


def test_gpt2_takes_the_same_call(gpt2_folder, tmp_path, words):
    gpt2 = load_model(gpt2_folder)
    documents = [Document(text, "Sentences", f"sentence {i}") for i, text in enumerate(sentences(8))]
    rows = pack(documents, gpt2.tokenizer, context_length=16, n_tokens=32)
    place = "blocks.0.hook_resid_post"
    text = harvest(gpt2, rows, place, path=tmp_path / "store", dtype=torch.float32, progress=False)
    made = at_hook_point(24, 0)
    made = replace(made, info={**made.info, "hook_point": place})
    known = facts_of(gpt2, words)
    assert known_facts(gpt2, known, TEMPLATES)["known"].all()
    found = measure_edits(gpt2, made, known, TEMPLATES, text, sizes=[1], n_pairs=1, n_text=1)
    for row in found.frame[found.frame["method"] == PATCHING].itertuples():
        template, names = TEMPLATES[row.asked], found.candidates[row.asked]
        base, source = (tokens_of(gpt2, template, word) for word in (row.base, row.source))
        at = int((base != source)[0].nonzero())
        patched = capture(gpt2, source, place)[0, at]
        change = torch.zeros(base.shape[1], 1)
        change[at] = 1
        logits = logits_with_replacement(gpt2, base, place, lambda x, c=change, p=patched: x + c * (p - x))
        expected = logits[0, -1, [one(gpt2, name) for name in names]].softmax(0)
        place_of = found.frame.index[found.frame["asked"] == row.asked].get_loc(row.Index)
        torch.testing.assert_close(found.after[row.asked][place_of], expected, atol=2e-5, rtol=1e-3)
