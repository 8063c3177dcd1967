import gzip
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit.loading import neuronpedia

SOURCE = "gpt2-small/8-res_fs49152-jb"
PAGE = {
    "modelId": "gpt2-small",
    "layer": "8-res_fs49152-jb",
    "index": "11329",
    "explanations": [{"description": "mentions of Einstein"}, {"description": None}],
    "frac_nonzero": 0.0003,
    "maxActApprox": 61.5,
    "pos_str": [" Einstein", " relativity"],
    "pos_values": [1.5, 1.2],
    "neg_str": [" shop"],
    "neg_values": [-0.8],
    "activations": [{"tokens": ["Albert", " Einstein"], "values": [0, 61.5]}],
}


@pytest.fixture
def dictionary():
    own = make()
    return replace(own, info={**own.info, "neuronpedia_id": SOURCE})


def test_a_latents_page(dictionary):
    assert neuronpedia.latent_url(SOURCE, 11329) == f"https://www.neuronpedia.org/{SOURCE}/11329"
    assert neuronpedia.latent_url(dictionary, 39).endswith(f"{SOURCE}/39")
    with pytest.raises(IndexError, match="latent must be between 0 and 39, found 40"):
        neuronpedia.latent_url(dictionary, 40)
    with pytest.raises(IndexError, match="found -1"):
        neuronpedia.latent_url(SOURCE, -1)
    with pytest.raises(ValueError, match=r"relu 40 \(seed 0\) has no neuronpedia_id"):
        neuronpedia.latent_url(make(), 0)
    with pytest.raises(TypeError):
        neuronpedia.latent_url(SOURCE, 1.7)
    with pytest.raises(ValueError, match='A Neuronpedia id is "model/source", found'):
        neuronpedia.latent_url("gpt2-small", 0)


def test_a_quick_list_says_each_index_as_text():
    url = neuronpedia.quick_list_url(SOURCE, [3, 11329], name="physics & more")
    query = parse_qs(urlsplit(url).query, strict_parsing=True)
    assert query["name"] == ["physics & more"]
    assert json.loads(query["features"][0]) == [
        {"modelId": "gpt2-small", "layer": "8-res_fs49152-jb", "index": index} for index in ("3", "11329")
    ]
    assert neuronpedia.quick_list_url(SOURCE, range(150), name="")
    for length in (0, 151):
        with pytest.raises(ValueError, match=f"lists 1 to 150 latents, found {length}"):
            neuronpedia.quick_list_url(SOURCE, range(length), name="")


def test_an_embed_is_escaped_and_leaves_out_what_is_asked():
    frame = neuronpedia.embed('a"><script>/x', 1, without=["plots"], height=300)
    markup = frame._repr_html_()
    assert "<script>" not in markup
    assert markup.count("<") == 2
    query = parse_qs(urlsplit(frame.url).query)
    assert query["embed"] == ["true"]
    assert query["embedplots"] == ["false"]
    assert query["embedactivations"] == ["true"]
    with pytest.raises(ValueError, match="found sound"):
        neuronpedia.embed(SOURCE, 1, without=["sound"])


def test_a_page_is_read(tmp_path):
    (tmp_path / "page.json").write_text(json.dumps(PAGE))
    feature = neuronpedia.read_feature(tmp_path / "page.json")
    assert (feature.source, feature.latent) == (SOURCE, 11329)
    assert feature.descriptions == ("mentions of Einstein",)
    assert (feature.density, feature.max_activation) == (0.0003, 61.5)
    assert feature.logits.to_dict("list") == {
        "token": [" Einstein", " relativity", " shop"],
        "logit": [1.5, 1.2, -0.8],
        "promoted": [True, True, False],
    }
    assert feature.activations[0]["activation"].tolist() == [0, 61.5]


def test_a_page_may_lack_all_but_its_identity():
    bare = {name: PAGE[name] for name in ("modelId", "layer", "index")}
    feature = neuronpedia.read_feature(bare)
    assert feature.descriptions == ()
    assert feature.density is None
    assert len(feature.logits) == len(feature.activations) == 0
    for name in bare:
        with pytest.raises(ValueError, match="must give modelId, layer and index"):
            neuronpedia.read_feature({key: value for key, value in PAGE.items() if key != name})
    with pytest.raises(ValueError, match="not a page of Neuronpedia"):
        neuronpedia.read_feature(PAGE | {"activations": [{"tokens": ["a"]}]})


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        latent = self.path.rsplit("/", 1)[1]
        status, body = {
            "11329": (200, json.dumps(PAGE)),
            "1": (200, json.dumps(PAGE)),  # another latent's page
            "2": (404, ""),
            "3": (500, ""),
        }.get(latent, (200, "<html>"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


def test_a_page_is_fetched(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(neuronpedia, "SITE", f"http://127.0.0.1:{server.server_port}")
    try:
        assert neuronpedia.fetch_feature(SOURCE, 11329).descriptions == ("mentions of Einstein",)
        for latent, error, message in (
            (1, ValueError, "gave gpt2-small/8-res_fs49152-jb/11329"),
            (2, FileNotFoundError, "Neuronpedia has no"),
            (3, ConnectionError, "does not give"),
            (4, ValueError, "gave no JSON"),
        ):
            with pytest.raises(error, match=message):
                neuronpedia.fetch_feature(SOURCE, latent)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        neuronpedia.fetch_feature(SOURCE, 11329, timeout=2)


def test_explanations_come_from_bulk_files(tmp_path):
    entries = [
        {"index": "7", "description": "commas", "explanationModelName": "m", "typeName": "t"},
        {"index": 3, "description": "years"},
    ]
    lines = "\n".join(map(json.dumps, entries)) + "\n"
    folder = tmp_path / "8-res" / "explanations"
    folder.mkdir(parents=True)
    with gzip.open(folder / "batch-0.jsonl.gz", "wt") as file:
        file.write(lines)
    (folder / "batch-1.jsonl").write_text(json.dumps({"index": "5", "description": "dates"}))
    for place in (folder, folder.parent):
        found = neuronpedia.explanations(place)
        assert found["latent"].tolist() == [3, 5, 7]
        assert found["description"].tolist() == ["years", "dates", "commas"]
    assert found["model"].tolist()[2] == "m"
    assert len(neuronpedia.explanations(folder / "batch-1.jsonl")) == 1
    (folder / "batch-1.jsonl").write_text(lines + '{"index": "5", "descr')
    with pytest.raises(ValueError, match=r"batch-1\.jsonl, line 3, is not an explanation"):
        neuronpedia.explanations(folder)
    (folder / "batch-0.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(ValueError, match=r"batch-0\.jsonl\.gz, line 0"):
        neuronpedia.explanations(folder)
    whole = gzip.compress(lines.encode() * 50)
    (folder / "batch-0.jsonl.gz").write_bytes(whole[:20] + b"\xff" * 10 + whole[30:])
    with pytest.raises(ValueError, match=r"batch-0\.jsonl\.gz, line"):
        neuronpedia.explanations(folder)
    with pytest.raises(FileNotFoundError, match="holds no explanations"):
        neuronpedia.explanations(tmp_path)


def test_a_list_takes_latents_as_every_analysis_does():
    dictionary = replace(make(), info={"neuronpedia_id": SOURCE})
    mask = np.zeros(40, dtype=bool)
    mask[[3, 7]] = True
    expected = neuronpedia.quick_list_url(dictionary, [3, 7], name="two")
    for latents in (mask, torch.tensor([3, 7]), pd.Series([3, 7], index=[9, 8])):
        assert neuronpedia.quick_list_url(dictionary, latents, name="two") == expected
    with pytest.raises(IndexError, match="latents must be between 0 and 39, found 40"):
        neuronpedia.quick_list_url(dictionary, [3, 40], name="two")
