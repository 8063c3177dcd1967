"""Two SAEs of one's own, stitched on one's own model and text, with nothing but what README and docs show.

`newcomer` is what such a person writes. That it uses only what the pages show is checked too.
"""

import ast
import inspect
import textwrap

import pytest
import torch
from conftest import build_tokenizer, sentences
from test_docs import PAGES, blocks_of

import saekit


def newcomer(model_folder, text_folder, work, tensors):
    """From a model, three text files and raw tensors to a stitched pair and a latent's contexts."""
    model = saekit.load_model(model_folder)
    documents = saekit.corpora.text_files(sorted(text_folder.glob("*.txt")))
    train_text, held_out_text = saekit.split(documents, held_out=0.2)
    hook_point = "blocks.1.hook_resid_post"
    stores = {}
    for part, text in {"train": train_text, "held-out": held_out_text}.items():
        rows = saekit.pack(text, model.tokenizer, context_length=32, n_tokens=2048)
        stores[part] = saekit.harvest(model, rows, hook_point, path=work / part)

    config = saekit.TrainingConfig(saekit.BatchTopK(k=4), width=64, steps=150)
    large = saekit.train(config, stores["train"], held_out=stores["held-out"]).dictionary
    large.save(work / "large")
    large = saekit.load_sae(work / "large")
    small = saekit.Dictionary.from_weights(
        tensors["encoder"], tensors["decoder"], b_enc=tensors["b_enc"], info={"hook_point": hook_point}
    )

    stitching = saekit.stitch(small, large, stores["held-out"])
    stitching.plot().save("curve", folder=work)
    stitching.dictionary(stitching.n_steps // 2).save(work / "halfway")
    activations = saekit.collect(large, stores["held-out"])
    latent = int(activations.counts.argmax())
    contexts = saekit.analysis.top_contexts(activations, latent, stores["held-out"], model.tokenizer, n=3)
    return stores, small, large, stitching, contexts


@pytest.fixture(params=["gpt2", "llama"])
def model_folder(request, tmp_path):
    """A model made on the spot."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "models" / request.param
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=4, n_positions=64)
        GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        config = LlamaConfig(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer(folder)
    return folder


@pytest.fixture
def text_folder(tmp_path):
    """Three odd files: one endless line, Windows line ends with a byte order mark, and other scripts."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "one line.txt").write_text(" ".join(sentences(400, seed=1)), encoding="utf-8")
    windows = "\ufeff" + "\r\n\r\n".join(sentences(400, seed=2))
    (folder / "windows.txt").write_bytes(windows.encode("utf-8"))
    (folder / "scripts.txt").write_text("Ελλάς 東京 🙂 עברית\n\n" * 300, encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("ignore::saekit.agreement.UnrecordedWarning")
@pytest.mark.slow
def test_a_newcomer_gets_there(model_folder, text_folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(16, 32, generator=generator)  # [d_in, d_sae], rows of any norm
    tensors = {"encoder": decoder.T / 16, "decoder": decoder, "b_enc": torch.full((32,), -0.1)}
    stores, _, large, stitching, contexts = newcomer(model_folder, text_folder, tmp_path / "w", tensors)
    ends = stitching.frame["fvu"].iloc[[0, -1]].tolist()
    x = stores["held-out"].read(stores["held-out"].positions).double()
    variance = (x - x.mean(dim=0)).square().sum()
    expected = []
    for encoder, b_enc, rows, b_dec, threshold in [
        (tensors["encoder"].T, tensors["b_enc"], decoder.T, torch.zeros(16), torch.zeros(32)),
        (large.W_enc, large.b_enc, large.W_dec, large.b_dec, large.threshold),
    ]:
        h = x @ encoder.double() + b_enc.double()
        x_hat = h.where(h > threshold.double(), 0) @ rows.double() + b_dec.double()
        expected.append(float((x - x_hat).square().sum() / variance))
    assert ends == pytest.approx(expected, rel=1e-4)
    assert 0 < len(contexts) <= 3
    assert {"curve.pdf", "curve.csv", "halfway"} <= {path.name for path in (tmp_path / "w").iterdir()}


def test_it_uses_only_what_readme_and_docs_show():
    shown = {
        name
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.language == "python"
        for name in names_in(block.code)
    }
    used = names_in(textwrap.dedent(inspect.getsource(newcomer)))
    assert {"stitch", "from_weights", "harvest", "held_out"} <= used
    assert used - shown - {"folder"} == set()


def names_in(source):
    """Names of attributes and keyword arguments of a source."""
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
