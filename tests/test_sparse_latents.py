import pytest
import torch

from saekit.sparse import SparseLatents


@pytest.fixture
def dense():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(9, 31, generator=generator, dtype=torch.float64) + 0.1
    values[torch.rand(9, 31, generator=generator) < 0.8] = 0
    values[4] = 0  # a row without active latents
    values[:, 7] = 0  # a dead latent
    return values


def test_round_trip_and_counts(dense):
    sparse = SparseLatents.from_mask(dense > 0, dense)
    assert torch.equal(sparse.dense(), dense)
    assert torch.equal(sparse.counts, (dense > 0).sum(1))
    assert len(sparse) == 9


def test_matmul_is_the_dense_product(dense):
    matrix = torch.randn(31, 5, dtype=torch.float64)
    sparse = SparseLatents.from_mask(dense > 0, dense)
    torch.testing.assert_close(sparse.matmul(matrix), dense @ matrix)


def test_transpose_lists_entries_by_latent(dense):
    transposed = SparseLatents.from_mask(dense > 0, dense).transpose()
    assert torch.equal(transposed.dense(), dense.T)
    for latent in range(31):
        rows = transposed.indices[transposed.offsets[latent] : transposed.offsets[latent + 1]]
        assert rows.tolist() == dense[:, latent].nonzero().flatten().tolist()


def test_concatenate_stacks_rows(dense):
    parts = [SparseLatents.from_mask(part > 0, part) for part in dense.split([4, 0, 5])]
    assert torch.equal(SparseLatents.concatenate(parts).dense(), dense)
    assert SparseLatents.empty(31, dense).dense().shape == (0, 31)


def test_inner_products_are_entries_of_the_dense_product(dense):
    sparse = SparseLatents.from_mask(dense > 0, dense)
    x, matrix = torch.randn(9, 5, dtype=torch.float64), torch.randn(31, 5, dtype=torch.float64)
    torch.testing.assert_close(sparse.inner_products(x, matrix), (x @ matrix.T)[dense > 0])


def test_entries_are_selected(dense):
    sparse = SparseLatents.from_mask(dense > 0, dense)
    assert torch.equal(sparse.where(sparse.values > 0.6).dense(), torch.where(dense > 0.6, dense, 0.0))
    assert len(sparse.where(sparse.values > 5).values) == 0


@pytest.mark.parametrize("k", [1, 3, 40])
def test_kth_largest_of_each_row(dense, k):
    found = SparseLatents.from_mask(dense > 0, dense).kth_largest(k)
    for row, value in zip(dense, found, strict=True):
        active = row[row > 0].sort(descending=True).values
        assert value == (active[k - 1] if len(active) >= k else -torch.inf)
