"""One order in which sources are looked for, and paths as people type them."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dictionaries import make, parameters

from saekit.family import Family
from saekit.folding import Unfolded
from saekit.loading.formats.writing import save_sae
from saekit.loading.names import bundled, load_family, load_sae, local_to, open_sae, resolve


def member(width, seed=0, **info):
    info = {"kind": "relu", "hook_point": "blocks.1.hook_resid_post", "seed": seed} | info
    return Unfolded(**parameters(12, width, seed), info=info).fold()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path


def test_a_path_as_typed_comes_before_a_bundled_family(here):
    assert load_family("relu").widths == [576, 1152, 2304, 4608, 9216]
    Family([member(10), member(20)]).save("relu")
    assert load_family("relu").widths == [10, 20]
    shutil.rmtree("relu")
    os.mkdir("relu")
    with pytest.raises(FileNotFoundError, match=r"holds no SAE.*before the bundled family relu: rename"):
        load_family("relu")
    os.rmdir("relu")
    assert load_family("relu").widths == [576, 1152, 2304, 4608, 9216]


def test_every_door_has_the_same_order(here):
    """A folder that is called like a release, or like a place on the hub, comes before it."""
    dictionary = member(10)
    for name in ("gpt2-small-res-jb/blocks.8.hook_resid_pre", "org/repository/sae"):
        save_sae(dictionary, name)
        assert load_sae(name).width == open_sae(name).width == 10
        assert load_family(name).widths == [10]
        assert [sae.width for sae in resolve(name)] == [10]


def test_bundled_members_are_one_sae(here):
    assert bundled() == ["attention", "batchtopk", "relu", "transcoder"]
    assert load_sae("relu/576-seed0").width == 576
    assert load_sae("relu/576-seed0", latents=[3, 5]).width == 2
    with pytest.raises(ValueError, match="relu holds 8 SAEs, of which one can be loaded"):
        load_sae("relu")
    with pytest.raises(FileNotFoundError):
        load_family("relu/../batchtopk")


def test_a_slip_in_a_path_is_not_asked_of_the_hub(here, monkeypatch):
    def fetch(*place):
        raise ConnectionError(f"asked for {place}")

    monkeypatch.setattr("saekit.loading.names.fetch", fetch)
    save_sae(member(10), "saes/width_10")
    for slip in (
        *("./saes/width_20", "saes/width_20", str(here / "saes/width_20"), Path("other/width_10")),
        *("~/saes/width_10", ".hidden/saes", "saes/width_2*", "others/width_*", "relu/9999-seed0"),
    ):
        for read in (load_sae, load_family, open_sae):
            with pytest.raises(FileNotFoundError, match="no file or folder"):
                read(slip)
    with pytest.raises(ConnectionError, match="'organisation/repository', 'a/b', 'main'"):
        load_sae("organisation/repository/a/b")
    with pytest.raises(ConnectionError, match="'saes/width_20', '', 'main'"):
        load_sae("saes/width_20", revision="main")


def test_the_home_folder_is_expanded(here):
    Family([member(10), member(20)]).save(here / "user" / "saes")
    assert load_family("~/saes").widths == [10, 20]
    assert load_sae("~/saes/20-seed0").width == 20
    assert load_family("~/saes/1*").widths == [10]
    with pytest.raises(FileNotFoundError):
        load_family("~nobody-here/saes")


def test_a_relative_source_stays_right_when_the_working_directory_changes(here, monkeypatch):
    Family([member(10), member(20)]).save("own")
    save_sae(member(10), "foreign/10")
    save_sae(member(20), "foreign/20")
    own, foreign, sae = load_family("own"), load_family("foreign/*"), open_sae("foreign/20")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert [own[10].width, own[20].width, foreign[10].width, sae.fold().width] == [10, 20, 10, 20]


@pytest.mark.parametrize("folder", ["runs[v2]", "[ab]", "what?", "st*r", "v[!1]"])
def test_special_characters_in_folders_that_exist_need_no_escape(here, folder):
    Family([member(10), member(20)]).save(here / folder / "saes")
    assert load_family(f"{folder}/saes").widths == [10, 20]
    assert load_family(f"{folder}/saes/*").widths == [10, 20]
    assert load_family(f"{folder}/*/[12]0-seed0").widths == [10, 20]
    assert load_sae(f"{folder}/saes/10-*").width == 10


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_in_circles_end_and_a_link_is_the_same_sae(here):
    Family([member(10), member(20)]).save("saes")
    for name in ("a", "b", "c"):
        os.symlink(here, here / "saes" / name)
    os.symlink(here / "saes" / "10-seed0", here / "saes" / "same")
    assert load_family("saes/**").widths == [10, 20]
    assert load_family("**/*-seed0").widths == [10, 20]
    with pytest.raises(ValueError, match="two dictionaries of width 10"):  # a folder is taken as it is
        load_family("saes")


def test_a_pattern_that_is_none_is_one_sentence(here):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_family("saes/a**b/*")
    assert "\n" not in str(caught.value)


def test_a_file_names_sources_relative_to_itself(here):
    Family([member(10)]).save(here / "project" / "saes")
    assert local_to(here / "project", "saes") == str(here / "project" / "saes")
    assert local_to(here / "project", "sa*/*") == str(here / "project" / "sa*" / "*")
    assert local_to(here / "project", "org/model") == "org/model"
    assert local_to(here / "project", "~/saes") == "~/saes"


# ------------------------------------------------------------------------------ families


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hook_point": "blocks.2.hook_resid_post"}, "hook point"),
        ({"model": "other"}, "model"),
        ({"model_weights": "f" * 64}, "model's weights"),
        ({"layer": 4}, "layer"),
        ({"submodule": "mlp_4"}, "submodule"),
        ({"hf_hook_point": "layers.4.mlp"}, "hook point in Hugging Face's names"),
        ({"model_processing": {"fold_ln": True}}, "processing of the model's weights"),
        ({"kind": "topk"}, "kind"),
    ],
)
def test_saes_of_different_places_are_no_family(here, change, what):
    place = {"model": "org/gpt2", "model_weights": "a" * 64, "layer": 3, "submodule": "mlp_3"}
    place |= {"hf_hook_point": "layers.3.mlp", "model_processing": {"fold_ln": False}}
    member(10, **place).save("saes/10")
    member(20, **place | {"model": "gpt2", "model_processing": {}}).save("saes/20")
    assert load_family("saes").widths == [10, 20]
    member(30, **place | change).save("saes/30")
    with pytest.raises(ValueError, match=f"A family shares one {what}: the member of width 10 has .* 30 has"):
        load_family("saes")


def test_what_is_not_recorded_contradicts_nothing_and_is_a_warning(here):
    members = [member(10), member(20, hook_point=None), member(30, hook_point=None)]
    with pytest.warns(UserWarning, match="width 20 does not record its hook point, so it was not compared"):
        family = Family(members)
    assert family.hook_point == "blocks.1.hook_resid_post"
    assert Family(members[1:]).hook_point is None


def test_foreign_saes_of_two_layers_are_no_family(here):
    """dictionary_learning records a layer and a submodule instead of a hook point."""
    for width, layer in ((10, 3), (20, 3), (30, 4)):
        dictionary = member(width, hook_point=f"blocks.{layer}.hook_resid_post")
        folder = save_sae(dictionary, f"saes/{width}", format="dictionary_learning")
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"saekit"', '"notes"'))
    assert load_family("saes/[12]0").widths == [10, 20]
    with pytest.raises(ValueError, match=r"shares one layer: .* has 3, that of width 30 has 4"):
        load_family("saes")


def test_a_family_of_topk_dictionaries(here):
    members = []
    for width in (10, 20):
        p = parameters(12, width)
        p.pop("threshold")
        members.append(Unfolded(**p, k=3, info={"kind": "topk"}).fold())
    Family(members).save("topk")
    family = load_family("topk")
    assert (family.kind, family.widths, family[20].k) == ("topk", [10, 20], 3)
    x = torch.randn(9, 12)
    for here_, there in zip(family, members, strict=True):
        assert torch.equal(here_.encode(x), there.encode(x))


def test_a_seed_that_is_no_number_is_named(here):
    with pytest.raises(TypeError, match="seed must be a whole number, found 'first'"):
        Family([replace(make(), info={"seed": "first"})])
