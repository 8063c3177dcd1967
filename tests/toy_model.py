"""A workspace that has everything, over random SAEs of a tiny random language model."""

from pathlib import Path

import torch
from conftest import save_random, sentences
from toy_effects import HOOK_POINT, pairs, sae

import saekit
from saekit.analysis import MetaSAE
from saekit.corpora import Document, pack
from saekit.dictionary import Dictionary
from saekit.family import Family


def make_meta(source):
    """A meta-SAE whose directions are the latents of another random SAE."""
    rows = sae(width=8, seed=7).W_dec
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": {"name": "toy"}}}
    words = Dictionary(
        rows.T.contiguous(),
        torch.zeros(8),
        rows,
        torch.zeros(rows.shape[1]),
        torch.full((8,), 0.1),
        info=info,
    )
    return MetaSAE(words, (source,), torch.zeros(source.width, dtype=torch.bool))


def make_model(folder):
    """The model of the fixture `model`, and a store of its activations."""
    from transformers import LlamaConfig, LlamaForCausalLM, utils

    utils.logging.disable_progress_bar()  # an output of its own in a notebook

    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = saekit.load_model(save_random(LlamaForCausalLM(config), Path(folder) / "tiny-llama"))
    documents = [Document(text, "Sentences", f"sentence {i}") for i, text in enumerate(sentences(60))]
    rows = pack(documents, model.tokenizer, context_length=16, n_tokens=22 * 16, name="sentences")
    path = Path(folder) / "store"
    return model, saekit.harvest(model, rows, HOOK_POINT, path=path, dtype=torch.float32, progress=False)


def make_workspace(folder):
    """A workspace with every view, and explorers of a circuit and of edits."""
    from toy_edits import make_edits

    model, store = make_model(folder)
    family = Family([sae(width=20), sae(width=20, seed=4), sae(width=40)])
    workspace = saekit.explore(
        family,
        store,
        model,
        insertion=saekit.insertion(family[20], family[40], store),
        stitching=saekit.stitch(family[20], family[40], store),
        meta=make_meta(family[40]),
        keep=False,
        progress=False,
    )
    effects = saekit.measure_node_effects(model, family[40], pairs(model), n_exact=5, steps=2)
    circuit = saekit.CircuitExplorer(effects, workspace.atlas.evidence[40])
    return workspace, circuit, saekit.EditExplorer(make_edits())
