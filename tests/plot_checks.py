"""What every plot must pass: a whole bundle of files, and texts that can be read."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle, StepPatch
from matplotlib.text import Text

from saekit.figures import FULL, house_style

SMALLEST = 6  # points
GREY_GAP = 8  # CIE L* between series that are told apart by colour alone
# Bars with their names written on them or beside them.
OTHERWISE = ("big_tree", "related", "maps")  # by thickness, and bars that are cut: their own tests compare
NAMED = ("meta_splitting", "meta_baselines", "splitting_flow", "upstream_attribution")

OF_NO_DICTIONARY = {"activation_norms", "kinds_frontier", "active_histogram", "convergence"}
OF_NO_DICTIONARY |= {"baseline_dots", "word_circles", "map_pairs"}


def check_bundle(plot, name, folder):
    """Six files with embedded fonts, numbers in the CSV, a title, an alt text, and what it was made from."""
    assert bool(plot.made_from) != (name in OF_NO_DICTIONARY)
    assert all(re.fullmatch("[0-9a-f]{64}", entry["hash"]) for entry in plot.made_from.values())
    plot.save(name, inputs={}, settings={}, folder=folder)
    files = {path.name for path in folder.iterdir()}
    assert files == {f"{name}.{suffix}" for suffix in ("pdf", "svg", "png", "csv", "tex", "json")}
    assert b"/Type3" not in (folder / f"{name}.pdf").read_bytes()
    csv = pd.read_csv(folder / f"{name}.csv", keep_default_na=True)
    assert list(csv.columns) == list(plot.data.columns)
    for column in plot.data.select_dtypes("number"):
        np.testing.assert_allclose(csv[column], plot.data[column].astype(float), rtol=1e-8)
    assert 5 < len(plot.caption.partition(". ")[0]) < 80  # the title
    assert len(plot.caption) > 100
    assert len(plot.alt) > 40
    assert "nan" not in plot.caption
    assert all(module.startswith("saekit.plots.") for module in plot.modules)
    check_print(plot.figure)
    if not name.startswith(NAMED):
        check_grey(plot.figure)
    if not name.startswith(OTHERWISE):
        check_drawn(plot.figure, csv, name)


def check_drawn(figure, csv, name):
    """Some measured column of the CSV is on the figure, every number of it."""
    drawn = np.sort(np.concatenate([numbers(artist) for axes in figure.axes for artist in axes.findobj()]))
    whole = []
    floats = csv.select_dtypes("float")
    for column in floats if len(floats.columns) else csv.select_dtypes("number"):
        values = csv[column].dropna().to_numpy()
        near = drawn[np.clip(np.searchsorted(drawn, values - 1e-7 * np.abs(values)), 0, len(drawn) - 1)]
        if len(values) and np.allclose(near, values, rtol=1e-6, atol=1e-9):
            whole.append(column)
    assert whole, name


def numbers(artist):
    """What an artist places on its axes: coordinates, sizes of bars, values of pixels."""
    found = []
    if isinstance(artist, Line2D):
        found = [*artist.get_data()]
    elif isinstance(artist, Rectangle):
        (x, y), w, h = artist.get_xy(), artist.get_width(), artist.get_height()
        found = [[x, y, w, h, x + w, y + h]]
    elif isinstance(artist, StepPatch):
        found = [artist.get_data().values, artist.get_data().edges]
    elif isinstance(artist, PolyCollection):
        found = [path.vertices for path in artist.get_paths()]
    elif isinstance(artist, PathCollection):
        found = [artist.get_offsets()]
    elif isinstance(artist, QuadMesh | AxesImage):
        found = [artist.get_array()]
    elif isinstance(artist, PathPatch):
        found = [[artist.get_linewidth()]]
    return np.concatenate([[], *(np.ma.filled(np.ma.asarray(v, float), np.nan).ravel() for v in found)])


def check_print(figure):
    """No wider than the text of a page, and no text too small to read there."""
    assert figure.get_size_inches()[0] <= FULL + 1e-6
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            assert text.get_fontsize() >= SMALLEST, text.get_text()


def lightness(colour):
    """CIE L*, what is left of a colour in a greyscale print."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def check_grey(figure):
    """Series of one panel that share marker, line and hatch have colours that differ in grey."""
    for axes in figure.axes:
        series = {}
        for artist in axes.get_children():
            if artist.get_visible() and (found := look(artist, axes)):
                series.setdefault(found[1:], set()).add(found[0])
        for shape, colours in series.items():
            for a, b in combinations(sorted(colours), 2):
                assert abs(lightness(a) - lightness(b)) >= GREY_GAP, (axes.get_title(loc="left"), shape, a, b)


def look(artist, axes):
    """Colour of what an artist shows, and what else tells it apart; None for what shows no data."""
    if isinstance(artist, Line2D):
        marker, line = artist.get_marker(), artist.get_linestyle()
        drawn = marker not in ("None", "", None) or line not in ("None", "", " ")
        # Rules through a whole panel have places on its sides as coordinates.
        rule = artist.get_transform() != axes.transData
        dashes = str(artist._unscaled_dash_pattern)
        return (to_hex(artist.get_color()), "line", str(marker), dashes) if drawn and not rule else None
    if isinstance(artist, PathCollection) and len(artist.get_facecolor()) == 1:
        return (
            to_hex(artist.get_facecolor()[0]),
            "dots",
            str(artist.get_paths()[0].vertices.round(2).tolist()),
        )
    if isinstance(artist, Patch) and artist is not axes.patch:
        alpha = artist.get_facecolor()[3]
        if not artist.get_fill() or alpha < 0.3:
            return to_hex(artist.get_edgecolor()), "outline", str(artist.get_linestyle())
        return to_hex(artist.get_facecolor()), "patch", str(artist.get_hatch())
    return None


def check_texts(figure):
    """No text overlaps another or leaves the figure."""
    with house_style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = []
        for text in figure.findobj(Text):
            if not (text.get_visible() and text.get_text().strip()):
                continue
            box = Text.get_window_extent(text, renderer)
            if not is_undrawn_tick(text, box, figure):
                boxes.append((text.get_text(), box))
    assert boxes
    for text, box in boxes:
        inside = (
            box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        )
        assert inside, text
    for (first, a), (second, b) in combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(wide, high) < 2, (first, second)  # pixels at 300 dpi


def is_undrawn_tick(text, box, figure):
    """Whether this is a tick label outside its axis, which matplotlib keeps but does not draw."""
    for axes in figure.axes:
        if not axes.axison and text in axes.findobj(Text):
            return text not in axes.texts
        for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            if any(text is label for label in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]):
                centre = (getattr(box, low) + getattr(box, high)) / 2
                return not getattr(axes.bbox, low) - 2 <= centre <= getattr(axes.bbox, high) + 2
    return False
