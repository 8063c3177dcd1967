"""The bundled families themselves."""

import json
import math
import re
from pathlib import Path

import torch

from saekit.family import Family
from saekit.loading.names import BUNDLED, load_family
from saekit.series.bundling import MEMBERS, config
from saekit.series.tables import bundled_table


def test_the_bundle_is_what_its_table_says():
    table = bundled_table()
    assert table.groupby("kind").size().to_dict() == {kind: len(members) for kind, members in MEMBERS.items()}
    for kind, rows in table.groupby("kind"):
        family = load_family(kind)
        assert [(m.width, m.seed) for m in family] == list(zip(rows["width"], rows["seed"], strict=True))
        for member in family:
            assert member.hook_point == "blocks.12.hook_resid_post"
            torch.testing.assert_close(member.W_dec.norm(dim=1), torch.ones(member.width), rtol=1e-6, atol=0)
    assert (table["half_precision_fvu_change"].abs() < 1e-3).all()
    files = list(BUNDLED.glob("*/*/weights.safetensors"))
    assert max(file.stat().st_size for file in files) < 50e6
    assert sum(file.stat().st_size for file in files) < 120e6


def test_nothing_else_in_the_repository_is_large():
    root = Path(__file__).parents[2]
    large = [
        file
        for folder in ("docs", "figures", "notebooks", "saekit", "tests", "benchmarks")
        for file in (root / folder).rglob("*")
        if file.is_file() and file.stat().st_size > 2e6 and file.name != "weights.safetensors"
    ]
    assert not large


def test_bundled_members_do_not_match_index_by_index():
    family = load_family("relu")
    for small, large in [(pair.small, pair.large) for pair in family.comparisons()]:
        same = (small.W_dec @ large.W_dec.T).argmax(dim=1) == torch.arange(small.width)
        assert same.double().mean() < 0.02


def test_the_findings_show_the_table():
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    names = {"relu": "ReLU", "batchtopk": "BatchTopK"}
    for row in bundled_table().itertuples():
        cells = [
            names[row.kind],
            str(row.width),
            str(row.seed),
            f"{row.l0:.1f}",
            f"{row.fvu:.3f}",
            f"{row.ce_degradation:.3f}",
            f"{row.loss_recovered_zero:.1%}",
            f"{row.dead_fraction:.1%}",
            f"{row.tokens / 1e6:.1f}M",
            f"{row.distinct_tokens / 1e6:.1f}M",
            f"{row.steps:,}",
            "" if math.isnan(row.seed_overlap) else f"{row.seed_overlap:.0%}",
            f"{row.bytes / 1e6:.1f}",
        ]
        assert re.search(r"\| *" + r" *\| *".join(map(re.escape, cells)) + r" *\|", page), cells


def test_it_is_a_family_like_any_other(tmp_path):
    family = load_family("batchtopk")
    assert isinstance(family, Family)
    assert family.widths == [576, 1152, 2304, 4608, 9216]
    assert family.seeds(2304) == [0, 1, 2]


def test_the_recipe_is_that_of_the_bundled_members():
    """Settings as recorded in the package, whose folders and checkpoints must not change."""
    for kind in ("relu", "batchtopk"):
        for folder in sorted((BUNDLED / kind).iterdir()):
            training = json.loads((folder / "dictionary.json").read_text())["info"]["training"]
            width, seed = (int(part) for part in folder.name.split("-seed"))
            expected = config(kind, width, seed).describe()
            # Settings that came later are not in the record; their defaults are what they replaced.
            variant, recorded = expected.pop("variant"), training["variant"]
            assert {name: variant[name] for name in recorded} == recorded
            assert {name: training[name] for name in expected if name in training} == {
                name: value for name, value in expected.items() if name in training
            }
