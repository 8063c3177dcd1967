import torch

from saekit.training.variants import TopK


def test_the_k_largest_positive_latents_of_each_row_are_active():
    generator = torch.Generator().manual_seed(0)
    variant = TopK(k=3)
    sae = variant.initialise(width=20, d_in=20, seed=0)
    sae.W_enc = torch.eye(20)
    h = torch.randn(12, 20, generator=generator)
    h[5] = -1  # no positive one
    h[6] = torch.cat([torch.tensor([2.0, 1.0]), -torch.ones(18)])  # fewer than k
    latents = variant.select(sae, h)
    for row in range(12):
        expected = [
            i for i in sorted(range(20), key=lambda i, row=row: -h[row, i].item())[:3] if h[row, i] > 0
        ]
        assert latents.dense()[row].nonzero().flatten().tolist() == sorted(expected)
    assert torch.equal(latents.dense()[latents.dense() > 0], h[latents.dense() > 0])
    assert latents.counts[5] == 0
    assert latents.counts[6] == 2


def test_it_folds_to_a_dictionary_whose_latents_compete():
    variant = TopK(k=3)
    assert variant.folding(variant.initialise(width=20, d_in=4, seed=0))["k"] == 3
