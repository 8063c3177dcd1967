"""Explanations and their scores by a language model: a stub server with known answers stands in for it."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from toy_stores import in_memory

from saekit.analysis import explain
from saekit.analysis.explain import Endpoint, EndpointError, explain_latents, score_explanations
from saekit.analysis.latents import collect
from saekit.dictionary import Dictionary

VOCABULARY = [" king", " queen", " river", " stone", " moon", " the"]
D_IN, ROWS, CONTEXT = len(VOCABULARY), 80, 16


class Stub:
    """An endpoint that answers what a function of the question says."""

    def __init__(self):
        self.requests, self.answer = [], lambda system, question: "?"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append((self.path, dict(self.headers), body))
                status, headers, sent = stub.respond(*(m["content"] for m in body["messages"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def respond(self, system, question):
        text = self.answer(system, question)
        if isinstance(text, tuple):
            return text
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        return 200, {}, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    waits = []
    monkeypatch.setattr(explain.time, "sleep", waits.append)
    stub = Stub()
    stub.waits = waits
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


@pytest.fixture(scope="module")
def world():
    """Each latent reads one word, most tokens are common."""
    random = torch.Generator().manual_seed(0)
    rare = torch.rand(ROWS, CONTEXT, generator=random) < 0.1
    tokens = torch.where(rare, torch.randint(5, (ROWS, CONTEXT), generator=random), 5)
    x = torch.eye(D_IN)[tokens.flatten()] * (1 + torch.rand(tokens.numel(), 1, generator=random))
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    documents = [{"source": "toy", "title": "toy"}]
    store = in_memory(
        x.view(ROWS, CONTEXT, D_IN), tokens=tokens, special=nowhere, excluded=nowhere, documents=documents
    )
    eye = torch.eye(D_IN)
    info = {"hook_point": "toy"}
    dictionary = Dictionary(
        eye, torch.zeros(D_IN), eye, torch.zeros(D_IN), torch.full((D_IN,), 0.5), info=info
    )
    return collect(dictionary, store), store


def reader(system, question):
    """A perfect reader: names the marked word, and knows what a word in a description means."""
    marked = re.findall(r"<<(.*?)>>", question)
    if system == explain.EXPLAIN:
        return f" {marked[0].split()[0]}\n"
    words = re.search(r"Description: (.*)", question)[1].split()
    passages = re.split(r"\n\n\d+\. ", question)[1:]
    if "marked" in system:
        answers = [int(any(w in m for w in words for m in re.findall(r"<<(.*?)>>", p))) for p in passages]
    else:
        answers = [int(any(w in p.split() for w in words)) for p in passages]
    return f"Here you are: {json.dumps(answers)}"


def test_a_perfect_reader_explains_and_scores_perfectly_beside_its_floors(stub, world):
    stub.answer = reader
    activations, store = world
    endpoint = Endpoint(stub.url, "reader", price=(1.0, 10.0))
    found = explain_latents(endpoint, activations, store, VOCABULARY, range(5), window=4)
    assert found.frame["explanation"].tolist() == [word.strip() for word in VOCABULARY[:5]]
    assert found.summary["asked"] == 5
    assert found.summary["cost"] == pytest.approx(5 * (100 * 1 + 7 * 10) / 1e6)
    result = score_explanations(endpoint, found, activations, store, VOCABULARY, window=4, n_windows=8)
    assert (result.frame[["detection_own", "fuzzing_own"]] == 1).all(axis=None)
    empty = result.frame[["detection_empty", "fuzzing_empty"]]
    assert (empty == 0.5).all(axis=None)  # it answers no to all
    assert (result.frame[["detection_another", "fuzzing_another"]] < 0.8).all(axis=None)
    assert result.n_failed == 0
    assert result.n_judged == sum(3 * (2 * n + n) for n in result.frame["n_windows"])
    assert result.summary["detection_own"] == 1.0


def test_answers_are_kept_and_a_stopped_run_goes_on(stub, world):
    activations, store = world
    endpoint = Endpoint(stub.url, "reader", attempts=1)
    left = [3]

    def tires(system, question):
        left[0] -= 1
        return reader(system, question) if left[0] >= 0 else (500, {}, b"tired")

    stub.answer = tires
    with pytest.raises(
        EndpointError, match="status 500: 'tired', after 1 attempts; answers so far are kept"
    ) as raised:
        explain_latents(endpoint, activations, store, VOCABULARY, range(5), window=4)
    assert raised.value.__notes__ == [
        "Used so far: asked 3, cached 0, prompt_tokens 300, completion_tokens 21."
    ]
    stub.answer, before = reader, len(stub.requests)
    found = explain_latents(endpoint, activations, store, VOCABULARY, range(5), window=4)
    assert len(stub.requests) - before == 2
    assert (found.usage["asked"], found.usage["cached"]) == (2, 3)
    assert found.usage["cost"] is None
    again = explain_latents(endpoint, activations, store, VOCABULARY, range(5), window=4)
    assert again.usage == {"asked": 0, "cached": 5, "prompt_tokens": 0, "completion_tokens": 0, "cost": None}
    assert again.frame.equals(found.frame)
    # Another model, or another setting, is asked anew.
    for other in (Endpoint(stub.url, "other"), Endpoint(stub.url, "reader", temperature=1.0)):
        assert explain_latents(other, activations, store, VOCABULARY, [0], window=4).usage["asked"] == 1


def test_a_damaged_answer_is_asked_for_again(stub, tmp_path):
    stub.answer = lambda system, question: "fine"
    endpoint = Endpoint(stub.url, "reader")
    endpoint.ask("a", "b")
    (file,) = tmp_path.rglob("*.json")
    for damaged in ('{"text": "fi', '{"text": "fine"}', "[]"):
        file.write_text(damaged)
        with pytest.warns(UserWarning, match="is damaged .*: the endpoint is asked again"):
            assert not endpoint.ask("a", "b").cached
        assert endpoint.ask("a", "b").cached
    assert len(stub.requests) == 4


def test_an_endpoint_that_does_not_count_tokens_has_no_cost(stub, world):
    """A cost of 0 would be a wrong number; one uncounted answer among others makes the sum unknown."""
    activations, store = world
    counted = iter([True, False, True])

    def respond(system, question):
        usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 0}} if next(counted) else {}
        sent = {"choices": [{"message": {"content": "a word"}}], **usage}
        return 200, {}, json.dumps(sent).encode()

    stub.respond = respond
    endpoint = Endpoint(stub.url, "m", price=(1.0, 2.0))
    found = explain_latents(endpoint, activations, store, VOCABULARY, [0, 1], window=4)
    assert found.usage == {
        "asked": 2,
        "cached": 0,
        "prompt_tokens": None,
        "completion_tokens": None,
        "cost": None,
    }
    rest = explain_latents(endpoint, activations, store, VOCABULARY, range(3), window=4)
    assert (rest.usage["cached"], rest.usage["prompt_tokens"], rest.usage["cost"]) == (2, 100, 1e-4)


def test_an_empty_explanation_is_no_explanation(stub, world):
    activations, store = world
    stub.answer = lambda system, question: " \n"
    with pytest.raises(EndpointError, match=r"explained latent 0 with an empty answer: raise max_tokens"):
        explain_latents(Endpoint(stub.url, "m"), activations, store, VOCABULARY, [0], window=4)


def test_half_an_emoji_is_kept(stub):
    cut = b'{"choices": [{"message": {"content": "smile \\ud83d"}}]}'
    stub.answer = lambda system, question: (200, {}, cut)
    endpoint = Endpoint(stub.url, "m")
    assert endpoint.ask("a", "b").text == endpoint.ask("a", "b").text == "smile ?"


def test_a_key_from_a_file_ends_in_a_newline_that_is_not_sent(stub):
    stub.answer = lambda system, question: "fine"
    Endpoint(stub.url, "m", key="secret-key\n").ask("a", "b")
    assert stub.requests[0][1]["Authorization"] == "Bearer secret-key"
    for wrong in ("sch\u00fcssel", "two\nlines"):
        with pytest.raises(ValueError, match="printable ASCII") as raised:
            Endpoint(stub.url, "m", key=wrong)
        assert wrong not in str(raised.value)


def test_an_address_that_is_none(stub):
    with pytest.raises(EndpointError, match="is no address"):
        Endpoint("http://a:b/v1", "m").ask("a", "b")
    assert stub.waits == []


def test_both_halves_of_fuzzing_have_as_many_marks(stub):
    """Where a latent fires on most tokens of a window, there are not enough others to mark instead."""
    generator = torch.Generator().manual_seed(0)
    rows, width = 40, 8
    dense = torch.rand(rows, 1, generator=generator) * 1.2
    fires = (torch.rand(rows, width, generator=generator) < dense) & (torch.arange(rows)[:, None] % 2 == 0)
    x = torch.zeros(rows, width, D_IN)
    x[..., 0], x[:, :, 1] = fires.float(), 1.0
    x[::2, :, 1] = 0  # the second latent is dense wherever it fires
    nowhere = torch.zeros(rows, width, dtype=torch.bool)
    tokens = torch.zeros(rows, width, dtype=torch.long)
    documents = [{"source": "toy", "title": "toy"}]
    store = in_memory(x, tokens=tokens, special=nowhere, excluded=nowhere, documents=documents)
    eye = torch.eye(D_IN)
    dictionary = Dictionary(
        eye, torch.zeros(D_IN), eye, torch.zeros(D_IN), torch.full((D_IN,), 0.5), info={"hook_point": "toy"}
    )
    activations = collect(dictionary, store)
    stub.answer = lambda system, question: "[1]"
    result = score_explanations(
        Endpoint(stub.url, "m"), {0: "a", 1: "b"}, activations, store, VOCABULARY, window=width
    )
    assert result.frame["fuzzing_own"].isna().tolist() == [True, True]  # no answer has the right length
    asked = [body["messages"] for _, _, body in stub.requests]
    fuzzed = [user["content"] for system, user in asked if "marked" in system["content"]]
    passages = [part for question in fuzzed for part in re.split(r"\n\n\d+\. ", question)[1:]]
    n_marked = [sum(len(run.split()) for run in re.findall(r"<<(.*?)>>", part)) for part in passages]
    assert min(n_marked) > 0
    assert max(n_marked) <= width // 2


def test_what_is_sent_and_what_is_not_kept(stub, tmp_path):
    stub.answer = lambda system, question: "fine"
    endpoint = Endpoint(f"{stub.url}/", "reader", key="secret-key")
    assert endpoint.ask("be brief", "hello").text == "fine"
    path, headers, body = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert body == {
        "model": "reader",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 200,
        "temperature": 0.0,
    }
    assert "secret-key" not in repr(endpoint)
    kept = [file.read_text() for file in tmp_path.rglob("*.json")]
    assert len(kept) == 1
    assert "secret-key" not in kept[0]


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(stub):
    answers = iter(
        [(429, {"Retry-After": "7"}, b""), (503, {}, b""), (429, {"Retry-After": "soon"}, b""), "at last"]
    )
    stub.answer = lambda system, question: next(answers)
    assert Endpoint(stub.url, "reader").ask("a", "b").text == "at last"
    assert stub.waits == [7.0, 2.0, 4.0]
    stub.answer = lambda system, question: (429, {"Retry-After": "900"}, b"slow down")
    with pytest.raises(EndpointError, match="status 429: 'slow down', after 3 attempts"):
        Endpoint(stub.url, "reader", attempts=3).ask("a", "c")
    assert stub.waits[3:] == [60.0, 60.0]


@pytest.mark.parametrize(
    ("answer", "key", "sentence"),
    [
        ((401, {}, b"no"), None, r"refuses access \(401\): no key was given\.$"),
        ((401, {}, b"no"), "wrong", r"refuses access \(401\): the key that was given is not accepted\.$"),
        ((404, {}, b"no such model"), None, r"answers with status 404: 'no such model'\.$"),
        ((200, {}, b"<html>"), None, r"must answer with JSON, found '<html>'\.$"),
        ((200, {}, b'{"choices": []}'), None, r"must answer with choices\[0\]\.message\.content, found"),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), None, r"must answer with choices"),
        ((200, {}, b"[1, 2]"), None, r"must answer with choices"),
    ],
)
def test_each_failure_gets_one_sentence(stub, answer, key, sentence):
    stub.answer = lambda system, question: answer
    with pytest.raises(EndpointError, match=sentence):
        Endpoint(stub.url, "reader", key=key).ask("a", "b")
    assert len(stub.requests) == 1
    assert stub.waits == []


def test_a_server_that_is_not_there(stub):
    with pytest.raises(EndpointError, match=r"cannot be reached: .*, after 2 attempts"):
        Endpoint("http://127.0.0.1:9/v1", "reader", attempts=2).ask("a", "b")
    assert stub.waits == [1.0]


def test_judgements_that_cannot_be_read_are_counted_and_left_out(stub, world):
    activations, store = world
    calls = [0]

    def careless(system, question):
        calls[0] += 1
        return "I cannot tell." if calls[0] % 3 == 0 else reader(system, question)

    stub.answer = careless
    texts = {i: VOCABULARY[i].strip() for i in range(5)}
    endpoint = Endpoint(stub.url, "careless")
    result = score_explanations(endpoint, texts, activations, store, VOCABULARY, window=4, n_windows=5)
    assert 0 < result.n_failed < result.n_judged
    assert result.n_failed / result.n_judged == pytest.approx(1 / 3, abs=0.1)
    own = result.frame[["detection_own", "fuzzing_own"]].stack()
    assert (own == 1).all()
    stub.answer = lambda system, question: "no idea"
    nothing = score_explanations(
        Endpoint(stub.url, "mute"), texts, activations, store, VOCABULARY, window=4, n_windows=4
    )
    assert nothing.n_failed == nothing.n_judged
    assert nothing.frame["detection_own"].isna().all()


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("[1, 0, 1]", 3, [1, 0, 1]),
        ("```json\n[true, false]\n```", 2, [1, 0]),
        ("First [1], but then [0, 1].", 2, [0, 1]),
        ("[1, 0]", 3, None),
        ("[1, 2, 0]", 3, None),
        ("[0.0, 1]", 2, None),
        ("yes, no", 2, None),
        ("[[1, 0]", 2, [1, 0]),
        ('["1", 0]', 2, None),
    ],
)
def test_reading_an_answer(text, n, expected):
    np.testing.assert_array_equal(explain._read_answer(text, n), expected or [np.nan] * n)


def test_passages_mark_the_tokens_that_fire_and_come_from_their_half(stub, world):
    activations, store = world
    stub.answer = lambda system, question: "something"
    explain_latents(Endpoint(stub.url, "m"), activations, store, VOCABULARY, [2], window=8, n_examples=6)
    question = stub.requests[0][2]["messages"][1]["content"]
    passages = re.split(r"(?:^|\n\n)\d+\. ", question)[1:]
    assert len(passages) == 6
    for passage in passages:
        marked = [m.strip() for m in re.findall(r"<<(.*?)>>", passage)]
        assert marked
        assert set(" ".join(marked).split()) == {"river"}
    early = store.tokens[: ROWS // 2].reshape(-1, 8)
    texts = {" ".join("".join(VOCABULARY[t] for t in window).split()) for window in early.tolist()}
    plain = [" ".join(re.sub("<<|>>", "", passage).split()) for passage in passages]
    assert set(plain) <= texts
    values = activations.entries(2)
    first = values[1][values[0] < ROWS // 2 * CONTEXT].max()
    place = int(values[0][values[1] == first][0]) // 8
    assert plain[0] == " ".join("".join(VOCABULARY[t] for t in early[place].tolist()).split())


def test_bad_input_gets_one_sentence(stub, world):
    activations, store = world
    endpoint = Endpoint(stub.url, "m")
    with pytest.raises(ValueError, match="url must be an address"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        Endpoint(stub.url, "m", attempts=0)
    with pytest.raises(ValueError, match="price must be that of prompt and of completion"):
        Endpoint(stub.url, "m", price=(1.0,))
    with pytest.raises(IndexError, match="latents must be between 0 and 5"):
        explain_latents(endpoint, activations, store, VOCABULARY, [6], window=4)
    with pytest.raises(ValueError, match="window must be"):
        explain_latents(endpoint, activations, store, VOCABULARY, [0], window=17)
    with pytest.raises(ValueError, match="vocabulary"):
        explain_latents(endpoint, activations, store, VOCABULARY[:2], [0], window=4)
    with pytest.raises(ValueError, match="at least 2 latents, one beside another, found 1"):
        score_explanations(endpoint, {0: "king"}, activations, store, VOCABULARY, window=4)
    with pytest.raises(IndexError, match="latent must be between"):
        score_explanations(endpoint, {0: "king", 9: "?"}, activations, store, VOCABULARY, window=4)
    assert stub.requests == []
