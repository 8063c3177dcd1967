"""Seeds that share initialisation or order of the data, small: four runs on a tiny store."""

from types import SimpleNamespace

import pytest

from saekit import cli
from saekit.analysis.uniqueness.matching import match_latents
from saekit.dictionary import Dictionary
from saekit.series import seeds_and_order
from saekit.series import tables as series_tables
from saekit.training import side_by_side

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module


@pytest.fixture(scope="module")
def world(store, tmp_path_factory):
    """The table that the command wrote, and the dictionaries it is about."""
    with pytest.MonkeyPatch.context() as patch:
        small = {"WIDTH": 24, "STEPS": 60, "BATCH_SIZE": 64, "TARGET_L0": 4.0}
        for name, value in small.items():
            patch.setattr(seeds_and_order, name, value)
        tables = tmp_path_factory.mktemp("tables")
        patch.setattr(seeds_and_order, "BUNDLED", tables)
        patch.setattr(series_tables, "BUNDLED", tables)
        patch.setattr(seeds_and_order, "embedded_store", lambda part, progress: store)
        patch.setenv("SAEKIT_HOME", str(tmp_path_factory.mktemp("home")))
        assert cli.main(["--quiet", "order"]) == 0
        patch.setattr(side_by_side, "in_processes", None)  # from here on nothing is trained
        folders = [seeds_and_order.trained_folder(config, store) for config in seeds_and_order.configs()]
        yield SimpleNamespace(tables=tables, members=[Dictionary.load(folder) for folder in folders])


def test_every_pair_names_what_differed_and_how_far_it_agrees(world):
    table = series_tables.order_table()
    assert len(table) == 6
    expected = {(True, True): "both", (True, False): "initialisation", (False, True): "data order"}
    by_seeds = {(m.seed, m.info["training"]["data_seed"]): m for m in world.members}
    for row in table.itertuples():
        assert row.differ == expected[row.seed_a != row.seed_b, row.order_a != row.order_b]
        a, b = by_seeds[row.seed_a, row.order_a], by_seeds[row.seed_b, row.order_b]
        summary = match_latents(a, b).summary
        assert row.share_shared == summary["share_shared"]
        assert row.pw_mcc_signed == pytest.approx(summary["mean_matched_cosine"], rel=1e-6)
    assert table["differ"].value_counts().tolist() == [2, 2, 2]


def test_a_second_call_trains_nothing_and_writes_the_same(world):
    before = (world.tables / "order.csv").read_bytes()
    seeds_and_order.write_table(progress=False)
    assert (world.tables / "order.csv").read_bytes() == before
