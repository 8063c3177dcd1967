"""The embedded rows, pinned: stores under `saekit.files.home()` are found by name."""

import types

import pytest
import torch

from saekit.files import hash_json
from saekit.models import _converted_model
from saekit.series import embedded
from saekit.series.embedded import embedded_rows, embedded_store

# Where one of these changes, so must `saekit.series.embedded.EDITION`.
DOCUMENTS = "2123fb5e90ad09b368ed60f48886a2619454ee5c7a8a24f3e598516b05349d0e"
ROWS = {
    "held-out": "7dc83a57fec9a2eb577f77fe8afdde9730d2d8df84967e53ddc4038fa8336e15",
    "train": "489e420acb8dd36a942777ef5b0b454c0573c928c3bb157374ec1f91a2295ee0",
}


@pytest.mark.embedded
@pytest.mark.slow
def test_the_rows_of_this_edition_are_these():
    documents = [[d.hash, d.source, d.title] for d in embedded._training_documents()]
    assert hash_json(documents) == DOCUMENTS
    from transformers import AutoTokenizer

    model = types.SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(_converted_model()))
    for part, expected in ROWS.items():
        assert embedded_rows(model, part=part, n_tokens=100_000).content_hash == expected, part
    assert embedded.EDITION == ""


def test_a_store_is_found_by_part_size_dtype_and_edition(monkeypatch, tmp_path, store):
    """A complete one is opened, without the model; editing the code of the corpora changes no name."""
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "load_model", None)
    monkeypatch.setattr(embedded, "HOOK_POINT", store.hook_point)
    folder = tmp_path / "stores" / "train-15000000-bfloat16"
    folder.parent.mkdir()
    folder.symlink_to(store.path)
    assert embedded_store("train", n_tokens=15_000_000).path == folder
    monkeypatch.setattr(embedded, "EDITION", "-2")
    (tmp_path / "stores" / "held-out-100000-float32-2").symlink_to(store.path)
    assert torch.equal(embedded_store("held-out").tokens, store.tokens)
