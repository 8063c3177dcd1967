"""The grid of circuits, small: toy prompts, the tiny model, and a family of two widths."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from plot_checks import check_texts
from toy_effects import pairs, sae

from saekit import cli, plots
from saekit.analysis.effects import circuits
from saekit.analysis.effects.nodes import measure_node_effects
from saekit.analysis.similarity import best_matches
from saekit.family import Family
from saekit.loading.names import BUNDLED
from saekit.series import circuits_grid as grid
from saekit.series import tables

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


class Store:
    """Enough of a store to stitch on."""

    def batches(self, size):
        yield None, torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family():
    large = sae(width=12)
    return Family([large.gather(range(8)), large, sae(width=12, seed=4)])


@pytest.fixture(scope="module")
def world(model, family, tmp_path_factory):
    """A task that the model can do and one that it cannot; where the tables go."""
    given = pairs(model)
    logits = model(given.tokens, return_type="logits")[range(len(given)), given.last]
    best, worst = logits.argmax(1)[:, None], logits.argmin(1)[:, None]
    tasks = {
        "able": lambda tokenizer, n: replace(given, answers=best, wrong=worst),
        "unable": lambda tokenizer, n: replace(given, answers=worst, wrong=best),
    }
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        for module in (grid, tables):
            patch.setattr(module, "BUNDLED", folder)
        patch.setattr(grid, "home", lambda: folder / "home")
        patch.setattr(grid, "load_model", lambda: model)
        patch.setattr(grid, "load_family", lambda kind: family)
        patch.setattr(grid, "embedded_store", lambda part, progress: Store())
        patch.setattr(grid, "TASKS", tasks)
        sizes = {"KINDS": ("relu",), "PAIR": (8, 12), "PROMPTS": 3, "ABLE": 0.3, "STEPS": 2, "SIZES": (2, 6)}
        for name, value in (sizes | {"RANDOM_DRAWS": 2}).items():
            patch.setattr(grid, name, value)
        assert cli.main(["--quiet", "circuits"]) == 0
        yield folder, tasks


def test_the_tables_are_the_analyses_one_by_one(world, model, family):
    _, tasks = world
    accuracy = tables.circuits_table("accuracy").set_index("task")
    assert accuracy["accuracy"].tolist() == [1, 0]
    curves, dictionaries = (tables.circuits_table(name) for name in ("curves", "dictionaries"))
    assert set(curves["task"]) == {"able"}
    trained = curves[curves["stage"] == "trained"]
    assert trained.groupby(["width", "seed"])["errors"].nunique().tolist() == [4, 4, 2]
    stitched = curves[curves["stage"] != "trained"]
    assert stitched["stage"].unique().tolist() == ["novel latents inserted", "half of the groups swapped"]
    assert stitched["width"].min() == 12  # the novel latents stand beside the small dictionary's own

    prompts = tasks["able"](None, 3)
    effects = measure_node_effects(model, family[8], prompts, methods=["integrated"], steps=2)
    options = {"method": "integrated", "sizes": (2, 6), "random_sets": 1, "errors": "mean"}
    expected = circuits.measure_circuit(model, family[8], effects, **options).frame
    found = trained[(trained["width"] == 8) & (trained["errors"] == "mean")]
    for column in (
        "n_nodes",
        "faithfulness",
        "completeness_low",
        "random_faithfulness",
        "random_completeness",
    ):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-4)
    errors = effects.frame["kind"] == "error"
    share = effects.frame.loc[errors, "integrated"].abs().sum() / effects.frame["integrated"].abs().sum()
    assert dictionaries["error_share"].iloc[0] == pytest.approx(share, rel=1e-3)


def test_novel_latents_stand_beside_as_many_random_ones(world, model, family):
    _, tasks = world
    carriers = tables.circuits_table("carriers")
    assert carriers["comparison"].unique().tolist() == ["8 → 12", "12, other seed"]
    assert carriers["null"].tolist() == [False] * 5 + [True] * 5
    first = carriers.iloc[:5]
    assert first["part"].tolist() == ["novel", "reconstruction", "error_large", "random", "random"]
    novel = best_matches(family[8], family[12]).cosine < grid.THETA
    assert first["n_novel"].eq(int(novel.sum())).all()
    both = [
        measure_node_effects(model, family[w], tasks["able"](None, 3), methods=["integrated"], steps=2)
        for w in (8, 12)
    ]
    drawn = np.random.default_rng(1).permutation(12)[: int(novel.sum())]
    for place, latents in ((0, novel), (4, drawn)):
        expected = circuits.compare_errors(*both, latents, method="integrated").table.loc["novel"]
        assert first.iloc[place]["correlation"] == pytest.approx(expected["correlation"], rel=1e-3)
        assert first.iloc[place]["size"] == pytest.approx(expected["size"], rel=1e-3)


def test_a_rerun_reads_what_was_measured(world, monkeypatch):
    folder, _ = world
    before = (folder / "circuits_curves.csv").read_bytes()
    monkeypatch.setattr(grid, "compare_circuits", None)
    grid.write_circuits(progress=False)
    assert (folder / "circuits_curves.csv").read_bytes() == before


def test_curves_are_drawn_by_width_with_random_nodes(world):
    curves = tables.circuits_table("curves")
    plot = plots.circuits_by_width(curves)
    check_texts(plot.figure)
    (axes,) = plot.figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2 * 3  # of three dictionaries, circuit and random nodes
    part = curves[(curves["errors"] == "nodes") & (curves["width"] == 8) & (curves["n_nodes"] > 0)]
    np.testing.assert_allclose(lines[0].get_xydata(), part[["n_nodes", "faithfulness"]])
    np.testing.assert_allclose(lines[1].get_xydata(), part[["n_nodes", "random_faithfulness"]])
    with pytest.raises(ValueError, match="errors must be one of"):
        plots.circuits_by_width(curves, "zero")


def test_the_bundled_tables_hold_every_dictionary_and_task(monkeypatch):
    monkeypatch.setattr(tables, "BUNDLED", BUNDLED)
    tables_of = {name: tables.circuits_table(name) for name in tables.CIRCUITS}
    able = tables_of["accuracy"].query("accuracy_low > 0.9")["task"].tolist()
    members = tables_of["dictionaries"].query("stage == 'trained'")
    bundled = tables.bundled_table()
    for task in able:
        found = members[members["task"] == task]
        assert sorted(found[["kind", "width", "seed"]].itertuples(index=False, name=None)) == sorted(
            bundled[["kind", "width", "seed"]].itertuples(index=False, name=None)
        )
    ends = tables_of["curves"].query("errors == 'nodes'").groupby(["task", "kind", "width", "seed", "stage"])
    np.testing.assert_allclose(ends["faithfulness"].last(), 1, atol=1e-3)
    np.testing.assert_allclose(ends["completeness"].last(), 0, atol=1e-3)
    assert isinstance(tables_of["carriers"], pd.DataFrame)
    with pytest.raises(ValueError, match="name must be one of"):
        tables.circuits_table("nodes")
