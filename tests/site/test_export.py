"""The static site: its structure, its links, going on after an interrupt, and hostile text."""

import contextlib
import functools
import json
import operator
import os
import re
import signal
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from dictionaries import make
from toy_world import DEAD, make_atlas, make_world

import saekit
from saekit.cli import main
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.models import load_model
from saekit.site.pages import Site
from saekit.widgets import build_atlas, latent_page

HOSTILE = [
    "</script><script>alert(1)</script>", "\u2028\u2029",
    "\"'><img src=x onerror=alert(1)>", "\u202eevil", "{{ 7 * 7 }}",
    "]]>", " a&b", "\x00\x1b[31m", " " + "x" * 500, "\\u003c", "`${1}`", " quiet",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(make_world())


@pytest.fixture(scope="module")
def folder(atlas, tmp_path_factory):
    """A whole site; tests read it."""
    folder = tmp_path_factory.mktemp("site") / "out"
    assert saekit.export_site(atlas, folder, progress=False) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def small(atlas, tmp_path_factory):
    """A whole site of one width; tests read it."""
    folder = tmp_path_factory.mktemp("small")
    saekit.export_site(atlas, folder, widths=[24], progress=False)
    return folder


class Page(HTMLParser):
    """What a page refers to, the elements that it has, and its text."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes = [], set()
        self.addresses, self.ids, self.text = [], [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.attributes.update(given)
        self.ids.append(given.get("id"))
        self.addresses += [given[name] for name in ("href", "src") if name in given]

    def handle_data(self, data):
        self.text.append(data)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def records_of(file):
    """The records in a file of the search index: its argument is JSON."""
    width, part, rows = re.fullmatch(
        r"saekit\.add\((\d+),(\d+),(\[.*\])\);\n", file.read_text("ascii"), re.DOTALL
    ).groups()
    return int(width), int(part), json.loads(rows)


# ---------------------------------------------------------------------- structure


def test_every_latent_has_a_page_and_every_link_leads_to_a_file(atlas, folder):
    for width in atlas.widths:
        pages = {int(page.stem) for page in folder.glob(f"{width}/*/*.html")}
        assert pages == set(range(width))
    for file in folder.rglob("*.html"):
        for address in Page(file).addresses:
            parts = urlsplit(address)
            assert (parts.scheme, parts.netloc) == ("", ""), (file, address)
            if parts.path:
                target = (file.parent / parts.path).resolve()
                assert target.is_file(), (file, address)
                assert target.is_relative_to(folder), (file, address)
            elif parts.fragment:
                assert parts.fragment in Page(file).ids, (file, address)


def test_pages_run_nothing_but_the_script_of_the_site(folder):
    for file in folder.rglob("*.html"):
        page = Page(file)
        assert page.tags.count("script") == 1
        assert not {"iframe", "object", "embed", "base"} & {*page.tags}
        assert not [name for name in page.attributes if name.startswith("on")]
        assert [a for a in page.addresses if a.endswith(".js")] == [
            os.path.relpath(folder / "assets" / "site.js", file.parent)
        ]
    for file in folder.rglob("*.[cj]s*"):
        assert not re.search(r"http|url\(|@import|fetch\(|XMLHttp|eval\(", file.read_text()), file


def test_pages_have_landmarks_headings_and_labels(folder):
    for file in folder.rglob("*.html"):
        page, source = Page(file), file.read_text(encoding="utf-8")
        assert (
            page.tags.count("main") == page.tags.count("footer") == source.count('<header class="top">') == 1
        )
        assert '<a class="skip" href="#content">' in source
        assert 'role="search"' in source
        assert {"h1", "h2", "h3"} & {*page.tags}, file
        for control in re.findall(r"<input[^>]*\bid=\"(\w+)\"", source):
            assert f'<label for="{control}"' in source
        ids = [name for name in page.ids if name]
        assert len(ids) == len(set(ids)), file


def test_previous_next_and_random_walk_through_the_latents(atlas, folder):
    def go(place, rel):
        source = (folder / place).read_text(encoding="utf-8")
        found = re.search(rf'<a {rel} href="\.\./\.\./([^"]+)"', source)
        return found and found[1]

    walked = ["24/0/0.html"]
    while following := go(walked[-1], 'rel="next"'):
        assert go(following, 'rel="prev"') == walked[-1]
        walked.append(following)
    assert walked == [f"24/0/{latent}.html" for latent in range(24)]
    at, seen = go(f"24/0/{DEAD}.html", 'id="random"'), set()
    while at not in seen:
        seen.add(at)
        at = go(at, 'id="random"')
    alive = atlas.table(24).query("not dead")["latent"]
    assert seen == {f"24/0/{latent}.html" for latent in alive}


def test_the_index_holds_what_the_atlas_does(atlas, folder):
    for width in atlas.widths:
        records = records_of(folder / str(width) / "search-0.js")
        assert records[:2] == (width, 0)
        table = atlas.table(width)
        rows = pd.DataFrame(records[2])
        assert rows[0].tolist() == list(range(width))
        assert np.allclose(rows[4], table["density"], rtol=1e-4)
        for place, name in ((7, "smaller_cosine"), (8, "larger_cosine"), (9, "seed_cosine")):
            assert np.allclose(rows[place].astype(float), table[name], rtol=1e-4, equal_nan=True)
        assert (rows[10] == "dead").tolist() == table["dead"].tolist()


def test_a_page_has_the_text_and_the_colours_of_the_explorers_page(atlas, folder):
    class Colours(HTMLParser):
        def __init__(self, source):
            super().__init__()
            self.text, self.strengths, self.silent = "", [], 0
            self.feed(str(source))

        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            self.silent += given.get("data-told") == "0"
            if tag == "mark":
                self.strengths += re.findall(r"0\.\d+", given["style"])

        def handle_data(self, data):
            self.text += data

    page = (folder / "24" / "0" / "5.html").read_text(encoding="utf-8")
    here = Colours(page[page.index('<article class="latent"') : page.index("</article>")])
    there = Colours(latent_page(atlas, 24, 5, whole_rows=False).rpartition("</article>")[0])
    assert here.strengths == there.strengths
    assert len(here.strengths) > 20
    assert here.text == there.text
    assert here.silent == 0 < there.silent


def test_tables_and_the_index_are_split(atlas, tmp_path, monkeypatch):
    """As at large widths: small parts stand for large ones."""
    for module in ("pages", "export"):
        monkeypatch.setattr(f"saekit.site.{module}.BLOCK", 20)
        monkeypatch.setattr(f"saekit.site.{module}.ROWS", 10)
    saekit.export_site(atlas, tmp_path / "out", widths=[48], progress=False)
    there = {path.name for path in (tmp_path / "out" / "48").iterdir()}
    tables = {"index.html", *(f"table-{n}.html" for n in (2, 3, 4, 5))}
    assert there == {"0", "1", "2", "search-0.js", "search-1.js", "search-2.js"} | tables
    listed = [
        re.findall(r'href="\.\./(48/\d/\d+\.html)"', (tmp_path / "out/48" / name).read_text())
        for name in sorted(tables)
    ]
    assert functools.reduce(operator.iadd, listed, []) == [f"48/{i // 20}/{i}.html" for i in range(48)]
    assert [row[0] for part in range(3) for row in records_of(tmp_path / f"out/48/search-{part}.js")[2]] == [
        *range(48)
    ]


def test_a_selection_links_to_nothing_else(atlas, tmp_path):
    out = tmp_path / "out"
    saekit.export_site(atlas, out, widths=[24, 48], latents=[3, 9, 7], progress=False)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*/*/*.html")} == {
        f"{width}/0/{latent}.html" for width in (24, 48) for latent in (3, 7, 9)
    }
    for file in out.rglob("*.html"):
        for address in Page(file).addresses:
            path = urlsplit(address).path
            assert not path or (file.parent / path).is_file(), (file, address)
    assert [row[0] for row in records_of(out / "24" / "search-0.js")[2]] == [3, 7, 9]


@pytest.mark.parametrize(
    ("chosen", "error"),
    [
        ({"widths": [7]}, "widths 8, 24 and 48, found 7"),
        ({"latents": [8]}, "8"),
        ({"latents": []}, "at least one"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(atlas, tmp_path, chosen, error):
    with pytest.raises((ValueError, IndexError), match=error):
        saekit.export_site(atlas, tmp_path / "out", progress=False, **chosen)
    assert not (tmp_path / "out").exists()


def test_a_place_on_neuronpedia_is_the_only_link_outward(atlas, tmp_path):
    first = atlas.family[8]
    published = Dictionary(**first.tensors(), info={**first.info, "neuronpedia_id": "gpt2-small/8-res-jb"})
    one = replace(atlas, family=Family([published, *(m for m in atlas.family if m is not first)]))
    saekit.export_site(one, tmp_path, widths=[8], latents=[3], progress=False)
    outward = {a for file in tmp_path.rglob("*.html") for a in Page(file).addresses if urlsplit(a).scheme}
    assert outward == {"https://www.neuronpedia.org/gpt2-small/8-res-jb/3"}


# ---------------------------------------------------------------------- going on, and other sites


def test_an_export_that_was_killed_goes_on_to_the_same_bytes(atlas, small, tmp_path):
    """Killed without a chance to clean up, in the middle of a page."""
    out, child = tmp_path / "out", os.fork()
    if not child:
        written, replace = [], os.replace

        def killed(source, target):
            written.append(target)
            if len(written) > 15:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = killed
        saekit.export_site(atlas, out, widths=[24], progress=False)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    pages = {page: page.stat().st_mtime_ns for page in out.rglob("*.html")}
    assert len(pages) == 11
    assert len([*out.rglob(".*.tmp")]) == 1
    saekit.export_site(make_atlas(make_world()), out, widths=[24], progress=False)
    assert files_of(out) == files_of(small)
    assert all(page.stat().st_mtime_ns == pages[page] for page in pages)


def test_a_finished_site_is_not_written_again(atlas, small, monkeypatch):
    monkeypatch.setattr(Site, "latent", None)
    monkeypatch.setattr(Site, "table", None)
    before = files_of(small)
    saekit.export_site(atlas, small, widths=[24], progress=False)
    assert files_of(small) == before


def test_a_site_of_other_inputs_is_refused_with_what_changed(atlas, small):
    before = files_of(small)
    labels = {
        width: replace(found, frame=found.frame.assign(label="new")) for width, found in atlas.labels.items()
    }
    for one, chosen, changed in (
        (atlas, {}, "the choice of latents"),
        (replace(atlas, labels=labels), {"widths": [24]}, "the labels"),
        (replace(atlas, tree=None, _tables={}), {"widths": [24]}, "the results"),
        (make_atlas(make_world(), sources=["toy <b>source</b>"]), {"widths": [24]}, "the sources"),
        (make_atlas(make_world(kind="gated")), {"widths": [24]}, "the family"),
    ):
        with pytest.raises(ValueError, match=f"holds a site of other inputs \\(.*{changed}.* changed\\)"):
            saekit.export_site(one, small, progress=False, **chosen)
    assert files_of(small) == before


def test_another_version_of_the_code_or_templates_is_another_site(atlas, small, monkeypatch):
    monkeypatch.setattr("saekit.site.pages.source_hash", lambda: "another")
    with pytest.raises(ValueError, match=r"\(the version of saekit changed\)"):
        saekit.export_site(atlas, small, widths=[24], progress=False)


@pytest.mark.parametrize("name", ["notes.txt", "site.json"])
def test_a_folder_of_other_files_is_refused(atlas, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="holds other files"):
        saekit.export_site(atlas, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------------- hostile text


def test_hostile_text_is_literal_everywhere(tmp_path, monkeypatch):
    world = make_world(words=HOSTILE, source=HOSTILE[0], title=HOSTILE[2])
    monkeypatch.setattr("toy_world.WORDS", HOSTILE)
    atlas = make_atlas(world)
    names = {
        width: replace(
            found, frame=found.frame.assign(label=[HOSTILE[i % len(HOSTILE)] for i in range(width)])
        )
        for width, found in atlas.labels.items()
    }
    saekit.export_site(replace(atlas, labels=names), tmp_path, widths=[8, 24], progress=False)
    shown = ""
    for file in tmp_path.rglob("*.html"):
        page, source = Page(file), file.read_text(encoding="utf-8")
        assert page.tags.count("script") == 1, file
        assert not {"img", "object"} & {*page.tags}, file
        assert not [name for name in page.attributes if name.startswith("on")], file
        assert not re.search("[\u2028\u2029\u202e\x00\x1b]", source), file
        assert "49" not in re.findall(r"\{\{.*?\}\}", source)
        shown += "".join(page.text)
    for text in (
        "</script><script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}",
        "]]>",
        "`${1}`",
    ):
        assert text in shown, text
    for file in tmp_path.glob("*/search-*.js"):
        source = file.read_text("ascii")
        assert "<" not in source
        assert len(source.splitlines()) == source.count("\n")
        _, _, records = records_of(file)
        assert records[0][1] == HOSTILE[0]
        assert all(len(token) < 60 for record in records for token in (record[1], *record[2]))


# ---------------------------------------------------------------------- the command


def test_the_command_writes_what_the_python_call_does(store, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    folder, out = tmp_path / "family", tmp_path / "out"
    family = Family(make(d_in=16, width=width) for width in (8, 16))
    family.save(folder)
    arguments = [str(folder), str(out), "--store", str(store.path), "--model", str(model_folder)]
    assert main(["--quiet", "export", *arguments, "--widths", "16", "--latents", "3", "5-7"]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    atlas = build_atlas(family, store, load_model(model_folder), keep=False, progress=False)
    saekit.export_site(atlas, tmp_path / "called", widths=[16], latents=[3, 5, 6, 7], progress=False)
    assert files_of(out) == files_of(tmp_path / "called")
    assert main(["--quiet", "export", *arguments]) == 1
    assert "holds a site of other inputs (the choice of latents changed)" in capsys.readouterr().err
    monkeypatch.setattr("saekit.cli._atlas", lambda *_: pytest.fail("refused too late"))
    (tmp_path / "file").write_text("x")
    for wrong, found in (
        (["--widths", "9"], "The family has widths 8 and 16, found 9."),
        (["--latents", "16"], "latents must be between 0 and 15, found 16."),
        (["--latents", "8"], "latents must be between 0 and 7, found 8."),
        (["--latents", "0-99999999999999"], "latents must be between 0 and 15, found 99999999999999."),
        (["--latents", "7-5"], "expected the lower latent first, as in 0-99, found '7-5'"),
    ):
        with contextlib.suppress(SystemExit):  # of argparse
            assert main(["--quiet", "export", str(folder), str(tmp_path / "new"), *wrong]) == 1
        assert found in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert main(["--quiet", "export", str(folder), str(tmp_path / "file" / "out")]) == 1
    assert "Nothing can be written to the folder" in capsys.readouterr().err


def test_the_command_refuses_a_folder_before_it_loads_anything(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert main(["--quiet", "export", "no-family", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
