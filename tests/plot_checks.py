"""What every plot must pass: a whole bundle of files, and texts that can be read."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from saekit.figures import house_style

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
