"""Facts about cities and countries that the embedded model knows, found by asking it for each.

`saekit facts` asks, and writes the table into the package. Another model takes the same entities and
templates: `saekit.known_facts(model, usable_facts(model.tokenizer, "city"), TEMPLATES["city"])`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from saekit.analysis.edits import COLUMNS, known_facts
from saekit.files import writable_folder, write_bytes
from saekit.loading.names import BUNDLED
from saekit.models import load_model
from saekit.settings import choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLURALS = {"city": "cities", "country": "countries"}

# What is asked is whether the model ranks the answer above the answers of all other entities of its kind.
TEMPLATES = {
    "city": {
        "country": (
            "The city of {entity} is in the country of",
            "Many people visit {entity}, a famous city in",
        ),
        "continent": (
            "The city of {entity} is on the continent of",
            "Geography: the city of {entity} is located in the continent of",
        ),
        "language": (
            "In the city of {entity}, most people speak the language called",
            "The language spoken in the city of {entity} is",
        ),
    },
    "country": {
        "capital": ("The capital city of {entity} is", "The government of {entity} meets in the city of"),
        "continent": (
            "The country of {entity} is on the continent of",
            "A map shows {entity}, a country on the continent of",
        ),
        "language": (
            "In the country of {entity}, most people speak the language called",
            "The language spoken in the country of {entity} is",
        ),
    },
}

# The entity, then its attributes in the order of the templates; all one token in the embedded model.
CANDIDATES = {
    "city": """
        Paris France Europe French, London England Europe English, Tokyo Japan Asia Japanese,
        Cairo Egypt Africa Arabic, Rome Italy Europe Italian, Milan Italy Europe Italian,
        Venice Italy Europe Italian, Florence Italy Europe Italian, Naples Italy Europe Italian,
        Berlin Germany Europe German, Munich Germany Europe German, Hamburg Germany Europe German,
        Madrid Spain Europe Spanish, Barcelona Spain Europe Spanish, Moscow Russia Europe Russian,
        Vienna Austria Europe German, Beijing China Asia Chinese, Shanghai China Asia Chinese,
        Delhi India Asia Hindi, Mumbai India Asia Hindi, Athens Greece Europe Greek,
        Dublin Ireland Europe English, Sydney Australia Australia English,
        Melbourne Australia Australia English, Toronto Canada America English,
        Montreal Canada America French, Chicago America America English, Kyoto Japan Asia Japanese,
        Seoul Korea Asia Korean, Istanbul Turkey Europe Turkish, Baghdad Iraq Asia Arabic,
        Tehran Iran Asia Persian, Jerusalem Israel Asia Hebrew, Amsterdam Netherlands Europe Dutch,
        Stockholm Sweden Europe Swedish, Oslo Norway Europe Norwegian, Copenhagen Denmark Europe Danish,
        Helsinki Finland Europe Finnish, Warsaw Poland Europe Polish, Budapest Hungary Europe Hungarian,
        Lisbon Portugal Europe Portuguese, Nairobi Kenya Africa Swahili, Manchester England Europe English,
        Lima Peru America Spanish, Havana Cuba America Spanish""",
    "country": """
        France Paris Europe French, England London Europe English, Germany Berlin Europe German,
        Italy Rome Europe Italian, Spain Madrid Europe Spanish, Russia Moscow Europe Russian,
        China Beijing Asia Chinese, Japan Tokyo Asia Japanese, India Delhi Asia Hindi,
        Egypt Cairo Africa Arabic, Greece Athens Europe Greek, Ireland Dublin Europe English,
        Iraq Baghdad Asia Arabic, Iran Tehran Asia Persian, Israel Jerusalem Asia Hebrew,
        Poland Warsaw Europe Polish, Sweden Stockholm Europe Swedish, Norway Oslo Europe Norwegian,
        Denmark Copenhagen Europe Danish, Austria Vienna Europe German, Korea Seoul Asia Korean,
        Kenya Nairobi Africa Swahili, Cuba Havana America Spanish, Peru Lima America Spanish,
        Portugal Lisbon Europe Portuguese, Finland Helsinki Europe Finnish,
        Hungary Budapest Europe Hungarian, Netherlands Amsterdam Europe Dutch""",
}


def candidate_facts(kind: str) -> pd.DataFrame:
    """The facts that a model is asked for.

    Parameters
    ----------
    kind : {"city", "country"}
        What the entities are.

    Returns
    -------
    DataFrame
        `entity`, `attribute`, `answer`.

    Raises
    ------
    ValueError
        If the kind is another.

    Examples
    --------
    >>> candidate_facts("city").head(3)
      entity  attribute  answer
    0  Paris    country  France
    1  Paris  continent  Europe
    2  Paris   language  French
    """
    attributes = TEMPLATES[choice("kind", kind, TEMPLATES)]
    entries = [entry.split() for entry in CANDIDATES[kind].split(",")]
    rows = [
        (entity, attribute, answer)
        for entity, *answers in entries
        for attribute, answer in zip(attributes, answers, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def usable_facts(tokenizer: PreTrainedTokenizerBase, kind: str) -> pd.DataFrame:
    """Candidate facts for a tokenizer: of entities that are, with all their answers, one token each.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The model's.
    kind : {"city", "country"}
        What the entities are.

    Returns
    -------
    DataFrame
        As `candidate_facts`; for the embedded model's tokenizer all of them.

    Raises
    ------
    ValueError
        If the kind is another, or no two entities are left.

    Examples
    --------
    >>> usable_facts(model.tokenizer, "city")
    Traceback (most recent call last):
        ...
    ValueError: The tokenizer has too few cities as single tokens: nothing can be edited.
    """
    facts = candidate_facts(kind)
    words = {*facts["entity"], *facts["answer"]}
    single = {word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1}
    usable = (facts["entity"].isin(single) & facts["answer"].isin(single)).groupby(facts["entity"])
    found = facts[usable.transform("all")].reset_index(drop=True)
    if found["entity"].nunique() < 2:
        raise ValueError(
            f"The tokenizer has too few {PLURALS[kind]} as single tokens: nothing can be edited."
        )
    return found


def write_facts(*, progress: bool = True) -> pd.DataFrame:
    """Ask the embedded model for every fact, and write the table into the package.

    Parameters
    ----------
    progress : bool
        Show a progress bar in prompts.

    Returns
    -------
    DataFrame
        As `facts_table`.
    """
    writable_folder(BUNDLED)
    model = load_model()
    parts = [
        known_facts(model, candidate_facts(kind), templates, progress=progress).assign(kind=kind)
        for kind, templates in TEMPLATES.items()
    ]
    table = pd.concat(parts, ignore_index=True).round({"margin": 2})
    table = table[["kind", *table.columns.drop("kind")]]
    write_bytes(BUNDLED / "facts.csv", table.to_csv(index=False).encode())
    return table
