"""The canonicity report of a small family: one page that needs nothing else, and its data."""

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from toy_edits import make_edits

import saekit
from saekit.agreement import MismatchError
from saekit.analysis import (
    family_uniqueness,
    group_insertion,
    insertion,
    match_latents,
    measure_uniqueness,
    stitch,
)
from saekit.analysis.meta.sae import Recipe
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.metrics import evaluate
from saekit.report.page import Section, Table, write_page
from saekit.report.report import _greatest_null, write_report
from saekit.wording import fixed, number, percent

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module

THETA = 0.6
QUICK = Recipe("quick", lr=3e-3, steps=30, batch=16, width=0.25)
CSVS = {
    "dictionaries",
    "unique_cosines",
    "unique_over_theta",
    "unique_recurrence",
    "unique_by_density",
    "unique",
    "complete_similarity",
    "complete_splitting",
    "splitting",
    "complete_roc",
    "insertion",
    "complete_groups",
    "complete_stitching_12_24",
    "stitching",
    "atomic_baselines",
    "baselines",
    "unique_seeds",
    "beside_baselines",
    "probing",
    "probing_table",
    "causes_circuits",
    "causes_circuits_table",
    "causes_effects",
    "causes_effects_table",
    "causes_edits",
    "causes_edits_table",
}


@pytest.fixture(scope="module")
def family(store):
    """Two widths that resemble each other, with a second seed of the wider one."""
    x = torch.cat([x for _, x in store.batches(4096)])
    centre, spread = x.mean(0), x.std()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, store.d_in, generator=generator)

    def member(width, seed):
        noise = torch.randn(width, store.d_in, generator=torch.Generator().manual_seed(width + seed))
        rows = torch.nn.functional.normalize(directions[:width] + (0.4 + 0.5 * seed) * noise, dim=1)
        encoder = rows.T / spread * 0.5
        info = {
            "kind": "relu",
            "seed": seed,
            "hook_point": store.hook_point,
            "model": "<b>tiny & random</b>/tiny-llama",
        }
        info |= {"model_weights": store.manifest["model"]["weights"], "model_processing": {}}
        bias = -centre @ encoder
        return Dictionary(encoder, bias, rows, centre, torch.full((width,), 0.3), info=info)

    return Family([member(12, 0), member(24, 0), member(24, 1)])


@pytest.fixture(scope="module")
def beside(family, store, model):
    """What a report takes in besides the family."""
    x = torch.randn(80, store.d_in, generator=torch.Generator().manual_seed(5))
    sets = [saekit.LastTokens(f"set {i}", x, x[:, i] > 0, kept_out=i == 0) for i in range(3)]
    texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    pairs = saekit.Prompts.from_texts(
        model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2, name="<i>toy"
    )
    members = {f"width {width}": family[width] for width in family.widths}
    edits = replace(make_edits(), dictionary=family[24].identity)
    return {
        "effects": [saekit.measure_node_effects(model, family[24], pairs)],
        "circuits": [saekit.compare_circuits(model, members, pairs, sizes=[1, 3], random_sets=2, target=0.5)],
        "edits": [edits],
        "baselines": [saekit.random_at_equal_l0(family[24], store), saekit.permuted_decoder(family[12])],
        "probing": saekit.probe([family[12], family[24]], sets, ks=[1, 2]),
    }


@pytest.fixture(scope="module")
def folder(family, store, model, beside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page = write_report(family, store, folder=folder, model=model, theta=THETA, k=2, recipe=QUICK, **beside)
    assert page == folder / "index.html"
    return folder


class Page(HTMLParser):
    """Tags, what they refer to, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else(folder):
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert not page.open, "every tag is closed"
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.references
    assert all(re.match(r"#[a-z-]+$|data:image/svg\+xml;base64,", reference) for reference in page.references)
    anchors = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert (
        anchors
        == {"unique", "complete", "atomic", "causes"}
        == anchors & set(re.findall(r'id="([a-z-]+)"', text))
    )
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|@import|url\(|nan\b|/(home|root|tmp|work|Users)/", text)
    assert page.tags.count("img") == page.tags.count("figure") == 14


def test_everything_on_the_page_is_escaped(folder):
    text = (folder / "index.html").read_text()
    assert "<b>tiny & random</b>" not in text
    assert "&lt;b&gt;tiny &amp; random&lt;/b&gt;" in text


def test_the_data_lie_beside_the_page(folder):
    record = json.loads((folder / "report.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["files"], "report.json"}
    assert set(record["files"]) == {"index.html", *(f"{name}.csv" for name in CSVS)}
    text = (folder / "index.html").read_text()
    for name, digest in record["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        if name.endswith(".csv"):
            assert f"<code>{name}</code>" in text
            with open(folder / name, newline="") as file:
                rows = list(csv.reader(file))
            assert len(rows) > 1
            assert {len(row) for row in rows} == {len(rows[0])}
    assert record["settings"] == {
        "theta": THETA, "k": 2, "recipe": "quick", "held_out_share": 0.1, "ce_rows": 16
    }  # fmt: skip
    assert {made["what"] for made in record["inputs"].values()} >= {"relu 12 (seed 0)", "relu 24 (seed 1)"}


def test_it_says_what_the_analyses_say(folder, family, store):
    record = json.loads((folder / "report.json").read_text())
    unique = family_uniqueness(family, theta=THETA, activations=store)
    shares = unique.summary["share_shared"]
    assert record["numbers"]["Unique"]["share_shared"] == shares
    share = f"{100 * shares['24, other seed']['measured']:.1f}%"
    assert f"Another seed finds {share} of the latents of width 24 again" in record["says"]["Unique"]
    nulls = {
        name: max(share for null, share in found.items() if null != "measured")
        for name, found in shares.items()
    }
    said = record["says"]["Unique"]
    for name in ("24, other seed", "12 → 24"):
        assert f"(without structure at most {100 * nulls[name]:.1f}%)" in said.replace(f"{THETA:g}; ", "(")
    assert "median of the first 100,000 tokens" in record["says"]["Measurements"]
    table = pd.read_csv(folder / "unique.csv")
    assert table["note"].dropna().tolist() == ["no second seed"]
    page = Page((folder / "index.html").read_text())
    said = "".join(page.text)
    assert f"(without structure: {100 * nulls['24, other seed']:.1f}%)" in said
    assert all(sentence in said for sentence in record["says"].values())
    for measured in record["numbers"]["Measurements"]["dictionaries"]:
        assert measured["dictionary"] in page.text


def test_each_dictionary_encodes_the_store_at_most_twice(family, store, tmp_path, monkeypatch):
    encoded = Counter()
    encode = Dictionary.encode_sparse

    def counted(dictionary, x):
        encoded[dictionary.name] += len(x)
        return encode(dictionary, x)

    monkeypatch.setattr(Dictionary, "encode_sparse", counted)
    write_report(family, store, folder=tmp_path, theta=THETA, k=2, recipe=QUICK)
    n = len(store.positions)
    # Groups, which need to know what helps alone, are inserted in a second pass; not between seeds.
    assert [encoded[member.name] for member in family] == [2 * n, 2 * n, n]


def test_its_numbers_are_those_of_the_analyses_one_by_one(folder, family, store):
    """Exactly: a shared pass adds up what each would add up alone."""
    numbers = json.loads((folder / "report.json").read_text())["numbers"]
    complete, options = numbers["Complete"], {"theta": THETA}
    for c in family.comparisons():
        alone = insertion(c.small, c.large, store, **options)
        assert_same(complete["insertion"][c.label], alone.summary)
        assert_same(complete["stitching"][c.label], stitch(c.small, c.large, store, **options).summary)
        if not c.null:
            groups = group_insertion(c.small, c.large, alone, store)
            assert_same(complete["groups"][c.label], groups.summary)
    for member, measured in zip(family, numbers["Measurements"]["dictionaries"], strict=True):
        summary = evaluate(member, store).summary
        assert_same({name: measured[name] for name in summary}, summary)


def assert_same(found, summary):
    """The same numbers, of which JSON has no NaN."""
    assert found == json.loads(json.dumps(summary).replace("NaN", "null"))


def test_a_null_is_that_of_the_comparison_itself():
    rows = [("8, other seed", "", 0.9), ("8, other seed", "a", 0.1), ("8, other seed", "b", 0.2)]
    rows += [("8 → 16", "", 0.8), ("8 → 16", "a", 0.7), ("8 → 16", "b", 0.3)]
    table = pd.DataFrame(rows, columns=["comparison", "null", "share_shared"])
    result = SimpleNamespace(table=table)
    assert _greatest_null(result, table[:1]) == 0.2
    assert _greatest_null(result, table[3:4]) == 0.7


def test_baselines_and_probes_stand_beside_the_family(folder, family, store, beside):
    record = json.loads((folder / "report.json").read_text())
    table = pd.read_csv(folder / "beside_baselines.csv").set_index("kind")
    assert table["width"].tolist() == [12, 12, 24, 24]
    random = beside["baselines"][0]
    row = table.loc["relu-random-at-equal-l0"]
    assert row["fvu"] == pytest.approx(evaluate(random, store).fvu)
    alone = insertion(family[12], random, store, theta=THETA).summary
    assert row["share_novel_gain"] == pytest.approx(alone["share_novel_gain"])
    found = match_latents(random, family.get(24, 1), theta=THETA).summary
    assert row["share_shared"] == pytest.approx(found["share_shared"])
    permuted = table.loc["relu-permuted-decoder"]
    trained = table[table["width"] == 12].iloc[0]
    assert permuted["share_shared"] == trained["share_shared"]
    assert "2 baselines stand beside the dictionaries of width 12 and 24" in record["says"]["Baselines"]
    assert "FVU" in record["says"]["Baselines"].partition("None does better in: ")[2]
    better = row["share_shared"] > table.loc["relu"].query("width == 24")["share_shared"].item()
    assert ("found in another run" in record["says"]["Baselines"].partition("None does")[0]) == better
    auc = beside["probing"].table.set_index(["dictionary", "k", "kept_out"])["auc"]
    assert f"{number(auc[family[24].name, 1, True])} ({family[24].name})" in record["says"]["Probing"]
    seeds = pd.read_csv(folder / "unique_seeds.csv")
    expected = measure_uniqueness(family[24], family.get(24, 1), theta=THETA).summary
    assert seeds["pw_mcc_signed"].tolist() == pytest.approx([expected["pw_mcc_signed"]])
    assert seeds["differ"].tolist() == ["unknown"]


def test_it_says_whether_latents_matter_to_the_model(folder, beside):
    record = json.loads((folder / "report.json").read_text())
    says, text = record["says"]["Causes"], (folder / "index.html").read_text()
    assert '<a class="card" href="#causes">' in text
    compared, effects, edits = (beside[name][0] for name in ("circuits", "effects", "edits"))

    table = pd.read_csv(folder / "causes_circuits_table.csv").set_index(["dictionary", "errors"])
    for key, circuit in compared.circuits.items():
        needed = circuit.nodes_for(0.5)
        assert table.loc[key, "nodes"] == needed
        at = circuit.frame[circuit.frame["n_nodes"] >= min(needed, len(circuit.nodes))].iloc[0]
        for column in ("faithfulness", "completeness_high", "random_faithfulness_low"):
            assert table.loc[key, column] == pytest.approx(at[column])
    row = table.loc[("width 24", "nodes")]
    assert (
        f"{row['nodes']:.0f} of {row['of']} nodes of width 24 restore {percent(row['faithfulness'])}" in says
    )
    assert f"as many random nodes restore {percent(row['random_faithfulness'])}" in says

    found = pd.read_csv(folder / "causes_effects_table.csv").set_index(["kind", "method"])
    known = effects.agreement.set_index(["kind", "method"]).loc[("latent", "relp")]
    assert found.loc[("latent", "RelP"), "correlation"] == pytest.approx(known["correlation"])
    assert found.loc[("latent", "RelP"), "correlation_high"] == pytest.approx(known["high"])
    sums = effects.by_kind.set_index("kind")
    assert found.loc[("error", "RelP"), "sum"] == pytest.approx(sums.loc["error", "relp"])
    best = found.loc["latent", "correlation"].max()
    assert f"to {fixed(best)} (" in says

    methods = edits.table.set_index(["method", "n"])
    swap, random = (methods.loc[(name, 2)] for name in ("latents", "random direction"))
    assert f"Swapping 2 latents of relu 24 (seed 0) changes {percent(swap['cause'])} of" in says
    assert f"a random direction as long {percent(random['cause'])}" in says
    clear = methods.index[methods["disentangle_low"] > 0.5]
    assert ("no method separates one fact" in says) == (not len(clear))
    assert all(f"{name} ({n})" in says for name, n in clear)


def test_results_on_causes_that_are_not_the_family_s_are_refused_at_once(family, store, beside, tmp_path):
    with pytest.raises(TypeError, match="effects must be a sequence of NodeEffects, found NodeEffects"):
        write_report(family, store, folder=tmp_path, effects=beside["effects"][0])
    with pytest.raises(TypeError, match="circuits must be a sequence of CircuitComparison, found Edits"):
        write_report(family, store, folder=tmp_path, circuits=beside["edits"])
    with pytest.raises(ValueError, match=r"The edits are of relu 24 \(seed 0\), none of which is in"):
        write_report(family, store, folder=tmp_path, edits=[make_edits()])
    with pytest.raises(ValueError, match=r"The circuits are of relu 12 \(seed 0\) and relu 24"):
        write_report(
            Family([family.get(24, 1), family[12].gather(range(5))]),
            store,
            folder=tmp_path,
            circuits=beside["circuits"],
        )
    assert not [*tmp_path.iterdir()]


def test_what_does_not_belong_beside_the_family_is_refused_at_once(family, store, beside, tmp_path):
    with pytest.raises(ValueError, match=r"width of the family, 12 and 24; .* has 5"):
        write_report(family, store, folder=tmp_path, baselines=[family[12].gather(range(5))])
    for wrong, given in (
        (r"baselines\[0\] must be a Dictionary, found int", {"baselines": [5]}),
        ("baselines must be a list of dictionaries, found Dictionary", {"baselines": family[12]}),
        ("recipe must be one of", {"recipe": 5}),
    ):
        with pytest.raises((TypeError, ValueError), match=wrong):
            write_report(family, store, folder=tmp_path, **given)
    with pytest.raises(TypeError, match=r"must be a Probing, found DataFrame"):
        write_report(family, store, folder=tmp_path, probing=beside["probing"].frame)
    strange = replace(beside["probing"], frame=beside["probing"].frame.assign(dictionary="other"))
    with pytest.raises(ValueError, match=r"was probed; the probes are of other"):
        write_report(family, store, folder=tmp_path, probing=strange)
    assert not [*tmp_path.iterdir()]


def test_the_same_inputs_give_the_same_bytes(folder, family, store, model, beside, tmp_path):
    write_report(family, store, folder=tmp_path, model=model, theta=THETA, k=2, recipe=QUICK, **beside)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_family_without_second_seeds_says_so(family, store, tmp_path):
    alone = Family([family[width] for width in family.widths])
    write_report(alone, store, folder=tmp_path, theta=THETA, k=2, recipe=QUICK)
    record = json.loads((tmp_path / "report.json").read_text())
    assert "No width has a second seed" in record["says"]["Unique"]
    assert "no second seed to compare with" in record["says"]["Complete"]
    assert "unique_by_density.csv" not in record["files"]
    assert "ce_degradation" not in pd.read_csv(tmp_path / "dictionaries.csv")


def test_what_cannot_be_reported_is_refused_at_once(family, store, tmp_path):
    with pytest.raises(ValueError, match=r"at least two widths, found \[12\]"):
        write_report(Family([family[12]]), store, folder=tmp_path)
    one = family[12]
    topk = Family(Dictionary(**member.tensors(), k=2, info=member.info) for member in (one, family[24]))
    with pytest.raises(ValueError, match="as_jumprelu"):
        write_report(topk, store, folder=tmp_path)
    other = Family(
        Dictionary(torch.ones(3, n), torch.zeros(n), torch.ones(n, 3), torch.zeros(3), torch.zeros(n))
        for n in (4, 8)
    )
    with pytest.raises(ValueError, match="the first has d_in 3, the second 16"):
        write_report(other, store, folder=tmp_path)
    for options, message in (
        ({"theta": 1.5}, "theta must be"),
        ({"k": 0}, "k must be"),
        ({"k": 10_000}, "k must be"),
        ({"k": 3}, "at most the number of meta-latents, found 3: the recipe lesswrong gives the 24 .* 2"),
        ({"recipe": "mine"}, "recipe must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(family, store, folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Nothing can be written to the folder"):
        write_report(family, store, folder=tmp_path / "file" / "report", theta=THETA, k=2, recipe=QUICK)


def test_a_report_on_the_text_of_training_says_so(family, store, tmp_path):
    small, *others = family
    info = {**small.info, "training": {"activations": store.content_hash}}
    trained = Family([replace(small, info=info), *others])
    page = write_report(trained, store, folder=tmp_path, theta=THETA, k=2, recipe=QUICK)
    said = json.loads((page.parent / "report.json").read_text())["says"]["Measurements"]
    assert "tokens that 1 of them were trained on" in said
    assert "held-out" not in said


def test_a_family_of_another_place_is_refused(family, store, tmp_path):
    elsewhere = Family(
        replace(member, info={**member.info, "hook_point": "blocks.0.attn.hook_z"}) for member in family
    )
    with pytest.raises(MismatchError, match=r"blocks\.0\.attn\.hook_z"):
        write_report(elsewhere, store, folder=tmp_path / "new", theta=THETA, k=2, recipe=QUICK)
    assert not (tmp_path / "new").exists()
    with pytest.warns(UserWarning, match=r"blocks\.0\.attn\.hook_z"):
        page = write_report(
            elsewhere, store, folder=tmp_path / "new", theta=THETA, k=2, recipe=QUICK, allow_mismatch=True
        )
    assert page.exists()


def test_a_page_escapes_names_headings_and_values(tmp_path):
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame({"name": [evil], "share_x": [0.5], "n": [1234], "empty": [float("nan")]})
    parts = [Table("data", evil, frame, {"name": evil, "share_x": "share", "n": "n", "empty": "empty"})]
    page = write_page(
        tmp_path,
        [Section(evil, evil, evil, parts, {"x": float("nan")}, value=evil, unit=evil)],
        title=evil,
        subtitle=evil,
        settings={"evil": evil},
        inputs={evil: {"what": evil, "hash": "0" * 64}},
    )
    text = page.read_text()
    assert "<script" not in text
    shown = ["50.0%", "1,234", "\N{EN DASH}"]
    assert [cell for cell in Page(text).text if cell in shown] == shown
    assert json.loads((tmp_path / "report.json").read_text())["numbers"][evil] == {"x": None}
