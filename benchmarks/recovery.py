"""Record how SAELens scores SAEs against true features, for the tests of `saekit.measure_recovery`.

    python benchmarks/recovery.py

Runs in the peers' environment (requirements/peers.txt). Each case is a random SAE, random true directions and
random feature activations; `tests/recovery/cases.safetensors` holds them and `tests/recovery/scores.json`
what `sae_lens.synthetic.evals` computes of them. A second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import environment

OUT = Path(__file__).resolve().parents[1] / "tests" / "recovery"
# name: width, true features, d_in, noise on the decoder rows that copy true directions
CASES = {
    "more features than latents": (12, 20, 8, 0.3),
    "more latents than features": (24, 10, 12, 0.3),
    "reversed, repeated and dead latents": (16, 16, 10, 0.05),
    "nothing learnt": (10, 10, 30, 100.0),
}


def main() -> None:
    """Write the cases and their scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--environment", type=Path, help=environment.enter.__doc__.splitlines()[0])
    options = parser.parse_args()
    environment.enter(options.environment)

    import torch
    from sae_lens.saes import StandardSAE, StandardSAEConfig
    from sae_lens.synthetic import FeatureDictionary, evals
    from safetensors.torch import save_file

    tensors, scores = {}, {}
    for number, (name, (width, n_features, d_in, noise)) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(number)

        def normal(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        directions = torch.nn.functional.normalize(normal(n_features, d_in), dim=1)
        fires = torch.rand(300, n_features, generator=generator) < 0.15
        features = fires * (1 + 0.2 * normal(300, n_features)).relu()
        W_dec = directions[torch.arange(width) % n_features] + noise * normal(width, d_in)
        W_dec *= (0.5 + torch.rand(width, 1, generator=generator)) / W_dec.norm(dim=1, keepdim=True)
        b_enc = 0.2 * normal(width) - 0.3
        if "reversed" in name:
            W_dec[:4] *= -1
            W_dec[4:6] = W_dec[6:8]
            b_enc[-2:] = -1000.0
        sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=width, apply_b_dec_to_input=False))
        weights = {"W_enc": W_dec.T.clone(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": 0.1 * normal(d_in)}
        sae.load_state_dict(weights)
        truth = FeatureDictionary(n_features, d_in, initializer=None)
        truth.feature_vectors.data = directions
        drawn = SimpleNamespace(sample=lambda n, features=features: features[:n])
        result = evals.eval_sae_on_synthetic_data(sae, truth, drawn, num_samples=len(features))
        scores[name] = result.to_dict()
        given = weights | {"directions": directions, "features": features}
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in given.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.out / "cases.safetensors")
    (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
