import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.figure import Figure
from plot_checks import lightness

from saekit import figures
from saekit.colours import GREY, INK, LATENT, META, NOVEL, NULL, PALETTE, RECONSTRUCTION
from saekit.figures import (
    FULL,
    Plot,
    house_style,
    kind_style,
    new_figure,
    package_versions,
    width_colours,
)
from saekit.files import hash_file
from saekit.source import code_hash, modules_behind
from saekit.training.variants import VARIANTS

NOT_USED = ("#949494", "#ece133")  # its grey and its yellow
SUFFIXES = {"pdf", "svg", "png", "csv", "json", "tex"}
DATA = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1 / 3, 0.1, 1e-12]})

SCRIPT = r"""
import sys
import matplotlib as mpl
from saekit.figures import Plot, house_style, new_figure
import pandas as pd
mpl.rcParams.update(eval(sys.argv[2]))
data = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1 / 3, 0.1, 1e-12]})
with house_style():
    figure = new_figure()
    axes = figure.subplots()
    axes.scatter(data.x, data.y, label=r"$\theta$ and text", rasterized=True)
    axes.plot(data.x, data.y, clip_path=None)
    axes.fill_between(data.x, data.y, hatch="//")
    axes.legend()
plot = Plot(figure, data, "A title. More.", "Three points.")
if sys.argv[3] == "shown":
    plot._repr_mimebundle_()
plot.save("fig", inputs={"b": 1, "a": {"z": 1, "y": 2}}, settings={"theta": 0.7}, folder=sys.argv[1])
"""


def draw(**kwargs) -> Plot:
    with house_style():
        figure = new_figure()
        figure.subplots().plot(DATA.x, DATA.y)
    defaults = {"figure": figure, "data": DATA, "caption": "A title. And more.", "alt": "A line."}
    return Plot(**defaults | kwargs)


def save(folder, name="fig", **kwargs):
    options = {"inputs": {}, "settings": {}, "folder": folder}
    plot_options = {k: kwargs.pop(k) for k in ("data", "caption", "alt") if k in kwargs}
    return draw(**plot_options).save(name, **options | kwargs)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    """Another hash seed, time zone and user style, and having been shown before, change nothing."""
    user_style = (
        "{'font.size': 20, 'svg.fonttype': 'none', 'savefig.bbox': 'tight', 'mathtext.fontset': 'cm'}"
    )
    runs = [("0", "UTC", "{}", "fresh"), ("77", "Asia/Tokyo", user_style, "shown")]
    for number, (seed, zone, style, shown) in enumerate(runs):
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / str(number)), style, shown]
        subprocess.run(command, check=True, env=environment, timeout=120)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "01")
    assert {name.partition(".")[2] for name in first} == SUFFIXES
    assert first == second


def test_the_palette_is_seaborns_and_is_spelled_once():
    assert list(PALETTE) == [c for c in sns.color_palette("colorblind").as_hex() if c not in NOT_USED]
    package = Path(figures.__file__).parent
    for file in (package / "figures.py", *package.glob("plots/*.py"), *package.glob("widgets/*.py")):
        assert not [colour for colour in (*PALETTE, GREY, INK) if colour in file.read_text()], file.name
    for file in package.glob("plots/*.py"):  # figures have no colours of their own
        assert not re.findall("#[0-9a-f]{6}", file.read_text()), file.name


def test_no_type_3_fonts_and_no_clock(tmp_path):
    paths = {path.suffix: path for path in save(tmp_path)}
    pdf = paths[".pdf"].read_bytes()
    assert b"/Type3" not in pdf
    assert b"/CIDFontType2" in pdf or b"/TrueType" in pdf
    assert b"CreationDate" not in pdf
    assert b"<dc:date>" not in paths[".svg"].read_bytes()
    assert b"tIME" not in paths[".png"].read_bytes()
    assert str(tmp_path) not in paths[".json"].read_text()


def test_csv_is_the_data(tmp_path):
    save(tmp_path)
    raw = (tmp_path / "fig.csv").read_bytes()
    assert raw == b"x,y\n1,0.333333333\n2,0.1\n3,1e-12\n"


def test_a_named_index_becomes_columns(tmp_path):
    frame = pd.DataFrame({"y": [1.0, 2.0, 3.0]}, index=pd.MultiIndex.from_product([["a"], [1, 2, 3]]))
    frame.index.names = ["kind", "width"]
    save(tmp_path, "named", data=frame)
    assert (tmp_path / "named.csv").read_text() == "kind,width,y\na,1,1\na,2,2\na,3,3\n"
    save(tmp_path, "counting", data=DATA[DATA.x > 1])
    assert (tmp_path / "counting.csv").read_text() == "x,y\n2,0.1\n3,1e-12\n"


def test_json_says_what_the_figure_is_made_from(tmp_path):
    save(tmp_path, inputs={"small": {"hash": "ab"}, "n": np.int64(3)}, settings={"theta": 0.7})
    manifest = json.loads((tmp_path / "fig.json").read_text())
    assert manifest["inputs"] == {"small": {"hash": "ab"}, "n": 3}
    assert manifest["settings"] == {"theta": 0.7}
    assert manifest["modules"] == ["saekit.figures"]  # drawn outside of saekit, in its style
    assert manifest["source"] == code_hash(modules_behind(["saekit.figures"]))
    assert re.fullmatch("[0-9a-f]{64}", manifest["source"])
    assert manifest["versions"] == package_versions()
    assert package_versions()["matplotlib"] == mpl.__version__
    assert set(manifest["files"]) == {f"fig.{suffix}" for suffix in SUFFIXES - {"json"}}
    for file, digest in manifest["files"].items():
        assert hash_file(tmp_path / file) == digest


def test_tex_escapes_and_includes(tmp_path):
    save(tmp_path, "fig_1", caption="50% of θ_0 & {x} → 3 < 4.", alt="A\nline.")
    tex = (tmp_path / "fig_1.tex").read_text()
    assert r"\caption{50\% of $\theta$\_0 \& \{x\} $\rightarrow$ 3 $<$ 4.}" in tex
    assert r"\includegraphics[width=5.5in]{fig_1.pdf}" in tex
    assert r"\label{fig:fig_1}" in tex
    assert tex.startswith("% Alt text: A line.\n\\begin{figure}")


def test_size_is_the_papers_column(tmp_path):
    save(tmp_path)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", (tmp_path / "fig.pdf").read_bytes())
    assert float(box[1]) == pytest.approx(FULL * 72)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "a b"}, ValueError, "name"),
        ({"name": "../up"}, ValueError, "name"),
        ({"data": DATA[:0]}, ValueError, "no data"),
        ({"data": DATA * np.nan}, ValueError, "missing"),
        ({"data": DATA[["x"]].astype(str)}, ValueError, "no numbers"),
        ({"caption": " "}, ValueError, "caption"),
        ({"alt": ""}, ValueError, "alt text"),
        ({"settings": {"theta": float("nan")}}, ValueError, "finite"),
        ({"inputs": {"path": Path("/x")}}, TypeError, "inputs of figure fig .* JSON"),
    ],
)
def test_what_cannot_be_cited_is_refused_before_anything_is_written(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        save(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_a_user_style_does_not_reach_the_figure():
    with mpl.rc_context({"axes.grid": True, "font.size": 30}):
        with house_style():
            assert mpl.rcParams["axes.grid"] is False
            assert mpl.rcParams["font.size"] == 8
        assert mpl.rcParams["font.size"] == 30


def test_a_plot_shows_itself():
    data, metadata = draw()._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == "Plot(A title; 3 rows)"
    assert metadata["image/png"]["width"] == 660


@pytest.mark.parametrize(
    ("colours", "gap"),
    [
        ([kind_style(kind).colour for kind in VARIANTS], 8),
        ([NOVEL, RECONSTRUCTION], 15),
        ([INK, NULL], 30),
        (list(width_colours([576, 1152, 2304, 4608, 9216]).values()), 8),
    ],
)
def test_colours_differ_in_greyscale(colours, gap):
    assert all(abs(lightness(a) - lightness(b)) >= gap for a, b in combinations(colours, 2))
    assert all(lightness(colour) < 75 for colour in colours)  # visible on white


def test_latents_of_a_graph_have_no_colour_of_a_kind():
    """Beside a plot by kind, orange would read as BatchTopK."""
    assert LATENT not in {variant.colour for variant in VARIANTS.values()} | {*PALETTE}
    assert abs(lightness(LATENT) - lightness(META)) >= 8


def test_users_can_load_the_house_style_and_draw_like_saekit():
    def drawn():
        figure = Figure(figsize=(2, 1.5))
        axes = figure.add_subplot()
        axes.plot([0, 1, 3])
        axes.set_xlabel("x")
        return figures.render(figure, "svg")

    with house_style():
        expected = drawn()
    with matplotlib.style.context(["default", "saekit.paper"]):
        assert drawn() == expected
    assert drawn() != expected
