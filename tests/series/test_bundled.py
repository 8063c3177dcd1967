"""The way of families into the package, on a tiny store."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from dictionaries import make
from safetensors.torch import load_file

from saekit import cli
from saekit.dictionary import Dictionary
from saekit.loading import names
from saekit.loading.names import load_family
from saekit.metrics import evaluate
from saekit.series import bundling, tables
from saekit.series.tables import bundled_table, convergence_table
from saekit.training import side_by_side

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module

TINY = {
    "MEMBERS": {"relu": ((24, 0), (24, 1), (40, 0)), "batchtopk": ((24, 0),)},
    "BEYOND": ((40, 1), (56, 0)),
    "WIDE": 56,
    "WIDE_TOKENS": 96,
    "TARGET_L0": 4.0,
    "K": 4,
    "STEPS": 40,
    "SNAPSHOT_EVERY": 20,
    "BATCH_SIZE": 64,
}


@pytest.fixture(scope="module")
def world(store, model, tmp_path_factory):
    """A tiny bundle, as the command makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(bundling, name, value)
        package = tmp_path_factory.mktemp("package")
        patch.setattr(bundling, "BUNDLED", package)
        patch.setattr(names, "BUNDLED", package)
        patch.setattr(tables, "BUNDLED", package)
        patch.setattr(bundling, "embedded_store", lambda part, n_tokens=None, progress=True: store)
        patch.setattr(side_by_side, "load_model", lambda: model)
        patch.setenv("SAEKIT_HOME", str(tmp_path_factory.mktemp("home")))
        assert cli.main(["--quiet", "families", "--bundle"]) == 0
        yield SimpleNamespace(package=package, folder=bundling.trained_folder("relu", store.content_hash))


def test_members_are_bundled_and_measured(world, store):
    table = bundled_table()
    assert list(zip(table["kind"], table["width"], table["seed"], strict=True)) == [
        ("relu", 24, 0),
        ("relu", 24, 1),
        ("relu", 40, 0),
        ("batchtopk", 24, 0),
    ]
    assert set(table["steps"]) == {40}
    assert set(table["tokens"]) == {40 * 64}
    assert set(table["distinct_tokens"]) == {store.n_tokens}
    files = [world.package / row.kind / f"{row.width}-seed{row.seed}" for row in table.itertuples()]
    assert table["bytes"].tolist() == [(file / "weights.safetensors").stat().st_size for file in files]
    overlap = 1 - convergence_table()["share_under_0.7"].iloc[-1]
    assert table["seed_overlap"].tolist()[:2] == [overlap, overlap]
    assert table["seed_overlap"].isna().tolist() == [False, False, True, True]
    for row in table.itertuples():
        dictionary = load_family(row.kind).get(row.width, row.seed)
        trained = Dictionary.load(
            world.folder.parent
            / bundling.trained_folder(row.kind, store.content_hash).name
            / f"{row.width}-seed{row.seed}"
        )
        fvu = evaluate(dictionary, store).fvu
        assert row.fvu == pytest.approx(fvu, rel=1e-12)
        change = fvu / evaluate(trained, store).fvu - 1
        assert row.half_precision_fvu_change == pytest.approx(change, abs=1e-9)
        assert abs(change) < bundling.HALF_TOLERANCE


def test_convergence_is_that_of_the_snapshots(world):
    table = convergence_table()
    assert table[["kind", "width", "step"]].to_numpy().tolist() == [["relu", 24, 20], ["relu", 24, 40]]
    for row in table.itertuples():
        rows = [
            load_file(world.folder / f"24-seed{seed}" / "snapshots" / f"{row.step:07d}.safetensors")["W_dec"]
            for seed in (0, 1)
        ]
        best = [max(torch.dot(a, b).item() for b in rows[1].double()) for a in rows[0].double()]
        assert row.median_cosine == pytest.approx(sorted(best)[11], abs=1e-6)
        assert table.loc[row.Index, "share_under_0.7"] == pytest.approx(sum(b < 0.7 for b in best) / 24)
    log = pd.read_csv(world.folder / "24-seed0" / "log.csv")
    assert table["fvu"].tolist() == log["fvu"].tolist()


def test_single_precision_where_half_changes_too_much(world, monkeypatch):
    before = bundled_table()
    monkeypatch.setattr(bundling, "HALF_TOLERANCE", 0.0)
    shutil.rmtree(world.package / "relu" / "40-seed0")
    bundling.bundle(progress=False)
    trained = Dictionary.load(world.folder / "40-seed0")
    assert load_family("relu")[40].content_hash == trained.content_hash
    table = bundled_table()
    assert table["half_precision_fvu_change"].eq(0).tolist() == [False, False, True, False]
    unchanged = [0, 1, 3]  # members that the package has stay as they are
    pd.testing.assert_frame_equal(table.loc[unchanged], before.loc[unchanged])


def test_a_bundle_that_was_interrupted_is_completed_with_its_rows(world, monkeypatch):
    before = bundled_table()
    for name in ("24-seed0", "24-seed1"):
        shutil.rmtree(world.package / "relu" / name)
    rows = pd.read_csv(world.package / "members.csv", float_precision="round_trip")
    rows.drop(index=[0, 1]).to_csv(world.package / "members.csv", index=False)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundling, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            bundling.bundle(progress=False)
    assert (world.package / "relu" / "24-seed0" / "dictionary.json").exists()
    bundling.bundle(progress=False)
    pd.testing.assert_frame_equal(bundled_table(), before)


def test_nothing_is_done_where_nothing_lacks(world, monkeypatch):
    monkeypatch.setattr(side_by_side, "in_processes", None)
    written = {file: file.stat().st_mtime_ns for file in world.package.rglob("*")}
    pd.testing.assert_frame_equal(bundling.bundle(progress=False), bundled_table())
    assert {file: file.stat().st_mtime_ns for file in world.package.rglob("*")} == written


def test_wide_members_are_trained_on_more_text_after_the_others(world, store, capsys, monkeypatch):
    assert not (world.folder / "56-seed0").exists()
    asked, runs = [], []

    def open_store(part, *, n_tokens=None, progress=True):
        asked.append((part, n_tokens))
        return store

    monkeypatch.setattr(bundling, "embedded_store", open_store)
    train = bundling.train_side_by_side

    def listen(wanted, *stores, **options):
        runs.append([(c.variant.kind, c.width, c.seed, c.order_seed) for c, _ in wanted])
        assert options["niceness"] == bundling.NICENESS
        train(wanted, *stores, **options)

    monkeypatch.setattr(bundling, "train_side_by_side", listen)
    assert cli.main(["--quiet", "families"]) == 0
    assert str(world.folder / "56-seed0") in capsys.readouterr().out.splitlines()
    assert asked == [("held-out", None), ("train", None), ("train", 96)]
    assert runs == [
        [("relu", 40, 1, 1), ("batchtopk", 40, 1, 1)],
        [("relu", 56, 0, 0), ("batchtopk", 56, 0, 0)],
    ]
    assert load_family(world.folder).widths == [24, 40, 56]
    member = Dictionary.load(world.folder / "40-seed1")
    assert (member.seed, member.info["training"]["data_seed"]) == (1, 1)

    # Its agreement with the bundled seed is added to the package, which it is too large for itself.
    members = (world.package / "members.csv").read_bytes()
    assert bundled_table()["seed_overlap"].isna().tolist() == [False, False, True, True]
    table = bundling.bundle(progress=False)
    assert (world.package / "members.csv").read_bytes() == members
    assert convergence_table()["width"].tolist() == [24, 24, 40, 40]
    assert table["seed_overlap"].isna().tolist() == [False, False, False, True]


def test_unknown_families_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .* one of batchtopk, relu"):
        load_family("relo")
    with pytest.raises(FileNotFoundError, match="holds no SAE that saekit recognises"):
        load_family(tmp_path)


# ---------------------------------------------------------------------------------- half precision


def test_half_precision_rounds_matrices_and_keeps_directions_of_unit_norm(tmp_path):
    dictionary = make(d_in=12, width=30, seed=0)
    loaded = Dictionary.load(dictionary.save(tmp_path, half=True))
    assert load_file(tmp_path / "weights.safetensors")["W_dec"].dtype == torch.half
    assert all(tensor.dtype == torch.float32 for tensor in loaded.tensors().values())
    rounded = dictionary.W_dec.half().float()
    torch.testing.assert_close(loaded.W_dec, rounded / rounded.norm(dim=1, keepdim=True), rtol=0, atol=0)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(30), rtol=1e-6, atol=0)
    assert torch.equal(loaded.W_enc, dictionary.W_enc.half().float())
    for name in ("b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(loaded, name), getattr(dictionary, name))
