import pytest
import torch
import torch.nn.functional as F
from dictionaries import make

from saekit.analysis import build_frankenstein, matched_l0
from saekit.family import Family
from saekit.metrics import evaluate


def activations():
    return torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * 2 + 1


@pytest.fixture(scope="module")
def family():
    return Family([make(12, width, seed=0) for width in (10, 30, 60)])


def test_it_gathers_what_is_novel_to_all_before(family):
    theta = 0.6
    result = build_frankenstein(family, activations(), theta=theta)
    rows = [("10", i) for i in range(10)]
    directions = family[10].W_dec
    for width in (30, 60):
        new = [
            i
            for i in range(width)
            if max(F.cosine_similarity(family[width].W_dec[i][None], directions)) < theta
        ]
        rows += [(str(width), i) for i in new]
        directions = torch.cat([directions, family[width].W_dec[new]])
    last = result.dictionaries[-1]
    assert torch.equal(last.W_dec, directions)
    assert torch.equal(last.b_dec, family[10].b_dec)
    for place, (width, i) in enumerate(rows):
        source = family[int(width)]
        assert torch.equal(last.W_enc[:, place], source.W_enc[:, i])
        assert last.b_enc[place] == source.b_enc[i]
        assert last.threshold[place] == source.threshold[i]
    assert 10 < last.width < 100
    assert last.kind == "frankenstein"


def test_the_frame_is_what_evaluate_says(family):
    x = activations()
    result = build_frankenstein(family, x, theta=0.6)
    frame = result.frame
    assert frame["kind"].tolist() == ["trained"] * 3 + ["frankenstein"] * 3
    members = [*(family[width] for width in family.widths), *result.dictionaries]
    target = evaluate(family[10], x).l0
    for row, member in zip(frame.itertuples(), members, strict=True):
        found, matched = evaluate(member, x), evaluate(matched_l0(member, x, target).dictionary, x)
        assert (row.width, row.fvu, row.l0) == (member.width, found.fvu, found.l0)
        assert (row.fvu_matched, row.l0_matched) == (matched.fvu, matched.l0)
        assert row.l0_matched <= target
    gathered = frame.query("kind == 'frankenstein'")
    assert gathered["n_novel"].sum() == gathered["width"].iloc[-1]
    assert result.summary["width"] == result.dictionaries[-1].width


def test_one_width_is_refused(family):
    with pytest.raises(ValueError, match="at least two widths"):
        build_frankenstein(Family([family[10]]), activations())
