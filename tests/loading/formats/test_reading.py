"""Every file that a library wrote is, in saekit, the function that the library computes."""

import pytest
import torch
from loading.formats.cases import CASES, OLDER, REFUSED, load, named

from saekit.dictionary import Transcoder
from saekit.loading.names import load_sae, open_sae

BAND = 1e-5  # of the norm of a row: what rounding in single precision may do


def relative(found, expected):
    return (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-6)


@pytest.mark.parametrize("case", [*CASES, *OLDER], ids=str)
def test_latents_and_reconstructions_are_the_librarys_own(case):
    dictionary, expected = load(case), case.expected()
    x, latents = expected["x"], expected["latents"] * expected["decoder_norm"]
    found = dictionary.encode(x)
    size = latents.norm(dim=1, keepdim=True).clamp(min=1)
    differs = (found > 0) != (latents > 0)
    # Where a latent is on here and off there, rounding decides: it is that close to its threshold.
    h = dictionary.pre_activations(x)
    edge = (h - dictionary.threshold).abs() <= BAND * size
    if dictionary.k is not None:
        rank = h if dictionary.rank_scale is None else h * dictionary.rank_scale
        last = rank.topk(dictionary.k, dim=1).values[:, -1:]
        edge |= (rank - last).abs() <= BAND * rank.norm(dim=1, keepdim=True)
    assert (edge | ~differs).all()
    assert not differs.all(dim=1).any()
    same = ~differs.any(dim=1)
    assert same.sum() >= len(x) - 1  # a threshold from one batch drops the one entry that it is
    assert relative(found, latents)[same].max() <= BAND
    assert relative(dictionary.reconstruct(x), expected["x_hat"])[same].max() <= BAND
    # The sparse path, and one row on its own.
    torch.testing.assert_close(dictionary.encode_sparse(x).dense(), found)
    torch.testing.assert_close(dictionary.encode(x[3:4])[0], found[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_read_survives_saving(case, tmp_path):
    dictionary = load(case)
    again = load_sae(dictionary.save(tmp_path))
    assert again.content_hash == dictionary.content_hash
    x = case.expected()["x"]
    assert torch.equal(again.reconstruct(x), dictionary.reconstruct(x))


REASONS = {
    "groupmax": "GroupMax",
    "unset": r"without an inference threshold.*as_jumprelu\(saekit.open_sae",
    "abstopk": "architecture must be one of",
    "matching_pursuit": "architecture must be one of",
    "temporal": "architecture must be one of",
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_the_same_function_is_refused_with_a_reason(case):
    reason = next(REASONS[part] for part in REASONS if part in case.name)
    with pytest.raises(ValueError, match=reason) as caught:
        load_sae(case.source)
    assert str(case.folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "info"),
    [
        (
            "saelens/standard",
            {
                "kind": "relu",
                "model": "gpt2",
                "hook_point": "blocks.8.hook_resid_pre",
                "model_processing": {"center_writing_weights": True},
                "neuronpedia_id": "gpt2-small/8-toy",
                "context_length": 128,
                "prepend_bos": True,
                "dataset": "Skylion007/openwebtext",
                "format": "SAELens",
            },
        ),
        ("saelens/legacy_topk", {"kind": "topk"}),
        ("saelens/standard_hook_z", {"hook_point": "blocks.3.attn.hook_z"}),
        ("dictionary_learning/jumprelu", {"kind": "jumprelu", "format": "dictionary_learning"}),
        (
            "gemma_scope/gemma-scope-2b-pt-res",
            {"kind": "jumprelu", "hook_point": "blocks.12.hook_resid_post", "expected_l0": 41},
        ),
        ("sparsify/topk", {"kind": "topk", "hf_hook_point": "layers.5.mlp", "target": None}),
        (
            "sparsify/transcode_skip",
            {"hook_point": "blocks.5.mlp.hook_in", "target": "blocks.5.hook_mlp_out"},
        ),
        ("sparsify/skip_connection", {"hook_point": None, "target": None}),
        (
            "saelens/jumprelu_skip_transcoder",
            {
                "kind": "jumprelu",
                "hook_point": "blocks.8.ln2.hook_normalized",
                "target": "blocks.8.hook_mlp_out",
            },
        ),
        (
            "gemma_scope/gemma-scope-2b-pt-transcoders",
            {
                "kind": "jumprelu",
                "hook_point": "blocks.12.ln2.hook_normalized",
                "target": "blocks.12.hook_mlp_out",
                "expected_l0": 41,
            },
        ),
        (
            "gemma_scope_2/transcoder_affine",
            {
                "hf_hook_point": "model.layers.12.pre_feedforward_layernorm.output",
                "hf_target": "model.layers.12.post_feedforward_layernorm.output",
            },
        ),
        ("openai/topk", {"kind": "topk"}),
        ("batchtopk/batchtopk", {"kind": "batchtopk", "seed": 49, "hook_point": "blocks.8.hook_resid_pre"}),
        ("batchtopk/meta_sae", {"kind": "batchtopk"}),
    ],
)
def test_what_the_files_say_is_kept(name, info):
    found = open_sae(named(name).source).info
    assert {key: found.get(key) for key in info} == info


def test_transcoders_are_read_as_transcoders_and_nothing_else_is():
    """Also those of a width and dimension in which the tensors alone would not tell."""
    for case in CASES:
        expected = "transcod" in case.name or "skip_connection" in case.name
        assert open_sae(case.source).transcoder == expected, case.name
        dictionary = load(case)
        assert isinstance(dictionary, Transcoder) == expected, case.name
        if expected:
            assert (dictionary.W_skip is not None) == ("skip" in case.name or "affine" in case.name)


def test_opening_reads_no_matrix():
    """Tensors are views of files, which cost nothing before they are folded."""
    for name in ("saelens/standard", "gemma_scope/gemma-scope-2b-pt-res", "dictionary_learning/topk"):
        sae = open_sae(named(name).source)
        assert sae.W_enc.shape == (12, 40)
        assert sae.W_dec.shape == (40, 12)


def test_a_few_latents_are_those_of_the_whole():
    case = named("saelens/jumprelu")
    some, whole = load_sae(case.source, latents=[5, 2, 30]), load_sae(case.source)
    torch.testing.assert_close(some.W_dec, whole.W_dec[[5, 2, 30]])
    torch.testing.assert_close(some.threshold, whole.threshold[[5, 2, 30]])
