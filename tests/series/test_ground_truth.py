"""The grids of toy worlds, shrunk: they resume, and the rows of their tables are counted by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

import saekit
from saekit.recovery import measure_recovery
from saekit.series import ground_truth, tables, truth_grid
from saekit.series.truth_grid import Grid
from saekit.synthetic import World, hedging_tree, nabeshima_tree, shapes_and_colours, synth_sae_bench

GRIDS = {
    "nabeshima_tree": Grid(nabeshima_tree, (4, 8), (1, 1), steps=15),
    "shapes_and_colours": Grid(lambda: shapes_and_colours(objects=1, alone=0.2), (6, 9), (2, 1), steps=15),
}
HEDGING = {0.3: Grid(lambda: hedging_tree(child=0.3), (2, 4), (1, 1), steps=15)}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(ground_truth, "GRIDS", GRIDS)
    monkeypatch.setattr(ground_truth, "HEDGING_GRIDS", HEDGING)
    monkeypatch.setattr(ground_truth, "N_SAMPLES", 1500)
    monkeypatch.setattr(ground_truth, "META", ground_truth.Recipe("toy", lr=1e-3, steps=3, batch=1e6))
    for module in (ground_truth, truth_grid):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    for module in (ground_truth, tables):
        monkeypatch.setattr(module, "BUNDLED", tmp_path)
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.slow
def test_tables_are_written_and_training_resumes(tiny, monkeypatch):
    ground_truth.write_truth(progress=False)
    names = ("recovery", "novelty", "parts", "hedging", "hedged_by_hand")
    written = {name: saekit.truth_table(name) for name in names}
    saes = written["recovery"].query("kind in ['relu', 'batchtopk', 'matryoshka']")
    assert len(saes) == 2 * 3 * 2 * 2  # worlds, kinds, widths, seeds
    assert saes["mcc"].between(0, 1).all()
    assert len(written["novelty"].query("by == 'all'")) == 2 * 3 * 2  # worlds, kinds, seeds
    parts = written["parts"].set_index("kind")
    assert len(parts) == 2 * (3 * 2 * 2 + 3 * 2)  # and three controls of each world, per seed
    assert (parts.loc["all but the parts", ["parts", "others"]] == [0, 1]).all(axis=None)
    assert (parts.loc["all features", ["parts", "others"]] == [1, 1]).all(axis=None)
    assert parts["parts_meta"].notna().sum() == 2 * (3 * 2 + 3 * 2)
    assert len(written["hedging"]) == 3 * 2 * 2  # kinds, seeds, larger dictionaries
    monkeypatch.setattr(truth_grid, "train", None)  # nothing is trained again
    ground_truth.write_truth(progress=False)
    for name, table in written.items():
        pd.testing.assert_frame_equal(saekit.truth_table(name), table)


@pytest.mark.slow
def test_the_benchmark_resumes_where_it_was_interrupted(tiny, monkeypatch):
    world = synth_sae_bench(features=60, d_in=16, roots=4)
    monkeypatch.setattr(ground_truth, "synth_sae_bench", lambda: world)
    for name, value in {"BENCH_WIDTH": 32, "BENCH_L0": 3, "BENCH_BATCH": 64}.items():
        monkeypatch.setattr(truth_grid, name, value)
    whole = ground_truth.write_bench(130 * 64 + 5, progress=False)
    assert whole["kind"].tolist() == ["relu", "batchtopk", "matryoshka"]
    assert (whole["samples"] == 130 * 64).all()
    pd.testing.assert_frame_equal(
        saekit.truth_table("bench"), whole.drop(columns="learned"), check_dtype=False, rtol=1e-5
    )

    def interrupted(self, *settings, start_step=0, **more):
        for i, batch in enumerate(shuffled(self, *settings, start_step=start_step, **more)):
            if i == 110:
                raise KeyboardInterrupt
            yield batch

    shuffled = World.shuffled
    monkeypatch.setenv("SAEKIT_HOME", str(tiny / "another"))
    monkeypatch.setattr(World, "shuffled", interrupted)
    for _ in range(3):  # each kind is interrupted once
        with pytest.raises(KeyboardInterrupt):
            ground_truth.write_bench(130 * 64, progress=False)
    pd.testing.assert_frame_equal(ground_truth.write_bench(130 * 64, progress=False), whole)


def test_what_is_new_is_counted_latent_by_latent():
    """Dictionaries made of true directions: the small one has some features, the large one others too."""
    world = nabeshima_tree(d_in=50, deviation=0.2)
    grid = Grid(lambda: world, (6, 10), (1, 1))
    random = torch.nn.functional.normalize(
        torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), dim=1
    )
    rows = {6: torch.cat([world.directions[[0, 4, 8, 12, 13]], random[:1]])}
    rows[10] = torch.cat([world.directions[[0, 1, 4, 5, 8, 12, 13, 14, 15]], random[1:]])
    found = {
        ("relu", width, seed): ground_truth._made(rows[width], world) for width in rows for seed in range(3)
    }
    table = ground_truth.novelty_rows("a tree", grid, found).query("seed == 0").set_index(["by", "group"])
    whole = table.loc[("all", "all")]
    # 1, 5, 14 and 15 are new; the random direction is novel but no true feature's
    assert whole[["n", "n_new"]].tolist() == [10, 4]
    assert whole["recall_cos"] == 1
    assert whole["precision_cos"] == pytest.approx(4 / 5)
    assert table.loc[("depth", "1"), ["n", "n_new"]].tolist()[1] == 2
    assert table.loc[("rate", "0.01 to 0.03"), "n_new"] == 2  # children fire on 0.03 of the samples
    assert table.loc[("rate", "0.03 to 0.1"), "n_new"] == 2  # features without a family on 0.05
    assert whole["n_split"] == 2


def test_groups_of_features_by_rate_are_all_of_them_once():
    for grid in truth_grid.GRIDS.values():
        world = grid.make()
        groups = list(ground_truth.feature_groups(world))
        for by in ("depth", "rate"):
            times = torch.stack([features for other, _, features in groups if other == by]).sum(0)
            assert (times == (1 if by == "depth" else (world.rates() > 0).long())).all()


class TestBundledTables:
    def test_every_grid_is_whole(self):
        recovery = saekit.truth_table("recovery")
        saes = recovery[recovery["kind"].isin(list(truth_grid.kinds(1)))]
        for name, grid in truth_grid.GRIDS.items():
            part = saes[saes["world"] == name]
            expected = [(k, w, s) for w in grid.widths for k in truth_grid.kinds(1) for s in truth_grid.SEEDS]
            assert list(part[["kind", "width", "seed"]].itertuples(index=False, name=None)) == expected

    def test_scores_of_a_dictionary_are_those_of_the_table(self):
        """scikit-learn's PCA, which needs no training, is measured again."""
        world = truth_grid.GRIDS["nabeshima_tree"].make()
        x = world.sample(ground_truth.N_SAMPLES).x[:2000].double()
        rows = torch.from_numpy(np.linalg.svd((x - x.mean(0)).numpy())[2][:5]).float()
        mcc = measure_recovery(rows, world.directions).mcc
        table = saekit.truth_table("recovery").set_index(["world", "kind", "width"])
        assert table.loc[("nabeshima_tree", "pca", 5), "mcc"].item() == pytest.approx(mcc, abs=1e-3)

    def test_parts_of_an_overshoot_add_up(self):
        for name in ("family", "hedging", "hedged_by_hand"):
            table = saekit.truth_table(name)
            parts = table[["ideal", "carried", "interaction"]]
            rounding = 1e-5 * parts.abs().max(axis=1) + 1e-9
            assert ((parts.sum(axis=1) - table["change"]).abs() <= rounding).all(), name

    def test_the_benchmark_is_the_published_world_at_its_sparsity(self):
        bench = saekit.truth_table("bench")
        assert bench["kind"].tolist() == list(truth_grid.kinds(1))
        assert bench["samples"].nunique() == 1
        assert bench["true_l0"].between(33.5, 35).all()  # published: about 34
        assert bench["l0"].between(15, 45).all()  # the published range
        assert bench[["mcc", "f1", "precision", "recall", "uniqueness"]].stack().between(0, 1).all()

    def test_no_other_table(self):
        with pytest.raises(ValueError, match="name must be"):
            saekit.truth_table("everything")
