"""The dictionaries of components, small: a transcoder, one with a skip connection, and an SAE."""

from types import SimpleNamespace

import pytest
import torch

from saekit import cli
from saekit.activations import harvest
from saekit.dictionary import Dictionary
from saekit.metrics import evaluate
from saekit.series import components
from saekit.series import tables as series_tables
from saekit.series.components import COMPONENTS, Component
from saekit.training import side_by_side
from saekit.training.config import TrainingConfig
from saekit.training.variants import BatchTopK

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module

MLP = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
SMALL = {
    "transcoder": Component(*MLP, ((24, 0), (24, 1))),
    "skip-transcoder": Component(*MLP, ((24, 0),), skip=True, bundled=False),
    "attention": Component("blocks.1.attn.hook_z", None, ((24, 0),)),
}


@pytest.fixture(scope="module")
def world(model, token_rows, tmp_path_factory):
    """What the command wrote, and the stores that it used."""
    folder = tmp_path_factory.mktemp("stores")
    settings = {"dtype": torch.float32, "batch_rows": 2, "shard_rows": 4, "progress": False}
    stores = {
        one.hook_point: harvest(
            model, token_rows, one.hook_point, target=one.target, path=folder / name, **settings
        )
        for name, one in SMALL.items()
        if name != "skip-transcoder"
    }

    def config(kind, width, seed):
        assert kind == "batchtopk"
        return TrainingConfig(BatchTopK(k=4), width, seed=seed, batch_size=64)

    with pytest.MonkeyPatch.context() as patch:
        package = tmp_path_factory.mktemp("package")
        for module in (components, series_tables):
            patch.setattr(module, "BUNDLED", package)
        patch.setattr(components, "COMPONENTS", SMALL)
        patch.setattr(components, "STEPS", 40)
        patch.setattr(components, "config", config)
        patch.setattr(components, "embedded_store", lambda part, hook_point, **_: stores[hook_point])
        patch.setattr(side_by_side, "load_model", lambda: model)
        patch.setenv("SAEKIT_HOME", str(tmp_path_factory.mktemp("home")))
        assert cli.main(["--quiet", "components"]) == 0
        patch.setattr(side_by_side, "in_processes", None)  # from here on nothing is trained
        yield SimpleNamespace(package=package, stores=stores)


def test_every_dictionary_is_measured_and_those_of_the_package_are_saved(world):
    table = series_tables.components_table()
    assert [*zip(table["component"], table["width"], table["seed"], strict=True)] == [
        ("transcoder", 24, 0),
        ("transcoder", 24, 1),
        ("skip-transcoder", 24, 0),
        ("attention", 24, 0),
    ]
    saved = sorted(
        str(file.parent.relative_to(world.package)) for file in world.package.rglob("dictionary.json")
    )
    assert saved == ["attention/24-seed0", "transcoder/24-seed0", "transcoder/24-seed1"]
    for row in table[table["component"] != "skip-transcoder"].itertuples():
        dictionary = Dictionary.load(world.package / row.component / f"{row.width}-seed{row.seed}")
        component = SMALL[row.component]
        assert (dictionary.hook_point, dictionary.info.get("target")) == (
            component.hook_point,
            component.target,
        )
        assert dictionary.transcoder is (component.target is not None)
        assert evaluate(dictionary, world.stores[component.hook_point]).fvu == pytest.approx(
            row.fvu, rel=1e-3
        )


def test_a_rerun_trains_nothing_and_writes_the_same_table(world):
    before = (world.package / "components.csv").read_bytes()
    assert cli.main(["--quiet", "components"]) == 0
    assert (world.package / "components.csv").read_bytes() == before


def test_the_components_of_the_series_are_at_one_block_and_named_by_what_they_are():
    assert {one.hook_point.split(".")[1] for one in COMPONENTS.values()} == {"12"}
    skips = [name for name, one in COMPONENTS.items() if one.skip]
    assert skips == ["skip-transcoder"]
    seeds = COMPONENTS["transcoder"].configs()
    assert len({settings.order_seed for settings in seeds}) == 2  # seeds differ in data order too
