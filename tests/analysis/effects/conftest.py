import pytest
import torch
from toy_effects import pairs

from saekit.models import load_model


@pytest.fixture(scope="module")
def prompts(model):
    return pairs(model)


@pytest.fixture(scope="session")
def linear_model(model_folder):
    """Linear after block 1: its last block adds nothing, its final norm has a constant scale. Float64."""
    model = load_model(model_folder, dtype=torch.float64)
    with torch.no_grad():
        for part in (model.blocks[2].attn.o, model.blocks[2].mlp.out):
            part.original_component.weight.zero_()
    norm = model.ln_final.original_component
    norm.forward = lambda x: x * norm.weight
    return model
