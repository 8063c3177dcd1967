"""The gallery, citations, and whether the committed figures are those of the code."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from saekit.figures import FULL, Plot, house_style, latex, new_figure
from saekit.files import hash_file
from saekit.gallery import citation, stale_figures, write_index

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
MANIFESTS = {path.stem: json.loads(path.read_text()) for path in sorted(FIGURES.glob("*.json"))}
SUFFIXES = ("pdf", "svg", "png", "csv", "tex", "json")
DATA = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 0.1, 1e-12]})


def save(folder, name, *, caption="A title. And more.", alt="A line.", data=DATA):
    with house_style():
        figure = new_figure()
        figure.subplots().plot(data.x, data.y)
    return Plot(figure, data, caption, alt).save(name, folder=folder)


# ------------------------------------------------------------------------------ committed figures


def test_no_committed_figure_is_stale():
    """Ones that are were drawn by other code than this: `make reproduce` makes them anew."""
    stale = stale_figures(FIGURES)
    listed = "".join(f"\n  {name} ({', '.join(modules)})" for name, modules in stale.items())
    assert not stale, f"{len(stale)} of {len(MANIFESTS)} figures are stale; run `make reproduce`:{listed}"


def test_every_committed_figure_says_what_it_was_made_from():
    """Inputs, or the table that it shows with the command that makes it."""
    bare = [
        name
        for name, manifest in MANIFESTS.items()
        if not manifest["inputs"] and not {"table", "command"} <= set(manifest["settings"])
    ]
    assert not bare
    tables = {m["settings"]["table"] for m in MANIFESTS.values() if "table" in m["settings"]}
    assert all((ROOT / table).is_file() for table in tables)
    titles = {name: manifest["caption"].partition(". ")[0] for name, manifest in MANIFESTS.items()}
    assert {name: title for name, title in titles.items() if not 5 < len(title) < 80} == {}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_committed_figure_can_be_printed(name):
    """At its size, no wider than a page of text, with embedded fonts and without the time of day."""
    pdf = (FIGURES / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    width, height = MANIFESTS[name]["size_in"]
    assert width <= FULL + 1e-6
    assert height <= 9  # a page of ICLR
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
    assert [float(side) / 72 for side in box.groups()] == pytest.approx([width, height], rel=1e-4)


# ------------------------------------------------------------------------------ gallery


def test_index_and_citation(tmp_path):
    save(tmp_path, "fig02", caption="Second_one. Rest.", alt='A "line" & <more>.')
    save(tmp_path, "fig01", caption="First 10% of ReLU. Rest.")
    index = write_index(tmp_path)
    text = index.read_text()
    assert text.index("### First 10% of ReLU\n") < text.index("### Second\\_one\n")
    assert '<img src="fig01.png" width="770" alt="A line.">' in text
    assert 'alt="A &quot;line&quot; &amp; &lt;more>."' in text
    assert all(f"](fig02.{suffix})" in text for suffix in SUFFIXES)
    entry = citation("fig01", folder=tmp_path)
    assert f"<details><summary>BibTeX</summary>\n\n```bibtex\n{entry}```\n\n</details>" in text
    assert entry.startswith("@misc{saekit-fig01,")
    assert "{{First 10\\% of ReLU}}" in entry
    assert hash_file(tmp_path / "fig01.csv")[:12] in entry
    before = index.read_bytes()
    write_index(tmp_path)
    assert index.read_bytes() == before
    save(tmp_path, "fig01", data=DATA * 2)  # saved again, it is cited anew
    assert citation("fig01", folder=tmp_path) != entry


def test_figures_are_grouped_by_the_question_of_their_notebook(tmp_path):
    for place in ("notebooks", "docs/questions"):
        (tmp_path / place).mkdir(parents=True)
    for number, title, question in (("02", "Trees, big", "How\ndo they grow?"), ("03", "Stones", "Why?")):
        cells = [{"source": [f"# {number} {title}\n", f"**{question}**\n"]}]
        (tmp_path / "notebooks" / f"{number}_it.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "docs" / "questions" / "of_trees.md").write_text("[Here](../notebooks/02_it.md).")
    for name in ("03_a", "02_a", "02_b", "02_c"):
        save(tmp_path / "figures", name, caption="One. Rest." if name == "02_c" else "A title. Rest.")
    text = write_index(tmp_path / "figures").read_text()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Figures",
        "## 02 Trees, big",
        *("### A title (02\\_a)", "### A title (02\\_b)", "### One"),  # names tell two titles apart
        "## 03 Stones",
        "### A title",
    ]
    assert "- [02 Trees, big](#02-trees-big) (3): How do they grow?" in text
    about = "[notebook](../notebooks/02_it.ipynb) · [of trees](../docs/questions/of_trees.md)"
    assert f"*How do they grow?* · {about}" in text
    assert "*Why?* · [notebook](../notebooks/03_it.ipynb)\n" in text


def test_links_of_the_committed_gallery_lead_somewhere():
    text = (FIGURES / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        assert (FIGURES / link).exists(), link
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    assert all(f"`{name}`" in text for name in MANIFESTS)


def test_index_notices_lost_and_changed_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no figures"):
        write_index(tmp_path)
    save(tmp_path, "fig")
    (tmp_path / "fig.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"fig\.csv is not the file"):
        write_index(tmp_path)
    (tmp_path / "fig.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks fig\.csv"):
        write_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="no figure other"):
        citation("other", folder=tmp_path)


# ------------------------------------------------------------------------------ stale figures


def test_a_figure_is_stale_once_its_code_changes(tmp_path):
    save(tmp_path, "fig")
    assert stale_figures(tmp_path) == {}
    manifest = json.loads((tmp_path / "fig.json").read_text())
    (tmp_path / "fig.json").write_text(json.dumps(manifest | {"source": "0" * 64}))
    assert stale_figures(tmp_path) == {"fig": ["saekit.figures"]}


# ------------------------------------------------------------------------------ TeX


def test_committed_captions_are_plain_latex():
    """Nothing that LaTeX would misread or lacks a letter for, in TeX or BibTeX."""
    for name, manifest in MANIFESTS.items():
        tex = (FIGURES / f"{name}.tex").read_text()
        caption = re.search(r"\\caption\{(.*)\}\n", tex)[1]
        for text in (caption, latex(manifest["caption"]), citation(name, folder=FIGURES)):
            outside = re.sub(r"\$[^$]*\$", "", re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}]", "", text))
            assert not set(outside) & set("&%$#_^~\\") - ({"_"} if text.startswith("@misc") else set()), name
            assert text.isascii(), name
            depth = 0
            for brace in re.findall(r"(?<!\\)[{}]", text):
                depth += 1 if brace == "{" else -1
                assert depth >= 0, name
            assert depth == 0, name


def test_hostile_text_is_escaped():
    text = latex('50% & $x_1$ \\cmd{a} #1 ~ ^ "quoted" … · é')
    assert text == (
        r"50\% \& \$x\_1\$ \textbackslash{}cmd\{a\} \#1 \textasciitilde{} \textasciicircum{} "
        r"''quoted'' \ldots{} $\cdot$ é"
    )
