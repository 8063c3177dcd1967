"""Edits by hand: two attributes, three entities, and answers that were never measured."""

import pandas as pd
import torch

from saekit.analysis.edits import PATCHING, RANDOM, Edits
from saekit.identity import Identity

ANSWERS = {"country": ["<b>France", "Italy", "Japan"], "continent": ["Asia", "Europe"]}
FACTS = [("Paris", "<b>France", "Europe"), ("Rome", "Italy", "Europe"), ("Tokyo", "Japan", "Asia")]
METHODS = [(PATCHING, 12), ("latents", 2), ("latents", 8), ("meta-latents, as in the post", 1), (RANDOM, 2)]


def make_edits():
    """Every pair that differs in both, with random probabilities of the answers."""
    generator = torch.Generator().manual_seed(0)
    facts = pd.DataFrame(
        [
            (entity, attribute, answer)
            for entity, *answers in FACTS
            for attribute, answer in zip(ANSWERS, answers, strict=True)
        ],
        columns=["entity", "attribute", "answer"],
    )
    own = facts.set_index(["entity", "attribute"])["answer"]
    rows, after = [], {}
    for asked, names in ANSWERS.items():
        found = []
        for base, source in (("Paris", "Tokyo"), ("Tokyo", "Paris"), ("Rome", "Tokyo"), ("Tokyo", "Rome")):
            for attribute in ANSWERS:
                for method, n in METHODS:
                    found.append(torch.randn(len(names), generator=generator).softmax(0))
                    wanted = own[source if attribute == asked else base, asked]
                    answer = names[int(found[-1].argmax())]
                    row = (base, source, attribute, method, n, 1.5, asked)
                    rows.append((*row, answer, wanted, answer == wanted))
        after[asked] = torch.stack(found)
    frame = pd.DataFrame(
        rows,
        columns=[
            "base",
            "source",
            "attribute",
            "method",
            "n",
            "norm",
            "asked",
            "answer",
            "wanted",
            "reached",
        ],
    )
    damage = pd.DataFrame(
        [(method, n, row, 0.1 * n + row) for method, n in METHODS for row in (0, 3)],
        columns=["method", "n", "row", "loss"],
    )
    before = {name: torch.eye(3)[:, : len(names)].softmax(1) for name, names in ANSWERS.items()}
    identity = Identity("relu 24 (seed 0)", "relu", 24, 0, "toy", "0" * 64)
    return Edits(identity, None, facts, frame, damage, ANSWERS, before, after, 0)
