"""Dictionaries, prompts and a metric for the tests of effects and circuits."""

import torch

from saekit.dictionary import Dictionary
from saekit.prompts import Prompts

HOOK_POINT = "blocks.1.hook_resid_post"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae(hook_point=HOOK_POINT, width=20, seed=0, **more):
    """A random SAE of the tiny model, whose latents are often active."""
    return Dictionary.from_weights(
        random(16, width, seed=seed) / 4,
        random(width, 16, seed=seed + 1),
        random(width, seed=seed + 2) / 4,
        random(16, seed=seed + 3) / 4,
        d_in=16,
        info={"hook_point": hook_point, "kind": "relu", "seed": seed},
        **more,
    )


def double(dictionary):
    return dictionary.to(dtype=torch.float64)


def pairs(model):
    """Three pairs of different lengths; the third has several right answers."""
    clean = ["the king sleeps over the river", "the old queen runs", "a stone over the moon"]
    corrupted = ["the queen sleeps over the river", "the old king runs", "a stone under the moon"]
    answers, wrong = [" king", " the", (" the", " old")], [" queen", " a", " moon"]
    return Prompts.from_texts(
        model.tokenizer, clean, corrupted=corrupted, answers=answers, wrong=wrong, name="toy"
    )


def everywhere(logits, prompts):
    """A metric that is linear in the logits of every position."""
    _, ctx, vocab = logits.shape
    keep = (torch.arange(ctx) < prompts.lengths[:, None])[:, :, None]
    return (logits * keep * random(ctx, vocab, seed=5)).sum((1, 2)) / 30
